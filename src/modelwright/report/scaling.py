"""Pictures of a scaling law: what a budget buys at each size, and how well a ladder's runs lie on their law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from modelwright.core.units import count_text
from modelwright.report.curves import FIRST, SECOND, SOFT, chart_svg
from modelwright.report.styled import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (8.4, 3.8)
"""Inches."""


class Budget(NamedTuple):
    """The loss over sizes at one budget."""

    params: Sequence[float]
    losses: Sequence[float]
    best: tuple[float, float]
    """Weights and loss of the best size."""
    said: str


class Point(NamedTuple):
    """A run beside what the law says of it."""

    measured: float
    predicted: float
    interval: tuple[float, float] | None = None
    """What was said of it before it ran; None where it is in the fit."""


def budget_svg(budget: Budget) -> str:
    """Loss over sizes."""

    def draw(axes: Axes) -> None:
        axes.plot(budget.params, budget.losses, color=FIRST, linewidth=1.6)
        axes.plot([budget.best[0]], [budget.best[1]], "o", color=SECOND)
        axes.annotate(budget.said, budget.best, textcoords="offset points", xytext=(0, -16), color=SECOND, ha="center")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: count_text(value))
        axes.margins(y=0.2)
        axes.set_xlabel("weights")
        axes.set_ylabel("loss, nats a token")

    return chart_svg("scaling-budget", SIZE, f"Loss over size at one budget: {budget.said}", draw)


def ladder_svg(points: Sequence[Point]) -> str:
    """Measured over predicted loss."""

    def draw(axes: Axes) -> None:
        values = [value for point in points for value in point[:2]]
        axes.plot([min(values), max(values)], [min(values), max(values)], color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
        fitted = [point for point in points if point.interval is None]
        axes.plot([p.predicted for p in fitted], [p.measured for p in fitted], "o", color=FIRST, label="in the fit")
        for point in points:
            if point.interval is not None:
                axes.plot(point.interval, [point.measured] * 2, color=SECOND, linewidth=1.0)
        before = [point for point in points if point.interval is not None]
        if before:
            label = "predicted before it ran, with its interval"
            axes.plot([p.predicted for p in before], [p.measured for p in before], "s", color=SECOND, label=label)
        axes.set_xlabel("predicted loss, nats a token")
        axes.set_ylabel("measured")
        axes.legend(frameon=False)

    return chart_svg("scaling-ladder", SIZE, f"{len(points)} runs: measured over predicted loss", draw)


def page(lines: Sequence[tuple[str, Sequence[dict[str, str]]]], budget: Budget | None, points: Sequence[Point]) -> str:
    """Tables under their headings, and the pictures that there are."""
    pictures = [Markup(budget_svg(budget))] if budget is not None else []
    pictures += [Markup(ladder_svg(points))] if points else []
    return styled("scaling.html", "style.css", {"tables": lines, "pictures": pictures})
