"""Vectors of documents from their words alone, and which of them point the same way.

Sources: each word is a sum of few signed coordinates (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask
Learning", arXiv:0902.2206; several for one word: Kane and Nelson 2014, "Sparser Johnson-Lindenstrauss Transforms",
arXiv:1012.1577). What all documents share is taken away (Mu and Viswanath 2018, "All-but-the-Top", arXiv:1702.01417), which is
what weights of rare words would be for, without counting words first. Groups: Abbas et al. 2023, "SemDeDup", arXiv:2303.09540,
section 3.
"""

# Shape suffixes: D documents, V coordinates of a vector, W words, K groups, M members of one.

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._scan import MULTIPLY, bare_words, finish, longest
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array

COORDINATES = 256
PER_WORD = 8
SHARED = 3
"""Directions that all documents share and that say nothing: All-but-the-Top takes one for each hundred coordinates."""
GROUP = 8192
"""Documents of one group, on average: as many are compared all with all. Up to so many, none is missed."""
NEAR = 2
"""Groups that a document is compared in: those of its nearest centres, so that few pairs are divided."""
ROUNDS = 10
SEEN = 1 << 16
"""Documents that the centres are found from."""


@njit(nogil=True, cache=True)
def _project(data_B, start_D, flags_C, lower_C, vector_DV):  # type: ignore[no-untyped-def]
    folded_W = np.empty(longest(start_D) + 1, np.uint64)
    mask = np.uint64(vector_DV.shape[1] - 1)
    for d in range(len(start_D) - 1):
        words = bare_words(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W)
        folded_W[:words].sort()
        at = 0
        while at < words:
            word, first = folded_W[at], at
            while at < words and folded_W[at] == word:
                at += 1
            weight = math.sqrt(at - first)
            for part in range(PER_WORD):
                drawn = finish(word + MULTIPLY * np.uint64(part + 1))
                sign = weight if drawn >> np.uint64(63) else -weight
                vector_DV[d, np.int64(drawn & mask)] += sign
        length = math.sqrt((vector_DV[d] * vector_DV[d]).sum())
        if length > 0:
            vector_DV[d] /= length


def of_words(texts: Texts) -> Array:
    """[D, COORDINATES] float32 of length 1, or 0 where a text has no word; the same for a text in any company. A word that comes
    n times counts sqrt(n) times."""
    vector_DV = np.zeros((len(texts), COORDINATES), np.float32)
    _project(texts.data_B, texts.start_D, *tables(), vector_DV)
    return vector_DV


def apart(vector_DV: Array, shared: int = SHARED) -> Array:
    """The vectors without their mean and the directions in which they differ most, of length 1 again. Documents of length 0 stay
    so. With fewer documents than coordinates there is too little to tell what is shared, and only length is mended."""
    some_D = np.flatnonzero((vector_DV * vector_DV).sum(1) > 0)
    out_DV = vector_DV.astype(np.float32)
    if len(some_D) > vector_DV.shape[1]:
        seen_SV = out_DV[some_D[:: max(1, len(some_D) // SEEN)]].astype(np.float64)
        mean_V = seen_SV.mean(0)
        _, axis_VV = np.linalg.eigh((seen_SV - mean_V).T @ (seen_SV - mean_V))
        top_VK = axis_VV[:, vector_DV.shape[1] - shared :]
        for begin in range(0, len(some_D), GROUP):
            place = some_D[begin : begin + GROUP]
            found = out_DV[place] - mean_V
            out_DV[place] = found - found @ top_VK @ top_VK.T
    length_D = np.sqrt((out_DV * out_DV).sum(1, keepdims=True))
    out_DV /= np.where(length_D > 0, length_D, 1)
    return out_DV


def _groups(vector_DV: Array) -> Iterator[Array]:
    """Documents whose vectors are near each other, ascending: k-means on the sphere, Dhillon and Modha 2001,
    doi:10.1023/A:1007612920971."""
    count = -(-len(vector_DV) // GROUP)
    if count == 1:
        yield np.arange(len(vector_DV))
        return
    random = np.random.default_rng(0)
    seen_SV = vector_DV[random.permutation(len(vector_DV))[:SEEN]]
    centre_KV = seen_SV[:count].copy()
    for _ in range(ROUNDS):
        nearest_S = (seen_SV @ centre_KV.T).argmax(1)
        for k in range(count):
            total_V = seen_SV[nearest_S == k].sum(0)
            length = math.sqrt(float((total_V * total_V).sum()))
            if length:
                centre_KV[k] = total_V / length
    nearest_DN = np.concatenate(
        [
            np.argpartition(-(vector_DV[begin : begin + GROUP] @ centre_KV.T), min(NEAR, count) - 1, axis=1)[:, :NEAR]
            for begin in range(0, len(vector_DV), GROUP)
        ]
    )
    for k in range(count):
        yield np.flatnonzero((nearest_DN == k).any(1))


class Alike(NamedTuple):
    """Document `document` points where the earlier document `like` points, which stays."""

    document: int
    like: int
    cosine: float


def alike(vector_DV: Array, threshold: float) -> list[Alike]:
    """Of vectors of length 1 (or 0: like no other), those with a cosine of at least `threshold` to an earlier one that stays."""
    found: dict[int, Alike] = {}
    some_D = np.flatnonzero((vector_DV * vector_DV).sum(1) > 0)
    for group in _groups(vector_DV[some_D]) if len(some_D) else ():
        member_M = some_D[group]
        stays_M = np.array([document not in found for document in member_M.tolist()])
        for begin in range(0, len(member_M), 1024):
            cosine_RM = vector_DV[member_M[begin : begin + 1024]] @ vector_DV[member_M[: begin + 1024]].T
            for row in np.flatnonzero((np.tril(cosine_RM, begin - 1) >= threshold).any(1)).tolist():
                cosine_M = np.where(stays_M[: begin + row], cosine_RM[row, : begin + row], -2.0)
                if stays_M[begin + row] and (best := int(cosine_M.argmax())) is not None and cosine_M[best] >= threshold:
                    stays_M[begin + row] = False
                    document = int(member_M[begin + row])
                    found[document] = Alike(document, int(member_M[best]), float(cosine_M[best]))
    return [found[document] for document in sorted(found)]
