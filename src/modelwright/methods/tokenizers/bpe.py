"""BPE: byte-level byte-pair encoding, learned by `rustbpe` or, where that is missing, more slowly and alike by `tokenizers`.

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
from modelwright.methods.tokenizers._bytes import assembled
from modelwright.methods.tokenizers._merges import learned, learner


class BPE(Tokenizer):
    """Every text can be written, byte by byte if need be; decoding gives it back exactly."""

    version: ClassVar[int] = 2
    exact: ClassVar[bool] = True
    bytes_per_s: ClassVar[float] = 8.8e6
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

    def learner(self) -> str:
        return learner()

    def train(self, texts: Iterator[str], special: tuple[str, ...]) -> Any:
        merges = learned(texts, self.pre, max(self.size - 256 - len(special), 0), self.min_frequency)
        return assembled(merges, special, self.pre)
