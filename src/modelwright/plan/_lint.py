"""What a pitfall rule looks at, and what it says. The rules are in `_lint_recipe.py`, `_lint_settings.py`,
`_lint_device.py` and `_lint_rows.py`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from modelwright.core.estimate import Estimate, Facts, Machine
from modelwright.core.recipe import Budget
from modelwright.core.stage import parse_ref
from modelwright.plan._lint_data import Data

Severity = Literal["warning", "hint"]
"""`warning`: the result will most likely not be what was meant. `hint`: look whether it is meant so."""
Loc = tuple[str | int, ...]
TEXTS, TUNED = ("text", "documents"), ("answers", "pairs")
"""What objectives need that learn a language, and those that learn how to answer."""
CHARS_PER_TOKEN = 3.5
"""As estimates of trainings take it (`stages/_train_cost.py`)."""


class Look(NamedTuple):
    """One stage of a recipe and what is known around it."""

    name: str
    kind: str
    stage: Any
    stages: Mapping[str, Any]
    """All of the recipe, in order."""
    kinds: Mapping[str, str]
    facts: Mapping[str, Facts]
    """Of its references."""
    paths: Mapping[str, Path]
    """Where references to files of the user's own lead, its own and other stages'."""
    estimate: Estimate
    machine: Machine
    budget: Budget | None
    rows: Data | None
    """None: no data is to be read."""
    folders: Mapping[str, Path]
    """Of artifacts that are made, by reference, and by name those of all stages; empty where no data is to be read."""
    is_made: bool

    @property
    def is_training(self) -> bool:
        return self.kind == "train"

    def parent(self, ref: str | None) -> tuple[str, Any] | None:
        """The earlier stage that a reference names, and its name."""
        if ref is None or (address := parse_ref(ref)).kind != "stage":
            return None
        return address.name, self.stages[address.name]

    def trainings(self, ref: str | None) -> list[str]:
        """Names of the trainings that made a model, the last first."""
        found: list[str] = []
        while (parent := self.parent(ref)) is not None:
            name, stage = parent
            found += [name] * (self.kinds[name] == "train")
            refs = {path: ref for path, (ref, _) in stage.refs().items()}
            ref = refs.get("start", refs.get("model"))
        return found

    def same(self, one: str, other: str) -> bool:
        """Whether two references name the same rows: however a path is written, and where one is a folder around the other."""
        if one == other or one not in self.paths or other not in self.paths:
            return one == other
        near, far = self.paths[one].resolve(), self.paths[other].resolve()
        return near.is_relative_to(far) or far.is_relative_to(near)

    def path(self, field: str, name: str | None = None) -> str:
        """An override's path."""
        return f"stages.{name or self.name}.{field}"

    def row_tokens(self) -> float | None:
        """Tokens of a usual row of `data`, as far as they are known."""
        tokens = rows = 0.0
        for mix in self.stage.data:
            fact = self.facts.get(mix.ref)
            if fact is None or not fact.rows or (size := self._tokens(fact)) is None:
                return None
            tokens, rows = tokens + size, rows + fact.rows
        return tokens / rows

    def epochs(self) -> list[float | None]:
        """Times that a row of each source is used, as `nn/order.py` shares the budget out; None where too little is known."""
        stage, mixes = self.stage, self.stage.data
        found: list[float | None] = [mix.epochs for mix in mixes]
        free = [index for index, mix in enumerate(mixes) if mix.epochs is None]
        if stage.epochs is not None and not self.is_weighted:
            return [stage.epochs if one is None else one for one in found]
        sizes = [self._tokens(self.facts[mix.ref]) if mix.ref in self.facts else None for mix in mixes]
        known = [size for size in sizes if size]
        if not free or len(known) < len(mixes):
            return found
        pool = sum(known[i] for i in free) * stage.epochs if stage.epochs is not None else float(stage.steps * stage.batch_tokens)
        pool -= sum(size * mix.epochs for size, mix in zip(known, mixes, strict=True) if mix.epochs and stage.epochs is None)
        weights = {i: mixes[i].weight or known[i] for i in free}
        for i in free:
            found[i] = max(pool, 0.0) * weights[i] / sum(weights.values()) / known[i]
        return found

    @property
    def is_weighted(self) -> bool:
        return any(mix.weight is not None for mix in self.stage.data)

    def steps(self) -> float | None:
        """Of the training, where enough is known."""
        if self.stage.steps is not None:
            return float(self.stage.steps)
        sizes = [self._tokens(self.facts[mix.ref]) if mix.ref in self.facts else None for mix in self.stage.data]
        used = [size * times for size, times in zip(sizes, self.epochs(), strict=True) if size and times]
        return sum(used) / self.stage.batch_tokens if len(used) == len(sizes) else None

    def data_with(self, index: int, **changes: Any) -> str:
        """The override that changes one source of `data` and leaves the others."""
        mixes = [mix.model_dump(exclude_none=True, include={"ref", "weight", "epochs"}) for mix in self.stage.data]
        mixes[index] |= changes
        value = mixes[0]["ref"] if len(mixes) == 1 and len(mixes[0]) == 1 else json.dumps(mixes)
        return shlex.quote(f"{self.path('data')}={value}")

    def _tokens(self, fact: Facts) -> float | None:
        if fact.tokens is not None:
            return fact.tokens
        size = fact.chars if fact.chars is not None else fact.bytes
        return size / CHARS_PER_TOKEN + (fact.rows or 0.0) * self.stage.objective.marks_tokens() if size is not None else None


class Fault(NamedTuple):
    """What a rule found at one place."""

    at: Loc
    """Path of keys within the stage."""
    what: str
    mend: str
    """The override to type, or what else to do."""


class Rule(NamedTuple):
    name: str
    """By which `accept` silences it."""
    severity: Severity
    why: str
    source: str
    find: Callable[[Look], Iterator[Fault]]
    reads_rows: bool = False
    """It looks at rows that are made, so that only `check` asks it."""


class Finding(NamedTuple):
    """A pitfall, for people and programs."""

    rule: str
    severity: Severity
    stage: str
    where: str
    """Place in the recipe's file."""
    what: str
    why: str
    mend: str
    source: str


def json_in(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def refs_of(mixes: Sequence[Any] | None) -> list[str]:
    return [mix.ref for mix in mixes or ()]
