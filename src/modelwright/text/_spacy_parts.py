"""The rules by which spaCy's English tokenizer divides what stands between spaces. Compiled; the list is in `_spacy.py`.

Source: spaCy 3.8, `lang/punctuation.py`, `lang/en/punctuation.py` and `lang/tokenizer_exceptions.py`
(https://github.com/explosion/spaCy); the shape of addresses there is Diego Perini's, https://gist.github.com/dperini/729294.
"""

# Shape suffixes: C characters that are no white space, T words, K slots of a table.

from __future__ import annotations

import numpy as np

from modelwright.text._ranges import bare, hashed, lookup
from modelwright.text._spacy_rules import (
    BEFORE_DOT,
    CURRENCY,
    DIGIT,
    HOST,
    ICON,
    LETTER,
    LOWER,
    PREFIX,
    QUOTE,
    SCHEME,
    SUFFIX,
    UPPER,
)
from modelwright.text.tables import PLANES

LISTED, UNIT = 1 << 16, 1 << 17
"""What a word's value in the list can say; below stands where its second and third part begin."""
DOT, PLUS, HYPHEN, EN_DASH, EM_DASH, ELLIPSIS = 0x2E, 0x2B, 0x2D, 0x2013, 0x2014, 0x2026


@bare
def _flags(code_C, at, flags_C):  # type: ignore[no-untyped-def]
    return flags_C[code_C[at]] if code_C[at] < PLANES else np.uint32(0)


@bare
def _ascii_digit(code):  # type: ignore[no-untyped-def]
    return 0x30 <= code <= 0x39


@bare
def prefix(code_C, low, high, flags_C):  # type: ignore[no-untyped-def]
    """Length of what comes off in front."""
    code = code_C[low]
    if _flags(code_C, low, flags_C) & PREFIX:
        return 1
    if code == PLUS:
        return 0 if low + 1 < high and _ascii_digit(code_C[low + 1]) else 1
    if code == DOT:
        at = low
        while at < high and code_C[at] == DOT:
            at += 1
        return at - low if at - low > 1 else 0
    if code == 0x55 and high - low > 2 and code_C[low + 1] == 0x53 and code_C[low + 2] == 0x24:  # US$
        return 3
    return 2 if code in (0x43, 0x41) and high - low > 1 and code_C[low + 1] == 0x24 else 0  # C$, A$


@bare
def _dots(code_C, low, high, flags_C):  # type: ignore[no-untyped-def]
    """Full stops that come off behind."""
    at = high
    while at > low and code_C[at - 1] == DOT:
        at -= 1
    if high - at > 1 or high - low < 2:
        return high - at if high - at > 1 else 0
    before = _flags(code_C, high - 2, flags_C)
    if before & BEFORE_DOT:
        return 1
    if high - low < 3:
        return 0
    if before & UPPER and _flags(code_C, high - 3, flags_C) & UPPER:
        return 1
    letter = code_C[high - 2] | 0x20
    return 1 if code_C[high - 3] == 0xB0 and letter in (0x66, 0x63, 0x6B) else 0  # degrees F, C, K


@bare
def suffix(code_C, low, high, hash_C, power_C, flags_C, key_K, value_K):  # type: ignore[no-untyped-def]
    """Length of what comes off behind: the longest that fits."""
    if high <= low:
        return 0
    code, flags = code_C[high - 1], _flags(code_C, high - 1, flags_C)
    if code == DOT:
        return _dots(code_C, low, high, flags_C)
    for size in range(min(5, high - low - 1), 0, -1):
        if _ascii_digit(code_C[high - size - 1]) and lookup(hashed(hash_C, power_C, high - size, high), key_K, value_K) & UNIT:
            return size
    before = code_C[high - 2] if high - low > 1 else 0
    if code in (0x73, 0x53) and before in (0x27, 0x2019):
        return 2
    if code == ELLIPSIS and before == ELLIPSIS:
        return 2
    if flags & SUFFIX:
        return 1
    return 1 if _ascii_digit(before) and (code == PLUS or flags & CURRENCY) else 0


@bare
def _number(code_C, low, high):  # type: ignore[no-untyped-def]
    """Of one to three ASCII digits; -1: something else."""
    if not 1 <= high - low <= 3:
        return -1
    value = 0
    for at in range(low, high):
        if not _ascii_digit(code_C[at]):
            return -1
        value = value * 10 + code_C[at] - 0x30
    return value


@bare
def _public(code_C, low, high):  # type: ignore[no-untyped-def]
    """Whether this is a public IPv4 address."""
    count, start, first, second = 0, low, 0, 0
    for at in range(low, high + 1):
        if at == high or code_C[at] == DOT:
            part = _number(code_C, start, at)
            edge = count in (0, 3)
            if count == 4 or part < 0 or part > (223 if count == 0 else 254 if count == 3 else 255):
                return False
            if edge and code_C[start] == 0x30:
                return False
            first, second = (part if count == 0 else first), (part if count == 1 else second)
            count, start = count + 1, at + 1
    if count < 4 or first in (10, 127) or (first == 169 and second == 254) or (first == 192 and second == 168):
        return False
    return not (first == 172 and 16 <= second <= 31)


@bare
def _host(code_C, low, high, flags_C):  # type: ignore[no-untyped-def]
    """Whether this is a name with a domain, or a public address."""
    last = high - 1
    while last >= low and code_C[last] != DOT:
        last -= 1
    if last <= low:
        return False
    if _ascii_digit(code_C[low]) and _public(code_C, low, high):
        return True
    if not 2 <= high - last - 1 <= 63:
        return False
    for at in range(last + 1, high):
        if not _flags(code_C, at, flags_C) & LOWER:
            return False
    start = low
    for at in range(low, last + 1):
        if code_C[at] == DOT:
            if not 1 <= at - start <= 64 or not (_flags(code_C, start, flags_C) & _flags(code_C, at - 1, flags_C) & HOST):
                return False
            start = at + 1
    return True


@bare
def _address_at(code_C, low, high, flags_C):  # type: ignore[no-untyped-def]
    """A host, then a port and a path where there are any."""
    at = low
    while at < high and (_flags(code_C, at, flags_C) & HOST or code_C[at] == DOT or code_C[at] == HYPHEN or code_C[at] == 0x5F):
        at += 1
    if not _host(code_C, low, at, flags_C):
        return False
    if at < high and code_C[at] == 0x3A:
        port = at + 1
        while port < high and _flags(code_C, port, flags_C) & DIGIT:
            port += 1
        if not 3 <= port - at <= 6:
            return False
        at = port
    return at == high or code_C[at] == 0x2F or code_C[at] == 0x3F or code_C[at] == 0x23


@bare
def address(code_C, low, high, flags_C):  # type: ignore[no-untyped-def]
    """Whether it looks like a URL, a host or an e-mail address."""
    dots, scheme = False, True
    for at in range(low, high):
        dots |= code_C[at] == DOT
    if not dots:
        return False
    if _address_at(code_C, low, high, flags_C):
        return True
    for at in range(low, high):
        code = code_C[at]
        if code == 0x40 and at > low and _address_at(code_C, at + 1, high, flags_C):
            return True
        if scheme and code == 0x3A and at - low > 1 and at + 2 < high and code_C[at + 1] == 0x2F and code_C[at + 2] == 0x2F:
            if _address_at(code_C, at + 3, high, flags_C):
                return True
        scheme = scheme and (_flags(code_C, at, flags_C) & SCHEME) != 0
    return False


@bare
def _dashes(code_C, at, high, flags_C):  # type: ignore[no-untyped-def]
    """Dashes of one sort in front of a letter: how many make a joint."""
    code = code_C[at]
    most = 3 if code == HYPHEN else 2 if code == EM_DASH else 1 if code in (EN_DASH, 0x7E) else 0
    for size in range(1, most + 1):
        if at + size >= high or code_C[at + size - 1] != code:
            return 0
        if _flags(code_C, at + size, flags_C) & LETTER:
            return size
    return 0


@bare
def _infix(code_C, at, low, high, flags_C):  # type: ignore[no-untyped-def]
    """Length of a joint inside a word that begins here; 0: none."""
    code = code_C[at]
    if code == DOT and at + 1 < high and code_C[at + 1] == DOT:
        end = at
        while end < high and code_C[end] == DOT:
            end += 1
        return end - at
    if code == ELLIPSIS or _flags(code_C, at, flags_C) & ICON:
        return 1
    if at == low or at + 1 == high:
        return 0
    before, after = _flags(code_C, at - 1, flags_C), _flags(code_C, at + 1, flags_C)
    digit = _ascii_digit(code_C[at - 1])
    if digit and code in (PLUS, HYPHEN, 0x2A, 0x5E):
        if _ascii_digit(code_C[at + 1]) or code_C[at + 1] == HYPHEN:
            return 1
    if code == DOT:
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if code == 0x2C:
        return 1 if before & after & LETTER else 0
    if not digit and not before & LETTER:
        return 0
    if code in (0x3A, 0x2F, 0x3C, 0x3D, 0x3E):  # : / < = >
        return 1 if after & LETTER else 0
    return _dashes(code_C, at, high, flags_C)


@bare
def inside(code_C, low, high, flags_C, end_T, count):  # type: ignore[no-untyped-def]
    """Divide what is left of a run; returns how many words there are now."""
    start, at = low, low
    while at < high:
        size = _infix(code_C, at, low, high, flags_C)
        if size and at > low:
            if at > start:
                end_T[count] = at
                count += 1
            end_T[count] = start = at + size
            count += 1
        at += max(size, 1)
    if start < high:
        end_T[count] = high
        count += 1
    return count
