"""Over how many processes a training is spread, and how: `runtime.parallel` and `runtime.launch` of a recipe."""

from __future__ import annotations

import math

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.spec import Kinds, Spec, kind_of

LAUNCHERS = Kinds("modelwright.methods.launchers", "modelwright.methods.launchers:Launcher")


def elsewhere(launch: Spec | None) -> bool:
    """Whether processes start beyond the command's own machine, so that even one of them is another than it."""
    return launch is not None and kind_of(launch) != "local"


class Parallel(Spec):
    """Processes of a training by what each does; their product is how many there are. What is trained does not depend on it."""

    data: int = Field(1, ge=1, examples=[2])
    """Replicas that each see other rows of a step. The simplest and fastest division while the model fits on a device."""
    shard: int = Field(1, ge=1, examples=[2])
    """As `data`, but each keeps only a part of weights, gradients and optimizer state (FSDP2, ZeRO 3, arXiv:1910.02054): memory
    falls in proportion, weights travel in each pass."""
    expert: int = Field(1, ge=1, examples=[2])
    """As `data`, but each keeps some experts of a mixture, and tokens travel to them (arXiv:2006.16668)."""
    context: int = Field(1, ge=1, examples=[2])
    """Each sees some tokens of every row; keys and values travel (arXiv:2310.01889). For rows whose activations fit nowhere."""
    tensor: int = Field(1, ge=1, examples=[2])
    """Each computes with a part of every matrix (arXiv:1909.08053); talks in every layer, so best inside one machine."""
    pipeline: int = Field(1, ge=1, examples=[2])
    """Each has some of the layers (arXiv:1811.06965); talks little, and waits at the ends of a step."""

    zero: int = Field(0, ge=0, le=3, examples=[2])
    """Stage of DeepSpeed's ZeRO (arXiv:1910.02054, `[deepspeed]`) by which `shard` divides: 1 the optimizer's state, 2 gradients
    as well, 3 weights as well. 0: FSDP2, which divides all three and needs nothing installed."""

    @model_validator(mode="after")
    def _check(self) -> Parallel:
        if self.zero and self.shard == 1:
            raise PydanticCustomError(
                "zero", "`zero` says how `shard` divides: give `shard` more than one process, or leave it out"
            )
        return self

    @property
    def axes(self) -> dict[str, int]:
        """Processes along each."""
        return {name: size for name, size in self if name != "zero"}

    @property
    def processes(self) -> int:
        return math.prod(self.axes.values())

    def __str__(self) -> str:
        used = [f"{name} {size}" for name, size in self.axes.items() if size > 1]
        return (" x ".join(used) or "one process") + (f" by ZeRO {self.zero}" if self.zero else "")
