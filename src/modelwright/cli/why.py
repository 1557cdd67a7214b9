"""`modelwright why`: why each stage is cached or to be made."""

from __future__ import annotations

from modelwright.cli._options import open_project, parser
from modelwright.cli._output import print_json


def main(args: list[str]) -> int:
    options = parser("why", "Say for each stage why it is cached or to be made, and what changed since it was made last.")
    options.add_argument("--stage", help="only this stage")
    chosen = options.parse_args(args)
    reasons = [r for r in open_project(chosen).why() if chosen.stage in (None, r.stage)]
    if chosen.json:
        print_json([r._asdict() for r in reasons])
        return 0
    for reason in reasons:
        print(f"{reason.stage:<14} {reason.state:<10} {reason.text}")
        for change in reason.changes:
            print(f"{'':<25} {change}")
    return 0
