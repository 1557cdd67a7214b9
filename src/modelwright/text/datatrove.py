"""What datatrove's Gopher and FineWeb filters count, of many documents in one pass, so that verdicts are the same.

Source: datatrove 0.10.1 (Penedo et al. 2024, https://github.com/huggingface/datatrove), `pipeline/filters`. Differs from
`stats.py`: words are spaCy's (a mark is a word), lines keep the spaces around them, an empty first or last line counts for
repetition, stop words are told apart by case, runs of 5 words and more are the same when their characters are.
"""

# Shape suffixes: D documents, C characters that are no white space, R runs of them, T words, L lines, P paragraphs, K slots.

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._ranges import bare, hashed, powers
from modelwright.text._repeats import came_before, commonest, longer, place, repeated, slots_for
from modelwright.text._scan import BASIS, DOT, ELLIPSIS, HASH, decode, finish, longest, stir
from modelwright.text._spacy import knowledge, runs_of, split, word_hash, words_of
from modelwright.text._spacy_rules import BLANK, BREAK, ENDS, IS_ALPHA, SYMBOL
from modelwright.text.stats import SHORT_LINE_CHARS, STOP_WORDS
from modelwright.text.tables import PLANES

if TYPE_CHECKING:
    from modelwright.text import Array

__all__ = ["COUNTS", "counted", "words_of"]
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
    "parts",
    "dup_lines",
    "dup_line_chars",
    "paragraphs",
    "dup_paragraphs",
    "dup_paragraph_chars",
    "full_lines",
    "terminal_lines",
    "short_lines",
    "dup_full_line_chars",
    *(f"top_{n}gram_chars" for n in (2, 3, 4)),
    *(f"dup_{n}gram_chars" for n in range(5, 11)),
)
"""As in `stats.py`. lines: as `str.splitlines`. parts: what runs of `\\n` divide, of which dup_lines came before. full: lines
between `\\n` that are not blank. real: with something that is no punctuation."""
_LINES, _PARTS, _PARAGRAPHS, _FULL, _GRAMS = 9, 12, 15, 18, 20
NEW_LINE, RETURN, BULLET, HYPHEN = 0x0A, 0x0D, 0x2022, 0x2D
FULL, TERMINAL = np.uint8(1), np.uint8(2)


@bare
def _stripped(data_B, begin, end, flags_C):  # type: ignore[no-untyped-def]
    """Where a document begins and ends without the white space around it."""
    while begin < end:
        code, size = decode(data_B, begin)
        if not (code < PLANES and flags_C[code] & BLANK):
            break
        begin += size
    while end > begin:
        at = end - 1
        while data_B[at] & 0xC0 == 0x80:
            at -= 1
        code, _ = decode(data_B, at)
        if not (code < PLANES and flags_C[code] & BLANK):
            break
        end = at
    return begin, end


@njit(nogil=True, cache=True)
def _lines(data_B, begin, end, flags_C, counts):  # type: ignore[no-untyped-def]
    """Lines as `str.splitlines` has them, how they begin and end, and single characters."""
    first, last, dots, any_, before = np.int64(0), np.int64(0), 0, False, np.int64(0)
    last_dots, at = 0, begin
    while at <= end:
        code, size = (np.int64(NEW_LINE), 1) if at == end else decode(data_B, at)
        flags = flags_C[code] if code < PLANES else np.uint32(0)
        dots = dots + 1 if code == DOT else 0
        if at < end:
            counts[0] += 1
            counts[1] += code == HASH
            counts[2] += code == ELLIPSIS or (dots > 0 and dots % 3 == 0)
            counts[3] += code == NEW_LINE
        if flags & BREAK:
            if any_ or (at < end and not (code == NEW_LINE and before == RETURN)):
                counts[_LINES] += 1
                counts[_LINES + 1] += first in (BULLET, HYPHEN)
                counts[_LINES + 2] += last == ELLIPSIS or last_dots > 2
            first, last, last_dots, any_ = np.int64(0), np.int64(0), 0, False
        else:
            any_ = True
            if not flags & BLANK:
                first = first if first else code
                last, last_dots = code, dots
        before = code
        at += size


@njit(nogil=True, cache=True)
def _parts(data_B, begin, end, flags_C, hash_L, chars_L, marks_L):  # type: ignore[no-untyped-def]
    """What runs of `\\n` divide; returns how many there are."""
    parts, hash_, chars, marks, last, before = 0, BASIS, 0, np.uint8(0), np.uint32(0), np.int64(0)
    at = begin
    while at <= end:
        code, size = (np.int64(NEW_LINE), 1) if at == end else decode(data_B, at)
        if code != NEW_LINE:
            last = flags_C[code] if code < PLANES else np.uint32(0)
            marks |= FULL if not last & BLANK else np.uint8(0)
            hash_, chars = stir(hash_, code), chars + 1
        elif at == end or before != NEW_LINE:
            marks |= TERMINAL if last & ENDS else np.uint8(0)
            hash_L[parts], chars_L[parts], marks_L[parts] = finish(hash_), chars, marks
            parts, hash_, chars, marks, last = parts + 1, BASIS, 0, np.uint8(0), np.uint32(0)
        before = code
        at += size
    return parts


@njit(nogil=True, cache=True)
def _paragraphs(data_B, begin, end, hash_P, chars_P):  # type: ignore[no-untyped-def]
    """What runs of two `\\n` or more divide, in a text without white space around it; one empty one where there is no text."""
    paragraphs, hash_, chars, ends, at = 0, BASIS, 0, 0, begin
    while at < end:
        code, size = decode(data_B, at)
        if code == NEW_LINE:
            ends += 1
        else:
            if ends > 1:
                hash_P[paragraphs], chars_P[paragraphs] = finish(hash_), chars
                paragraphs += 1
                hash_, chars = BASIS, 0
            elif ends:
                hash_, chars = stir(hash_, NEW_LINE), chars + 1
            ends, hash_, chars = 0, stir(hash_, code), chars + 1
        at += size
    hash_P[paragraphs], chars_P[paragraphs] = finish(hash_), chars
    return paragraphs + 1


@njit(nogil=True, cache=True)
def _part_counts(hash_L, chars_L, marks_L, parts, key_K, age_K, age, counts):  # type: ignore[no-untyped-def]
    counts[_PARTS] = parts
    for i in range(parts):
        full = (marks_L[i] & FULL) != 0
        slot, known = place(hash_L[i], key_K, age_K, age)
        if known:
            counts[_PARTS + 1] += 1
            counts[_PARTS + 2] += chars_L[i]
            counts[_FULL + 3] += chars_L[i] if full else 0
        else:
            key_K[slot], age_K[slot] = hash_L[i], age
        if full:
            counts[_FULL] += 1
            counts[_FULL + 1] += (marks_L[i] & TERMINAL) != 0
            counts[_FULL + 2] += chars_L[i] <= SHORT_LINE_CHARS


@njit(nogil=True, cache=True)
def _word_counts(code_C, begin_T, hash_T, words, flags_C, stop_S, counts):  # type: ignore[no-untyped-def]
    counts[4] = words
    seen = 0
    for i in range(words):
        real, alpha = False, False
        for at in range(begin_T[i], begin_T[i + 1]):
            flags = flags_C[code_C[at]] if code_C[at] < PLANES else np.uint32(0)
            real |= not flags & SYMBOL
            alpha |= (flags & IS_ALPHA) != 0
            if real and alpha:
                break
        if real:
            counts[5] += 1
            counts[6] += begin_T[i + 1] - begin_T[i]
        if alpha:
            counts[7] += 1
            for s in range(len(stop_S)):
                if hash_T[i] == stop_S[s]:
                    seen |= 1 << s
    for s in range(len(stop_S)):
        counts[8] += (seen >> s) & 1


@njit(nogil=True, cache=True)
def _gram_counts(begin_T, hash_T, gram_T, may_T, slot_T, hash_C, power_C, words, key_K, age_K, count_K, first_K, age, counts):  # type: ignore[no-untyped-def]
    """Of runs of 2 to 10 words; `age` is used up to 9 more."""
    gram_T[:words], may_T[:words] = hash_T[:words], True
    for n in range(2, 11):
        age += 1
        runs = max(words - n + 1, 0)
        if n < 5:
            longer(gram_T, may_T, hash_T, words, n)
            counts[_GRAMS + n] = commonest(gram_T, may_T, begin_T, runs, n, slot_T, key_K, age_K, count_K, first_K, age)
            continue
        may_T[:runs] = True  # the same characters need not be the same words
        for i in range(runs):
            gram_T[i] = hashed(hash_C, power_C, begin_T[i], begin_T[i + n])
        counts[_GRAMS + n] = came_before(gram_T, may_T, begin_T, runs, n, key_K, age_K, age)


@njit(nogil=True, cache=True)
def _count(data_B, start_D, rules, stop_S, count_DX):  # type: ignore[no-untyped-def]
    room = longest(start_D) + 2
    code_C, hash_C, power_C = np.empty(room, np.int64), np.zeros(room, np.uint64), np.empty(room, np.uint64)
    begin_R, gap_R, marked_R = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.bool_)
    end_T, room_T, begin_T = np.empty(room, np.int64), np.empty(room, np.int64), np.zeros(room + 1, np.int64)
    gap_T, hash_T, gram_T = np.empty(room, np.uint8), np.empty(room, np.uint64), np.empty(room, np.uint64)
    may_T, slot_T = np.empty(room, np.bool_), np.empty(room, np.uint64)
    slots = slots_for(room)
    key_K, age_K = np.empty(slots, np.uint64), np.zeros(slots, np.int64)
    count_K, first_K = np.empty(slots, np.int64), np.empty(slots, np.int64)
    powers(room - 1, power_C)
    age = 0
    for d in range(len(start_D) - 1):
        begin, end = start_D[d], start_D[d + 1]
        counts = count_DX[d]
        _lines(data_B, begin, end, rules.flags_C, counts)
        parts = _parts(data_B, begin, end, rules.flags_C, hash_T, end_T, gap_T)
        few = slots_for(parts + 1)
        _part_counts(hash_T, end_T, gap_T, parts, key_K[:few], age_K[:few], age + 1, counts)
        low, high = _stripped(data_B, begin, end, rules.flags_C)
        counts[_PARAGRAPHS] = _paragraphs(data_B, low, high, hash_T, end_T)
        counts[_PARAGRAPHS + 1], counts[_PARAGRAPHS + 2] = repeated(
            hash_T, end_T, counts[_PARAGRAPHS], key_K[:few], age_K[:few], age + 2
        )
        _, runs = runs_of(data_B, begin, end, rules.flags_C, code_C, hash_C, begin_R, gap_R, marked_R)
        words = split(code_C, hash_C, power_C, begin_R, gap_R, marked_R, runs, rules, end_T, gap_T, room_T, begin_T[1:])
        for i in range(words):
            hash_T[i] = hashed(hash_C, power_C, begin_T[i], begin_T[i + 1])
        _word_counts(code_C, begin_T, hash_T, words, rules.flags_C, stop_S, counts)
        few = slots_for(words + 1)  # a table no larger than it must be stays in the cache
        keys, ages, times, firsts = key_K[:few], age_K[:few], count_K[:few], first_K[:few]
        _gram_counts(begin_T, hash_T, gram_T, may_T, slot_T, hash_C, power_C, words, keys, ages, times, firsts, age + 2, counts)
        age += 11


def counted(texts: Texts) -> dict[str, Array]:
    """[D] int64 each, by the names in COUNTS."""
    stop_S = np.array(list(map(word_hash, STOP_WORDS)), np.uint64)
    count_DX = np.zeros((len(texts), len(COUNTS)), np.int64)
    _count(texts.data_B, texts.start_D, knowledge(), stop_S, count_DX)
    return {name: count_DX[:, column] for column, name in enumerate(COUNTS)}
