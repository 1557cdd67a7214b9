"""Near-duplicates as datatrove's MinHash finds them: the same normal form, words, hashes, pairs, and the same document kept.

Source: datatrove 0.10.1 (Penedo et al. 2024, https://github.com/huggingface/datatrove), `utils/text.py` and
`pipeline/dedup/minhash.py`. Differs from `near.py`: numbers become 0, accents and punctuation go, words are spaCy's, documents of
fewer words than a shingle are like no other, every pair that agrees in a band counts whatever its similarity, and the one kept
need not be the first. Differs from datatrove: a capital sigma at the end of a word becomes a small one as anywhere else.
"""

# Shape suffixes: D documents, B bytes, C characters, R runs, T words, S shingles of one, H hash functions, N bands, X one after
# the other.

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._ranges import add, bare, powers
from modelwright.text._scan import MULTIPLY, decode, finish, longest
from modelwright.text._spacy import APART, SPACED, TOGETHER, knowledge, split
from modelwright.text._spacy_rules import CONTROLS, DIGIT, MARKED, PUNCTUATION, classes, spans
from modelwright.text._xxhash import lanes, xxh64
from modelwright.text.forest import Forest
from modelwright.text.near import Clusters, Signatures, buckets, unmatched
from modelwright.text.tables import PLANES

if TYPE_CHECKING:
    from modelwright.text import Array

MERSENNE = np.uint64((1 << 61) - 1)
DECIMAL = ".,،٫⎖⎗⎘"
"""Between two runs of digits of one number."""
MOST_CHARS = 4
"""Into which one character can fall apart, marks not counted."""
BLANK_CHAR = np.int32(0x20)


class Forms(NamedTuple):
    flags_C: Array
    first_C: Array
    """[PLANES] int32: what becomes of a character: a space, nothing (-1), another one, or where it falls apart (-2 - place)."""
    more_X: Array
    """int32: how many, then these."""
    decimal_C: Array
    """[PLANES] bool"""


@cache
def forms() -> Forms:
    """Lower case, punctuation and controls to spaces, canonical decomposition without marks."""
    blank = {*map(ord, PUNCTUATION), *(code for part in spans(CONTROLS) for code in part)}
    first_C = np.arange(PLANES, dtype=np.int32)
    more = [0]
    for code in range(PLANES):
        low = chr(code).lower()
        found = "" if code in blank else unicodedata.normalize("NFD", low)
        found = "".join(char for char in found if unicodedata.category(char) != "Mn")
        if code in blank or low.isspace():
            first_C[code] = BLANK_CHAR
        elif len(found) < 2:
            first_C[code] = ord(found) if found else -1
        else:
            assert len(found) <= MOST_CHARS, hex(code)
            first_C[code] = -2 - len(more)
            more += [len(found), *map(ord, found)]
    decimal_C = np.zeros(PLANES, np.bool_)
    decimal_C[list(map(ord, DECIMAL))] = True
    return Forms(classes(), first_C, np.array(more, np.int32), decimal_C)


@bare
def _digit_at(data_B, at, end, flags_C):  # type: ignore[no-untyped-def]
    """Bytes of a digit that stands here, else 0."""
    if at >= end:
        return 0
    code, size = decode(data_B, at)
    return size if code < PLANES and flags_C[code] & DIGIT else 0


@bare
def _number_end(data_B, at, end, flags_C, decimal_C):  # type: ignore[no-untyped-def]
    """Behind the number whose first digit is here: digits, and once a decimal sign with digits."""
    for part in range(2):
        size = _digit_at(data_B, at, end, flags_C)
        while size:
            at += size
            size = _digit_at(data_B, at, end, flags_C)
        if part or at >= end:
            break
        code, size = decode(data_B, at)
        if not (code < PLANES and decimal_C[code] and _digit_at(data_B, at + size, end, flags_C)):
            break
        at += size
    return at


@bare
def _simple(data_B, begin, end, code_C, hash_C, begin_R, gap_R, marked_R, form):  # type: ignore[no-untyped-def]
    """The normal form, as `_spacy.runs_of` gives a text."""
    flags_C, first_C, more_X, decimal_C = form.flags_C, form.first_C, form.more_X, form.decimal_C
    chars, runs, gap, spaced, open_ = 0, 0, TOGETHER, True, False
    at = begin
    while at < end:
        code, size = decode(data_B, at)
        one = first_C[code] if code < PLANES else np.int32(code)
        if code < PLANES and flags_C[code] & DIGIT:
            one, size = np.int32(0x30), _number_end(data_B, at, end, flags_C, decimal_C) - at
        at += size
        if one == BLANK_CHAR:
            if not spaced:  # one space for many; more where a mark without a letter stood between
                gap = SPACED if open_ else APART
            spaced, open_ = True, False
            continue
        spaced = False
        if one == -1:
            continue
        place, count = (np.int64(-one) - 1, np.int64(more_X[-one - 2])) if one < -1 else (0, 1)
        for i in range(count):
            new = more_X[place + i] if one < -1 else one
            if not open_:
                begin_R[runs], gap_R[runs], marked_R[runs] = chars, gap, False
                runs += 1
                open_, gap = True, TOGETHER
            code_C[chars] = new
            if new < PLANES and flags_C[new] & MARKED:
                marked_R[runs - 1] = True
            add(hash_C, chars, new)
            chars += 1
    begin_R[runs] = chars
    return chars, runs


@bare
def _encoded(code_C, low, high, data_B, count):  # type: ignore[no-untyped-def]
    """Characters in UTF-8 behind the first `count` bytes; returns how many bytes there are now."""
    for at in range(low, high):
        code = code_C[at]
        if code < 0x80:
            data_B[count] = code
            count += 1
            continue
        size = 2 if code < 0x800 else 3 if code < 0x10000 else 4
        data_B[count] = (0xF00 >> size & 0xFF) | code >> 6 * (size - 1)
        for i in range(1, size):
            data_B[count + i] = 0x80 | (code >> 6 * (size - 1 - i) & 0x3F)
        count += size
    return count


@njit(nogil=True, cache=True)
def _shingles(code_C, end_T, words, ngram, data_B, lane_B, place_T, shingle_S):  # type: ignore[no-untyped-def]
    """Hash of every run of `ngram` words with a space between two; returns how many."""
    if words < ngram:
        return 0
    count = 0
    for i in range(words):
        place_T[i] = count
        count = _encoded(code_C, end_T[i - 1] if i else 0, end_T[i], data_B, count)
        data_B[count] = 0x20
        count += 1
    place_T[words] = count
    lanes(data_B, count, lane_B)
    for i in range(words - ngram + 1):
        shingle_S[i] = xxh64(lane_B, place_T[i], place_T[i + ngram] - 1)
    return words - ngram + 1


@bare
def _least(shingle_S, count, factor, shift):  # type: ignore[no-untyped-def]
    """Of one hash function over all shingles: of `(shingle * factor + shift) % MERSENNE` in 64 bits."""
    least = np.int64(MERSENNE)
    for i in range(count):
        mixed = shingle_S[i] * factor + shift
        value = np.int64((mixed & MERSENNE) + (mixed >> np.uint64(61)))
        value = value - np.int64(MERSENNE) if value >= np.int64(MERSENNE) else value
        least = value if value < least else least
    return np.uint64(least)


@njit(nogil=True, cache=True)
def _bands(data_B, start_D, form, words, ngram, factor_H, shift_H, rows, band_DN, shingles_D):  # type: ignore[no-untyped-def]
    room = MOST_CHARS * longest(start_D) + 2
    code_C, hash_C, power_C = np.empty(room, np.int64), np.zeros(room, np.uint64), np.empty(room, np.uint64)
    begin_R, gap_R, marked_R = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.bool_)
    end_T, room_T, made_T = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    gap_T, byte_B = np.empty(room, np.uint8), np.empty(4 * room, np.uint8)
    lane_B, shingle_S = np.empty(4 * room, np.uint64), np.empty(room, np.uint64)
    least_H = np.empty(len(factor_H), np.uint64)
    powers(room - 1, power_C)
    for d in range(len(start_D) - 1):
        begin, end = start_D[d], start_D[d + 1]
        _, runs = _simple(data_B, begin, end, code_C, hash_C, begin_R, gap_R, marked_R, form)
        count = split(code_C, hash_C, power_C, begin_R, gap_R, marked_R, runs, words, end_T, gap_T, room_T, made_T)
        count = _shingles(code_C, made_T, count, ngram, byte_B, lane_B, room_T, shingle_S)
        shingles_D[d] = count
        for h in range(len(factor_H)):
            least_H[h] = _least(shingle_S, count, factor_H[h], shift_H[h])
        for n in range(band_DN.shape[1]):
            key = np.uint64(n)
            for r in range(n * rows, (n + 1) * rows):
                key = finish((key ^ least_H[r]) * MULTIPLY)
            band_DN[d, n] = (least_H[n * rows] >> np.uint64(29) << np.uint64(32)) | (key & np.uint64(0xFFFFFFFF))


def signatures(texts: Texts, ngram: int, bands: int, rows: int, seed: int) -> Signatures:
    """A band's key is equal for documents that agree in all its rows, and keys ascend as their first rows do."""
    random = np.random.RandomState(seed)
    factor_H = random.randint(1, MERSENNE, dtype=np.uint64, size=bands * rows)
    shift_H = random.randint(0, MERSENNE, dtype=np.uint64, size=bands * rows)
    band_DN, shingles_D = np.empty((len(texts), bands), np.uint64), np.empty(len(texts), np.int64)
    _bands(texts.data_B, texts.start_D, forms(), knowledge(), ngram, factor_H, shift_H, rows, band_DN, shingles_D)
    return Signatures(band_DN, shingles_D)


@njit(nogil=True, cache=True)
def _normal(data_B, form, words):  # type: ignore[no-untyped-def]
    room = MOST_CHARS * len(data_B) + 2
    code_C, hash_C, power_C = np.empty(room, np.int64), np.zeros(room, np.uint64), np.empty(room, np.uint64)
    begin_R, gap_R, marked_R = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.bool_)
    end_T, gap_T, room_T, made_T = (
        np.empty(room, np.int64),
        np.empty(room, np.uint8),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
    )
    powers(room - 1, power_C)
    chars, runs = _simple(data_B, 0, len(data_B), code_C, hash_C, begin_R, gap_R, marked_R, form)
    count = split(code_C, hash_C, power_C, begin_R, gap_R, marked_R, runs, words, end_T, gap_T, room_T, made_T)
    return code_C[:chars], made_T[:count]


def normal_words(text: str) -> list[str]:
    """The words of a text's normal form."""
    code_C, end_T = _normal(Texts.of([text]).data_B, forms(), knowledge())
    form, ends = "".join(map(chr, code_C.tolist())), end_T.tolist()
    return [form[low:high] for low, high in pairwise([0, *ends])]


def clusters(bands: Iterable[Array], shingles_D: Array) -> Clusters:
    """Every document's cluster, at home in the one that is kept: of two clusters that meet the larger one's, of equals the
    first's."""
    forest = Forest(len(shingles_D))
    size_D = np.ones(len(shingles_D), np.int64)
    like_D, similarity_D = unmatched(len(shingles_D))

    for bucket in buckets(bands, shingles_D > 0):
        for a, b in pairwise(bucket.tolist()):
            for one, other in ((b, a), (a, b)):
                if like_D[one] < 0:
                    like_D[one] = other
            home, second = forest.find(a), forest.find(b)
            if home != second:
                kept, gone = (second, home) if size_D[home] < size_D[second] else (home, second)
                forest.root[gone] = kept
                size_D[kept] += size_D[gone]
    return Clusters(forest.homes(), like_D, similarity_D)
