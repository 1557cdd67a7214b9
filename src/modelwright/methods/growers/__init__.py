"""Growers: starting weights carried over into a larger model. One file a kind; the tensors' side is `nn/grow.py`."""

from __future__ import annotations

from typing import Any

from modelwright.core.estimate import Shape
from modelwright.core.spec import Kinds, Spec

GROWERS = Kinds(__name__, f"{__name__}:Grower")


class Grower(Spec):
    """Applied to the start before it is trained."""

    def grow(self, model: Any, seed: int) -> Any:
        """A larger model with the start's weights."""
        raise NotImplementedError

    def shape(self, shape: Shape) -> Shape:
        """The sizes that it will have; pure arithmetic, for the planner."""
        raise NotImplementedError
