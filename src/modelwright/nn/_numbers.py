"""Numbers as kernels built with numba's compiler see them: at an address, and as the bits of another type.

bfloat16 is the upper half of a float32 number; numba has no such type, so its bits are read and written as whole numbers.
"""

# Shape suffixes: C width of a row, L tokens.

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir

numba: Any = import_module("numba")
types: Any = numba.types
intrinsic: Any = import_module("numba.extending").intrinsic

LOOSE = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order: in vectors."""
kernel = numba.njit(fastmath=LOOSE, error_model="numpy")
_INT, _FLOAT = ir.IntType(32), ir.FloatType()


def pointer_to(of: Any) -> Any:
    """An intrinsic: an address as a pointer to such numbers."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(typing: Any, address: Any) -> Any:
        def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
            return build.inttoptr(given[0], context.get_value_type(signature.return_type))

        return types.CPointer(of)(types.int64), code

    return pointer


def same_bits(result: Any, given_type: Any, kind: Any) -> Any:
    """An intrinsic: a number's bits as another type's."""

    @intrinsic  # type: ignore[untyped-decorator]
    def convert(typing: Any, number: Any) -> Any:
        def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
            return build.bitcast(given[0], kind)

        return result(given_type), code

    return convert


floats, longs = pointer_to(types.float32), pointer_to(types.int64)
real = same_bits(types.float64, types.int64, ir.DoubleType())
wholes, halves = pointer_to(types.uint32), pointer_to(types.uint16)
_bits, _number = same_bits(types.uint32, types.float32, _INT), same_bits(types.float32, types.uint32, _FLOAT)


@numba.njit(fastmath=LOOSE, error_model="numpy", inline="always")
def rounded(number):  # type: ignore[no-untyped-def]
    """float32 whose upper 16 bits are the nearest bfloat16, to even."""
    bits = _bits(number)
    return bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))


@numba.njit(fastmath=LOOSE, error_model="numpy", inline="always")
def wide_at(address, place, half):  # type: ignore[no-untyped-def]
    """One of the numbers that lie there, in float32."""
    if half:
        return _number(np.uint32(halves(address)[place]) << np.uint32(16))
    return floats(address)[place]


@numba.njit(fastmath=LOOSE, error_model="numpy", inline="always")
def store(address, place, number, half):  # type: ignore[no-untyped-def]
    if half:
        halves(address)[place] = np.uint16(rounded(number) >> np.uint32(16))
    else:
        floats(address)[place] = number


@kernel
def narrow(sums_LC, out, row_bytes, half):  # type: ignore[no-untyped-def]
    """Rows in the type of the result."""
    width = sums_LC.shape[1]
    for token in range(len(sums_LC)):
        if half:
            half_C = numba.carray(halves(out + token * row_bytes), width)
            for at in range(width):
                half_C[at] = np.uint16(rounded(sums_LC[token, at]) >> np.uint32(16))
        else:
            number_C = numba.carray(floats(out + token * row_bytes), width)
            for at in range(width):
                number_C[at] = sums_LC[token, at]


@kernel
def widen(address, width, half, out_C):  # type: ignore[no-untyped-def]
    """A row of numbers in float32."""
    if half:
        half_C = numba.carray(halves(address), width)
        for at in range(width):
            out_C[at] = _number(np.uint32(half_C[at]) << np.uint32(16))
    else:
        number_C = numba.carray(floats(address), width)
        for at in range(width):
            out_C[at] = number_C[at]


def float_bits(number: float) -> int:
    """As `real` takes it."""
    return int(np.float64(number).view(np.int64))
