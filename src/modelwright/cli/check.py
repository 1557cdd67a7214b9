"""`modelwright check`: soundness checks of every stage on its real data."""

from __future__ import annotations

from modelwright.cli._options import open_project, parser
from modelwright.cli._output import print_json, print_table
from modelwright.plan.lint import lines


def main(args: list[str]) -> int:
    chosen = parser(
        "check", "Check the recipe, and each stage on its real data and a small slice: masks, invariances, templates, ledgers."
    ).parse_args(args)
    project = open_project(chosen)
    found, pitfalls = project.check(), project.pitfalls()
    if chosen.json:
        print_json(
            [
                {
                    "stage": stage,
                    "checks": None if checks is None else [c._asdict() for c in checks],
                    "pitfalls": [finding._asdict() for finding in pitfalls if finding.stage == stage],
                }
                for stage, checks in [*found, *([("", [])] if any(not finding.stage for finding in pitfalls) else [])]
            ]
        )
    else:
        rows = []
        for stage, checks in found:
            if checks is None:
                rows.append(
                    {
                        "stage": stage,
                        "check": "-",
                        "verdict": "not yet",
                        "detail": "what it needs is not made; run the stages before it first",
                    }
                )
            rows += [
                {
                    "stage": stage,
                    "check": c.name,
                    "verdict": "ok" if c.ok else "FAILED",
                    "detail": c.detail + (f"  fix: {c.fix}" if not c.ok and c.fix else ""),
                }
                for c in checks or ()
            ]
        print("the recipe is valid: every key is used, every reference is right\n")
        print_table(rows, colour={"verdict": {"ok": "green", "FAILED": "bold red", "not yet": "yellow"}})
        print("\n".join(lines(pitfalls, every=True)) or "\nno known pitfall")
    return 1 if any(not c.ok for _, checks in found for c in checks or ()) else 0
