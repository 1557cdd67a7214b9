"""Near-duplicates: MinHash signatures in numpy, banding, exact verification, union-find. Deterministic.

Sources: Broder 1997, "On the resemblance and containment of documents" (shingles, MinHash); Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", section 3.4 (bands); Penedo et al. 2024, "FineWeb", arXiv:2406.17557 (word 5-grams, 14 bands of
8). Differs from FineWeb: numbers and accents are kept, and every candidate pair is checked against its exact Jaccard
similarity, so a chance collision removes nothing.

Shapes: D documents, S shingles of all documents one behind the other, H hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WORDS = re.compile(r"\w+")
TOKENS = re.compile(r"\w+|[^\w\s]")
BLOCK_SHINGLES = 1 << 16
"""Shingles hashed at once: 256 kB of 32-bit numbers, which stay in the cache of one core."""
PAIRS_PER_BUCKET = 64
"""Up to so many documents in a bucket are compared all with all; in a larger one each with the first ones."""


class _WordHash(dict[str, int]):
    """Word -> 64 bits of its BLAKE2, computed once; Python's own hash changes with every process."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value
        return value


class Shingles(NamedTuple):
    """The set of shingles of each document: sorted 64-bit hashes."""

    hash_S: Array
    start_D: Array
    """Where each document's begin; one more at the end."""

    def of(self, document: int) -> Array:
        return self.hash_S[self.start_D[document] : self.start_D[document + 1]]

    def jaccard(self, a: int, b: int) -> float:
        """Exact Jaccard similarity of two documents; two empty ones are not similar."""
        import numpy as np

        left, right = self.of(a), self.of(b)
        if not len(left) or not len(right):
            return 0.0
        # Both are sorted and without repeats, so equal neighbours of the merged run are the intersection.
        merged = np.concatenate((left, right))
        merged.sort(kind="stable")
        common = int(np.count_nonzero(merged[1:] == merged[:-1]))
        return common / (len(merged) - common)


def shingle(texts: Iterable[str], ngram: int, pattern: re.Pattern[str] = WORDS) -> Shingles:
    """Hashed word n-grams of each text, lower-cased; a text shorter than `ngram` words is one shingle, an empty one none."""
    import numpy as np

    known = _WordHash()
    pieces: list[Array] = []
    start = [0]
    for text in texts:
        grams = grams_of(pattern.findall(text.lower()), ngram, known)
        pieces.append(np.unique(grams))
        start.append(start[-1] + len(pieces[-1]))
    flat = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    return Shingles(flat, np.array(start, np.int64))


def word_hashes() -> dict[str, int]:
    """A fresh table of word hashes, filled as words are looked up."""
    return _WordHash()


def grams_of(words: Sequence[str], ngram: int, known: dict[str, int]) -> Array:
    """64-bit hash of every run of `ngram` words, in order."""
    import numpy as np

    if not words:
        return np.empty(0, np.uint64)
    hash_W = np.fromiter(map(known.__getitem__, words), np.uint64, len(words))
    ngram = min(ngram, len(words))
    count = len(words) - ngram + 1
    total = np.zeros(count, np.uint64)
    for offset in range(ngram):  # an odd factor per place, so that the order of words matters
        total += hash_W[offset : offset + count] * np.uint64((0x9E3779B97F4A7C15 * (2 * offset + 1) | 1) & 0xFFFFFFFFFFFFFFFF)
    total ^= total >> np.uint64(31)
    total *= np.uint64(0xBF58476D1CE4E5B9)  # a finaliser of splitmix64 (Steele et al. 2014)
    total ^= total >> np.uint64(27)
    return total


def signatures(shingles: Shingles, hashes: int, seed: int) -> Array:
    """[D, H] smallest value of each of `hashes` random functions over a document's shingles; 32 bits."""
    import numpy as np

    random = np.random.default_rng(seed)
    factor_H = random.integers(0, 1 << 31, hashes, np.uint32) * np.uint32(2) + np.uint32(1)
    mask_H = random.integers(0, 1 << 32, hashes, np.uint64).astype(np.uint32)
    documents = len(shingles.start_D) - 1
    signature_DH = np.full((documents, hashes), 0xFFFFFFFF, np.uint32)
    filled = np.flatnonzero(np.diff(shingles.start_D))
    low = 0
    while low < len(filled):
        first = shingles.start_D[filled[low]]
        high = int(np.searchsorted(shingles.start_D[filled], first + BLOCK_SHINGLES, "right"))
        block = filled[low : max(high - 1, low + 1)]
        hash_S = shingles.hash_S[first : shingles.start_D[block[-1] + 1]]
        low32, high32 = hash_S.astype(np.uint32), (hash_S >> np.uint64(32)).astype(np.uint32)
        starts = shingles.start_D[block] - first
        mixed = np.empty_like(low32)
        for h in range(hashes):
            # The two halves keep the functions independent of each other; a plain multiply-shift is not.
            np.multiply(low32 ^ mask_H[h], factor_H[h], out=mixed)
            mixed ^= mixed >> np.uint32(15)
            mixed += high32
            mixed *= factor_H[h]
            signature_DH[block, h] = np.minimum.reduceat(mixed, starts)
        low += len(block)
    return signature_DH


def buckets(signature_DH: Array, bands: int, rows: int) -> Iterator[Array]:
    """Sets of two or more documents that agree in all rows of a band, in a fixed order."""
    import numpy as np

    for band in range(bands):
        key_D = np.zeros(len(signature_DH), np.uint64)
        for row in range(band * rows, (band + 1) * rows):  # a collision of these 64 bits costs one comparison, no more
            key_D = (key_D ^ signature_DH[:, row]) * np.uint64(0x9E3779B97F4A7C15)
            key_D ^= key_D >> np.uint64(29)
        order = np.argsort(key_D, kind="stable")
        edges = np.flatnonzero(np.diff(key_D[order])) + 1
        start, end = np.concatenate(([0], edges)), np.concatenate((edges, [len(order)]))
        for bucket in np.flatnonzero(end - start > 1):
            yield order[start[bucket] : end[bucket]]


class Twin(NamedTuple):
    """Document number `document` is in the cluster whose smallest is `of`; `like` is the member that it was matched with."""

    document: int
    of: int
    like: int
    similarity: float


def clusters(
    shingles: Shingles, threshold: float, *, bands: int = 14, rows: int = 8, seed: int = 0
) -> tuple[list[int], list[Twin]]:
    """The cluster of every document (named by its smallest index), and the documents that have an earlier twin."""
    import numpy as np

    documents = len(shingles.start_D) - 1
    root = list(range(documents))
    best: dict[int, tuple[int, float]] = {}

    def find(x: int) -> int:
        while root[x] != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    size_D = np.diff(shingles.start_D)
    tried: set[tuple[int, int]] = set()
    for bucket in buckets(signatures(shingles, bands * rows, seed), bands, rows):
        members = [int(m) for m in bucket if size_D[m]]
        for position, b in enumerate(members):
            for a in members[: min(position, PAIRS_PER_BUCKET)]:
                low, high = find(a), find(b)
                if low == high or (a, b) in tried:
                    continue
                tried.add((a, b))
                if min(size_D[a], size_D[b]) < threshold * max(size_D[a], size_D[b]):
                    continue  # sets of such different size cannot reach the threshold
                if (similarity := shingles.jaccard(a, b)) >= threshold:
                    root[max(low, high)] = min(low, high)
                    best.setdefault(b, (a, similarity))
                    best.setdefault(a, (b, similarity))
    home = [find(d) for d in range(documents)]
    return home, [Twin(d, home[d], *best[d]) for d in range(documents) if home[d] != d]
