"""AdamW: Adam with decoupled weight decay, torch's fused one.

Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2. Decay is for matrices
only: norms and biases are left alone, as GPT-2 and Llama training codes do.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.optimizers import ADAMW_NEW, ADAMW_TUNED, Named, Optimizer, Rates, decay_groups


class AdamW(Optimizer):
    """The usual choice."""

    state_bytes_per_param: ClassVar[float] = 8.0
    elementwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice("fine-tuning and adapters", "pretraining in few steps: `muon` gets further")
    rates_new: ClassVar[tuple[Rates, ...]] = ADAMW_NEW
    rates_tuned: ClassVar[tuple[Rates, ...]] = ADAMW_TUNED

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(3e-4, gt=0, examples=[2e-3])
    """Peak learning rate. Higher learns faster and then diverges. 3e-4 suits adapters and small models; full tuning of a large
    one wants 1e-5."""
    beta1: float = Field(0.9, ge=0, lt=1, examples=[0.8])
    """Memory of the gradient's mean; higher is smoother and slower. 0.9 is the paper's."""
    beta2: float = Field(0.95, ge=0, lt=1, examples=[0.99])
    """Memory of its square; higher is steadier and slower to adapt. 0.95 as in GPT-3 (arXiv:2005.14165, appendix B)."""
    eps: float = Field(1e-8, gt=0, examples=[1e-3])
    """Added to the denominator; higher damps small gradients. The paper's value."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.1])
    """Pull of matrices to zero per step, times the rate; more regularises. 0 for tuning; 0.1 is usual in pretraining."""

    def make(self, named: Named) -> list[Any]:
        import torch

        groups = decay_groups(named, self.lr, self.weight_decay)
        return [torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)]
