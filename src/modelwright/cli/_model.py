"""The model that a command line names: a recipe's, an artifact, any folder or file of weights; and an engine for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelwright.cli import _options
from modelwright.core.errors import UserError
from modelwright.core.store import read_manifest

if TYPE_CHECKING:
    from modelwright.methods.engines import Engine, EngineSpec

RECIPE_ENDS = (".yaml", ".yml")
MODEL = (
    "recipe.yaml (its last export, else its last model), recipe.yaml:STAGE, an artifact's or a model's folder, a .gguf file; or "
    "one served elsewhere: PROVIDER:MODEL (openai, anthropic, ollama, …), http://…/v1#MODEL, a .json file with an engine"
)


class Resolved(NamedTuple):
    path: Path
    name: str
    """What clients and the prompt call it."""


def parser(command: str, description: str, needed: bool = True) -> argparse.ArgumentParser:
    """The options of a command that opens a model; `needed`: it must be named."""
    made = _options.parser(command, description, recipe=False, json=False)
    made.add_argument("model", nargs=None if needed else "?", help=MODEL)
    _options.add_overrides(made)
    made.add_argument("--engine", help="native, llamacpp, vllm or sglang (chosen from model and machine, and told)")
    return made


def add_more(parse: argparse._ActionsContainer, model: str, adapter: str, named: str = "[MODEL:]NAME=PATH") -> None:
    """The options of a command that opens several models; `model` and `adapter`: help on these, `named`: how adapters are."""
    more = {"--model": ("NAME=PATH", model), "--adapter": (named, adapter)}
    for option, (metavar, about) in more.items():
        parse.add_argument(
            option, dest=f"{option[2:]}s", action="append", default=[], metavar=metavar, help=f"{about}; may be repeated"
        )


@contextmanager
def open_model(given: argparse.Namespace, supervised: bool = False) -> Iterator[tuple[Engine, str]]:
    """An engine with the model that the arguments name, and the model's name; closed at the end."""
    from modelwright.methods import engines

    path, name = resolve_model(given.model, given.overrides, given.store, given.allow_code)
    with engines.open_engine(path, chosen(path, name, given.engine), supervised) as engine:
        yield engine, name


def chosen(path: Path, name: str, kind: str | None, serve: bool = False) -> EngineSpec:
    """The engine that was asked for, or the one that suits; a person at a terminal is told why."""
    from pydantic_core import PydanticCustomError

    from modelwright.methods import engines

    if kind is None:
        spec, why = engines.pick(path, serve)
        if sys.stderr.isatty():
            print(f"{name}: {why}", file=sys.stderr)
        return spec
    try:
        made = engines.ENGINES.load(kind)()
    except PydanticCustomError as error:
        raise UserError(f"--engine {kind}: {error}") from None
    assert isinstance(made, engines.EngineSpec)
    if reason := made.accepts(path):
        raise UserError(f"--engine {kind} cannot open {name}", reason, "leave --engine out: one is chosen")
    return made


def resolve_model(
    text: str, overrides: Sequence[str] = (), store: Path = Path("store"), allow_code: Sequence[Path] = ()
) -> Resolved:
    """Where the model is that `text` names."""
    from modelwright.methods.engines._choose import named

    recipe, _, stage = (text, "", "") if text.endswith(RECIPE_ENDS) else text.rpartition(":")
    if recipe.endswith(RECIPE_ENDS):
        if not Path(recipe).is_file():
            raise UserError(f"there is no recipe {recipe!r}", fix="`modelwright new` writes one")
        opened = argparse.Namespace(recipe=Path(recipe), overrides=overrides, store=store, allow_code=allow_code)
        project = _options.open_project(opened)
        path = project.artifact(stage).path if stage else project.model_path()
        return Resolved(path, f"{project.recipe.name}-{stage}" if stage else project.recipe.name)
    if overrides:
        raise UserError(f"{text!r} is no recipe, so there is nothing to override", fix=f"leave out {' '.join(overrides)}")
    _options.allow(allow_code)  # an engine's file may name a program
    path = Path(text)
    if (elsewhere := named(path)) is not None:
        place = text.partition("#")[0].rstrip("/:").removesuffix("/v1")
        return Resolved(path, elsewhere.model_dump()["model"] or place.rpartition("/")[2])
    if path.exists():
        return Resolved(path, _name(path))
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, 1)
    raise UserError(f"there is no model at {text!r}", fix=f"did you mean {path.parent / near[0]}?" if near else f"give {MODEL}")


def pair(option: str, text: str) -> tuple[str, str]:
    """Name and path of an option's `NAME=PATH`."""
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise UserError(f"{option} {text}: it names nothing", fix=f"write {option} NAME=PATH")
    return name, path


def key_of(path: Path) -> str:
    """The key of the artifact that the model is, or lies in; '' where it is none."""
    folder = path if path.is_dir() else path.parent
    manifest = read_manifest(folder)
    return str(manifest["key"]) if manifest is not None else ""


def _name(path: Path) -> str:
    """`chat` of the artifact `chat-0123456789ab` and of the `model.gguf` in it, `tiny` of `tiny.gguf`, else the folder's name."""
    path = path.resolve()
    if path.is_file():
        return _name(path.parent) if path.stem == "model" else path.stem
    label, _, key = path.name.rpartition("-")
    is_artifact = (path / "manifest.json").is_file() and len(key) == 12
    return (label if is_artifact else path.name) or "model"
