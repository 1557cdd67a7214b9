"""A user's own engine whose first answer cannot be told: of its hundredth token no text can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from modelwright.methods.engines._text import Pieces
from modelwright.methods.engines.native import Native


class Torn(Native):
    """The native engine otherwise."""

    kind: Literal["torn"] = "torn"  # type: ignore[assignment]

    def open(self, model: Path) -> Any:
        engine: Any = super().open(model)
        whole, made = engine._pieces, list[Pieces]()

        def pieces() -> Pieces:
            made.append(whole() if made else _Torn(whole()))
            return made[-1]

        engine._pieces = pieces
        return engine


class _Torn:
    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self._pushed = pieces, 0
        self.rest, self.whole = pieces.rest, pieces.whole

    def push(self, token: int) -> str:
        self._pushed += 1
        if self._pushed == 100:
            raise ValueError("no text can be made of it")
        return self._pieces.push(token)
