"""Beginnings that are already computed: of rows under way and of rows that have just finished.

Source of the idea: Zheng et al. 2023, "SGLang" (RadixAttention), arXiv:2312.07104, section 3: finished requests' memory is kept
and reused for the longest common beginning, the least recently used goes first. Here a list is searched, not a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modelwright.nn._runner import SHARE
from modelwright.nn.memory import Kept


def same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # comparing slices is a hundred times as fast as comparing tokens
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


class _Entry(NamedTuple):
    tokens: list[int]
    adapter: object
    kept: Kept
    bytes: int
    """Of its own part; a sum over all layers, so worked out once."""


class Finished:
    """Memory of rows that have left, the least recently used first."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._entries: list[_Entry] = []

    def add(self, tokens: list[int], adapter: object, kept: Kept) -> None:
        """`adapter`: what the row was computed with, by identity."""
        self._entries = [
            entry for entry in self._entries if entry.adapter is not adapter or entry.tokens != tokens[: len(entry.tokens)]
        ]
        self._entries.append(_Entry(tokens, adapter, kept, kept.bytes))
        while self._entries and self.bytes > self.most_bytes:
            self._entries.pop(0)

    @property
    def bytes(self) -> int:
        shared = {id(entry.kept.shared): entry.kept.shared.bytes for entry in self._entries if entry.kept.shared}
        return sum(entry.bytes for entry in self._entries) + sum(shared.values())

    def best(self, tokens: list[int], adapter: object) -> tuple[int, Kept] | None:
        """The longest common beginning that pays, and the memory that has it."""
        found = [(same(tokens, entry.tokens), at) for at, entry in enumerate(self._entries) if entry.adapter is adapter]
        length, at = max(found, default=(0, 0))
        if length < SHARE:
            return None
        self._entries.append(self._entries.pop(at))
        return length, self._entries[-1].kept
