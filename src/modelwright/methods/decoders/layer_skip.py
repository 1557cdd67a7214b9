"""layer_skip: greedy, with the answer of the model without some of its layers as the guess.

Zhang et al. 2024, "Draft & Verify", arXiv:2309.08168; see `_speculating`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice, Runtime
from modelwright.methods.decoders._speculating import Speculating
from modelwright.methods.engines import Speculate


class LayerSkip(Speculating):
    """No second model: a part of this one guesses."""

    advice: ClassVar[Advice] = Advice(
        "the model was trained to do without layers (early exit), or has many", "it has few layers: every one matters"
    )

    kind: Literal["layer_skip"] = "layer_skip"
    layers: Annotated[tuple[int, ...], Runtime] = Field((), examples=[(0,)])
    """Layers that the guess leaves out, counted from 0. More: quicker and worse guesses. Unset: every second one, but not the
    first and the last."""

    def how(self) -> Speculate:
        return Speculate("layer_skip", self.tokens, layers=self.layers)
