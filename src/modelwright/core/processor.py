"""What this machine's processor calls itself and can multiply, as Linux tells it; no torch."""

from __future__ import annotations

import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

INFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """What decides which kernels run, and so how much memory they take."""

    pieces: bool = False
    """It has AVX2 and FMA, or AVX-512, and numba is installed: norms and gates are kernels of our own (`nn/_pieces.py`)."""
    wide: bool = False
    """With AVX-512 attention is, too (`nn/_attend_many.py`)."""
    dots: bool = False
    """It has AVX512-BF16, which that takes for products in bfloat16."""
    half: bool = False
    """It multiplies bfloat16 in hardware, with that or with AMX."""


def told() -> tuple[set[str], str]:
    """(its instructions, its name); elsewhere than on Linux no instructions are known."""
    if not INFO.exists():
        return set(), platform.processor() or platform.machine()
    flags: set[str] = set()
    model = platform.machine()
    for line in INFO.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
        elif name.strip() == "model name":
            model = value.strip()
        if not line.strip():
            break
    return flags, model


@cache
def here() -> Processor:
    flags, _ = told()
    compiled = find_spec("numba") is not None
    wide = compiled and "avx512f" in flags
    pieces = wide or (compiled and {"avx2", "fma"} <= flags)
    return Processor(pieces, wide, wide and "avx512_bf16" in flags, bool(flags & {"avx512_bf16", "amx_bf16"}))
