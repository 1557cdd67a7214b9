"""`plan --html`: the plan as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelwright.cli._output import write_page
from modelwright.core.units import bytes_text, seconds_text, usd_text
from modelwright.plan._whole_text import energy_text, interval_text, rule_of, rule_text

if TYPE_CHECKING:
    from modelwright.plan.whole import Plan, Planned
    from modelwright.report.planned import Line


def write(plan: Plan, path: Path, recipe: str) -> None:
    from modelwright.report.planned import Page, Pitfall, page

    total = plan.total
    facts = [("time", seconds_text(plan.seconds)), ("money", usd_text(total.usd))]
    facts += [("energy", energy_text(total.kwh))] if plan.on.power_w and total.kwh is not None else []
    facts += [("memory", bytes_text(plan.peak_bytes))]
    facts += [("of the GPU" if plan.on.one_memory else "of each card", bytes_text(plan.card_bytes))] if plan.card_bytes else []
    notes = [f"rates: {plan.on.source}"] if plan.on.source else []
    notes += [text for text in (f"rent: {plan.rent}" if plan.rent else "", plan.electricity) if text]
    notes += plan.notes
    notes += [f"without rent: {session.told}" for session in plan.sessions]
    notes += [f"no price is known of {name}" for name in plan.unknown]
    warnings = [str(one) for one in plan.over] + plan.misfits()
    lines = [_line(row) for row in plan.rows]
    pitfalls = [Pitfall(*(getattr(finding, name) for name in Pitfall._fields)) for finding in plan.pitfalls]
    write_page(path, page(Page(recipe, plan.machine, facts, lines, notes, warnings, list(plan.proposals), pitfalls)))


def _line(row: Planned) -> Line:
    from modelwright.report.planned import Line

    found, left = row.estimate, row.state != "cached"
    parts = found.device_parts or found.parts
    return Line(
        row.stage,
        row.group,
        row.state,
        found.seconds.value if left else 0.0,
        (found.device_memory or found.memory).value,
        row.cost.usd,
        seconds_text(found.seconds.value),
        interval_text(found.device_memory or found.memory),
        usd_text(row.usd),
        energy_text(row.cost.kwh) if left else "",
        [(part.name, part.bytes, bytes_text(part.bytes)) for part in parts if part.bytes],
        found.seconds.why,
        (found.device_memory or found.memory).why + (f"; {rule_text(rule)}" if (rule := rule_of(found)) else ""),
    )
