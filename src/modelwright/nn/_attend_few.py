"""Attention of few new tokens over their rows' key/value memory and over what rows share, as one kernel for all rows.

As operations of torch it is thirty calls a layer, masks and copies among them, for a few microseconds of work each. Here one new
token and one key head are a piece of work: scores by the blocks of `nn/_gemv.py` (keys are the weight, the query heads of the key
head the rows), one softmax over the shared and the own part together, and the sum of values. New keys and values are put into
the memory first.
"""

# Shape suffixes: T new tokens, N heads of a token's queries, keys and values, C head width, G query heads of a key head.

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modelwright.nn._gemv import LANES, ROWS, block, claim, launch, team_size
from modelwright.nn._numbers import LOOSE, float_bits, floats, kernel, longs, numba, real, types
from modelwright.nn._small import exp
from modelwright.nn._tiles import multiply
from modelwright.nn.attend import Plan, Terms
from modelwright.nn.memory import Shared

_PLACES = (
    *("claimed", "given", "keys", "values", "out", "rows", "places", "which", "shared", "scores", "tokens", "kv_heads"),
    *("group", "width", "capacity", "heads", "row_scores", "scaling", "window"),
)
(_CLAIMED, _GIVEN, _KEYS, _VALUES, _OUT, _ROW, _PLACE, _WHICH, _SHARED, _SCORES, _TOKENS, _KV_HEADS) = range(12)
(_GROUP, _WIDTH, _CAPACITY, _HEADS, _ROW_SCORES, _SCALING, _WINDOW) = range(12, 19)
_Job = ctypes.c_int64 * len(_PLACES)


@kernel
def _score(query, keys, scores, first, last, group, width, row_scores):  # type: ignore[no-untyped-def]
    """Of keys `first` to `last`, into the places of these numbers."""
    whole = first + (last - first) // 4 * 4
    row_bytes = width * 4
    for head in range(0, group, ROWS):
        rows = min(ROWS, group - head)
        for at in range(first, whole, 4):
            key, out = keys + at * row_bytes, scores + (head * row_scores + at) * 4
            block(
                query + head * row_bytes, key, out, width, row_scores, 0, key + 8 * row_bytes, row_bytes, 2 * row_bytes, rows, 0
            )
    query_GC, score_GT = numba.carray(floats(query), (group, width)), numba.carray(floats(scores), (group, row_scores))
    key_TC = numba.carray(floats(keys), (last, width))
    for at in range(whole, last):
        for head in range(group):
            total = np.float32(0.0)
            for place in range(width):
                total += query_GC[head, place] * key_TC[at, place]
            score_GT[head, at] = total


@numba.njit(fastmath={"nnan", "nsz"}, error_model="numpy")
def _most(scores_T):  # type: ignore[no-untyped-def]
    most = scores_T[0]
    for at in range(len(scores_T)):
        most = max(most, scores_T[at])
    return most


@kernel
def _probable(scores_T, scaling):  # type: ignore[no-untyped-def]
    """Softmax in place, without the division; returns what to divide by."""
    most, total = _most(scores_T), np.float32(0.0)
    for at in range(len(scores_T)):
        prob = exp((scores_T[at] - most) * scaling)
        scores_T[at] = prob
        total += prob
    return total


@kernel
def _add_values(prob, value, out, count, group, width, row_scores):  # type: ignore[no-untyped-def]
    """out[group, width] += prob[group, count] @ value[count, width]."""
    row = width * 4
    multiply(prob, row_scores * 4, group, value, row, out, row, width, count, 1, 0)


@kernel
def _piece(job, token, head, scores):  # type: ignore[no-untyped-def]
    """One new token and one key head."""
    tokens, kv_heads, group, width, row_scores = job[_TOKENS], job[_KV_HEADS], job[_GROUP], job[_WIDTH], job[_ROW_SCORES]
    row = numba.carray(longs(job[_ROW]), tokens)[token]
    own = numba.carray(longs(job[_PLACE]), tokens)[token] + 1
    which, begun, shared_keys, shared_values = numba.carray(longs(job[_WHICH]), tokens)[token], 0, 0, 0
    if which >= 0:
        shared = numba.carray(longs(job[_SHARED]), (which + 1, 3))[which]
        begun = shared[2]
        shared_keys = shared[0] + head * begun * width * 4
        shared_values = shared[1] + head * begun * width * 4
    last = begun + own
    first = max(0, last - job[_WINDOW]) if job[_WINDOW] > 0 else 0
    own_first = max(0, first - begun)
    shift = (row * kv_heads + head) * job[_CAPACITY] * width * 4
    query = job[_GIVEN] + (token * job[_HEADS] + head * group) * width * 4
    if first < begun:
        _score(query, shared_keys, scores, first, begun, group, width, row_scores)
    _score(query, job[_KEYS] + shift, scores + begun * 4, own_first, own, group, width, row_scores)
    score_GT, out = numba.carray(floats(scores), (group, row_scores)), job[_OUT] + (token * kv_heads + head) * group * width * 4
    out_GC = numba.carray(floats(out), (group, width))
    out_GC[:] = 0.0
    scaling = np.float32(real(job[_SCALING]))
    for one in range(group):
        total = _probable(score_GT[one, first:last], scaling)
        for at in range(first, last):
            score_GT[one, at] /= total
    if first < begun:
        _add_values(scores + first * 4, shared_values + first * width * 4, out, begun - first, group, width, row_scores)
    value, prob = job[_VALUES] + shift + own_first * width * 4, scores + (begun + own_first) * 4
    _add_values(prob, value, out, own - own_first, group, width, row_scores)


def _share(address):  # type: ignore[no-untyped-def]
    """What one thread does: it takes pieces until none is left."""
    job = numba.carray(address, len(_PLACES))
    tokens, group = job[_TOKENS], job[_GROUP]
    while True:
        piece = claim(job.ctypes.data)
        if piece >= tokens * job[_KV_HEADS]:
            return
        # all tokens of a head in turn: what they share stays in the cache
        _piece(job, piece % tokens, piece // tokens, job[_SCORES] + piece * group * job[_ROW_SCORES] * 4)


def _kept(address):  # type: ignore[no-untyped-def]
    """Put the new keys and values into the memory."""
    job = numba.carray(address, len(_PLACES))
    tokens, kv_heads, width, heads, capacity = job[_TOKENS], job[_KV_HEADS], job[_WIDTH], job[_HEADS], job[_CAPACITY]
    row_T, place_T = numba.carray(longs(job[_ROW]), tokens), numba.carray(longs(job[_PLACE]), tokens)
    given_TNC = numba.carray(floats(job[_GIVEN]), (tokens, heads, width))
    queries = heads - 2 * kv_heads
    for token in range(tokens):
        for head in range(kv_heads):
            shift = ((row_T[token] * kv_heads + head) * capacity + place_T[token]) * width * 4
            numba.carray(floats(job[_KEYS] + shift), width)[:] = given_TNC[token, queries + head]
            numba.carray(floats(job[_VALUES] + shift), width)[:] = given_TNC[token, queries + kv_heads + head]


_options = {"cache": True, "fastmath": LOOSE, "error_model": "numpy"}
_work = numba.cfunc(types.void(types.CPointer(types.int64)), **_options)(_share)
_keep = numba.cfunc(types.void(types.CPointer(types.int64)), **_options)(_kept)
_keep_alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_keep.address)


class _Step(NamedTuple):
    """What all layers of a step need."""

    which_T: Tensor
    """Which shared part a token's row has; -1: none."""
    shared: list[Shared]
    row_scores: int
    score: Tensor


def fits(plan: Plan, terms: Terms, width: int) -> bool:
    return plan.memory is not None and not terms.formula and terms.scaling is not None and width % LANES == 0


def attend_few(plan: Plan, layer: int, given_TNC: Tensor, heads: int, terms: Terms) -> Tensor:
    """[T, heads * C] attention of one layer: `given` holds each token's queries, keys and values, contiguous float32."""
    tokens, all_heads, width = given_TNC.shape
    kv_heads = (all_heads - heads) // 2
    memory = plan.memory
    assert memory is not None
    if layer not in memory.layers:
        key_1KTC = given_TNC[:, heads : heads + kv_heads].transpose(0, 1)[None]
        memory.layer(layer, (key_1KTC, key_1KTC))
    keys, values = memory.layers[layer]

    def made() -> _Step:
        places = {id(one): one for row in plan.order if (one := memory.shared[row]) is not None}
        number = {of: at for at, of in enumerate(places)}
        which_T = torch.tensor([number.get(id(memory.shared[row]), -1) for row in plan.row_T.tolist()])
        longest = int(plan.at_T.max()) + 1 + max((one.length for one in places.values()), default=0)
        row_scores = -(-longest // 4) * 4
        return _Step(which_T, list(places.values()), row_scores, torch.empty(tokens * heads * row_scores))

    step: _Step = plan.once("few", made)
    parts = [(*(part.data_ptr() for part in one.layers[layer]), one.length) for one in step.shared]
    table = (ctypes.c_int64 * (3 * len(parts) + 1))(*(number for part in parts for number in part))
    out_TI = given_TNC.new_empty(tokens, heads * width)
    addresses = (part.data_ptr() for part in (given_TNC, keys, values, out_TI, plan.row_T, plan.at_T, step.which_T))
    sizes = (tokens, kv_heads, heads // kv_heads, width, memory.capacity, all_heads, step.row_scores)
    last = (*sizes, float_bits(terms.scaling or 0.0), terms.window or 0)
    job = _Job(0, *addresses, ctypes.addressof(table), step.score.data_ptr(), *last)
    _keep_alone(ctypes.addressof(job))
    launch(_work.address, job, team_size())
    return out_TI
