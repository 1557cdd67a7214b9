"""Products of few rows with a weight, at the speed at which memory gives the weight: kernels built with numba's compiler.

Decoding reads every weight once a step, so its time is bytes over bandwidth (Williams et al. 2009, "Roofline",
doi:10.1145/1498765.1498785). torch's float32 product reaches that for one or two rows, takes twice as long for four and three
times for eight, and its bfloat16 product of one row reaches half of it. Here each vector of weights meets up to six rows in
registers while the next rows of the weight are prefetched, and bfloat16 weights are widened as they are loaded (16 zero bits
behind them): products and sums are float32. A row's result is the same bits whatever other rows are with it and however many
threads work.

The threads are torch's own: its OpenMP runtime is called directly, since a second pool would fight the first for the cores.
"""

# Shape suffixes: T rows, I inputs, O outputs.

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from torch import Tensor

from modelwright.nn._numbers import intrinsic, numba, types

cgutils: Any = import_module("numba.core.cgutils")
codegen: Any = import_module("numba.core.codegen")

MOST = 64
"""Rows up to which these kernels are taken; torch's product of more is as fast or faster."""
_SIDE = 4
"""Outputs that one block computes."""
_AHEAD = 8
"""Outputs from here, the weight's rows are fetched in advance."""
_LEAST_CHUNK = 32
"""Outputs that a thread takes at once, at least."""


def _vectors() -> tuple[int, int]:
    """Numbers in a vector, and rows of a block: its sums, weights and one more fill the registers. 0: not for this processor."""
    found = codegen.get_host_cpu_features().split(",")
    if "+avx512f" in found:
        return 16, 6
    return (8, 2) if {"+avx2", "+fma"} <= set(found) else (0, 0)


LANES, ROWS = _vectors()
if not LANES:
    raise ImportError("these kernels are for processors with AVX2 and FMA, or AVX-512")
FLOAT, _HALF, _BYTE, INT, LONG = ir.FloatType(), ir.IntType(16), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
_PLACES = ("claimed", "rows", "out", "count", "inner", "row_outputs", "onto", "half", "chunk", "parts")
_COUNTER, _ROWS, _OUT, _COUNT, _INNER, _ROW_OUTPUTS, _ONTO, _IS_HALF, _CHUNK, _PARTS = range(len(_PLACES))
_FIRST_PART = len(_PLACES)
"""Behind it, a weight's address and its outputs, part by part."""
_MOST_PARTS = 3


def _long(number: int) -> ir.Constant:
    return ir.Constant(LONG, number)


@intrinsic  # type: ignore[untyped-decorator]
def claim(typing: Any, address: Any) -> Any:
    """The next number, for one thread alone."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        return build.atomic_rmw("add", build.inttoptr(given[0], LONG.as_pointer()), _long(1), "monotonic")

    return types.int64(types.int64), code


def _sums(build: Any, four: list[Any]) -> Any:
    """The sums of four vectors, as one vector of four."""

    def added(one: Any, other: Any, first: tuple[int, ...], second: tuple[int, ...]) -> Any:
        def picked(places: tuple[int, ...]) -> Any:
            mask = [quarter + (place if place < 4 else place - 4 + LANES) for quarter in range(0, LANES, 4) for place in places]
            return build.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT, LANES), mask))

        return build.fadd(picked(first), picked(second))

    pairs = [added(four[at], four[at + 1], (0, 4, 1, 5), (2, 6, 3, 7)) for at in (0, 2)]
    found = added(pairs[0], pairs[1], (0, 1, 4, 5), (2, 3, 6, 7))
    width = LANES
    while width > 4:
        width //= 2
        none = ir.Constant(found.type, ir.Undefined)
        low, high = (ir.Constant(ir.VectorType(INT, width), list(range(at, at + width))) for at in (0, width))
        found = build.fadd(build.shuffle_vector(found, none, low), build.shuffle_vector(found, none, high))
    return found


def loaded(build: Any, address: Any, of: Any) -> Any:
    vector = build.load(build.bitcast(address, ir.VectorType(of, LANES).as_pointer()))
    vector.align = of.width // 8 if isinstance(of, ir.IntType) else 4
    return vector


def fused_of(build: Any) -> Any:
    """a * b + c, rounded once."""
    return cgutils.get_or_insert_function(build.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32")


def switched(build: Any, chosen: Any, given: Any, cases: Mapping[int, tuple[int, ...]], code: Any) -> None:
    """The code of one of the cases, which each stand for a number and two more arguments."""
    end = build.append_basic_block("end")
    choice = build.switch(chosen, end)
    for number, case in cases.items():
        branch = build.append_basic_block("case")
        choice.add_case(_long(number), branch)
        build.position_at_end(branch)
        code(build, given, *case)
        build.branch(end)
    build.position_at_end(end)


def _weights(build: Any, start: Any, place: Any, inner: Any, half: int) -> list[Any]:
    """Vectors of the four outputs' weights, widened."""
    found = []
    for output in range(_SIDE):
        at = build.gep(start, [build.add(place, build.mul(inner, _long(output)))])
        vector = loaded(build, at, _HALF if half else FLOAT)
        if half:
            wide = ir.VectorType(INT, LANES)
            vector = build.bitcast(build.shl(build.zext(vector, wide), ir.Constant(wide, [16] * LANES)), VECTOR)
        found.append(vector)
    return found


def _block_of(build: Any, given: Any, rows: int, half: int) -> None:
    """out[rows, 4] = (or +=) x[rows, inner] @ weight[4, inner].T, and fetch what is wanted next."""
    x, weight, out, inner, row_outputs, onto, ahead, near, far = given[:9]
    x, out = (build.inttoptr(address, FLOAT.as_pointer()) for address in (x, out))
    weight = build.inttoptr(weight, (_HALF if half else FLOAT).as_pointer())
    fused = fused_of(build)
    fetch_type = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), INT, INT, INT])
    fetch = cgutils.get_or_insert_function(build.module, fetch_type, "llvm.prefetch.p0")
    before, loop, after = build.block, build.append_basic_block("loop"), build.append_basic_block("after")
    build.branch(loop)
    build.position_at_end(loop)
    place = build.phi(LONG)
    place.add_incoming(_long(0), before)
    sums = [[build.phi(VECTOR) for _ in range(_SIDE)] for _ in range(rows)]
    weights = _weights(build, weight, place, inner, half)
    for row, four in enumerate(sums):
        vector = loaded(build, build.gep(x, [build.add(place, build.mul(inner, _long(row)))]), FLOAT)
        for output, held in enumerate(four):
            held.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), before)
            held.add_incoming(build.call(fused, [weights[output], vector, held]), loop)
    for line in range(4):
        step = build.add(build.mul(near, _long(line & 1)), build.mul(far, _long(line >> 1)))
        at = build.add(build.add(ahead, step), build.mul(place, _long(2 if half else 4)))
        flags = [ir.Constant(INT, flag) for flag in (0, 2, 1)]  # to read, into the second cache, data
        build.call(fetch, [build.inttoptr(at, _BYTE.as_pointer()), *flags])
    following = build.add(place, _long(LANES))
    place.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, inner), loop, after)
    build.position_at_end(after)
    for row, four in enumerate(sums):
        found = _sums(build, [held.incomings[1][0] for held in four])
        at = build.bitcast(build.gep(out, [build.mul(row_outputs, _long(row))]), found.type.as_pointer())
        old = build.load(at)
        old.align = 4
        kept = build.select(build.icmp_signed("!=", onto, _long(0)), old, ir.Constant(found.type, [0.0] * 4))
        build.store(build.fadd(found, kept), at).align = 4


@intrinsic  # type: ignore[untyped-decorator]
def block(
    typing: Any,
    x: Any,
    weight: Any,
    out: Any,
    inner: Any,
    row_outputs: Any,
    onto: Any,
    ahead: Any,
    near: Any,
    far: Any,
    count: Any,
    wide: Any,
) -> Any:
    """One of the blocks, by the number of rows and the weights' type."""

    def code(context: Any, build: Any, signature: Any, given: Any) -> Any:
        cases = {2 * rows + half: (rows, half) for rows in range(1, ROWS + 1) for half in (0, 1)}
        switched(build, build.add(build.mul(given[9], _long(2)), given[10]), given, cases, _block_of)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), code


def _share(address):  # type: ignore[no-untyped-def]
    """What one thread does: it takes chunks of outputs until none is left."""
    job = numba.carray(address, _FIRST_PART + 2 * _MOST_PARTS)
    count, inner, row_outputs, half = job[_COUNT], job[_INNER], job[_ROW_OUTPUTS], job[_IS_HALF]
    row_bytes = inner * (2 if half else 4)
    groups = (count + ROWS - 1) // ROWS
    near = row_bytes if groups <= 2 else 0
    far = 2 * row_bytes if groups == 1 else 0
    while True:
        chunk, first = claim(job.ctypes.data), 0
        for part in range(job[_PARTS]):
            weight, outputs = job[_FIRST_PART + 2 * part], job[_FIRST_PART + 2 * part + 1]
            chunks = (outputs + job[_CHUNK] - 1) // job[_CHUNK]
            if chunk < chunks:
                break
            chunk -= chunks
            first += outputs
        else:
            return
        end = min(outputs, (chunk + 1) * job[_CHUNK])
        for output in range(chunk * job[_CHUNK], end, _SIDE):
            ahead = weight + min(output + _AHEAD, end - _SIDE) * row_bytes
            row = 0
            for group in range(groups):
                rows = (count - row + groups - group - 1) // (groups - group)
                lines = ahead + (2 * group if groups == 2 else group & 3) * row_bytes
                out = job[_OUT] + (row * row_outputs + first + output) * 4
                at = weight + output * row_bytes
                block(job[_ROWS] + row * inner * 4, at, out, inner, row_outputs, job[_ONTO], lines, near, far, rows, half)
                row += rows


_work = numba.cfunc(types.void(types.CPointer(types.int64)), cache=True)(_share)
_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Job = ctypes.c_int64 * (_FIRST_PART + 2 * _MOST_PARTS)


def _team() -> Any:
    """GOMP_parallel(function, its argument, threads, flags) of the runtime that torch itself uses; None where it has another.
    https://gcc.gnu.org/onlinedocs/libgomp/The-libgomp-ABI.html"""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return found


_parallel = _team()


def fits(weight: Tensor) -> bool:
    """Whether a weight can be read by these kernels."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.is_contiguous()
        and weight.shape[0] % _SIDE == 0
        and weight.shape[1] % LANES == 0
    )


class Weights:
    """Weights that the same rows are multiplied with, three at most, of one type that `fits`."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.sizes = [weight.shape[0] for weight in weights]
        self.outputs = sum(self.sizes)


def product(x_TI: Tensor, weights: Weights, out_TO: Tensor, onto: bool = False) -> Tensor:
    """out = x @ weights.T, all weights' outputs side by side; added to what is there with `onto`. `x` and `out` are contiguous
    float32."""
    threads, outputs = team_size(), weights.outputs
    chunk = max(_LEAST_CHUNK, -(-outputs // (8 * threads * _SIDE)) * _SIDE) if threads > 1 else outputs
    half = weights.weights[0].dtype == torch.bfloat16
    sizes = (*x_TI.shape, outputs, onto, half, chunk, len(weights.sizes))
    parts = (number for one, size in zip(weights.weights, weights.sizes, strict=True) for number in (one.data_ptr(), size))
    launch(_work.address, _Job(0, x_TI.data_ptr(), out_TO.data_ptr(), *sizes, *parts), threads)
    return out_TO


def team_size() -> int:
    return torch.get_num_threads() if _parallel is not None else 1


def launch(function: int, job: Any, threads: int) -> None:
    """Let so many of torch's threads run a compiled function of one argument, each the same."""
    if threads > 1:
        _parallel(function, ctypes.addressof(job), threads, 0)
    else:
        _Function(function)(ctypes.addressof(job))
