"""Deepen: more layers, copied from those of the start.

Sources: Wu et al. 2024, "LLaMA Pro", arXiv:2401.02415, section 3.2 (copies that add nothing at first); Kim et al. 2023,
"SOLAR 10.7B", arXiv:2312.15166, section 2 (two copies put on each other).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.growers import Grower


class Deepen(Grower):
    """Says what the start says, and has room for more."""

    advice: ClassVar[Advice] = Advice(
        "a trained small model is there and a deeper one is wanted", "the start is small beside the result: train from scratch"
    )

    kind: Literal["deepen"] = "deepen"
    layers: int = Field(ge=2, examples=[3])
    """Layers of the result, at most twice those of the start; more can learn more and cost in proportion."""
    keep_function: bool = Field(True, examples=[False])
    """Copies begin by adding nothing, so that nothing has to heal; false: SOLAR's seam, whose loss is higher at first."""

    def grow(self, model: Any, seed: int) -> Any:
        from modelwright.nn.grow import deepen

        return deepen(model, self.layers, self.keep_function)

    def shape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"layers": self.layers})
