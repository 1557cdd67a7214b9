"""Recipe: named stages in file order; a stage may only refer to earlier ones. All faults are found before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from modelwright.core.errors import UserError, UserErrors
from modelwright.core.faults import Fault, build, faults_of
from modelwright.core.parallel import LAUNCHERS, Parallel, elsewhere
from modelwright.core.places import Loc, Tree, override, parse_yaml, read_yaml
from modelwright.core.spec import Spec, folder_of_recipe, kind_of
from modelwright.core.stage import NAME, STAGES, Accepts, Stage, parse_ref
from modelwright.core.units import bytes_of, moment_s


def _moment(text: str) -> str:
    moment_s(text, 0.0)
    return text


def _size(text: str) -> str:
    bytes_of(text)
    return text


class RuntimeFields(Spec):
    """How the recipe runs here; never part of an artifact's key."""

    until: Annotated[str, AfterValidator(_moment)] | None = None
    """When to end: a clock time (`17:45`) or a duration from the start of the command (`50m`, `2h30m`). Training saves shortly
    before, and the same command goes on from there; for sessions that are cut off. Unset: it runs to its end."""
    parallel: Parallel | None = None
    """Over how many processes training stages are spread, and how. Unset: one for each CUDA card of this machine, by `data` where
    the model's training state fits on a card, else by `shard`; on a processor one process, which uses all its cores."""
    launch: Annotated[Spec, LAUNCHERS] | None = None
    """How these processes are started: `local`, `slurm` or `ray`; the latter two need `parallel`, which may ask for one process.
    Unset: `local`, on this machine."""
    workers: int | None = Field(None, ge=1)
    """Processes that work through the rows of a curation. Unset: one for each core where the sources hold enough to be worth
    their start, else this command alone. What comes out does not depend on it."""
    cluster: Annotated[Spec, LAUNCHERS] | None = None
    """Where the rows of a curation are worked through: `ray`, or `{kind: ray, address: …, cpus: …}`. Unset: on this machine. What
    comes out does not depend on it."""
    memory: Annotated[str, AfterValidator(_size)] | None = None
    """Memory that a curation may take, with all its processes (`2GB`): rows that wait go to the disk sooner, fewer processes
    start, and one that will not do with it is refused before the work. Unset: as much as the machine has."""


class Budget(Spec):
    """What all that is left to do may take; never part of a key. A plan that takes more is refused, with what would do."""

    usd: float | None = Field(None, gt=0)
    """Dollars: rent of the planned machine, paid APIs, and electricity where the machine is one's own and its power is known."""
    hours: float | None = Field(None, gt=0)
    """Hours from the first stage to the last."""
    kwh: float | None = Field(None, gt=0)
    """Energy of the boards that compute, in kilowatt-hours."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.usd is None and self.hours is None and self.kwh is None:
            raise ValueError("a budget limits something: give `usd`, `hours` or `kwh`")
        return self


class Head(Spec):
    """What stands above the stages."""

    name: str = Field(pattern=NAME.pattern)
    """What the result is called: a word of small letters, digits and dashes."""
    description: str = ""
    """A sentence for the report and the model card."""
    accept: tuple[str, ...] = ()
    """Pitfall rules that are known and meant to be so here, by the names that `modelwright check` and `plan --why` tell. One that
    finds nothing is told, so that it does not hide a later pitfall. Default: none is meant."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of everything random; another seed makes other artifacts."""
    runtime: RuntimeFields = RuntimeFields()
    """How it runs on this machine."""
    budget: Budget | None = None
    """What it may take altogether; unset: no limit."""


class Recipe(Head):
    """The whole file. `modelwright schema` prints its JSON Schema."""

    stages: dict[str, Annotated[Stage, STAGES]] = Field(min_length=1)
    """The stages by name, in the order in which they are made."""


class Loaded(NamedTuple):
    """A recipe and the text it came from."""

    recipe: Recipe
    tree: Tree
    folder: Path
    """Relative paths in the recipe start here."""


def load(path: Path | str, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override and check a recipe; raises one UserErrors with every fault."""
    path = Path(path)
    tree = override(read_yaml(path), overrides)
    return _loaded(tree, path.parent)


def loads(text: str, overrides: Sequence[str] = (), folder: Path = Path()) -> Loaded:
    """The same from a string."""
    tree = override(parse_yaml(text, "recipe"), overrides)
    return _loaded(tree, folder)


def _loaded(tree: Tree, folder: Path) -> Loaded:
    token = folder_of_recipe.set(folder)
    try:
        return Loaded(parse(tree), tree, folder)
    finally:
        folder_of_recipe.reset(token)


def parse(tree: Tree) -> Recipe:
    """The tree as a Recipe."""
    if not isinstance(tree.value, dict):
        raise UserError("a recipe is a mapping with `name` and `stages`", fix="see `modelwright new`", where=tree.name)
    errors: list[UserError] = []
    stages: dict[str, Stage] = {}
    top = dict(tree.value)
    listed = top.pop("stages", None)
    if not isinstance(listed, dict) or not listed:
        errors.append(
            UserError(
                "needs stages", fix="write `stages:` with at least one `name: {kind: …}` below it", where=tree.where(("stages",))
            )
        )
        listed = {}
    for name, node in listed.items():
        loc: Loc = ("stages", name)
        if not isinstance(name, str) or not NAME.match(name):
            errors.append(
                UserError(
                    f"{name!r} cannot name a stage",
                    fix="use small letters, digits, `-` and `_`, at most 40, starting with a letter",
                    where=tree.where(loc),
                )
            )
            continue
        stage, faults = build(STAGES, node, loc)
        errors += [fault.error(tree) for fault in faults]
        if faults:  # what is left without the faulty keys still shows faults of reference
            stage, _ = build(STAGES, _without(node, [fault.loc[2:] for fault in faults]), loc)
        if isinstance(stage, Stage):
            stages[name] = stage
    head, faults = _top(top)
    errors += [fault.error(tree) for fault in faults]
    errors += _reference_errors(tree, list(listed), stages)
    errors += _ledger_errors(tree, stages)
    if len(stages) == len(listed):  # one that has faults may be what uses it
        errors += _runtime_errors(tree, head, stages)
    if errors or head is None:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    return Recipe.model_construct(_fields_set={*head.model_fields_set, "stages"}, stages=stages, **dict(head))


def _without(node: Any, locs: Sequence[Loc]) -> Any:
    """A copy of `node` without the keys at `locs`."""
    if isinstance(node, dict):
        return {k: _without(v, [loc[1:] for loc in locs if loc[:1] == (k,)]) for k, v in node.items() if (k,) not in locs}
    if isinstance(node, list):
        return [_without(v, [loc[1:] for loc in locs if loc[:1] == (i,)]) for i, v in enumerate(node) if (i,) not in locs]
    return node


def _top(value: dict[str, Any]) -> tuple[Head | None, list[Fault]]:
    try:
        return Head.model_validate(value), []
    except ValidationError as error:
        return None, faults_of(error, Head, ())


# --- references and the consumption ledger ------------------------------------------------------------


def _reference_errors(tree: Tree, order: list[str], stages: dict[str, Stage]) -> list[UserError]:
    errors = []
    for name, stage in stages.items():
        earlier = order[: order.index(name)]
        for path, (ref, accepts) in stage.refs().items():
            loc: Loc = ("stages", name, *(int(p) if p.isdigit() else p for p in path.split(".")))
            fault = _reference_fault(ref, accepts, name, earlier, order, stages)
            if fault:
                errors.append(UserError(fault[0], fix=fault[1], where=tree.where(loc)))
    return errors


def _reference_fault(
    ref: str, accepts: Accepts, name: str, earlier: list[str], order: list[str], stages: dict[str, Stage]
) -> tuple[str, str] | None:
    address = parse_ref(ref)
    if address.kind == "hf":
        return None if address.name.count("/") == 1 else (f"{ref!r} is not a Hub address", "write hf:org/name@revision")
    if address.kind in ("path", "remote"):
        return None
    if address.name == name:
        return f"{name!r} refers to itself", f"earlier stages: {', '.join(earlier) or 'none'}"
    if address.name in order and address.name not in earlier:
        cycle = address.name in stages and any(parse_ref(r).name == name for r, _ in stages[address.name].refs().values())
        return (
            (f"{name!r} and {address.name!r} refer to each other", "one of them must not need the other")
            if cycle
            else (
                f"{address.name!r} is a later stage",
                f"move {address.name!r} above {name!r}; a stage sees only those before it",
            )
        )
    if address.name not in earlier:
        near = difflib.get_close_matches(address.name, earlier, n=1)
        return (
            f"there is no earlier stage {address.name!r}",
            (f"did you mean {near[0]!r}? " if near else "")
            + f"Earlier stages: {', '.join(earlier) or 'none'}; a file is written with a slash: ./{address.name}",
        )
    if address.name not in stages:
        return None  # that stage has faults of its own
    parent = stages[address.name]
    if parent.produces not in accepts.types:
        return f"{address.name!r} makes {_a(parent.produces)}, but {' or '.join(_a(t) for t in accepts.types)} is needed here", ""
    parts = parent.parts()
    if address.part and address.part not in parts:
        return (
            f"{address.name!r} has no part {address.part!r}",
            f"its parts: {', '.join(f'{address.name}:{p}' for p in parts) or 'none, write ' + address.name}",
        )
    if parts and not address.part:
        return f"{address.name!r} has several parts", f"say which: {', '.join(f'{address.name}:{p}' for p in parts)}"
    return None


def _a(noun: str) -> str:
    return noun if noun.endswith("s") else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _ledger_errors(tree: Tree, stages: dict[str, Stage]) -> list[UserError]:
    """Keys that the user set and that the chosen combination does not use."""
    errors = []
    for name, stage in stages.items():
        specs: list[tuple[tuple[str, ...], Spec]] = [
            ((), stage),
            *((tuple(path.split(".")), spec) for path, spec in stage.children()),
        ]
        for path, spec in specs:
            for field, reason in spec.unused(stage).items():
                owner, key = _owner(spec, field.split("."))
                if key in owner.model_fields_set:
                    inner = (*path, *field.split("."))
                    loc: Loc = ("stages", name, *(int(p) if p.isdigit() else p for p in inner))
                    errors.append(
                        UserError(
                            f"{key!r} would be ignored",
                            reason,
                            f"remove {key!r}, or change what makes it unused",
                            tree.where(loc),
                        )
                    )
    return errors


def _runtime_errors(tree: Tree, head: Head | None, stages: dict[str, Stage]) -> list[UserError]:
    """The same for what stands under `runtime`."""
    if head is None:
        return []
    runtime, reasons = head.runtime, {}
    if not any(stage.spreads for stage in stages.values()):
        reasons = dict.fromkeys(("parallel", "launch"), "no stage of this recipe runs on several processes; training does")
    elif runtime.parallel is not None and runtime.parallel.processes == 1 and not elsewhere(runtime.launch):
        reasons["launch"] = "`parallel` asks for one process, which this command is"
    if not any(stage.works for stage in stages.values()):
        reasons |= dict.fromkeys(("workers", "cluster", "memory"), "no stage of this recipe works through rows; curation does")
    errors = _cluster_errors(tree, runtime.cluster) if "cluster" not in reasons else []
    if runtime.launch is not None and runtime.parallel is None and "launch" not in reasons and elsewhere(runtime.launch):
        errors.append(
            UserError(
                f"`launch: {kind_of(runtime.launch)}` does not say how many processes",
                "they start on other machines, whose cards cannot be counted from here",
                "write `parallel: {data: 1}` for one process, or how the training is divided over more",
                tree.where(("runtime", "launch")),
            )
        )
    return errors + [
        UserError(f"{key!r} would be ignored", reason, f"remove {key!r}", tree.where(("runtime", key)))
        for key, reason in reasons.items()
        if key in runtime.model_fields_set
    ]


def _cluster_errors(tree: Tree, cluster: Spec | None) -> list[UserError]:
    if cluster is None:
        return []
    if (kind := kind_of(cluster)) != "ray":
        fix, where = "write `cluster: ray`, or leave it out for this machine", tree.where(("runtime", "cluster"))
        return [UserError(f"{kind!r} starts trainings, and cannot work through rows", fix=fix, where=where)]
    return [
        UserError(f"{key!r} would be ignored", reason, f"remove {key!r}", tree.where(("runtime", "cluster", key)))
        for key, reason in (
            ("gpus", "rows are worked through on processors"),
            ("restarts", "the same command goes on from what is done"),
        )
        if key in cluster.model_fields_set
    ]


def _owner(spec: Spec, path: Sequence[str]) -> tuple[Spec, str]:
    """The spec that has the field at the end of a dotted path (`data.0.weight`), and the field's name."""
    value: Any = spec
    for key in path[:-1]:
        value = value[int(key)] if key.isdigit() else getattr(value, key)
    assert isinstance(value, Spec) and path[-1] in type(value).model_fields, (
        f"{type(spec).__name__}.unused names {'.'.join(path)!r}"
    )
    return value, path[-1]
