"""BPE: byte-level byte-pair encoding, trained by `tokenizers`.

Sources: Gage 1994, "A new algorithm for data compression"; Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al.
2019, "Language Models are Unsupervised Multitask Learners", section 2.2. Text is cut as GPT-2 or as SmolLM2 (Allal et al.
2025, arXiv:2502.02737) does, and no normaliser changes it, because llama.cpp knows exactly these two by the names `gpt-2` and
`smollm` (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.tokenizers import Tokenizer


class BPE(Tokenizer):
    """Every text can be written, byte by byte if need be; decoding gives it back exactly."""

    bytes_per_s: ClassVar[float] = 2e6
    advice: ClassVar[Advice] = Advice("you pretrain from scratch", "you start from a model that has a vocabulary")

    kind: Literal["bpe"] = "bpe"
    size: int = Field(8192, ge=300, le=1_000_000, examples=[512])
    """Tokens in all, special ones and 256 bytes included. More shorten the text and widen the model's first and last layer.
    Default: for models of a few million weights, where a wider table would outweigh the layers (Tao et al. 2024,
    arXiv:2407.13623)."""
    pre: Literal["smollm", "gpt2"] = Field("smollm", examples=["gpt2"])
    """How text is cut before merging: `smollm` gives every digit a token of its own, `gpt2` merges digits. Default: single
    digits, which help with numbers (Singh and Strouse 2024, arXiv:2402.14903)."""
    min_frequency: int = Field(2, ge=1, examples=[50])
    """Times a pair must occur to be merged; raising it may end below `size`. Default: what occurs once is chance."""

    def vocab_size(self) -> int:
        return self.size

    def pre_tokenizer(self) -> str:
        return self.pre

    def train(self, texts: Iterator[str], special: tuple[str, ...]) -> Any:
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trained

        tokenizer = Trained(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level]) if self.pre == "smollm" else byte_level
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=self.min_frequency,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer
