"""Architectures: models from scratch, by one depth dial or explicit sizes. One file a kind, each a transformers configuration."""

from __future__ import annotations

from typing import Any

from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Shape

ARCHITECTURES = Kinds(__name__, f"{__name__}:Architecture")


class Architecture(Spec):
    def shape(self, vocab: int) -> Shape:
        """The sizes that the dial gives; pure arithmetic, for the planner."""
        raise NotImplementedError

    def config(self, vocab: int, context: int) -> Any:
        """A transformers configuration with these sizes."""
        raise NotImplementedError

    def initialise(self, model: Any) -> None:
        """Set random starting weights in place, by the cited rule. Called after the seed is set."""
        raise NotImplementedError
