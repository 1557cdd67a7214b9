"""Products of matrices that lie in the cache, and the forms of their sides, for kernels built with numba's compiler.

Sums of a few rows and four vectors of columns stay in registers. Products run in float32, or in bfloat16 with float32 sums where
the processor has them in hardware (AVX512-BF16). The left side is taken from memory in units of 32 bits (one float32 number or
two bfloat16 ones that lie side by side), the right side in vectors of such units, hence two forms of every matrix: its rows
paired, and turned over.
"""

# Shape suffixes: C columns, M columns of a result, R rows.

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir

from modelwright.nn._gemv import FLOAT, INT, LANES, LONG, ROWS, VECTOR, codegen, fused_of, loaded, switched
from modelwright.nn._numbers import halves, intrinsic, kernel, numba, types, wholes

binding.initialize_native_asmparser()
HAS_HALF = "+avx512bf16" in codegen.get_host_cpu_features().split(",")
"""Whether this processor multiplies bfloat16."""
_WIDE = 4
"""Vectors of columns whose sums, of `ROWS` rows, fill the registers."""
_UNITS = ir.VectorType(INT, LANES)


def _product_of(build: Any, given: Any, rows: int, half: int, vectors: int) -> None:
    """out[rows, columns] = (or +=) left[rows, units] @ right[units, columns]."""
    left, left_row, right, right_row, out, out_row, units, onto = given[:8]
    before, loop, after = build.block, build.append_basic_block("loop"), build.append_basic_block("after")
    kept = build.icmp_signed("!=", onto, ir.Constant(LONG, 0))
    zero = ir.Constant(VECTOR, [0.0] * LANES)

    def at(start: Any, row: Any, row_bytes: Any, vector: int = 0) -> Any:
        place = build.add(build.add(start, build.mul(row_bytes, row)), ir.Constant(LONG, 4 * LANES * vector))
        return build.inttoptr(place, (FLOAT if not half else INT).as_pointer())

    outs = [[at(out, ir.Constant(LONG, row), out_row, vector) for vector in range(vectors)] for row in range(rows)]
    begun = [
        [build.select(kept, loaded(build, build.bitcast(place, FLOAT.as_pointer()), FLOAT), zero) for place in row]
        for row in outs
    ]
    build.branch(loop)
    build.position_at_end(loop)
    unit = build.phi(LONG)
    unit.add_incoming(ir.Constant(LONG, 0), before)
    sums = [[build.phi(VECTOR) for _ in row] for row in begun]
    kind = INT if half else FLOAT
    across = [loaded(build, at(right, unit, right_row, vector), kind) for vector in range(vectors)]
    if half:
        dot = ir.InlineAsm(ir.FunctionType(VECTOR, [_UNITS, _UNITS, VECTOR]), "vdpbf16ps $2, $1, $0", "=v,v,v,0")
    else:
        dot = fused_of(build)
    found = []
    for row in range(rows):
        start = build.add(left, build.mul(left_row, ir.Constant(LONG, row)))
        single = build.load(at(start, unit, ir.Constant(LONG, 4)))
        none = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
        same = build.insert_element(none, single, ir.Constant(INT, 0))
        same = build.shuffle_vector(same, none, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))
        for vector, old, held in zip(across, begun[row], sums[row], strict=True):
            held.add_incoming(old, before)
            found.append(build.call(dot, [same, vector, held]))
            held.add_incoming(found[-1], loop)
    following = build.add(unit, ir.Constant(LONG, 1))
    unit.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, units), loop, after)
    build.position_at_end(after)
    for place, vector in zip((place for row in outs for place in row), found, strict=True):
        build.store(vector, build.bitcast(place, VECTOR.as_pointer())).align = 4


@intrinsic  # type: ignore[untyped-decorator]
def _product(
    typing: Any,
    left: Any,
    left_row: Any,
    right: Any,
    right_row: Any,
    out: Any,
    out_row: Any,
    units: Any,
    onto: Any,
    rows: Any,
    half: Any,
    wide: Any,
) -> Any:
    """One of them, by the number of rows, the type, and whether four vectors of columns are taken or one. Rows' lengths are in
    bytes."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        cases = {
            4 * rows + 2 * half + wide: (rows, half, _WIDE if wide else 1)
            for rows in range(1, ROWS + 1)
            for half in range(1 + HAS_HALF)
            for wide in (0, 1)
        }
        number = build.mul(given[8], ir.Constant(LONG, 4))
        number = build.add(build.add(number, build.mul(given[9], ir.Constant(LONG, 2))), given[10])
        switched(build, number, given, cases, _product_of)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), code


@kernel
def multiply(left, left_row, rows, right, right_row, out, out_row, columns, units, onto, half):  # type: ignore[no-untyped-def]
    """out[rows, columns] = (or, with `onto`, +=) left[rows, units] @ right[units, columns], by addresses and by the bytes of
    their rows; at least one unit, and whole vectors of columns."""
    at = 0
    while at < columns:
        wide = 1 if columns - at >= _WIDE * LANES else 0
        for row in range(0, rows, ROWS):
            count = min(ROWS, rows - row)
            place = out + row * out_row + at * 4
            _product(left + row * left_row, left_row, right + at * 4, right_row, place, out_row, units, onto, count, half, wide)
        at += _WIDE * LANES if wide else LANES


@kernel
def pair(source, row_bytes, count, width, out, half):  # type: ignore[no-untyped-def]
    """[U, C] units of tokens that follow each other; the last may lack its second."""
    if not half:
        for at in range(count):
            row_C, out_C = (
                numba.carray(wholes(source + at * row_bytes), width),
                numba.carray(wholes(out + at * width * 4), width),
            )
            for place in range(width):
                out_C[place] = row_C[place]
        return
    for at in range((count + 1) // 2):
        first_C = numba.carray(halves(source + 2 * at * row_bytes), width)
        second_C = numba.carray(halves(source + min(2 * at + 1, count - 1) * row_bytes), width)
        out_C = numba.carray(wholes(out + at * width * 4), width)
        shown = np.uint32(0xFFFFFFFF) if 2 * at + 1 < count else np.uint32(0xFFFF)
        for place in range(width):
            out_C[place] = (np.uint32(first_C[place]) | (np.uint32(second_C[place]) << np.uint32(16))) & shown


@kernel
def turn_over(source, row_bytes, rows, columns, out, out_row, most):  # type: ignore[no-untyped-def]
    """out[columns, rows] of units; rows up to `most` are zeros."""
    for first in range(0, rows, 16):
        last = min(first + 16, rows)
        for column in range(columns):
            out_R = numba.carray(wholes(out + column * out_row), most)
            for row in range(first, last):
                out_R[row] = numba.carray(wholes(source + row * row_bytes), columns)[column]
    for column in range(columns):
        out_R = numba.carray(wholes(out + column * out_row), most)
        for row in range(rows, most):
            out_R[row] = np.uint32(0)
