"""Reading the user's own files: which they are, objects with their line, and what is wrong with the line that cannot be read.

Sources: JSON Lines, https://jsonlines.org; RFC 4180 (CSV); RFC 8259 section 8.1 (JSON is UTF-8).
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator, Field

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Accepts, Input
from modelwright.core.units import bytes_text
from modelwright.methods.formats import Format, LeftOut, looking
from modelwright.methods.sources import OnBad, Source, files_only

TEXT = (".txt", ".md", ".rst")
ROWS = (".jsonl", ".ndjson", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
EVERY = "**/*"
"""The glob of all files at any depth."""
PIECE_BYTES = 8 << 20
"""A text file is one document up to this size, and beyond it several: a library in one file would fill the memory."""
LOOK_ROWS = 50
"""Rows looked at to tell a file's format: enough to meet optional keys, few enough to keep in memory."""
CSV_FIELD_CHARS = 10_000_000
"""Longest CSV field; the standard library's limit of 131,072 is shorter than a book."""


class Bad(NamedTuple):
    """A row that cannot be read."""

    reason: str
    """Short and countable."""
    detail: str


class Row(NamedTuple):
    """An object, or what is wrong with it, and the line (row for Parquet) where it starts, from 1."""

    line: int
    value: dict[str, Any] | Bad


def find(path: Path, match: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files under `path` (or itself) that end in one of `suffixes` and match the glob, sorted; UserError for none."""
    if path.is_file():
        if match != EVERY:
            raise UserError(
                f"`match: {match}` would be ignored", f"{path} is a file, not a folder", "leave `match` out, or name the folder"
            )
        return [path]
    files = sorted(p for p in path.glob(match) if p.is_file() and p.name.endswith(suffixes) and not _hidden(p, path))
    if not files:
        raise UserError(
            f"{path} holds no file to read", f"looked for {match} ending in {', '.join(suffixes)}", "correct the path or `match`"
        )
    return files


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

    def read(self, log: Log) -> Iterator[Record]:
        return self.rows({}, log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        path = self.place(inputs)
        for file in self.found(path):
            yield from self.of_file(file, name_in(path, file), log)

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
) -> Iterator[Record]:
    """Every record of a file or folder. `layout`: the row format; unset, each file's is told from its rows."""
    for file in find(path, match, only or TEXT + ROWS):
        name = name_in(path, file)
        if file.name.endswith(TEXT):
            yield from read_text(file, name, log, on_bad)
        else:
            yield from read_rows(file, name, log, layout, on_bad)


def read_text(file: Path, name: str, log: Log, on_bad: OnBad) -> Iterator[Record]:
    """A text file as one record, or as several that end with a paragraph where it is longer than `PIECE_BYTES`."""
    size = file.stat().st_size
    if size > PIECE_BYTES:
        log.note(f"{name}: {bytes_text(size)} of text are read as several documents of about {bytes_text(PIECE_BYTES)}")
    pieces = _text_pieces(file) if size > PIECE_BYTES else iter([_bytes(file)])
    empty = True
    for number, piece in enumerate(pieces, 1):
        part = f"{name} piece {number}" if size > PIECE_BYTES else name
        text = decode(piece)
        empty = empty and not isinstance(text, Bad) and not text.strip()
        if isinstance(text, Bad):
            refuse(part, text, log, on_bad)
        elif text.strip():
            yield Record(part, text=text, meta={"path": name})
    if empty:
        refuse(name, Bad("empty file", "it has no character but white space"), log, on_bad)


def _text_pieces(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                parts, size = [piece], 0
                for line in stream:
                    parts.append(line)
                    size += len(line)
                    if not line.strip() or size > PIECE_BYTES // 8:  # a file may have no empty line
                        break
                yield b"".join(parts)
    except OSError as error:
        raise _unreadable(file, error) from None


def read_rows(file: Path, name: str, log: Log, layout: Format | None, on_bad: OnBad) -> Iterator[Record]:
    """A file of objects as records named `file:line`."""
    rows = objects(file)
    layout = layout or looking()
    head = list(itertools.islice(rows, LOOK_ROWS))
    good = [row.value for row in head if not isinstance(row.value, Bad)]
    if good:
        layout, reason = layout.settle(good, name)
        if reason:
            log.note(f"{name}: read as `{layout.model_dump()['kind']}`, because {reason}")
    for row in itertools.chain(head, rows):
        if isinstance(row.value, Bad):
            refuse(name, row.value, log, on_bad, row.line)
            continue
        try:
            yield from layout.records(row.value, f"{name}:{row.line}")
        except LeftOut as choice:
            refuse(name, Bad("left out by the format", str(choice)), log, "drop", row.line)
        except ValueError as error:
            refuse(name, Bad("not the format", str(error)), log, on_bad, row.line)


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


# --- bytes to objects ---------------------------------------------------------------------------------


def decode(data: bytes) -> str | Bad:
    """UTF-8, with or without its mark; anything else is named."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Bad("wrong encoding", "this is UTF-16; save it as UTF-8")
    if b"\0" in data:
        return Bad("NUL byte", f"byte {data.index(0)} is zero: binary data, a hole left by a crash, or UTF-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Bad("wrong encoding", f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert the file to UTF-8")


def objects(file: Path) -> Iterator[Row]:
    """The objects of a file, by its suffix."""
    name = file.name
    if name.endswith(".parquet"):
        return _parquet(file)
    if name.endswith((".csv", ".tsv")):
        return _csv(file)
    if name.endswith(".json"):
        return _json(file)
    if name.endswith(ROWS):
        return _lines(file)
    raise UserError(f"{name}: no reader for this kind of file", fix=f"known: {', '.join(ROWS + TEXT)}")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file.name} cannot be read", f"{type(error).__name__}: {error}", "check the file and its permissions")


def _raw_lines(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(file, error) from None


def _lines(file: Path) -> Iterator[Row]:
    for number, raw in enumerate(_raw_lines(file), 1):
        line = decode(raw)
        if isinstance(line, Bad):
            yield Row(number, line)
        elif line.strip():
            yield Row(number, _object(line, whole=raw.endswith(b"\n")))


def _object(line: str, whole: bool) -> dict[str, Any] | Bad:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        if not whole:
            return Bad("torn last line", f"it ends without a line feed inside a JSON value ({error.msg}, column {error.colno})")
        return Bad("bad JSON", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return Bad("bad JSON", "nested too deeply")
    if not isinstance(value, dict):
        return Bad("not an object", f"the line holds {_noun(value)}")
    return _whole(value) if "\\u" in line else value


def _whole(value: dict[str, Any]) -> dict[str, Any] | Bad:
    """The object, unless it holds half of a surrogate pair, which no file can store."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return Bad("broken character", f"half of a surrogate pair, {error.object[error.start]!a}")
    return value


def _noun(value: Any) -> str:
    return {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}.get(type(value), "null")


def _json(file: Path) -> Iterator[Row]:
    """A list of objects, an object that holds one such list, or JSON Lines under the wrong suffix."""
    data = _bytes(file)
    text = decode(data)
    if isinstance(text, Bad):
        yield Row(1, text)
        return
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _lines(file)
            return
        torn = "; the file seems to be cut off" if error.pos >= len(text.rstrip()) - 1 else ""
        yield Row(error.lineno, Bad("bad JSON", f"{error.msg} at column {error.colno}{torn}"))
        return
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        tree = lists[0] if len(lists) == 1 and not any(isinstance(v, (str, bool)) for v in tree.values()) else [tree]
    for number, value in enumerate(tree if isinstance(tree, list) else [tree], 1):
        yield Row(number, _whole(value) if isinstance(value, dict) else Bad("not an object", f"item {number} is {_noun(value)}"))


def _csv(file: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(CSV_FIELD_CHARS)
    try:
        yield from _csv_rows(file)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(file: Path) -> Iterator[Row]:
    faults: dict[int, Bad] = {}

    def lines() -> Iterator[str]:
        for number, raw in enumerate(_raw_lines(file), 1):
            line = decode(raw)
            if isinstance(line, Bad):
                faults[number] = line
                yield raw.replace(b"\0", b"").decode("utf-8", "replace")
            else:
                yield line

    source = lines()
    head = next(source, "")
    marks = "\t" if file.name.endswith(".tsv") else max(",;\t", key=head.count)
    reader = csv.reader(itertools.chain([head], source), delimiter=marks, strict=True)
    last = 0
    keys: list[str] | None = None
    while True:
        start = last + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(start, Bad("bad CSV", f"{error}; the row starts here"))
            if reader.line_num == last:
                return
            last = reader.line_num
            continue
        last = reader.line_num
        spoilt = next((faults[n] for n in range(start, last + 1) if n in faults), None)
        if keys is None and not spoilt:
            keys = cells
        elif not cells:
            continue
        else:
            yield Row(start, spoilt or _cells(keys or [], cells))


def _cells(keys: list[str], cells: list[str]) -> dict[str, Any] | Bad:
    if len(keys) != len(cells):
        return Bad("bad CSV", f"{len(cells)} cells, but the header has {len(keys)}")
    return dict(zip(keys, cells, strict=True))


def _parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "hub", f"{file.name} (Parquet)") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        batches: Iterable[Any] = table.iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from None
