"""Adapters: training a few weights beside a frozen model. One file a kind; what PEFT has is PEFT's."""

from __future__ import annotations

from typing import Any, ClassVar

from modelwright.core.estimate import Shape
from modelwright.core.memory.weights import Weight, total
from modelwright.core.spec import Kinds, Spec

ADAPTERS = Kinds(__name__, f"{__name__}:Adapter")


class Adapter(Spec):
    """Applied to a finished model from outside."""

    rate_factor: ClassVar[float] = 1.0
    """By how much its best learning rate is above that of tuning all weights, as published; for the pitfall rules."""

    def wrap(self, model: Any) -> Any:
        """The model with its adapter in place and the rest frozen. Called after the seed is set."""
        raise NotImplementedError

    def own(self) -> bool:
        """Whether the training engine's own forward pass knows it (`nn/forward.py`); else transformers' modules run."""
        return False

    def trains_tables(self) -> bool:
        """Whether embeddings or head are trained too: in a model that has one table for both they part when it is merged."""
        return False

    def weights(self, shape: Shape) -> list[Weight]:
        """What it trains, for the planner."""
        raise NotImplementedError

    def kept_bytes(self, inputs: float, readers: int, half: bool) -> float:
        """What a token leaves for the backward pass of so many matrices that read the same `inputs` values, where transformers'
        modules run; `half`: products in 16 bits."""
        raise NotImplementedError

    def noise_bytes(self, inputs: float) -> float:
        """Of these, what is kept only where the inputs have a gradient: the noise of dropout before one matrix."""
        return 0.0

    def trainable_params(self, shape: Shape) -> int:
        """How many weights that is."""
        return int(total(self.weights(shape)))
