"""Near-duplicates: MinHash of word n-grams, banding, clusters that do not depend on the order of work.

Sources: Broder 1997, "On the resemblance and containment of documents" (shingles, MinHash); Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4 (bands); Penedo et al. 2024, "FineWeb", arXiv:2406.17557 (word 5-grams, 14 bands of
8). Differs from FineWeb: numbers and accents are kept, and a candidate pair counts once its exact Jaccard similarity was found
to reach the threshold, so that a chance collision removes nothing.
"""

# Shape suffixes: D documents, S shingles of one, H hash functions, N bands, W words.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._scan import MULTIPLY, bare_words, finish, longest
from modelwright.text.forest import Forest
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array

PAIRS_PER_BUCKET = 64
"""Up to so many documents of a bucket are compared all with all; in a larger one each with the first ones."""


@njit(nogil=True, cache=True)
def run_hashes(folded_W, words, ngram, out_S):  # type: ignore[no-untyped-def]
    """Hash of every run of `ngram` words, or of all words where there are fewer; returns how many."""
    if not words:
        return 0
    n = min(ngram, words)
    runs = words - n + 1
    for i in range(runs):
        hash_ = np.uint64(0)
        for j in range(n):  # an odd factor for each place, so that the order of words matters
            hash_ += folded_W[i + j] * (MULTIPLY * np.uint64(2 * j + 1))
        out_S[i] = finish(hash_)
    return runs


@njit(nogil=True, cache=True)
def _least(low_S, high_S, factor, mask):  # type: ignore[no-untyped-def]
    """Of one hash function over all shingles. The two halves of a shingle keep the functions independent of each other; a plain
    multiply-shift of one is not."""
    least = np.uint32(0xFFFFFFFF)
    for i in range(len(low_S)):
        mixed = np.uint32((low_S[i] ^ mask) * factor)
        mixed ^= mixed >> np.uint32(15)
        mixed = np.uint32(np.uint32(mixed + high_S[i]) * factor)
        least = mixed if mixed < least else least
    return least


@njit(nogil=True, cache=True)
def _bands(data_B, start_D, flags_C, lower_C, ngram, factor_H, mask_H, rows, band_DN, shingles_D):  # type: ignore[no-untyped-def]
    room = longest(start_D) + 1
    folded_W, shingle_S = np.empty(room, np.uint64), np.empty(room, np.uint64)
    low_S, high_S = np.empty(room, np.uint32), np.empty(room, np.uint32)
    least_H = np.empty(len(factor_H), np.uint32)
    for d in range(len(start_D) - 1):
        words = bare_words(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W)
        count = run_hashes(folded_W, words, ngram, shingle_S)
        shingles_D[d] = count
        for i in range(count):
            low_S[i], high_S[i] = np.uint32(shingle_S[i] & np.uint64(0xFFFFFFFF)), np.uint32(shingle_S[i] >> np.uint64(32))
        for h in range(len(factor_H)):
            least_H[h] = _least(low_S[:count], high_S[:count], factor_H[h], mask_H[h])
        for n in range(band_DN.shape[1]):
            key = np.uint64(n)
            for r in range(n * rows, (n + 1) * rows):
                key = finish((key ^ np.uint64(least_H[r])) * MULTIPLY)
            band_DN[d, n] = key


class Signatures(NamedTuple):
    band_DN: Array
    """[D, N] uint64: equal for documents that agree in all rows of a band."""
    shingles_D: Array
    """[D] int64, repeats counted; documents without any are like no other."""


def signatures(texts: Texts, ngram: int, bands: int, rows: int, seed: int) -> Signatures:
    """112 bytes a document at 14 bands; the same for a text wherever it stands."""
    random = np.random.default_rng(seed)
    hashes = bands * rows
    factor_H = random.integers(0, 1 << 31, hashes, np.uint32) * np.uint32(2) + np.uint32(1)
    mask_H = random.integers(0, 1 << 32, hashes, np.uint64).astype(np.uint32)
    band_DN, shingles_D = np.empty((len(texts), bands), np.uint64), np.empty(len(texts), np.int64)
    _bands(texts.data_B, texts.start_D, *tables(), ngram, factor_H, mask_H, rows, band_DN, shingles_D)
    return Signatures(band_DN, shingles_D)


@njit(nogil=True, cache=True)
def _set_of(data_B, begin, end, flags_C, lower_C, ngram):  # type: ignore[no-untyped-def]
    folded_W, shingle_S = np.empty(end - begin + 1, np.uint64), np.empty(end - begin + 1, np.uint64)
    words = bare_words(data_B, begin, end, flags_C, lower_C, folded_W)
    return np.unique(shingle_S[: run_hashes(folded_W, words, ngram, shingle_S)])


def shingle_set(texts: Texts, document: int, ngram: int) -> Array:
    """[S] the hashes of a document's shingles, ascending and each once."""
    begin, end = texts.start_D[document], texts.start_D[document + 1]
    found: Array = _set_of(texts.data_B, begin, end, *tables(), ngram)
    return found


@njit(nogil=True, cache=True)
def _common(left_S, right_S):  # type: ignore[no-untyped-def]
    i, j, common = 0, 0, 0
    while i < len(left_S) and j < len(right_S):
        if left_S[i] == right_S[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif left_S[i] < right_S[j]:
            i += 1
        else:
            j += 1
    return common


def jaccard(left_S: Array, right_S: Array) -> float:
    """Of two sets as `shingle_set` gives them; two empty ones are not similar."""
    common = _common(left_S, right_S)
    return float(common / max(len(left_S) + len(right_S) - common, 1))


def buckets(band_DN: Array, alike_D: Array) -> Iterator[Array]:
    """Two or more documents that agree in a band, ascending, in a fixed order; only those with `alike_D`."""
    (place_D,) = np.nonzero(alike_D)
    for band in range(band_DN.shape[1]):
        key_D = band_DN[place_D, band]
        order = np.argsort(key_D, kind="stable")
        edges = np.flatnonzero(np.diff(key_D[order])) + 1
        start, end = np.concatenate(([0], edges)), np.concatenate((edges, [len(order)]))
        for bucket in np.flatnonzero(end - start > 1):
            yield place_D[order[start[bucket] : end[bucket]]]


class Twin(NamedTuple):
    """Document number `document` is in the cluster whose smallest is `of`; `like` is the member that it was matched with."""

    document: int
    of: int
    like: int
    similarity: float


def clusters(found: Signatures, threshold: float, set_of: Callable[[int], Array]) -> tuple[list[int], list[Twin]]:
    """The cluster of every document (named by its smallest index), and the documents that have an earlier twin.

    `set_of` gives a document's shingles again, where a pair has to be looked at; few are asked for twice in a row, so it may be
    slow to find a text and should remember the last ones."""
    forest = Forest(len(found.shingles_D))
    best: dict[int, tuple[int, float]] = {}
    tried: set[tuple[int, int]] = set()

    for bucket in buckets(found.band_DN, found.shingles_D > 0):
        members = bucket.tolist()
        for position, b in enumerate(members):
            for a in members[: min(position, PAIRS_PER_BUCKET)]:
                if forest.find(a) == forest.find(b) or (a, b) in tried:
                    continue
                tried.add((a, b))
                if (similarity := jaccard(set_of(a), set_of(b))) >= threshold:
                    forest.join(a, b)
                    best.setdefault(b, (a, similarity))
                    best.setdefault(a, (b, similarity))
    homes = forest.homes()
    return homes, [Twin(d, home, *best[d]) for d, home in enumerate(homes) if home != d]
