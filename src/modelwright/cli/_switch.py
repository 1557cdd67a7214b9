"""The models and adapters that a chat was given: one model is open at a time, since two may not fit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from modelwright.cli import _model
from modelwright.core.errors import UserError

if TYPE_CHECKING:
    from modelwright.methods.engines import Engine, EngineSpec


class Model(NamedTuple):
    """A model that can be opened."""

    name: str
    path: Path
    adapters: dict[str, Path]
    """By name."""


class Models:
    """A context: the first model opens with it, and what is open closes with it."""

    def __init__(self, models: Sequence[Model], kind: str | None) -> None:
        """`kind`: of the engine; None: the one that suits each model."""
        self._models = {model.name: model for model in models}
        self._kind = kind
        self._open = ExitStack()
        self.engine: Engine
        self.current = models[0]
        self._spec: EngineSpec | None = None

    def __enter__(self) -> Self:
        self._spec = _model.chosen(self.current.path, self.current.name, self._kind)
        self._take(self.current, self._spec)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def names(self) -> list[str]:
        """Each model, then its adapters as `model:adapter`."""
        return [name for model in self._models.values() for name in (model.name, *(f"{model.name}:{a}" for a in model.adapters))]

    def find(self, name: str) -> tuple[Model, str]:
        """The model and the adapter that are meant; an adapter's name alone: of the open model, or the only one so called."""
        if name in self._models:
            return self._models[name], ""
        base, _, adapter = name.rpartition(":")
        found = [m for m in self._models.values() if adapter in m.adapters and base in ("", m.name)]
        if self.current in found or len(found) == 1:
            return (self.current if self.current in found else found[0]), adapter
        near = get_close_matches(name, self.names, 1)
        known = f"there are: {', '.join(self.names)}"
        raise UserError(
            f"there is no model or adapter {name!r}", known, f"did you mean {near[0]}?" if near else "name one of these"
        )

    def switch(self, model: Model) -> None:
        """Open `model` in place of the one that is open; where that fails, that one is opened again."""
        if model is self.current:
            return
        spec = _model.chosen(model.path, model.name, self._kind)  # what no engine opens is refused before anything closes
        self._open.close()
        try:
            self._take(model, spec)
        except BaseException:
            self._take(self.current, self._spec)
            raise
        self.current, self._spec = model, spec

    def _take(self, model: Model, spec: EngineSpec | None) -> None:
        from modelwright.methods import engines

        self.engine = self._open.enter_context(engines.open_engine(model.path, spec, True))


def given_models(given: argparse.Namespace) -> Models:
    """What the command line names; a fault of it is told before anything opens."""
    first = _model.resolve_model(given.model, given.overrides, given.store, given.allow_code)
    found = [Model(first.name, first.path, {})]
    for text in given.models:
        name, place = _model.pair("--model", text)
        if name in (model.name for model in found):
            raise UserError(f"two models are called {name!r}", fix="give each a name of its own: --model NAME=PATH")
        found.append(Model(name, _model.resolve_model(place, (), given.store, given.allow_code).path, {}))
    models = {model.name: model for model in found}
    for text in given.adapters:
        base, name, path = _adapter(text, first.name)
        if base not in models:
            raise UserError(
                f"--adapter {text}: there is no model {base!r}", f"there are: {', '.join(models)}", "name one of these"
            )
        if name in models[base].adapters:
            raise UserError(f"two adapters are called '{base}:{name}'", fix="give each a name of its own: --adapter NAME=PATH")
        models[base].adapters[name] = path
    return Models(found, given.engine)


def _adapter(text: str, first: str) -> tuple[str, str, Path]:
    """Model, name and path of `[[MODEL:]NAME=]PATH`."""
    path = Path(text).expanduser()
    if "=" not in text or path.exists():
        base, name = first, path.resolve().name
    else:
        name, place = _model.pair("--adapter", text)
        base, _, name = name.rpartition(":")
        path = Path(place).expanduser()
    if not path.exists():
        fix = "give its folder, with adapter_config.json in it, or a GGUF file where llama.cpp answers"
        raise UserError(f"there is no adapter at {str(path)!r}", fix=fix)
    return base or first, name, path
