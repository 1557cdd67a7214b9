"""A stage made small and run for real: some of its rows, two steps after one that warms up, the same code; nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.execute import resolve_input
from modelwright.core.measure import Laps, Meter
from modelwright.core.parallel import Parallel
from modelwright.core.record import Record, write_records
from modelwright.core.spec import kind_of
from modelwright.core.stage import Input, Mix, Run, Stage
from modelwright.core.steps import Step
from modelwright.core.store import Artifact
from modelwright.methods.sources import open_records

STEPS = 3
"""Of a training: one that warms up, and two."""
ROWS, ROWS_CHARS = 2000, 2_000_000
"""Most of each source: seconds of work, whatever the stage does with them."""
ASKED_ROWS = 64
"""Rows that an evaluation asks about."""
CHARS_PER_TOKEN = 8
"""Characters of text that surely hold a token, so that rows suffice for the steps."""
WHOLE = {
    "curate": "its steps choose among all rows and its sources read what they are given: a slice tells little of either",
    "crawl": "its time is the pause between requests",
    "export": "it writes a whole model and proves it: run it",
    "extend": "it reads and writes a whole model: run it",
}
"""Kinds that have no meaningful slice, and why."""


class Tried(NamedTuple):
    """A small run."""

    stage: Stage
    given: Given
    spans: Mapping[str, float]
    """Measured seconds of its parts."""
    checks_s: float
    seconds: float
    peak_bytes: int
    held_bytes: int
    steps: int
    """0: it makes none."""


def unready(step: Step, made: Mapping[str, Artifact]) -> str:
    """Why this stage cannot be tried; '' where it can."""
    if missing := [p.stage for p in step.parents if p.stage is not None and p.stage not in made]:
        return f"{', '.join(dict.fromkeys(missing))} is not made yet"
    return WHOLE.get(kind_of(step.stage), "")


def tried(
    step: Step, made: Mapping[str, Artifact], machine: Machine, facts: Mapping[str, Facts], seed: int, folder: Path
) -> Tried:
    """Run it on the first of its rows. `facts`: of what it does not slice; `folder`: empty, and emptied by the caller."""
    inputs = {parent.ref: resolve_input(parent, made) for parent in step.parents}
    sliced: dict[str, Input] = {}
    for mix in _sources(step.stage):
        sliced[mix.ref], facts = _slice(inputs[mix.ref], _chars(step.stage), folder / f"rows-{len(sliced)}", facts)
    small = _small(step.stage)
    given = Given(machine, facts, seed, Parallel())
    out = folder / "out"
    out.mkdir()
    laps, meter = Laps(), Meter()
    run = Run(out, {**inputs, **sliced}, seed, Log(out / "metrics.jsonl"), facts, laps=laps)
    stage = small.resolve(given)
    for check in stage.checks(run):
        if not check.ok:
            raise UserError(f"stage {step.name!r} is not sound: {check.name}: {check.detail}", fix=check.fix)
    checks_s = meter.seconds()
    stats = stage.run(run)
    run.log.close()
    took = (meter.seconds(), meter.peak_bytes(), meter.held_bytes)
    return Tried(small, given, laps.spans, checks_s, *took, int(stats.get("steps", 0)))


def _sources(stage: Stage) -> Iterator[Mix]:
    """References to rows, each once."""
    found: dict[str, Mix] = {}
    for name in ("data", "validation"):
        for mix in getattr(stage, name, None) or ():
            found.setdefault(mix.ref, mix)
    yield from found.values()


def _chars(stage: Stage) -> int:
    """As much text as the steps surely take."""
    return max(ROWS_CHARS, STEPS * CHARS_PER_TOKEN * int(getattr(stage, "batch_tokens", 0)))


def _slice(given: Input, chars: int, folder: Path, facts: Mapping[str, Facts]) -> tuple[Input, Mapping[str, Facts]]:
    """The first rows as records of their own, and what is known of them."""
    rows: list[Record] = []
    size = 0
    for record in islice(open_records(given, Log(None)), ROWS):
        rows.append(record)
        size += sum(len(str(part)) for part in (record.text, *record.messages, *record.chosen, *record.rejected))
        if size > chars:
            break
    folder.mkdir(parents=True)
    write_records(folder / "all.jsonl", rows)
    own = facts[given.ref]
    share = len(rows) / own.rows if own.rows else None
    known = {name: value * share for name in ("chars", "tokens", "bytes") if share and (value := getattr(own, name)) is not None}
    fact = Facts(type="records", rows=len(rows), **(known or {"chars": size}))
    return Input(given.ref, "records", folder, stats=given.stats, key=given.key), {**facts, given.ref: fact}


def _small(stage: Stage) -> Stage:
    """The stage with few steps; as it is where it makes none."""
    if kind_of(stage) == "evaluate":
        tasks: Sequence[Any] = getattr(stage, "tasks", ())
        return stage.model_copy(
            update={
                "tasks": tuple(task.model_copy(update={"rows": min(task.rows, ASKED_ROWS)}) for task in tasks),
                "against": None,
            }
        )
    if kind_of(stage) != "train":
        return stage
    data = tuple(mix.model_copy(update={"epochs": None, "weight": None}) for mix in getattr(stage, "data", ()))
    changes = {"data": data, "steps": STEPS, "epochs": None, "validate_every": STEPS, "log_every": 1, "samples_every": 0}
    return stage.model_copy(update={**changes, "profile_steps": 0, "trackers": (), "patience": None})
