"""Length: drops rows that are too short or too long.

Source: RefinedWeb, Penedo et al. 2023, arXiv:2306.01116, and Gopher (Rae et al. 2021, arXiv:2112.11446, appendix A.1) both begin
with bounds on length; ours are off until set.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.stage import Run
from modelwright.methods.steps import Bound, Measure, Measuring, Numbers, content


class Length(Measuring):
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

    def measurer(self, run: Run) -> Measure:
        import numpy as np

        return lambda rows: {"chars": np.array([len(content(record)) for record in rows], np.int64)}

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        return {
            "length: too short": self.at_least("characters", numbers["chars"], "min_chars"),
            "length: too long": self.at_most("characters", numbers["chars"], "max_chars"),
        }
