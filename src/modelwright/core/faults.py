"""Faults of a YAML tree: what pydantic says of it, in our words and with its place in the file."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from modelwright.core.errors import UserError
from modelwright.core.places import Loc, Tree
from modelwright.core.spec import Kinds, Spec


class Fault(NamedTuple):
    """What is wrong at one place of the tree."""

    loc: Loc
    what: str
    fix: str = ""

    def error(self, tree: Tree) -> UserError:
        return UserError(self.what, fix=self.fix, where=tree.where(self.loc))


def build(kinds: Kinds, value: Any, loc: Loc) -> tuple[Spec | None, list[Fault]]:
    """`value` as one of `kinds`, or every fault in it."""
    try:
        return kinds.build(value), []
    except PydanticCustomError as error:
        context = error.context or {}
        if error.type == "nested":
            return None, [fault for inner in context["errors"] for fault in faults_of(inner, context["cls"], loc)]
        return None, [_fault({"type": error.type, "msg": error.message(), "ctx": context, "loc": (), "input": value}, Spec, loc)]


def faults_of(error: ValidationError, cls: type[BaseModel], loc: Loc) -> list[Fault]:
    """pydantic's errors in our words; those of nested kinds come inside `ctx` (see Kinds)."""
    faults: list[Fault] = []
    for item in error.errors(include_url=False):
        at = (*loc, *item["loc"])
        if item["type"] == "nested":
            for inner in item["ctx"]["errors"]:
                faults += faults_of(inner, item["ctx"]["cls"], at)
        else:
            faults.append(_fault(dict(item), cls, at))
    return faults


def _fault(item: dict[str, Any], cls: type[BaseModel], at: Loc) -> Fault:
    kind, message = item["type"], item["msg"]
    if kind == "extra_forbidden":
        names = [n for n in _model_at(cls, item["loc"][:-1]).model_fields if n != "kind"]
        near = difflib.get_close_matches(str(at[-1]), names, n=1)
        return Fault(
            at,
            f"unknown key {at[-1]!r}",
            (f"did you mean {near[0]!r}? " if near else "") + f"Keys here: {', '.join(names) or 'none'}",
        )
    if kind == "missing":
        owner = _model_at(cls, item["loc"][:-1])
        said = owner.field_docs().get(str(at[-1]), "") if issubclass(owner, Spec) else ""
        return Fault(at, f"needs {at[-1]!r}", _first_sentence(said))
    if kind == "unknown_kind":
        near = item["ctx"]["near"]
        return Fault(
            (*at, "kind"),
            f"no kind {item['ctx']['kind']} here",
            (f"did you mean {near!r}? " if near else "") + f"Kinds: {item['ctx']['names']}",
        )
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
    shown = repr(item.get("input"))
    # a fault of several fields together says which they are: all of the spec would only hide it
    together = isinstance(item.get("input"), (dict, list, BaseModel)) and not message.startswith("Input should")
    got = (
        f" (got {shown if len(shown) <= 60 else shown[:57] + '…'})"
        if kind not in ("no_kind", "value_error", "code_not_allowed", "no_file", "code_changed") and not together
        else ""
    )
    return Fault(at, message[:1].lower() + message[1:] + got)


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def _model_at(cls: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """The model class that holds the field at the end of `loc`."""
    for key in loc:
        if isinstance(key, str) and key in cls.model_fields:
            for found in _models_in(cls.model_fields[key].annotation):
                cls = found
    return cls


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list, Annotated, dict):
        return [m for arg in typing.get_args(annotation) for m in _models_in(arg)]
    return []
