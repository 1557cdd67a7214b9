"""Planned against measured: what each stage was thought to cost and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from modelwright.report import RunView
from modelwright.report.lineage import colour
from modelwright.report.read import NONE, number, ratio, seconds, size, table, text


class Cost(NamedTuple):
    """One stage's cost in one unit."""

    stage: str
    state: str
    hue: str
    planned: str
    measured: str
    ratio: str
    off: bool
    """Measured is more than twice the plan or less than half of it."""
    planned_frac: float
    """Share of the longest bar."""
    measured_frac: float
    why: str
    """The plan's reason."""


class Costs(NamedTuple):
    """One picture: every stage in one unit."""

    title: str
    rows: list[Cost]
    total: Cost
    total_label: str


def costs(run: RunView) -> list[Costs]:
    """Seconds and peak memory; a unit that nobody planned or measured is left out."""
    found = [
        _costs(run, "Time", "all stages", "seconds", "seconds", seconds, sum),
        _costs(run, "Peak memory", "highest", "memory", "peak_bytes", size, max),
    ]
    return [c for c in found if any(row.measured != NONE or row.planned != NONE for row in c.rows)]


def disk(run: RunView) -> tuple[str, str] | None:
    """Bytes left on disk, measured and planned, over the stages that have both."""
    pairs = [(number(s.manifest, "actual", "disk_bytes"), number(s.manifest, "estimate", "disk", "value")) for s in run.stages]
    both = [(a, p) for a, p in pairs if a is not None and p is not None]
    return (size(sum(a for a, _ in both)), size(sum(p for _, p in both))) if both else None


def _costs(
    run: RunView,
    title: str,
    total_label: str,
    planned_key: str,
    measured_key: str,
    show: Callable[[float | None], str],
    fold: Callable[[list[float]], float],
) -> Costs:
    raw = [
        (s, number(s.manifest, "estimate", planned_key, "value"), number(s.manifest, "actual", measured_key)) for s in run.stages
    ]
    longest = max((v for _, p, m in raw for v in (p, m) if v is not None), default=0.0) or 1.0

    def row(name: str, state: str, hue: str, planned: float | None, measured: float | None, why: str) -> Cost:
        off = bool(planned) and measured is not None and not 0.5 <= measured / (planned or 1.0) <= 2.0
        return Cost(
            name,
            state,
            hue,
            show(planned),
            show(measured),
            ratio(measured, planned),
            off,
            min(1.0, (planned or 0.0) / longest),
            min(1.0, (measured or 0.0) / longest),
            why,
        )

    lines = [row(s.name, s.state, colour(s.kind), p, m, _why(s.manifest, planned_key)) for s, p, m in raw]
    both = [(p, m) for _, p, m in raw if p is not None and m is not None]  # a total over different stages would not compare
    total = row(
        total_label, "", "other", fold([p for p, _ in both]) if both else None, fold([m for _, m in both]) if both else None, ""
    )
    return Costs(title, lines, total, total_label)


def _why(manifest: Mapping[str, Any], planned_key: str) -> str:
    """The plan's reason; a run that went on after a kill measured its last sitting alone."""
    why = text(manifest, "estimate", planned_key, "why")
    return f"{why}; resumed: measured in its last sitting" if table(manifest, "actual").get("resumed") is True else why
