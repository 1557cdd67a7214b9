"""Reading the user's own files: which they are, their rows as records, and what is refused.

Source: none to cite, files as they are; `_open` says how they are unpacked, `_rows` how objects are read.
"""

from __future__ import annotations

import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, NamedTuple

from pydantic import AfterValidator, Field

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record, parse_records
from modelwright.core.spec import kind_of
from modelwright.core.stage import Accepts, Input
from modelwright.core.units import bytes_text
from modelwright.methods.formats import Format, LeftOut, looking, not_kept
from modelwright.methods.sources import OnBad, Source, files_only
from modelwright.methods.sources._open import (
    LINE_BYTES,
    Bad,
    File,
    cannot_read,
    members,
    obstacles,
    opened,
    plain_name,
    skip_line,
    steady,
    with_packed,
)
from modelwright.methods.sources._rows import ALL, CSV, LINES, ROWS, How, Row, decode, delimiter_in, objects, of_lines, raw_lines

__all__ = [
    "ROWS",
    "Bad",
    "Files",
    "How",
    "Row",
    "decode",
    "find",
    "name_in",
    "objects",
    "read",
    "read_rows",
    "read_text",
    "refuse",
]

TEXT = (".txt", ".md", ".rst")
TEXTS = with_packed(TEXT)
ZIP = (".zip",)
EVERY = "**/*"
"""The glob of all files at any depth."""
PIECE_BYTES = 8 << 20
"""A text file is one document up to this size, and beyond it several: a library in one file would fill the memory."""
LINES_BYTES, FILES = 2 << 20, 256
"""Of a part that is read by itself: a few hundredths of a second of work, and little memory."""
ENDS = 5
"""Endings of files that are not read which are told one by one."""
LOOK_ROWS = 50
"""Rows looked at to tell a file's format: enough to meet optional keys, few enough to keep in memory."""
ODD_ROWS = 0.1
"""Share of these that may be of no format, or another, where rows that cannot be read are dropped and counted."""


def find(path: Path, match: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files under `path` (or itself) that end in one of `suffixes` and match the glob, sorted; UserError for none."""
    if path.is_file():
        if match != EVERY:
            raise UserError(
                f"`match: {match}` would be ignored", f"{path} is a file, not a folder", "leave `match` out, or name the folder"
            )
        return [path]
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no file", "it is a pipe or a device, which has no end", "give a file or a folder")
    files = sorted(p for p in path.glob(match) if p.is_file() and p.name.endswith(suffixes) and not _hidden(p, path))
    if not files:
        raise UserError(
            f"{path} holds no file to read", f"looked for {match} ending in {', '.join(suffixes)}", "correct the path or `match`"
        )
    return files


def tell_passed(path: Path, found: Iterable[Path], suffixes: tuple[str, ...], log: Log) -> None:
    """Count the files of a folder that are not among those `found`, and why."""
    kept, passed, ends = set(map(str, found)), Counter[str](), Counter[str]()
    for folder, folders, names in os.walk(path):
        passed["links to folders"] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        hidden = _hidden(Path(folder), path)
        for name in names:
            if (file := os.path.join(folder, name)) in kept:
                continue
            if hidden or name.startswith("."):
                passed["hidden files"] += 1
            elif not name.endswith(suffixes):
                ends[f"files ending in {os.path.splitext(name)[1] or 'nothing'}"] += 1
            elif os.path.isfile(file):
                passed["files not in `match`"] += 1
    shown = ends.most_common(ENDS)
    passed.update(dict(shown))
    passed["files with other endings"] += ends.total() - sum(count for _, count in shown)
    for reason, count in sorted((+passed).items()):
        log.event("excluded", reason=reason, files=count)


def name_in(path: Path, file: Path) -> str:
    """How a file under `path` is called in ids and messages."""
    return file.relative_to(path).as_posix() if path.is_dir() else file.name


class Files(Source):
    """Files of one sort, one after the other. A kind says how it reads one (`of_file`)."""

    path: Annotated[str, Accepts(("records",)), AfterValidator(files_only)] = Field(examples=["./documents/"])
    """A file or folder (with a slash; it starts at the recipe's folder), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/a*"])
    """Glob of the files in a folder; the default takes every file of the kind at any depth."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A file that cannot be read: stop and name it, or leave it out and count it. Default: stop, to lose nothing unseen."""

    suffixes: ClassVar[tuple[str, ...]]
    small: ClassVar[bool] = False
    """True: no file holds more than one row or a few, so that each may be read anywhere."""

    def read(self, log: Log) -> Iterator[Record]:
        return self.rows({}, log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        return self.of_piece(self.named(inputs, log), log)

    def named(self, inputs: Mapping[str, Input], log: Log) -> Iterator[tuple[Path, str]]:
        """The files to read and what each is called."""
        path = self.place(inputs)
        found = self.found(path)
        tell_passed(path, found, self.suffixes, log)
        for name, bad in obstacles(path, self.suffixes):
            refuse(name, bad, log, self.on_bad)
        for file in found:
            yield file, name_in(path, file)

    def pieces(self, inputs: Mapping[str, Input], log: Log) -> Iterator[list[tuple[Path, str]]] | None:
        return self._some(inputs, log) if self.small else None

    def _some(self, inputs: Mapping[str, Input], log: Log) -> Iterator[list[tuple[Path, str]]]:
        """Files that take a third of a second together, or one that takes longer."""
        some: list[tuple[Path, str]] = []
        size = 0
        for file, name in self.named(inputs, log):
            some.append((file, name))
            size += file.stat().st_size if file.exists() else 0
            if size >= min(self.bytes_per_s / 3, LINES_BYTES) or len(some) == FILES:
                yield some
                some, size = [], 0
        if some:
            yield some

    def of_piece(self, piece: Iterable[tuple[Path, str]], log: Log) -> Iterator[Record]:
        return (record for file, name in piece for record in steady(file, self.of_file(file, name, log)))

    def place(self, inputs: Mapping[str, Input]) -> Path:
        return inputs[self.path].path if self.path in inputs else Path(self.path)

    def found(self, path: Path) -> list[Path]:
        return find(path, self.match, self.suffixes)

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        """The rows of one file."""
        raise NotImplementedError


def _hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def read(
    path: Path,
    log: Log,
    *,
    match: str = EVERY,
    layout: Format | None = None,
    on_bad: OnBad = "error",
    only: tuple[str, ...] = (),
    how: How = ALL,
) -> Iterator[Record]:
    """Every record of a file or folder. `layout`: the row format; unset, each file's is told from its rows."""
    suffixes = only or TEXTS + ROWS
    found = find(path, match, suffixes + ZIP)
    tell_passed(path, found, suffixes + ZIP, log)
    for name, bad in obstacles(path, suffixes + ZIP):
        refuse(name, bad, log, on_bad)
    for file in found:
        for part, name in parts_of(file, name_in(path, file), suffixes, log, on_bad):
            text = plain_name(part.name).endswith(TEXT)
            rows = read_text(part, name, log, on_bad) if text else read_rows(part, name, log, layout, on_bad, how)
            yield from steady(file, rows)


def parts_of(file: Path, name: str, suffixes: tuple[str, ...], log: Log, on_bad: OnBad) -> Iterator[tuple[File, str]]:
    """The file itself, or the members of a zip archive, with their names."""
    if not file.name.endswith(ZIP):
        yield file, name
        return
    try:
        inside = members(file, suffixes)
    except OSError as error:
        refuse(name, cannot_read(error), log, on_bad)
        return
    if not inside:
        log.event("excluded", reason="zip archive without a file of this kind", files=1, path=name)
    for member in inside:
        yield member, f"{name}/{member.at}"


def read_text(file: File, name: str, log: Log, on_bad: OnBad) -> Iterator[Record]:
    """A text file as one record, or as several that end with a paragraph where it is longer than `PIECE_BYTES`."""
    seen = False
    for part, piece in _numbered(_text_pieces(file), name, log):
        text = piece if isinstance(piece, Bad) else decode(piece)
        if isinstance(text, Bad):
            seen = True
            refuse(part, text, log, on_bad)
        elif text.strip():
            seen = True
            yield Record(part, text=text, meta={"path": name})
    if not seen:
        refuse(name, Bad("empty file", "it has no character but white space"), log, on_bad)


def _numbered(pieces: Iterator[bytes | Bad], name: str, log: Log) -> Iterator[tuple[str, bytes | Bad]]:
    """Each with its name: the file's where there is but one."""
    first = list(itertools.islice(pieces, 2))
    if len(first) < 2:
        yield from ((name, piece) for piece in first)
        return
    log.note(f"{name}: a text longer than {bytes_text(PIECE_BYTES)} is read as several documents of about as much")
    for number, piece in enumerate(itertools.chain(first, pieces), 1):
        yield f"{name} piece {number}", piece


def _text_pieces(file: File) -> Iterator[bytes | Bad]:
    try:
        with opened(file) as stream:
            piece = stream.read(PIECE_BYTES)
            while piece:
                piece, rest = _to_paragraph(piece, stream)
                yield piece
                piece = rest + stream.read(PIECE_BYTES - len(rest))
    except OSError as error:
        yield cannot_read(error)


def _to_paragraph(piece: bytes, stream: BinaryIO) -> tuple[bytes, bytes]:
    """(as far as the next empty line, the rest). A file may have none, nor a line feed: then as far as a word."""
    more_bytes = PIECE_BYTES // 8
    while len(piece) < PIECE_BYTES + more_bytes and (line := stream.readline(more_bytes)):
        piece += line
        if not line.strip():
            return piece, b""
    if piece.endswith(b"\n") or len(piece) < PIECE_BYTES + more_bytes:
        return piece, b""
    cut = max(piece.rfind(sign, len(piece) // 2) for sign in (b" ", b"\n")) + 1
    if not cut:  # before the last letter, which may be there in part
        cut = next((at for at in range(len(piece) - 1, len(piece) - 5, -1) if piece[at] & 0xC0 != 0x80), len(piece))
    return piece[:cut], piece[cut:]


def read_rows(file: File, name: str, log: Log, layout: Format | None, on_bad: OnBad, how: How = ALL) -> Iterator[Record]:
    """A file of objects as records named `file:line`."""
    if file.name.endswith(CSV) and not how.delimiter:
        how = how._replace(delimiter=delimiter_in(file))
        log.note(f"{name}: read as CSV with {how.delimiter!r} between cells, because its name or its first line says so")
    rows = objects(file, how)
    head = list(itertools.islice(rows, LOOK_ROWS))
    if not head:
        refuse(name, NO_ROW, log, on_bad)
    yield from _records(itertools.chain(head, rows), name, _settled(head, name, log, layout, on_bad, how.columns), log, on_bad)


def _settled(head: list[Row], name: str, log: Log, layout: Format | None, on_bad: OnBad, columns: tuple[str, ...]) -> Format:
    """What the first rows are laid out as."""
    layout = layout or looking()
    good = [row.value for row in head if not isinstance(row.value, Bad)]
    if good and (missing := sorted({*columns} - {key for row in good for key in row})):
        log.note(f"{name}: none of its first {len(good)} rows has {', '.join(map(repr, missing))}, which `columns` names")
    if good:
        layout, reason = layout.settle(good, name, ODD_ROWS if on_bad == "drop" else 0)
        if reason:
            log.note(f"{name}: read as `{kind_of(layout)}`, because {reason}")
    return layout


def _records(rows: Iterable[Row], name: str, layout: Format, log: Log, on_bad: OnBad) -> Iterator[Record]:
    left: Counter[str] = Counter()
    for row in rows:
        if isinstance(row.value, Bad):
            refuse(name, row.value, log, on_bad, row.line)
            continue
        try:
            made = layout.records(row.value, f"{name}:{row.line}")
        except LeftOut as choice:
            left[f"rows: {choice}"] += 1
            continue
        except ValueError as error:
            refuse(name, Bad("not the format", str(error)), log, on_bad, row.line)
            continue
        if made:
            left.update(f"`{key}` of turns; the rows stay" for key in not_kept(row.value, made[0]))
        yield from made
    for reason, count in left.items():
        log.event("excluded", reason=reason, files=count, path=name)


class Lines(NamedTuple):
    """Some lines of a file, as they are."""

    name: str
    first: int
    """Number of the first one."""
    data: bytes
    layout: Format | None
    """None: they are records as we write them."""
    columns: tuple[str, ...] = ()
    fault: Bad | None = None
    """What is wrong behind them."""

    def records(self, log: Log, on_bad: OnBad) -> Iterator[Record]:
        lines = io.BytesIO(self.data)
        if self.layout is None:
            if self.fault:
                refuse(self.name, self.fault, log, "error")
            return parse_records(lines, self.name, self.first)
        rows = How(self.columns).cut(of_lines(itertools.chain(lines, [self.fault] if self.fault else []), self.first))
        return _records(rows, self.name, self.layout, log, on_bad)


def line_pieces(path: Path, log: Log, match: str, layout: Format | None, on_bad: OnBad, how: How) -> Iterator[Lines] | None:
    """The lines of all files, some at a time; None where one holds no lines."""
    files = find(path, match, ROWS + ZIP)
    if not all(file.name.endswith(LINES) for file in files):
        return None

    def pieces() -> Iterator[Lines]:
        tell_passed(path, files, ROWS + ZIP, log)
        for name, bad in obstacles(path, ROWS + ZIP):
            refuse(name, bad, log, on_bad)
        for file in files:
            name = name_in(path, file)
            head = list(itertools.islice(how.cut(of_lines(raw_lines(file))), LOOK_ROWS))
            yield from blocks(file, name, _settled(head, name, log, layout, on_bad, how.columns), how.columns)
            if not head:
                refuse(name, NO_ROW, log, on_bad)

    return pieces()


def blocks(file: Path, name: str, layout: Format | None, columns: tuple[str, ...] = ()) -> Iterator[Lines]:
    """Whole lines, about `LINES_BYTES` at a time."""
    return steady(file, _blocks(file, name, layout, columns))


def _blocks(file: Path, name: str, layout: Format | None, columns: tuple[str, ...]) -> Iterator[Lines]:
    first = 1
    try:
        with opened(file) as stream:
            while data := stream.read(LINES_BYTES):
                if not data.endswith(b"\n"):
                    data += stream.readline(LINE_BYTES + 1)
                    if len(data) > LINES_BYTES + LINE_BYTES and not data.endswith(b"\n"):
                        skip_line(stream)
                        data += b"\n"  # too long, and told as such; the next line has the next number
                yield Lines(name, first, data, layout, columns)
                first += data.count(b"\n")
    except OSError as error:
        yield Lines(name, first, b"", layout, columns, cannot_read(error))


NO_ROW = Bad("empty file", "it has no row")


def refuse(name: str, bad: Bad, log: Log, on_bad: OnBad, line: int | None = None) -> None:
    """Stop at what cannot be read, or count it."""
    if on_bad == "drop":
        log.event("unreadable", file=name, line=line, why=f"{bad.reason}: {bad.detail}")
        return
    raise UserError(
        bad.reason,
        bad.detail,
        "mend it, or set `on_bad: drop` to leave such rows out and count them",
        f"{name} line {line}" if line else name,
    )
