"""The functions and methods of a module and what can be said about them exactly, by `ast` alone.

Every answer is a piece of the source as written (never `ast.unparse`), so a model can copy it and a person can find it.
Source of the grammar: https://docs.python.org/3/library/ast.html.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SCOPES = (*DEFINITIONS, ast.Lambda)
_HEADER = re.compile(r"\s*(?:async\s+)?def\s+(.+?)\s*:\s*(?:#.*)?$")


class Body(NamedTuple):
    """What the statements of a function say. None: cannot be said in one line, or not exactly."""

    raises: list[str] | None = None
    """Exceptions of its `raise` statements, each once, in order; None where one is raised again or held in a variable."""
    returned: str | None = None
    """The expression of its only `return`; `None` where it has none and its end is reached."""
    calls: list[str] | None = None
    """What it calls, as written before the parenthesis, each once, in order; None where a call is made on a result."""
    attributes: list[str] | None = None
    """Attributes of `self` that it assigns to, each once, in order."""
    expressions: tuple[str, ...] = ()
    """Values that it assigns or returns: what a model could copy by mistake."""


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """One function or method: its text and the facts that questions are made of."""

    module: str
    path: str
    qualname: str
    name: str
    line: int
    source: str
    """With decorators, moved to the left margin."""
    parameters: list[str]
    """Names in order, `*` and `**` kept; the bare separators `*` and `/` are not parameters."""
    defaults: dict[str, str | None]
    """Parameter -> its default as written; None where that takes several lines."""
    signature: str | None
    """`dumps(obj, *, skipkeys=False)` as written, with the return annotation; None where it takes several lines."""
    decorators: list[str | None]
    summary: str | None
    """First line of the docstring, where it is a whole sentence or the whole docstring."""
    without_doc: str | None
    """The source with its docstring taken out; None where nothing else is left or the lines do not allow it."""
    body: Body

    @property
    def object(self) -> str:
        return f"{self.module}.{self.qualname}"

    @property
    def public(self) -> bool:
        """No part of its full name starts with an underscore."""
        return not self.object.startswith("_") and "._" not in self.object

    @property
    def in_class(self) -> bool:
        return "." in self.qualname


def functions(text: str, path: str, module: str, longest: int | None = None) -> Iterator[Function]:
    """Functions and methods in the order of the text; what a function defines inside itself is part of it.

    longest: the bodies of those with more characters are not looked into. Raises what `parse` raises.
    """
    lines = re.split(r"\r\n|\r|\n", text)  # as `ast` counts: str.splitlines also splits at form feeds

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[Function]:
        for node in body:
            if isinstance(node, FunctionNode):
                yield _Reader(node, lines).function(module, path, f"{prefix}{node.name}", longest)
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")
            else:
                for block in ("body", "orelse", "finalbody"):
                    yield from walk(getattr(node, block, []), prefix)
                for handler in getattr(node, "handlers", ()):
                    yield from walk(handler.body, prefix)

    yield from walk(parse(text).body, "")


def parse(text: str) -> ast.Module:
    """SyntaxError, ValueError (a null byte) or RecursionError where it is not Python of this version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in string literals are the author's business
        return ast.parse(text)


def parses(text: str) -> bool:
    try:
        parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return True


def first_line(node: FunctionNode | ast.ClassDef) -> int:
    """Where a definition starts, decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


class _Reader:
    """Takes one function apart. The tree is let go afterwards: a library's trees together take 300 MB."""

    def __init__(self, node: FunctionNode, lines: list[str]) -> None:
        self.node, self.lines = node, lines

    def function(self, module: str, path: str, qualname: str, longest: int | None) -> Function:
        node = self.node
        line = first_line(node)
        source = self.text(line, node.end_lineno or node.lineno)
        doc = ast.get_docstring(node, clean=False) or ""
        return Function(
            module,
            path,
            qualname,
            node.name,
            line,
            source,
            self.parameters(),
            self.defaults(),
            self.signature(),
            [self.piece(d) for d in node.decorator_list],
            _summary(doc),
            self.without_doc(line) if doc else None,
            self.body() if longest is None or len(source) <= longest else Body(),
        )

    def text(self, first: int, last: int) -> str:
        """Lines as written, moved to the left margin; a line of a long string that hangs further left stays."""
        margin = self.node.col_offset
        return "\n".join((s[margin:] if not s[:margin].strip() else s).rstrip() for s in self.lines[first - 1 : last])

    def piece(self, node: ast.expr) -> str | None:
        """An expression as written; None where it takes several lines."""
        if node.lineno != node.end_lineno or node.end_col_offset is None:
            return None
        line = self.lines[node.lineno - 1]
        if line.isascii():
            return line[node.col_offset : node.end_col_offset]
        return line.encode()[node.col_offset : node.end_col_offset].decode()  # offsets of `ast` count UTF-8 bytes

    # --- the header ---

    def parameters(self) -> list[str]:
        a = self.node.args
        names = [x.arg for x in (*a.posonlyargs, *a.args)]
        names += [f"*{a.vararg.arg}"] if a.vararg else []
        names += [x.arg for x in a.kwonlyargs]
        return names + ([f"**{a.kwarg.arg}"] if a.kwarg else [])

    def defaults(self) -> dict[str, str | None]:
        a = self.node.args
        named = [*a.posonlyargs, *a.args]
        pairs = list(zip(named[len(named) - len(a.defaults) :], a.defaults, strict=True))
        pairs += [(x, value) for x, value in zip(a.kwonlyargs, a.kw_defaults, strict=True) if value is not None]
        return {x.arg: self.piece(value) for x, value in pairs}

    def signature(self) -> str | None:
        header = self.lines[self.node.lineno - 1]
        first = self.node.body[0]
        if first.lineno == self.node.lineno:  # def f(x): return x
            header = header.encode()[: first.col_offset].decode()
        found = _HEADER.match(header)
        return found[1] if found and parses(f"def {found[1]}: ...") else None

    def without_doc(self, line: int) -> str | None:
        body = self.node.body
        if len(body) < 2:
            return None
        doc, following = body[0], body[1]
        start = first_line(following) if isinstance(following, DEFINITIONS) else following.lineno
        if doc.lineno == self.node.lineno or doc.end_lineno is None or start == doc.end_lineno:
            return None
        tail = self.text(doc.end_lineno + 1, self.node.end_lineno or start).lstrip("\n")
        return f"{self.text(line, doc.lineno - 1)}\n{tail}"

    # --- the statements ---

    def body(self) -> Body:
        nodes: list[ast.AST] = []  # in the order of the text, nested scopes left out
        nested = False
        stack: list[ast.AST] = list(reversed(self.node.body))
        while stack:
            node = stack.pop()
            if isinstance(node, _SCOPES):
                nested = True
                continue
            nodes.append(node)
            stack.extend(reversed(list(ast.iter_child_nodes(node))))
        values = [n.value for n in nodes if isinstance(n, (ast.Assign, ast.Return)) and n.value is not None]
        expressions = tuple(p for p in map(self.piece, values) if p)
        attributes = _attributes(nodes)
        if nested:  # what an inner function raises, returns and calls is not what this one does
            return Body(attributes=attributes, expressions=expressions)
        return Body(self.raises(nodes), self.returned(nodes), self.calls(nodes), attributes, expressions)

    def raises(self, nodes: list[ast.AST]) -> list[str] | None:
        found: dict[str, None] = {}
        for node in nodes:
            if isinstance(node, ast.Raise):
                name = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                text = self.piece(name) if name is not None and _dotted(name) else None
                if text is None or not text.rpartition(".")[2][:1].isupper():  # a variable, or socket.error that looks like one
                    return None
                found[text] = None
        return list(found)

    def returned(self, nodes: list[ast.AST]) -> str | None:
        if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes):
            return None
        values = [node.value for node in nodes if isinstance(node, ast.Return)]
        if not values:
            return None if isinstance(self.node.body[-1], (ast.Raise, ast.While)) else "None"
        return self.piece(values[0]) if len(values) == 1 and values[0] is not None else None

    def calls(self, nodes: list[ast.AST]) -> list[str] | None:
        callees = [node.func for node in nodes if isinstance(node, ast.Call)]
        if not all(map(_dotted, callees)):
            return None
        pieces = [self.piece(c) for c in sorted(callees, key=lambda c: (c.lineno, c.col_offset))]
        return None if None in pieces else list(dict.fromkeys(p for p in pieces if p is not None))


def _summary(doc: str) -> str | None:
    line, _, rest = inspect.cleandoc(doc).partition("\n")
    line = line.strip()
    whole = line.endswith((".", "!")) or not rest.strip() or rest.startswith("\n")
    return line if whole and len(line.split()) >= 3 else None


def _attributes(nodes: list[ast.AST]) -> list[str]:
    found: dict[tuple[int, int], str] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            if node.value.id == "self":
                found[node.lineno, node.col_offset] = f"self.{node.attr}"
    return list(dict.fromkeys(found[place] for place in sorted(found)))


def _dotted(node: ast.expr) -> bool:
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)
