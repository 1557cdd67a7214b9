"""`modelwright plan`: what each stage will take, before anything runs."""

from __future__ import annotations

from modelwright.cli._options import open_project, parser
from modelwright.cli._output import STATE_COLOUR, print_json, print_table
from modelwright.core.units import bytes_text, seconds_text


def main(args: list[str]) -> int:
    options = parser("plan", "Show each stage, cached or to do, with its memory, time and cost. Runs nothing, asks no network.")
    options.add_argument("--why", action="store_true", help="show where each number comes from")
    chosen = options.parse_args(args)
    plan = open_project(chosen).plan()
    if chosen.json:
        print_json(
            {
                "machine": plan.machine,
                "seconds": plan.seconds,
                "peak_bytes": plan.peak_bytes,
                "stages": [
                    {
                        "stage": r.stage,
                        "kind": r.kind,
                        "state": r.state,
                        "key": r.key,
                        "usd": r.usd,
                        "seconds": r.estimate.seconds._asdict(),
                        "memory": r.estimate.memory._asdict(),
                        "disk": r.estimate.disk._asdict(),
                    }
                    for r in plan.rows
                ],
            }
        )
        return 0
    print_table(plan.table(), colour=STATE_COLOUR)
    if chosen.why:
        for row in plan.rows:
            print(f"\n{row.stage}")
            for name, quantity in (("time", row.estimate.seconds), ("memory", row.estimate.memory), ("disk", row.estimate.disk)):
                print(f"  {name:<7}{quantity.why}")
    todo = sum(row.state != "cached" for row in plan.rows)
    print(
        f"\nto do: {todo} of {len(plan.rows)} stages, about {seconds_text(plan.seconds)}, "
        f"at most {bytes_text(plan.peak_bytes)} of memory\non {plan.machine}"
    )
    return 0
