"""Predictions held against what was measured, as one HTML page: no scripts, nothing fetched, every value escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from modelwright.core.preview import visible
from modelwright.core.units import bytes_text, seconds_text
from modelwright.report.styled import styled

WIDE, TALL = 460.0, 300.0
"""Of a picture's field, in pixels."""
LEFT, BELOW, ABOVE, RIGHT = 64.0, 46.0, 12.0, 14.0
BINS = 13
"""Of the histogram: odd, so that one of them has no error in its middle."""
LEAST_REACH = 0.2
"""Errors that the histogram reaches to at least, as log(measured / predicted)."""


class Dot(NamedTuple):
    """A run."""

    name: str
    predicted: float
    measured: float
    inside: bool


class Panel(NamedTuple):
    """Seconds or bytes of one kind on one host."""

    kind: str
    host: str
    what: str
    """`time`, `memory` or `memory of the card`."""
    dots: Sequence[Dot]
    factors: tuple[float, float]
    """Of the interval around a prediction."""
    median: float
    """Of the absolute errors, as a share of what was measured."""
    corrections: Sequence[tuple[str, float]]
    """What corrects: its name and its factor."""

    @property
    def unit(self) -> str:
        return "s" if self.what == "time" else "bytes"

    @property
    def inside(self) -> int:
        return sum(dot.inside for dot in self.dots)


def page(panels: Sequence[Panel], store: str) -> str:
    """Every panel with its two pictures and its corrections."""
    shown = [(panel, scatter(panel), histogram(panel)) for panel in panels]
    values = {"shown": shown, "store": store, "visible": visible, "amount": amount, "percent": percent}
    return styled("calibration.html", "calibration.css", values)


def amount(value: float, unit: str) -> str:
    return seconds_text(value) if unit == "s" else bytes_text(value)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"


# --- pictures -------------------------------------------------------------------------------------------


def _svg(label: str, inner: Iterator[str]) -> Markup:
    width, height = LEFT + WIDE + RIGHT, ABOVE + TALL + BELOW
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(inner)}</svg>'
    )


def scatter(panel: Panel) -> Markup:
    """Predicted against measured on logarithmic axes: where they are equal, the interval around it, a dot a run."""
    values = [value for dot in panel.dots for value in (dot.predicted, dot.measured)]
    low, high = math.log10(min(values)) - 0.12, math.log10(max(values)) + 0.12
    if high - low < 0.5:
        middle = (low + high) / 2
        low, high = middle - 0.25, middle + 0.25
    label = f"{panel.kind}: {panel.what} predicted and measured, {len(panel.dots)} runs, {panel.inside} inside their interval"
    return _svg(label, _scatter(panel, low, high))


def _scatter(panel: Panel, low: float, high: float) -> Iterator[str]:
    def x(log: float) -> float:
        return LEFT + WIDE * (log - low) / (high - low)

    def y(log: float) -> float:
        return ABOVE + TALL * (high - min(max(log, low), high)) / (high - low)

    yield f'<rect class="field" x="{LEFT:g}" y="{ABOVE:g}" width="{WIDE:g}" height="{TALL:g}"/>'
    below, above = (math.log10(factor) for factor in panel.factors)
    steps = [low + (high - low) * place / 60 for place in range(61)]  # clipped at the field's edges
    corners = [(log, log + above) for log in steps] + [(log, log + below) for log in reversed(steps)]
    yield f'<polygon class="band" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in corners)}"/>'
    yield f'<line class="equal" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>'
    for value in _ticks(low, high):
        log, said = math.log10(value), str(escape(amount(value, panel.unit)))
        yield f'<line class="tick" x1="{x(log):.1f}" y1="{ABOVE + TALL:g}" x2="{x(log):.1f}" y2="{ABOVE + TALL + 5:g}"/>'
        yield f'<text x="{x(log):.1f}" y="{ABOVE + TALL + 19:g}" text-anchor="middle">{said}</text>'
        yield f'<line class="tick" x1="{LEFT - 5:g}" y1="{y(log):.1f}" x2="{LEFT:g}" y2="{y(log):.1f}"/>'
        yield f'<text x="{LEFT - 8:g}" y="{y(log) + 4:.1f}" text-anchor="end">{said}</text>'
    yield f'<text class="axis" x="{LEFT + WIDE / 2:g}" y="{ABOVE + TALL + 39:g}" text-anchor="middle">predicted</text>'
    yield f'<text class="axis" x="{LEFT + 8:g}" y="{ABOVE + 18:g}">measured</text>'
    for dot in panel.dots:
        said = f"{visible(dot.name)}: predicted {amount(dot.predicted, panel.unit)}, measured {amount(dot.measured, panel.unit)}"
        where = f'cx="{x(math.log10(dot.predicted)):.1f}" cy="{y(math.log10(dot.measured)):.1f}"'
        yield f'<circle class="{"in" if dot.inside else "out"}" {where} r="5"><title>{escape(said)}</title></circle>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, at most seven."""
    for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [
            digit * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for digit in digits
            if low <= math.log10(digit * 10.0**power) <= high
        ]
        if len(found) <= 7:
            break
    return found


def histogram(panel: Panel) -> Markup:
    """How many runs took so much less or more than predicted."""
    errors = [math.log(dot.measured / dot.predicted) for dot in panel.dots]
    edges = (math.log(factor) for factor in panel.factors)
    reach = max(LEAST_REACH, *(abs(value) for value in (*errors, *edges))) * 1.05
    counts = [0] * BINS
    for error in errors:
        counts[min(BINS - 1, int((error + reach) / (2 * reach) * BINS))] += 1
    label = f"{panel.kind}: {panel.what}, errors of {len(errors)} predictions, half of them within {percent(panel.median)}"
    return _svg(label, _bars(panel, counts, reach))


def _bars(panel: Panel, counts: Sequence[int], reach: float) -> Iterator[str]:
    def x(error: float) -> float:
        return LEFT + WIDE * (min(max(error, -reach), reach) + reach) / (2 * reach)

    most, wide = max(counts), WIDE / len(counts)
    low, high = (math.log(factor) for factor in panel.factors)
    yield f'<rect class="field" x="{LEFT:g}" y="{ABOVE:g}" width="{WIDE:g}" height="{TALL:g}"/>'
    yield f'<rect class="band" x="{x(low):.1f}" y="{ABOVE:g}" width="{x(high) - x(low):.1f}" height="{TALL:g}"/>'
    for place, count in enumerate(counts):
        tall = (TALL - 12) * count / most
        if count:
            left, top = LEFT + place * wide + 1, ABOVE + TALL - tall
            yield f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}"/>'
    yield f'<line class="equal" x1="{x(0):.1f}" y1="{ABOVE:g}" x2="{x(0):.1f}" y2="{ABOVE + TALL:g}"/>'
    for count in sorted({most, most // 2} - {0}):
        height = ABOVE + TALL - (TALL - 12) * count / most
        yield f'<text x="{LEFT - 8:g}" y="{height + 4:.1f}" text-anchor="end">{count}</text>'
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        said = percent(math.expm1(share * reach * 0.9))
        yield f'<text x="{x(share * reach * 0.9):.1f}" y="{ABOVE + TALL + 19:g}" text-anchor="middle">{_signed(said)}</text>'
    yield (
        f'<text class="axis" x="{LEFT + WIDE / 2:g}" y="{ABOVE + TALL + 39:g}" text-anchor="middle">'
        "measured, more or less than predicted</text>"
    )
    yield f'<text class="axis" x="{LEFT + 8:g}" y="{ABOVE + 18:g}">runs</text>'


def _signed(text: str) -> str:
    return text if text.startswith("-") or text == "0.0 %" else f"+{text}"
