"""Which tokens each sequence of a llama.cpp context holds, so that a prompt that begins like another one is not computed again.

Source: llama.h (`llama_memory_seq_cp`, `llama_memory_seq_rm`); the idea after Zheng et al. 2024, "SGLang", arXiv:2312.07104
(RadixAttention: what an answer has left in memory is kept until its place is needed).
"""

from __future__ import annotations

from typing import Any

from modelwright.methods.engines._llama_adapters import Lora

WORTH_TOKENS = 32
"""A prefix shorter than this is computed, not copied: llama.cpp copies the whole memory of a sequence."""


def common(one: list[int], other: list[int]) -> int:
    """How many first tokens are the same; halves are compared, which lists do at the speed of C."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Sequences:
    """The sequences 0 to `count` - 1 of a context."""

    def __init__(self, lib: Any, memory: Any, count: int) -> None:
        self._lib, self._memory = lib, memory
        self.held: list[list[int]] = [[] for _ in range(count)]
        """Tokens in memory, of those in use and of those that are free."""
        self.wore: list[Lora | None] = [None] * count
        """The adapter that they were computed with; without it they are worth nothing."""
        self.free = list(range(count))
        """The one that is free for the longest time first."""

    def take(self, tokens: list[int], adapter: Lora | None = None) -> tuple[int, int]:
        """A free sequence, and how many of these tokens it holds; never the last, whose logits are wanted."""
        shared = [common(held, tokens[:-1]) if worn is adapter else 0 for held, worn in zip(self.held, self.wore, strict=True)]
        # a long conversation is not thrown away for the sake of a short prefix that can be copied from it
        fitting = [one for one in self.free if shared[one] and 2 * shared[one] >= len(self.held[one])]
        own = max(fitting, key=shared.__getitem__, default=self.free[0])
        best = max(range(len(shared)), key=shared.__getitem__)
        if shared[best] >= shared[own] + WORTH_TOKENS:
            self._remove(own, -1)
            self._lib.llama_memory_seq_cp(self._memory, best, own, -1, -1)
            kept = shared[best]
        else:
            kept = shared[own]
        if not self._remove(own, kept):  # a recurrent memory cannot go back
            self._remove(own, -1)
            kept = 0
        self.free.remove(own)
        self.held[own], self.wore[own] = list(tokens[:kept]), adapter
        return own, kept

    def _remove(self, sequence: int, start: int) -> bool:
        """Forget the tokens from `start` on; whether all those before it, and no others, are there then."""
        done = self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1)
        first, last = (
            f(self._memory, sequence) for f in (self._lib.llama_memory_seq_pos_min, self._lib.llama_memory_seq_pos_max)
        )
        return bool(done) and last == start - 1 and first == (0 if start else -1)
