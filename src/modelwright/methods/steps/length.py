"""Length: drops rows that are too short or too long.

Source: RefinedWeb, Penedo et al. 2023, arXiv:2306.01116, and Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1) both begin
with bounds on length; ours are off until set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Drop, Step, content


class Length(Step):
    """Bounds on the characters of a row, all turns together."""

    bytes_per_s: ClassVar[float] = 2e9

    kind: Literal["length"] = "length"
    min_chars: int = Field(1, ge=0, examples=[200])
    """Characters a row must have; raising it drops fragments. Default: rows that are not empty."""
    max_chars: int | None = Field(None, ge=1, examples=[300])
    """Characters a row may have; lowering it drops what would be cut off in training. Default: no bound."""

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"`max_chars` {self.max_chars} is below `min_chars` {self.min_chars}: no row could pass")
        return self

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        for record in rows:
            chars = len(content(record))
            if chars < self.min_chars:
                yield Drop(record, "length: too short", f"{chars} characters, fewer than {self.min_chars}")
            elif self.max_chars is not None and chars > self.max_chars:
                yield Drop(record, "length: too long", f"{chars} characters, more than {self.max_chars}")
            else:
                yield record
