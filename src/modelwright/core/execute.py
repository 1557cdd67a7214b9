"""From a recipe to artifacts: what is missing is made, one stage after the other."""

from __future__ import annotations

import errno
import math
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import Impossible, StageFailed, UserError, UserErrors
from modelwright.core.estimate import Estimate, Given, Machine
from modelwright.core.events import Listener, Log
from modelwright.core.external import hub_files
from modelwright.core.measure import Laps, Meter, cores
from modelwright.core.parallel import Parallel
from modelwright.core.predict import (
    Adjust,
    after,
    as_told,
    estimated,
    facts_of,
    givens,
    imported,
    left_for,
    paths_of,
    predict,
    within,
)
from modelwright.core.recipe import Loaded
from modelwright.core.remote import remote_files
from modelwright.core.spec import kind_of
from modelwright.core.stage import Input, Run, Stage, Stats, parse_ref
from modelwright.core.steps import Parent, Step, prepare
from modelwright.core.store import COLUMNS, MANIFEST, Artifact, Store, digest_files, read_manifest, write_json
from modelwright.core.units import bytes_text, moment_s

Look = Callable[[Step, Given, Estimate], str]
"""Looks at what a stage is going to take: UserError for what this machine cannot do, a sentence for what it may not."""


def unseen(step: Step, given: Given, estimate: Estimate) -> str:
    """Nobody looks."""
    return ""


class Outcome(NamedTuple):
    """What became of a stage: state `made`, `cached` or `failed`."""

    name: str
    state: str
    artifact: Artifact | None


def execute(
    loaded: Loaded,
    store: Store,
    machine: Machine,
    listener: Listener,
    *,
    adjust: Adjust = as_told,
    only: str | None = None,
    gates: bool = True,
    look: Look = unseen,
    steps: Sequence[Step] | None = None,
) -> Iterator[Outcome]:
    """Make what is missing, in order; yields each stage as it ends. `only`: this stage and what it needs. `look`: at each stage,
    before any work and once more before its own, when more is known of what it is made from; not without `gates`. `steps`: as
    `prepare` has them, where that was asked already or more is known of their parents.

    Finished stages stay whatever happens to later ones; a killed one leaves a `.part` that the same recipe goes on from.
    """
    steps = prepare(loaded, store, network=True) if steps is None else steps
    wanted = _needed(steps, only)
    look = look if gates else unseen
    _look_ahead([step for step in steps if step.name in wanted], loaded, machine, adjust, look)
    made: dict[str, Artifact] = {}
    until = loaded.recipe.runtime.until
    deadline_s = moment_s(until, time.time()) if until else math.inf
    for step in steps:
        if step.name not in wanted:
            continue
        if step.artifact is not None:
            made[step.name] = step.artifact
            listener("stage", {"stage": step.name, "state": "cached", "key": step.key})
            yield Outcome(step.name, "cached", step.artifact)
            continue
        if time.time() >= deadline_s:
            raise KeyboardInterrupt(f"time is up before stage {step.name!r}")
        made[step.name] = _make(step, loaded, store, machine, made, listener, adjust, gates, deadline_s, look)
        yield Outcome(step.name, "made", made[step.name])


def _look_ahead(steps: Sequence[Step], loaded: Loaded, machine: Machine, adjust: Adjust, look: Look) -> None:
    """At all stages before any work, all refusals at once. What a stage refuses by a guess, it refuses when its turn comes."""
    runtime, seed = loaded.recipe.runtime, loaded.recipe.seed
    parallel = runtime.parallel or Parallel()
    try:
        estimates = predict(steps, machine, seed, adjust, parallel, runtime.memory)
    except Impossible:
        raise
    except UserError:
        return
    given, refused = givens(steps, estimates, machine, seed, parallel, runtime.memory), []
    for step in steps:
        try:
            if step.artifact is None:
                look(step, given[step.name], estimates[step.name])
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0] if len(refused) == 1 else UserErrors(refused)


def _needed(steps: Sequence[Step], only: str | None) -> set[str]:
    if only is None:
        return {step.name for step in steps}
    by_name = {step.name: step for step in steps}
    if only not in by_name:
        raise UserError(f"the recipe has no stage {only!r}", fix=f"its stages: {', '.join(by_name)}")
    wanted, queue = set(), [only]
    while queue:
        name = queue.pop()
        wanted.add(name)
        queue += [p.stage for p in by_name[name].parents if p.stage is not None]
    return wanted


def _make(
    step: Step,
    loaded: Loaded,
    store: Store,
    machine: Machine,
    made: Mapping[str, Artifact],
    listener: Listener,
    adjust: Adjust,
    gates: bool,
    deadline_s: float,
    look: Look,
) -> Artifact:
    kind = kind_of(step.stage)
    facts = facts_of(step, made)
    runtime = loaded.recipe.runtime
    machine = within(machine, step.stage, runtime.memory)
    given = Given(machine, facts, loaded.recipe.seed, runtime.parallel or Parallel(), paths_of(step))
    expected = estimated(step, given)
    expected = after(adjust(kind, imported(expected) if "torch" in sys.modules else expected), left_for(expected))
    listener("stage", {"stage": step.name, "state": "running", "key": step.key, "kind": kind, "seconds": expected.seconds.value})
    if said := look(step, given, expected):
        listener("note", {"text": said})
    _check_disk(store.root, expected, step.name)
    home, part = store.home(step.stage.produces, step.name, step.key), store.part(step.stage.produces, step.name, step.key)
    lock = store.lock(step.key, Log(None, listener))
    try:
        if (found := store.find(step.stage.produces, step.key)) is not None:
            return found  # another process made it while this one waited
        if (manifest := read_manifest(part)) is not None and manifest["key"] == step.key:
            return _close(step.stage, store, home, part, manifest)  # killed when it was whole
        if part.exists() and not step.stage.resumes:
            shutil.rmtree(part)
        resumed = part.exists()
        part.mkdir(parents=True, exist_ok=True)
        write_json(part / "part.json", {"key": step.key, "stage": step.name, "identity": step.identity})
        log = Log(part / "metrics.jsonl", listener)
        inputs = {p.ref: resolve_input(p, made) for p in step.parents}
        how = (runtime.parallel, runtime.launch, runtime.workers, machine.memory_bytes, runtime.cluster)
        run = Run(part, inputs, loaded.recipe.seed, log, facts, deadline_s, *how, store.root / COLUMNS, Laps())
        meter = Meter()
        try:
            stage = step.stage.resolve(given)
            if gates:
                _gates(stage, run, step.name)
            checks_s = meter.seconds()
            stats = stage.run(run)
        except BaseException as error:
            log.close()
            _leave(part, step, error)
            raise
        log.close()
        return _finish(step, loaded, store, home, part, stats, expected, meter, checks_s, run.laps, resumed)
    finally:
        lock.release()


def resolve_input(parent: Parent, made: Mapping[str, Artifact]) -> Input:
    """A reference as the stage opens it: the artifact's folder, or the user's own files."""
    if parent.stage is not None:
        artifact = made[parent.stage]
        return Input(
            parent.ref,
            artifact.manifest["type"],
            artifact.path,
            parent.part,
            {**artifact.manifest["stats"], "stage": parent.stage},
            artifact.key,
        )
    if parent.fetched is not None:
        path = remote_files(parent.ref, parent.key, parent.fetched, parent.ref)
        return Input(parent.ref, "path", path, key=parent.key)
    if parent.path is None and parent.accepts.lazy:
        return Input(parent.ref, "hub", Path(), key=parent.key)
    path = parent.path or hub_files(parse_ref(parent.ref), parent.key, parent.accepts, parent.ref)
    return Input(parent.ref, "path", path, key=parent.key)


def _gates(stage: Stage, run: Run, name: str) -> None:
    failed = []
    for check in stage.checks(run):
        run.log.event("check", check=check.name, ok=check.ok, detail=check.detail)
        if not check.ok:
            failed.append(check)
    if failed:
        raise UserError(
            f"stage {name!r} is not sound: " + "; ".join(f"{c.name}: {c.detail}" for c in failed),
            fix="; ".join(c.fix for c in failed if c.fix),
            where=f"stages.{name}",
        )


def _leave(part: Path, step: Step, error: BaseException) -> None:
    """After a failure keep only what a resume can use, and say what failed in words."""
    if not step.stage.resumes:
        shutil.rmtree(part, ignore_errors=True)
    where = f"stages.{step.name}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"the disk is full while making {step.name!r}"
        fix = "free some space (`modelwright gc` removes what no recipe needs) and run the same command again"
        raise StageFailed(what, f"{error}; finished stages are kept", fix, where) from None
    if isinstance(error, MemoryError):
        what = f"there is not enough memory for {step.name!r}"
        raise StageFailed(what, str(error), "`modelwright plan --why` shows what takes it", where) from None
    if isinstance(error, UserError):
        raise StageFailed(error.what, error.why, error.fix, error.where or where) from error


def _check_disk(root: Path, expected: Estimate, name: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if expected.disk.value > free:
        raise UserError(
            f"stage {name!r} needs about {bytes_text(expected.disk.value)} of disk and {bytes_text(free)} are free",
            expected.disk.why,
            "free some space (`modelwright gc`) or use another --store",
            f"stages.{name}",
        )


def _finish(
    step: Step,
    loaded: Loaded,
    store: Store,
    home: Path,
    part: Path,
    stats: Stats,
    expected: Estimate,
    meter: Meter,
    checks_s: float,
    laps: Laps | None,
    resumed: bool,
) -> Artifact:
    (part / "part.json").unlink()
    files = digest_files(part, step.stage.scratch)
    manifest = {
        "schema": 1,
        "type": step.stage.produces,
        "stage": step.name,
        "kind": kind_of(step.stage),
        "recipe": loaded.recipe.name,
        "key": step.key,
        "spec": step.stage.model_dump(mode="json"),
        "identity": step.identity,
        "parents": {p.ref: {"stage": p.stage, "part": p.part, "key": p.key, "field": p.field} for p in step.parents},
        "external": step.identity["external"],
        "files": files,
        "stats": stats,
        "estimate": {
            "seconds": expected.seconds._asdict(),
            "memory": expected.memory._asdict(),
            "disk": expected.disk._asdict(),
            "scale": expected.scale,
            "spans": [span._asdict() for span in expected.spans],
            "parts": [part._asdict() for part in expected.parts],
            "left_bytes": expected.left_bytes,
            "device_memory": expected.device_memory._asdict() if expected.device_memory else None,
            "device_parts": [part._asdict() for part in expected.device_parts],
        },
        "actual": {
            "seconds": round(meter.seconds(), 3),
            "checks_s": round(checks_s, 3),
            "spans": laps.spans if laps else {},
            "peak_bytes": meter.peak_bytes(),
            "held_bytes": meter.held_bytes,
            "disk_bytes": sum(f["bytes"] for f in files.values()),
            "resumed": resumed,
        },
        "made_by": made_by(loaded),
    }
    return _close(step.stage, store, home, part, manifest)


def _close(stage: Stage, store: Store, home: Path, part: Path, manifest: dict[str, Any]) -> Artifact:
    """The artifact is whole from when its manifest is written; only then what a resume would need may go."""
    write_json(part / MANIFEST, manifest)
    for name in stage.scratch:
        shutil.rmtree(part / name, ignore_errors=True)
    return store.finish(part, home, manifest)


def made_by(loaded: Loaded) -> dict[str, Any]:
    """Recorded, never hashed: versions, host and time."""

    libraries = {}
    for name in ("torch", "transformers", "peft", "tokenizers", "numpy"):
        if name in sys.modules:
            libraries[name] = metadata.version(name)
    return {
        "modelwright": metadata.version("modelwright"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cores": cores(),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seed": loaded.recipe.seed,
        "libraries": libraries,
    }
