"""Noise: copies with slips of the fingers.

Source: Karpukhin et al. 2019, "Training on Synthetic Noise Improves Robustness to Natural Noise in Machine Translation",
arXiv:1902.01509, section 3 (one slip in a word: a character is deleted, put in, replaced or swapped with the next). Differs: what
is put in is the character again, and what replaces one is its neighbour on the keyboard, as fingers do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from modelwright.methods.steps._augment import Augment

Slip = Literal["swap", "drop", "repeat", "neighbour"]
_WORD = re.compile(r"[^\W\d_]{3,}")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEXT = {key: row[at - 1 : at] + row[at + 1 : at + 2] for row in _ROWS for at, key in enumerate(row)}
"""Left and right on an English keyboard; other letters are repeated."""


class Noise(Augment):
    """Words of three letters or more have one slip at most; digits and punctuation stay."""

    kind: Literal["noise"] = "noise"
    rate: float = Field(0.05, gt=0, le=1, examples=[0.5])
    """Part of the words (0 to 1) with a slip; raising it teaches more of slips and less of words. Default: a word in
    twenty, near what quick typists leave in."""
    slips: list[Slip] = Field(["swap", "drop", "repeat", "neighbour"], min_length=1, examples=[["drop"]])
    """Of which one is drawn for each word: two letters swapped, one left out, one typed twice, the key beside it. Default: all,
    as each guards against its own sort alone."""

    def change(self, text: str, drawn: Callable[[], float]) -> str:
        return _WORD.sub(lambda match: self._slip(match[0], drawn) if drawn() < self.rate else match[0], text)

    def _slip(self, word: str, drawn: Callable[[], float]) -> str:
        slip = self.slips[int(drawn() * len(self.slips))]
        at = int(drawn() * (len(word) - 1))
        here, rest = word[at], word[at + 1 :]
        if slip == "swap":
            return word[:at] + rest[0] + here + rest[1:]
        if slip == "drop":
            return word[:at] + rest
        keys = _NEXT.get(here.lower(), "")
        if slip == "repeat" or not keys:
            return word[:at] + here + here + rest
        key = keys[int(drawn() * len(keys))]
        return word[:at] + (key.upper() if here.isupper() else key) + rest
