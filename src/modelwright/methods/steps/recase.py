"""Recase: copies in other case, as people type in a hurry or shout.

Source: Mayhew et al. 2019, "ner and pos when nothing is capitalized", arXiv:1903.11222: training on both cases costs little and
makes a model sure in either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from modelwright.methods.steps._augment import Augment

_WORD = re.compile(r"[^\W\d_][\w']*")


def _capitals(text: str) -> str:
    return _WORD.sub(lambda match: match[0][0].upper() + match[0][1:], text)


_TO = {"lower": str.lower, "upper": str.upper, "capitals": _capitals}


class Recase(Augment):
    kind: Literal["recase"] = "recase"
    to: list[Literal["lower", "upper", "capitals"]] = Field(["lower"], min_length=1, examples=[["upper", "capitals"]])
    """Of which one is drawn for each text: all lower case, all upper case, a capital for each word. Default: what people type."""

    def change(self, text: str, drawn: Callable[[], float]) -> str:
        return _TO[self.to[int(drawn() * len(self.to))]](text)
