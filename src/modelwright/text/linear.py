"""A linear classifier of texts: hashed words and pairs of words, logistic regression; the same bits on any machine.

Sources: Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification" (fastText), arXiv:1607.01759, section 2; feature
hashing: Weinberger et al. 2009, arXiv:0902.2206; AdaGrad: Duchi et al. 2011, "Adaptive Subgradient Methods", JMLR 12. Differs
from fastText: each n-gram has one weight and counts once in a text, so that a repeated word does not decide.
"""

# Shape suffixes: D documents, F features of one or of all of them, S slots of the table, W words.

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._scan import MULTIPLY, bare_words, finish, longest
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array

SLOTS = 1 << 18
EPOCHS = 5
RATE = 0.5
"""AdaGrad's step; with rows of length 1 the first one moves a weight by this much."""
LOG_2 = 0.6931471805599453


@njit(nogil=True, cache=True)
def exp(x):  # type: ignore[no-untyped-def]
    """By additions and products alone: the C library's differs in the last bit from machine to machine."""
    whole = math.floor(x / LOG_2 + 0.5)
    rest, term, total = x - whole * LOG_2, 1.0, 1.0
    for n in range(1, 15):
        term = term * rest / n
        total += term
    return math.ldexp(total, int(whole))


@njit(nogil=True, cache=True)
def likely(score):  # type: ignore[no-untyped-def]
    """The logistic function."""
    return 1.0 / (1.0 + exp(-min(max(score, -40.0), 40.0)))


@njit(nogil=True, cache=True)
def _features(data_B, begin, end, flags_C, lower_C, folded_W, slot_F, seen_S, age):  # type: ignore[no-untyped-def]
    """Slots of the words and pairs of words of a document, each once; returns how many."""
    words = bare_words(data_B, begin, end, flags_C, lower_C, folded_W)
    features = 0
    mask = np.uint64(len(seen_S) - 1)
    for i in range(words):
        for pair in range(2 if i else 1):
            hash_ = finish(folded_W[i - 1] * MULTIPLY + folded_W[i]) if pair else folded_W[i]
            slot = np.int64(hash_ & mask)
            if seen_S[slot] != age:
                seen_S[slot] = age
                slot_F[features] = slot
                features += 1
    return features


@njit(nogil=True, cache=True)
def _train(data_B, start_D, flags_C, lower_C, is_good_D, share_D, order_ND, weight_S):  # type: ignore[no-untyped-def]
    room = longest(start_D) + 1
    folded_W, slot_F = np.empty(room, np.uint64), np.empty(2 * room, np.int64)
    seen_S, square_S = np.zeros(len(weight_S) - 1, np.int64), np.full(len(weight_S), 1e-8)
    age = 0
    for n in range(len(order_ND)):
        for d in order_ND[n]:
            age += 1
            features = _features(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W, slot_F, seen_S, age)
            length = math.sqrt(max(features, 1))
            score = weight_S[-1]
            for f in range(features):
                score += weight_S[slot_F[f]] / length
            slope = (likely(score) - (1.0 if is_good_D[d] else 0.0)) * share_D[d]
            square_S[-1] += slope * slope
            weight_S[-1] -= RATE * slope / math.sqrt(square_S[-1])
            step = slope / length
            for f in range(features):
                slot = slot_F[f]
                square_S[slot] += step * step
                weight_S[slot] -= RATE * step / math.sqrt(square_S[slot])


@njit(nogil=True, cache=True)
def _score(data_B, start_D, flags_C, lower_C, weight_S, likely_D):  # type: ignore[no-untyped-def]
    room = longest(start_D) + 1
    folded_W, slot_F = np.empty(room, np.uint64), np.empty(2 * room, np.int64)
    seen_S = np.full(len(weight_S) - 1, -1, np.int64)
    for d in range(len(start_D) - 1):
        features = _features(data_B, start_D[d], start_D[d + 1], flags_C, lower_C, folded_W, slot_F, seen_S, d)
        score = 0.0
        for f in range(features):
            score += weight_S[slot_F[f]]
        likely_D[d] = likely(score / math.sqrt(max(features, 1)) + weight_S[-1])


class Classifier(NamedTuple):
    weight_S: Array
    """[SLOTS + 1] float64; the last one belongs to every text."""

    def good(self, texts: Texts) -> Array:
        """[D] probability that a text is of the good ones, were both equally frequent."""
        likely_D = np.empty(len(texts))
        _score(texts.data_B, texts.start_D, *tables(), self.weight_S, likely_D)
        return likely_D


def train(texts: Texts, is_good_D: Array, seed: int) -> Classifier:
    """On all texts, `EPOCHS` times in an order that the seed shuffles. Both classes weigh the same, however many texts they
    have."""
    good = int(is_good_D.sum())
    share_D = np.where(is_good_D, len(texts) / (2 * good), len(texts) / (2 * (len(texts) - good)))
    order_ND = np.stack([_order(len(texts), seed * EPOCHS + epoch) for epoch in range(EPOCHS)])
    weight_S = np.zeros(SLOTS + 1)
    _train(texts.data_B, texts.start_D, *tables(), is_good_D, share_D, order_ND, weight_S)
    return Classifier(weight_S)


@njit(cache=True)
def _keys(count, seed):  # type: ignore[no-untyped-def]
    key_D = np.empty(count, np.uint64)
    for d in range(count):
        key_D[d] = finish(finish(np.uint64(seed) * MULTIPLY + np.uint64(1)) + np.uint64(d) * MULTIPLY)
    return key_D


def _order(count: int, seed: int) -> Array:
    """A permutation; numpy's own may change with its version."""
    return np.argsort(_keys(count, seed), kind="stable")


def auc(score_D: Array, is_good_D: Array) -> float:
    """Probability that a good text scores above another, ties count half: Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747."""
    good, bad = score_D[is_good_D], np.sort(score_D[~is_good_D])
    below, up_to = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + up_to).sum() / (2 * len(good) * len(bad)))


class Trained(NamedTuple):
    classifier: Classifier
    auc: float
    """Of a classifier trained without the held-out texts, on these."""
    held_out: int


HELD_OUT = 5
"""One text of so many is held out."""


def trained(texts: Texts, is_good_D: Array, seed: int) -> Trained:
    """A classifier of all texts, and how well one of four fifths of them tells the others apart. Needs two of each class."""
    held_D = np.zeros(len(texts), bool)
    for of_class in (is_good_D, ~is_good_D):
        (place,) = np.nonzero(of_class)
        held_D[place[_order(len(place), seed)[::HELD_OUT]]] = True
    held, rest = (Texts.of(texts.text(d) for d in np.flatnonzero(which_D).tolist()) for which_D in (held_D, ~held_D))
    measured = auc(train(rest, is_good_D[~held_D], seed).good(held), is_good_D[held_D])
    return Trained(train(texts, is_good_D, seed), measured, int(held_D.sum()))
