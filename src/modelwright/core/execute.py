"""From a recipe to artifacts: keys for everything before anything runs, then one stage after the other."""

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

from modelwright.core.errors import StageFailed, UserError, UserErrors
from modelwright.core.events import Listener, Log
from modelwright.core.external import Digests, hub_commit, hub_files, local
from modelwright.core.measure import Laps, Meter, cores
from modelwright.core.parallel import Parallel
from modelwright.core.recipe import Loaded
from modelwright.core.remote import remote_files
from modelwright.core.spec import fingerprint, kind_of
from modelwright.core.stage import IMPORTS, Accepts, Estimate, Facts, Given, Input, Machine, Run, Stage, Stats, parse_ref
from modelwright.core.store import COLUMNS, Artifact, Store, digest_files, write_json
from modelwright.core.units import bytes_of, bytes_text, moment_s

ALONE = Parallel()
Adjust = Callable[[str, Estimate], Estimate]
"""Corrects an estimate by what earlier runs measured; `plan.calibrated` is one."""


def as_told(kind: str, estimate: Estimate) -> Estimate:
    """No correction."""
    return estimate


class Parent(NamedTuple):
    """One reference of a stage, resolved as far as it can be before the work."""

    ref: str
    field: str
    accepts: Accepts
    stage: str | None
    part: str | None
    key: str
    """The parent stage's key, or the digest of an external input."""
    path: Path | None
    """Where an external input is; None for a stage and for what is still on the Hub or elsewhere."""
    fetched: Path | None = None
    """Folder for what is elsewhere."""
    facts: Facts | None = None
    """What is known of it before it is here; None: no more than its size."""


class Step(NamedTuple):
    """A stage of the recipe with its key and what there is of it."""

    name: str
    stage: Stage
    key: str
    identity: dict[str, Any]
    parents: tuple[Parent, ...]
    artifact: Artifact | None
    unfinished: bool

    @property
    def state(self) -> str:
        return "cached" if self.artifact else "unfinished" if self.unfinished else "to do"


Look = Callable[[Step, Given, Estimate], str]
"""Looks at what a stage is going to take: UserError for what this machine cannot do, a sentence for what it may not."""


def unseen(step: Step, given: Given, estimate: Estimate) -> str:
    """Nobody looks."""
    return ""


def prepare(loaded: Loaded, store: Store, *, network: bool = False) -> list[Step]:
    """Every stage with its key, in order. Reads digests of external inputs; writes nothing unless `network`."""
    digests = Digests(store.root / ".digests.json")
    steps: dict[str, Step] = {}
    for name, stage in loaded.recipe.stages.items():
        parents = tuple(
            _parent(field, ref, accepts, name, loaded, steps, digests, network) for field, (ref, accepts) in stage.refs().items()
        )
        identity = {
            "kind": kind_of(stage),
            "spec": stage.identity(),
            "parents": {p.field: p.key + (f"#{p.part}" if p.part else "") for p in parents},
            "external": stage.external(),
            "seed": loaded.recipe.seed if stage.random else None,
        }
        for parent in parents:  # what a stage is called does not matter, only what it is
            _replace(identity["spec"], parent.field.split("."), "<parent>")
        key = fingerprint(identity)
        steps[name] = Step(
            name, stage, key, identity, parents, store.find(stage.produces, key), store.part(stage.produces, name, key).exists()
        )
    if network:
        digests.save()
    return list(steps.values())


def _parent(
    field: str, ref: str, accepts: Accepts, name: str, loaded: Loaded, steps: Mapping[str, Step], digests: Digests, network: bool
) -> Parent:
    address = parse_ref(ref)
    where = loaded.tree.where(("stages", name, *(int(p) if p.isdigit() else p for p in field.split("."))))
    if address.kind == "stage":
        return Parent(ref, field, accepts, address.name, address.part, steps[address.name].key, None)
    if address.kind == "path":
        path = local(address, loaded.folder, where)
        return Parent(ref, field, accepts, None, None, digests.path(path), path)
    if address.kind == "remote":
        return Parent(ref, field, accepts, None, None, digests.remote(ref, network, where), None, digests.fetched())
    return Parent(ref, field, accepts, None, None, hub_commit(address, accepts, network, where), None)


def _replace(tree: Any, path: Sequence[str], value: str) -> None:
    for key in path[:-1]:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    if isinstance(tree, list):
        tree[int(path[-1])] = value
    else:
        tree[path[-1]] = value


# --- estimates --------------------------------------------------------------------------------------


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
    imported = "torch" in sys.modules
    for step in steps:
        given = Given(_within(machine, step.stage, memory), _parent_facts(step, facts), seed, parallel, _paths(step))
        expected = step.stage.estimate(given)
        if step.artifact is None:
            expected, imported = (_imported(expected) if imported else expected), imported or _imports(expected)
        estimates[step.name] = adjust(kind_of(step.stage), expected)
        facts[step.name] = estimates[step.name].facts if step.artifact is None else _measured(step.artifact)
    return estimates


def _imports(estimate: Estimate) -> bool:
    return any(span.name == IMPORTS for span in estimate.spans)


def _imported(estimate: Estimate) -> Estimate:
    """The same where an earlier stage of this process has imported what it needs."""
    spans = tuple(span for span in estimate.spans if span.name != IMPORTS)
    spared = sum(span.seconds for span in estimate.spans if span.name == IMPORTS)
    return estimate._replace(seconds=estimate.seconds._replace(value=estimate.seconds.value - spared), spans=spans)


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
    return {s.name: Given(_within(machine, s.stage, memory), facts[s.name], seed, parallel, _paths(s)) for s in steps}


def _within(machine: Machine, stage: Stage, memory: str | None) -> Machine:
    """As much of it as `runtime.memory` leaves to a stage."""
    return machine._replace(memory_bytes=bytes_of(memory)) if memory and stage.works else machine


def _parent_facts(step: Step, facts: Mapping[str, Mapping[str, Facts]]) -> dict[str, Facts]:
    found = {}
    for parent in step.parents:
        if parent.stage is not None:
            made = facts[parent.stage]
            found[parent.ref] = made.get(parent.part or "", made.get("", Facts(type="unknown")))
        else:
            found[parent.ref] = parent.facts or outside(parent.path)
    return found


def _paths(step: Step) -> dict[str, Path]:
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


# --- the work ---------------------------------------------------------------------------------------


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
    machine = _within(machine, step.stage, runtime.memory)
    given = Given(machine, facts, loaded.recipe.seed, runtime.parallel or Parallel(), _paths(step))
    expected = step.stage.estimate(given)
    expected = adjust(kind, _imported(expected) if "torch" in sys.modules else expected)
    listener("stage", {"stage": step.name, "state": "running", "key": step.key, "kind": kind, "seconds": expected.seconds.value})
    if said := look(step, given, expected):
        listener("note", {"text": said})
    _check_disk(store.root, expected, step.name)
    home, part = store.home(step.stage.produces, step.name, step.key), store.part(step.stage.produces, step.name, step.key)
    lock = store.lock(step.key, Log(None, listener))
    try:
        if (found := store.find(step.stage.produces, step.key)) is not None:
            return found  # another process made it while this one waited
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


def facts_of(step: Step, made: Mapping[str, Artifact]) -> dict[str, Facts]:
    """What is known of everything that a stage reads, all of it made."""
    return {parent.ref: _parent_facts_made(parent, made) for parent in step.parents}


def _parent_facts_made(parent: Parent, made: Mapping[str, Artifact]) -> Facts:
    if parent.stage is None:
        return parent.facts or outside(parent.path)
    measured = _measured(made[parent.stage])
    return measured.get(parent.part or "", measured.get("", Facts(type=made[parent.stage].manifest["type"])))


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
    files = digest_files(part)
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
