"""What lies between the products of a decoding step, each part one pass over few rows: norms, rotary positions, the MLP's gate.

As operations of torch these are twenty a layer, most of them longer to call than to compute. One thread does them; numba compiles
them. The exponential is that of Moshier's Cephes library (`expf`: reduction by ln 2, a polynomial of degree 5; relative error
below 2e-7), written out so that the compiler makes vectors of it.
"""

# Shape suffixes: T tokens, D width, N heads, C head width, M width of the MLP.

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from torch import Tensor

from modelwright.nn._numbers import LOOSE, intrinsic, numba, types

_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_ONE, _HALF = np.float32(1.0), np.float32(0.5)


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number within float32's normal range."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        whole = ir.IntType(32)
        moved = build.add(build.fptosi(given[0], whole), ir.Constant(whole, 127))
        return build.bitcast(build.shl(moved, ir.Constant(whole, 23)), ir.FloatType())

    return types.float32(types.float32), code


@numba.njit(fastmath=LOOSE, error_model="numpy", inline="always")
def exp(x):  # type: ignore[no-untyped-def]
    x = _LEAST if x < _LEAST else x  # what is no number stays none
    x = _MOST if x > _MOST else x
    whole = np.floor(x * _LOG2E + _HALF)
    rest = x - whole * _LN2_HIGH - whole * _LN2_LOW
    sum_ = ((((_P0 * rest + _P1) * rest + _P2) * rest + _P3) * rest + _P4) * rest + _P5
    return (sum_ * rest * rest + rest + _ONE) * _power_of_two(whole)


@numba.njit(fastmath=LOOSE, error_model="numpy")
def _normed_row(x_D, gain_D, offset, eps, out_D):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for at in range(len(x_D)):
        total += x_D[at] * x_D[at]
    scale = _ONE / np.sqrt(total / np.float32(len(x_D)) + eps)
    for at in range(len(x_D)):
        out_D[at] = x_D[at] * scale * (gain_D[at] + offset)


def _normed(x, gain, out, tokens, heads, row, width, offset, eps):  # type: ignore[no-untyped-def]
    x_TD, out_TD = numba.carray(x, (tokens, row)), numba.carray(out, (tokens, row))
    gain_D = numba.carray(gain, width)
    for token in range(tokens):
        for start in range(0, heads * width, width):
            end = start + width
            _normed_row(x_TD[token, start:end], gain_D, offset, eps, out_TD[token, start:end])


def _turned(x, cos, sin, tokens, heads, row_heads, width):  # type: ignore[no-untyped-def]
    x_TNC = numba.carray(x, (tokens, row_heads, width))
    cos_TC, sin_TC = numba.carray(cos, (tokens, width)), numba.carray(sin, (tokens, width))
    half = width // 2
    for token in range(tokens):
        for head in range(heads):
            for at in range(half):
                first, second = x_TNC[token, head, at], x_TNC[token, head, half + at]
                x_TNC[token, head, at] = first * cos_TC[token, at] - second * sin_TC[token, at]
                x_TNC[token, head, half + at] = second * cos_TC[token, half + at] + first * sin_TC[token, half + at]


def _gated(x, out, tokens, width):  # type: ignore[no-untyped-def]
    x_TM, out_TM = numba.carray(x, (tokens, 2 * width)), numba.carray(out, (tokens, width))
    for token in range(tokens):
        for at in range(width):
            gate = x_TM[token, at]
            out_TM[token, at] = gate / (_ONE + exp(-gate)) * x_TM[token, width + at]


def _compiled(function: Any, pointers: int, whole: int, real: int = 0) -> Any:
    """Called with addresses, then whole numbers, then float32 numbers."""
    given = [types.CPointer(types.float32)] * pointers + [types.int64] * whole + [types.float32] * real
    options = {"cache": True, "fastmath": LOOSE, "error_model": "numpy"}
    made = numba.cfunc(types.void(*given), **options)(function)
    kinds = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * whole + [ctypes.c_float] * real
    return ctypes.CFUNCTYPE(None, *kinds)(made.address)


_norm, _turn, _gate = _compiled(_normed, 3, 4, 2), _compiled(_turned, 3, 4), _compiled(_gated, 2, 2)


def normed(x_TD: Tensor, gain_D: Tensor, offset: float, eps: float, out_TD: Tensor) -> None:
    """Rows over their root mean square, times gain plus offset. All contiguous and float32."""
    tokens, width = x_TD.shape
    _norm(x_TD.data_ptr(), gain_D.data_ptr(), out_TD.data_ptr(), tokens, 1, width, width, offset, eps)


def norm_heads(x_TNC: Tensor, gain_C: Tensor, offset: float, eps: float) -> None:
    """The same of each head, in place; `x` may be some of the heads of contiguous rows."""
    tokens, heads, width = x_TNC.shape
    address = x_TNC.data_ptr()
    _norm(address, gain_C.data_ptr(), address, tokens, heads, x_TNC.stride(0), width, offset, eps)


def turn(x_TNC: Tensor, cos_TC: Tensor, sin_TC: Tensor, heads: int) -> None:
    """Rotary positions in the first heads, in place."""
    tokens, row_heads, width = x_TNC.shape
    _turn(x_TNC.data_ptr(), cos_TC.data_ptr(), sin_TC.data_ptr(), tokens, heads, row_heads, width)


def gated(x_TM: Tensor, out_TM: Tensor) -> None:
    """silu(first half of each row) * second half."""
    _gate(x_TM.data_ptr(), out_TM.data_ptr(), *out_TM.shape)
