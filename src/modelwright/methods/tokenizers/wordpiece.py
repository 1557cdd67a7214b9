"""WordPiece: pieces of words, the longest first, with BERT's normalisation and marks; learned by `tokenizers`.

Sources: Schuster and Nakajima 2012, "Japanese and Korean Voice Search" (https://doi.org/10.1109/ICASSP.2012.6289079); Devlin et
al. 2019, arXiv:1810.04805, for the normalisation, `##`, and the marks. Differs from the paper: as in the library, the pair that
is merged next is the most frequent one and not the one that raises the likelihood most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.tokenizers import Tokenizer
from modelwright.methods.tokenizers._words import learned

_ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_WITHIN = "##"
_WORD_CHARS = 100
"""Longer words become the unknown token, as in BERT."""


class WordPiece(Tokenizer):
    """Blanks and, unless `lowercase` is off, capitals and accents are lost; a word with an unknown character is one `[UNK]`."""

    bytes_per_s: ClassVar[float] = 1.2e6
    advice: ClassVar[Advice] = Advice(
        "you train an encoder in the manner of BERT", "the model is to write text: blanks and capitals do not come back"
    )

    kind: Literal["wordpiece"] = "wordpiece"
    size: int = Field(8192, ge=100, le=1_000_000, examples=[512])
    """Tokens in all, special ones included. More shorten the text and widen the model's first and last layer. Default: as for
    `bpe`; BERT has 30,522."""
    min_frequency: int = Field(2, ge=1, examples=[50])
    """Times a pair must occur to be merged; raising it may end below `size`. Default: what occurs once is chance."""
    lowercase: bool = True
    """Whether capitals become small letters and accents are taken off. Default: as `bert-base-uncased`."""
    alphabet: int = Field(1000, ge=1, examples=[15])
    """Different characters that are kept, the most frequent first; words with others become `[UNK]`. Default: the library's."""

    def vocab_size(self) -> int:
        return self.size

    def roles(self) -> dict[str, str]:
        return _ROLES

    def train(self, texts: Iterator[str], special: tuple[str, ...]) -> Any:
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as Trained

        marks = tuple(dict.fromkeys((*special, *_ROLES.values())))
        normaliser, cutter = normalizers.BertNormalizer(lowercase=self.lowercase), pre_tokenizers.BertPreTokenizer()
        words = (word for text in texts for word, _ in cutter.pre_tokenize_str(normaliser.normalize_str(text)))
        pieces = learned(words, _symbols, self.alphabet, self.size - len(marks), self.min_frequency)
        tokens = [*marks, *pieces.alphabet, *(_joined(left + right) for left, right in pieces.merges)]
        vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        tokenizer = Trained(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=_WORD_CHARS))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normaliser, cutter
        tokenizer.decoder = decoders.WordPiece(prefix=_WITHIN)
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in marks])
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
        return tokenizer


def _symbols(word: str) -> list[str]:
    return [word[0], *(_WITHIN + char for char in word[1:])]


def _joined(symbols: list[str]) -> str:
    return symbols[0] + "".join(symbol.removeprefix(_WITHIN) for symbol in symbols[1:])
