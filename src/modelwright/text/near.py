"""Near-duplicates: MinHash of word n-grams, banding, clusters that do not depend on the order of work.

Sources: Broder 1997, "On the resemblance and containment of documents" (shingles, MinHash); Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4 (bands); Penedo et al. 2024, "FineWeb", arXiv:2406.17557 (word 5-grams, 14 bands of
8). Differs from FineWeb: numbers and accents are kept, and a candidate pair counts once its exact Jaccard similarity was found
to reach the threshold, so that a chance collision removes nothing.
"""

# Shape suffixes: D documents, S shingles of one, H hash functions, N bands, W words.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

    def columns(self, name: str = "") -> dict[str, Array]:
        """Each band by itself, so that nobody has to hold all of them."""
        bands = np.ascontiguousarray(self.band_DN.T)
        return {f"{name}shingles": self.shingles_D, **{f"{name}band {n}": band_D for n, band_D in enumerate(bands)}}


def bands_of(columns: Mapping[str, Array], bands: int, name: str = "") -> Iterator[Array]:
    """The bands among such columns, one after the other."""
    return (columns[f"{name}band {n}"] for n in range(bands))


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


def buckets(bands: Iterable[Array], alike_D: Array) -> Iterator[Array]:
    """Two or more documents that agree in a band, ascending, in a fixed order; only those with `alike_D`. A band is [D] and is
    asked for once."""
    (place_D,) = np.nonzero(alike_D)
    for band_D in bands:
        key_D = band_D[place_D]
        order = np.argsort(key_D, kind="stable")
        key_D = key_D[order]
        again = np.zeros(len(order) + 1, bool)  # whether a key is the one before it
        again[1:-1] = key_D[1:] == key_D[:-1]
        del key_D
        edges = np.flatnonzero(again[1:] != again[:-1])
        for start, last in zip(edges[::2], edges[1::2], strict=True):
            yield place_D[order[start : last + 1]]


class Clusters(NamedTuple):
    """Documents in groups, 20 bytes for each."""

    home_D: Array
    """[D] int64: the one that is kept, which is another one for those that go."""
    like_D: Array
    """[D] int64: a member that it was matched with first; -1 for those that are like no other."""
    similarity_D: Array
    """[D] float32: of the two; NaN where nobody looked."""

    def goes(self) -> Array:
        """[D] bool: of documents that have another one which is kept."""
        found: Array = self.home_D != np.arange(len(self.home_D))
        return found


def unmatched(documents: int) -> tuple[Array, Array]:
    """`like_D` and `similarity_D` to begin with."""
    return np.full(documents, -1, np.int64), np.full(documents, np.nan, np.float32)


def clusters(bands: Iterable[Array], shingles_D: Array, threshold: float, set_of: Callable[[int], Array]) -> Clusters:
    """The cluster of every document, at home in its smallest number.

    `set_of` gives a document's shingles again, where a pair has to be looked at; few are asked for twice in a row, so it may be
    slow to find a text and should remember the last ones."""
    forest = Forest(len(shingles_D))
    like_D, similarity_D = unmatched(len(shingles_D))
    differ: set[tuple[int, int]] = set()

    for bucket in buckets(bands, shingles_D > 0):
        members = bucket.tolist()
        for position, b in enumerate(members):
            for a in members[: min(position, PAIRS_PER_BUCKET)]:
                if forest.find(a) == forest.find(b) or (a, b) in differ:
                    continue
                if (similarity := jaccard(set_of(a), set_of(b))) < threshold:
                    differ.add((a, b))
                    continue
                forest.join(a, b)
                for one, other in ((a, b), (b, a)):
                    if like_D[one] < 0:
                        like_D[one], similarity_D[one] = other, similarity
    return Clusters(forest.homes(), like_D, similarity_D)
