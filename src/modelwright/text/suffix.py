"""Runs of words that came before, in any of many documents.

A run of at least n words occurs twice exactly where each of its windows of n words does, so a table of all windows finds what a
suffix array would (Lee et al. 2022, arXiv:2107.06499, section 4.2), in linear time.
"""

# Shape suffixes: D documents, M words of all of them, W words of one, K slots of a table.

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._repeats import slots_for
from modelwright.text._scan import MULTIPLY, finish, placed_words
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array


class Words(NamedTuple):
    folded_W: Array
    """[W] uint64: a hash of each word in lower case."""
    begin_W: Array
    """[W] int64: the byte at which it begins."""


def words_at(text: str) -> Words:
    data_B = Texts.of([text]).data_B
    folded_W, begin_W = np.empty(len(data_B), np.uint64), np.empty(len(data_B), np.int64)
    words = placed_words(data_B, 0, len(data_B), *tables(), folded_W, begin_W)
    return Words(folded_W[:words].copy(), begin_W[:words].copy())


@njit(nogil=True, cache=True)
def _repeats(word_M, start_D, n, first_K, gone_M):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(first_K) - 1)
    leaves = np.uint64(1)  # factor of the word that leaves a window
    for _ in range(n):
        leaves *= MULTIPLY
    for d in range(len(start_D) - 1):
        hash_ = np.uint64(0)
        for end in range(start_D[d], start_D[d + 1]):
            hash_ = hash_ * MULTIPLY + word_M[end]
            at = end - n + 1
            if at < start_D[d]:
                continue
            if at > start_D[d]:
                hash_ -= word_M[at - 1] * leaves
            slot = np.int64(finish(hash_) & mask)
            while first_K[slot] >= 0:
                first = first_K[slot]
                same = 0
                while same < n and word_M[first + same] == word_M[at + same]:
                    same += 1
                if same == n:
                    for i in range(max(at, first + n), end + 1):  # the first one stays whole, also where they overlap
                        gone_M[i] = True
                    break
                slot = np.int64((np.uint64(slot) + np.uint64(1)) & mask)
            if first_K[slot] < 0:
                first_K[slot] = at


def repeats(word_M: Array, start_D: Array, n: int) -> Array:
    """[M] bool: words in a run of at least `n` that came before, in this document or an earlier one. 16 to 32 bytes a word."""
    gone_M = np.zeros(len(word_M), np.bool_)
    _repeats(word_M, start_D, n, np.full(slots_for(len(word_M)), -1, np.int64), gone_M)
    return gone_M
