"""Linear: straight from the peak rate down to a floor.

Source: Defazio et al. 2023, "Optimal Linear Decay Learning Rate Schedules and Further Refinements", arXiv:2310.07831;
Bergsma et al. 2025, arXiv:2502.15938, for decay to zero.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.schedules import Schedule, decayed, warmed


class Linear(Schedule):
    """The best single shape in the cited comparison."""

    advice: ClassVar[Advice] = Advice("fine-tuning with a fixed number of steps", "you may want to train on: then `wsd`")

    kind: Literal["linear"] = "linear"
    warmup: int = Field(20, ge=0, examples=[3])
    """Steps from 0 to the peak rate. More protects fresh Adam statistics, too many waste steps."""
    floor: float = Field(0.0, ge=0, le=1, examples=[0.1])
    """Factor of the peak rate at the end. 0 as in the cited papers; higher keeps learning to the last step."""

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return warmed(step, self.warmup)
        return 1 - (1 - self.floor) * decayed(step, steps, self.warmup)
