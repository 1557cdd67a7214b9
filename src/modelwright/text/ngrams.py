"""Runs of words of known texts, found in other texts.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C (13 words). Words are runs of
letters and digits in lower case, as for near-duplicates: other spacing, punctuation or case hides nothing.
"""

# Shape suffixes: D documents, N runs that are looked for, K slots of a table, F runs that were found.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._repeats import place, slots_for
from modelwright.text._scan import bare_words, longest
from modelwright.text.near import run_hashes
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array


@njit(nogil=True, cache=True)
def _find(data_B, start_D, flags_C, lower_C, ngram, key_K, age_K, found_F, document_F, word_F):  # type: ignore[no-untyped-def]
    """How many runs of all documents are in the table; as many as there is room for are written down."""
    room = longest(start_D) + 1
    folded_W, gram_W = np.empty(room, np.uint64), np.empty(room, np.uint64)
    count = 0
    for d in range(len(start_D) - 1):
        words = bare_words(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W)
        if words < ngram:
            continue
        runs = run_hashes(folded_W, words, ngram, gram_W)
        for i in range(runs):
            _, known = place(gram_W[i], key_K, age_K, 1)
            if known:
                if count < len(found_F):
                    found_F[count], document_F[count], word_F[count] = gram_W[i], d, i
                count += 1
    return count


@njit(nogil=True, cache=True)
def _fill(hash_N, key_K, age_K):  # type: ignore[no-untyped-def]
    for hash_ in hash_N:
        slot, _ = place(hash_, key_K, age_K, 1)
        key_K[slot], age_K[slot] = hash_, 1


@njit(nogil=True, cache=True)
def _words_of(data_B, begin, end, flags_C, lower_C):  # type: ignore[no-untyped-def]
    folded_W = np.empty(end - begin + 1, np.uint64)
    return folded_W[: bare_words(data_B, begin, end, flags_C, lower_C, folded_W)].copy()


def words_of(text: str) -> Array:
    """[W] a hash of each word."""
    packed = Texts.of([text])
    found: Array = _words_of(packed.data_B, 0, packed.start_D[1], *tables())
    return found


def runs_of(text: str, ngram: int) -> Array:
    """[N] hashes of all runs of `ngram` words, in order; empty for a shorter text."""
    folded_W = words_of(text)
    gram_W = np.empty(len(folded_W) + 1, np.uint64)
    return gram_W[: run_hashes(folded_W, len(folded_W), ngram, gram_W)] if len(folded_W) >= ngram else gram_W[:0]


class Found(NamedTuple):
    hash_F: Array
    document_F: Array
    word_F: Array
    """The first word of each, counted in its document."""


class Runs:
    """Runs of `ngram` words that are looked for."""

    def __init__(self, hashes: Sequence[Array], ngram: int) -> None:
        self.ngram = ngram
        hash_N = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)
        slots = slots_for(2 * len(hash_N))  # sparse: most runs that are asked for are not there
        self._key_K, self._age_K = np.zeros(slots, np.uint64), np.zeros(slots, np.int64)
        _fill(hash_N, self._key_K, self._age_K)

    def find(self, texts: Texts) -> Found:
        """All of them, document by document."""
        room = 1024
        while True:
            found = Found(np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64))
            count = _find(texts.data_B, texts.start_D, *tables(), self.ngram, self._key_K, self._age_K, *found)
            if count <= room:
                return Found(*(array[:count] for array in found))
            room = count
