"""Widen: neurons and heads copied, and what reads them divided among the copies.

Sources: Chen et al. 2015, "Net2Net", arXiv:1511.05641; Chen et al. 2021, "bert2BERT", arXiv:2110.07143; uneven shares as in
Wang et al. 2023, "LEMON", arXiv:2310.07999.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.growers import Grower


class Widen(Grower):
    """Says what the start says; train it at a lower rate at first (half, in our trial)."""

    advice: ClassVar[Advice] = Advice(
        "a trained small model is there and a wider one is wanted", "few steps are left: copies take time to become different"
    )

    kind: Literal["widen"] = "widen"
    hidden: int = Field(ge=8, examples=[128])
    """Width of the result, a whole multiple of the start's (once: as before); more can learn more and costs quadratically."""
    intermediate: int | None = Field(None, ge=8, examples=[160])
    """Width of the MLP, at least the start's; more can learn more. Unset: as before."""
    kv_heads: int | None = Field(None, ge=1, examples=[4])
    """Key/value heads, at least the start's; each brings the query heads that share it along. Unset: as before."""

    def grow(self, model: Any, seed: int) -> Any:
        from modelwright.nn.grow import Sizes, widen

        return widen(model, Sizes(self.hidden, self.intermediate, self.kv_heads), seed)

    def shape(self, shape: Shape) -> Shape:
        kv_heads = self.kv_heads or shape.kv_heads
        sizes = {
            "hidden": self.hidden,
            "intermediate": self.intermediate or shape.intermediate,
            "kv_heads": kv_heads,
            "heads": shape.heads // shape.kv_heads * kv_heads,
            "head_dim": shape.head_dim or shape.hidden // shape.heads,
        }
        return shape.model_copy(update=sizes)
