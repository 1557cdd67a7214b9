"""Where an installed package's files are, found without importing it, and which of them count.

Sources: `sysconfig` for the standard library, the finders of `sys.meta_path` (PEP 451) for a package, asked one dotted part at
a time because `importlib.util.find_spec` imports parents; core metadata (PEP 566, PEP 639) for version and licence; PEP 263 for
the encoding of a file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.methods.sources import Source

STDLIB = "stdlib"

REASONS: dict[str, str] = {
    "test/*": "tests",
    "*/test/*": "tests",
    "tests/*": "tests",
    "*/tests/*": "tests",
    "*/idle_test/*": "tests",
    "test_*.py": "tests",
    "*/test_*.py": "tests",
    "idlelib/*": "an application, not a library",
    "turtledemo/*": "demonstrations",
    "lib2to3/*": "grammar and fixers of another language",
    "pydoc_data/*": "documentation kept as code, read by `docs`",
    "_sysconfigdata_*": "generated on the machine that built Python",
    "encodings/cp*.py": "generated tables",
    "encodings/iso*.py": "generated tables",
    "encodings/mac_*.py": "generated tables",
    "encodings/koi8_*.py": "generated tables",
    "encodings/aliases.py": "generated tables",
    "html/entities.py": "generated tables",
    "msilib/schema.py": "generated tables",
    "msilib/sequence.py": "generated tables",
    "__phello__/*": "frozen samples",
    "*/_vendor/*": "copies of other packages",
}
"""What is left out unless the recipe says otherwise, and why."""

NEVER = frozenset({"__pycache__", "site-packages", "dist-packages", "lib-dynload"})
"""Folders beside the standard library that are not it."""


class Place(NamedTuple):
    """A package on this machine."""

    base: Path
    """Paths of records are relative to this folder."""
    roots: tuple[Path, ...]
    """Folders or single files that make up the package."""
    version: str
    licence: str
    distribution: str
    """Name of the installed distribution; '' for the standard library."""


class PythonTree(Source):
    """The Python files of one installed package; base of the sources that read them."""

    package: str = Field(STDLIB, min_length=1, examples=["json"])
    """`stdlib`, or the import name (`json`, `email.mime`) or distribution name of an installed package. Never imported."""
    include: tuple[str, ...] = Field(("*",), examples=[("json/*",)])
    """Globs over the path relative to the package's parent folder (`*` crosses folders); a file must match one."""
    exclude: tuple[str, ...] = Field(tuple(REASONS), examples=[("test/*", "idlelib/*", "a*")])
    """Globs of what is left out, counted by reason. Default: tests, applications, generated tables, vendored copies."""

    def files(self) -> list[Path]:
        return [Path(path) for path, _ in self.kept()[0]]

    def size_bytes(self) -> float:
        return float(sum(file.stat().st_size for file in self.files() if file.is_file()))

    def digest(self) -> str | None:
        place = locate(self.package)
        total = hashlib.sha256(f"{self.package} {place.version} {place.licence}\n".encode())
        for path, relative in self.kept()[0]:
            try:
                data = Path(path).read_bytes()
            except OSError:  # reading says so
                data = b""
            total.update(f"{relative} {len(data)}\n".encode())
            total.update(data)
        return total.hexdigest()

    def kept(self) -> tuple[list[tuple[str, str]], dict[str, int]]:
        """(file, relative path) of what is read, sorted by relative path, and how many are left out by reason."""
        place = locate(self.package)
        wanted = _matcher(self.include)
        refused = [(_matcher((glob,)), REASONS.get(glob, f"excluded by {glob!r}")) for glob in self.exclude]
        any_refused = _matcher(self.exclude) if self.exclude else None
        kept: list[tuple[str, str]] = []
        left_out: dict[str, int] = {}
        for path, relative in _walk(place):
            reason = "" if wanted.match(relative) else "not in `include`"
            if not reason and any_refused is not None and any_refused.match(relative):
                reason = next(why for glob, why in refused if glob.match(relative))
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                kept.append((path, relative))
        return kept, left_out

    def sources(self, log: Log) -> Iterator[tuple[str, str]]:
        """(relative path, text) of every file. Events: `unreadable` where it is not text, `excluded` for what is left out."""
        kept, left_out = self.kept()
        if not kept:
            raise UserError(
                f"no file of the package {self.package!r} is left to read",
                ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items())) or "it has no .py file",
                "widen `include`, shorten `exclude`, or name a package that is written in Python",
            )
        closed: list[OSError] = []
        _walk(locate(self.package), closed)
        for fault in closed:
            unreadable(log, os.path.relpath(fault.filename, locate(self.package).base), fault)
        for reason, count in sorted(left_out.items()):
            log.event("excluded", reason=reason, files=count, package=self.package)
        empty = 0
        for path, relative in log.track(kept, "files", len(kept), self.package):
            try:
                text = importlib.util.decode_source(Path(path).read_bytes())
            except (OSError, SyntaxError, UnicodeDecodeError) as error:
                unreadable(log, relative, error)
                continue
            if text.strip():
                yield relative, text
            else:
                empty += 1
        if empty:
            log.event("excluded", reason="empty", files=empty, package=self.package)


def unreadable(log: Log, relative: str, error: Exception) -> None:
    """Count a file that cannot be used; the run goes on."""
    log.event("unreadable", file=relative, line=getattr(error, "lineno", None), why=f"{type(error).__name__}: {error}")


def module_name(relative: str) -> str:
    """`json/decoder.py` -> `json.decoder`; `json/__init__.py` -> `json`."""
    parts = relative.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _matcher(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")


def _walk(place: Place, closed: list[OSError] | None = None) -> list[tuple[str, str]]:
    """(file, relative path); plain strings, because `plan` goes through thousands of them for a source. `closed`: is given what
    keeps folders from being listed."""
    found: list[tuple[str, str]] = []
    skip = len(str(place.base)) + 1
    for root in place.roots:
        if root.is_file():
            found.append((str(root), root.relative_to(place.base).as_posix()))
            continue
        for folder, names, files in os.walk(root, onerror=None if closed is None else closed.append):
            names[:] = [name for name in names if name not in NEVER and not name.startswith("config-")]
            prefix = f"{folder}{os.sep}"
            inside = prefix[skip:].replace(os.sep, "/")
            found += [(prefix + name, inside + name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda pair: pair[1])


# --- where a package is -------------------------------------------------------------------------------


def locate(package: str) -> Place:
    """The package's files on this machine; nothing of it is imported."""
    return _locate(package, tuple(sys.path))


@lru_cache(maxsize=16)
def _locate(package: str, search_path: tuple[str, ...]) -> Place:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    if package == STDLIB:
        if not stdlib.is_dir():
            raise UserError(
                "the standard library of this Python is not a folder of files",
                f"sysconfig says {stdlib}",
                "use a Python whose library is not inside a zip archive",
            )
        return Place(stdlib, (stdlib,), platform.python_version(), "PSF-2.0", "")
    roots = _roots(package)
    distribution = None
    if not roots:
        distribution, roots = _by_distribution(package)
    if not roots:
        raise UserError(
            f"the package {package!r} is not installed here as Python files",
            "no finder on this Python's path knows it, or it is compiled and has no source",
            f"install it (pip install {package}), or use `package: stdlib`",
        )
    base = roots[0].parent
    for _ in range(package.count(".") if distribution is None else 0):
        base = base.parent
    if roots[0].is_relative_to(stdlib) and not NEVER & set(roots[0].relative_to(stdlib).parts):
        return Place(base, roots, platform.python_version(), "PSF-2.0", "")
    distribution = distribution or _distribution(package.partition(".")[0])
    if distribution is None:
        return Place(base, roots, "unknown", "unknown", "")
    return Place(base, roots, distribution.version, _licence(distribution), distribution.metadata["Name"])


def _roots(package: str) -> tuple[Path, ...]:
    """Folders or the file of an import name, by asking the finders; () where they know none."""
    path: list[str] | None = None
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        spec = None
        for finder in sys.meta_path:
            spec = finder.find_spec(".".join(parts[:depth]), path)
            if spec is not None:
                break
        if spec is None:
            return ()
        path = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
        if depth < len(parts) and path is None:
            return ()
    if path is not None:
        return tuple(folder for folder in map(Path, path) if folder.is_dir())
    found = (spec.origin or "") if spec is not None else ""
    origin = Path(found)
    if found == "frozen":  # part of the interpreter, its source lies in the library
        origin = Path(sysconfig.get_paths()["stdlib"], *parts).with_suffix(".py")
    return (origin,) if origin.suffix == ".py" and origin.is_file() else ()


def _by_distribution(name: str) -> tuple[importlib.metadata.Distribution | None, tuple[Path, ...]]:
    """A distribution whose name is not what one imports (`PyYAML`)."""
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None, ()
    tops = sorted({file.parts[0] for file in distribution.files or () if file.suffix == ".py" and ".." not in file.parts})
    return distribution, tuple(p for top in tops if (p := Path(str(distribution.locate_file(top)))).exists())


def _distribution(top: str) -> importlib.metadata.Distribution | None:
    names = importlib.metadata.packages_distributions().get(top)
    return importlib.metadata.distribution(sorted(names)[0]) if names else None


def _licence(distribution: importlib.metadata.Distribution) -> str:
    metadata = distribution.metadata
    for field in ("License-Expression", "License"):
        value = metadata[field] if field in metadata else ""
        if value and value != "UNKNOWN" and "\n" not in value and len(value) <= 80:  # some paste the whole licence here
            return value
    classifiers = [c.rsplit(" :: ", 1)[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return "; ".join(classifiers) or "unknown"
