"""`modelwright calibration`: how right the plans were, by kind and machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from modelwright.cli._options import parser
from modelwright.cli._output import check_place, print_json, print_table, write_page
from modelwright.core.errors import UserError
from modelwright.core.store import Store
from modelwright.plan.calibrate import Account, accounts

if TYPE_CHECKING:
    from modelwright.report.calibration import Panel

UNITS = {"s": "time", "bytes": "memory", "card": "memory of the card"}
"""Unit of an account -> what it is of."""


def main(args: list[str]) -> int:
    parse = parser(
        "calibration",
        "Hold predictions against what runs measured: each run is predicted from the others of its kind and host.",
        recipe=False,
    )
    parse.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    given = parse.parse_args(args)
    check_place(given.html)
    found = accounts(Store(given.store))
    if not found:
        raise UserError(
            f"{given.store} holds no run yet",
            "plans are held against what runs measured",
            "make something with `modelwright run`, or `modelwright plan RECIPE --verify`, or name another --store",
        )
    if given.html:
        from modelwright.report.calibration import page

        text = page([_panel(account) for account in found], str(given.store))
        write_page(given.html, text)
    if given.json:
        print_json([_tree(account) for account in found])
        return 0
    print_table([_line(account) for account in found])
    print(f"\n{_summary(found)}")
    for account in found:
        if corrections := _corrections(account):
            told = ", ".join(f"{name} x {factor:.2f}" for name, factor in corrections)
            runs = f"{len(account.points)} run{'s' if len(account.points) > 1 else ''}"
            print(f"{account.kind}, {_what(account)} on {account.host}: {told}; from {runs}")
    if given.html:
        print(f"page: {given.html}")
    return 0


def _what(account: Account) -> str:
    return UNITS[account.unit]


def error(account: Account) -> float:
    """Median of |predicted - measured| / measured."""
    return median(abs(point.predicted / point.measured - 1) for point in account.points)


def _corrections(account: Account) -> list[tuple[str, float]]:
    """The factor of each part, and of runs of one sort where it differs from that by a tenth."""
    fit = account.fit
    if account.unit == "card":
        return []
    if not fit.parts:
        return [("all", fit.by)]
    base = {name: factor for (name, like), factor in fit.parts.items() if not like}
    found = [(name, fit.by * factor) for name, factor in base.items()]
    differ = ((name, like, more) for (name, like), more in fit.parts.items() if like and abs(more) > 0.1 * base[name])
    return found + [(f"{name} of {like}", fit.by * (base[name] + more)) for name, like, more in differ]


def _line(account: Account) -> dict[str, str]:
    low, high = account.factors
    return {
        "kind": account.kind,
        "host": account.host,
        "what": _what(account),
        "runs": str(len(account.points)),
        "median error": f"{100 * error(account):.1f} %",
        "inside": str(sum(point.inside for point in account.points)),
        "95 % interval": f"{low:.2f} to {high:.2f} times",
    }


def _summary(found: Sequence[Account]) -> str:
    said = []
    for unit, name in UNITS.items():
        points = [point for account in found if account.unit == unit for point in account.points]
        if points:
            inside = sum(point.inside for point in points)
            said.append(f"{name}: {inside} of {len(points)} runs inside the interval that is to hold 95 %")
    return "; ".join(said)


def _tree(account: Account) -> dict[str, object]:
    return {
        "kind": account.kind,
        "host": account.host,
        "what": _what(account),
        "unit": account.unit,
        "runs": len(account.points),
        "median_error": error(account),
        "inside": sum(point.inside for point in account.points),
        "low": account.factors[0],
        "high": account.factors[1],
        "corrections": dict(_corrections(account)),
        "points": [
            {
                "stage": point.run.stage,
                "where": point.run.where,
                "time": point.run.time,
                "predicted": point.predicted,
                "measured": point.measured,
                "low": point.low,
                "high": point.high,
                "inside": point.inside,
            }
            for point in account.points
        ],
    }


def _panel(account: Account) -> Panel:
    from modelwright.report.calibration import Dot, Panel

    dots = [Dot(f"{p.run.stage} ({p.run.where})", p.predicted, p.measured, p.inside) for p in account.points]
    return Panel(account.kind, account.host, _what(account), dots, account.factors, error(account), _corrections(account))
