"""What decoders gain by spending more: every evaluation as a point, accuracy against the tokens spent for an answer.

The picture of Snell et al. 2024, arXiv:2408.03314, figure 3: tokens on a logarithmic axis, shares with their 95 % intervals.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup, escape

from modelwright.report import RunView
from modelwright.report.evaluations import between, is_share, show
from modelwright.report.read import number, of_kind, rows, stats, text

WIDE, TALL, LEFT, BELOW = 640.0, 260.0, 64.0, 44.0
"""Pixels of the picture, and of what its axes take up."""


class Point(NamedTuple):
    stage: str
    decoder: str
    tokens: float
    """Spent for an answer, on average."""
    value: float
    low: float
    high: float


class Spending(NamedTuple):
    """The main number of one task under several decoders."""

    task: str
    metric: str
    higher_is_better: bool
    lines: list[tuple[str, str, str, str, str]]
    """Evaluation, decoder, tokens for an answer, value, interval."""
    picture: Markup


def spending(run: RunView) -> list[Spending]:
    """A picture for each task whose answers were searched for in different ways."""
    found: dict[tuple[str, str, bool], list[Point]] = {}
    for stage in of_kind(run, "evaluate"):
        tree = stats(stage)
        answers, tokens = number(tree, "asked", "answers"), number(tree, "asked", "tokens_spent")
        worded = {text(row, "task") for row in rows(tree, "samples")}  # the others only look at probabilities
        told: set[str] = set()
        for row in rows(tree, "metrics") if answers and tokens and tokens > 0 else []:
            task, value = text(row, "task"), number(row, "value")
            if task in worded - told and not text(row, "group") and value is not None and answers and tokens:
                told.add(task)
                low, high = number(row, "low"), number(row, "high")
                ends = (value if low is None else low, value if high is None else high)
                point = Point(stage.name, text(tree, "decoder"), tokens / answers, value, *ends)
                found.setdefault((task, text(row, "name"), row.get("higher_is_better") is not False), []).append(point)
    return [_spending(*name, points) for name, points in found.items() if len({point.decoder for point in points}) > 1]


def _spending(task: str, metric: str, higher: bool, points: list[Point]) -> Spending:
    share = is_share([end for point in points for end in (point.value, point.low, point.high)], metric)
    ordered = sorted(points, key=lambda point: point.tokens)
    lines = [(p.stage, p.decoder, f"{p.tokens:.1f}", show(p.value, share), between(p.low, p.high, share)) for p in ordered]
    return Spending(task, metric, higher, lines, _picture(ordered, metric, share))


def _picture(points: list[Point], metric: str, share: bool) -> Markup:
    low, high = (0.0, 1.0) if share else (min(p.low for p in points), max(p.high for p in points))
    span = (high - low) or 1.0
    first, last = math.log10(points[0].tokens), math.log10(points[-1].tokens)
    air = max(0.15, 0.1 * (last - first))
    first, last = first - air, last + air

    def x(tokens: float) -> float:
        return LEFT + (WIDE - LEFT - 20.0) * (math.log10(tokens) - first) / (last - first)

    def y(value: float) -> float:
        return 16.0 + (TALL - BELOW - 16.0) * (high - value) / span

    parts = []
    for step in range(5):
        at = low + span * step / 4
        parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{WIDE - 20:g}" y1="{y(at):.1f}" y2="{y(at):.1f}"/>')
        parts.append(f'<text class="value" x="{LEFT - 8:g}" y="{y(at) + 4:.1f}">{escape(show(at, share))}</text>')
    for tokens in _ticks(10**first, 10**last):
        parts.append(f'<text x="{x(tokens):.1f}" y="{TALL - 22:g}">{tokens:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDE) / 2:.1f}" y="{TALL - 4:g}">tokens spent for an answer</text>')
    for place, point in enumerate(points):
        at, half = x(point.tokens), 3.4 * len(point.decoder)
        name_at = min(max(at, LEFT + half), WIDE - half)  # above and below by turns, so that neighbours have room
        name_y = y(point.high) - 7 if place % 2 else y(point.low) + 15
        parts.append(f'<line class="ci" x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{y(point.value):.1f}" r="4.5"/>')
        parts.append(f'<text class="name" x="{name_at:.1f}" y="{name_y:.1f}">{escape(point.decoder)}</text>')
    label = escape(f"{metric} against tokens spent: " + "; ".join(f"{p.decoder} {p.tokens:.0f} tokens" for p in points))
    return Markup(f'<svg class="spent" role="img" aria-label="{label}" viewBox="0 0 {WIDE:g} {TALL:g}">{"".join(parts)}</svg>')


def _ticks(first: float, last: float) -> list[float]:
    """1, 2 and 5 times powers of ten on the axis."""
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    return [tick for power in powers for k in (1, 2, 5) if first <= (tick := k * 10.0**power) <= last]
