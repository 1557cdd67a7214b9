"""Settings that torch reads from the environment when it is loaded, and those of the C library's memory. A user's own settings
win."""

from __future__ import annotations

import ctypes
import os

FOR_TORCH = {
    # Threads of OpenMP that wait for work spin for some tenths of a millisecond and then sleep. On a busy machine longer spinning
    # (the library's default) cost two thirds of the speed of training; sleeping at once costs up to 5 % on an idle one.
    "GOMP_SPINCOUNT": "5000",
    # Tensors of 2 MB and more lie on huge pages where the system offers them (Linux, "madvise"): a third fewer page faults,
    # 3 % faster training of a 135M model.
    "THP_MEM_ALLOC_ENABLE": "1",
}
KEPT_BYTES = 32 << 20
"""Memory that was freed and is not given back to the system at once; also the largest piece that glibc takes from what it keeps.
By itself it gives back all beyond a few megabytes, which the next tensor asks for anew, page by page. Without it, in a virtual
machine, a gate over 512 tokens of a 135M model took 1.9 ms instead of 0.3, its whole prompt a sixth and its SFT an eighth longer;
SFT's peak was the same, LoRA's 1 % lower."""
_TRIM, _MAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)."""


_ours: set[str] = set()
"""Variables that were set here."""


def prepare() -> None:
    """Called before torch is loaded; later it changes nothing."""
    for name, value in FOR_TORCH.items():
        waits = name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ  # the count would win over the policy
        if name not in os.environ and not waits:
            os.environ[name] = value
            _ours.add(name)
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_MAP, KEPT_BYTES)
        mallopt(_TRIM, KEPT_BYTES)


def given() -> dict[str, str]:
    """The variables as the user has them, for processes that are prepared by themselves, or for other things than torch."""
    return {name: value for name, value in os.environ.items() if name not in _ours}
