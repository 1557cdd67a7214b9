"""Reading the user's own files for a look: all of what is small, blocks spread over what is large, the beginning of what can only
be read from there; every row once, with what is wrong with it.

Source: none to cite; files are opened, unpacked and told apart as `methods/sources` does it for trainings.
"""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import kind_of
from modelwright.core.units import bytes_text
from modelwright.methods.formats import Format, LeftOut, looking
from modelwright.methods.sources import SOURCES, _files, _open, _rows
from modelwright.plan._probe_facts import Amount, counted

T = TypeVar("T")

WHOLE_BYTES, PARTS_SHARE = 64 << 20, 0.25
"""Files of so many bytes together are read to their end: seconds. Of larger ones this share of it is read in parts."""
LEAST_BUDGET_BYTES = 1 << 20
"""Of each file, however many there are."""
BLOCKS, LEAST_BLOCK_BYTES = 64, 64 << 10
"""Places of a large file where some whole lines are read: enough to tell how much rows vary over it."""
Z_95 = 1.96
NAMED = _files.TEXTS + _rows.ROWS + _files.ZIP
_LAID_OUT = _rows.ROWS + _files.ZIP
"""Endings of files that hold rows, or may."""

LEFT_OUT = "left out by the layout"
"""Reason of rows that a layout reads and has no use for."""
UNFIT = "not the layout"
"""Reason of rows that are objects, and not such as the rest of their file."""


class Looked(NamedTuple):
    """A row that was read."""

    file: int
    """Number of its file."""
    place: str
    """`train.jsonl:17`, as messages name it."""
    raw: dict[str, Any]
    """As it stands in the file; of a document its text alone."""
    record: Record | None
    """As a training would see it; None where the layout cannot."""


class Fault(NamedTuple):
    """A row, or what should be some, that cannot be read."""

    file: int
    place: str
    reason: str
    detail: str


class File(NamedTuple):
    """One file, as far as it was looked at."""

    name: str
    bytes: int
    rows: Amount
    chars: Amount
    layout: str
    """A kind of `methods/formats`, `documents`, or `objects` for rows that fit no known layout."""
    why: str
    """Why it was read so."""
    read_rows: int
    whole: bool
    """Every row was read."""


class Place(NamedTuple):
    """A file to look at."""

    path: Path
    name: str
    bytes: int


Row = Looked | Fault


def places(paths: Sequence[Path]) -> tuple[list[Place], list[Fault]]:
    """The files, and what stands in the way of reading others; UserError where there is nothing."""
    found: list[Place] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            there = path.exists()
        except OSError as error:
            raise UserError(f"{path} cannot be read", str(error), "correct the path, or let this user read it") from None
        if not there:
            raise UserError(f"there is no file or folder {path}", fix="correct the path")
        faults += [Fault(-1, f"{path}/{name}", bad.reason, bad.detail) for name, bad in _open.obstacles(path, NAMED)]
        for file in _files.find(path, _files.EVERY, (*NAMED, *_documents())):
            name = f"{path.name}/{_files.name_in(path, file)}" if path.is_dir() and len(paths) > 1 else _files.name_in(path, file)
            try:
                size = file.stat().st_size
                with file.open("rb"):
                    pass
            except OSError as error:
                bad = _open.cannot_read(error)
                faults.append(Fault(-1, str(file), bad.reason, bad.detail))
            else:
                found.append(Place(file, name, size))
    if not found:
        first = faults[0]
        raise UserError(f"{first.place}: {first.reason}", first.detail, "let this user read it, or name other files")
    return found, faults


@cache
def _documents() -> dict[str, str]:
    """Suffix -> the kind of source that reads such documents."""
    found: dict[str, str] = {}
    for kind in SOURCES.names():
        cls = SOURCES.load(kind)
        if issubclass(cls, _files.Files):
            found |= {suffix: kind for suffix in cls.suffixes if not suffix.endswith(_LAID_OUT) and suffix not in found}
    return found


def source_of(file: File) -> str:
    """The kind of source that reads this file in a recipe."""
    if file.name.endswith(_LAID_OUT):
        return "text" if file.name.endswith(_files.ZIP) and file.layout == "documents" else "jsonl"
    return _kind(file.name)


def _kind(name: str) -> str:
    """Of documents; UserError for a file that no source reads."""
    kind = next((kind for suffix, kind in _documents().items() if name.endswith(suffix)), None)
    if kind is None:
        raise UserError(f"{name} cannot be read", "no source reads files that end so", "end its name as its contents want")
    return kind


class Reader:
    """The rows of one file; afterwards `file` says what it was."""

    def __init__(self, place: Place, number: int, budget_bytes: float) -> None:
        self.place, self._number, self._budget_bytes = place, number, budget_bytes
        self._kind = self._why = ""
        self._cut = ""
        """What was read instead of all of it."""
        self._counted_in = ""
        """What numbers of rows are, where not lines: nobody has counted those before a place in a large file."""
        self._objects_read = self._rows_read = self._chars = 0
        self._bytes = 0.0
        self._blocks: list[tuple[int, int]] = []
        """Objects and bytes of each block that was read."""

    def rows(self) -> Iterator[Row]:
        """Every row that is looked at."""
        try:
            yield from self._of_file()
        except UserError as error:
            yield Fault(self._number, self.place.name, error.what, error.why)

    def _of_file(self) -> Iterator[Row]:
        path, name = self.place.path, self.place.name
        if path.name.endswith(_files.ZIP):
            faults: list[Fault] = []
            for member, called in _files.parts_of(path, name, NAMED, self._heard_by(faults, name), "drop"):
                if self._cut:
                    break
                yield from self._of_part(member, called)
            yield from faults
        elif path.name.endswith((".jsonl", ".ndjson")) and self.place.bytes > self._budget_bytes:
            yield from self._settled(self._strided(path), name)
        elif path.name.endswith(NAMED):
            yield from self._of_part(path, name)
        else:
            yield from self._until(self._by_kind(path))

    def _of_part(self, file: _open.File, name: str) -> Iterator[Row]:
        plain = _open.plain_name(file.name)
        if plain.endswith(_files.TEXT):
            yield from self._until(self._texts(file, name))
        elif plain.endswith((".jsonl", ".ndjson")):
            yield from self._settled(self._until(_of_lines(file)), name)
        else:
            yield from self._settled(self._until((row, _size(row)) for row in _rows.objects(file)), name)

    def _until(self, pairs: Iterator[tuple[T, int]]) -> Iterator[T]:
        """What comes with its bytes, as far as the budget goes."""
        for item, size in pairs:
            yield item
            self._bytes += size
            if self._bytes >= self._budget_bytes:
                self._cut = f"the first {bytes_text(self._bytes)} of it, since such a file can only be read from its beginning"
                return

    # --- documents ------------------------------------------------------------------------------------

    def _texts(self, file: _open.File, name: str) -> Iterator[tuple[Row, int]]:
        self._kind, self._why = "documents", "its name ends as that of plain text does"
        faults: list[Fault] = []
        for record in _files.read_text(file, name, self._heard_by(faults, name), "drop"):
            yield self._looked(record.id, {"text": record.text}, record), len(record.text.encode("utf-8", "replace"))
        yield from ((fault, 0) for fault in faults)

    def _heard_by(self, faults: list[Fault], name: str) -> Log:
        """A log whose words on what cannot be read become faults: nothing is passed over in silence."""

        def hear(event: str, fields: dict[str, Any]) -> None:
            if event == "unreadable":
                reason, _, detail = str(fields["why"]).partition(": ")
                faults.append(Fault(self._number, name, reason, detail))
            elif event == "excluded":
                faults.append(Fault(self._number, name, str(fields["reason"]), f"{fields['files']} left out"))

        return Log(None, hear)

    def _by_kind(self, path: Path) -> Iterator[tuple[Row, int]]:
        kind = _kind(path.name)
        source = SOURCES.load(kind).model_validate({"kind": kind, "path": f"./{path.name}"})
        assert isinstance(source, _files.Files)
        self._kind, self._why = "documents", f"`kind: {kind}` reads files that end so"
        faults: list[Fault] = []
        for record in source.of_file(path, self.place.name, self._heard_by(faults, self.place.name)):
            yield self._looked(record.id, {"text": record.text}, record), len(record.text)
        yield from ((fault, 0) for fault in faults)

    # --- rows -----------------------------------------------------------------------------------------

    def _strided(self, path: Path) -> Iterator[_rows.Row]:
        """Whole lines at places spread evenly over the file."""
        size, self._counted_in = self.place.bytes, "byte "
        block_bytes = max(LEAST_BLOCK_BYTES, int(self._budget_bytes / BLOCKS))
        with path.open("rb") as stream:
            for block in range(BLOCKS):
                at, beyond = size * block // BLOCKS, size * (block + 1) // BLOCKS
                stream.seek(at)
                if at and not stream.readline(_open.LINE_BYTES + 1).endswith(b"\n"):
                    continue  # within a line that is longer than any that is read, or at the end
                objects = taken = 0
                # a line that begins at or before the next place is passed over there
                while (
                    taken < block_bytes and (begin := stream.tell()) <= beyond and (line := stream.readline(_open.LINE_BYTES + 1))
                ):
                    for row in _rows.of_lines([line], begin):
                        objects += not isinstance(row.value, _open.Bad)
                        yield row
                    taken += len(line)
                    if _open.too_long(line):
                        break
                if taken:
                    self._blocks.append((objects, taken))
        self._cut = f"{len(self._blocks)} places spread evenly over it"

    def _settled(self, rows: Iterator[_rows.Row], name: str) -> Iterator[Row]:
        """Rows as records of the layout that the first of them show."""
        head = list(itertools.islice(rows, _files.LOOK_ROWS))
        good = [row.value for row in head if not isinstance(row.value, _open.Bad)]
        layout: Format | None = None
        if good:
            try:
                layout, self._why = looking().settle(good, name)
                self._kind = kind_of(layout)
            except UserError as error:
                self._kind, self._why = "objects", f"{error.what.removeprefix(f'{name}: ')}: {error.why}"
        elif not head:
            yield Fault(self._number, name, "empty file", "it has no row")
        for row in itertools.chain(head, rows):
            if isinstance(row.value, _open.Bad):
                yield Fault(self._number, f"{name}:{self._counted_in}{row.line}", row.value.reason, row.value.detail)
            else:
                self._objects_read += 1
                yield from self._as_records(row.value, f"{name}:{self._counted_in}{row.line}", layout)

    def _as_records(self, raw: dict[str, Any], place: str, layout: Format | None) -> Iterator[Row]:
        if layout is None:
            yield self._looked(place, raw, None)
            return
        try:
            for record in layout.records(raw, place):
                yield self._looked(record.id, raw, record)
        except LeftOut as choice:
            yield Fault(self._number, place, LEFT_OUT, str(choice))
        except ValueError as error:
            yield self._looked(place, raw, None)
            yield Fault(self._number, place, UNFIT, str(error))

    def _looked(self, place: str, raw: dict[str, Any], record: Record | None) -> Looked:
        self._rows_read += 1
        return Looked(self._number, place, raw, record)

    # --- afterwards -----------------------------------------------------------------------------------

    def heard(self, chars: int) -> None:
        """A row of this file has so many characters."""
        self._chars += chars

    def file(self) -> File:
        rows = self._amount()
        per_row = self._chars / self._rows_read if self._rows_read else 0.0
        chars = rows.times(per_row, rows.why) if self._cut else counted(self._chars)
        return File(self.place.name, self.place.bytes, rows, chars, self._kind, self._why, self._rows_read, not self._cut)

    def _amount(self) -> Amount:
        if not self._cut:
            return counted(self._rows_read)
        each = self._rows_read / max(self._objects_read, 1) if self._objects_read else 1.0
        if self.place.path.name.endswith(".parquet"):
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(self.place.path) as table:
                return counted(table.metadata.num_rows).times(each, "the file's footer says so", exact=each == 1.0)
        if self._blocks:
            return _ratio(self._blocks, self.place.bytes, self._cut).times(each, f"estimated from {self._cut}")
        size = self._unpacked_bytes()
        value = max(self._rows_read * size / max(self._bytes, 1.0), float(self._rows_read))
        return Amount(
            value, float(self._rows_read), None, False, f"estimated from {self._cut}; what comes after may be otherwise"
        )

    def _unpacked_bytes(self) -> float:
        path = self.place.path
        if path.name.endswith(_files.ZIP):
            with zipfile.ZipFile(path) as archive:
                return float(sum(member.file_size for member in archive.infolist() if member.filename.endswith(NAMED)))
        return self.place.bytes * _open.unpacked_per_byte(path)


def _of_lines(file: _open.File) -> Iterator[tuple[_rows.Row, int]]:
    for number, line in enumerate(_rows.raw_lines(file), 1):
        for row in _rows.of_lines([line], number):
            yield row, len(line) if isinstance(line, bytes) else 0


def _size(row: _rows.Row) -> int:
    """Bytes of a row that was read through cells or columns, near enough to tell how much was read."""
    return 1 if isinstance(row.value, _open.Bad) else sum(1 + len(str(value)) for value in row.value.values())


def _ratio(blocks: Sequence[tuple[int, int]], size: int, how: str) -> Amount:
    """Objects in `size` bytes, of which some blocks (objects, bytes) were read."""
    objects, seen = sum(block[0] for block in blocks), sum(block[1] for block in blocks)
    per_byte = objects / max(seen, 1)
    value = per_byte * size
    if len(blocks) < 2:
        return Amount(value, float(objects), None, False, how)
    spread = sum((n - per_byte * b) ** 2 for n, b in blocks) / (len(blocks) - 1)
    error = Z_95 * size * math.sqrt(spread / len(blocks)) / (seen / len(blocks))
    return Amount(value, max(value - error, float(objects)), value + error, False, how)
