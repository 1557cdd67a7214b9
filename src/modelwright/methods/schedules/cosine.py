"""Cosine: half a cosine from the peak rate down to a floor.

Source: Loshchilov and Hutter 2017, "SGDR", arXiv:1608.03983, equation 5, one cycle.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.schedules import Schedule, decayed, warmed


class Cosine(Schedule):
    """Slow at both ends, fast in the middle."""

    advice: ClassVar[Advice] = Advice("the number of steps is fixed", "you may want to train on: then `wsd`")

    kind: Literal["cosine"] = "cosine"
    warmup: int = Field(20, ge=0, examples=[3])
    """Steps from 0 to the peak rate. More protects fresh Adam statistics, too many waste steps."""
    floor: float = Field(0.1, ge=0, le=1, examples=[0.0])
    """Factor of the peak rate at the end. 0.1 as in Chinchilla (arXiv:2203.15556) and Llama (arXiv:2302.13971)."""

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return warmed(step, self.warmup)
        done = decayed(step, steps, self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
