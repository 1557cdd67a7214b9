"""What `modelwright advise` tells: the answer, the path through the trees as a picture, what was turned down, and tables."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli._output import print_table
from modelwright.cli._terminal import CONTROL
from modelwright.core.units import count_text, seconds_text, usd_text

if TYPE_CHECKING:
    from modelwright.core.estimate import Machine
    from modelwright.plan._advise_tree import Step, Walk
    from modelwright.plan.advise import Advised
    from modelwright.plan.probe import Probed

    Looks = Sequence[tuple[Path, Probed]]
    """What was looked at, and what was found there."""

FROM = {
    "flag": "your option",
    "asked": "your answer",
    "data": "your data",
    "task": "the task's words",
    "runs": "your runs",
    "reckoned": "reckoned",
    "assumed": "assumed",
}
"""Where an answer came from, in words."""
EVIDENCE_CHARS = 100
TREES = {"method": "What to do", "weights": "Which weights", "shape": "Which shape", "deploy": "Where it runs"}


def show(found: Advised, machine: Machine, written: str, device: str, looks: Looks = ()) -> None:
    """`device`: how the machine was named, as options; '' for this one. `looks`: what was found in the user's data."""
    width = min(110, shutil.get_terminal_size((100, 20)).columns)
    print("; ".join(walk.end.title for walk in found.walks))
    for walk in found.walks:
        print(_folded(f"{walk.end.title}: {walk.end.why}", width, "  "))
    if missing := [method.title for method in found.methods if not method.here]:
        print(f"  not here yet: {', '.join(missing)}")
    if found.chosen is not None:
        print(_folded(start(found, machine), width, "  "))
    for title, rows in data_tables(looks):
        print()
        print_table(rows, title=CONTROL.sub("", title))
    for walk in found.walks:
        print(f"\n{TREES[walk.tree]}")
        print("\n".join(_picture(walk, width)))
    print()
    print_table(turned_down(found), title="Turned down, and what would change that")
    print()
    numbers = ("method", "here", "role", "cost", "time", "energy", "memory")
    print_table([{name: row[name] for name in numbers} for row in found.table], title=side_by_side(found))
    print()
    words = ("method", "data", "data quality", "deployment")
    print_table(
        [{name: row[name] for name in words} for row in found.table], title="What they need, and what serving the result takes"
    )
    print()
    for remark in found.remarks:
        print(textwrap.fill(f"- {remark}", width, subsequent_indent="  "))
    print(f"\nwrote {written}\nnext: modelwright plan {written}{device}" if written else f"\nno recipe: {found.no_recipe}")


def data_tables(looks: Looks) -> list[tuple[str, list[dict[str, str]]]]:
    """What was found in each file or folder, under its title, without the control characters of the user's texts."""
    return [
        (
            f"What is in {path}",
            [{name: _short(CONTROL.sub("", value)) for name, value in row.items()} for row in found.table()],
        )
        for path, found in looks
    ]


def _short(text: str) -> str:
    return text if len(text) <= EVIDENCE_CHARS else f"{text[: EVIDENCE_CHARS - 1]}…"


def side_by_side(found: Advised) -> str:
    return f"Side by side: cost, time, energy and memory beside one pass of SFT of all weights of {found.unit}"


def turned_down(found: Advised) -> list[dict[str, str]]:
    others = [other for walk in found.walks for other in walk.alternatives]
    return [{"instead": other.title, "if": other.when, "here": _here(other.methods)} for other in others]


def start(found: Advised, machine: Machine) -> str:
    """The model to start from, and what its training takes, where there is one."""
    chosen = found.chosen
    assert chosen is not None
    named = f"start: {chosen.room.name} ({count_text(chosen.room.params)} weights; {chosen.why})"
    if not chosen.trains:
        return named
    if not any(fits for fits, _ in chosen.room.ways.values()):
        return f"{named}; its training does not fit {machine.name}"
    cost = f", {usd_text(chosen.usd)}" if chosen.usd else ""
    takes = f"{chosen.trains}: about {seconds_text(chosen.seconds)}{cost} on {machine.name}"
    return f"{named}; {takes}"


def _here(names: tuple[str, ...]) -> str:
    from modelwright.plan._advise_facts import method

    return "yes" if all(method(name).here for name in names) else "not yet"


def _folded(text: str, width: int, indent: str) -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "  ")


def _picture(walk: Walk, width: int) -> list[str]:
    """The path, a fork a question."""
    lines = []
    for step in walk.steps:
        lines += _fork(step, width)
    return [*lines, f"  ■ {walk.end.title}"]


def _fork(step: Step, width: int) -> list[str]:
    fact = textwrap.wrap(f"{step.fact} ({origin(step)})", width - 8)
    return [f"  ◆ {step.asks}", *(f"  │   {line}" for line in fact), f"  ├─▶ {step.answer}"]


def origin(step: Step) -> str:
    """Where an answer came from, in words; names from the user's data are in it, and a terminal obeys control characters."""
    said = CONTROL.sub("", step.evidence) if step.how != "reckoned" else ""
    return FROM[step.how] + (f": {said}" if said else "")


def page(found: Advised, machine: Machine, looks: Looks = ()) -> str:
    """The same as a page."""
    from modelwright.plan._advise_facts import data
    from modelwright.plan.advise import published
    from modelwright.report import advice

    sources = data().sources
    paths = []
    for walk in found.walks:
        forks = []
        for step in walk.steps:
            others = tuple((other.when, other.title) for other in walk.alternatives if other.question == step.name)
            source = (sources[step.source].title, sources[step.source].url)
            forks.append(advice.Fork(step.asks, step.fact, origin(step), step.answer, step.why, source, others))
        paths.append(advice.Path(TREES[walk.tree], tuple(forks), walk.end.title, walk.end.why))
    facts = [(TREES[walk.tree], f"{walk.end.title}: {walk.end.why}") for walk in found.walks]
    if found.chosen is not None:
        facts.append(("Start", start(found, machine).removeprefix("start: ")))
    return advice.page(
        advice.Advice(
            "; ".join(walk.end.title for walk in found.walks),
            tuple(facts),
            tuple(method.title for method in found.methods if not method.here),
            tuple((title, tuple(rows)) for title, rows in data_tables(looks)),
            tuple(paths),
            tuple(turned_down(found)),
            side_by_side(found),
            found.table,
            tuple(published()),
            found.remarks,
            found.recipe,
            found.no_recipe,
        )
    )


def tree(found: Advised, machine: Machine, written: str, looks: Looks = ()) -> dict[str, Any]:
    """The same for programs."""
    return {
        "title": found.title,
        "methods": [{"name": m.name, "title": m.title, "here": m.here, "file": m.file} for m in found.methods],
        "start": start(found, machine) if found.chosen is not None else None,
        "machine": machine.name,
        "data": [{"path": str(path), **look.to_json()} for path, look in looks],
        "trees": [
            {
                "tree": walk.tree,
                "leaf": walk.leaf,
                "title": walk.end.title,
                "why": walk.end.why,
                "path": [step._asdict() for step in walk.steps],
                "alternatives": [other._asdict() for other in walk.alternatives],
            }
            for walk in found.walks
        ],
        "methods_side_by_side": list(found.table),
        "gains": [gain._asdict() for gain in found.gains],
        "full_against_lora": found.update._asdict(),
        "remarks": list(found.remarks),
        "recipe": written or None,
        "no_recipe": found.no_recipe or None,
    }
