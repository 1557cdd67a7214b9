"""Why a stage is to be made, or why it is not: its identity against that of the last artifact of the same name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modelwright.core.steps import Step
from modelwright.core.store import Artifact, Store


class Reason(NamedTuple):
    """The state of one stage in words. `changes`: what differs from the last one made under this name."""

    stage: str
    state: str
    text: str
    changes: tuple[str, ...] = ()


def why(steps: Sequence[Step], store: Store) -> list[Reason]:
    """One reason a stage, in order."""
    newest: dict[tuple[str, str], Artifact] = {}
    for artifact in store.all():
        newest[artifact.manifest["type"], artifact.manifest["stage"]] = artifact
    states = {step.name: step.state for step in steps}
    return [_reason(step, newest.get((step.stage.produces, step.name)), states) for step in steps]


def _reason(step: Step, last: Artifact | None, states: dict[str, str]) -> Reason:
    if step.artifact is not None:
        when = step.artifact.manifest["made_by"]["time"][:19].replace("T", " ")
        label = step.artifact.manifest["stage"]
        renamed = f", under the name {label!r}" if label != step.name else ""
        return Reason(step.name, step.state, f"its key {step.key[:12]} is that of an artifact made {when} UTC{renamed}")
    begun = "a run was stopped while making it; it goes on from there. " if step.unfinished and step.stage.resumes else ""
    if last is None:
        return Reason(step.name, step.state, f"{begun}it was never made here")
    changes = tuple(_changes(last.manifest["identity"], step, states))
    return Reason(
        step.name, step.state, f"{begun}it differs from the last {step.name!r} ({last.path.name.rsplit('-', 1)[-1]})", changes
    )


def _changes(old: dict[str, Any], step: Step, states: dict[str, str]) -> Iterator[str]:
    new = step.identity
    by_field = {p.field: p for p in step.parents}
    for field in sorted(old["parents"].keys() | new["parents"].keys()):
        before, after = old["parents"].get(field), new["parents"].get(field)
        if before != after:
            parent = by_field.get(field)
            if parent is None:
                yield f"{field}: no longer there"
            elif before is None:
                yield f"{field}: new"
            elif parent.stage is None:
                yield f"{field}: the content of {parent.ref} changed"
            else:
                yield f"{field}: {parent.ref} is another artifact now" + (
                    f" (see {parent.stage})" if states.get(parent.stage) != "cached" else ""
                )
    for path, before, after in _diff(old["spec"], new["spec"], ""):
        if path.rsplit(".", 1)[-1] == "version":
            yield f"{path.rpartition('.')[0] or new['kind']}: its code makes other bytes than before ({before} -> {after})"
        elif path.rsplit(".", 1)[-1] == "source":
            yield f"{path.rpartition('.')[0]}: the file changed"
        else:
            yield f"{path}: {before!r} -> {after!r}"
    for path, _, _ in _diff(old["external"], new["external"], ""):
        yield f"{path}: what it reads has changed"
    if old["seed"] != new["seed"]:
        yield f"seed: {old['seed']} -> {new['seed']}"


def _diff(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("kind") != new.get("kind"):
            yield path or "kind", old.get("kind"), new.get("kind")
            return
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _diff(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _diff(before, after, f"{path}.{index}")
    elif old != new:
        yield path, _short(old), _short(new)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("kind", "…")
    return [_short(v) for v in value] if isinstance(value, list) else value
