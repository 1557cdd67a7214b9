"""Options that several commands share, and how a recipe is opened from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelwright.api import Project


class _Parser(argparse.ArgumentParser):
    """Takes overrides behind options too: `run r.yaml --store runs stages.base.steps=100`."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)


def parser(command: str, description: str, *, recipe: bool = True, json: bool = True) -> argparse.ArgumentParser:
    """A parser with the shared options; `recipe` adds the recipe and its overrides."""
    made = _Parser(prog=f"modelwright {command}", description=description)
    if recipe:
        made.add_argument("recipe", type=Path, help="the recipe's .yaml file")
        add_overrides(made)
    made.add_argument(
        "--store", type=Path, default=Path("store"), metavar="DIR", help="where artifacts are kept (default: ./store)"
    )
    if json:
        made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


def add_overrides(made: argparse.ArgumentParser) -> None:
    """What changes a recipe from the command line; behind the positional argument that names it."""
    made.add_argument("overrides", nargs="*", metavar="path=value", help="change a value: stages.base.steps=100")
    made.add_argument(
        "--allow-code",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="let the recipe use this Python file of yours (`kind: ./file.py`); read it first",
    )


def count(text: str) -> float:
    """The value of an option that takes a number such as 4096 or 1.5B."""
    from modelwright.core.units import count_of

    try:
        return count_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def open_project(args: argparse.Namespace) -> Project:
    """The recipe that the arguments name."""
    from modelwright.api import load

    allow(args.allow_code)
    return load(args.recipe, *args.overrides, store=args.store)


def allow(files: Sequence[Path]) -> None:
    """What `--allow-code` names."""
    from modelwright.core.errors import UserError
    from modelwright.core.spec import allow_code

    for path in files:
        if not path.is_file():
            raise UserError(f"--allow-code: there is no file {path}")
        allow_code(path)
