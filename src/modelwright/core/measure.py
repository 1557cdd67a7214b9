"""What a stage really took: seconds and peak resident memory of this process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Meter:
    """Started when made. On Linux the peak is that of the interval, elsewhere of the process so far; workers add theirs."""

    workers_bytes: ClassVar[int] = 0

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        Meter.workers_bytes = 0
        _give_back()
        self.held_bytes = _status("VmRSS") or 0
        """What earlier stages of this process left behind: libraries, mostly. 0 where the system does not tell."""
        if _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # proc(5): resets VmHWM to the present size
            except OSError:
                pass  # a container may forbid it; the peak is then that of the process so far

    def seconds(self) -> float:
        return time.monotonic() - self.start_s

    @staticmethod
    def count_worker(process: int) -> None:
        """A process that works for this one is about to end."""
        Meter.workers_bytes += _status("VmHWM", Path(f"/proc/{process}/status")) or 0

    def peak_bytes(self) -> int:
        if (peak := _status("VmHWM")) is not None:
            return peak + Meter.workers_bytes
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _status(name: str, path: Path = _STATUS) -> int | None:
    """Bytes under this name in proc(5)'s status; None where there is none."""
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _give_back() -> None:
    """Let go of what the stage before has freed: glibc keeps it otherwise, and the next stage's peak would hold it."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library has no malloc_trim(3)
            ctypes.CDLL(None).malloc_trim(0)
