"""WSD: warm-up, a stable plateau, then a straight decay over the last part of the run.

Source: Hu et al. 2024, "MiniCPM", arXiv:2404.06395, section 4; the linear decay follows Haegele et al. 2024,
arXiv:2405.18392, section 3, who find it as good as cosine.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.schedules import Schedule, warmed


class WSD(Schedule):
    """Any point of the plateau can be trained on."""

    advice: ClassVar[Advice] = Advice(
        "pretraining, above all with Muon", "a few dozen steps: the plateau is then too short to matter"
    )

    kind: Literal["wsd"] = "wsd"
    warmup: int = Field(50, ge=0, examples=[3])
    """Steps from 0 to the peak rate. 50 was best for a model of 5M weights in a few hundred steps."""
    decay: float = Field(0.3, gt=0, le=1, examples=[0.6])
    """Share of all steps, at the end, over which the rate falls. The papers use 0.1 to 0.2 of long runs; short runs want more."""
    floor: float = Field(0.0, ge=0, le=1, examples=[0.1])
    """Factor of the peak rate at the end. 0 as in the second paper; higher keeps learning to the last step."""

    def factor(self, step: int, steps: int) -> float:
        begin = steps * (1 - self.decay)
        if step < begin:
            return warmed(step, self.warmup)
        left = (steps - step) / max(steps - begin, 1)
        return warmed(step, self.warmup) * (self.floor + (1 - self.floor) * left)
