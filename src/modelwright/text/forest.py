"""Disjoint sets of numbers. Source: path halving, van Leeuwen and van der Weide 1977; Tarjan and van Leeuwen 1984,
doi:10.1145/62.2160."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from modelwright.text import Array


class Forest:
    """The numbers below `count`, each a set of its own at first."""

    def __init__(self, count: int) -> None:
        self.root: Array = np.arange(count)
        """Of each a number nearer to its set's home, which is its own."""

    def find(self, x: int) -> int:
        """The home of x's set."""
        root = self.root
        while root[x] != x:
            root[x] = root[root[x]]
            x = int(root[x])
        return x

    def join(self, a: int, b: int) -> None:
        """One set of two, at home in the smallest of all."""
        low, high = sorted((self.find(a), self.find(b)))
        self.root[high] = low

    def homes(self) -> Array:
        """[count] int64: of each number the home of its set."""
        while ((further := self.root[self.root]) != self.root).any():
            self.root = further
        return self.root
