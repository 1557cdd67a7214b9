"""Optimizers: how a gradient becomes a step. One file a kind; what torch has is torch's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Shape

OPTIMIZERS = Kinds(__name__, f"{__name__}:Optimizer")


class Optimizer(Spec):
    """Builds torch optimizers over named parameters."""

    state_bytes_per_param: ClassVar[float]
    """For the planner."""

    def build(self, named: Iterable[tuple[str, Any]]) -> list[Any]:
        """Optimizers whose groups carry `initial_lr`; the loop multiplies it by the schedule's factor."""
        raise NotImplementedError

    def step_flops(self, shape: Shape) -> float:
        """Matrix products of one step, for the planner; 0 for optimizers that work element by element."""
        return 0.0


def is_hidden_matrix(name: str, parameter: Any) -> bool:
    """A matrix inside a layer: neither the embeddings nor the head, by the names that transformers gives them."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe"))


def adamw_groups(named: Iterable[tuple[str, Any]], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with decay, vectors (norms, biases) without."""
    named = list(named)
    matrices = [parameter for _, parameter in named if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in named if parameter.ndim < 2]
    found = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": group, "lr": lr, "initial_lr": lr, "weight_decay": decay} for group, decay in found if group]
