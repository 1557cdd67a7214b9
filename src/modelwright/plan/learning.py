"""Learning paths: series of recipes that build on each other, each small on a laptop and, with a few changes, at full size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.places import read_yaml
from modelwright.core.spec import Spec
from modelwright.plan.devices import checked

FILE = "path.yaml"


class LearningStep(Spec):
    """One recipe of a path and what to see in it."""

    recipe: str
    """The recipe's file beside the path's, without `.yaml`."""
    watch: str
    """What to look at, and what it means."""
    then: tuple[str, ...] = ()
    """Commands that show it."""


class LearningPath(Spec):
    """The file `path.yaml` of a series."""

    title: str
    """What it is called."""
    about: str
    """What it teaches, and whom."""
    budget_usd: float = Field(ge=0)
    """What the full size may cost on a rented T4 or A100, in US dollars."""
    full: dict[str, Any]
    """`stage.field` -> its value at full size; applied to the recipes that have the stage."""
    steps: tuple[LearningStep, ...] = Field(min_length=1)
    """In order: each goes on from what the one before left in the store."""

    def overrides(self, stages: list[str]) -> list[str]:
        """The changes to a recipe with these stages, as `modelwright run` takes them."""
        return [f"stages.{key}={json.dumps(value)}" for key, value in self.full.items() if key.partition(".")[0] in stages]


def folder() -> Path:
    """Where the paths are: inside the installed package, or beside the sources of a checkout."""
    shipped = Path(__file__).parent.parent / "recipes"
    return (shipped if shipped.is_dir() else Path(__file__).parents[3] / "recipes") / "learn"


def names() -> list[str]:
    return sorted(path.parent.name for path in folder().glob(f"*/{FILE}"))


def read(name: str) -> LearningPath:
    """The path of this name; UserError for one that is not there."""
    if name not in names():
        raise UserError(f"there is no learning path {name!r}", fix=f"one of: {', '.join(names())}")
    return checked(LearningPath, read_yaml(folder() / name / FILE))


def recipe(name: str, step: LearningStep) -> Path:
    return folder() / name / f"{step.recipe}.yaml"


def full_text(path: LearningPath, file: Path) -> str:
    """The recipe at full size."""
    text = file.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    for key, value in path.full.items():
        stage, *fields = key.split(".")
        if stage in tree["stages"]:
            node = tree["stages"][stage]
            for field in fields[:-1]:
                node = node[field]
            node[fields[-1]] = value
    dumped = yaml.dump(tree, Dumper=_Plain, sort_keys=False, width=130, allow_unicode=True)
    return f"{text.splitlines()[0]} At full size.\n{dumped}"


class _Plain(yaml.SafeDumper):
    """Writes what is used twice, twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
