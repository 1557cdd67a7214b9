"""Words and phrases of a list, counted in many documents: whole words, whatever their case; in scripts without spaces, runs of
characters.
"""

# Shape suffixes: D documents, W words of one, P phrases of the list, L their lengths.

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._scan import MULTIPLY, bare_words, finish, longest
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array


@njit(nogil=True, cache=True)
def _phrase(folded_W, begin, words):  # type: ignore[no-untyped-def]
    hash_ = np.uint64(words)
    for i in range(begin, begin + words):
        hash_ = finish((hash_ ^ folded_W[i]) * MULTIPLY)
    return hash_


@njit(nogil=True, cache=True)
def _hashes(data_B, start_D, flags_C, lower_C, hash_D, words_D):  # type: ignore[no-untyped-def]
    for d in range(len(start_D) - 1):
        folded_W = np.empty(start_D[d + 1] - start_D[d] + 1, np.uint64)
        words_D[d] = bare_words(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W)
        hash_D[d] = _phrase(folded_W, 0, words_D[d])


@njit(nogil=True, cache=True)
def _count(data_B, start_D, flags_C, lower_C, phrase_P, length_L, words_D, hits_D, hit_words_D):  # type: ignore[no-untyped-def]
    folded_W = np.empty(longest(start_D) + 1, np.uint64)
    for d in range(len(start_D) - 1):
        words = bare_words(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W)
        words_D[d] = words
        i = 0
        while i < words:
            step = 1
            for length in length_L:  # the longest first
                if i + length > words:
                    continue
                hash_ = _phrase(folded_W, i, length)
                at = np.searchsorted(phrase_P, hash_)
                if at < len(phrase_P) and phrase_P[at] == hash_:
                    hits_D[d] += 1
                    hit_words_D[d] += length
                    step = length
                    break
            i += step


class Phrases(NamedTuple):
    phrase_P: Array
    """[P] uint64, ascending: hashes of the phrases."""
    length_L: Array
    """[L] int64, descending: how many words they have."""

    @staticmethod
    def of(phrases: Iterable[str]) -> Phrases:
        texts = Texts.of(phrases)
        hash_D, words_D = np.empty(len(texts), np.uint64), np.empty(len(texts), np.int64)
        _hashes(texts.data_B, texts.start_D, *tables(), hash_D, words_D)
        return Phrases(np.unique(hash_D[words_D > 0]), np.unique(words_D[words_D > 0])[::-1].copy())


class Hits(NamedTuple):
    words_D: Array
    hits_D: Array
    """Phrases that were found, none within another."""
    hit_words_D: Array
    """Words in them."""


def hits(texts: Texts, phrases: Phrases) -> Hits:
    words_D, hits_D, hit_words_D = np.zeros((3, len(texts)), np.int64)
    _count(texts.data_B, texts.start_D, *tables(), *phrases, words_D, hits_D, hit_words_D)
    return Hits(words_D, hits_D, hit_words_D)
