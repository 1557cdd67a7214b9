"""The words of a text as spaCy's English tokenizer finds them. Compiled.

Algorithm: https://spacy.io/usage/linguistic-features#how-tokenizer-works (spaCy 3.8, no model): what stands between spaces loses
marks in front and behind one at a time, unless a list or the shape of an address keeps it whole; what is left is divided inside;
then runs of such pieces that the list has become whole again. White space is no word.
"""

# Shape suffixes: C characters that are no white space, R runs of them, T words, K slots of a table.

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit

from modelwright.text._ranges import add, bare, hashed, lookup, powers, table
from modelwright.text._scan import MULTIPLY, decode, finish
from modelwright.text._spacy_parts import LISTED, UNIT, address, inside, prefix, suffix
from modelwright.text._spacy_rules import BLANK, MARKED, UNITS, classes, special_cases
from modelwright.text.tables import PLANES

if TYPE_CHECKING:
    from modelwright.text import Array

TOGETHER, SPACED, APART = np.uint8(0), np.uint8(1), np.uint8(2)
"""What is in front of a run or a word: nothing, one space, more white space."""
LONGEST = 16
"""Characters of the longest listed word, at most."""
MOST_PIECES = 15
"""Pieces of one, at most."""
BEGINS, WHOLE = 1, 2


class Words(NamedTuple):
    """What the splitter knows."""

    flags_C: Array
    sizes_F: Array
    """[256] int64: of listed words by the last eight bits of their first character, a bit for each length."""
    key_K: Array
    """uint64: hashes of listed words and of units, 0 where there is none."""
    value_K: Array
    """int64: LISTED and where its second and third part begin, UNIT."""
    piece_K: Array
    """uint64: hashes of the pieces that rules alone make of a listed word, one after the other."""
    pieces_K: Array
    """int64: BEGINS and WHOLE"""


@bare
def runs_of(data_B, begin, end, flags_C, code_C, hash_C, begin_R, gap_R, marked_R):  # type: ignore[no-untyped-def]
    """(characters, runs): all that is no white space, and where the runs between begin, the end of the last included."""
    chars, runs = 0, 0
    gap = TOGETHER
    spaced, open_ = False, False
    at = begin
    while at < end:
        code, size = decode(data_B, at)
        flags = flags_C[code] if code < PLANES else np.uint32(0)
        if flags & BLANK:
            gap = SPACED if code == 0x20 and not spaced and chars else APART
            spaced, open_ = True, False
        else:
            if not open_:
                begin_R[runs], gap_R[runs], marked_R[runs] = chars, gap, False
                runs += 1
                gap, spaced, open_ = TOGETHER, False, True
            code_C[chars] = code
            if flags & MARKED:
                marked_R[runs - 1] = True
            add(hash_C, chars, code)
            chars += 1
        at += size
    begin_R[runs] = chars
    return chars, runs


@bare
def _listed(code_C, low, high, hash_C, power_C, sizes_F, key_K, value_K):  # type: ignore[no-untyped-def]
    """What the list says of these characters; 0: nothing."""
    value = 0
    if 0 < high - low <= LONGEST and sizes_F[code_C[low] & 0xFF] >> (high - low) & 1:
        value = lookup(hashed(hash_C, power_C, low, high), key_K, value_K) & ~UNIT
    return value


@bare
def _parts(low, high, value, end_T, count):  # type: ignore[no-untyped-def]
    """The parts of a listed word."""
    for cut in ((value & 0xFF), (value >> 8) & 0xFF):
        if cut:
            end_T[count] = low + cut
            count += 1
    end_T[count] = high
    return count + 1


@bare
def _run(code_C, low, high, hash_C, power_C, flags_C, sizes_F, key_K, value_K, end_T, count, back_T):  # type: ignore[no-untyped-def]
    """The words of one run; returns how many there are now. `back_T`: room."""
    behind, last = 0, -1
    while low < high and high - low != last:
        if _listed(code_C, low, high, hash_C, power_C, sizes_F, key_K, value_K):
            break
        last = high - low
        before = prefix(code_C, low, high, flags_C)
        if before and _listed(code_C, low + before, high, hash_C, power_C, sizes_F, key_K, value_K):
            end_T[count] = low = low + before
            count += 1
            break
        after = suffix(code_C, low + before, high, hash_C, power_C, flags_C, key_K, value_K)
        if after and _listed(code_C, low, high - after, hash_C, power_C, sizes_F, key_K, value_K):
            back_T[behind] = high
            behind, high = behind + 1, high - after
            break
        if before:
            end_T[count] = low = low + before
            count += 1
        if after:
            back_T[behind] = high
            behind, high = behind + 1, high - after
    if low < high:
        value = _listed(code_C, low, high, hash_C, power_C, sizes_F, key_K, value_K)
        if value:
            count = _parts(low, high, value, end_T, count)
        elif address(code_C, low, high, flags_C):
            end_T[count] = high
            count += 1
        else:
            count = inside(code_C, low, high, flags_C, end_T, count)
    for i in range(behind - 1, -1, -1):
        end_T[count] = back_T[i]
        count += 1
    return count


@njit(nogil=True, cache=True)
def _rejoined(code_C, count, hash_C, power_C, words, end_T, gap_T, found_T, made_T):  # type: ignore[no-untyped-def]
    """Words that are the pieces of a listed one, one behind the other, become its parts: the longest first, of equals the first.
    Returns how many words there are now; they lie in `made_T`."""
    piece_K, pieces_K = words.piece_K, words.pieces_K
    most = 0
    for i in range(count):
        found = 0
        key, low, j = np.uint64(0), end_T[i - 1] if i else 0, i
        while j < min(count, i + MOST_PIECES) and (j == i or gap_T[j] != APART):
            key = finish((key * MULTIPLY) ^ hashed(hash_C, power_C, low, end_T[j]))
            value = lookup(key, piece_K, pieces_K)
            low, j = end_T[j], j + 1
            if value & WHOLE:
                found |= 1 << (j - i)
            if not value & BEGINS:
                break
        found_T[i] = found
        most |= found
    if not most:
        made_T[:count] = end_T[:count]
        return count
    taken = np.zeros(count, np.bool_)
    length_T = np.zeros(count, np.int64)
    for size in range(MOST_PIECES, 0, -1):
        for i in range(count):
            if found_T[i] >> size & 1:
                if not taken[i] and not taken[i + size - 1]:
                    length_T[i] = size
                taken[i : i + size] = True
    made, i = 0, 0
    while i < count:
        low, high = end_T[i - 1] if i else 0, end_T[i + max(length_T[i], 1) - 1]
        together = True
        for j in range(i + 1, i + length_T[i]):
            together = together and gap_T[j] == TOGETHER
        value = 0
        if length_T[i] and together:
            value = _listed(code_C, low, high, hash_C, power_C, words.sizes_F, words.key_K, words.value_K)
        if value:
            made = _parts(low, high, value, made_T, made)
            i += length_T[i]
        else:
            for j in range(i, i + max(length_T[i], 1)):
                made_T[made] = end_T[j]
                made += 1
            i += max(length_T[i], 1)
    return made


@njit(nogil=True, cache=True)
def split(code_C, hash_C, power_C, begin_R, gap_R, marked_R, runs, words, end_T, gap_T, room_T, made_T):  # type: ignore[no-untyped-def]
    """How many words there are; where each ends lies in `made_T`."""
    flags_C, sizes_F, key_K, value_K = words.flags_C, words.sizes_F, words.key_K, words.value_K
    count, marked = 0, False
    for r in range(runs):
        first, low, high = count, begin_R[r], begin_R[r + 1]
        if marked_R[r]:
            count = _run(code_C, low, high, hash_C, power_C, flags_C, sizes_F, key_K, value_K, end_T, count, room_T)
            marked = True
        else:
            count = _parts(low, high, _listed(code_C, low, high, hash_C, power_C, sizes_F, key_K, value_K), end_T, count)
        gap_T[first:count] = TOGETHER
        gap_T[first] = gap_R[r]
    if marked:
        return _rejoined(code_C, count, hash_C, power_C, words, end_T, gap_T, room_T, made_T)
    made_T[:count] = end_T[:count]
    return count


# --- one text, and the list --------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _pieces(data_B, words):  # type: ignore[no-untyped-def]
    """(hash of each word, where each ends, counted in characters that are no white space)."""
    room = len(data_B) + 2
    code_C, hash_C, power_C = np.empty(room, np.int64), np.zeros(room, np.uint64), np.empty(room, np.uint64)
    begin_R, gap_R, marked_R = np.empty(room, np.int64), np.empty(room, np.uint8), np.empty(room, np.bool_)
    end_T, room_T, made_T = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    powers(room - 1, power_C)
    _, runs = runs_of(data_B, 0, len(data_B), words.flags_C, code_C, hash_C, begin_R, gap_R, marked_R)
    gap_T = np.empty(room, np.uint8)
    count = split(code_C, hash_C, power_C, begin_R, gap_R, marked_R, runs, words, end_T, gap_T, room_T, made_T)
    hash_T = np.empty(count, np.uint64)
    for i in range(count):
        hash_T[i] = hashed(hash_C, power_C, made_T[i - 1] if i else 0, made_T[i])
    return hash_T, made_T[:count]


def _bytes(text: str) -> Array:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def word_hash(word: str) -> int:
    """As `hashed` has it."""
    return int(_whole(_bytes(word)))


@cache
def knowledge() -> Words:
    """The list as tables. What rules alone make of its words is found by the splitter itself, before it has the list."""
    cases = special_cases()
    listed, pieces = dict.fromkeys(map(word_hash, UNITS), UNIT), dict[int, int]()
    rules = Words(classes(), np.zeros(256, np.int64), *table(listed), *table(pieces))
    sizes_F = np.zeros(256, np.int64)
    for word, parts in cases.items():
        assert len(word) <= LONGEST and len(parts) <= 3, word
        sizes_F[ord(word[0]) & 0xFF] |= 1 << len(word)
        cuts = [sum(map(len, parts[: i + 1])) for i in range(len(parts) - 1)]
        key = word_hash(word)
        listed[key] = listed.get(key, 0) | LISTED | sum(cut << 8 * i for i, cut in enumerate(cuts))
        hash_T, _ = _pieces(_bytes(word), rules)
        assert len(hash_T) < MOST_PIECES, word
        for size, key in enumerate(_keys(hash_T).tolist(), 1):
            if len(hash_T) > 1:  # else no rule divides it: it is found whole at once
                pieces[key] = pieces.get(key, 0) | (WHOLE if size == len(hash_T) else BEGINS)
    return Words(classes(), sizes_F, *table(listed), *table(pieces))


@njit(cache=True)
def _whole(data_B):  # type: ignore[no-untyped-def]
    hash_C, at, count = np.zeros(len(data_B) + 1, np.uint64), 0, 0
    while at < len(data_B):
        code, size = decode(data_B, at)
        add(hash_C, count, code)
        at, count = at + size, count + 1
    return finish(hash_C[count])


@njit(cache=True)
def _keys(hash_T):  # type: ignore[no-untyped-def]
    key_T, key = np.empty(len(hash_T), np.uint64), np.uint64(0)
    for i in range(len(hash_T)):
        key = finish((key * MULTIPLY) ^ hash_T[i])
        key_T[i] = key
    return key_T


def words_of(text: str) -> list[str]:
    """The words of a text."""
    bare = "".join(text.split())
    ends = _pieces(_bytes(text), knowledge())[1].tolist()
    return [bare[low:high] for low, high in zip([0, *ends], ends, strict=False)]
