"""XXH64 of bytes, seed 0. Compiled.

Specification: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md (version 0.2.0). Each eight bytes are read at once:
`lane_B[i]` holds bytes i to i + 7, the first one lowest.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from modelwright.text._ranges import bare

PRIME_1, PRIME_2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
PRIME_3, PRIME_4, PRIME_5 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)


@njit(nogil=True, cache=True)
def lanes(data_B, count, lane_B):  # type: ignore[no-untyped-def]
    """Eight bytes from each of the first `count` on; behind the last they are 0."""
    lane = np.uint64(0)
    for at in range(count - 1, -1, -1):
        lane = (lane << np.uint64(8)) | np.uint64(data_B[at])
        lane_B[at] = lane


@njit(nogil=True, cache=True, inline="always")
def _turned(value, bits):  # type: ignore[no-untyped-def]
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit(nogil=True, cache=True, inline="always")
def _round(total, lane):  # type: ignore[no-untyped-def]
    return _turned(total + lane * PRIME_2, 31) * PRIME_1


@njit(nogil=True, cache=True, inline="always")
def _merged(hash_, total):  # type: ignore[no-untyped-def]
    return (hash_ ^ _round(np.uint64(0), total)) * PRIME_1 + PRIME_4


@bare
def xxh64(lane_B, low, high):  # type: ignore[no-untyped-def]
    """Of the bytes from `low` to `high`."""
    at = low
    if high - low >= 32:
        one, two, three, four = PRIME_1 + PRIME_2, PRIME_2, np.uint64(0), np.uint64(0) - PRIME_1
        while at + 32 <= high:
            one, two = _round(one, lane_B[at]), _round(two, lane_B[at + 8])
            three, four = _round(three, lane_B[at + 16]), _round(four, lane_B[at + 24])
            at += 32
        hash_ = _turned(one, 1) + _turned(two, 7) + _turned(three, 12) + _turned(four, 18)
        hash_ = _merged(_merged(_merged(_merged(hash_, one), two), three), four)
    else:
        hash_ = PRIME_5
    hash_ += np.uint64(high - low)
    while at + 8 <= high:
        hash_ = _turned(hash_ ^ _round(np.uint64(0), lane_B[at]), 27) * PRIME_1 + PRIME_4
        at += 8
    if at + 4 <= high:
        hash_ = _turned(hash_ ^ ((lane_B[at] & np.uint64(0xFFFFFFFF)) * PRIME_1), 23) * PRIME_2 + PRIME_3
        at += 4
    while at < high:
        hash_ = _turned(hash_ ^ ((lane_B[at] & np.uint64(0xFF)) * PRIME_5), 11) * PRIME_1
        at += 1
    hash_ = (hash_ ^ (hash_ >> np.uint64(33))) * PRIME_2
    hash_ = (hash_ ^ (hash_ >> np.uint64(29))) * PRIME_3
    return hash_ ^ (hash_ >> np.uint64(32))
