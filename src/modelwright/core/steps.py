"""The stages of a recipe with their keys, all of them before anything runs, and what there is of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.estimate import Facts
from modelwright.core.external import Digests, hub_commit, local
from modelwright.core.recipe import Loaded
from modelwright.core.spec import fingerprint, kind_of
from modelwright.core.stage import Accepts, Stage, parse_ref
from modelwright.core.store import Artifact, Store


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
