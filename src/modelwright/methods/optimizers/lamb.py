"""LAMB: Adam's step of each matrix, scaled to the size of that matrix.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv:1904.00962, algorithm 2
with the identity for phi. As in the authors' BERT code, norms and biases have no decay and take Adam's step as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice
from modelwright.methods.optimizers import Named, Optimizer, Rates, decay_groups, largest, piece


class Lamb(Optimizer):
    """For steps of very many rows."""

    state_bytes_per_param: ClassVar[float] = 8.0
    weightwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice("steps of thousands of rows, with a high rate", "small batches, where AdamW does as well")
    rates_new: ClassVar[tuple[Rates, ...]] = (Rates(6.25e-4, 5e-3, "the paper: 6.25e-4 for 512 rows a step to 5e-3 for 32,768"),)

    kind: Literal["lamb"] = "lamb"
    lr: float = Field(5e-3, gt=0, examples=[1e-3])
    """Peak learning rate: the share of its own size by which a matrix moves at each step. Higher learns faster and then
    diverges. The paper's for 32,768 rows a step; it takes 6.25e-4 for 512, in between by the square root."""
    beta1: float = Field(0.9, ge=0, lt=1, examples=[0.8])
    """Memory of the gradient's mean; higher is smoother and slower. The paper's value."""
    beta2: float = Field(0.999, ge=0, lt=1, examples=[0.95])
    """Memory of its square; higher is steadier and slower to adapt. The paper's value."""
    eps: float = Field(1e-6, gt=0, examples=[0.1])
    """Added to the denominator; higher damps small gradients. The paper's value."""
    weight_decay: float = Field(0.01, ge=0, examples=[0.5])
    """Pull of matrices to zero within the scaled step; more regularises. The paper's value."""

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        return 4.0 * (largest(weights) + piece(weights, card))

    def make(self, named: Named) -> list[Any]:
        from modelwright.nn.optim.lamb import Lamb as ScaledAdam

        return [ScaledAdam(decay_groups(named, self.lr, self.weight_decay), self.beta1, self.beta2, self.eps)]
