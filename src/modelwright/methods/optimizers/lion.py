"""Lion: the sign of an interpolated momentum; one state instead of Adam's two.

Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice
from modelwright.methods.optimizers import ADAMW_NEW, ADAMW_TUNED, Named, Optimizer, Rates, decay_groups, piece


class Lion(Optimizer):
    """Half of AdamW's state."""

    state_bytes_per_param: ClassVar[float] = 4.0
    elementwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "large batches, and where AdamW's second state does not fit",
        "small batches: the sign makes their noise as loud as the rest",
    )
    rates_new: ClassVar[tuple[Rates, ...]] = tuple(
        rates.scaled(1 / 10, 1 / 3, "a third to a tenth of AdamW's, the paper's section 5") for rates in ADAMW_NEW
    )
    rates_tuned: ClassVar[tuple[Rates, ...]] = tuple(
        rates.scaled(1 / 10, 1 / 3, "a third to a tenth of AdamW's, the paper's section 5") for rates in ADAMW_TUNED
    )

    kind: Literal["lion"] = "lion"
    lr: float = Field(1e-4, gt=0, examples=[1e-3])
    """Peak learning rate: every weight moves by it at each step. Higher learns faster and then diverges. A third of AdamW's
    here; the paper (section 5) takes a third to a tenth."""
    beta1: float = Field(0.9, ge=0, lt=1, examples=[0.5])
    """Share of the momentum in the step, beside the new gradient; higher is smoother and slower. The paper's value."""
    beta2: float = Field(0.99, ge=0, lt=1, examples=[0.5])
    """Memory of the momentum; higher is smoother and slower. The paper's value."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.1])
    """Pull of matrices to zero per step, times the rate; more regularises. 0 for tuning; the paper takes three to ten times
    AdamW's, as the rate is that much smaller."""

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        return 4.0 * piece(weights, card)

    def make(self, named: Named) -> list[Any]:
        from modelwright.nn.optim.lion import Lion as Signs

        return [Signs(decay_groups(named, self.lr, self.weight_decay), self.beta1, self.beta2)]
