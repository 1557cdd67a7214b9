"""Numbers of a plan in words, for its tables and its page."""

from __future__ import annotations

from modelwright.core.estimate import Estimate, Quantity
from modelwright.core.memory.serving import Rule, beside_rule
from modelwright.core.units import bytes_text

WEIGHT_BITS = 32
"""Of the weights that training keeps."""


def rule_of(found: Estimate) -> Rule | None:
    """The rule of thumb beside the account of a stage that makes a model and holds parts that are known; else None."""
    made = found.facts.get("", None)
    parts = found.device_parts or found.parts
    if made is None or made.shape is None or not any(part.name == "weights" for part in parts):
        return None
    return beside_rule(made.shape.params, WEIGHT_BITS, parts)


def rule_text(rule: Rule) -> str:
    off = f"{abs(rule.error_frac):.0%} {'less' if rule.error_frac < 0 else 'more'} than this account"
    return f"rule of thumb, weights x 4 bytes x 1.2: {bytes_text(rule.bytes)}, {off}"


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
