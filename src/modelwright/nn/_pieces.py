"""What lies between the products of a training step on a processor, each part one pass over memory: norms, rotary positions, the
MLP's gate, sums with the stream, and their slopes.

As operations of torch each is several passes, in other types copied first. numba compiles one loop over rows for each; threads
take rows in chunks whose size does not depend on how many threads there are, and neither do the sums.
"""

# Shape suffixes: T tokens (heads may follow), D width, I width of the MLP, H heads, C head width.

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.functional import silu

from modelwright.core.memory.kernels import CHUNK_VALUES
from modelwright.nn._gemv import claim, launch, team_size
from modelwright.nn._numbers import LOOSE, float_bits, floats, kernel, numba, real, store, types, wide_at
from modelwright.nn._small import exp
from modelwright.nn.fused import Pieces

_ONE = np.float32(1.0)
_GELU, _CUBE = np.float32(0.7978845608028654), np.float32(0.044715)
"""sqrt(2 / pi), and the third power's share in GELU's approximation by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
_PLACES = ("claimed", "piece", "rows", "width", "chunk", "real", "turns", *"abcdexyz", *(f"half_{one}" for one in "abcdexyz"))
(_CLAIMED, _PIECE, _ROWS, _WIDTH, _CHUNK, _REAL, _TURNS, _A, _B, _C, _D, _E, _X, _Y, _Z) = range(15)
_HALF_OF = _Z + 1 - _A
"""From an address to whether bfloat16 lies there."""
_Job = ctypes.c_int64 * len(_PLACES)
_SCALE, _NORMED, _SLOPE, _ROTATE, _GATED, _GATE_SLOPES, _ADDED = range(7)


@kernel
def _scaled(job, first, last):  # type: ignore[no-untyped-def]
    x, made = job[_A], job[_X]
    width, eps = job[_WIDTH], np.float32(real(job[_REAL]))
    for row in range(first, last):
        x_D = numba.carray(floats(x + row * width * 4), width)
        total = np.float32(0.0)
        for at in range(width):
            total += x_D[at] * x_D[at]
        numba.carray(floats(made), job[_ROWS])[row] = _ONE / np.sqrt(total / np.float32(width) + eps)


@kernel
def _normed(job, first, last):  # type: ignore[no-untyped-def]
    x, made = job[_A], job[_X]
    width, half = job[_WIDTH], job[_X + _HALF_OF]
    scale_T, gain_D = numba.carray(floats(job[_B]), job[_ROWS]), numba.carray(floats(job[_C]), width)
    for row in range(first, last):
        x_D, scale = numba.carray(floats(x + row * width * 4), width), scale_T[row]
        for at in range(width):
            store(made, row * width + at, x_D[at] * scale * gain_D[at], half)


@kernel
def _sloped(job, first, last):  # type: ignore[no-untyped-def]
    """The gain's gradient is the sum over chunks, which is taken later."""
    grads, x, made = job[_A], job[_B], job[_X]
    width, half = job[_WIDTH], job[_A + _HALF_OF]
    scale_T, gain_D = numba.carray(floats(job[_C]), job[_ROWS]), numba.carray(floats(job[_D]), width)
    sums_D = numba.carray(floats(job[_Y] + first // job[_CHUNK] * width * 4), width)
    sums_D[:] = 0.0
    for row in range(first, last):
        x_D = numba.carray(floats(x + row * width * 4), width)
        out_D = numba.carray(floats(made + row * width * 4), width)
        scale, total = scale_T[row], np.float32(0.0)
        for at in range(width):
            grad, hat = wide_at(grads, row * width + at, half), x_D[at] * scale
            sums_D[at] += grad * hat
            total += grad * gain_D[at] * hat
        mean = total / np.float32(width)
        for at in range(width):
            grad = wide_at(grads, row * width + at, half)
            out_D[at] = (grad * gain_D[at] - x_D[at] * scale * mean) * scale


@kernel
def _rotated(job, first, last):  # type: ignore[no-untyped-def]
    """Rows of all heads; a token's cosines and sines are those of as many rows as it has heads."""
    x, cos, sin, made = job[_A], job[_B], job[_C], job[_X]
    width, half, half_turns, turns = job[_WIDTH], job[_A + _HALF_OF], job[_B + _HALF_OF], job[_TURNS]
    middle = width // 2
    for row in range(first, last):
        turn, start = row // turns * width, row * width
        for at in range(middle):
            one, two = wide_at(x, start + at, half), wide_at(x, start + middle + at, half)
            cos_one, cos_two = wide_at(cos, turn + at, half_turns), wide_at(cos, turn + middle + at, half_turns)
            sin_one, sin_two = wide_at(sin, turn + at, half_turns), wide_at(sin, turn + middle + at, half_turns)
            store(made, start + at, one * cos_one - two * sin_one, half)
            store(made, start + middle + at, two * cos_two + one * sin_two, half)


@numba.njit(fastmath=LOOSE, error_model="numpy", inline="always")
def _share_of(gate, turns):  # type: ignore[no-untyped-def]
    """What of a gate passes: of SiLU its sigmoid, of GELU that of twice the argument of tanh."""
    inner = gate if turns == 0 else np.float32(2.0) * _GELU * (gate + _CUBE * gate * gate * gate)
    return _ONE / (_ONE + exp(-inner))


@kernel
def _gated(job, first, last):  # type: ignore[no-untyped-def]
    gates, ups, made = job[_A], job[_B], job[_X]
    width, half, kind = job[_WIDTH], job[_A + _HALF_OF], job[_TURNS]
    for place in range(first * width, last * width):
        gate = wide_at(gates, place, half)
        store(made, place, gate * _share_of(gate, kind) * wide_at(ups, place, half), half)


@kernel
def _gate_sloped(job, first, last):  # type: ignore[no-untyped-def]
    grads, gates, ups, of_gate, of_up = job[_A], job[_B], job[_C], job[_X], job[_Y]
    width, half, kind = job[_WIDTH], job[_A + _HALF_OF], job[_TURNS]
    for place in range(first * width, last * width):
        grad, gate, up = wide_at(grads, place, half), wide_at(gates, place, half), wide_at(ups, place, half)
        share = _share_of(gate, kind)
        inner = _ONE if kind == 0 else np.float32(2.0) * _GELU * (_ONE + np.float32(3.0) * _CUBE * gate * gate)
        store(of_gate, place, grad * up * share * (_ONE + gate * inner * (_ONE - share)), half)
        store(of_up, place, grad * gate * share, half)


@kernel
def _added(job, first, last):  # type: ignore[no-untyped-def]
    x, parts, made = job[_A], job[_B], job[_X]
    width, half = job[_WIDTH], job[_B + _HALF_OF]
    for row in range(first, last):
        x_D = numba.carray(floats(x + row * width * 4), width)
        out_D = numba.carray(floats(made + row * width * 4), width)
        for at in range(width):
            out_D[at] = x_D[at] + wide_at(parts, row * width + at, half)


def _share(address):  # type: ignore[no-untyped-def]
    """What one thread does: it takes chunks of rows until none is left."""
    job = numba.carray(address, len(_PLACES))
    piece, rows, chunk = job[_PIECE], job[_ROWS], job[_CHUNK]
    while True:
        first = claim(job.ctypes.data) * chunk
        if first >= rows:
            return
        last = min(rows, first + chunk)
        if piece == _SCALE:
            _scaled(job, first, last)
        elif piece == _NORMED:
            _normed(job, first, last)
        elif piece == _SLOPE:
            _sloped(job, first, last)
        elif piece == _ROTATE:
            _rotated(job, first, last)
        elif piece == _GATED:
            _gated(job, first, last)
        elif piece == _GATE_SLOPES:
            _gate_sloped(job, first, last)
        else:
            _added(job, first, last)


_work = numba.cfunc(types.void(types.CPointer(types.int64)), cache=True, fastmath=LOOSE, error_model="numpy")(_share)


def _chunk(width: int) -> int:
    """Rows that a thread takes at once."""
    return max(1, CHUNK_VALUES // width)


def _run(piece: int, given: tuple[Tensor, ...], made: tuple[Tensor, ...], number: float = 0.0, turns: int = 0) -> None:
    """`given`: at most five, of which the first says how many rows of which width there are; `made`: at most three."""
    first = given[0]
    if isinstance(first, FakeTensor):
        return
    width = first.shape[-1]
    rows = first.numel() // width
    kept = tuple(one.contiguous() for one in given)
    places: list[Tensor | None] = [*kept, *[None] * (5 - len(given)), *made, *[None] * (3 - len(made))]
    addresses = (0 if one is None else one.data_ptr() for one in places)
    half = (one is not None and one.dtype == torch.bfloat16 for one in places)
    chunk = _chunk(width)
    job = _Job(0, piece, rows, width, chunk, float_bits(number), turns, *addresses, *half)
    launch(_work.address, job, min(team_size(), -(-rows // chunk)))


def _rows(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result, row after row however `like` lies."""
    return torch.empty(like.shape, dtype=dtype or like.dtype, device=like.device)


def scale(x_TD: Tensor, eps: float) -> Tensor:
    made_T1 = x_TD.new_empty((*x_TD.shape[:-1], 1))
    _run(_SCALE, (x_TD,), (made_T1,), eps)
    return made_T1


def normed(x_TD: Tensor, scale_T1: Tensor, gain_D: Tensor, dtype: torch.dtype) -> Tensor:
    made_TD = _rows(x_TD, dtype)
    _run(_NORMED, (x_TD, scale_T1, gain_D), (made_TD,))
    return made_TD


def slope(grad_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, gain_D: Tensor) -> tuple[Tensor, Tensor]:
    width = x_TD.shape[-1]
    made_TD = _rows(x_TD)
    sums_SD = x_TD.new_empty(-(-(x_TD.numel() // width) // _chunk(width)), width)
    _run(_SLOPE, (grad_TD, x_TD, scale_T1, gain_D), (made_TD, sums_SD))
    return made_TD, sums_SD.sum(0)


def rotate(x_THC: Tensor, cos_T1C: Tensor, sin_T1C: Tensor) -> Tensor:
    made_THC = _rows(x_THC)
    _run(_ROTATE, (x_THC, cos_T1C, sin_T1C), (made_THC,), turns=x_THC.shape[1])
    return made_THC


def gated(activation: Callable[[Tensor], Tensor], gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    made_TI = _rows(gate_TI)
    _run(_GATED, (gate_TI, up_TI), (made_TI,), turns=int(activation is not silu))
    return made_TI


def gate_slopes(
    activation: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor, Tensor], Tensor],
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
) -> tuple[Tensor, Tensor]:
    of_gate_TI, of_up_TI = _rows(gate_TI), _rows(gate_TI)
    _run(_GATE_SLOPES, (grad_TI, gate_TI, up_TI), (of_gate_TI, of_up_TI), turns=int(activation is not silu))
    return of_gate_TI, of_up_TI


def added(x_TD: Tensor, part_TD: Tensor) -> Tensor:
    made_TD = _rows(x_TD)
    _run(_ADDED, (x_TD, part_TD), (made_TD,))
    return made_TD


PIECES = Pieces(added, scale, normed, slope, rotate, gated, gate_slopes)
