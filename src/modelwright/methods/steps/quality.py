"""Quality: keeps rows that read like the good examples rather than like the bad ones, by a linear classifier trained on the spot.

Sources: Brown et al. 2020, "GPT-3", arXiv:2005.14165, appendix A (hashed words, logistic regression); Li et al. 2024, "DCLM",
arXiv:2406.11794, section 4.4 (fastText on words and pairs of words, the best tenth stays). Differs from GPT-3: no row is kept by
chance (its Pareto draw).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.core.stage import Run
from modelwright.methods.steps import Bound, Choice, Choosing, Numbers, Why, content
from modelwright.methods.steps._linear import Examples, known, learnt, told

if TYPE_CHECKING:
    from modelwright.text.linear import Trained


class Quality(Choosing):
    """Documents, and chats by the text of all their turns."""

    bytes_per_s: ClassVar[float] = 100e6
    advice: ClassVar[Advice] = Advice(
        "you have some hundred examples of text that you want and of text that you do not", "your examples differ in topic alone"
    )

    kind: Literal["quality"] = "quality"
    good: Examples = Field(min_length=1, examples=[("./good.jsonl",)])
    """References to rows such as you want, one or a list; 20 at least, hundreds are better."""
    bad: Examples = Field(min_length=1, examples=[("./bad.jsonl",)])
    """References to rows such as you do not want; a sample of the raw pages will do."""
    threshold: float = Field(0.5, gt=0, lt=1, examples=[0.9])
    """Probability (0 to 1) of being good, were both sorts equally frequent, below which a row goes; raising it drops more.
    Default: rather good than bad."""
    keep: float | None = Field(None, gt=0, le=1, examples=[0.5])
    """Share of the rows that stays, the best ones (DCLM: 0.1); needs the last row before the first goes on. Default: by
    `threshold`."""

    _learnt: dict[tuple[str, ...], Trained] = PrivateAttr(default_factory=dict)

    def unused(self, context: Spec) -> dict[str, str]:
        return {"threshold": "`keep` already says how many stay"} if self.keep is not None else {}

    def keeps(self, rows: float | None) -> float:
        return self.keep or 1.0

    def waits(self) -> bool:
        return self.keep is not None

    def _trained(self, run: Run) -> Trained:
        """Once in each process."""
        key = tuple(str(run.inputs[ref]) for ref in (*self.good, *self.bad))
        if key not in self._learnt:
            self._learnt[key] = learnt({"good": self.good, "bad": self.bad}, run)
        return self._learnt[key]

    def measured_by(self, run: Run) -> dict[str, Any] | None:
        read = known({"good": self.good, "bad": self.bad}, run)
        return read and {"name": "quality", **read}

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        least = self.threshold if self.keep is None else -math.inf
        return {"quality: below the threshold": Bound("probability of good", numbers["good"], least, math.inf, "threshold")}

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        from modelwright.text import Texts

        return {"good": self._trained(run).classifier.good(Texts.of(map(content, rows)))}

    def chooser(self, run: Run) -> Choice:
        import numpy as np

        run.log.note(told("quality", self._trained(run)))

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            good = numbers["good"]
            if self.keep is None:
                reason, gone = "quality: below the threshold", np.flatnonzero(good < self.threshold)
            else:
                reason, gone = "quality: not among the best", np.argsort(-good, kind="stable")[round(self.keep * len(good)) :]
            return {int(row): Why(reason, f"{good[row]:.3f}") for row in gone}

        return choose
