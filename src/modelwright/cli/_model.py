"""The model that a command line names: a recipe's, an artifact, any folder or file of weights; and an engine for it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelwright.cli import _options
from modelwright.core.errors import UserError
from modelwright.core.store import read_manifest

if TYPE_CHECKING:
    from modelwright.methods.engines import Engine

RECIPE_ENDS = (".yaml", ".yml")
MODEL = (
    "recipe.yaml (its last export, else its last model), recipe.yaml:STAGE, an artifact's or a model's folder, or a .gguf file"
)


class Resolved(NamedTuple):
    path: Path
    name: str
    """What clients and the prompt call it."""


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """The options of a command that opens a model."""
    made = _options.parser(command, description, recipe=False, json=False)
    made.add_argument("model", help=MODEL)
    _options.add_overrides(made)
    made.add_argument("--engine", help="native or llamacpp (default: the first that can open the model)")
    return made


@contextmanager
def open_model(given: argparse.Namespace) -> Iterator[tuple[Engine, str]]:
    """An engine with the model that the arguments name, and the model's name; closed at the end."""
    from modelwright.methods import engines

    path, name = resolve_model(given.model, given.overrides, given.store, given.allow_code)
    spec = engines.ENGINES.load(given.engine)() if given.engine else None
    assert spec is None or isinstance(spec, engines.EngineSpec)
    with engines.open_engine(path, spec) as engine:
        yield engine, name


def resolve_model(
    text: str, overrides: Sequence[str] = (), store: Path = Path("store"), allow_code: Sequence[Path] = ()
) -> Resolved:
    """Where the model is that `text` names."""
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
    path = Path(text)
    if path.exists():
        return Resolved(path, _name(path))
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, beside, 1)
    raise UserError(f"there is no model at {text!r}", fix=f"did you mean {path.parent / near[0]}?" if near else f"give {MODEL}")


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
