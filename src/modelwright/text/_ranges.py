"""Hashes of any stretch of a text in one step, and tables of them. Compiled.

Polynomial hashing of prefixes: Karp and Rabin 1987, "Efficient randomized pattern-matching algorithms"; here modulo 2**64.
"""

# Shape suffixes: C characters, K slots of a table.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from modelwright.text._repeats import slots_for
from modelwright.text._scan import MULTIPLY, finish

if TYPE_CHECKING:
    from modelwright.text import Array

bare = njit(nogil=True, cache=True, _nrt=False)  # type: ignore[call-overload]
"""For what allocates nothing: arrays that are handed on need no count of who holds them, which took half of the time."""


@bare
def powers(count, power_C):  # type: ignore[no-untyped-def]
    power_C[0] = 1
    for i in range(count):
        power_C[i + 1] = power_C[i] * MULTIPLY


@bare
def add(hash_C, count, code):  # type: ignore[no-untyped-def]
    """A character more: `hash_C[i]` is of the first i."""
    hash_C[count + 1] = hash_C[count] * MULTIPLY + np.uint64(code + 1)


@bare
def hashed(hash_C, power_C, low, high):  # type: ignore[no-untyped-def]
    """Of the characters from `low` to `high`, wherever these stand."""
    return finish(hash_C[high] - hash_C[low] * power_C[high - low])


@bare
def lookup(key, key_K, value_K):  # type: ignore[no-untyped-def]
    """What a table says of a key; 0: nothing."""
    mask = np.uint64(len(key_K) - 1)
    slot = key & mask
    while key_K[slot] != key and key_K[slot]:
        slot = (slot + np.uint64(1)) & mask
    return value_K[slot]


def table(values: dict[int, int]) -> tuple[Array, Array]:
    """Keys and values for `lookup`."""
    slots = 4 * slots_for(len(values))
    key_K, value_K = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)
    for key, value in values.items():
        slot = key & (slots - 1)
        while key_K[slot]:
            slot = (slot + 1) & (slots - 1)
        key_K[slot], value_K[slot] = key, value
    return key_K, value_K
