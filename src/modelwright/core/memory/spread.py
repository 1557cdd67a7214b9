"""What one of several processes holds of a training: shares of weights, gradients and states by axis of `Parallel`.

As `nn/parallel` divides: `tensor` the matrices of layers (norms and tables are whole), `pipeline` the layers, `expert` the
experts, `shard` everything by value (FSDP2, arXiv:2304.11277; or as much as the stage of ZeRO says, arXiv:1910.02054, figure 1),
`data` and `context` nothing. Where weights are divided by value, those of a layer come whole while it computes, the next one's
with them, and those outside of layers for the whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from modelwright.core.memory.weights import Weight, total
from modelwright.core.parallel import Parallel

BUCKET_BYTES = 4 * (1 << 24)
"""Gradients are summed over processes in pieces of this size (`nn/parallel/several.py`)."""
OWNED_VALUES = 1 << 24
"""Most that comes to the owner of weights at once, or one weight (`nn/parallel/owned.py`)."""
LAYERS = ("attention", "mlp", "experts", "norm")


class Shares(NamedTuple):
    """By how much each kind of state is divided by value."""

    weights: float
    gradients: float
    states: float
    copy: float
    """Share of the trained weights of which DeepSpeed steps a second copy."""

    @staticmethod
    def of(parallel: Parallel) -> Shares:
        part, zero = 1 / parallel.shard, parallel.zero
        if not zero:
            return Shares(part, part, part, 0.0)
        return Shares(part if zero == 3 else 1.0, part if zero >= 2 else 1.0, part, part)


def of_process(weights: Iterable[Weight], parallel: Parallel, layers: int) -> list[Weight]:
    """What the process with the most layers has of these, before anything is divided by value."""
    deep = -(-layers // parallel.pipeline) / max(layers, 1)
    found = []
    for weight in weights:
        share = deep if weight.place in LAYERS else 1.0
        if weight.place in ("attention", "mlp"):
            share /= parallel.tensor
        elif weight.place == "experts" and len(weight.sides) == 3:  # routers are whole
            share /= parallel.expert
        found.append(weight._replace(number=weight.number * share))
    return found


def gathered_bytes(trained: Iterable[Weight], frozen: Iterable[Weight], parallel: Parallel, layers: int) -> float:
    """Whole weights, and whole gradients of those that are trained, where they are divided by value."""
    if parallel.shard == 1 or parallel.zero in (1, 2):
        return 0.0
    found = 0.0
    for weights, copies in ((list(trained), 2), (list(frozen), 1)):
        in_layers = total(weight for weight in weights if weight.place in LAYERS)
        found += 4.0 * copies * (total(weights) - in_layers) + 4.0 * (copies + 1) * in_layers / max(layers, 1)
    return found


def summed_bytes(trained: Iterable[Weight], parallel: Parallel) -> float:
    """A piece of the gradients on its way: as large as the largest tensor, or as several small ones."""
    if parallel.data * parallel.context * parallel.expert == 1:
        return 0.0
    trained = list(trained)
    largest = max((4.0 * weight.values for weight in trained), default=0.0)
    return min(4.0 * total(trained), max(largest, BUCKET_BYTES))


def owners(parallel: Parallel) -> int:
    """Processes that hold parts of the same weights."""
    return parallel.shard * parallel.expert * parallel.tensor


def owned_bytes(trained: Sequence[Weight], parallel: Parallel, step_bytes: Callable[[Sequence[Weight]], float]) -> float:
    """Weights and gradients that come whole to their owner, and either what brings them or what their step needs."""
    largest = max((float(weight.values) for weight in trained), default=0.0)
    each = min(max(largest, OWNED_VALUES), max(largest, total(trained) / owners(parallel)))
    some = [weight._replace(number=min(weight.number, max(1, each // max(weight.values, 1)))) for weight in trained]
    return 8.0 * each + max(8.0 * each, step_bytes(some))
