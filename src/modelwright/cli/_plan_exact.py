"""`modelwright plan --exact`: the memory of every training stage, counted operation by operation, beside the closed form."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.units import bytes_text
from modelwright.plan._whole_text import rule_of
from modelwright.plan.cuda import BESIDE

if TYPE_CHECKING:
    from modelwright.api import Project
    from modelwright.core.estimate import Estimate, Part
    from modelwright.core.steps import Step
    from modelwright.plan.whole import Plan

Tree = dict[str, Any]
NO_TENSORS = ("imports", "rows", "reference", *BESIDE)
"""Parts of the closed form that no operation allocates: libraries, what lies in numpy's memory, and what a card holds beside."""


def options(parse: argparse.ArgumentParser) -> None:
    parse.add_argument(
        "--exact",
        action="store_true",
        help="count the memory of each training stage by two of its steps on tensors without values (seconds each)",
    )


def exact(project: Project, plan: Plan, chosen: argparse.Namespace) -> int:
    trees = list(_trees(project, plan, chosen.stage))
    if chosen.json:
        print_json({"machine": plan.machine, "stages": trees})
        return 0
    for tree in trees:
        _print(tree)
    if len(trees) > 1:
        print_table([_line(tree) for tree in trees], title="\nall")
    if plan.parallel.processes > 1:
        print(f"\nof a training in one process: how `parallel: {plan.parallel}` divides it is in `plan --why`")
    return 0


def _trees(project: Project, plan: Plan, only: str | None) -> Iterator[Tree]:
    """What was counted of each training stage, or of one."""
    from modelwright.core.predict import givens, predict
    from modelwright.core.spec import kind_of
    from modelwright.plan.cuda import reserved
    from modelwright.stages._trace import trace
    from modelwright.stages._trace_open import Known

    steps = project.steps()
    # in one process and with everything on the card, as it is counted
    closed = predict([_unmoved(step) for step in steps], plan.on, project.recipe.seed)
    given = givens(steps, closed, plan.on, project.recipe.seed)
    known = {step.name: Known(step, given[step.name]) for step in steps}
    trains = [step.name for step in steps if kind_of(step.stage) == "train"]
    if not trains or (only is not None and only not in trains):
        what = f"the recipe has no stage {only!r} that trains" if only is not None else "the recipe trains nothing"
        raise UserError(what, fix=f"its stages that train: {', '.join(trains) or 'none'}")
    with _Progress() as progress:
        for name in [only] if only is not None else trains:
            begin = time.perf_counter()
            found = trace(name, known, progress.of(name))
            machine = given[name].machine
            card = reserved(found.events, machine.name) if machine.device == "cuda" else None
            yield {
                "stage": name,
                "peak_bytes": found.peak.bytes,
                "low_bytes": found.low_bytes,
                "high_bytes": found.high_bytes,
                "operation": found.peak.operation,
                "place": found.peak.place,
                "parts": dict(sorted(found.peak.parts.items(), key=lambda part: -part[1])),
                "card": {"name": machine.name, **card._asdict()} if card else None,
                "closed_form_bytes": _tensors(closed[name]),
                "rule_of_thumb_bytes": round(rule.bytes) if (rule := rule_of(closed[name])) else None,
                "closed_form_parts": {part.name: round(part.bytes) for part in _parts(closed[name])},
                "assumed": found.why + _left_out(known[name].step),
                "seconds": round(time.perf_counter() - begin, 2),
            }


def _offload(step: Step) -> Sequence[str]:
    """What a run moves to the processor's memory, which a trace does not count."""
    found: Sequence[str] = getattr(step.stage, "offload", ())
    return found


def _left_out(step: Step) -> str:
    moved = ", ".join(_offload(step))
    return f"; nothing moved by `offload: [{moved}]`, which `plan --why` counts" if moved else ""


def _unmoved(step: Step) -> Step:
    return step._replace(stage=step.stage.model_copy(update={"offload": ()})) if _offload(step) else step


def _parts(estimate: Estimate) -> Sequence[Part]:
    return estimate.device_parts or estimate.parts


def _tensors(estimate: Estimate) -> int:
    return round(sum(float(part.bytes) for part in _parts(estimate) if part.name not in NO_TENSORS))


def _off(tree: Tree) -> str:
    return f"{round(100 * (tree['closed_form_bytes'] / tree['peak_bytes'] - 1), 1) + 0.0:+.1f} %"  # -0.0 + 0.0 is 0.0


def _line(tree: Tree) -> dict[str, str]:
    return {
        "stage": tree["stage"],
        "exact": bytes_text(tree["peak_bytes"]),
        "closed form": f"{bytes_text(tree['closed_form_bytes'])} ({_off(tree)})",
        "operation at the peak": f"{tree['operation']} in {tree['place']}",
    }


def _print(tree: Tree) -> None:
    from modelwright.cli._plan_why import bars

    print(f"\n{tree['stage']}: {bytes_text(tree['peak_bytes'])} of tensors at the peak, by {tree['operation']}")
    print(f"  asked for in {tree['place']}")
    for line in bars([(part, size, bytes_text(size), "") for part, size in tree["parts"].items()]):
        print(line.rstrip())
    if tree["low_bytes"] != tree["high_bytes"]:
        low, high = bytes_text(tree["low_bytes"]), bytes_text(tree["high_bytes"])
        print(f"  {low} to {high}: with experts used evenly, and with as few of them as there can be")
    print(f"  closed form: {bytes_text(tree['closed_form_bytes'])} ({_off(tree)})")
    if rule := tree["rule_of_thumb_bytes"]:
        print(f"  rule of thumb, weights x 4 bytes x 1.2: {bytes_text(rule)}")
    if card := tree["card"]:
        low, high = bytes_text(card["low"]), bytes_text(card["high"])
        print(f"  {card['name']}: {bytes_text(card['value'])} reserved ({low} to {high}), the driver's context beside it")
        print(f"    {card['why']}")
    print(f"  {tree['assumed']}; counted in {tree['seconds']:.1f} s, without libraries and stored rows")


class _Progress:
    """How far it is, on a terminal, once it has taken two seconds."""

    AFTER_S = 2.0

    def __init__(self) -> None:
        self._status: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def of(self, stage: str) -> Callable[[int], None]:
        begin = time.monotonic()

        def told(operations: int) -> None:
            if time.monotonic() - begin < self.AFTER_S:
                return
            text = f"{stage}: {operations:,} operations counted, {time.monotonic() - begin:.0f} s"
            if self._status is None:
                from rich.console import Console

                self._status = Console(stderr=True).status(text)  # silent where that is no terminal
                self._status.start()
            self._status.update(text)

        return told
