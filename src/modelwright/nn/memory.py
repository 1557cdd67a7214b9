"""Key/value memory of rows that come and go, grow, lose their newest tokens and share their beginnings.

A beginning that several rows share is stored once (as in Juravsky et al. 2024, "Hydragen", arXiv:2402.05099).

Shapes: K key/value heads, P shared part, C capacity, D width of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from modelwright.nn.adapters import Adapter

_GROW = 128
"""Capacity grows by half and up to a multiple of this, so that growing costs little per token."""

Layers = dict[int, tuple[Tensor, Tensor]]
"""Keys and values by layer."""


class Shared:
    """The beginning of several rows, stored once: [1, K, P, D] keys and values of each layer. Never changed."""

    def __init__(self, length: int, layers: Layers) -> None:
        self.length, self.layers, self.bytes = length, layers, _bytes(layers)


class Kept(NamedTuple):
    """The memory of a row that has left."""

    shared: Shared | None
    length: int
    """Tokens of its own part."""
    layers: Layers
    """[1, K, length, D] keys and values of each layer."""
    adapter: Adapter | None

    @property
    def bytes(self) -> int:
        """Without the shared part."""
        return _bytes(self.layers)


def _bytes(layers: Layers) -> int:
    return sum(part.numel() * part.element_size() for pair in layers.values() for part in pair)


class Memory:
    """Keys and values of every layer, [rows, K, C, D] each; grown as rows and lengths ask."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self.lengths: list[int] = []
        """Tokens of each row's own part."""
        self.shared: list[Shared | None] = []
        """What comes before it."""
        self.adapters: list[Adapter | None] = []
        """What its tokens are computed with."""
        self.layers: Layers = {}
        self.rows = self.capacity = 0

    def whole(self, row: int) -> int:
        """All tokens that a row holds."""
        shared = self.shared[row]
        return self.lengths[row] + (shared.length if shared else 0)

    def begin(self, adapter: Adapter | None, shared: Shared | None = None) -> int:
        self.lengths.append(0)
        self.shared.append(shared)
        self.adapters.append(adapter)
        return len(self.lengths) - 1

    def reserve(self, length: int) -> None:
        """Room for all rows, each with an own part of `length`."""
        rows = len(self.lengths)
        if rows > self.rows or length > self.capacity:
            if rows > self.rows:
                self.rows = max(rows, min(rows + rows // 2, self.most_rows))
            if length > self.capacity:
                self.capacity = -(-max(length, self.capacity + self.capacity // 2) // _GROW) * _GROW
            for layer, (key, value) in self.layers.items():  # one at a time: the old and the new are never held whole
                self.layers[layer] = (self._grown(key), self._grown(value))

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.rows, old.shape[1], self.capacity, old.shape[3])  # zeros: a masked NaN is still NaN
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def layer(self, index: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if index not in self.layers:
            key, value = (part.new_zeros(self.rows, part.shape[1], self.capacity, part.shape[3]) for part in like)
            self.layers[index] = key, value
        return self.layers[index]

    def cut(self, row: int, length: int) -> Layers:
        """A copy of the first tokens of a row's own part."""
        return {
            layer: (key[row : row + 1, :, :length].clone(), value[row : row + 1, :, :length].clone())
            for layer, (key, value) in self.layers.items()
        }

    def put(self, row: int, start: int, layers: Layers, length: int) -> None:
        """Copy the first tokens of a memory into a row's own part, from `start` on; there must be room."""
        for index, pair in layers.items():
            for mine, given in zip(self.layer(index, pair), pair, strict=True):
                mine[row, :, start : start + length] = given[0, :, :length]

    def split(self, row: int, length: int) -> Shared:
        """Let others share the first tokens of a row that shares nothing yet."""
        assert self.shared[row] is None
        shared, rest = Shared(length, self.cut(row, length)), self.lengths[row] - length
        self.lengths[row], self.shared[row] = rest, shared
        if max(self.lengths) <= self.capacity // 2:  # what rows have of their own is short now
            self.capacity = -(-max(1, *self.lengths) // _GROW) * _GROW
        for layer, pair in self.layers.items():
            key, value = (self._without(part, row, length, rest) for part in pair)
            self.layers[layer] = key, value
        return shared

    def _without(self, part: Tensor, row: int, length: int, rest: int) -> Tensor:
        """A row's first tokens taken out, cut to the capacity."""
        behind = part[row, :, length : length + rest].clone()
        part = part if part.shape[2] == self.capacity else part[:, :, : self.capacity].clone()
        part[row, :, :rest] = behind
        return part

    def rewind(self, row: int, length: int) -> None:
        shared = self.shared[row]
        if shared is not None and length < shared.length:
            self.lengths[row], self.shared[row] = 0, None
            self.reserve(length)
            self.put(row, 0, shared.layers, length)
            shared = None
        self.lengths[row] = length - (shared.length if shared else 0)

    def drop(self, row: int) -> None:
        last = len(self.lengths) - 1
        if row != last:
            length = self.lengths[last]
            for key, value in self.layers.values():
                key[row, :, :length] = key[last, :, :length]
                value[row, :, :length] = value[last, :, :length]
            self.lengths[row], self.shared[row], self.adapters[row] = length, self.shared[last], self.adapters[last]
        parts: tuple[list[Any], ...] = (self.lengths, self.shared, self.adapters)
        for part in parts:
            part.pop()
        if not self.lengths:  # an idle engine holds no memory
            self.layers, self.rows, self.capacity = {}, 0, 0
