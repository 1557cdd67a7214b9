"""Spec: a frozen node of a recipe. Kinds: how a `kind:` finds its one file."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema


class _Runtime:
    """Marks a field that may depend on the machine and changes results only within tolerance."""

    def __repr__(self) -> str:
        return "Runtime"


Runtime = _Runtime()
"""`threads: Annotated[int, Runtime]` stays out of the artifact's key."""


class Advice(NamedTuple):
    """What the advisor knows of a method. An empty text or a zero: it is no matter of that, or nobody tells."""

    use_when: str
    avoid_when: str
    needs: str = ""
    """What it learns from, as a user would say it."""
    least_rows: int = 0
    """Rows below which `source` advises against it."""
    cost: float = 0.0
    """Work for a row, relative to SFT of all weights on one answer of that length; time, energy and money go with it."""
    memory: float = 0.0
    """Weights, gradients and states of every model that it holds, relative to SFT of all weights with AdamW: 16 bytes each."""
    quality: str = ""
    """What its rows have to be like."""
    deployment: str = ""
    """What it takes to serve the result."""
    source: str = ""
    """Where these facts are from: title and address, and how `cost` and `memory` were reckoned."""


class Spec(BaseModel):
    """A typed, frozen node of a recipe. Unknown keys are refused; every field has a docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    version: ClassVar[int] = 1
    """Bump when the code makes different bytes from the same fields. A refactor does not."""
    advice: ClassVar[Advice | None] = None

    @classmethod
    def field_docs(cls) -> dict[str, str]:
        """Field -> the docstring under it. Read from the source when asked for: pydantic's own reading of it
        (`use_attribute_docstrings`) parses the file of every class that is imported and took half of the time of `plan`."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Spec):
                found |= _docs_in(base.__module__).get(base.__qualname__, {})
        return found

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        tree = handler(schema)
        described = handler.resolve_ref_schema(tree)
        for name, text in cls.field_docs().items():
            if name in described.get("properties", {}):
                described["properties"][name].setdefault("description", text)
        return tree

    def unused(self, context: Spec) -> dict[str, str]:
        """Fields that the chosen combination ignores, each with its reason; `context` is the enclosing stage.

        A field of a spec inside this one is a dotted path: `data.0.weight`.
        A field named here that the user set is refused before anything starts (the consumption ledger).
        """
        return {}

    def identity(self) -> dict[str, Any]:
        """What enters the artifact's key: every field, defaults too, but those marked Runtime."""
        tree: dict[str, Any] = {"version": self.version}
        source = source_file(type(self))
        if source is not None:  # no release pins the user's own file, so its bytes do
            tree["source"] = hashlib.sha256(source.read_bytes()).hexdigest()
        for name, info in type(self).model_fields.items():
            if Runtime not in info.metadata:
                tree[name] = plain(getattr(self, name))
        return tree

    def children(self) -> Iterator[tuple[str, Spec]]:
        """Every nested spec with its dotted path."""
        for name in type(self).model_fields:
            yield from _specs(name, getattr(self, name))


@cache
def _docs_in(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> docstring, of one module's top level."""
    file = sys.modules[module].__file__
    if file is None or not file.endswith(".py"):
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for field, after in zip(node.body, node.body[1:], strict=False):
                match field, after:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        fields[name] = inspect.cleandoc(text)
    return found


def _specs(path: str, value: Any) -> Iterator[tuple[str, Spec]]:
    if isinstance(value, Spec):
        yield path, value
        for inner, spec in value.children():
            yield f"{path}.{inner}", spec
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _specs(f"{path}.{index}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _specs(f"{path}.{key}", item)


def kind_of(spec: Spec) -> str:
    """What a recipe writes as its `kind`; empty for a spec that is no choice among kinds."""
    return str(spec.model_dump(include={"kind"}).get("kind", ""))


def plain(value: Any) -> Any:
    """A JSON tree of a field's value; nested specs give their identity."""
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def fingerprint(tree: Any) -> str:
    """64 hex digits: sha256 over canonical JSON."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


S = TypeVar("S", bound=Spec)


class Kinds:
    """A family of specs: one package, one file per kind, the file's name is the kind.

    Used as a pydantic annotation: `objective: Annotated[Objective, OBJECTIVES]`. `base` is the class each
    kind derives from, as `package.module:Class`; it is only imported when a kind is.
    """

    def __init__(self, package: str, base: str) -> None:
        self.package, self.base = package, base

    def names(self) -> list[str]:
        """Every kind, by listing files; nothing is imported. A leading underscore is not a kind."""
        return list(_names(self.package))

    def load(self, kind: str) -> type[Spec]:
        """The one Spec class that the file of `kind` defines, or of the user's own `./file.py`."""
        if kind.endswith(".py"):
            module = _user_module(Path(kind))
        elif kind in self.names():
            module = importlib.import_module(f"{self.package}.{kind}")
        else:
            near = difflib.get_close_matches(kind, self.names(), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise PydanticCustomError(
                "unknown_kind",
                "no kind {kind} here. {hint}Kinds: {names}",
                {"kind": repr(kind), "hint": hint, "near": near[0] if near else "", "names": ", ".join(self.names())},
            )
        where, _, name = self.base.partition(":")
        base: type[Spec] = getattr(importlib.import_module(where), name)
        own = [
            c
            for c in vars(module).values()
            if isinstance(c, type)
            and issubclass(c, base)
            and c.__module__ == module.__name__
            and "kind" in c.model_fields
            and not c.__name__.startswith("_")
        ]
        if len(own) != 1:
            raise TypeError(
                f"{module.__file__} must define exactly one {name} with a field `kind`, found {[c.__name__ for c in own]}"
            )
        return own[0]

    def file(self, kind: str) -> Path:
        """Where a kind's code is, without importing it."""
        if kind.endswith(".py"):
            return Path(kind)
        found = importlib.util.find_spec(self.package)
        assert found is not None and found.submodule_search_locations is not None
        for folder in found.submodule_search_locations:
            for path in (Path(folder) / f"{kind}.py", Path(folder) / kind / "__init__.py"):
                if path.exists():
                    return path
        raise AssertionError(f"{kind} has no file in {self.package}")

    def build(self, value: Any) -> Spec:
        """A spec from `{kind: …}` or a bare word; PydanticCustomError where that fails."""
        if isinstance(value, Spec):
            return value  # made in Python
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or "kind" not in value:
            raise PydanticCustomError("no_kind", "needs `kind:`, one of {names}", {"names": ", ".join(self.names())})
        if not isinstance(value["kind"], str):
            raise PydanticCustomError("no_kind", "`kind` must be a word, one of {names}", {"names": ", ".join(self.names())})
        cls = self.load(value["kind"])
        try:
            return cls.model_validate(value)
        except ValidationError as error:  # pydantic would fold all of it into one line
            raise PydanticCustomError(
                "nested", "{count} faults inside", {"count": error.error_count(), "errors": [error], "cls": cls}
            ) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def union(_: core_schema.CoreSchema, handle: Any) -> dict[str, Any]:
            variants = [handle(self.load(kind).__pydantic_core_schema__) for kind in self.names()]
            return {
                "anyOf": [
                    {"enum": self.names()},
                    {"oneOf": variants, "discriminator": {"propertyName": "kind"}},
                    {"type": "string", "pattern": r"\.py$"},
                ]
            }

        return core_schema.no_info_plain_validator_function(
            self.build,
            metadata={"pydantic_js_functions": [union]},
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda v: v.model_dump(mode="json") if isinstance(v, Spec) else v
            ),
        )


@cache
def _names(package: str) -> tuple[str, ...]:
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations is not None, package
    return tuple(sorted(m.name for m in pkgutil.iter_modules(found.submodule_search_locations) if not m.name.startswith("_")))


# --- the user's own files -------------------------------------------------------------------------

folder_of_recipe: ContextVar[Path] = ContextVar("folder_of_recipe", default=Path())
"""Where `kind: ./file.py` starts; set while a recipe is read."""
_allowed_code: dict[Path, str] = {}
_PREFIX = "_modelwright_user_"


def allow_code(path: Path) -> str:
    """Permit `kind: ./file.py` for one file (`--allow-code`); returns the digest that is recorded."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _allowed_code[path.resolve()] = digest
    return digest


def source_file(cls: type) -> Path | None:
    """The user's own file that defines `cls`; None for the classes that we ship."""
    module = sys.modules.get(cls.__module__)
    if module is None or not module.__name__.startswith(_PREFIX) or module.__file__ is None:
        return None
    return Path(module.__file__)


def allowed_file(path: Path) -> tuple[Path, str]:
    """The user's own file and its digest; PydanticCustomError where `--allow-code` does not permit it as it is now."""
    path = path if path.is_absolute() else folder_of_recipe.get() / path
    if not path.is_file():
        raise PydanticCustomError("no_file", "there is no file {path}", {"path": str(path)})
    resolved = path.resolve()
    if resolved not in _allowed_code:
        raise PydanticCustomError(
            "code_not_allowed",
            "{path} is code, and a recipe may not run code by itself; read it, then add --allow-code {path}",
            {"path": str(path)},
        )
    digest = hashlib.sha256(resolved.read_bytes()).hexdigest()
    if digest != _allowed_code[resolved]:
        raise PydanticCustomError("code_changed", "{path} changed after it was allowed", {"path": str(path)})
    return resolved, digest


def _user_module(path: Path) -> ModuleType:
    """Import the user's file under a name that no package can collide with; only where it was allowed."""
    resolved, digest = allowed_file(path)
    name = f"{_PREFIX}{re.sub(r'[^a-zA-Z0-9]', '_', path.stem)}_{digest[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # before it runs: pydantic looks it up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
