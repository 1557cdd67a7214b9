"""`modelwright plan`: what each stage will take, before anything runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from modelwright.cli import _plan_exact, _plan_verify
from modelwright.cli._options import open_project, parser
from modelwright.cli._output import STATE_COLOUR, check_place, print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.units import bytes_text, seconds_text, usd_text
from modelwright.plan.lint import lines

if TYPE_CHECKING:
    from modelwright.plan.whole import Plan


UNREAD = {
    "exact": ("verify", "why", "html", "prices"),
    "verify": ("why", "html", "prices", "device", "devices", "devices_file"),
}
"""What `--exact`, and `--verify`, which tries this machine, would not read."""


def main(args: list[str]) -> int:
    options = parser("plan", "Show each stage, cached or to do, with its memory, time and cost. Runs nothing, asks no network.")
    options.add_argument("--why", action="store_true", help="show where each number comes from")
    options.add_argument("--device", metavar="NAME", help="plan for a device that is not here (`bench devices` lists them)")
    options.add_argument("--devices", type=int, metavar="N", help="so many of it")
    options.add_argument("--prices", type=Path, metavar="FILE", help="prices of your own, in the layout of plan/prices.yaml")
    options.add_argument("--devices-file", type=Path, metavar="FILE", help="devices of your own, as in plan/devices.yaml")
    options.add_argument("--html", type=Path, metavar="FILE", help="write the plan as a page with its picture")
    _plan_verify.options(options)
    _plan_exact.options(options)
    chosen = options.parse_args(args)
    for mode, unread in UNREAD.items():
        named = [f"--{name.replace('_', '-')}" for name in unread if getattr(chosen, name) not in (None, False)]
        if getattr(chosen, mode) and named:
            options.error(f"--{mode} does not go with {', '.join(named)}")
    check_place(chosen.html)
    if chosen.exact:
        return _plan_exact.exact(open_project(chosen), _planned(chosen), chosen)
    if chosen.verify or chosen.stage:
        return _plan_verify.verify(chosen, args)
    plan = _planned(chosen)
    if chosen.html:
        from modelwright.cli._plan_page import write

        write(plan, chosen.html, chosen.recipe.name)
    if chosen.json:
        print_json(plan.tree())
    else:
        _print(plan, chosen.why)
        print("".join(f"{line}\n" for line in lines(plan.pitfalls, chosen.why)), end="")
        if chosen.html:
            print(f"page: {chosen.html}")
    plan.refuse()
    plan.refuse_memory()
    return 0


def _planned(chosen: argparse.Namespace) -> Plan:
    if chosen.devices is not None and chosen.device is None:
        raise UserError("--devices says how many, and there is no --device", fix="name one: --device t4")
    many = 1 if chosen.devices is None else chosen.devices
    return open_project(chosen).plan(chosen.device, many, prices=chosen.prices, devices=chosen.devices_file)


def _print(plan: Plan, why: bool) -> None:
    print_table(plan.table(), colour=STATE_COLOUR)
    if len(plan.groups) > 1:
        print()
        print_table(plan.split())
    if why:
        from modelwright.cli._plan_why import why_lines

        for line in why_lines(plan):
            print(line)
    todo, of = len(plan.left), "the GPU" if plan.on.one_memory else "each card"
    card = f" and {bytes_text(plan.card_bytes)} of {of}" if plan.card_bytes else ""
    print(
        f"\nto do: {todo} of {len(plan.rows)} stages, about {seconds_text(plan.seconds)}, "
        f"at most {bytes_text(plan.peak_bytes)} of memory{card}\non {plan.machine}"
    )
    for line in money_lines(plan):
        print(line)
    if why:
        print(f"rates: {plan.on.source}")


def money_lines(plan: Plan) -> list[str]:
    """What it costs and at whose price, what is lent for nothing, and what does not fit."""
    total, found = plan.total, list[str]()
    if plan.rent or total.usd:
        paid = [f"{usd_text(usd)} {what}" for what, usd in _paid(plan) if usd]
        found.append(f"costs {usd_text(total.usd)}" + (f": {', '.join(paid)}" if paid else ""))
    if total.kwh and plan.on.power_w:
        bill = f", {plan.electricity}" if plan.electricity else ""
        found.append(f"energy {total.kwh:.3g} kWh by {plan.on.power_w:g} W of its boards{bill}")
    found += [f"rent: {plan.rent}"] if plan.rent else []
    found += [f"note: {note}" for note in plan.notes]
    found += [f"no price is known of {', '.join(plan.unknown)}: it is not in this sum"] if plan.unknown else []
    found += [f"without rent: {session.told}" for session in plan.sessions]
    if misfits := plan.misfits():
        device = f" --device {plan.device}" if plan.device else ""
        found += [*misfits, f"`modelwright fit RECIPE{device}` tells what to change"]
    return found


def _paid(plan: Plan) -> list[tuple[str, float]]:
    total = plan.total
    return [("of rent", total.rent_usd), ("to paid APIs", total.api_usd), ("of electricity", total.power_usd)]
