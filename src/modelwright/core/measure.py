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


class Laps:
    """Seconds of the parts of a piece of work that follow each other."""

    def __init__(self) -> None:
        self.spans: dict[str, float] = {}
        self._last_s = time.monotonic()

    def start(self) -> None:
        """What was done until now belongs to none of them."""
        self._last_s = time.monotonic()

    def move(self, name: str, to: str, seconds: float) -> None:
        """So much of what stands under one name was something else."""
        self.spans[name] = round(max(self.spans[name] - seconds, 0.0), 3)
        self.spans[to] = round(seconds, 3)

    def done(self, name: str) -> None:
        """What was done since the last call was this; a name may come again."""
        now_s = time.monotonic()
        self.spans[name] = round(self.spans.get(name, 0.0) + now_s - self._last_s, 3)
        self._last_s = now_s


class Meter:
    """Started when made. On Linux the peak is that of the interval, elsewhere of the process so far; workers add theirs."""

    workers_bytes: ClassVar[int] = 0

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        Meter.workers_bytes = 0
        self.held_bytes = held_bytes()
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


def held_bytes() -> int:
    """Of this process, once it has given back what it does not use; 0 where the system does not tell."""
    _give_back()
    return resident_bytes()


def resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    return _status("VmRSS") or 0


def share_bytes(process: int) -> int:
    """Of another process, with its part of what it shares; 0 where the system does not tell: proc(5), smaps_rollup."""
    try:
        return _status("Pss", Path(f"/proc/{process}/smaps_rollup")) or 0
    except OSError:  # it has ended
        return 0


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
