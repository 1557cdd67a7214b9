"""Numbers of a plan in words, for its tables and its page."""

from __future__ import annotations

from modelwright.core.estimate import Estimate, Quantity
from modelwright.core.units import bytes_text


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def energy_text(kwh: float | None) -> str:
    return "" if kwh is None else "0" if kwh == 0 else f"{kwh:.3g} kWh" if kwh >= 0.0995 else f"{1000 * kwh:.2g} Wh"


def memory_text(found: Estimate) -> str:
    each = bytes_text(found.memory.value)
    return each if found.processes == 1 else f"{found.processes} x {each}"


def card_cells(found: Quantity | None) -> dict[str, str]:
    """Two narrow columns, as `fit` shows them, in place of the interval in one."""
    ends = {"card": found.value, "at most": found.high} if found else {"card": None, "at most": None}
    return {name: "" if size is None else bytes_text(size) for name, size in ends.items()}


def interval_text(found: Quantity | None) -> str:
    """`20.5 GB (19.8 GB to 21.3 GB)`; empty where there is none."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return bytes_text(found.value)
    return f"{bytes_text(found.value)} ({bytes_text(found.low)} to {bytes_text(found.high)})"
