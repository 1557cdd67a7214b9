"""How many threads pay: processors that this process may use and that nobody else is using.

Source: sched_getaffinity(2), /proc/stat (proc(5)), and `cpu.max` of control groups version 2
(https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files), which containers set. Threads that wait for one
that another program has pushed off its processor spin: with two threads on two busy cores, decoding was measured 10
to 50 times slower than with one.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

_LOOK_S = 0.2
"""How long to look at what other programs do."""


def threads(asked: int = 0) -> int:
    """`asked`, or for 0 the processors allowed by affinity and by the container's quota, less those that are busy now."""
    if asked > 0:
        return asked
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    limit = min(len(allowed), _quota())
    if limit < 2:
        return 1
    try:
        before = _idle_s(allowed)
        time.sleep(_LOOK_S)
        idle = (_idle_s(allowed) - before) / _LOOK_S
    except (OSError, ValueError):  # a sandbox that hides it
        return limit
    return max(1, min(limit, math.floor(idle + 0.6)))  # one that is busy for a moment counts as free


def _quota() -> int:
    """Processors that the container may use."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if quota == "max" else max(1, math.ceil(int(quota) / int(period)))


def _idle_s(processors: set[int]) -> float:
    """Seconds that these processors have been idle or waiting for a disk, since the machine started."""
    total = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in processors:
            total += int(ticks[3]) + int(ticks[4])
    return total / os.sysconf("SC_CLK_TCK")
