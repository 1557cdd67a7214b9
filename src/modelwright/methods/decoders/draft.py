"""draft: greedy, with a smaller model's answer as the guess.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318; see `_speculating`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from modelwright.core.spec import Advice, Runtime
from modelwright.core.stage import Accepts
from modelwright.methods.decoders._speculating import Speculating
from modelwright.methods.engines import Speculate


class Draft(Speculating):
    """Two models with the same tokenizer."""

    advice: ClassVar[Advice] = Advice(
        "there is a model of the same family at a tenth of the size", "batches are large: then the model is busy anyway"
    )

    kind: Literal["draft"] = "draft"
    model: Annotated[str, Accepts(("model",)), Runtime] = Field(examples=["./model2/"])
    """The smaller model: an earlier stage, a folder, or `hf:org/name@revision`. It must have the same tokens. A better one is
    right more often, a smaller one is quicker; the answer does not depend on it."""

    def how(self) -> Speculate:
        return Speculate("draft", self.tokens, model=Path(self.model))

    def placed(self, where: Callable[[str], Path]) -> Self:
        return self.model_copy(update={"model": str(where(self.model))})
