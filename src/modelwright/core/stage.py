"""Stage: a Spec that makes one artifact from what it refers to. Run: what it is handed to work with."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from modelwright.core.estimate import Estimate, Facts, Given
from modelwright.core.events import Log
from modelwright.core.measure import Laps
from modelwright.core.parallel import Parallel
from modelwright.core.spec import Kinds, Spec

STAGES = Kinds("modelwright.stages", "modelwright.core.stage:Stage")


# --- references -------------------------------------------------------------------------------------


class Accepts(NamedTuple):
    """Marks a field that holds references, with the artifact types it takes."""

    types: tuple[str, ...]
    lazy: bool = False
    """A reference to the Hub is not fetched before the work: its `Input` is of type `hub`, its key the commit."""


def Ref(*types: str) -> Any:
    """Field type: one reference. `start: Ref("model")`.

    A reference is an earlier stage's name (`base`), one part of it (`pairs:test`), a path (has `/`), a remote address
    (`s3://bucket/folder/`), or `hf:org/name@revision`.
    """
    return Annotated[str, Accepts(types)]


class Mix(Spec):
    """One source of training rows and its share."""

    ref: Annotated[str, Accepts(("records",))]
    """Reference to the rows."""
    weight: float | None = Field(None, gt=0, examples=[2.0])
    """Share of tokens drawn from this source, relative to the others; unset: as many as it has."""
    epochs: float | None = Field(None, gt=0, examples=[2.0])
    """Times each row is used; unset: as often as the budget of steps and the weights ask for."""

    def unused(self, context: Spec) -> dict[str, str]:
        if self.weight is not None and self.epochs is not None:
            return {"weight": "`epochs` already fixes how much of this source is used"}
        if self.weight is not None and not any(mix.epochs is None for mix in self._others(context)):
            return {"weight": "no other source shares with this one, and a weight is relative to the others'"}
        return {}

    def _others(self, context: Spec) -> list[Mix]:
        """The sources beside this one."""
        for name in type(context).model_fields:
            found = getattr(context, name)
            if isinstance(found, tuple) and any(mix is self for mix in found):
                return [mix for mix in found if mix is not self]
        return []


def _as_mix(value: Any) -> Any:
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple({"ref": item} if isinstance(item, str) else item for item in items)


def _all_or_none(mixes: tuple[Mix, ...]) -> tuple[Mix, ...]:
    shared = [mix for mix in mixes if mix.epochs is None]
    if any(mix.weight is not None for mix in shared) and any(mix.weight is None for mix in shared):
        lacks = ", ".join(mix.ref for mix in shared if mix.weight is None)
        raise ValueError(
            f"a weight is relative to the others': give every source a `weight` (or its own `epochs`); {lacks} has none"
        )
    return mixes


Refs = Annotated[
    tuple[Mix, ...],
    BeforeValidator(_as_mix, json_schema_input_type=str | list[str | Mix]),
    Field(min_length=1),
    AfterValidator(_all_or_none),
]
"""Field type: one reference or a list of `{ref, weight, epochs}`; weights for all of them or for none."""


class Address(NamedTuple):
    """A parsed reference. kind: `stage`, `path`, `remote` or `hf`."""

    kind: str
    name: str
    part: str | None = None
    revision: str | None = None


def parse_ref(ref: str) -> Address:
    """`pairs:test` -> stage pairs, part test; `./a.jsonl` -> path; `hf:org/name@rev` -> Hub; `s3://bucket/a.jsonl` -> remote."""
    if re.match(r"[a-z][a-z0-9+.-]*://", ref):
        return Address("remote", ref)
    if ref.startswith("hf:"):
        name, _, revision = ref[3:].partition("@")
        return Address("hf", name, revision=revision or None)
    if "/" in ref or "\\" in ref:
        return Address("path", ref)
    name, _, part = ref.partition(":")
    return Address("stage", name, part or None)


# --- the work ---------------------------------------------------------------------------------------


class Input(NamedTuple):
    """A reference, resolved: where its files are."""

    ref: str
    type: str
    """`records`, `tokenizer`, `model`, … for artifacts; `path` for the user's own files."""
    path: Path
    """The artifact's folder, or the user's file or folder."""
    part: str | None = None
    stats: Mapping[str, Any] = {}
    """The `stats` of the artifact's manifest."""
    key: str = ""
    """The artifact's key, or the digest of the user's own files; empty: not known."""


class Run(NamedTuple):
    """What a stage is given to work with. It writes only under `out`."""

    out: Path
    """The artifact's folder while it is made; holds what a killed run of the same key left there."""
    inputs: Mapping[str, Input]
    """By reference as written in the recipe."""
    seed: int
    log: Log
    facts: Mapping[str, Facts] = {}
    deadline_s: float = math.inf
    """Unix time by which to have saved and ended."""
    parallel: Parallel | None = None
    """Over how many processes a training is spread; None: as the machine suggests."""
    launch: Spec | None = None
    """How they are started; None: on this machine."""
    workers: int | None = None
    """Processes that work through rows; None: as many as pay."""
    memory_bytes: float = math.inf
    """What all processes together may take."""
    cluster: Spec | None = None
    """Machines that work through rows; None: this one."""
    columns: Path | None = None
    """Folder of numbers that a later run may find again, in the store; they never change a result. None: nothing is kept."""
    laps: Laps | None = None
    """Hears what the parts of the work took, by the names of `Span`; None: nobody asks."""


Stats = dict[str, Any]
"""JSON tree of what a stage measured; key `facts` (part -> Facts) is what children's estimates read."""


class Check(NamedTuple):
    """One soundness check and its verdict."""

    name: str
    ok: bool
    detail: str
    fix: str


class Stage(Spec):
    """One step of a recipe."""

    produces: ClassVar[str]
    """Artifact type: `records`, `tokenizer`, `model`, `evaluation`, `export`."""
    resumes: ClassVar[bool] = False
    """True: `run` goes on from what it finds in `run.out`; else a killed run starts with an empty folder."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """Folders in `run.out` that only going on needs. They are removed when the manifest is written, no sooner: until then a kill
    would make the work start anew."""
    random: ClassVar[bool] = True
    """True: the seed enters the key."""
    spreads: ClassVar[bool] = False
    """True: it may run on several processes (`runtime.parallel`)."""
    works: ClassVar[bool] = False
    """True: it works through rows, which several processes may share (`runtime.workers`)."""

    def parts(self) -> tuple[str, ...]:
        """Names of the outputs; empty for one without a name."""
        return ()

    def refs(self) -> dict[str, tuple[str, Accepts]]:
        """Dotted field path -> (reference, what it takes); nested specs too."""
        found = dict(_refs("", self))
        for path, spec in self.children():
            found.update(_refs(f"{path}.", spec))
        return found

    def external(self) -> dict[str, str]:
        """Digests of inputs that are not artifacts and that no field pins (an installed package's tree); enters the key."""
        found: dict[str, str] = {}
        for path, spec in self.children():
            digest = getattr(spec, "digest", None)
            if callable(digest) and (value := digest()) is not None:
                found[path] = value
        return found

    def resolve(self, given: Given) -> Stage:
        """Fill unset fields from what is known; pure. The key does not depend on it."""
        return self

    def estimate(self, given: Given) -> Estimate:
        raise NotImplementedError(f"{type(self).__name__} has no estimate")

    def checks(self, run: Run) -> Iterator[Check]:
        """Soundness checks on the real inputs and a small slice; gates of `run`."""
        return iter(())

    def run(self, run: Run) -> Stats:
        raise NotImplementedError(f"{type(self).__name__} has no run")


def _refs(prefix: str, spec: Spec) -> Iterator[tuple[str, tuple[str, Accepts]]]:
    for name, info in type(spec).model_fields.items():
        value = getattr(spec, name)
        mark = next(_accepts([*info.metadata, info.annotation]), None)
        if mark is not None:
            if isinstance(value, str):
                yield f"{prefix}{name}", (value, mark)
            elif isinstance(value, (list, tuple)):
                for index, item in enumerate(value):
                    if isinstance(item, str):
                        yield f"{prefix}{name}.{index}", (item, mark)


def _accepts(marks: Iterable[Any]) -> Iterator[Accepts]:
    """Finds the mark also inside `Ref("model") | None` and `list[Ref("model")]`."""
    for mark in marks:
        if isinstance(mark, Accepts):
            yield mark
        elif typing.get_origin(mark) is not None:
            yield from _accepts([*typing.get_args(mark), *getattr(mark, "__metadata__", ())])


NAME = re.compile(r"^[a-z][a-z0-9_-]{0,39}$")
"""What a stage may be called: it becomes a folder's name and part of a reference."""
