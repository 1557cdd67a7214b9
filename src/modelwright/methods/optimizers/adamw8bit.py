"""AdamW with its two states in 8 bits: a quarter of the memory, nearly the same steps.

Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861. Ours is plain torch and runs on
every device; `nn/optim/adamw8bit.py` says what differs. Paged optimizers are a training stage's `offload: [states]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice
from modelwright.methods.optimizers import ADAMW_NEW, ADAMW_TUNED, Named, Optimizer, Rates, decay_groups, largest


class AdamW8bit(Optimizer):
    """AdamW where its memory does not fit."""

    state_bytes_per_param: ClassVar[float] = 2.03
    weightwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "all weights of a model are tuned and AdamW's states do not fit", "adapters: their states are small anyway"
    )
    rates_new: ClassVar[tuple[Rates, ...]] = ADAMW_NEW
    rates_tuned: ClassVar[tuple[Rates, ...]] = ADAMW_TUNED

    kind: Literal["adamw8bit"] = "adamw8bit"
    lr: float = Field(3e-4, gt=0, examples=[2e-3])
    """Peak learning rate. Higher learns faster and then diverges. As `adamw`: the paper changes no setting."""
    beta1: float = Field(0.9, ge=0, lt=1, examples=[0.8])
    """Memory of the gradient's mean; higher is smoother and slower. As `adamw`."""
    beta2: float = Field(0.95, ge=0, lt=1, examples=[0.99])
    """Memory of its square; higher is steadier and slower to adapt. As `adamw`."""
    eps: float = Field(1e-8, gt=0, examples=[1e-1])
    """Added to the denominator; higher damps small gradients. As `adamw`."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.5])
    """Pull of matrices to zero per step, times the rate; more regularises. As `adamw`."""

    def state_bytes(self, weight: Weight) -> float:
        coded = weight.values >= 4096 and weight.values % 256 == 0
        return weight.values * (2.0 + 2 * 4 / 256) if coded else 8.0 * weight.values

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        at_once = min(largest(weights), (65536 if card else 512) * 256)
        return 3 * 4.0 * at_once

    def make(self, named: Named) -> list[Any]:
        from modelwright.nn.optim.adamw8bit import AdamW8bit as Blockwise

        return [Blockwise(decay_groups(named, self.lr, self.weight_decay), self.beta1, self.beta2, self.eps)]
