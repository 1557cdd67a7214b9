"""What a CUDA card holds for what a program allocates: segments of torch's caching allocator, workspaces of matrix products and
the driver's context. For a stream of allocations by replay, for a closed form as an interval.

Sources stand at each number; `benchmarks/plan_published.py` holds the replay against peaks that others measured and published.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from modelwright.core.estimate import Estimate, Machine, Part, Quantity
from modelwright.core.units import bytes_text
from modelwright.plan._cuda_allocator import Allocator

# --- what is there beside tensors -------------------------------------------------------------------

HANDLES = 2
"""A thread has a handle of cuBLAS of its own: the one that computes the loss, and autograd's for the card
(`getCurrentCUDABlasHandle` in https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/cuda/CublasHandlePool.cpp)."""
WORKSPACE_BYTES, HOPPER_WORKSPACE_BYTES = 2 * 4096 * 1024 + 8 * 16 * 1024, 32 << 20
"""What torch gives each handle to work in, and on compute capability 9.0 (`parseChosenWorkspaceSize`, same file)."""
HOPPER = ("H100", "H200", "H800", "H20", "GH200")
"""Cards of that capability (https://developer.nvidia.com/cuda-gpus)."""
CONTEXT = Quantity(
    426 * 2.0**20,
    "bytes",
    "the driver's context with its kernels, which is no tensor's: 426 MiB on an RTX 6000 Ada with torch 2.10 for CUDA 13 "
    "(github.com/unslothai/unsloth-zoo/pull/1053), 287 MB with and 667 MB without lazy loading of kernels "
    "(github.com/pytorch/pytorch/pull/86509)",
    287_047_680.0,
    666_632_192.0,
)
"""Of every card: what is published names few of them. `torch.cuda.memory_reserved` does not count it, `nvidia-smi` does."""


def workspace_bytes(card: str) -> int:
    """Of all handles together, by the card's name; unknown ones are taken for the usual."""
    return HANDLES * (HOPPER_WORKSPACE_BYTES if any(name in card for name in HOPPER) else WORKSPACE_BYTES)


# --- a stream of allocations ------------------------------------------------------------------------


class Replayed(NamedTuple):
    """What a stream of allocations came to."""

    reserved_bytes: int
    """Most in segments, as `torch.cuda.max_memory_reserved` tells."""
    allocated_bytes: int
    """Most in blocks, as `torch.cuda.max_memory_allocated` tells."""
    operation: str
    """At which the last segment was added."""


def replay(events: Iterable[tuple[int, int, str]], allocator: Allocator | None = None) -> Replayed:
    """Allocations and frees in their order: (bytes, below zero what is freed; number of the storage; operation). `allocator`:
    with what came before."""
    cached = Allocator() if allocator is None else allocator
    last = ""
    for size, name, operation in events:
        if size > 0:
            before = cached.peak_reserved
            cached.allocate(name, size)
            if cached.peak_reserved > before:
                last = operation
        else:
            cached.free(name)
    return Replayed(cached.peak_reserved, cached.peak_allocated, last)


OFF = (0.95, 1.05)
"""Measured over predicted, of replays: 0.98 to 1.00 in the runs of `benchmarks/plan_published.py`, whose graph and longest batch
are known; wider for what is not known elsewhere (kernels chosen by size, batches before)."""


def reserved(events: Iterable[tuple[int, int, str]], card: str = "") -> Quantity:
    """What `torch.cuda.max_memory_reserved` will tell of a stream of allocations."""
    cached = with_workspaces(card)
    found = replay(events, cached)
    size, used = found.reserved_bytes, found.allocated_bytes
    why = f"{bytes_text(used)} allocated, {1 - used / size:.1%} in gaps; the last segment at {found.operation}"
    return Quantity(size, "bytes", why, OFF[0] * size, OFF[1] * size)


def with_workspaces(card: str = "") -> Allocator:
    """Of a process that has computed before: the first matrix product of each thread takes its workspace for good."""
    cached = Allocator()
    for handle in range(HANDLES):
        cached.allocate(-1 - handle, workspace_bytes(card) // HANDLES)
    return cached


# --- a closed form ----------------------------------------------------------------------------------

GAPS, LEAST_GAPS, MOST_GAPS = 0.045, 0.01, 0.13
"""Bytes of segments over bytes that tensors ask for, less 1: median, least and most of replays of this project's training steps
(25M to 1B weights, LoRA and all weights, rows of 512 to 2,048 tokens) and of the runs of `benchmarks/plan_published.py`."""
SEGMENT_BYTES = 20 * 2.0**20
"""A model of no size at all still has a segment of each sort."""
BESIDE = ("workspaces", "gaps", "context")
"""Parts of a card that are no tensors."""


def card_parts(parts: Sequence[Part], card: str = "") -> tuple[Part, ...]:
    """The parts of a closed form, and what a card holds beside tensors."""
    tensors = [part for part in parts if part.name not in BESIDE]
    gaps = GAPS * sum(part.bytes for part in tensors) + SEGMENT_BYTES
    return (
        *tensors,
        Part("workspaces", workspace_bytes(card), "of cuBLAS, one for each thread that computes"),
        Part("gaps", gaps, "segments that the allocator holds and does not use, as in the median of replays"),
        Part("context", CONTEXT.value, CONTEXT.why),
    )


def interval(parts: Sequence[Part], card: str = "") -> Quantity:
    """Most that a card holds for a closed form, with workspaces, gaps and context; `card`: its name."""
    asked = sum(part.bytes for part in parts if part.name not in BESIDE)
    fixed = workspace_bytes(card)
    assert CONTEXT.low is not None and CONTEXT.high is not None
    return Quantity(
        sum(part.bytes for part in card_parts(parts, card)),
        "bytes",
        f"tensors {bytes_text(asked)}, and workspaces, gaps and context",
        asked * (1 + LEAST_GAPS) + fixed + CONTEXT.low,
        asked * (1 + MOST_GAPS) + fixed + 2 * SEGMENT_BYTES + CONTEXT.high,
    )


def on_card(estimate: Estimate, machine: Machine) -> Estimate:
    """An estimate whose CUDA card holds what tensors ask for, and what comes with them; the same once more is the same. Of
    others (Metal) no more is known than their tensors."""
    if machine.device != "cuda" or estimate.device_memory is None or not estimate.device_parts:
        return estimate
    found = interval(estimate.device_parts, machine.name)
    tensors = estimate.device_memory.why.removesuffix(_WITH)
    parts = card_parts(estimate.device_parts, machine.name)
    return estimate._replace(device_memory=found._replace(why=tensors + _WITH), device_parts=parts)


_WITH = "; with workspaces, gaps and context"
