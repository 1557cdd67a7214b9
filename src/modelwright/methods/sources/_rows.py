"""From bytes to objects: JSON Lines, JSON, CSV and Parquet, each row with its line, or with what is wrong with it.

Sources: JSON Lines, https://jsonlines.org; RFC 4180 (CSV); RFC 8259 section 8.1 (JSON is UTF-8);
https://parquet.apache.org/docs/file-format/ (row groups).
"""

from __future__ import annotations

import csv
import datetime
import decimal
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.record import quick_json
from modelwright.core.units import bytes_text
from modelwright.methods.sources._open import (
    LINE_BYTES,
    Bad,
    File,
    cannot_read,
    lines_of,
    opened,
    plain_name,
    too_long,
    with_packed,
)

LINES = with_packed((".jsonl", ".ndjson"))
CSV = with_packed((".csv", ".tsv"))
JSON = with_packed((".json",))
ROWS = (*LINES, *JSON, *CSV, ".parquet")
CSV_FIELD_CHARS = 10_000_000
"""Longest CSV field; the standard library's limit of 131,072 is shorter than a book."""
JSON_BYTES = 256 << 20
"""Of a `.json` file, which is one value and must be in memory at once, at several times its size."""
_ODD = re.compile("binary|date|time|duration|decimal|map")
"""In the names of column types whose values JSON has no type for."""
BATCH_ROWS, BATCH_BYTES = 1024, 32 << 20
"""Of Parquet that is in memory as objects at once."""


class Row(NamedTuple):
    """An object, or what is wrong with it, and the line (row for Parquet) where it starts, from 1."""

    line: int
    value: dict[str, Any] | Bad


class How(NamedTuple):
    """How objects are read."""

    columns: tuple[str, ...] = ()
    """Those to take; none: all."""
    delimiter: str = ""
    """Between cells of CSV; '' is told from the first line."""
    quote: str = '"'
    header: tuple[str, ...] = ()
    """Names of the columns of a CSV file that does not begin with them."""

    def cut(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if self.columns and not isinstance(row.value, Bad):
                row = Row(row.line, {name: row.value[name] for name in self.columns if name in row.value})
            yield row


ALL = How()


def objects(file: File, how: How = ALL) -> Iterator[Row]:
    """The objects of a file, by its suffix."""
    name = plain_name(file.name)
    if name.endswith(".parquet"):
        return _parquet(file, how)
    if name.endswith((".csv", ".tsv")):
        return how.cut(_csv(file, how))
    if name.endswith(".json"):
        return how.cut(_json(file))
    if name.endswith((".jsonl", ".ndjson")):
        return how.cut(of_lines(raw_lines(file)))
    raise UserError(f"{file.name}: no reader for this kind of file", fix=f"known: {', '.join((*ROWS, '.txt', '.md', '.rst'))}")


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


# --- lines --------------------------------------------------------------------------------------------


def raw_lines(file: File) -> Iterator[bytes | Bad]:
    """Line by line; where the file cannot be read on, that comes last."""
    try:
        with opened(file) as stream:
            yield from lines_of(stream)
    except OSError as error:
        yield cannot_read(error)


def of_lines(lines: Iterable[bytes | Bad], first: int = 1) -> Iterator[Row]:
    for number, raw in enumerate(lines, first):
        if isinstance(raw, bytes) and not too_long(raw) and isinstance(value := quick_json(raw), dict):
            yield Row(number, value)
            continue
        line = _text(raw)
        if isinstance(line, Bad):
            yield Row(number, line)
        elif line.strip():
            yield Row(number, _object(line, whole=isinstance(raw, bytes) and raw.endswith(b"\n")))


def _text(raw: bytes | Bad) -> str | Bad:
    if isinstance(raw, Bad):
        return raw
    if too_long(raw):
        return Bad("line too long", f"longer than {bytes_text(LINE_BYTES)}, so that it is not read into memory")
    return decode(raw)


def _object(line: str, whole: bool) -> dict[str, Any] | Bad:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        if not whole:
            return Bad("torn last line", f"it ends without a line feed inside a JSON value ({error.msg}, column {error.colno})")
        return Bad("bad JSON", f"{error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        return Bad("bad JSON", "nested too deeply" if isinstance(error, RecursionError) else str(error))
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


def _json(file: File) -> Iterator[Row]:
    """A list of objects, an object that holds one such list, or JSON Lines under the wrong suffix."""
    try:
        with opened(file) as stream:
            data = stream.read(JSON_BYTES + 1)
    except OSError as error:
        yield Row(1, cannot_read(error))
        return
    if len(data) > JSON_BYTES:
        if data.lstrip().startswith(b"{"):
            yield from of_lines(raw_lines(file))
        else:
            detail = f"more than {bytes_text(JSON_BYTES)}, and all of it must be in memory; write it as JSON lines (.jsonl)"
            yield Row(1, Bad("too large", detail))
        return
    text = decode(data)
    if isinstance(text, Bad):
        yield Row(1, text)
        return
    if not text.strip():
        return
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from of_lines(raw_lines(file))
            return
        torn = "; the file seems to be cut off" if error.pos >= len(text.rstrip()) - 1 else ""
        yield Row(error.lineno, Bad("bad JSON", f"{error.msg} at column {error.colno}{torn}"))
        return
    except (RecursionError, ValueError) as error:
        yield Row(1, Bad("bad JSON", "nested too deeply" if isinstance(error, RecursionError) else str(error)))
        return
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        tree = lists[0] if len(lists) == 1 and not any(isinstance(v, (str, bool)) for v in tree.values()) else [tree]
    for number, value in enumerate(tree if isinstance(tree, list) else [tree], 1):
        yield Row(number, _whole(value) if isinstance(value, dict) else Bad("not an object", f"item {number} is {_noun(value)}"))


# --- cells --------------------------------------------------------------------------------------------


def delimiter_in(file: File) -> str:
    """What stands between the cells of a CSV file: a tab where its name says so, else the commonest mark of the first line."""
    if plain_name(file.name).endswith(".tsv"):
        return "\t"
    head = _text(next(raw_lines(file), b""))
    return max(",;\t|", key=head.count) if isinstance(head, str) else ","


def _csv(file: File, how: How) -> Iterator[Row]:
    limit = csv.field_size_limit(CSV_FIELD_CHARS)
    try:
        yield from _csv_rows(file, how)
    finally:
        csv.field_size_limit(limit)


def _csv_rows(file: File, how: How) -> Iterator[Row]:
    faults: dict[int, Bad] = {}

    def lines() -> Iterator[str]:
        for number, raw in enumerate(raw_lines(file), 1):
            line = _text(raw)
            if isinstance(line, Bad):
                faults[number] = line
                line = "\n" if isinstance(raw, Bad) or too_long(raw) else raw.replace(b"\0", b"").decode("utf-8", "replace")
            yield line

    reader = csv.reader(lines(), delimiter=how.delimiter or delimiter_in(file), quotechar=how.quote, strict=True)
    last = 0
    keys: list[str] | None = None
    if how.header:
        _has(how.columns, keys := list(how.header), file)
    while True:
        start = last + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            spoilt = next((faults[n] for n in range(start, reader.line_num + 1) if n in faults), None)
            yield Row(start, spoilt or Bad("bad CSV", f"{error}; the row starts here"))
            if reader.line_num == last:
                return
            last = reader.line_num
            continue
        last = reader.line_num
        spoilt = next((faults[n] for n in range(start, last + 1) if n in faults), None)
        if spoilt:
            yield Row(start, spoilt)
        elif keys is None:
            if twice := next((key for key in cells if key and cells.count(key) > 1), ""):
                yield Row(start, Bad("bad CSV", f"two columns are called {twice!r}: rename one; nothing after is read"))
                return
            _has(how.columns, keys := cells, file)
        elif cells:
            yield Row(start, _cells(keys, cells))


def _has(columns: Iterable[str], names: list[str], file: File) -> None:
    """UserError where a column that is wanted is not there."""
    if missing := sorted({*columns} - {*names}):
        raise UserError(f"{file.name} has no column {missing[0]!r}", f"it has {', '.join(names)}", "correct `columns`")


def _cells(keys: list[str], cells: list[str]) -> dict[str, Any] | Bad:
    if len(keys) != len(cells):
        return Bad("bad CSV", f"{len(cells)} cells, but the header has {len(keys)}")
    return dict(zip(keys, cells, strict=True))


# --- columns ------------------------------------------------------------------------------------------


def _parquet(file: File, how: How) -> Iterator[Row]:
    """Row group by row group, a few rows of it at a time; columns that are not wanted are not read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "hub", f"{file.name} (Parquet)") from None
    number = 0
    try:
        with file.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as table:
            names = [field.name for field in table.schema_arrow]
            _has(how.columns, names, file)
            odd = {field.name for field in table.schema_arrow if _ODD.search(str(field.type))}
            for group in range(table.num_row_groups):
                facts = table.metadata.row_group(group)
                rows = min(BATCH_ROWS, max(1, BATCH_BYTES * facts.num_rows // max(facts.total_byte_size, 1)))
                batches: Any = table.iter_batches(rows, row_groups=[group], columns=list(how.columns) or None)
                for value in itertools.chain.from_iterable(batch.to_pylist() for batch in batches):
                    number += 1
                    yield Row(number, _plain_row(value, odd) if odd else value)
    except OSError as error:
        yield Row(number + 1, cannot_read(error))
    except (pyarrow.ArrowException, ValueError) as error:  # also text that is not UTF-8, and nanoseconds
        yield Row(
            number + 1, Bad("damaged Parquet", f"{type(error).__name__}: {error}".splitlines()[0] + "; nothing after is read")
        )


def _plain_row(row: dict[str, Any], odd: Set[str]) -> dict[str, Any] | Bad:
    """The row with what JSON has no type for as what it has: times as ISO 8601, decimals and spans of time as numbers."""
    for name in odd & row.keys():
        try:
            row[name] = _plain(row[name])
        except UnicodeDecodeError:
            return Bad(
                "no text", f"the column {name!r} holds bytes that are not UTF-8; name those to read (`columns` of `kind: jsonl`)"
            )
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
