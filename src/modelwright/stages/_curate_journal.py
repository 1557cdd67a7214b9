"""The journal of a curation: what finished chunks became, so that a killed run goes on behind them.

A file for each stretch of steps, of frames `head, what the worker said, lines of the rows`, with a checksum; a torn or damaged
frame ends it. It is begun once the stage has run for `AFTER_S`, so that small ones pay nothing; the chunks before are worked
through again. Rows that wait for a choice lie in it and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import struct
import time
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from modelwright.stages._curate_rows import Place

AFTER_S = 30.0
"""A run that was shorter is begun again faster than it is read back."""
_HEAD = struct.Struct("<4sqqqI")
_MARK = b"MWJ1"
_KNOWN = {
    ("array", "_array_reconstructor"),
    ("array", "array"),
    ("collections", "Counter"),
    ("modelwright.core.record", "Record"),
    ("modelwright.methods.steps", "Drop"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What a frame may be made of, beside tuples and dataclasses of the stage: a file in a store that others write to must not run
anything here."""


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module.startswith("modelwright.stages._curate_") else None
        if isinstance(found, type) and (issubclass(found, tuple) or dataclasses.is_dataclass(found)):
            return found
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a journal")
        return super().find_class(module, name)


class _Frame(NamedTuple):
    meta_bytes: int
    place: Place
    """Of the lines; what the worker said stands before them."""
    data_bytes: int


JOURNALS = "journals"
"""The folder of them, in that of the stage."""


class Journals:
    """All of one run. `identity`: of everything that the chunks and their results depend on."""

    def __init__(self, folder: Path, identity: Any) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self._identity = hashlib.sha256(text.encode()).hexdigest().encode()
        self._folder, self._begun_s = folder, time.monotonic()
        self._all: list[Journal] = []

    def open(self, number: int) -> Journal:
        self._all.append(Journal(self._folder / f"journal-{number}", self._identity, self._begun_s + AFTER_S))
        return self._all[-1]

    def close(self) -> None:
        for journal in self._all:
            journal.close()


class Journal:
    """Results of one stretch of steps, by the number of their chunk."""

    def __init__(self, path: Path, identity: bytes, from_s: float) -> None:
        self._path, self._identity, self._from_s = path, identity, from_s
        self._frames: dict[int, _Frame] = {}
        self._file: BinaryIO | None = None
        if path.exists():
            self._file = path.open("r+b")
            if self._file.read(len(identity)) == identity:
                end = self._read_frames()
                self._file.truncate(end)
                self._file.seek(end)
            else:  # of another program or recipe
                self._file.close()
                path.unlink()
                self._file = None

    def _read_frames(self) -> int:
        """Where the last whole frame ends."""
        assert self._file is not None
        end = self._file.tell()
        while len(head := self._file.read(_HEAD.size)) == _HEAD.size:
            mark, number, meta_bytes, data_bytes, check = _HEAD.unpack(head)
            body = self._file.read(meta_bytes + data_bytes) if mark == _MARK else b""
            if len(body) != meta_bytes + data_bytes or zlib.crc32(body) != check:
                break
            self._frames[number] = _Frame(meta_bytes, Place(self._path, end + _HEAD.size + meta_bytes), data_bytes)
            end = self._file.tell()
        return end

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, number: int) -> bool:
        return number in self._frames

    def result(self, number: int) -> tuple[Any, bytes, Place]:
        """What was written under a number, and where the lines are."""
        frame = self._frames[number]
        with self._path.open("rb") as file:
            file.seek(frame.place.begin - frame.meta_bytes)
            meta = _Plain(io.BytesIO(file.read(frame.meta_bytes))).load()
            return meta, file.read(frame.data_bytes), frame.place

    def is_due(self) -> bool:
        """Whether the run is long enough to be worth it."""
        return time.monotonic() >= self._from_s

    def write(self, number: int, result: Any, lines: bytes) -> Place:
        if self._file is None:
            self._path.parent.mkdir(exist_ok=True)
            self._file = self._path.open("wb")
            self._file.write(self._identity)
        meta = pickle.dumps(result, protocol=5)
        check = zlib.crc32(lines, zlib.crc32(meta))
        self._file.write(_HEAD.pack(_MARK, number, len(meta), len(lines), check))
        self._file.write(meta)
        place = Place(self._path, self._file.tell())
        self._file.write(lines)
        self._file.flush()
        return place

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
