"""What every stage will take and leave: parents' facts as they were measured where they are made, else as they are predicted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelwright.core.beginnings import held
from modelwright.core.errors import UserError
from modelwright.core.estimate import BEGIN_BYTES, IMPORTS, TORCH, Estimate, Facts, Given, Machine, Quantity
from modelwright.core.measure import held_bytes
from modelwright.core.parallel import Parallel
from modelwright.core.spec import kind_of
from modelwright.core.stage import Stage
from modelwright.core.steps import Parent, Step
from modelwright.core.store import Artifact
from modelwright.core.units import bytes_of, bytes_text

ALONE = Parallel()
Adjust = Callable[[str, Estimate], Estimate]
"""Corrects an estimate by what earlier runs measured; `plan.calibrated` is one."""


def as_told(kind: str, estimate: Estimate) -> Estimate:
    """No correction."""
    return estimate


def predict(
    steps: Sequence[Step],
    machine: Machine,
    seed: int,
    adjust: Adjust = as_told,
    parallel: Parallel = ALONE,
    memory: str | None = None,
) -> dict[str, Estimate]:
    """The cost of every stage; parents' facts are measured where they are made, else predicted."""
    facts: dict[str, dict[str, Facts]] = {}
    estimates: dict[str, Estimate] = {}
    spent = "torch" in sys.modules
    loaded = {name: size for name, size in TORCH.items() if name in sys.modules}
    for step in steps:
        given = Given(within(machine, step.stage, memory), _parent_facts(step, facts), seed, parallel, paths_of(step))
        expected = estimated(step, given)
        if step.artifact is None:
            expected, spent = (imported(expected) if spent else expected), spent or _imports(expected)
        left_bytes = sum(size for name, size in loaded.items() if name not in expected.leaves)
        estimates[step.name] = after(adjust(kind_of(step.stage), expected), left_bytes)
        if step.artifact is None:
            loaded |= expected.leaves
        facts[step.name] = estimates[step.name].facts if step.artifact is None else _measured(step.artifact)
    return estimates


def estimated(step: Step, given: Given) -> Estimate:
    """What the stage itself says; what it refuses, with its place."""
    try:
        return step.stage.estimate(given)
    except UserError as error:
        raise type(error)(error.what, error.why, error.fix, error.where or f"stages.{step.name}") from error


def _imports(estimate: Estimate) -> bool:
    return any(span.name == IMPORTS for span in estimate.spans)


def imported(estimate: Estimate) -> Estimate:
    """The same where an earlier stage of this process has imported what it needs."""
    spans = tuple(span for span in estimate.spans if span.name != IMPORTS)
    spared = sum(span.seconds for span in estimate.spans if span.name == IMPORTS)
    took, told = estimate.seconds, f"; without {IMPORTS}, which are there by then" if spared else ""
    return estimate._replace(seconds=took._replace(value=took.value - spared, why=took.why + told), spans=spans)


def after(estimate: Estimate, left_bytes: float) -> Estimate:
    """The same in a process that holds so much before the stage begins."""
    if estimate.processes > 1 or left_bytes < BEGIN_BYTES:
        return estimate
    memory = estimate.memory
    low, high = (None if limit is None else limit + left_bytes for limit in (memory.low, memory.high))
    why = f"{memory.why}; {bytes_text(left_bytes)} that earlier stages leave in the process"
    return estimate._replace(memory=Quantity(memory.value + left_bytes, memory.unit, why, low, high), left_bytes=left_bytes)


def left_for(expected: Estimate) -> float:
    """Bytes that earlier stages of this process left, beside what the stage itself would load."""
    own = sum(size for name, size in expected.leaves.items() if name in sys.modules)
    return max(0.0, held_bytes() - BEGIN_BYTES - own)


def known(steps: Sequence[Step], estimates: Mapping[str, Estimate]) -> dict[str, dict[str, Facts]]:
    """By stage and reference: what is known of the stage's parents, measured where they are made, else as `predict` has it."""
    made = {s.name: estimates[s.name].facts if s.artifact is None else _measured(s.artifact) for s in steps}
    return {step.name: _parent_facts(step, made) for step in steps}


def givens(
    steps: Sequence[Step],
    estimates: Mapping[str, Estimate],
    machine: Machine,
    seed: int,
    parallel: Parallel = ALONE,
    memory: str | None = None,
) -> dict[str, Given]:
    """What every stage may look at before anything runs; of parents that are not made, their planned facts."""
    facts = known(steps, estimates)
    return {s.name: Given(within(machine, s.stage, memory), facts[s.name], seed, parallel, paths_of(s)) for s in steps}


def within(machine: Machine, stage: Stage, memory: str | None) -> Machine:
    """As much of it as `runtime.memory` leaves to a stage."""
    return machine._replace(memory_bytes=bytes_of(memory)) if memory and stage.works else machine


def _parent_facts(step: Step, facts: Mapping[str, Mapping[str, Facts]]) -> dict[str, Facts]:
    found = {}
    for parent in step.parents:
        if parent.stage is not None:
            made = facts[parent.stage]
            found[parent.ref] = made.get(parent.part or "", made.get("", Facts(type="unknown")))
        else:
            found[parent.ref] = _of_files(parent)
    return found


def _of_files(parent: Parent) -> Facts:
    """What is known of the user's own files; of rows also how many they are and how much text they hold, about."""
    facts = parent.facts or outside(parent.path)
    if parent.path is None or "records" not in parent.accepts.types or (told := held(parent.path)) is None:
        return facts
    return facts.model_copy(update={"rows": told.rows, "chars": told.chars})


def paths_of(step: Step) -> dict[str, Path]:
    """By reference: files of the user's own."""
    return {parent.ref: parent.path for parent in step.parents if parent.path is not None}


def outside(path: Path | None) -> Facts:
    """What is known of files that no stage made."""
    if path is None:
        return Facts(type="path")
    files = [path] if path.is_file() else path.rglob("*")
    return Facts(type="path", bytes=sum(file.stat().st_size for file in files if file.is_file()))


def _measured(artifact: Artifact) -> dict[str, Facts]:
    stored = artifact.manifest["stats"].get("facts", {})
    return {part: Facts(**{**tree, "measured": True}) for part, tree in stored.items()}


def facts_of(step: Step, made: Mapping[str, Artifact]) -> dict[str, Facts]:
    """What is known of everything that a stage reads, all of it made."""
    return {parent.ref: _parent_facts_made(parent, made) for parent in step.parents}


def _parent_facts_made(parent: Parent, made: Mapping[str, Artifact]) -> Facts:
    if parent.stage is None:
        return _of_files(parent)
    measured = _measured(made[parent.stage])
    return measured.get(parent.part or "", measured.get("", Facts(type=made[parent.stage].manifest["type"])))
