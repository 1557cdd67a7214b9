"""`modelwright learn`: five paths from a first model to a trade, as recipes that run here and, at full size, on a card."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelwright.cli import _options
from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.units import seconds_text, usd_text

if TYPE_CHECKING:
    from modelwright.plan.learning import LearningPath

DEVICES = ("t4", "a100-40")
"""Where the full size is planned: the card of free sessions, and one that is rented."""


class Cost(NamedTuple):
    """Of one step, without what the steps before it made."""

    seconds: float
    usd: float


def main(args: list[str]) -> int:
    from modelwright.plan import learning

    parse = _options.parser("learn", "Learning paths: recipes that build on each other, and what to watch in each.", recipe=False)
    parse.add_argument("path", nargs="?", help="which one; without it they are listed")
    parse.add_argument("--out", type=Path, metavar="DIR", help="write its recipes there")
    parse.add_argument("--full", action="store_true", help="with --out: at full size")
    given = parse.parse_args(args)
    if given.path is None:
        if given.out is not None or given.full:
            parse.error("name the path to write")
        paths = {name: learning.read(name) for name in learning.names()}
        if given.json:
            print_json({name: path.model_dump(mode="json") for name, path in paths.items()})
        else:
            _listed(paths)
        return 0
    if given.full and given.out is None:
        parse.error("--full goes with --out")
    if given.json and given.out is not None:
        parse.error("--json prints, and --out writes: give one")
    path = learning.read(given.path)
    if given.out is not None:
        _write(given.path, path, given.out, given.full)
        return 0
    costs = planned(given.path, path, given.store)
    if given.json:
        print_json({**path.model_dump(mode="json"), "costs": [{where: c._asdict() for where, c in one.items()} for one in costs]})
    else:
        _told(given.path, path, costs)
    return 0


def planned(name: str, path: LearningPath, store: Path) -> list[dict[str, Cost]]:
    """Of each step: small on this machine (`here`), and at full size on each of `DEVICES`."""
    from modelwright.api import load
    from modelwright.plan import learning, whole
    from modelwright.plan.calibrate import calibrated
    from modelwright.plan.target import target

    found = []
    made: dict[str, set[str]] = {}
    for step in path.steps:
        file, costs = learning.recipe(name, step), {}
        small = load(file, store=store)
        full = load(file, *path.overrides(list(small.recipe.stages)), store=store)
        small_steps, full_steps = small.steps(), full.steps()  # once, since this reads whatever the recipes name
        for where in ("here", *DEVICES):
            project, steps, device = (small, small_steps, None) if where == "here" else (full, full_steps, where)
            plan = whole.plan(project.loaded, steps, target(device), calibrated(project.store))
            before = made.setdefault(where, set())
            rows = [row for row in plan.rows if row.key not in before and row.state != "cached"]
            before |= {row.key for row in plan.rows}
            costs[where] = Cost(sum(row.estimate.seconds.value for row in rows), sum(row.usd for row in rows))
        found.append(costs)
    return found


def _listed(paths: dict[str, LearningPath]) -> None:
    print_table(
        [
            {
                "path": name,
                "steps": str(len(path.steps)),
                "full size": f"at most {usd_text(path.budget_usd)}",
                "what for": path.about.strip(),
            }
            for name, path in paths.items()
        ]
    )
    print("\nmodelwright learn PATH            its steps, what to watch, and what they cost here and on a card")
    print("modelwright learn PATH --out DIR  its recipes (--full: at full size)")


def _told(name: str, path: LearningPath, costs: list[dict[str, Cost]]) -> None:
    print(f"{path.title}\n")
    print(textwrap.fill(path.about.strip(), 100), "\n")
    for number, step in enumerate(path.steps, 1):
        print(f"{number}. {step.recipe}")
        print(textwrap.indent(textwrap.fill(step.watch.strip(), 96), "   "))
        for command in (f"modelwright run {step.recipe}.yaml", *step.then):
            print(f"     {command}")
        print()
    rows = [
        {
            "step": step.recipe,
            "here": seconds_text(cost["here"].seconds),
            **{f"full size, {where}": f"{seconds_text(cost[where].seconds)}, {usd_text(cost[where].usd)}" for where in DEVICES},
        }
        for step, cost in zip(path.steps, costs, strict=True)
    ]
    whole = {where: (sum(one[where].seconds for one in costs), sum(one[where].usd for one in costs)) for where in costs[0]}
    rows.append(
        {
            "step": "all",
            "here": seconds_text(whole["here"][0]),
            **{f"full size, {where}": f"{seconds_text(whole[where][0])}, {usd_text(whole[where][1])}" for where in DEVICES},
        }
    )
    print_table(rows, title="what is left to do (a step reuses what those before it made)")
    print(f"\nits budget at full size: {usd_text(path.budget_usd)}\nstart with: modelwright learn {name} --out {name}")


def _write(name: str, path: LearningPath, out: Path, full: bool) -> None:
    """All of it or nothing."""
    from modelwright.plan import learning

    files = {f"{step.recipe}.yaml": learning.recipe(name, step) for step in path.steps}
    if there := [file for file in files if (out / file).exists()]:
        raise UserError(f"{out} already has {', '.join(there)}", fix="choose another folder; nothing was written")
    texts = {file: learning.full_text(path, source) if full else source.read_text("utf-8") for file, source in files.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (out / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written", error.strerror or str(error), "name a folder of yours") from None
    first = next(iter(files))
    print(f"wrote {len(files)} recipes to {out}\nnext: cd {out}; modelwright plan {first}; modelwright run {first}")
