"""The numbers that rows of a curation were judged by: a histogram each, its thresholds, and what these took."""

from __future__ import annotations

import bisect
import math
from typing import Any, NamedTuple

from modelwright.report import StageView
from modelwright.report.read import exact, items, number, percent, rows, significant, stats, text

TALL = 62.0
"""Height of the tallest bar, in pixels."""
FIRST = 6
"""Statistics of a step that are shown at once: those whose thresholds took most."""


class Bar(NamedTuple):
    x: float
    """Begin and width, of the picture's width."""
    wide: float
    kept: float
    """Height, in pixels."""
    dropped: float
    said: str


class Limit(NamedTuple):
    """One threshold."""

    at: float
    anchor: str
    words: str
    """`min_words ≥ 50`"""
    value: str
    took: str
    """How many rows fail it."""


class Histogram(NamedTuple):
    title: str
    bars: list[Bar]
    limits: list[Limit]
    ticks: list[tuple[float, str, str]]
    """Place, text and anchor."""
    note: str
    alt: str


class Judged(NamedTuple):
    """The statistics of one step."""

    step: str
    source: str
    first: list[Histogram]
    more: list[Histogram]


def judged(stage: StageView) -> list[Judged]:
    by_step: dict[str, list[dict[str, Any]]] = {}
    for tree in rows(stats(stage), "statistics"):
        by_step.setdefault(text(tree, "step"), []).append(tree)
    found = []
    for step, trees in by_step.items():
        ordered = sorted(trees, key=lambda tree: -max([number(t, "rows") or 0 for t in rows(tree, "thresholds")], default=0.0))
        drawn = [one for tree in ordered if (one := _histogram(tree)) is not None]
        if drawn:
            found.append(Judged(step, text(trees[0], "source"), drawn[:FIRST], drawn[FIRST:]))
    return found


def _histogram(tree: dict[str, Any]) -> Histogram | None:
    edges, kept, dropped = (_numbers(tree, key) for key in ("edges", "kept", "dropped"))
    if len(edges) != len(kept) + 1 or len(kept) != len(dropped) or not kept:
        return None
    scale, whole = text(tree, "scale"), sum(kept) + sum(dropped)
    tallest = math.sqrt(max((k + d for k, d in zip(kept, dropped, strict=True)), default=0.0)) or 1.0
    bars = []
    for place, (stay, gone) in enumerate(zip(kept, dropped, strict=True)):
        if stay or gone:
            height = max(1.5, TALL * math.sqrt(stay + gone) / tallest)
            span = (
                f"{significant(edges[place])}"
                if scale == "whole"
                else f"{significant(edges[place])} to {significant(edges[place + 1])}"
            )
            said = f"{span}: {exact(stay)} kept, {exact(gone)} dropped"
            part = height * gone / (stay + gone)
            bars.append(Bar(place / len(kept), 1 / len(kept), height - part, part, said))
    limits = [_limit(one, edges, scale, whole) for one in rows(tree, "thresholds")]
    beyond = sum(_numbers(tree, "beyond"))
    notes = [f"median {significant(number(tree, 'median') or 0.0)}"]
    if beyond:
        notes.append(f"{exact(beyond)} beyond, up to {significant(number(tree, 'max') or 0.0)}")
    title = text(tree, "statistic")
    alt = f"Histogram of {title} of {exact(number(tree, 'rows'))} rows; " + ", ".join(f"{x.words}: {x.took}" for x in limits)
    return Histogram(title, bars, limits, _ticks(edges, scale), ", ".join(notes), alt)


def _numbers(tree: dict[str, Any], key: str) -> list[float]:
    values = [number({"value": value}, "value") for value in items(tree, key)]
    return [value for value in values if value is not None]


def _place(value: float, edges: list[float], scale: str) -> float:
    """Where a value lies, of the picture's width: bins are equally wide whatever they hold."""
    bin_ = min(max(bisect.bisect_right(edges, value) - 1, 0), len(edges) - 2)
    low, high = edges[bin_], edges[bin_ + 1]
    if scale == "log" and low > 0 and value > 0:
        part = math.log(value / low) / math.log(high / low)
    else:
        part = (value - low) / (high - low) if high > low else 0.0
    return min(1.0, max(0.0, (bin_ + part) / (len(edges) - 1)))


def _limit(tree: dict[str, Any], edges: list[float], scale: str, whole: float) -> Limit:
    value, is_least = number(tree, "value") or 0.0, text(tree, "side") == "least"
    at = _place(value + (1.0 if scale == "whole" and not is_least else 0.0), edges, scale)
    default, failed = number(tree, "default"), number(tree, "rows") or 0.0
    words = text(tree, "field")
    if ":" not in words:  # else a switch
        words += f" {'≥' if is_least else '≤'} {significant(value)}"
    if default is not None and default != value:
        words += f" (default {significant(default)})"
    took = f"{exact(failed)} {'row fails' if failed == 1 else 'rows fail'}" + (f", {percent(failed / whole)}" if whole else "")
    return Limit(at, "end" if at > 0.5 else "start", words, significant(value), took if failed else "no row fails")


def _ticks(edges: list[float], scale: str) -> list[tuple[float, str, str]]:
    """Both ends, and the middle where bins say more than their number."""
    last = edges[-1] - 1 if scale == "whole" else edges[-1]
    ends = [(0.0, significant(edges[0]), "start"), (1.0, significant(round(last, 9)), "end")]
    if scale == "whole":
        return ends
    middle = len(edges) // 2
    return [ends[0], (middle / (len(edges) - 1), significant(edges[middle]), "middle"), ends[1]]
