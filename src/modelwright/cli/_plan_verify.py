"""`modelwright plan --verify`: two real steps of each stage, held against what was predicted; only the pair of numbers is
kept."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli._options import open_project
from modelwright.cli._output import print_json, print_table
from modelwright.core.errors import UserError
from modelwright.core.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from modelwright.api import Project
    from modelwright.core.estimate import Estimate
    from modelwright.core.steps import Step
    from modelwright.stages._verify import Tried

Tree = dict[str, Any]
FAILED = "it failed; the reason stands above"


def options(parse: argparse.ArgumentParser) -> None:
    parse.add_argument(
        "--verify", action="store_true", help="run two real steps of each stage whose inputs are made, and compare (seconds each)"
    )
    parse.add_argument("--stage", metavar="NAME", help="with --verify or --exact: this stage alone")


def verify(chosen: argparse.Namespace, args: list[str]) -> int:
    """One stage in this process, or every stage in a process of its own, whose memory nothing else has filled."""
    if not chosen.verify:
        raise UserError("--stage names the stage that --verify tries or --exact counts", fix="add --verify or --exact")
    trees = [_one(open_project(chosen), chosen.stage)] if chosen.stage else list(_each(open_project(chosen), args))
    failed = int(any(tree["left_out"] == FAILED for tree in trees))
    if chosen.json:
        print_json(trees)
        return failed
    measured = [tree for tree in trees if not tree["left_out"]]
    if measured:
        print_table([line for tree in measured for line in _lines(tree)])
        print()
    for tree in measured:
        low, high = tree["low_s"], tree["high_s"]
        planned = f"planned {seconds_text(tree['planned_s'])} ({seconds_text(low)} to {seconds_text(high)})"
        holds = "inside" if low <= tree["whole_s"] <= high else "outside"
        print(f"{tree['stage']}: all of it would take {seconds_text(tree['whole_s'])}; {planned}: {holds} the interval")
    for tree in trees:
        if tree["left_out"]:
            print(f"{tree['stage']} ({tree['kind']}) was not tried: {tree['left_out']}")
    return failed


def _each(project: Project, args: list[str]) -> Any:
    import subprocess  # these few are late because every `plan` opens this file

    from modelwright.core.spec import kind_of
    from modelwright.stages._verify import unready

    steps, made = _steps(project)
    for step in steps:
        if why := unready(step, made):
            yield {"stage": step.name, "kind": kind_of(step.stage), "left_out": why}
            continue
        rest = [arg for arg in args if arg != "--json"]
        command = [sys.executable, "-m", "modelwright.cli.main", "plan", *rest, "--stage", step.name, "--json"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            yield {"stage": step.name, "kind": kind_of(step.stage), "left_out": FAILED}
        else:
            yield json.loads(done.stdout)[0]


def _steps(project: Project) -> tuple[list[Step], dict[str, Any]]:
    from modelwright.core.steps import prepare

    steps = prepare(project.loaded, project.store, network=True)
    return steps, {step.name: step.artifact for step in steps if step.artifact is not None}


def _one(project: Project, name: str) -> Tree:
    """Try the stage, keep the pair, and tell what it means for the whole."""
    from tempfile import TemporaryDirectory

    from modelwright.core.predict import facts_of
    from modelwright.core.spec import kind_of
    from modelwright.plan.calibrate import VERIFIED, calibrated, with_checks
    from modelwright.plan.machine import this_machine
    from modelwright.stages._verify import tried, unready

    steps, made = _steps(project)
    step = next((step for step in steps if step.name == name), None)
    if step is None:
        raise UserError(f"the recipe has no stage {name!r}", fix=f"its stages: {', '.join(s.name for s in steps)}")
    if why := unready(step, made):
        raise UserError(f"stage {name!r} cannot be tried", why)
    kind, adjust = kind_of(step.stage), calibrated(project.store)
    planned = next(row.estimate for row in project.plan().rows if row.stage == name)
    with TemporaryDirectory() as folder:
        found = tried(step, made, this_machine(), facts_of(step, made), project.recipe.seed, Path(folder))
    raw = found.stage.estimate(found.given)
    found = found._replace(spans=with_checks(found.spans, [span.name for span in raw.spans], found.checks_s))
    expected = adjust(kind, raw)
    _keep(project.store.root / VERIFIED, kind, name, raw, found)
    return {"stage": name, "kind": kind, "left_out": "", **_compared(planned, raw, expected, found)}


def _compared(planned: Estimate, raw: Estimate, expected: Estimate, found: Tried) -> Tree:
    from modelwright.plan.calibrate import covers

    own = planned.seconds.value / sum(span.seconds for span in planned.spans) if planned.spans else 1.0
    whole_s = 0.0
    for span in planned.spans:  # what was measured by itself as it was measured, the rest as it is planned
        name = next((name for name in found.spans if covers(name, span.name)), None)
        small = sum(other.seconds for other in raw.spans if name and covers(name, other.name))
        whole_s += span.seconds * (found.spans[name] / small if name and small > 0 else own)
    steps_s, predicted_s = found.spans.get("steps", 0.0), _steps_s(raw, expected)
    return {
        "steps": found.steps,
        "step_s": {"predicted": predicted_s / found.steps, "measured": steps_s / found.steps} if found.steps else None,
        "seconds": {**_tree(expected.seconds), "measured": found.seconds},
        "memory": {**_tree(expected.memory), "measured": float(found.peak_bytes)},
        "whole_s": whole_s or planned.seconds.value * found.seconds / expected.seconds.value,
        "planned_s": planned.seconds.value,
        "low_s": planned.seconds.low or 0.0,
        "high_s": planned.seconds.high or planned.seconds.value,
    }


def _steps_s(raw: Estimate, expected: Estimate) -> float:
    by = expected.seconds.value / raw.seconds.value
    return by * sum(span.seconds for span in raw.spans if span.name.startswith("steps"))


def _tree(quantity: Any) -> Tree:
    return {"predicted": quantity.value, "low": quantity.low, "high": quantity.high}


def _lines(tree: Tree) -> Any:
    for what, key, said in (("time", "seconds", seconds_text), ("memory", "memory", bytes_text)):
        values = tree[key]
        yield {
            "stage": tree["stage"],
            "what": f"{what} of {tree['steps']} steps" if tree["steps"] and key == "seconds" else f"{what} of the slice",
            "predicted": said(values["predicted"]),
            "95 % interval": f"{said(values['low'])} to {said(values['high'])}",
            "measured": said(values["measured"]),
            "verdict": "inside" if values["low"] <= values["measured"] <= values["high"] else "OUTSIDE",
        }
    if tree["step_s"]:
        step = tree["step_s"]
        yield {
            "stage": tree["stage"],
            "what": "a step",
            "predicted": f"{step['predicted']:.3g} s",
            "95 % interval": "",
            "measured": f"{step['measured']:.3g} s",
            "verdict": f"{100 * (step['measured'] / step['predicted'] - 1):+.0f} %",
        }


def _keep(path: Path, kind: str, stage: str, raw: Estimate, found: Tried) -> None:
    """A line for `plan.calibrated`."""
    tree = {
        "kind": kind,
        "stage": stage,
        "host": socket.gethostname(),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "spans": [span._asdict() for span in raw.spans] or [{"name": "", "seconds": raw.seconds.value}],
        "measured": found.spans,
        "seconds": found.seconds,
        "parts": [part._asdict() for part in raw.parts] or [{"name": "", "bytes": raw.memory.value}],
        "peak_bytes": found.peak_bytes if found.held_bytes <= found.peak_bytes / 2 else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(tree) + "\n")
