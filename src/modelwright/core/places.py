"""YAML with places: the tree, the line of every key, and overrides by dotted path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from modelwright.core.errors import UserError

Loc = tuple[str | int | float, ...]
"""A path in the tree: keys and list indices (YAML keys may be numbers)."""


class Tree(NamedTuple):
    """A parsed file. `line` maps a path in the tree to its line, from 1."""

    value: Any
    line: dict[Loc, int]
    name: str
    text: str

    def where(self, loc: Loc) -> str:
        """`recipe.yaml:12 stages.base.model`: the nearest line that the file has for `loc`."""
        for end in range(len(loc), -1, -1):
            if loc[:end] in self.line:
                dotted = ".".join(map(str, loc))
                return f"{self.name}:{self.line[loc[:end]]} {dotted}".rstrip()
        return f"{self.name} {'.'.join(map(str, loc))}".rstrip()


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-3` is a number and a key written twice is an error."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)

MAX_BYTES = 1_000_000
"""A recipe is written by hand; what is larger is the wrong file."""


def read_yaml(path: Path, missing: str = "`modelwright new` writes a recipe to start from") -> Tree:
    """Parse `path`; UserError with the line where that fails. `missing`: what to do where there is no such file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size} bytes, too many for a recipe", fix="name a recipe file, not a data file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.y*ml")], n=1)
        raise UserError(
            f"there is no file {path}",
            fix=f"did you mean {folder / near[0]}?" if near else missing,
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file", fix="name the .yaml file in it") from None
    except PermissionError:
        raise UserError(f"{path} cannot be read", "permission denied") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text", str(error), "save it as UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Tree:
    """Parse `text`; `name` is what errors call it."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        line: dict[Loc, int] = {}
        value = None if node is None else _build(loader, node, (), line, name, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise UserError(
            f"not valid YAML: {error.problem or error.context}",
            fix="check the indentation, the brackets and the quotes of this line and the one before",
            where=where,
        ) from None
    except yaml.YAMLError as error:
        raise UserError("not valid YAML", str(error).splitlines()[0], where=name) from None
    return Tree(value, line, name, text)


def _build(loader: _Loader, node: yaml.Node, loc: Loc, line: dict[Loc, int], name: str, depth: int) -> Any:
    line.setdefault(loc, node.start_mark.line + 1)
    if depth > 50:
        raise UserError("nested more than 50 deep", where=f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        tree: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)) or key == "<<":
                raise UserError(f"a key must be a word, not {key!r}", where=f"{name}:{key_node.start_mark.line + 1}")
            if key in tree:
                raise UserError(
                    f"the key {key!r} is written twice",
                    "YAML would keep the last one in silence",
                    "remove one of them",
                    f"{name}:{key_node.start_mark.line + 1}",
                )
            line[(*loc, key)] = key_node.start_mark.line + 1
            tree[key] = _build(loader, value_node, (*loc, key), line, name, depth + 1)
        return tree
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*loc, i), line, name, depth + 1) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def override(tree: Tree, items: Sequence[str]) -> Tree:
    """Apply `stages.chat.objective.beta=0.2`; a bare word on the way becomes `{kind: word}`."""
    value = _copy(tree.value)
    for item in items:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise UserError(f"{item!r} is not an override", fix="write path=value, such as stages.base.steps=100")
        node, keys = value, path.split(".")
        for depth, key in enumerate(keys[:-1]):
            child = _get(node, key)
            if child is None and isinstance(node, dict) and keys[:depth] != ["stages"]:
                child = {}  # a section that was left out; what does not belong there is found when the recipe is checked
            if child is None:
                raise UserError(f"{path}: the recipe has no {'.'.join(keys[: depth + 1])!r}", fix=_near(key, node))
            if isinstance(child, str):
                child = {"kind": child}
            _set(node, key, child, path)
            node = child
        _set(node, keys[-1], parse_yaml(text, f"override {path}").value, path)
    return tree._replace(value=value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def _get(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return node[int(key)] if key.isdigit() and int(key) < len(node) else None
    return node.get(key) if isinstance(node, dict) else None


def _set(node: Any, key: str, value: Any, path: str) -> None:
    if isinstance(node, dict):
        node[key] = value
    elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
        node[int(key)] = value
    else:
        raise UserError(
            f"{path}: {key!r} has no place in {type(node).__name__}", fix="a list takes numbers from 0, a mapping takes names"
        )


def _near(key: str, node: Any) -> str:
    names = (
        [str(k) for k in node] if isinstance(node, dict) else [str(i) for i in range(len(node))] if isinstance(node, list) else []
    )
    near = difflib.get_close_matches(key, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(names) or 'nothing'}"
