"""Documentation that lies beside installed Python code: help topics, built pages, a distribution's long description.

Sources: `pydoc_data/topics.py` (made by Sphinx, https://docs.python.org/3/library/pydoc.html), read as a literal by `ast`; built
pages as `html/_sources/*.rst.txt` (Sphinx's `html_copy_source`) or else their HTML; the body of core metadata (PEP 566).
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from modelwright.core.events import Log
from modelwright.methods.sources._python import STDLIB, Place, unreadable
from modelwright.methods.sources._python_objects import parse

_BLOCKS = frozenset(
    {"p", "div", "li", "dt", "dd", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "section", "ul", "ol", "dl", "br"}
)
_SILENT = frozenset({"script", "style", "nav", "head", "button"})
_VOID = frozenset({"br", "img", "hr", "meta", "link", "input", "col", "wbr", "area", "base", "source"})


def doc_files(package: str) -> list[tuple[Path, str]]:
    """(file, name for records) of the documentation of the standard library; other packages have theirs in their metadata."""
    if package != STDLIB:
        return []
    topics = Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py")
    return ([(topics, "pydoc_data/topics.py")] if topics.is_file() else []) + _pages(_built_folders())


def _built_folders() -> list[Path]:
    """Where distributions and installers put the built documentation of this Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    prefix = Path(sys.base_prefix)
    shares = [prefix / "share" / "doc", Path("/usr/share/doc")]
    return [share / name / "html" for share in shares for name in (f"python{version}", "python3")] + [prefix / "Doc" / "html"]


def _pages(folders: list[Path]) -> list[tuple[Path, str]]:
    """Pages of the first folder that has any: the text they were made from where it was kept, else the HTML."""
    for folder in folders:
        for start, pattern in ((folder / "_sources", "*.txt"), (folder, "*.html")):
            found = sorted(path for path in start.rglob(pattern) if path.is_file()) if start.is_dir() else []
            if found:
                return [(path, f"Doc/{path.relative_to(start).as_posix()}") for path in found]
    return []


def documents(package: str, place: Place, log: Log) -> Iterator[tuple[str, str, str]]:
    """(name, kind, text): help topics, pages, and the long description of an installed distribution."""
    for path, name in doc_files(package):
        try:
            text = importlib.util.decode_source(path.read_bytes())
            if path.suffix != ".py":
                yield name, "page", text.strip() if path.suffix == ".txt" else html_text(text)
                continue
            for topic, body in _topics(text).items():
                yield f"{name}#{topic}", "topic", body.strip()
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            unreadable(log, name, error)
    if text := description(place):
        yield f"{place.distribution}/METADATA", "description", text


def description(place: Place) -> str:
    """The readme that a distribution carries in its metadata, '' for none."""
    if not place.distribution:
        return ""
    payload = importlib.metadata.distribution(place.distribution).metadata.get_payload()  # type: ignore[attr-defined]
    return payload.strip() if isinstance(payload, str) else ""


def _topics(text: str) -> dict[str, str]:
    for statement in parse(text).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            table = ast.literal_eval(statement.value)
            return {str(key): str(value) for key, value in table.items()}
    raise ValueError("it assigns no dict of topics")


class _Text(HTMLParser):
    """The text of a page's main part, a line a block, without navigation and scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.main: list[str] = []
        self.all: list[str] = []
        self._stack: list[tuple[str, bool, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        _, main, silent = self._stack[-1] if self._stack else ("", False, False)
        main = main or named.get("role") == "main" or tag == "main"
        silent = silent or tag in _SILENT or named.get("role") == "navigation" or named.get("class") == "headerlink"
        if tag in _BLOCKS:
            self._add("\n", main, silent)
        if tag not in _VOID:
            self._stack.append((tag, main, silent))

    def handle_endtag(self, tag: str) -> None:
        if any(open_tag == tag for open_tag, _, _ in self._stack):  # a tag that was never opened closes nothing
            while self._stack.pop()[0] != tag:
                pass
        if tag in _BLOCKS:
            self.handle_data("\n")

    def handle_data(self, data: str) -> None:
        _, main, silent = self._stack[-1] if self._stack else ("", False, False)
        self._add(data, main, silent)

    def _add(self, data: str, main: bool, silent: bool) -> None:
        if not silent:
            self.all.append(data)
            if main:
                self.main.append(data)


def html_text(page: str) -> str:
    """A page's text: the part marked as main, else all of it."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = [line.rstrip() for line in "".join(parser.main or parser.all).split("\n")]
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]  # one empty line at most
    return "\n".join(kept).strip()
