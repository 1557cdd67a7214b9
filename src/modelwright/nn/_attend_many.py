"""Attention of packed documents in training, forward and backward, as one kernel for all documents of a row.

Blocks of scores stay in the cache and are made again in the backward pass (Dao et al. 2022, "FlashAttention", arXiv:2205.14135,
algorithms 1 and 4; Dao 2023, arXiv:2307.08691), nothing is computed where no query looks, and query heads that share a key head
read it once. Scores are kept keys by queries, so that a softmax goes down a column and all queries of a block are one vector.
Products run in float32, or in bfloat16 with float32 sums where the processor has them in hardware (AVX512-BF16); softmax and
gradients are summed in float32. torch's own kernel gets to a seventh of a processor's bfloat16 products, and to a third of its
float32 ones, with documents of chat length.
"""

# Shape suffixes: T tokens of all documents, H query heads, K key/value heads, C head width; in kernels L tokens of a document,
# N keys of a block, M queries of a block, U units.

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from modelwright.nn._gemv import LANES, claim, launch, team_size
from modelwright.nn._numbers import (
    LOOSE,
    float_bits,
    floats,
    halves,
    kernel,
    longs,
    narrow,
    numba,
    real,
    rounded,
    types,
    wholes,
    widen,
)
from modelwright.nn._small import exp
from modelwright.nn._tiles import HAS_HALF, multiply, pair, turn_over

if LANES != 16:
    raise ImportError("this kernel is for processors with AVX-512")
_QUERIES, _KEYS = 64, 96
"""Of a block."""
_NOWHERE, _NO_SCORE = np.float32(-1e30), np.float32(-2e30)
"""Largest score before there is one, and what a query gives a key that it does not see."""
_PLACES = (
    *("claimed", "slots", "documents", "query", "key", "value", "out", "total", "grad", "grad_query", "grad_key", "grad_value"),
    *("scratch", "spans", "heads", "kv_heads", "width", "back", "ahead", "scaling", "half", "slot_bytes"),
)
(_CLAIMED, _SLOTS, _DOCUMENTS, _QUERY, _KEY, _VALUE, _OUT, _TOTAL, _GRAD, _GRAD_QUERY, _GRAD_KEY) = range(11)
(_GRAD_VALUE, _SCRATCH, _SPANS, _HEADS, _KV_HEADS, _WIDTH, _BACK, _AHEAD, _SCALING, _HALF, _SLOT_BYTES) = range(11, 22)
_Job = ctypes.c_int64 * len(_PLACES)


@kernel
def _hidden(score, first_key, keys, first_query, back, ahead):  # type: ignore[no-untyped-def]
    """Scores of what queries do not see, where any of the block's are."""
    if first_key + keys - 1 <= first_query + ahead and first_key > first_query + _QUERIES - 1 - back:
        return
    for key in range(keys):
        score_M = numba.carray(floats(score + key * _QUERIES * 4), _QUERIES)
        first, last = first_key + key - ahead - first_query, first_key + key + back - first_query
        for query in range(_QUERIES):
            score_M[query] = score_M[query] if first <= query < last else _NO_SCORE


@kernel
def _softened(score, prob, keys, most_M, sum_M, factor_M, scaling, half):  # type: ignore[no-untyped-def]
    """One block more of a softmax down the columns: probabilities before the division, as the right side of a product; how much
    less everything before weighs, goes into `factor`."""
    for query in range(_QUERIES):
        factor_M[query] = most_M[query]
    for key in range(keys):
        score_M = numba.carray(floats(score + key * _QUERIES * 4), _QUERIES)
        for query in range(_QUERIES):
            most_M[query] = score_M[query] if score_M[query] > most_M[query] else most_M[query]
    for query in range(_QUERIES):
        factor_M[query] = exp((factor_M[query] - most_M[query]) * scaling)
        sum_M[query] *= factor_M[query]
    for key in range(0, keys, 2 if half else 1):
        score_M = numba.carray(floats(score + key * _QUERIES * 4), _QUERIES)
        if not half:
            prob_M = numba.carray(floats(prob + key * _QUERIES * 4), _QUERIES)
            for query in range(_QUERIES):
                prob_M[query] = exp((score_M[query] - most_M[query]) * scaling)
                sum_M[query] += prob_M[query]
            continue
        unit_M = numba.carray(wholes(prob + key // 2 * _QUERIES * 4), _QUERIES)
        other_M = numba.carray(floats(score + (key + 1) * _QUERIES * 4), _QUERIES)
        if key + 1 == keys:
            for query in range(_QUERIES):
                other_M[query] = _NO_SCORE
        for query in range(_QUERIES):
            one = exp((score_M[query] - most_M[query]) * scaling)
            two = exp((other_M[query] - most_M[query]) * scaling)
            sum_M[query] += one + two
            unit_M[query] = (rounded(one) >> np.uint32(16)) | (rounded(two) & np.uint32(0xFFFF0000))


@kernel
def _written(source_CM, factor_M, out, row_bytes, queries, width, half):  # type: ignore[no-untyped-def]
    """Columns times their factors, each as a row of the result."""
    for query in range(queries):
        if half:
            half_C = numba.carray(halves(out + query * row_bytes), width)
            for at in range(width):
                half_C[at] = np.uint16(rounded(source_CM[at, query] * factor_M[query]) >> np.uint32(16))
        else:
            out_C = numba.carray(floats(out + query * row_bytes), width)
            for at in range(width):
                out_C[at] = source_CM[at, query] * factor_M[query]


@kernel
def _forward_head(job, scratch, start, length, head):  # type: ignore[no-untyped-def]
    """One document and one query head."""
    heads, kv_heads, width, half = job[_HEADS], job[_KV_HEADS], job[_WIDTH], job[_HALF]
    size, per = (2, 2) if half else (4, 1)
    scaling, back, ahead = np.float32(real(job[_SCALING])), job[_BACK], job[_AHEAD]
    row, kv_row, units, pairs = heads * width * size, kv_heads * width * size, width // per, (length + per - 1) // per
    kv_head = head // (heads // kv_heads)
    query = job[_QUERY] + start * row + head * width * size
    shift = start * kv_row + kv_head * width * size
    key, value = job[_KEY] + shift, job[_VALUE] + shift
    out = job[_OUT] + start * row + head * width * size
    total_T = numba.carray(floats(job[_TOTAL] + (start * heads + head) * 4), length * heads)
    values, paired = scratch, scratch + width * pairs * 4
    turned = paired + width * pairs * 4
    score = turned + units * _QUERIES * 4
    prob = score + (_KEYS + 1) * _QUERIES * 4
    summed = prob + _KEYS * _QUERIES * 4
    stats_3M = numba.carray(floats(summed + width * _QUERIES * 4), (3, _QUERIES))
    most_M, sum_M, factor_M = stats_3M[0], stats_3M[1], stats_3M[2]
    summed_CM = numba.carray(floats(summed), (width, _QUERIES))
    pair(value, kv_row, length, width, paired, half)
    turn_over(paired, width * 4, pairs, width, values, pairs * 4, pairs)
    for first in range(0, length, _QUERIES):
        queries = min(_QUERIES, length - first)
        turn_over(query + first * row, row, queries, units, turned, _QUERIES * 4, _QUERIES)
        most_M[:] = _NOWHERE
        sum_M[:] = 0.0
        begin, end = max(0, first - back + 1) // 2 * 2, min(length, first + queries + ahead)
        for begun in range(begin, end, _KEYS):
            keys = min(_KEYS, end - begun)
            multiply(key + begun * kv_row, kv_row, keys, turned, _QUERIES * 4, score, _QUERIES * 4, _QUERIES, units, 0, half)
            _hidden(score, begun, keys, first, back, ahead)
            _softened(score, prob, keys, most_M, sum_M, factor_M, scaling, half)
            if begun > begin:
                for at in range(width):
                    for place in range(_QUERIES):
                        summed_CM[at, place] *= factor_M[place]
            left, count = values + begun // per * 4, (keys + per - 1) // per
            onto = 1 if begun > begin else 0
            multiply(left, pairs * 4, width, prob, _QUERIES * 4, summed, _QUERIES * 4, _QUERIES, count, onto, half)
        for place in range(queries):
            total_T[(first + place) * heads] = most_M[place] * scaling + np.log(sum_M[place])
        for place in range(_QUERIES):
            factor_M[place] = np.float32(1.0) / sum_M[place]
        _written(summed_CM, factor_M, out + first * row, row, queries, width, half)


@kernel
def _slopes(score, slope, prob, paired, keys, total_M, mean_M, scaling, half):  # type: ignore[no-untyped-def]
    """Of a block: probabilities into `prob` and the scores' gradients, which were those of the probabilities, into `slope`, both
    as left sides; the gradients as a right side into `paired`, too (with float32 that is the same)."""
    for key in range(keys):
        score_M = numba.carray(floats(score + key * _QUERIES * 4), _QUERIES)
        slope_M = numba.carray(floats(slope + key * _QUERIES * 4), _QUERIES)
        for query in range(_QUERIES):
            score_M[query] = exp(score_M[query] * scaling - total_M[query])
            slope_M[query] = score_M[query] * (slope_M[query] - mean_M[query]) * scaling
    if not half:
        return
    for key in range(0, keys, 2):
        unit_M = numba.carray(wholes(paired + key // 2 * _QUERIES * 4), _QUERIES)
        shown = np.uint32(0xFFFF0000) if key + 1 < keys else np.uint32(0)
        one_M = numba.carray(floats(slope + key * _QUERIES * 4), _QUERIES)
        two_M = numba.carray(floats(slope + min(key + 1, keys - 1) * _QUERIES * 4), _QUERIES)
        for query in range(_QUERIES):
            unit_M[query] = (rounded(one_M[query]) >> np.uint32(16)) | (rounded(two_M[query]) & shown)
    for key in range(keys):
        score_M = numba.carray(floats(score + key * _QUERIES * 4), _QUERIES)
        slope_M = numba.carray(floats(slope + key * _QUERIES * 4), _QUERIES)
        prob_M = numba.carray(halves(prob + key * _QUERIES * 4), _QUERIES)
        half_M = numba.carray(halves(slope + key * _QUERIES * 4), _QUERIES)
        for query in range(_QUERIES):
            prob_M[query] = np.uint16(rounded(score_M[query]) >> np.uint32(16))
        for query in range(_QUERIES):
            half_M[query] = np.uint16(rounded(slope_M[query]) >> np.uint32(16))


@kernel
def _means(grad, out, row_bytes, tokens, width, half, rows_2C, mean_M):  # type: ignore[no-untyped-def]
    """Of the probabilities' gradients, by the probabilities: what the result's gradient and the result have in common."""
    mean_M[:] = 0.0
    for token in range(tokens):
        widen(grad + token * row_bytes, width, half, rows_2C[0])
        widen(out + token * row_bytes, width, half, rows_2C[1])
        for place in range(width):
            mean_M[token] += rows_2C[0, place] * rows_2C[1, place]


@kernel
def _backward_heads(job, scratch, start, length, kv_head):  # type: ignore[no-untyped-def]
    """One document, one key head and the query heads that share it."""
    heads, kv_heads, width, half = job[_HEADS], job[_KV_HEADS], job[_WIDTH], job[_HALF]
    size, per = (2, 2) if half else (4, 1)
    scaling, back, ahead = np.float32(real(job[_SCALING])), job[_BACK], job[_AHEAD]
    group, padded = heads // kv_heads, (length + _QUERIES - 1) // _QUERIES * _QUERIES
    row, kv_row, units, pairs = heads * width * size, kv_heads * width * size, width // per, (length + per - 1) // per
    shift = start * kv_row + kv_head * width * size
    key, value = job[_KEY] + shift, job[_VALUE] + shift
    block = _QUERIES * 4
    keys_turned, at = scratch, scratch + width * pairs * 4
    queries_turned, at = at, at + units * padded * 4
    grads_turned, at = at, at + units * padded * 4
    queries_paired, at = at, at + padded // per * width * 4
    grads_paired, at = at, at + padded // per * width * 4
    score, at = at, at + _KEYS * block
    slope, at = at, at + _KEYS * block
    prob, at = (at, at + _KEYS * block) if half else (score, at)
    paired, at = (at, at + _KEYS * block) if half else (slope, at)
    sums, at = at, at + width * block
    key_sums, at = at, at + length * width * 4
    value_sums, at = at, at + length * width * 4
    stats_2M, at = numba.carray(floats(at), (2, padded)), at + 2 * padded * 4
    total_M, mean_M = stats_2M[0], stats_2M[1]
    rows_2C, at = numba.carray(floats(at), (2, width)), at + 2 * width * 4
    ones_M = numba.carray(floats(at), _QUERIES)
    ones_M[:] = 1.0
    sums_CM = numba.carray(floats(sums), (width, _QUERIES))
    key_sums_LC = numba.carray(floats(key_sums), (length, width))
    value_sums_LC = numba.carray(floats(value_sums), (length, width))
    numba.carray(floats(key_sums), 2 * length * width)[:] = 0.0  # the values' lie behind
    pair(key, kv_row, length, width, grads_paired, half)
    turn_over(grads_paired, width * 4, pairs, width, keys_turned, pairs * 4, pairs)
    for head in range(kv_head * group, (kv_head + 1) * group):
        shift = start * row + head * width * size
        query, grad, out = job[_QUERY] + shift, job[_GRAD] + shift, job[_OUT] + shift
        total_T = numba.carray(floats(job[_TOTAL] + (start * heads + head) * 4), length * heads)
        turn_over(query, row, length, units, queries_turned, padded * 4, padded)
        turn_over(grad, row, length, units, grads_turned, padded * 4, padded)
        pair(query, row, length, width, queries_paired, half)
        pair(grad, row, length, width, grads_paired, half)
        for one in (queries_paired, grads_paired):  # behind the document's end
            numba.carray(floats(one), padded // per * width)[pairs * width :] = 0.0
        _means(grad, out, row, length, width, half, rows_2C, mean_M)
        for token in range(padded):
            total_M[token] = total_T[token * heads] if token < length else -_NOWHERE
        for first in range(0, length, _QUERIES):
            queries = min(_QUERIES, length - first)
            begin, end = max(0, first - back + 1) // 2 * 2, min(length, first + queries + ahead)
            for begun in range(begin, end, _KEYS):
                keys = min(_KEYS, end - begun)
                right, at = padded * 4, begun * kv_row
                multiply(key + at, kv_row, keys, queries_turned + first * 4, right, score, block, _QUERIES, units, 0, half)
                multiply(value + at, kv_row, keys, grads_turned + first * 4, right, slope, block, _QUERIES, units, 0, half)
                _hidden(score, begun, keys, first, back, ahead)
                _slopes(score, slope, prob, paired, keys, total_M[first:], mean_M[first:], scaling, half)
                at, to, count = first // per * width * 4, begun * width * 4, _QUERIES // per
                multiply(prob, block, keys, grads_paired + at, width * 4, value_sums + to, width * 4, width, count, 1, half)
                multiply(slope, block, keys, queries_paired + at, width * 4, key_sums + to, width * 4, width, count, 1, half)
                left, count = keys_turned + begun // per * 4, (keys + per - 1) // per
                onto = 1 if begun > begin else 0
                multiply(left, pairs * 4, width, paired, block, sums, block, _QUERIES, count, onto, half)
            _written(sums_CM, ones_M, job[_GRAD_QUERY] + shift + first * row, row, queries, width, half)
    at = start * kv_row + kv_head * width * size
    narrow(key_sums_LC, job[_GRAD_KEY] + at, kv_row, half)
    narrow(value_sums_LC, job[_GRAD_VALUE] + at, kv_row, half)


@kernel
def _share(address, backward):  # type: ignore[no-untyped-def]
    """What one thread does: it takes pieces until none is left."""
    job = numba.carray(address, len(_PLACES))
    spans_D2 = numba.carray(longs(job[_SPANS]), (job[_DOCUMENTS], 2))
    scratch = job[_SCRATCH] + claim(job.ctypes.data + 8) * job[_SLOT_BYTES]
    heads = job[_KV_HEADS] if backward else job[_HEADS]
    while True:
        piece = claim(job.ctypes.data)
        if piece >= job[_DOCUMENTS] * heads:
            return
        start, length = spans_D2[piece // heads, 0], spans_D2[piece // heads, 1]
        if backward:
            _backward_heads(job, scratch, start, length, piece % heads)
        else:
            _forward_head(job, scratch, start, length, piece % heads)


def _forward_share(address):  # type: ignore[no-untyped-def]
    _share(address, False)


def _backward_share(address):  # type: ignore[no-untyped-def]
    _share(address, True)


_options = {"cache": True, "fastmath": LOOSE, "error_model": "numpy"}
_forward = numba.cfunc(types.void(types.CPointer(types.int64)), **_options)(_forward_share)
_backward = numba.cfunc(types.void(types.CPointer(types.int64)), **_options)(_backward_share)


def fits(dtype: torch.dtype, width: int) -> bool:
    """Whether attention of heads of this width can run here, on a processor."""
    return (dtype == torch.float32 or (HAS_HALF and dtype == torch.bfloat16)) and width % LANES == 0


def _forward_bytes(longest: int, width: int, per: int) -> int:
    """Of a thread's scratch memory."""
    pairs = -(-longest // per)
    return 4 * (2 * width * pairs + _QUERIES * (width // per + 2 * _KEYS + 1 + width + 3))


def _backward_bytes(longest: int, width: int, per: int) -> int:
    pairs, padded = -(-longest // per), -(-longest // _QUERIES) * _QUERIES
    blocks = _QUERIES * ((4 if per == 2 else 2) * _KEYS + width + 1)
    return 4 * (width * (pairs + 4 * padded // per + 2 * longest + 2) + blocks + 2 * padded)


_Terms = tuple[float, int, int]
"""What scores are multiplied with, how many tokens a query looks back, itself included, and how many ahead."""


def _run(function: int, slot_bytes: int, pieces: int, spans_D2: Tensor, terms: _Terms, given: Sequence[Tensor]) -> None:
    """`given`: queries, keys, values, the result and its sums' logarithms; backwards its gradient and those asked for, too."""
    threads = min(team_size(), pieces)
    slot_bytes = -(-slot_bytes // 64) * 64
    scratch = torch.empty(threads * slot_bytes // 4, dtype=torch.float32)
    if isinstance(given[0], FakeTensor):
        return
    (_, heads, width), kv_heads = given[0].shape, given[1].shape[1]
    scaling, back, ahead = terms
    addresses = [one.data_ptr() for one in given] + [0] * (9 - len(given)) + [scratch.data_ptr(), spans_D2.data_ptr()]
    half = given[0].dtype == torch.bfloat16
    sizes = (heads, kv_heads, width, back, ahead, float_bits(scaling), half, slot_bytes)
    launch(function, _Job(0, 0, len(spans_D2), *addresses, *sizes), threads)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_THC: Tensor, key_TKC: Tensor, value_TKC: Tensor, spans: Sequence[tuple[int, int]], terms: _Terms
    ) -> Tensor:
        out_THC = torch.empty_like(query_THC)
        total_TH = torch.empty(query_THC.shape[:2], dtype=torch.float32)
        per = 4 // query_THC.element_size()
        spans_D2 = torch.tensor(spans)
        size = _forward_bytes(spans[0][1], query_THC.shape[-1], per)
        pieces = len(spans) * query_THC.shape[1]
        given = (query_THC, key_TKC, value_TKC, out_THC, total_TH)
        _run(_forward.address, size, pieces, spans_D2, terms, given)
        ctx.save_for_backward(*given)
        ctx.spans_D2, ctx.longest, ctx.terms = spans_D2, spans[0][1], terms
        return out_THC

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> Any:
        saved = ctx.saved_tensors  # once: under recomputation they can be had no second time
        query_THC, key_TKC, value_TKC = saved[:3]
        grads = [torch.empty_like(tensor) for tensor in (query_THC, key_TKC, value_TKC)]
        size = _backward_bytes(ctx.longest, query_THC.shape[-1], 4 // query_THC.element_size())
        pieces = len(ctx.spans_D2) * key_TKC.shape[1]
        given = (*saved, grad_THC.contiguous(), *grads)
        _run(_backward.address, size, pieces, ctx.spans_D2, ctx.terms, given)
        return *grads, None, None


def attended(
    query_THC: Tensor,
    key_TKC: Tensor,
    value_TKC: Tensor,
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None = None,
    both: bool = False,
) -> Tensor:
    """[T, H, C] attention of documents that lie side by side, each of its own tokens, causal or (`both`) of all. `window`: how
    far a token looks back, itself included, and with `both` as far ahead."""
    starts = np.cumsum([0, *lengths]).tolist()
    # the longest first: the last pieces are small, and no thread waits long for another
    spans = sorted(zip(starts, lengths, strict=False), key=lambda span: -span[1])
    far = spans[0][1] if window is None else window
    terms = (query_THC.shape[-1] ** -0.5 if scaling is None else scaling, far, far - 1 if both else 0)
    apply: Any = _Attend.apply
    given = (tensor.contiguous() for tensor in (query_THC, key_TKC, value_TKC))
    out_THC: Tensor = apply(*given, spans, terms)
    return out_THC
