"""`plan --why`: where each number comes from, the parts of memory and time as bars, and the rule of thumb beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelwright.core.estimate import Part
from modelwright.core.units import bytes_text, seconds_text
from modelwright.plan._whole_text import rule_of, rule_text

if TYPE_CHECKING:
    from modelwright.plan.whole import Plan, Planned

WIDE = 24
"""Characters of a whole bar."""


def why_lines(plan: Plan) -> Iterator[str]:
    for row in plan.rows:
        found = row.estimate
        yield f"\n{row.stage}"
        yield f"  time   {found.seconds.why}"
        yield from bars([(span.name, span.seconds, seconds_text(span.seconds), span.why) for span in found.spans])
        yield f"  memory {found.memory.why}"
        yield from _parts(found.parts)
        if found.device_memory is not None:
            yield f"  card   {found.device_memory.why}"
            yield from _parts(found.device_parts)
        yield from _rule(row)
        yield f"  disk   {found.disk.why}"


def _parts(parts: Sequence[Part]) -> Iterator[str]:
    yield from bars([(part.name, part.bytes, bytes_text(part.bytes), part.why) for part in parts])


def bars(parts: Sequence[tuple[str, float, str, str]]) -> Iterator[str]:
    """Name, size, its text, why: the largest first, those below half a percent together."""
    whole = sum(size for _, size, _, _ in parts)
    if len(parts) < 2 or not whole:
        return
    ordered = sorted(parts, key=lambda part: -part[1])
    shown = [part for part in ordered if part[1] >= 0.005 * whole]
    wide, words = max(len(part[0]) for part in shown), max(len(part[2]) for part in shown)
    for name, size, text, why in shown:
        bar = "█" * max(1, round(WIDE * size / whole))
        yield f"         {name:<{wide}}  {text:>{words}}  {size / whole:>4.0%}  {bar:<{WIDE}}  {why}"


def _rule(row: Planned) -> Iterator[str]:
    if (rule := rule_of(row.estimate)) is not None:
        yield f"         {rule_text(rule)}"
        if rule.wrong and rule.error_frac < 0:
            yield f"         {rule.wrong[0]}"
