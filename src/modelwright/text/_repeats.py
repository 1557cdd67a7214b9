"""What a document says twice: equal lines or paragraphs, the commonest run of n words, runs that came before. Compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from modelwright.text._scan import MULTIPLY, finish


@njit(nogil=True, cache=True)
def slots_for(keys):  # type: ignore[no-untyped-def]
    """Slots of an open table for so many keys: a power of two, at least half of them empty."""
    slots = 16
    while slots < 2 * keys:
        slots *= 2
    return slots


@njit(nogil=True, cache=True, inline="always")
def place(key, key_K, age_K, age):  # type: ignore[no-untyped-def]
    """(slot of a key in an open table of 2**k slots, whether it is there already); slots of another age are empty."""
    mask = np.uint64(len(key_K) - 1)
    slot = (key ^ (key >> np.uint64(29))) & mask
    while age_K[slot] == age:
        if key_K[slot] == key:
            return slot, True
        slot = (slot + np.uint64(1)) & mask
    return slot, False


@njit(nogil=True, cache=True)
def repeated(hash_N, chars_N, count, key_K, age_K, age):  # type: ignore[no-untyped-def]
    """(how many came before, characters in those)."""
    found, chars = 0, 0
    for i in range(count):
        slot, known = place(hash_N[i], key_K, age_K, age)
        if known:
            found += 1
            chars += chars_N[i]
        else:
            key_K[slot], age_K[slot] = hash_N[i], age
    return found, chars


@njit(nogil=True, cache=True)
def longer(gram_W, may_W, hash_W, words, n):  # type: ignore[no-untyped-def]
    """Runs of n - 1 words become runs of n: only the first `words - n + 1` are whole.

    `may_W`: whether a run can be anywhere else too; of n words only where both runs of n - 1 in it can. Others are not hashed."""
    for i in range(words - n + 1):
        may_W[i] = may_W[i] and may_W[i + 1]
        if may_W[i]:
            gram_W[i] = finish((gram_W[i] * MULTIPLY) ^ hash_W[i + n - 1])


@njit(nogil=True, cache=True)
def commonest(gram_W, may_W, before_W, runs, n, slot_W, key_K, age_K, count_K, first_K, age):  # type: ignore[no-untyped-def]
    """Characters of all occurrences of the commonest run of n words, with a space between two; of several the first.

    `before_W`: characters of all words before each. `may_W` says then which runs there are twice."""
    most, where = min(runs, 1), 0
    for i in range(runs):
        if not may_W[i]:
            continue
        slot, known = place(gram_W[i], key_K, age_K, age)
        slot_W[i] = slot
        if known:
            count_K[slot] += 1
        else:
            key_K[slot], age_K[slot], count_K[slot], first_K[slot] = gram_W[i], age, 1, i
        if count_K[slot] > most or (count_K[slot] == most and first_K[slot] < where):
            most, where = count_K[slot], first_K[slot]
    for i in range(runs):
        if may_W[i]:
            may_W[i] = count_K[slot_W[i]] > 1
    return most * (before_W[where + n] - before_W[where] + n - 1) if most else 0


@njit(nogil=True, cache=True)
def came_before(gram_W, may_W, before_W, runs, n, key_K, age_K, age):  # type: ignore[no-untyped-def]
    """Characters in runs of n words that came before, each counted once."""
    chars, i = 0, 0
    while i < runs:
        if not may_W[i]:
            i += 1
            continue
        slot, known = place(gram_W[i], key_K, age_K, age)
        if known:
            chars += before_W[i + n] - before_W[i]
            i += n
        else:
            key_K[slot], age_K[slot] = gram_W[i], age
            i += 1
    return chars
