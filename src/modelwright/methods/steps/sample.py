"""Sample: keeps a random part of the rows, the same ones whatever their order.

Source: bottom-k sampling by hashed identifiers, Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches",
doi:10.1145/1281100.1281133.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Numbers, Why
from modelwright.methods.steps._rows import draw


class Sample(Choosing):
    """A share of the rows, or a number of them."""

    random: ClassVar[bool] = True
    judges: ClassVar[bool] = False
    bytes_per_s: ClassVar[float] = 1e9

    kind: Literal["sample"] = "sample"
    share: float = Field(0.1, gt=0, le=1, examples=[0.5])
    """Part of the rows that stays (0 to 1), to within chance. Default: a tenth, enough for a trial run."""
    rows: int | None = Field(None, ge=1, examples=[3])
    """Rows that stay, exactly (or all, where there are fewer). Default: by `share`."""

    def unused(self, context: Spec) -> dict[str, str]:
        return {"share": "`rows` already says how many stay"} if self.rows is not None else {}

    def keeps(self, rows: float | None) -> float:
        if self.rows is None:
            return self.share
        return min(1.0, self.rows / rows) if rows else 1.0

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        return {"draw": np.array([draw(run.seed, record.id) for record in rows])}

    def waits(self) -> bool:
        return self.rows is not None

    def chooser(self, run: Run) -> Choice:
        import numpy as np

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            drawn = numbers["draw"]
            stays = drawn < self.share
            if self.rows is not None:
                stays = np.zeros(len(drawn), bool)
                stays[np.argsort(drawn, kind="stable")[: self.rows]] = True
            return {int(row): Why("sample: not drawn") for row in np.flatnonzero(~stays)}

        return choose
