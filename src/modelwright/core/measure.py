"""What a stage really took: seconds and peak resident memory of this process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Meter:
    """Started when made. On Linux the peak is that of the interval; elsewhere of the process so far."""

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        if _CLEAR.exists():
            try:
                _CLEAR.write_text("5")  # proc(5): resets VmHWM to the present size
            except OSError:
                pass  # a container may forbid it; the peak is then that of the process so far

    def seconds(self) -> float:
        return time.monotonic() - self.start_s

    def peak_bytes(self) -> int:
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
