"""Every statistic that the published filters of web text ask for, of many documents in one pass; thresholds come after.

Sources: Rae et al. 2021, "Gopher", arXiv:2112.11446, section A.1.1 and table A1; Penedo et al. 2024, "FineWeb", arXiv:2406.17557,
section 3.6. Where these leave a reading open (what a word is, whether a repeated run counts once) it is datatrove's, but words
are what stands between spaces, and in scripts without spaces every letter.
"""

# Shape suffixes: D documents, B bytes, W words of one of them, L its lines, P its paragraphs, K slots of a table.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._repeats import came_before, commonest, longer, repeated, slots_for
from modelwright.text._scan import (
    BASIS,
    HAS_ALNUM,
    HAS_ALPHA,
    LINE_BULLET,
    LINE_ELLIPSIS,
    LINE_TERMINAL,
    finish,
    lines_of,
    longest,
    spaced_words,
    stir,
)
from modelwright.text.tables import tables

if TYPE_CHECKING:
    from modelwright.text import Array

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE_CHARS = 30
COUNTS = (
    "chars",
    "hashes",
    "ellipses",
    "line_ends",
    "words",
    "real_words",
    "real_chars",
    "alpha_words",
    "stop_words",
    "lines",
    "bullet_lines",
    "ellipsis_lines",
    "terminal_lines",
    "short_lines",
    "dup_lines",
    "dup_line_chars",
    "paragraphs",
    "dup_paragraphs",
    "dup_paragraph_chars",
    *(f"top_{n}gram_chars" for n in (2, 3, 4)),
    *(f"dup_{n}gram_chars" for n in range(5, 11)),
)
"""What is counted, as it stands in the columns. real: with a letter or digit. alpha: with a letter. dup: came before."""


@njit(nogil=True, cache=True)
def _count(data_B, start_D, flags_C, lower_C, stop_S, count_DX):  # type: ignore[no-untyped-def]
    room = longest(start_D) + 1
    hash_W, folded_W, gram_W = np.empty(room, np.uint64), np.empty(room, np.uint64), np.empty(room, np.uint64)
    chars_W, before_W, marks_W = np.empty(room, np.int64), np.empty(room + 1, np.int64), np.empty(room, np.uint8)
    may_W, slot_W = np.empty(room, np.bool_), np.empty(room, np.uint64)
    slots = slots_for(room)
    key_K, age_K = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    count_K, first_K = np.empty(slots, np.int64), np.empty(slots, np.int64)
    age = 0
    for d in range(len(start_D) - 1):
        begin, end = start_D[d], start_D[d + 1]
        counts = count_DX[d]
        lines, paragraphs = lines_of(data_B, begin, end, flags_C, hash_W, chars_W, marks_W, folded_W, before_W, counts)
        counts[9], counts[16] = lines, paragraphs
        for i in range(lines):
            counts[10] += (marks_W[i] & LINE_BULLET) != 0
            counts[11] += (marks_W[i] & LINE_ELLIPSIS) != 0
            counts[12] += (marks_W[i] & LINE_TERMINAL) != 0
            counts[13] += chars_W[i] <= SHORT_LINE_CHARS
        few = slots_for(lines + 1)  # a table no larger than it must be stays in the cache
        counts[14], counts[15] = repeated(hash_W, chars_W, lines, key_K[:few], age_K[:few], age + 1)
        counts[17], counts[18] = repeated(folded_W, before_W, paragraphs, key_K[:few], age_K[:few], age + 2)
        age += 2
        words = spaced_words(data_B, begin, end, flags_C, lower_C, hash_W, folded_W, chars_W, marks_W)
        counts[4] = words
        seen = 0
        before_W[0] = 0
        for i in range(words):
            before_W[i + 1] = before_W[i] + chars_W[i]
            gram_W[i], may_W[i] = hash_W[i], True
            if marks_W[i] & HAS_ALNUM:
                counts[5] += 1
                counts[6] += chars_W[i]
            if marks_W[i] & HAS_ALPHA:
                counts[7] += 1
                for s in range(len(stop_S)):
                    if folded_W[i] == stop_S[s]:
                        seen |= 1 << s
        for s in range(len(stop_S)):
            counts[8] += (seen >> s) & 1
        few = slots_for(words + 1)
        keys, ages, times, firsts = key_K[:few], age_K[:few], count_K[:few], first_K[:few]
        for n in range(2, 11):
            age += 1
            longer(gram_W, may_W, hash_W, words, n)
            runs = max(words - n + 1, 0)
            if n < 5:
                counts[17 + n] = commonest(gram_W, may_W, before_W, runs, n, slot_W, keys, ages, times, firsts, age)
            else:
                counts[17 + n] = came_before(gram_W, may_W, before_W, runs, n, keys, ages, age)


@njit(cache=True)
def _hash_of(code_N):  # type: ignore[no-untyped-def]
    hash_ = BASIS
    for code in code_N:
        hash_ = stir(hash_, code)
    return finish(hash_)


def counted(texts: Texts) -> dict[str, Array]:
    """[D] int64 each, by the names in COUNTS."""
    flags_C, lower_C = tables()
    stop_S = np.array([_hash_of(np.array([ord(char) for char in word])) for word in STOP_WORDS], np.uint64)
    count_DX = np.zeros((len(texts), len(COUNTS)), np.int64)
    _count(texts.data_B, texts.start_D, flags_C, lower_C, stop_S, count_DX)
    return {name: count_DX[:, column] for column, name in enumerate(COUNTS)}
