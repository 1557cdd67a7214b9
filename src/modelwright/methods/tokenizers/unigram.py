"""Unigram: the pieces that make the text likeliest, pruned from many; learned by `tokenizers`.

Source: Kudo 2018, arXiv:1804.10959, section 3.2; blanks as `▁` and normalisation NFKC as in SentencePiece (Kudo and Richardson
2018, arXiv:1808.06226). Differs from SentencePiece: no blank is put before a text, so that a text in pieces is the text, and line
ends, which SentencePiece never sees, are pieces of their own, so that what a line begins with is the same whatever came before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.tokenizers import Tokenizer
from modelwright.methods.tokenizers._alphabet import covered

_UNKNOWN = "<unk>"
_BACK = 1e-4
"""Steps between the scores of characters that pruning took out, as in the library."""


class Unigram(Tokenizer):
    """Blanks come back; characters outside the alphabet do not, nor, unless `normalise` is off, does what NFKC changes."""

    version: ClassVar[int] = 2
    bytes_per_s: ClassVar[float] = 1e5
    advice: ClassVar[Advice] = Advice(
        "words have many endings, or there are no blanks between them (Bostrom and Durrett 2020, arXiv:2004.03720)",
        "the model is to be exported to GGUF, or must write every character: use `bpe`",
    )

    kind: Literal["unigram"] = "unigram"
    size: int = Field(8192, ge=100, le=1_000_000, examples=[512])
    """Tokens in all, special ones and the alphabet included. More shorten the text and widen the model's first and last
    layer. Default: as for `bpe`."""
    normalise: bool = True
    """Whether text is brought to the Unicode form NFKC first (full-width letters, ligatures). Default: SentencePiece's."""
    alphabet: int = Field(1000, ge=1, examples=[15])
    """Different characters that are kept, the most frequent first; others become `<unk>`. Default: as for `wordpiece`."""
    piece_chars: int = Field(16, ge=1, examples=[3])
    """Longest piece in characters; raising it lets frequent phrases of a long word be one token. Default: SentencePiece's."""

    def vocab_size(self) -> int:
        return self.size

    def roles(self) -> dict[str, str]:
        return {"unk_token": _UNKNOWN}

    def train(self, texts: Iterator[str], special: tuple[str, ...]) -> Any:
        from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trained

        marks = tuple(dict.fromkeys((*special, _UNKNOWN)))
        tokenizer = Trained(models.Unigram())
        if self.normalise:
            tokenizer.normalizer = normalizers.NFKC()
        lines = pre_tokenizers.Split(Regex(r"[\r\n]+"), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.Metaspace(prepend_scheme="never")])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(
            vocab_size=self.size,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in marks],
            unk_token=_UNKNOWN,
            max_piece_length=self.piece_chars,
            show_progress=False,
        )
        normalise = normalizers.NFKC().normalize_str if self.normalise else str
        tokenizer.train_from_iterator(covered(texts, self.alphabet, normalise), trainer)
        return _settled(tokenizer, len(marks))


def _settled(tokenizer: Any, marks: int) -> Any:
    """The same pieces in an order of their own. The library sums in the order of a hash table, so scores differ in their last
    digits from run to run, and characters that pruning took out come back with the lowest scores, in that order."""
    from tokenizers import Tokenizer as Trained

    tree = json.loads(tokenizer.to_str())
    scores = {piece: score for piece, score in tree["model"]["vocab"][marks:]}
    lowest = min(scores.values(), default=0.0)
    chars = sorted(piece for piece in scores if len(piece) == 1)
    back = [char for char in chars if scores[char] <= lowest + _BACK * len(chars)]
    scores |= {char: lowest + _BACK * number for number, char in enumerate(back)}
    rounded = [[piece, round(score, 4)] for piece, score in scores.items()]
    tree["model"]["vocab"][marks:] = sorted(rounded, key=lambda item: (-item[1], item[0]))
    return Trained.from_str(json.dumps(tree))
