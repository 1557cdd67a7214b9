"""The advisor's answer as one HTML page, with the path through its trees as a picture: no scripts, every value escaped."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from markupsafe import Markup, escape

from modelwright.report.styled import styled

BOX, SIDE, GAP, LINE, PAD = 470, 400, 64, 19, 14
"""Width of a question and of what lies beside it, space between two questions, height of a line, space around text; in px."""
CHARS, SIDE_CHARS = 62, 52
"""Letters that a line of each holds, at 14 px and at 13."""


class Fork(NamedTuple):
    """A question on the path."""

    asks: str
    fact: str
    origin: str
    """Where the answer came from, in words."""
    answer: str
    why: str
    source: tuple[str, str]
    """Title and address."""
    others: tuple[tuple[str, str], ...]
    """(condition, what it leads to) of the branches that were not taken."""


class Path(NamedTuple):
    """A walk through one tree."""

    name: str
    forks: tuple[Fork, ...]
    end: str
    why: str


class Advice(NamedTuple):
    """All that the page tells."""

    title: str
    facts: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    """Methods that are not here yet."""
    data: tuple[tuple[str, tuple[dict[str, str], ...]], ...]
    """What was found in the user's data: a title, and rows of a table."""
    paths: tuple[Path, ...]
    turned_down: tuple[dict[str, str], ...]
    side_by_side: str
    """What stands over `table`."""
    table: tuple[dict[str, str], ...]
    published: tuple[dict[str, str], ...]
    remarks: tuple[str, ...]
    recipe: str
    no_recipe: str


def page(found: Advice) -> str:
    return styled("advice.html", "advice.css", {"found": found, "pictures": [drawing(path) for path in found.paths]})


def drawing(path: Path) -> Markup:
    """Questions from top to bottom, the branch that was taken on the line down, the others to the right."""
    parts: list[str] = []
    top = 2.0
    for fork in path.forks:
        top = _fork(parts, fork, top)
    height = _box(parts, 2, top, BOX, "leaf", [("name", path.end), *[("soft", line) for line in _wrapped(path.why, CHARS)]])
    total = top + height + 2
    label = escape(f"The path to {path.end}")
    wide = BOX + 56 + SIDE + 4
    return Markup(
        f'<svg class="path" viewBox="0 0 {wide} {total:.0f}" width="{wide}" height="{total:.0f}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _fork(parts: list[str], fork: Fork, top: float) -> float:
    """Draws one question and what hangs on it; returns where the next one begins."""
    lines = [("name", line) for line in _wrapped(fork.asks, CHARS - 6)]
    lines += [("soft", line) for line in _wrapped(f"{fork.fact} ({fork.origin})", CHARS)]
    height = _box(parts, 2, top, BOX, "question", lines)
    beside = top
    for when, title in fork.others:
        taken = [("side", line) for line in _wrapped(f"if {when}", SIDE_CHARS)]
        taken += [("to", line) for line in _wrapped(title, SIDE_CHARS)]
        tall = _box(parts, BOX + 56, beside, SIDE, "other", taken)
        end, start = beside + min(tall / 2, 22), top + height / 2
        curve = f"M{BOX + 2} {start:.0f} C{BOX + 34} {start:.0f} {BOX + 24} {end:.0f} {BOX + 56} {end:.0f}"
        parts.append(f'<path class="off" d="{curve}"/>')
        beside += tall + 8
    answer = _wrapped(fork.answer, CHARS)
    below = max(top + height + max(GAP, LINE * len(answer) + 30), beside + 8)
    parts.append(f'<path class="on" d="M34 {top + height:.0f} V{below - 2:.0f}"/>')
    parts.append(f'<path class="tip" d="M28 {below - 9:.0f} h12 l-6 9 z"/>')
    for number, line in enumerate(answer):
        parts.append(f'<text class="answer" x="48" y="{top + height + 24 + LINE * number:.0f}">{escape(line)}</text>')
    return below


def _box(parts: list[str], left: float, top: float, width: float, kind: str, lines: list[tuple[str, str]]) -> float:
    height = LINE * len(lines) + 2 * PAD - 5
    parts.append(f'<g class="{kind}"><rect x="{left}" y="{top:.0f}" width="{width}" height="{height}" rx="9"/>')
    for number, (style, line) in enumerate(lines):
        parts.append(f'<text class="{style}" x="{left + PAD}" y="{top + PAD + 11 + LINE * number:.0f}">{escape(line)}</text>')
    parts.append("</g>")
    return height


def _wrapped(text: str, chars: int) -> list[str]:
    return textwrap.wrap(text, chars) or [""]
