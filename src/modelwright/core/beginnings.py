"""How many rows the user's own files hold, and how much text, told from their beginnings: plans read nothing whole.

JSON Lines, JSON, CSV and TSV, packed or not. Of other files nothing is told.
"""

from __future__ import annotations

import bz2
import csv
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

HEAD_BYTES = 1 << 20
"""Read of each file, and unpacked of a packed one."""
PACKED_BYTES = 1 << 20
"""Read of a packed one: bzip2 gives nothing before a block's end, 900 kB unpacked."""
DENSE_BYTES = 32 << 20
"""Unpacked of that at most; text becomes a tenth of it."""
FILES = 8
"""Looked at of many, evenly spread."""
MOST_FRAC = 0.9
"""Of the bytes that files of rows must hold, so that they tell of all."""
TABLES = {".csv": "", ".tsv": "\t"}
OBJECTS = (".jsonl", ".ndjson", ".json")
UNPACKED: Mapping[str, Callable[[], Any]] = {
    ".gz": partial(zlib.decompressobj, 31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
DELIMITERS = ",;\t|"
NAMES = frozenset({"role", "from"})
"""Keys of a message under which no text stands."""


class Held(NamedTuple):
    rows: float
    chars: float
    """Of all text in them, without keys and marks."""


class _Begun(NamedTuple):
    """A file's beginning."""

    text: str
    frac: float
    """Of the whole."""


def held(path: Path) -> Held | None:
    """Of a file, or of all under a folder; None where it cannot be told."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    sizes = {file: file.stat().st_size for file in files}
    of_rows = [file for file in files if _ending(file) and sizes[file]]
    known = sum(sizes[file] for file in of_rows)
    if not known or known < MOST_FRAC * sum(sizes.values()):
        return None
    step = max(1, len(of_rows) // FILES)
    looked, rows, chars = of_rows[::step][:FILES], 0.0, 0.0
    for file in looked:
        found = _of_file(file, sizes[file], file.stat().st_mtime_ns)
        if found is None:
            return None
        rows, chars = rows + found.rows, chars + found.chars
    times = known / sum(sizes[file] for file in looked)
    return Held(rows * times, chars * times)


def _ending(file: Path) -> str:
    """That of its rows, '' where it has none."""
    ends = [end for end in file.suffixes[-2:] if end not in UNPACKED]
    return ends[-1] if ends and (ends[-1] in TABLES or ends[-1] in OBJECTS) else ""


@lru_cache(maxsize=256)
def _of_file(file: Path, size: int, changed: int) -> Held | None:
    """`changed`: when, so that what is remembered is of the file as it is."""
    try:
        begun = _begin(file, size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        return None  # who reads it says what is wrong with it
    ending = _ending(file)
    found = _table(begun, TABLES[ending]) if ending in TABLES else _objects(begun, ending)
    return found if found is not None and found.rows else None


def _begin(file: Path, size: int) -> _Begun:
    with file.open("rb") as stream:
        if (unpacked := UNPACKED.get(file.suffix)) is None:
            data = stream.read(HEAD_BYTES)
            return _Begun(data.decode("utf-8-sig", "replace"), len(data) / size)
        packed = stream.read(PACKED_BYTES)
        data = unpacked().decompress(packed, DENSE_BYTES)
    if len(data) == DENSE_BYTES:
        raise ValueError("far denser than text: what it holds would fill the memory")
    cut = data[:HEAD_BYTES]
    frac = len(packed) / size * (len(cut) / len(data) if data else 0.0)
    return _Begun(cut.decode("utf-8-sig", "replace"), frac)


def _table(begun: _Begun, delimiter: str) -> Held | None:
    text = begun.text if begun.frac >= 1 else begun.text[: begun.text.rfind("\n") + 1]
    first = text.partition("\n")[0]
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))[1:]
    except csv.Error:
        return None
    return _whole(begun, len(rows), sum(len(cell) for row in rows for cell in row), len(text))


def _objects(begun: _Begun, ending: str) -> Held | None:
    """Objects one after the other, as lines or in a list."""
    rows, chars, end = 0, 0, 0
    for value, after in _values(begun.text):
        rows, chars, end = rows + 1, chars + sum(map(len, _texts(value))), after
    alone = ending == ".json" and not begun.text.lstrip().startswith("[") and rows == 1
    return None if alone else _whole(begun, rows, chars, end)


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """Objects and where they end, up to one that is torn."""
    read, at = json.JSONDecoder().raw_decode, 0
    while True:
        while at < len(text) and text[at] in "[, \t\r\n":
            at += 1
        if at >= len(text) or text[at] != "{":
            return
        try:
            value, at = read(text, at)
        except (ValueError, RecursionError):
            return
        yield value, at


def _texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if key not in NAMES:
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _whole(begun: _Begun, rows: int, chars: int, end: int) -> Held:
    """Of the file, from what the first `end` characters hold."""
    times = 1 / (begun.frac * end / len(begun.text)) if end else 0.0
    times = 1.0 if begun.frac >= 1 and len(begun.text) - end < 2 + len(begun.text) // 100 else times
    return Held(rows * times, chars * times)
