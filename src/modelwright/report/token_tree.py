"""Ways to an answer as a tree of tokens: which tokens several strategies share, where they part, and how likely each step was.

Drawn from left to right, a column a token: what follows a token is drawn as near to each other as its outlines allow, and the
token stands in the middle of it (Reingold and Tilford 1981, "Tidier Drawings of Trees", IEEE Transactions on Software
Engineering 7:223).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup, escape

from modelwright.core.preview import visible

COLUMN, ROW, STUB = 116.0, 44.0, 20.0
"""Pixels: between tokens, and what a token takes up from above to below: one that some strategy takes, one that none does."""
BOX, TALL, EDGE = 84.0, 34.0, 14.0
CHARS = 9
"""Of a token's text; the whole of it is in its title."""
COLOURS = 8
"""Colours of strategies in `decoding.css`; further ones begin again."""
WIDEST = 16.0
"""Pixels of an edge of probability 1."""


class Token(NamedTuple):
    """A token of an answer."""

    id: int
    text: str
    """'' for one that only ends the answer."""
    prob: float | None
    """By the model itself, before temperature; None where the engine does not tell it."""
    others: tuple[tuple[int, str, float], ...] = ()
    """Likely tokens in its place, itself perhaps among them: id, name and probability."""
    name: str = ""
    """What stands for it where it has no text of its own: the bytes of half a character. Unset: the text."""


@dataclass
class Node:
    """A token behind those that lead to it."""

    text: str
    prob: float | None
    taken: list[int] = field(default_factory=list)
    """Numbers of the strategies that take it."""
    below: dict[int, Node] = field(default_factory=dict)
    row: float = 0.0
    """Its middle, in pixels from above."""


def tree(lines: Sequence[Sequence[Token]], deep: int, others: int) -> Node:
    """The first `deep` tokens of all strategies, and at each place the likeliest `others` that none of them takes there."""
    root = Node("", None)
    offered: list[tuple[Node, Token]] = []
    for number, line in enumerate(lines):
        node = root
        node.taken.append(number)
        for token in line[:deep]:
            offered.append((node, token))
            node = node.below.setdefault(token.id, Node(token.text or token.name, token.prob))
            node.taken.append(number)
    for node, token in offered:
        taken = sum(bool(child.taken) for child in node.below.values())
        for name, text, prob in token.others:
            if len(node.below) < taken + others:
                node.below.setdefault(name, Node(text, prob))
    return root


def drawing(root: Node, prompt: str, names: Sequence[str]) -> Markup:
    """The tree as an SVG picture that needs no style but classes: `s0`, `s1`, … colour the strategies."""
    outline = _place(root)
    _move(root, EDGE - min(top for top, _ in outline))
    deep = len(outline) - 1
    width = 2 * EDGE + COLUMN * deep + BOX
    height = 2 * EDGE + max(bottom for _, bottom in outline) - min(top for top, _ in outline)
    label = escape(f"Tree of the first {deep} tokens: {', '.join(names)}")
    return Markup(
        f'<svg class="tree" role="img" aria-label="{label}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(_edges(root, 0))}{''.join(_boxes(root, 0, prompt, names))}</svg>"
    )


def _sorted(node: Node) -> list[Node]:
    """The likeliest above; of those that no one takes, below all that are taken."""
    return sorted(node.below.values(), key=lambda child: (not child.taken, -(child.prob or 0.0)))


def _place(node: Node) -> list[tuple[float, float]]:
    """Give rows to all below a node, and to itself row 0 or the middle of those below that are taken. Returns the outline: for
    each column, its own first, where it begins and ends."""
    half = (ROW if node.taken else STUB) / 2
    outline: list[tuple[float, float]] = []
    children = _sorted(node)
    for child in children:
        found = _place(child)
        down = max((above[1] - below[0] for above, below in zip(outline, found, strict=False)), default=0.0)
        _move(child, down)
        moved = [(top + down, bottom + down) for top, bottom in found]
        both = [(above[0], below[1]) for above, below in zip(outline, moved, strict=False)]
        outline = both + outline[len(both) :] + moved[len(both) :]
    middle = [child.row for child in children if child.taken] or [child.row for child in children] or [0.0]
    node.row = (middle[0] + middle[-1]) / 2
    return [(node.row - half, node.row + half), *outline]


def _move(node: Node, down: float) -> None:
    node.row += down
    for child in node.below.values():
        _move(child, down)


def _edges(node: Node, column: int) -> Iterator[str]:
    start, end = _left(column) + BOX, _left(column + 1)
    bend = (start + end) / 2
    for child in reversed(_sorted(node)):  # the likeliest ones are drawn last, above the others
        path = f"M{start:.1f} {{0:.1f}}C{bend:.1f} {{0:.1f}} {bend:.1f} {{1:.1f}} {end:.1f} {{1:.1f}}"
        thick = 1.0 + (WIDEST - 1.0) * (child.prob or 0.0)
        sort = "edge" if child.taken else "edge stub"
        yield f'<path class="{sort}" d="{path.format(node.row, child.row)}" stroke-width="{thick:.2f}"/>'
        for place, number in enumerate(child.taken):
            offset = (place - (len(child.taken) - 1) / 2) * 3.0
            yield f'<path class="way s{number % COLOURS}" d="{path.format(node.row + offset, child.row + offset)}"/>'
        yield from _edges(child, column + 1)


def _left(column: int) -> float:
    return EDGE + COLUMN * column


def _boxes(node: Node, column: int, prompt: str, names: Sequence[str]) -> Iterator[str]:
    left, middle = _left(column), _left(column) + BOX / 2
    if column == 0:
        short, title = "prompt", visible(prompt)
    else:
        who = ", ".join(names[number] for number in node.taken) or "taken by none"
        likely = "" if node.prob is None else f", probability {node.prob:.4f}"
        short, title = shown(node.text), f"{visible(node.text)}{likely}: {who}"
    said = "" if node.prob is None else percent(node.prob)
    if node.taken:
        yield f'<g class="token"><title>{escape(title)}</title>'
        yield f'<rect x="{left:.1f}" y="{node.row - TALL / 2:.1f}" width="{BOX:g}" height="{TALL:g}" rx="6"/>'
        yield f'<text x="{middle:.1f}" y="{node.row + (-2 if said else 4.5):.1f}">{escape(short)}</text>'
        yield f'<text class="prob" x="{middle:.1f}" y="{node.row + 12.5:.1f}">{said}</text></g>'
    else:
        yield f'<g class="other"><title>{escape(title)}</title><text x="{left + 3:.1f}" y="{node.row + 4:.1f}">'
        yield f'{escape(short)}<tspan class="prob" dx="6">{said}</tspan></text></g>'
    for child in _sorted(node):
        yield from _boxes(child, column + 1, prompt, names)


def shown(text: str) -> str:
    """A token's text in a box: spaces, line feeds and the end of an answer as signs, and cut."""
    signs = visible(text).replace("↵\n", "↵").replace(" ", "␣").replace("\t", "⇥")
    return (signs if len(signs) <= CHARS else f"{signs[: CHARS - 1]}…") or "∎"


def percent(prob: float) -> str:
    """`97 %`, `0.3 %`, `<0.1 %`."""
    share = 100 * prob
    return "<0.1 %" if share < 0.1 else f"{share:.1f} %" if share < 9.95 else f"{math.floor(share + 0.5)} %"
