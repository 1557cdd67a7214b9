"""Byte-level byte-pair encoding: texts to the ids of a tokenizer.json's model, merge by merge as its list says.

Sources: Sennrich et al. 2016, arXiv:1508.07909 (merges in their order); Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners", section 2.2 (bytes, and how text is cut into pieces before). Frequent pieces are looked up whole: what a
piece becomes depends on it alone.
"""

# Shape suffixes: D documents, B bytes, C code points, T tokens, P parts of a piece, N nodes of a tree, R merges, M slots of their
# table, K slots of known pieces.

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from modelwright.text import Texts
from modelwright.text._repeats import slots_for
from modelwright.text._scan import BASIS, MULTIPLY, decode, finish, stir

if TYPE_CHECKING:
    from modelwright.text import Array

OTHER, LETTER, NUMBER, SPACE, ALONE = (np.uint8(kind) for kind in range(5))
"""What a code point is when text is cut. ALONE: a piece by itself, cut out before all else."""
BLOCK = 256
"""Code points whose kinds are asked for together."""
NO_MARK, SPELT = -1, -2
"""Of a node: no mark ends here; one does, and stays text."""
SLOTS, LONGEST_KNOWN = 1 << 17, 64
"""Places for known pieces, half of them used, 4 MiB: more no longer fit the processor's cache. Bytes of the longest one."""
NEVER = 2**31 - 1
"""Rank of two tokens that do not merge."""
_BLANK, _QUOTE, _LF, _CR, _S, _T, _M, _D, _R, _E, _V, _L = b" '\n\rstmdrevl"
_LONG_S = tuple("ſ".encode())
"""Of which S is the capital."""


@njit(cache=True)
def _blocks(data_B, seen_C):  # type: ignore[no-untyped-def]
    """Mark the blocks whose code points occur."""
    at = 0
    while at < len(data_B):
        if data_B[at] < 0x80:
            at += 1
            continue
        code, size = decode(data_B, at)
        seen_C[code // BLOCK] = True
        at += size


@njit(cache=True)
def _kind(data_B, at, end, kind_C):  # type: ignore[no-untyped-def]
    """(kind of the character here, its bytes); behind the end it is ALONE, since both end what is cut."""
    if at >= end:
        return ALONE, 0
    if data_B[at] < 0x80:
        return kind_C[data_B[at]], 1
    code, size = decode(data_B, at)
    return kind_C[code], size


@njit(cache=True)
def _run_end(data_B, at, end, kind_C, kind):  # type: ignore[no-untyped-def]
    """Behind the characters of this kind that begin here."""
    while at < end:
        if data_B[at] < 0x80:
            if kind_C[data_B[at]] != kind:
                return at
            at += 1
        else:
            code, size = decode(data_B, at)
            if kind_C[code] != kind:
                return at
            at += size
    return at


@njit(cache=True)
def _contraction(data_B, at, end, any_case):  # type: ignore[no-untyped-def]
    """Bytes of 's, 't, 'm, 'd, 're, 've or 'll, where a quote stands here; 0: none of them."""
    case = np.uint8(0x20) if any_case else np.uint8(0)  # the bit in which small letters differ from capitals
    first = data_B[at + 1] | case if at + 1 < end else np.uint8(0)
    second = data_B[at + 2] | case if at + 2 < end else np.uint8(0)
    if first in (_S, _T, _M, _D):
        return 2
    if any_case and at + 2 < end and data_B[at + 1] == _LONG_S[0] and data_B[at + 2] == _LONG_S[1]:
        return 3
    return 3 if (second == _E and first in (_R, _V)) or (second == _L and first == _L) else 0


@njit(cache=True)
def _piece_end(data_B, at, end, kind_C):  # type: ignore[no-untyped-def]
    """Where the piece that begins here ends: a contraction, a run of one kind with a blank before it, or white space, whose last
    character goes with what follows."""
    kind, size = _kind(data_B, at, end, kind_C)
    if kind == OTHER and data_B[at] == _QUOTE:
        short = _contraction(data_B, at, end, False)
        if short:
            return at + short
    begin, at = at, at + size
    if kind == ALONE:
        return at
    if kind == SPACE:
        after, more = _kind(data_B, at, end, kind_C)
        if after in (SPACE, ALONE) or data_B[begin] != _BLANK:
            last = at
            while after == SPACE:
                last, at = at, at + more
                after, more = _kind(data_B, at, end, kind_C)
            return last if after != ALONE else at
        kind, at = after, at + more
    return _run_end(data_B, at, end, kind_C, kind)


@njit(cache=True)
def _newer_end(data_B, at, end, kind_C, numbers):  # type: ignore[no-untyped-def]
    """`_piece_end` as GPT-4 cuts: contractions in any case, letters with any one sign before them, so many digits, signs with the
    ends of lines behind them, white space up to its last end of a line."""
    kind, size = _kind(data_B, at, end, kind_C)
    if data_B[at] == _QUOTE:
        short = _contraction(data_B, at, end, True)
        if short:
            return at + short
    begin, at = at, at + size
    if kind == LETTER:
        return _run_end(data_B, at, end, kind_C, LETTER)
    if kind == NUMBER:
        while numbers > 1 and at < end:
            kind, size = _kind(data_B, at, end, kind_C)
            if kind != NUMBER:
                break
            at += size
            numbers -= 1
        return at
    after, size = _kind(data_B, at, end, kind_C)
    if after == LETTER and not _is_line_end(data_B[begin]):
        return _run_end(data_B, at, end, kind_C, LETTER)
    if kind == OTHER or (after == OTHER and data_B[begin] == _BLANK):
        at = _run_end(data_B, at, end, kind_C, OTHER)
        while at < end and _is_line_end(data_B[at]):
            at += 1
        return at
    last, line_end = begin, at if _is_line_end(data_B[begin]) else begin
    while after == SPACE:
        last, at = at, at + size
        if _is_line_end(data_B[last]):
            line_end = at
        after, size = _kind(data_B, at, end, kind_C)
    if line_end > begin:
        return line_end
    return at if at == end or last == begin else last


@njit(cache=True)
def _is_line_end(byte):  # type: ignore[no-untyped-def]
    return byte in (_LF, _CR)


@njit(cache=True)
def _slot(left, right, pair_M, rank_M):  # type: ignore[no-untyped-def]
    """Of this pair in the table of merges, or where it would stand."""
    mask = np.uint64(len(pair_M) - 1)
    pair = (np.int64(left) << 32) | np.int64(right)
    hash_ = np.uint64(pair) * MULTIPLY
    slot = (hash_ >> np.uint64(32)) & mask
    while rank_M[slot] != NEVER and pair_M[slot] != pair:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True)
def _fill_merges(merge_RX, pair_M, rank_M):  # type: ignore[no-untyped-def]
    """Every merge into the table; of equal pairs the last one counts."""
    for rank in range(len(merge_RX)):
        left, right = merge_RX[rank, 0], merge_RX[rank, 1]
        slot = _slot(left, right, pair_M, rank_M)
        pair_M[slot] = (left << 32) | right
        rank_M[slot] = rank


@njit(cache=True)
def _short(data_B, begin, end, byte_256, pair_M, rank_M, made_R, rank_P, id_T, t):  # type: ignore[no-untyped-def]
    """Write the tokens of a short piece: of all pairs side by side the one that merges first, from the left, until there is none.
    Returns where the next token goes."""
    size = end - begin
    for i in range(size):
        id_T[t + i] = byte_256[data_B[begin + i]]
    for i in range(size - 1):
        rank_P[i] = rank_M[_slot(id_T[t + i], id_T[t + i + 1], pair_M, rank_M)]
    while size > 1:
        at, least = 0, rank_P[0]
        for i in range(1, size - 1):
            if rank_P[i] < least:
                at, least = i, rank_P[i]
        if least == NEVER:
            break
        id_T[t + at] = made_R[least]
        size -= 1
        for i in range(at + 1, size):
            id_T[t + i] = id_T[t + i + 1]
        for i in range(at, size - 1):
            rank_P[i] = rank_P[i + 1]
        if at + 1 < size:
            rank_P[at] = rank_M[_slot(id_T[t + at], id_T[t + at + 1], pair_M, rank_M)]
        if at:
            rank_P[at - 1] = rank_M[_slot(id_T[t + at - 1], id_T[t + at], pair_M, rank_M)]
    return t + size


@njit(cache=True)
def _long(data_B, begin, end, byte_256, pair_M, rank_M, made_R, id_T, t):  # type: ignore[no-untyped-def]
    """The same for a long piece: pairs wait in a heap, by rank and place."""
    size = end - begin
    part_P, next_P, before_P = np.empty(size, np.int64), np.arange(1, size + 1), np.arange(-1, size - 1)
    for p in range(size):
        part_P[p] = byte_256[data_B[begin + p]]
    heap = [np.int64(NEVER) << 32]
    for p in range(size - 1):
        heap.append((np.int64(rank_M[_slot(part_P[p], part_P[p + 1], pair_M, rank_M)]) << 32) | np.int64(p))
    heapq.heapify(heap)
    while heap[0] >> 32 != NEVER:
        first = heapq.heappop(heap)
        i = np.int64(first & 0xFFFFFFFF)
        after = next_P[i]
        if part_P[i] < 0 or after >= size or rank_M[_slot(part_P[i], part_P[after], pair_M, rank_M)] != first >> 32:
            continue  # one of the two has become another
        part_P[i], part_P[after] = made_R[first >> 32], -1
        next_P[i] = next_P[after]
        if next_P[i] < size:
            before_P[next_P[i]] = i
            rank = rank_M[_slot(part_P[i], part_P[next_P[i]], pair_M, rank_M)]
            heapq.heappush(heap, (np.int64(rank) << 32) | np.int64(i))
        if i:
            rank = rank_M[_slot(part_P[before_P[i]], part_P[i], pair_M, rank_M)]
            heapq.heappush(heap, (np.int64(rank) << 32) | np.int64(before_P[i]))
    at = np.int64(0)
    while at < size:
        id_T[t] = part_P[at]
        t += 1
        at = next_P[at]
    return t


@njit(cache=True)
def _mark(data_B, at, end, tree_N, mark_N):  # type: ignore[no-untyped-def]
    """(begin, end, id) of the next mark: the leftmost and of those the longest; behind the text where there is none."""
    while at < end:
        node, i, stop, found = 0, at, at, NO_MARK
        while i < end:
            node = tree_N[node, data_B[i]]
            if not node:
                break
            i += 1
            if mark_N[node] != NO_MARK:
                stop, found = i, mark_N[node]
        if found >= 0:
            return at, stop, found
        at = max(stop, at + 1)
    return end, end, NO_MARK


@njit(cache=True)
def _hash(data_B, begin, end):  # type: ignore[no-untyped-def]
    """Of these bytes; never 0."""
    hash_ = BASIS
    for i in range(begin, end):
        hash_ = stir(hash_, data_B[i])
    return finish(hash_) | np.uint64(1)


@njit(cache=True)
def _place(data_B, begin, end, hash_, known_KX, key_B):  # type: ignore[no-untyped-def]
    """Slot of a piece in the table of known ones, or where it would stand."""
    mask = np.uint64(len(known_KX) - 1)
    slot = (hash_ >> np.uint64(20)) & mask
    while known_KX[slot, 0] != 0:
        if known_KX[slot, 0] == np.int64(hash_) and known_KX[slot, 3] == end - begin:
            key, i = known_KX[slot, 1] - begin, begin
            while i < end and key_B[key + i] == data_B[i]:
                i += 1
            if i == end:
                return slot
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True)
def _keep(data_B, begin, end, hash_, id_T, known_KX, key_B, known_T, used):  # type: ignore[no-untyped-def]
    """Note the tokens of a piece. Where there is no room all is forgotten; what is frequent comes again at once."""
    size, count = end - begin, len(id_T)
    if 2 * used[0] >= len(known_KX) or used[1] + size > len(key_B) or used[2] + 1 + count > len(known_T):
        known_KX[:, 0] = 0
        used[:] = 0
    slot = _place(data_B, begin, end, hash_, known_KX, key_B)
    known_KX[slot, 0], known_KX[slot, 1], known_KX[slot, 2], known_KX[slot, 3] = np.int64(hash_), used[1], used[2], size
    key_B[used[1] : used[1] + size] = data_B[begin:end]
    known_T[used[2]] = count
    known_T[used[2] + 1 : used[2] + 1 + count] = id_T
    used += np.array([1, size, 1 + count])


@njit(cache=True)
def _encode(  # type: ignore[no-untyped-def]
    data_B, start_D, numbers, kind_C, tree_N, mark_N, byte_256, pair_M, rank_M, made_R, whole, known, used, id_T, start_T
):
    """Write the tokens of every document and where they begin. Holds Python's lock, for what is known is shared."""
    rank_P = np.empty(LONGEST_KNOWN, np.int32)
    (whole_KX, whole_B, whole_T), (known_KX, key_B, known_T) = whole, known
    t = 0
    for d in range(len(start_D) - 1):
        start_T[d] = t
        at, end = start_D[d], start_D[d + 1]
        while at < end:
            stop, after, mark = _mark(data_B, at, end, tree_N, mark_N)
            while at < stop:
                begin = at
                at = _newer_end(data_B, at, stop, kind_C, numbers) if numbers else _piece_end(data_B, at, stop, kind_C)
                if at - begin == 1:
                    id_T[t] = byte_256[data_B[begin]]
                    t += 1
                    continue
                hash_, short = _hash(data_B, begin, at), at - begin <= LONGEST_KNOWN
                if short:
                    slot = _place(data_B, begin, at, hash_, known_KX, key_B)
                    if known_KX[slot, 0] != 0:
                        place = known_KX[slot, 2]
                        for i in range(place + 1, place + 1 + known_T[place]):
                            id_T[t] = known_T[i]
                            t += 1
                        continue
                first = t
                slot = _place(data_B, begin, at, hash_, whole_KX, whole_B)
                if whole_KX[slot, 0] != 0:
                    id_T[t] = whole_T[whole_KX[slot, 2] + 1]
                    t += 1
                elif short:
                    t = _short(data_B, begin, at, byte_256, pair_M, rank_M, made_R, rank_P, id_T, t)
                else:
                    t = _long(data_B, begin, at, byte_256, pair_M, rank_M, made_R, id_T, t)
                if short:
                    _keep(data_B, begin, at, hash_, id_T[first:t], known_KX, key_B, known_T, used)
            if mark >= 0:
                id_T[t] = mark
                t += 1
            at = after
    start_T[len(start_D) - 1] = t


@njit(cache=True)
def _keep_all(data_B, start_D, id_D, known_KX, key_B, known_T, used):  # type: ignore[no-untyped-def]
    for d in range(len(id_D)):
        hash_ = _hash(data_B, start_D[d], start_D[d + 1])
        _keep(data_B, start_D[d], start_D[d + 1], hash_, id_D[d : d + 1], known_KX, key_B, known_T, used)


class Encoder:
    """Turns texts into ids."""

    def __init__(
        self,
        byte_ids: Sequence[int],
        merges: Sequence[tuple[int, int, int]],
        marks: Mapping[str, int],
        kinds: Callable[[str], Array],
        numbers: int = 0,
        whole: Mapping[bytes, int] | None = None,
    ) -> None:
        """`byte_ids`: of the 256 bytes. `merges`: (left, right, what they become), the first first; of two of the same pair the
        last one counts. `marks`: what is found before text is cut; SPELT: is found and stays text. `kinds`: of each of these
        characters one of the above, asked once of every block that occurs. `numbers`: 0: text is cut as GPT-2 does, else as GPT-4
        does, with so many digits to a piece. `whole`: pieces that are not merged, but tokens as they are."""
        self._kinds = kinds
        self._kind_C, self._asked_C = np.full(0x110000, OTHER), np.zeros(0x110000 // BLOCK, bool)
        self._ask(np.arange(1))
        slots = slots_for(len(merges))
        pair_M, rank_M = np.empty(slots, np.int64), np.full(slots, NEVER, np.int32)
        merge_RX = np.array(merges, np.int64).reshape(-1, 3)
        _fill_merges(merge_RX, pair_M, rank_M)
        made_R = merge_RX[:, 2].astype(np.int32)
        self._model = numbers, self._kind_C, *_tree(marks), np.array(byte_ids, np.int32), pair_M, rank_M, made_R
        whole = whole or {}
        keys, starts = b"".join(whole), np.cumsum([0, *map(len, whole)])
        self._whole = _room(slots_for(len(whole)), len(keys), 2 * len(whole))
        ids_D = np.fromiter(whole.values(), np.int32, len(whole))
        _keep_all(np.frombuffer(keys, np.uint8), starts, ids_D, *self._whole, np.zeros(3, np.int64))
        self._known, self._used = _room(SLOTS, 8 * SLOTS, 2 * SLOTS), np.zeros(3, np.int64)

    def __call__(self, texts: Sequence[str]) -> list[Array]:
        """[T] int32 of each text. UnicodeEncodeError where half of a surrogate pair stands alone, which no tokenizer reads."""
        data_B, start_D = Texts.of(texts)
        if not all(map(str.isascii, texts)):
            seen_C = np.zeros_like(self._asked_C)
            _blocks(data_B, seen_C)
            if seen_C[0xD800 // BLOCK : 0xE000 // BLOCK].any():
                "".join(texts).encode()
            self._ask(np.flatnonzero(seen_C & ~self._asked_C))
        id_T, start_T = np.empty(len(data_B), np.int32), np.empty(len(start_D), np.int64)
        _encode(data_B, start_D, *self._model, self._whole, self._known, self._used, id_T, start_T)
        starts = start_T.tolist()
        return [id_T[begin:end] for begin, end in pairwise(starts)]

    def _ask(self, blocks: Array) -> None:
        codes = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
        if len(codes):
            self._kind_C[codes] = self._kinds("".join(map(chr, codes.tolist())))
            self._asked_C[blocks] = True


def _room(slots: int, key_bytes: int, tokens: int) -> tuple[Array, Array, Array]:
    """For known pieces: of each a hash, where its bytes and its tokens begin, and its length."""
    return np.zeros((slots, 4), np.int64), np.empty(key_bytes, np.uint8), np.empty(tokens, np.int32)


def _tree(marks: Mapping[str, int]) -> tuple[Array, Array]:
    """A tree of the marks' bytes: [N, 256] the next node, 0 for none, and [N] the mark that ends at a node."""
    children: list[dict[int, int]] = [{}]
    ends = [NO_MARK]
    for mark, number in marks.items():
        node = 0
        for byte in mark.encode():
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(NO_MARK)
            node = children[node][byte]
        ends[node] = number
    tree_N = np.zeros((len(children), 256), np.int32)
    for node, after in enumerate(children):
        tree_N[node, list(after)] = list(after.values())
    return tree_N, np.array(ends, np.int32)
