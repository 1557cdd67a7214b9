"""Schedule-free AdamW: the gradient is taken between the fast weights and their average; the average is the model.

Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv:2405.15682, algorithm 1. Bias correction is of the mean square, as
in AdamW and in the authors' present code, not of the rate, which they found unstable on some problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice
from modelwright.methods.optimizers import ADAMW_NEW, ADAMW_TUNED, Named, Optimizer, Rates, decay_groups, piece


class ScheduleFree(Optimizer):
    """No end has to be known; use `schedule: constant`, whose warm-up it needs."""

    state_bytes_per_param: ClassVar[float] = 8.0
    elementwise: ClassVar[bool] = True
    averages: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "the number of steps is not known before, or one run is to be good at every length", "a rate that decays: use `adamw`"
    )
    rates_new: ClassVar[tuple[Rates, ...]] = tuple(
        rates.scaled(1, 10, "one to ten times AdamW's, the authors' code") for rates in ADAMW_NEW
    )
    rates_tuned: ClassVar[tuple[Rates, ...]] = tuple(
        rates.scaled(1, 10, "one to ten times AdamW's, the authors' code") for rates in ADAMW_TUNED
    )

    kind: Literal["schedule_free"] = "schedule_free"
    lr: float = Field(2.5e-3, gt=0, examples=[1e-2])
    """Peak learning rate. Higher learns faster and then diverges. The default of the authors' code; the best is one to ten
    times AdamW's."""
    beta1: float = Field(0.9, gt=0, lt=1, examples=[0.5])
    """How near to the average the gradient is taken; higher is smoother and slower. The paper's value."""
    beta2: float = Field(0.999, ge=0, lt=1, examples=[0.9])
    """Memory of the gradient's square; higher is steadier and slower to adapt. The default of the authors' code."""
    eps: float = Field(1e-8, gt=0, examples=[1e-1])
    """Added to the denominator; higher damps small gradients. The default of the authors' code."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.5])
    """Pull of matrices to zero per step, times the rate; more regularises. 0 for tuning; 0.1 is usual in pretraining."""

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        return 2 * 4.0 * piece(weights, card)

    def make(self, named: Named) -> list[Any]:
        from modelwright.nn.optim.schedule_free import ScheduleFree as Averaging

        return [Averaging(decay_groups(named, self.lr, self.weight_decay), self.beta1, self.beta2, self.eps)]
