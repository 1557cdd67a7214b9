"""Rows on their way through a curation: many at once, as objects or as the lines of a file, in memory or on the disk."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

from modelwright.core.record import Record, from_json
from modelwright.methods.steps import Numbers, content, size_of


class _Many(Sequence[Record]):
    """A kind says how it finds one."""

    def at(self, index: int) -> Record:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        return [self.at(i) for i in range(*index.indices(len(self)))] if isinstance(index, slice) else self.at(index)


class Rows(_Many):
    """Rows of which each is an object until it has to travel, to wait or to be written, and then a line.

    A line is read again only where somebody looks at its row, so whole chunks pass from a worker to the disk unread."""

    def __init__(self, records: list[Record], sizes: Sequence[int]) -> None:
        self._records: list[Record] | None = records
        self._data = b""
        self._ends = array("q")
        self.sizes = array("q", sizes)
        """Bytes of text of each."""
        self.chars = array("q", [len(content(record)) for record in records])

    @staticmethod
    def read(data: bytes, ends: array[int], sizes: array[int], chars: array[int]) -> Rows:
        """From lines, and where each of them ends."""
        rows = Rows.__new__(Rows)
        rows._records, rows._data, rows._ends, rows.sizes, rows.chars = None, data, ends, sizes, chars
        return rows

    def lines(self) -> bytes:
        """All rows as JSON lines; from now on they are held as such."""
        if self._records is not None:
            lines = [record.to_json() + b"\n" for record in self._records]
            end = 0
            for line in lines:
                end += len(line)
                self._ends.append(end)
            self._data, self._records = b"".join(lines), None
        return self._data

    @property
    def ends(self) -> array[int]:
        """Of each line in `lines`."""
        self.lines()
        return self._ends

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows.read, (self.lines(), self._ends, self.sizes, self.chars)

    def __len__(self) -> int:
        return len(self.sizes)

    def at(self, index: int) -> Record:
        if self._records is not None:
            return self._records[index]
        return from_json(self._data[self._ends[index - 1] if index else 0 : self._ends[index]])

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records) if self._records is not None else map(from_json, BytesIO(self._data))

    def changed(self, became: Mapping[int, Record | None]) -> Rows:
        """With other rows in some places, and without those that became None."""
        if not became:
            return self
        if self._records is not None:
            kept = [(became.get(i, record), self.sizes[i]) for i, record in enumerate(self._records)]
            left = [
                (record, size_of(record) if i in became else old) for i, (record, old) in enumerate(kept) if record is not None
            ]
            return Rows([record for record, _ in left], [number for _, number in left])
        pieces, ends, sizes, chars = [], array("q"), array("q"), array("q")
        for index, (end, old, length) in enumerate(zip(self._ends, self.sizes, self.chars, strict=True)):
            line = self._data[self._ends[index - 1] if index else 0 : end]
            if index in became:
                record = became[index]
                if record is None:
                    continue
                line, old, length = record.to_json() + b"\n", size_of(record), len(content(record))
            pieces.append(line)
            ends.append((ends[-1] if ends else 0) + len(line))
            sizes.append(old)
            chars.append(length)
        return Rows.read(b"".join(pieces), ends, sizes, chars)


class Place(NamedTuple):
    """Lines in a file that stays as long as they are needed."""

    file: Path
    begin: int


class _Stored(NamedTuple):
    """Some rows that wait on the disk."""

    place: Place
    ends: array[int]
    sizes: array[int]
    chars: array[int]


class Held(_Many):
    """Rows that wait for a choice: in memory up to `most_bytes` of text, and in a file from there on."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._chunks: list[Rows | _Stored] = []
        self._firsts = array("q")
        self._bytes = self._rows = 0
        self._own: BinaryIO | None = None
        self._open: dict[Path, BinaryIO] = {}

    def add(self, rows: Rows, place: Place | None = None) -> None:
        """`place`: where their lines are on the disk already."""
        self._firsts.append(self._rows)
        self._rows += len(rows)
        if place is not None:
            self._chunks.append(_Stored(place, rows.ends, rows.sizes, rows.chars))
            return
        self._chunks.append(rows)
        self._bytes += sum(rows.sizes)
        if self._bytes > self._most_bytes:
            self._chunks = [self._store(chunk) if isinstance(chunk, Rows) else chunk for chunk in self._chunks]
            self._bytes = 0

    def _store(self, rows: Rows) -> _Stored:
        if self._own is None:
            self._own = self._path.open("w+b")
        begin = self._own.seek(0, 2)
        self._own.write(rows.lines())
        self._own.flush()
        return _Stored(Place(self._path, begin), rows.ends, rows.sizes, rows.chars)

    def __len__(self) -> int:
        return self._rows

    def at(self, index: int) -> Record:
        number = bisect_right(self._firsts, index) - 1
        chunk, within = self._chunks[number], index - self._firsts[number]
        if isinstance(chunk, Rows):
            return chunk[within]
        begin = chunk.ends[within - 1] if within else 0
        return from_json(self._read(chunk.place, begin, chunk.ends[within]))

    def _read(self, place: Place, begin: int, end: int) -> bytes:
        if place.file not in self._open:
            self._open[place.file] = place.file.open("rb", buffering=0)
        file = self._open[place.file]
        file.seek(place.begin + begin)
        found = bytearray()
        while len(found) < end - begin and (more := file.read(end - begin - len(found))):
            found += more
        return bytes(found)

    def __iter__(self) -> Iterator[Record]:
        for _, rows in self.chunks():
            yield from rows

    def chunks(self) -> Iterator[tuple[int, Rows]]:
        """Rows as they came, with the number of the first."""
        for first, chunk in zip(self._firsts, self._chunks, strict=True):
            if isinstance(chunk, _Stored):
                data = self._read(chunk.place, 0, chunk.ends[-1] if chunk.ends else 0)
                yield first, Rows.read(data, chunk.ends, chunk.sizes, chunk.chars)
            else:
                yield first, chunk

    def close(self) -> None:
        self._chunks = []
        for file in (*self._open.values(), *([self._own] if self._own is not None else [])):
            file.close()
        self._path.unlink(missing_ok=True)


class Columns(Mapping[str, Any]):
    """Numbers of rows, chunk after chunk: in memory up to `most_bytes`, and in a file for each name from there on, which is read
    whenever somebody asks for it. Objects stay in memory."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._arrays: dict[str, Any] = {}
        self._files: dict[str, BinaryIO] = {}
        self._bytes = 0

    def add(self, numbers: Numbers) -> None:
        import numpy as np

        for name, new in numbers.items():
            if name not in self._arrays:
                self._arrays[name] = np.empty((0, *new.shape[1:]), new.dtype)
            held, rows = self._arrays[name], len(self._arrays[name])
            held.resize((rows + len(new), *new.shape[1:]), refcheck=False)  # realloc(3) moves pages, not bytes
            held[rows:] = new
            self._bytes += new.nbytes
        if self._bytes > self._most_bytes:
            for name, held in self._arrays.items():
                if not held.dtype.hasobject:
                    self._write(name)
            self._bytes = 0

    def _write(self, name: str) -> None:
        import numpy as np

        if name not in self._files:
            self._files[name] = self._path.with_name(f"{self._path.name}-{len(self._files)}").open("a+b")
        held = self._arrays[name]
        self._files[name].write(held.data)
        self._arrays[name] = np.empty((0, *held.shape[1:]), held.dtype)

    def __getitem__(self, name: str) -> Any:
        import numpy as np

        if (file := self._files.get(name)) is None:
            return self._arrays[name]
        self._write(name)
        file.seek(0)
        return np.fromfile(file, self._arrays[name].dtype).reshape(-1, *self._arrays[name].shape[1:])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def close(self) -> None:
        self._arrays = {}
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)
