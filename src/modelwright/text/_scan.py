"""One pass over the bytes of a document: its words, its lines and its paragraphs, hashed. Compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from modelwright.text.tables import ALNUM, ALPHA, BULLET, LINE_END, MARK, PLANES, SPACE, TERMINAL, UNSPACED, WORD

MULTIPLY = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio (Knuth, "The Art of Computer Programming", volume 3, section 6.4)."""
BASIS = np.uint64(0xCBF29CE484222325)
DOT, HASH, ELLIPSIS = 0x2E, 0x23, 0x2026
HAS_ALNUM, HAS_ALPHA = np.uint8(1), np.uint8(2)


@njit(nogil=True, cache=True, inline="always")
def decode(data_B, at):  # type: ignore[no-untyped-def]
    """(code point, bytes) of the character that begins at this byte of valid UTF-8."""
    first = data_B[at]
    if first < 0x80:
        return np.int64(first), 1
    if first < 0xE0:
        return (np.int64(first & 0x1F) << 6) | np.int64(data_B[at + 1] & 0x3F), 2
    if first < 0xF0:
        code = (np.int64(first & 0x0F) << 12) | (np.int64(data_B[at + 1] & 0x3F) << 6) | np.int64(data_B[at + 2] & 0x3F)
        return code, 3
    code = (np.int64(first & 0x07) << 18) | (np.int64(data_B[at + 1] & 0x3F) << 12)
    return code | (np.int64(data_B[at + 2] & 0x3F) << 6) | np.int64(data_B[at + 3] & 0x3F), 4


@njit(nogil=True, cache=True, inline="always")
def stir(hash_, code):  # type: ignore[no-untyped-def]
    """One more character in a hash."""
    return (hash_ ^ np.uint64(code)) * MULTIPLY


@njit(nogil=True, cache=True, inline="always")
def finish(hash_):  # type: ignore[no-untyped-def]
    """All bits of a hash depend on all others: the finaliser of splitmix64 (Steele et al. 2014)."""
    hash_ ^= hash_ >> np.uint64(31)
    hash_ *= np.uint64(0xBF58476D1CE4E5B9)
    return hash_ ^ (hash_ >> np.uint64(27))


@njit(nogil=True, cache=True)
def longest(start_D):  # type: ignore[no-untyped-def]
    """Bytes of the longest document, 1 at least: so many words it can have at most."""
    most = 1
    for d in range(len(start_D) - 1):
        most = max(most, start_D[d + 1] - start_D[d])
    return most


@njit(nogil=True, cache=True)
def spaced_words(data_B, begin, end, flags_C, lower_C, hash_W, folded_W, chars_W, marks_W):  # type: ignore[no-untyped-def]
    """Runs between spaces, and single characters of scripts without spaces; returns how many there are.

    Of each: a hash of its characters, one of its letters and digits in lower case, its length and what is in it."""
    words, chars = 0, 0
    hash_, folded, marks = BASIS, BASIS, np.uint8(0)
    alone = False  # the open word is a character of a script without spaces, and only marks may join it
    at = begin
    while at <= end:
        code, size = (np.int64(0x20), 1) if at == end else decode(data_B, at)
        flags = flags_C[code] if code < PLANES else np.uint16(0)
        apart = flags & UNSPACED
        if chars and (flags & SPACE or apart or (alone and not flags & MARK)):
            hash_W[words], folded_W[words], chars_W[words], marks_W[words] = finish(hash_), finish(folded), chars, marks
            words += 1
            chars, hash_, folded, marks = 0, BASIS, BASIS, np.uint8(0)
        if not flags & SPACE:
            if not chars:
                alone = apart != 0
            chars += 1
            hash_ = stir(hash_, code)
            if flags & WORD:
                folded = stir(folded, lower_C[code])
            if flags & ALNUM:
                marks |= HAS_ALNUM
            if flags & ALPHA:
                marks |= HAS_ALPHA
        at += size
    return words


@njit(nogil=True, cache=True)
def bare_words(data_B, begin, end, flags_C, lower_C, folded_W):  # type: ignore[no-untyped-def]
    """Runs of letters, digits, marks and underscores in lower case, and single characters of scripts without spaces; returns how
    many there are."""
    return placed_words(data_B, begin, end, flags_C, lower_C, folded_W, folded_W[:0])


@njit(nogil=True, cache=True)
def placed_words(data_B, begin, end, flags_C, lower_C, folded_W, begin_W):  # type: ignore[no-untyped-def]
    """`bare_words`, and the byte at which each begins, where there is room for that."""
    words = 0
    inside, alone = False, False
    folded = BASIS
    at = begin
    while at < end:
        code, size = np.int64(data_B[at]), 1
        if code < 0x80:  # most text: no script without spaces, no marks
            word, apart, joins = flags_C[code] & WORD, np.uint16(0), not alone
        else:
            code, size = decode(data_B, at)
            flags = flags_C[code] if code < PLANES else np.uint16(0)
            word, apart = flags & WORD, flags & UNSPACED
            joins = not apart and (not alone or (flags & MARK) != 0)
        if inside and not (word and joins):
            folded_W[words] = finish(folded)
            words += 1
            inside, alone, folded = False, False, BASIS
        if word:
            if not inside:
                alone = apart != 0
                if len(begin_W):
                    begin_W[words] = at
            inside = True
            folded = stir(folded, lower_C[code])
        at += size
    if inside:
        folded_W[words] = finish(folded)
        words += 1
    return words


LINE_BULLET, LINE_ELLIPSIS, LINE_TERMINAL = np.uint8(1), np.uint8(2), np.uint8(4)


@njit(nogil=True, cache=True)
def lines_of(data_B, begin, end, flags_C, hash_L, chars_L, marks_L, hash_P, chars_P, counts):  # type: ignore[no-untyped-def]
    """Lines and paragraphs that are not empty, without the spaces around them; returns how many there are of each.

    Of a line: a hash, its length and how it begins and ends. Empty lines divide paragraphs. Adds to `counts`: characters, hash
    signs, ellipses, ends of lines."""
    lines, paragraphs = 0, 0
    line, line_last, line_chars, line_last_chars = BASIS, BASIS, 0, 0
    para, para_last, para_chars, para_last_chars = BASIS, BASIS, 0, 0
    marks, last, dots, last_dots, total = np.uint8(0), np.int64(0), 0, 0, 0
    at = begin
    while at <= end:
        code, size = (np.int64(0x0A), 1) if at == end else decode(data_B, at)
        flags = flags_C[code] if code < PLANES else np.uint16(0)
        if at < end:
            total += 1
            if code == HASH:
                counts[1] += 1
            elif code == ELLIPSIS:
                counts[2] += 1
        dots = dots + 1 if code == DOT else 0
        if dots and dots % 3 == 0:
            counts[2] += 1
        if flags & LINE_END:
            if at < end:
                counts[3] += 1
            if line_last_chars:
                if last == ELLIPSIS or last_dots >= 3:
                    marks |= LINE_ELLIPSIS
                if last < PLANES and flags_C[last] & TERMINAL:
                    marks |= LINE_TERMINAL
                hash_L[lines], chars_L[lines], marks_L[lines] = finish(line_last), line_last_chars, marks
                lines += 1
            elif para_last_chars:
                hash_P[paragraphs], chars_P[paragraphs] = finish(para_last), para_last_chars
                paragraphs += 1
                para, para_chars, para_last_chars = BASIS, 0, 0
            line, line_chars, line_last_chars, marks = BASIS, 0, 0, np.uint8(0)
        if flags & SPACE:
            if line_chars:
                line = stir(line, code)
                line_chars += 1
            if para_chars:
                para = stir(para, code)
                para_chars += 1
        else:
            if not line_chars and flags & BULLET:
                marks |= LINE_BULLET
            line, para = stir(line, code), stir(para, code)
            line_chars += 1
            para_chars += 1
            line_last, line_last_chars, para_last, para_last_chars = line, line_chars, para, para_chars
            last, last_dots = code, dots
        at += size
    if para_last_chars:
        hash_P[paragraphs], chars_P[paragraphs] = finish(para_last), para_last_chars
        paragraphs += 1
    counts[0] += total
    return lines, paragraphs
