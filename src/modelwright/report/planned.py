"""A plan as one HTML page: what each stage takes of time, memory and money, and for what; no scripts, every value escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from modelwright.report.styled import styled

WIDE = 940.0
"""Pixels of the pictures."""
NAME_WIDE, GAP = 150.0, 26.0
ROW_TALL, BAR_TALL = 30.0, 16.0
COLOURS = 8


class Line(NamedTuple):
    """One stage, as numbers for the picture and as texts for people."""

    name: str
    group: str
    state: str
    seconds: float
    """Left to do."""
    memory_bytes: float
    usd: float
    time: str
    memory: str
    cost: str
    energy: str
    parts: list[tuple[str, float, str]]
    """Of the memory: name, bytes, text."""
    time_why: str
    memory_why: str


class Pitfall(NamedTuple):
    rule: str
    severity: str
    where: str
    what: str
    why: str
    mend: str
    source: str


class Page(NamedTuple):
    recipe: str
    machine: str
    facts: list[tuple[str, str]]
    lines: list[Line]
    notes: list[str]
    warnings: list[str]
    proposals: list[str]
    pitfalls: list[Pitfall]


def page(found: Page) -> str:
    groups = list(dict.fromkeys(line.group for line in found.lines))
    names = _largest_first(found.lines)
    rest = [("other", f"g{COLOURS - 1}")] if len(names) >= COLOURS else []
    values = {
        "found": found,
        "groups": [(name, f"g{place % COLOURS}") for place, name in enumerate(groups)],
        "hue": {name: f"g{place % COLOURS}" for place, name in enumerate(groups)},
        "split": _split(found.lines, groups),
        "stages": _stages(found.lines, groups),
        "parts": _parts(found.lines, names),
        "names": [(name, f"g{place}") for place, name in enumerate(names[: COLOURS - 1])] + rest,
    }
    return styled("plan.html", "plan.css", values)


def _largest_first(lines: Sequence[Line]) -> list[str]:
    """Names of parts of memory; the small ones, behind the last colour but one, share the last."""
    sizes: dict[str, float] = {}
    for line in lines:
        for name, size, _ in line.parts:
            sizes[name] = sizes.get(name, 0.0) + size
    return sorted(sizes, key=lambda name: -sizes[name])


def _split(lines: Sequence[Line], groups: Sequence[str]) -> Markup:
    """Time and money of what is left, each as one bar in the colours of what it is for."""
    measures = [("time", [line.seconds for line in lines]), ("money", [line.usd for line in lines])]
    drawn = [(name, sizes) for name, sizes in measures if sum(sizes) > 0]
    out = []
    for place, (name, sizes) in enumerate(drawn):
        y, x, whole = place * 44.0 + 4, NAME_WIDE, sum(sizes)
        out.append(_text(name, NAME_WIDE - 12, y + 19, "end"))
        for hue, group in enumerate(groups):
            part = sum(size for size, line in zip(sizes, lines, strict=True) if line.group == group)
            wide = (WIDE - NAME_WIDE) * part / whole
            if not part:
                continue
            out.append(
                f'<rect class="g{hue % COLOURS}" x="{x:.1f}" y="{y:g}" width="{max(wide - 1, 0.5):.1f}" height="28" rx="3"/>'
            )
            label = f"{group} {part / whole:.0%}"
            if wide > 7.2 * len(label) + 8:
                out.append(f'<text class="on" x="{x + wide / 2:.1f}" y="{y + 19:g}">{escape(label)}</text>')
            x += wide
    return _svg(out, 44.0 * len(drawn) + 4, "Shares of time and money")


def _stages(lines: Sequence[Line], groups: Sequence[str]) -> Markup:
    """A row a stage; time, memory and money beside each other, each in its own measure."""
    column = (WIDE - NAME_WIDE - 2 * GAP) / 3
    out = []
    titles = ("time", "memory", "money")
    for place, title in enumerate(titles):
        out.append(_text(title, NAME_WIDE + place * (column + GAP), 14, "start", "head"))
    measures = [
        [(line.seconds, line.time if line.state != "cached" else "made") for line in lines],
        [(line.memory_bytes, line.memory.partition(" (")[0]) for line in lines],
        [(line.usd, line.cost) for line in lines],
    ]
    for row, line in enumerate(lines):
        y = 24 + row * ROW_TALL
        out.append(_text(line.name, NAME_WIDE - 12, y + 15, "end"))
        hue = groups.index(line.group)
        for place, sizes in enumerate(measures):
            x, most = NAME_WIDE + place * (column + GAP), max(size for size, _ in sizes) or 1.0
            size, text = sizes[row]
            wide = max(1.5, (column - 84) * size / most) if size else 0.0
            out.append(_bar(hue, x, y + 3, wide, BAR_TALL))
            out.append(_text(text, x + wide + 6, y + 15, "start", "value"))
    return _svg(out, 30 + ROW_TALL * len(lines), "Time, memory and money of each stage")


def _parts(lines: Sequence[Line], names: Sequence[str]) -> Markup:
    """What the memory of each stage is made of."""
    shown = [line for line in lines if len(line.parts) > 1]
    most = max((sum(size for _, size, _ in line.parts) for line in shown), default=1.0)
    out = []
    for row, line in enumerate(shown):
        y, x = row * ROW_TALL + 2, NAME_WIDE
        out.append(_text(line.name, NAME_WIDE - 12, y + 16, "end"))
        for name, size, text in sorted(line.parts, key=lambda part: names.index(part[0])):
            wide = (WIDE - NAME_WIDE - 90) * size / most
            hue = min(names.index(name), COLOURS - 1)
            title = f"<title>{escape(name)} {escape(text)}</title>"
            out.append(
                f'<rect class="g{hue}" x="{x:.1f}" y="{y + 2:g}" width="{max(wide - 0.8, 0.3):.1f}" height="20">{title}</rect>'
            )
            x += wide
        out.append(_text(line.memory.partition(" (")[0], x + 8, y + 17, "start", "value"))
    return _svg(out, ROW_TALL * len(shown) + 6, "Parts of each stage's memory") if shown else Markup("")


def _bar(hue: int, x: float, y: float, wide: float, tall: float) -> str:
    return f'<rect class="g{hue % COLOURS}" x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="{tall:g}" rx="2"/>'


def _text(words: str, x: float, y: float, anchor: str, kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(inner: Sequence[str], tall: float, label: str) -> Markup:
    return Markup(f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDE:g} {tall:g}">{"".join(inner)}</svg>')
