"""The weights of a transformer as tensors, by its `Shape` alone: optimizers and quantised formats depend on sides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from modelwright.core.estimate import Shape

Place = Literal["attention", "mlp", "experts", "norm", "table", "head", "last"]
"""Where a weight is used: in a layer's attention, its MLP, its experts, its norms; as embeddings, as a head of its own; behind
the layers."""


class Weight(NamedTuple):
    """Tensors of one shape that lie in places of one sort."""

    place: Place
    sides: tuple[int, ...]
    number: float = 1

    @property
    def values(self) -> int:
        """Of one of them."""
        return math.prod(self.sides)

    @property
    def hidden_matrix(self) -> bool:
        """A matrix of a layer, as optimizers tell them apart (`methods.optimizers.is_hidden_matrix`)."""
        return len(self.sides) == 2 and self.place not in ("table", "head")


def total(weights: Iterable[Weight]) -> float:
    """Values in all of them."""
    return sum(weight.number * weight.values for weight in weights)


def head_width(shape: Shape) -> int:
    return shape.head_dim or shape.hidden // shape.heads


def weights_of(shape: Shape) -> list[Weight]:
    """All weights of a model of this shape; their values are `Shape.params`."""
    queries, keys = head_width(shape) * shape.heads, head_width(shape) * shape.kv_heads
    found = _layers(shape, shape.layers, queries, keys)
    if shape.decoder_layers:
        found += _layers(shape, shape.decoder_layers, queries, keys)
        found += _attention(shape.hidden, queries, keys, shape.decoder_layers)
        found += [Weight("norm", (shape.hidden,), shape.decoder_layers), Weight("last", (shape.hidden,))]
    found.append(Weight("table", (shape.vocab, shape.hidden)))
    if not shape.tied:
        found.append(Weight("head", (shape.vocab, shape.hidden)))
    found.append(Weight("last", (shape.hidden,)))
    if shape.extra:
        found.append(Weight("last", (shape.extra,)))
    return found


def _attention(hidden: int, queries: int, keys: int, layers: int) -> list[Weight]:
    sides = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    return [Weight("attention", pair, layers) for pair in sides]


def _layers(shape: Shape, layers: int, queries: int, keys: int) -> list[Weight]:
    hidden, wide = shape.hidden, shape.intermediate
    found = _attention(hidden, queries, keys, layers)
    if shape.experts:  # transformers holds all experts of a layer in two tensors
        sides = [(shape.experts, 2 * wide, hidden), (shape.experts, hidden, wide), (shape.experts, hidden)]
        found += [Weight("experts", side, layers) for side in sides]
    else:
        found += [Weight("mlp", pair, layers) for pair in ((wide, hidden), (wide, hidden), (hidden, wide))]
    found.append(Weight("norm", (hidden,), layers * shape.norms))
    if shape.qk_norm:
        found.append(Weight("norm", (head_width(shape),), layers * 2))
    return found
