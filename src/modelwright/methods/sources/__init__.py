"""Sources: where rows come from. One file a kind. A source reads; it never filters (steps do) nor executes what it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts
from modelwright.core.events import Log
from modelwright.core.record import Record, read_records
from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Input, parse_ref

SOURCES = Kinds(__name__, f"{__name__}:Source")

OnBad = Literal["error", "drop"]
"""What to do with a row that cannot be read: stop with its file and line, or count it and go on."""


class Source(Spec):
    """Yields records in a fixed order."""

    bytes_per_s: ClassVar[float] = 60e6
    """How fast one core reads it, for estimates. Default: JSON lines, measured on a 2-core EPYC."""

    of_rows: ClassVar[bool] = False
    """It reads files of rows, or rows of an earlier stage, as they are: how many there are is known of these."""

    def digest(self) -> str | None:
        """sha256 of everything it would read (names and bytes), for the artifact's key; None where a reference pins it."""
        return None

    def size_bytes(self) -> float:
        """How much there is to read, for estimates and progress; from file sizes, reads nothing. 0 where references tell it."""
        return 0.0

    def found(self, path: Path) -> Iterable[Path]:
        """The files that it would read of a path that it refers to; UserError for none. Default: all."""
        return [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file())

    def bytes_under(self, path: Path) -> float:
        """Size of these, for estimates; 0 where reading will say what is wrong."""
        try:
            return float(sum(file.stat().st_size for file in self.found(path)))
        except UserError:
            return 0.0

    def facts(self, bytes_in: float) -> Facts:
        """What comes of `bytes_in` bytes, for estimates. Default: as many characters as bytes, rows unknown."""
        return Facts(type="records", chars=bytes_in, bytes=bytes_in)

    def read(self, log: Log) -> Iterator[Record]:
        """Every row. What cannot be read is a counted `unreadable` event (file, line, why) or an error, never silence."""
        raise NotImplementedError

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        """What a stage calls: every row, with the source's references resolved. Sources without any leave it as it is."""
        return self.read(log)

    def pieces(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Any] | None:
        """Parts that any process may read, in order and of some megabytes at most; together they hold what `rows` gives. None: it
        is read in one place."""
        return None

    def of_piece(self, piece: Any, log: Log) -> Iterator[Record]:
        """The rows of one of them."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """What it would read, sorted; empty where that is not files."""
        return []


def files_only(ref: str) -> str:
    """A reference to files; ValueError for the name of a stage, whose rows `jsonl` reads."""
    if parse_ref(ref).kind == "stage":
        raise ValueError(f"{ref!r} is a stage, and this source reads files; write ./{ref}, or `kind: jsonl` for a stage's rows")
    return ref


# --- what other stages read ---------------------------------------------------------------------------


def open_records(given: Input, log: Log, on_bad: OnBad = "error") -> Iterator[Record]:
    """The rows behind a reference: one part of a `records` artifact, or the user's own file or folder in any format.

    Used by every stage with `data`. UserError where there is none.
    """
    rows = 0
    for record in _opened(given, log, on_bad):
        rows += 1
        yield record
    if not rows:
        raise UserError(f"{given.ref} holds no rows", f"{_path(given)} was read to its end", "give a file with at least one row")


def _opened(given: Input, log: Log, on_bad: OnBad) -> Iterator[Record]:
    if given.type == "records":
        return read_records(_path(given))
    if given.type != "path":
        raise UserError(f"{given.ref} is a {given.type}, not rows", fix="refer to a stage that makes records, or to a file")
    from modelwright.methods.sources import _files  # reads JSON, CSV, Parquet and text; not needed for artifacts

    return _files.read(given.path, log, on_bad=on_bad)


def _path(given: Input) -> Path:
    return given.path / f"{given.part or 'all'}.jsonl" if given.type == "records" else given.path


def digest_files(paths: Iterable[Path], base: Path | None = None) -> str:
    """sha256 over names (relative to `base`, else the bare name) and bytes, in sorted order."""
    total = hashlib.sha256()
    named = sorted((path.relative_to(base).as_posix() if base else path.name, path) for path in paths)
    for name, path in named:
        with path.open("rb") as file:
            total.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def of_unreadable(event: Mapping[str, Any]) -> tuple[str, str]:
    """(the reason, the place and what is wrong there) of an `unreadable` event."""
    reason, _, detail = str(event["why"]).partition(": ")
    line = f" line {event['line']}" if event.get("line") else ""
    return reason, f"{event['file']}{line}: {detail}"
