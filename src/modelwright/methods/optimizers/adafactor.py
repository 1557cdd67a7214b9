"""Adafactor: the mean square of a matrix's gradient kept as one number a row and one a column; nearly no state.

Source: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235, algorithms 4
and 5, without momentum. The paper's relative step min(1e-2, 1/sqrt(t)) is here `lr` times the schedule. torch.optim.Adafactor
is not used (version 2.13): it caps that step at 1/sqrt(t) whatever the schedule says; its own epsilon moves it some per cent away
from the paper where a gradient is near 1e-5 a weight, as clipped ones of large models are; and with the paper's epsilon a row of
embeddings that no token used becomes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice
from modelwright.methods.optimizers import Named, Optimizer, Rates, decay_groups, largest


class Adafactor(Optimizer):
    """The least memory of all."""

    state_bytes_per_param: ClassVar[float] = 0.01
    weightwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "all weights of a model are tuned and memory is short", "adapters: their state is small anyway"
    )
    rates_new: ClassVar[tuple[Rates, ...]] = (
        Rates(1e-3, 1e-2, "the paper: at most 1e-2; T5, arXiv:1910.10683, section 3.1: 1e-2 falling to 1e-3"),
    )
    rates_tuned: ClassVar[tuple[Rates, ...]] = (Rates(1e-3, 1e-3, "T5, arXiv:1910.10683, section 3.1.2: 1e-3"),)

    kind: Literal["adafactor"] = "adafactor"
    lr: float = Field(0.01, gt=0, examples=[1e-3])
    """Peak learning rate: the share of its own size (root mean square) by which a weight's matrix moves at each step. Higher
    learns faster and then diverges. The paper's largest."""
    beta2_power: float = Field(0.8, gt=0, examples=[0.5])
    """The memory of the gradient's square at step t is `1 - t ** -beta2_power`; higher is steadier and slower to adapt. The
    paper's value."""
    update_clip: float = Field(1.0, gt=0, examples=[0.1])
    """Largest root mean square of a matrix's step before the rate; lower tames steps after a sudden large gradient. The
    paper's value."""
    min_scale: float = Field(1e-3, gt=0, examples=[1.0])
    """Smallest size that a matrix is taken to have; higher lets weights that start at zero grow faster. The paper's value."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.5])
    """Pull of matrices to zero per step, times the rate; more regularises. The paper has none."""

    def state_bytes(self, weight: Weight) -> float:
        if len(weight.sides) < 2:
            return 4.0 * weight.values
        *stack, rows, columns = weight.sides
        return 4.0 * math.prod(stack) * (rows + columns)

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        return 4.0 * largest(weights)

    def make(self, named: Named) -> list[Any]:
        from modelwright.nn.optim.adafactor import Adafactor as Factored

        groups = decay_groups(named, self.lr, self.weight_decay)
        return [Factored(groups, self.beta2_power, self.update_clip, self.min_scale)]
