"""Training curves as small SVG pictures, drawn by matplotlib from a `metrics.jsonl`.

Colours are CSS variables with a fallback, so one picture serves light and dark pages, paper and notebooks; text stays
text, so that it is sharp and can be searched.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.events import read_events
from modelwright.core.series import Points, Series, spread, thinned
from modelwright.core.units import count_text
from modelwright.report.read import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 120
"""A line has at most so many points; more steps are averaged in groups, and the group's range is shaded."""
INK = {
    "#010101": "var(--ink, #20242a)",
    "#020202": "var(--soft, #59626d)",
    "#030303": "var(--line, #e2dfd8)",
    "#040404": "var(--c-train, #3457b8)",
    "#050505": "var(--c-token, #9a5a00)",
}
"""Colours that matplotlib is given, and what the page gets instead."""
TEXT, SOFT, RULE, FIRST, SECOND = INK


class Panel(NamedTuple):
    """One small chart."""

    title: str
    unit: str
    line: Points
    marks: Points
    """The validation curve: dots, joined by a thin line, over the line."""
    said: str
    """What to read from it, for the heading and for those who do not see the picture: `peak 0.02`."""
    from_zero: bool
    log: bool = False
    level: float | None = None
    """A reference line."""


class Curves(NamedTuple):
    """What one training stage logged."""

    steps: int
    panels: list[Panel]


def read(folder: Path) -> Curves:
    """The charts that a stage's events allow; none where it logged no steps."""
    told = Series()
    for event in read_events(folder / "metrics.jsonl"):
        told.add(event)
    margin = _first(told, ("margin", "reward_margin"))
    panels = [
        _panel("Loss", "nats per token" if not margin else "", told.points("loss"), "last", told.validation()),
        _panel("Reward margin", "", margin, "last", level=0.0),
        _panel("Pairs ranked right", "share", _first(told, ("accuracy", "reward_accuracy")), "last", level=0.5),
        _panel("Busiest expert", "times an even share of tokens", told.points("expert_most"), "last", level=1.0),
        _panel("Experts without tokens", "%", _times(told.points("experts_idle"), 100), "last", from_zero=True),
        _panel("Learning rate", "", told.points("lr"), "peak", from_zero=True),
        _panel("Gradient norm", "", told.points("grad_norm"), "last", log=True),
        _panel("Speed", "tokens/s", told.speed(), "mean", from_zero=True, show=count_text),
        _panel("MFU", "% of this machine's matrix rate", _times(told.mfu(), 100), "mean", from_zero=True),
        _panel("Processor", "% of the cores", _times(told.load_points("cpu_frac"), 100), "mean", from_zero=True),
        _panel("Memory", "GB", _times(told.load_points("memory_bytes"), 1e-9), "peak", from_zero=True),
    ]
    for gpu in told.gpus():
        panels += [
            _panel(f"GPU {gpu}", "% in use", _times(told.load_points("use_frac", gpu), 100), "mean", from_zero=True),
            _panel(f"GPU {gpu} memory", "GB", _times(told.load_points("memory_bytes", gpu), 1e-9), "peak", from_zero=True),
            _panel(f"GPU {gpu} power", "W", told.load_points("power_w", gpu), "mean", from_zero=True),
        ]
    shown = [p for p in panels if p is not None]
    return Curves(told.whole, shown if told.rows() or told.validation() else [])


def _first(told: Series, names: tuple[str, ...]) -> Points:
    return next((points for name in names if (points := told.points(name))), [])


def _times(points: Points, factor: float) -> Points:
    return [(step, value * factor) for step, value in points]


def _panel(
    title: str,
    unit: str,
    line: Points,
    says: Literal["last", "peak", "mean"],
    marks: Points | None = None,
    *,
    from_zero: bool = False,
    log: bool = False,
    level: float | None = None,
    show: Callable[[float], str] = significant,
) -> Panel | None:
    if not line and not marks:
        return None
    values = [v for _, v in line]
    said = f"held out {show(marks[-1][1])}" if marks else f"{says} {show(_one(values, says))}"
    return Panel(title, unit, line, marks or [], said, from_zero, log and spread(line), level)


def _one(values: list[float], says: str) -> float:
    return {"last": values[-1], "peak": max(values), "mean": sum(values) / len(values)}[says]


# --- drawing ------------------------------------------------------------------------------------------

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 9.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "path.simplify": True,
}


def panel_svg(panel: Panel, steps: int, unique: str) -> str:
    """One chart for a page; `unique` keeps its ids apart from those of the other charts there."""
    with _styled(unique):
        figure = _figure(3.7, 2.15)
        _draw(figure.add_axes((0.15, 0.125, 0.82, 0.83)), panel, steps)
        points = f", {len(panel.marks)} validation points" if panel.marks else ""
        alt = f"{panel.title} over {steps} steps{points}; {panel.said} {panel.unit}".strip()
        return _svg(figure, alt, unique, page=True)


def curves_svg(folder: Path) -> str:
    """All charts of one training stage in one standalone SVG."""
    found = read(folder)
    if not found.panels:
        raise UserError(
            f"there are no training steps in {folder / 'metrics.jsonl'}",
            "only a train stage logs them",
            "give the folder of a train stage's artifact; `modelwright where STAGE` prints it",
        )
    across = min(3, len(found.panels))
    down = -(-len(found.panels) // across)
    with _styled("c"):
        figure = _figure(3.9 * across, 2.7 * down)
        for k, panel in enumerate(found.panels):
            axes = figure.add_subplot(down, across, k + 1)
            _draw(axes, panel, found.steps)
            axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title, loc="left", fontsize=10.5)
        figure.tight_layout(pad=1.2)
        return _svg(figure, "Training curves: " + ", ".join(p.title for p in found.panels), "c", page=False)


def chart_svg(unique: str, size: tuple[float, float], alt: str, draw: Callable[[Axes], None]) -> str:
    """One chart of this size in inches for a page, in the style of the others: `draw` fills its axes. It has attributes in the
    place of inline styles, which a page with a strict policy would not follow."""
    with _styled(unique):
        figure = _figure(*size)
        draw(figure.add_subplot())
        figure.tight_layout(pad=1.2)
        return re.sub(r'style="([^"]*)"', _attributes, _svg(figure, alt, unique, page=True))


def _attributes(style: re.Match[str]) -> str:
    """`fill: none; font: 9.5px sans` as attributes; SVG has none for `font`."""
    found = dict(part.split(":", 1) for part in style[1].split(";") if ":" in part)
    if font := found.pop("font", ""):
        size, _, family = font.strip().partition("px ")
        found |= {"font-size": size, "font-family": family}
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, value in found.items())


def _styled(unique: str) -> AbstractContextManager[None]:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "drawing the curves of a training stage") from error
    return rc_context({**_STYLE, "svg.hashsalt": unique})


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _draw(axes: Axes, panel: Panel, steps: int) -> None:
    if panel.level is not None:
        axes.axhline(panel.level, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
    x, low, mean, high = _grouped(panel.line)
    if low != high:
        axes.fill_between(x, low, high, color=FIRST, alpha=0.18, linewidth=0)
    alone = "o" if len(x) == 1 else ""  # of one point no line can be drawn
    axes.plot(
        x,
        mean,
        color=FIRST,
        linewidth=1.7,
        marker=alone,
        markersize=4.5,
        clip_on=not alone,
        solid_capstyle="round",
        solid_joinstyle="round",
    )
    if panel.marks:
        axes.plot(
            [s for s, _ in panel.marks],
            [v for _, v in panel.marks],
            color=SECOND,
            linewidth=0.9,
            marker="o",
            markersize=4.5,
            clip_on=False,
            zorder=3,
        )
    if panel.log:
        axes.set_yscale("log")
    elif panel.from_zero:
        axes.set_ylim(0, 1.08 * max([v for _, v in panel.line] or [1.0]) or 1.0)
    axes.set_xlim(0, max(steps, 1))
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter(lambda value, _: count_text(value))
    if not panel.log:
        axes.locator_params(axis="y", nbins=4)
        axes.yaxis.set_major_formatter(lambda value, _: count_text(value) if abs(value) >= 1000 else significant(round(value, 9)))


def _grouped(points: Points) -> tuple[list[float], list[float], list[float], list[float]]:
    """Step, lowest, mean and highest of each group of neighbouring points."""
    mean = thinned(points, POINTS)
    low, high = ([value for _, value in thinned(points, POINTS, fold)] for fold in (min, max))
    return [step for step, _ in mean], low, [value for _, value in mean], high


def _svg(figure: Figure, alt: str, unique: str, page: bool) -> str:
    """The figure as SVG: no prolog, no metadata, ids of its own, page colours, the page's typeface."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = svg[svg.index(">") + 1 :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{unique}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans, system-ui, sans-serif)", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for given, wanted in INK.items():
        svg = svg.replace(given, wanted)
    head = "<svg" if page else '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} {box[0]} class="curve" stroke-linejoin="round" role="img" aria-label="{escape(alt)}">{svg}'
