"""python_package: the source files and documentation of an installed package, read from disk and never imported.

Source: CPython's library as installed (https://docs.python.org/3/library/), any package's own files otherwise; see `_python.py`
for how they are found and `_python_docs.py` for the documentation.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.methods.sources._python import STDLIB, PythonTree, locate, module_name, unreadable
from modelwright.methods.sources._python_docs import description, doc_files, documents
from modelwright.methods.sources._python_objects import DEFINITIONS, first_line, parse


class PythonPackage(PythonTree):
    """One document a module (or a function or class), one a page of documentation."""

    advice: ClassVar[Advice] = Advice(
        "you want a model of a package that is installed here: nothing is downloaded and the licence is known",
        "you have the text as files (`folder`), or the package is compiled and has no Python source",
    )

    kind: Literal["python_package"] = "python_package"
    docs: bool = Field(True, examples=[False])
    """Also what is written about it: help topics and built documentation of the standard library where installed, the long
    description of a distribution. Prose beside code, about 5 % of the standard library's bytes."""
    unit: Literal["module", "object"] = Field("module", examples=["object"])
    """What one document is: `module` a whole file; `object` each function or class at the top of a file, and the rest of the
    file as one more. `object` lets steps drop pieces of a file, and loses the order."""

    @property
    def bytes_per_s(self) -> float:  # type: ignore[override]
        """Measured on a 2-core machine; objects need a parser."""
        return 60e6 if self.unit == "module" else 2e6

    def unused(self, context: Spec) -> dict[str, str]:
        place = locate(self.package)
        if self.package != STDLIB and not place.distribution:
            return {"docs": f"{self.package!r} has no documentation of its own here; `package: stdlib` has"}
        return {}

    def files(self) -> list[Path]:
        return super().files() + ([path for path, _ in doc_files(self.package)] if self.docs else [])

    def digest(self) -> str | None:
        total = hashlib.sha256((super().digest() or "").encode())
        if self.docs:
            for path, name in doc_files(self.package):
                data = path.read_bytes()
                total.update(f"{name} {len(data)}\n".encode())
                total.update(data)
            total.update(description(locate(self.package)).encode())
        return total.hexdigest()

    def read(self, log: Log) -> Iterator[Record]:
        place = locate(self.package)
        facts = {"package": self.package, "version": place.version, "licence": place.licence}
        for relative, text in self.sources(log):
            module = module_name(relative)
            if self.unit == "module":
                yield Record(relative, text=text, meta={"path": relative, "object": module, "kind": "module", **facts})
                continue
            try:
                pieces = list(_pieces(text))
            except (SyntaxError, ValueError, RecursionError) as error:
                unreadable(log, relative, error)
                continue
            for piece in pieces:
                name = f"{module}.{piece.name}" if piece.name else module
                key = f"{relative}#{piece.name}@{piece.line}" if piece.name else relative
                yield Record(key, text=piece.text, meta={"path": relative, "object": name, "kind": piece.kind, **facts})
        if self.docs:
            for name, kind, text in documents(self.package, place, log):
                if text:
                    yield Record(name, text=text, meta={"path": name, "object": name, "kind": kind, **facts})


class _Piece(NamedTuple):
    name: str
    """'' for the rest of the module."""
    kind: str
    line: int
    text: str


def _pieces(text: str) -> Iterator[_Piece]:
    """The module without its functions and classes, then each of them, in order; no line is lost or doubled."""
    lines = re.split(r"\r\n|\r|\n", text)
    rest: list[str] = []
    pieces: list[_Piece] = []
    after = 0
    for node in parse(text).body:
        if not isinstance(node, DEFINITIONS):
            continue
        first = first_line(node) - 1
        last = node.end_lineno or node.lineno
        if first < after:  # two on one line: `def f(): pass; ...` cannot hold a second, a semicolon's rest can
            continue
        rest += lines[after:first]
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        pieces.append(_Piece(node.name, kind, first + 1, "\n".join(lines[first:last])))
        after = last
    rest += lines[after:]
    remaining = re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()
    if remaining:
        yield _Piece("", "module", 1, remaining)
    yield from pieces
