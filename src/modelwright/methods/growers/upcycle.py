"""Upcycle: a dense model becomes a mixture of experts, each of them a copy of its MLP.

Source: Komatsuzaki et al. 2022, "Sparse Upcycling", arXiv:2212.05055.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.growers import Grower


class Upcycle(Grower):
    """Says what the start says; the router is noise, and training makes the experts different."""

    advice: ClassVar[Advice] = Advice(
        "a trained dense Llama, Mistral or Qwen3 is there and memory for several of its MLPs",
        "memory is short: experts take it",
        needs="a dense model and texts to go on with",
        cost=1.0,
        memory=4.0,
        quality="as for going on with pretraining",
        deployment="as a mixture of experts",
        source="Komatsuzaki et al. 2022, arXiv:2212.05055",
    )

    kind: Literal["upcycle"] = "upcycle"
    experts: int = Field(8, ge=2, examples=[4])
    """MLPs of a layer; more hold more and take memory in proportion. 8 as in Mixtral (arXiv:2401.04088)."""
    experts_per_token: int = Field(2, ge=2, examples=[3])
    """How many of them a token goes through; more cost time in proportion. 2 as in Mixtral."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.experts_per_token > self.experts:
            raise PydanticCustomError("experts", "`experts_per_token` is more than there are `experts`")
        return self

    def grow(self, model: Any, seed: int) -> Any:
        from modelwright.nn.grow import upcycle

        return upcycle(model, self.experts, self.experts_per_token, seed)

    def shape(self, shape: Shape) -> Shape:
        return shape.model_copy(update={"experts": self.experts, "experts_per_token": self.experts_per_token})
