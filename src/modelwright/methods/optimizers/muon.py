"""Muon: momentum whose matrix is made orthogonal; AdamW for what is no hidden matrix.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers", https://kellerjordan.github.io/posts/muon/ (with
the `original` scale of the rate). Embeddings, the head, norms and biases take AdamW, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Advice, Spec
from modelwright.methods.adapters import Adapter
from modelwright.methods.optimizers import Named, Optimizer, Rates, decay_groups, is_hidden_matrix


class Muon(Optimizer):
    """Gets far in few steps."""

    state_bytes_per_param: ClassVar[float] = 4.0
    weightwise: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "pretraining, above all where only minutes are there", "adapters, and models that AdamW pretrained"
    )
    rates_new: ClassVar[tuple[Rates, ...]] = (Rates(0.02, 0.02, "the source"),)

    kind: Literal["muon"] = "muon"
    lr: float = Field(0.02, gt=0, examples=[0.005])
    """Peak rate of hidden matrices. Higher learns faster and then diverges. 0.02 is the source's."""
    momentum: float = Field(0.95, ge=0, lt=1, examples=[0.8])
    """Memory of the gradient; higher is smoother and slower. The source's value."""
    weight_decay: float = Field(0.0, ge=0, examples=[0.1])
    """Pull of hidden matrices to zero per step, times the rate; more regularises. 0 for runs of minutes."""
    iterations: int = Field(5, ge=1, le=10, examples=[3])
    """Newton-Schulz iterations that make the update orthogonal; more is exacter and slower. The source's value."""
    adamw_lr: float = Field(3e-3, gt=0, examples=[3e-4])
    """Peak rate of embeddings, head, norms and biases. Higher learns faster and then diverges. 3e-3 went with 0.02 in our trials
    at 5M weights."""
    adamw_weight_decay: float = Field(0.0, ge=0, examples=[0.1])
    """Pull of embeddings and head to zero per step, times their rate; more regularises."""

    def unused(self, context: Spec) -> dict[str, str]:
        adapters = [spec for path, spec in context.children() if path == "adapter" and isinstance(spec, Adapter)]
        if not adapters or any(adapter.trains_tables() for adapter in adapters):
            return {}
        reason = "an adapter is matrices of layers: it trains neither embeddings nor norms"
        return dict.fromkeys(("adamw_lr", "adamw_weight_decay"), reason)

    def state_bytes(self, weight: Weight) -> float:
        return (4.0 if weight.hidden_matrix else 8.0) * weight.values

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        """Matrices of one shape are stepped together: their updates, the stack of these, one iteration's matrices and the next
        one's, and two products of each with itself."""
        together: dict[tuple[int, ...], float] = {}
        for weight in weights:
            if weight.hidden_matrix:
                together[weight.sides] = together.get(weight.sides, 0) + weight.number
        size = 2.0 if card else 4.0
        found = [count * (4.0 * a * b + size * (3 * a * b + 2 * min(a, b) ** 2)) for (a, b), count in together.items()]
        return max(found, default=0.0)

    def make(self, named: Named) -> list[Any]:
        import torch

        matrices = [parameter for name, parameter in named if is_hidden_matrix(name, parameter)]
        rest = [(name, parameter) for name, parameter in named if not is_hidden_matrix(name, parameter)]
        built: list[Any] = []
        if matrices:
            from modelwright.nn.device import on_processor
            from modelwright.nn.optim.muon import Muon as OrthogonalMomentum

            groups = [{"params": matrices, "initial_lr": self.lr}]
            dtype = torch.float32 if on_processor(matrices[0]) else torch.bfloat16
            built.append(OrthogonalMomentum(groups, self.lr, self.momentum, self.weight_decay, self.iterations, dtype))
        if rest:
            built.append(
                torch.optim.AdamW(
                    decay_groups(rest, self.adamw_lr, self.adamw_weight_decay), lr=self.adamw_lr, betas=(0.9, 0.95), fused=True
                )
            )
        return built

    def step_flops(self, shape: Shape) -> float:
        width = (shape.head_dim or shape.hidden // shape.heads) * shape.heads
        keys = width * shape.kv_heads // shape.heads
        sides = [(shape.hidden, width)] * 2 + [(shape.hidden, keys)] * 2 + [(shape.hidden, shape.intermediate)] * 3
        # an iteration multiplies X with itself, that with itself, and the result with X
        once = sum(4.0 * min(a, b) ** 2 * max(a, b) + 2.0 * min(a, b) ** 3 for a, b in sides)
        return shape.layers * self.iterations * once
