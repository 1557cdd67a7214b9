"""Numbers of rows, kept in the store by the text that they are of: a run with other thresholds, with steps in another order, or
after one that was killed, works out those of rows alone that no run has seen. Judgements are made of them again each time.

A set is what one step measures, or several that share; its folder holds files, each with some rows' numbers sorted by key,
written whole and renamed. They are mapped, so that processes share their memory. A key is 128 bits of the text's hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import modelwright
from modelwright.core.record import Record
from modelwright.core.spec import fingerprint
from modelwright.core.stage import Run
from modelwright.methods.steps import ByNumbers, Measure, Measuring, Numbers, Step, content

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SUFFIX = ".columns"
ALIGN = 64


# --- keys -----------------------------------------------------------------------------------------------------


@cache
def _hash() -> tuple[str, Any]:
    """xxHash where it is installed, ten times as fast; both give 16 bytes."""
    try:
        from xxhash import xxh3_128_digest
    except ImportError:
        return "blake2b", lambda data: hashlib.blake2b(data, digest_size=16).digest()
    return "xxh3", xxh3_128_digest


def keys_of(rows: Iterable[Record], in_company: bool = False) -> Array:
    """[R, 2] uint64. `in_company`: a row is known beside the same others alone."""
    import numpy as np

    digest = _hash()[1]
    found = [digest(content(record).encode("utf-8", "surrogatepass")) for record in rows]
    if in_company:
        company = digest(b"".join(found))
        found = [digest(one + company) for one in found]
    return np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2)


def set_of(step: Step, run: Run) -> str | None:
    """Folder of the numbers that a step asks for; None where it has none that are worth keeping."""
    tree = step.measured_by(run) if isinstance(step, ByNumbers) else None
    if tree is None:
        return None
    made_by = type(step).measurer if isinstance(step, Measuring) else type(step).numbers  # type: ignore[attr-defined]
    code = _code(made_by.__module__, "nn" if step.in_company else "text")  # type: ignore[attr-defined]
    whole = {**tree, "code": code, "python": sys.version_info[:2], "hash": _hash()[0], "order": sys.byteorder}
    return f"{tree['name']}-{fingerprint(json.loads(json.dumps(whole)))[:24]}"


@cache
def _code(module: str, ring: str) -> str:
    """Digest of the code that numbers come from: the step's file, what its family shares, and the ring that does the work."""
    package = Path(modelwright.__path__[0])
    files = {Path(str(sys.modules[module].__file__)), *(package / "methods/steps").glob("_*.py"), *(package / ring).rglob("*.py")}
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.as_posix()):
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


# --- files ------------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """Numbers of some rows, in the order of their keys."""

    key_N2: Array
    columns: Mapping[str, Array]
    """As they lie in the file: whole numbers as narrow as they fit."""
    dtypes: Mapping[str, str]
    """As they were made."""

    @staticmethod
    def of(key_N2: Array, numbers: Numbers) -> Segment:
        import numpy as np

        order = np.lexsort((key_N2[:, 1], key_N2[:, 0]))
        sorted_N2 = key_N2[order]
        new = np.ones(len(order), bool)
        new[1:] = (sorted_N2[1:] != sorted_N2[:-1]).any(axis=1)
        columns = {name: _narrow(column[order][new]) for name, column in numbers.items()}
        return Segment(sorted_N2[new], columns, {name: column.dtype.str for name, column in numbers.items()})

    @staticmethod
    def joined(segments: Sequence[Segment]) -> Segment:
        import numpy as np

        numbers = {
            name: np.concatenate([one.columns[name].astype(dtype) for one in segments])
            for name, dtype in segments[0].dtypes.items()
        }
        return Segment.of(np.concatenate([one.key_N2 for one in segments]), numbers)

    def find(self, key_R2: Array) -> tuple[Array, Array]:
        """Which of the rows are here, and where."""
        import numpy as np

        first_N = self.key_N2[:, 0]
        place_R = np.minimum(np.searchsorted(first_N, key_R2[:, 0]), len(first_N) - 1)
        found = np.flatnonzero((self.key_N2[place_R] == key_R2).all(axis=1))
        return found, place_R[found]

    def write(self, folder: Path) -> Path:
        import numpy as np

        arrays = [np.ascontiguousarray(self.key_N2.T), *self.columns.values()]
        body = b"".join(_padded(array.tobytes()) for array in arrays)
        stored = [[name, column.dtype.str, self.dtypes[name]] for name, column in self.columns.items()]
        head = json.dumps({"rows": len(self.key_N2), "columns": stored, "crc": zlib.crc32(body)}).encode() + b"\n"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.urandom(8).hex()}{SUFFIX}"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(_padded(head, b" ") + body)
        os.replace(temporary, path)
        return path

    @staticmethod
    def read(path: Path, check: bool) -> Segment | None:
        """Mapped; None where it is gone (another run has joined it to others) or not whole."""
        import numpy as np

        try:
            data_B = np.memmap(path, np.uint8, "r")
            with path.open("rb") as file:
                line = file.readline()
            head = json.loads(line)
            rows, stored, crc = head["rows"], head["columns"], head["crc"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        at = -(-len(line) // ALIGN) * ALIGN
        if check and zlib.crc32(data_B[at:].data) != crc:
            return None

        def next_(dtype: str, count: int) -> Array:
            nonlocal at
            size = np.dtype(dtype).itemsize * count
            found = data_B[at : at + size].view(dtype)
            at += -(-size // ALIGN) * ALIGN
            return found

        key_N2 = next_(np.dtype(np.uint64).str, 2 * rows).reshape(2, rows).T
        columns = {name: next_(dtype, rows) for name, dtype, _ in stored}
        return Segment(key_N2, columns, {name: dtype for name, _, dtype in stored})


def _padded(data: bytes, by: bytes = b"\0") -> bytes:
    return data + by * (-len(data) % ALIGN)


def _narrow(column: Array) -> Array:
    import numpy as np

    if column.dtype.kind == "i" and len(column) and column.min() >= 0:
        for dtype in (np.uint8, np.uint16, np.uint32):
            if column.max() <= np.iinfo(dtype).max:
                return column.astype(dtype)
    return column


# --- looking up -------------------------------------------------------------------------------------------------


class Fresh(NamedTuple):
    """What one chunk came to in one set."""

    segment: Segment | None
    """Of the rows that were not known."""
    known: int
    rows: int


class Stored(NamedTuple):
    """What the store had when the run began."""

    sets: dict[str, str]
    """By the names of the steps that ask for them; others ask for none."""
    files: dict[str, list[str]]
    """Of each set."""


class Known:
    """Numbers of rows, from the store where it has them. One in each process that works through rows."""

    def __init__(self, folder: Path | None, stored: Stored) -> None:
        self._folder, self._stored = folder, stored
        self._segments: dict[str, list[Segment]] = {}
        self._last: dict[str, Segment] = {}
        """Numbers that this process made last: the next step may share them."""
        self._fresh: dict[str, Fresh] = {}

    def of(self, step: str, measure: Measure, in_company: bool = False) -> Measure:
        """The same numbers, looked up where that is quicker."""
        set_ = self._stored.sets.get(step)
        if set_ is None:
            return measure

        def numbers(rows: Sequence[Record]) -> Numbers:
            import numpy as np

            key_R2 = keys_of(rows, in_company)
            missing = np.arange(len(rows))
            parts: list[tuple[Array, Numbers]] = []
            known = 0
            for segment in (*self._read(set_), *([self._last[set_]] if set_ in self._last else [])):
                found, place = segment.find(key_R2[missing])
                if len(found):
                    columns = {name: segment.columns[name][place].astype(dtype) for name, dtype in segment.dtypes.items()}
                    parts.append((missing[found], columns))
                    missing = np.delete(missing, found)
                known += len(found) if segment is not self._last.get(set_) else 0
            if len(missing):
                parts.append((missing, measure([rows[row] for row in missing.tolist()])))
                self._last[set_] = Segment.of(key_R2[missing], parts[-1][1])
            self._count(set_, known, len(rows), len(missing))
            return _together(parts, len(rows))

        return numbers

    def _read(self, set_: str) -> list[Segment]:
        if set_ not in self._segments:
            found = [] if self._folder is None else [self._folder / set_ / name for name in self._stored.files.get(set_, ())]
            self._segments[set_] = [segment for path in found if (segment := Segment.read(path, check=False)) is not None]
        return self._segments[set_]

    def _count(self, set_: str, known: int, rows: int, missing: int) -> None:
        before = self._fresh.get(set_)
        if before is None:  # a second step of the same set finds what the first one asked for
            self._fresh[set_] = Fresh(self._last[set_] if missing else None, known, rows)
        elif missing:
            new = self._last[set_]
            joined = new if before.segment is None else Segment.joined([before.segment, new])
            self._fresh[set_] = Fresh(joined, before.known, before.rows + missing)

    def taken(self) -> dict[str, Fresh]:
        """What was asked for since the last time; goes to the one place that writes."""
        found, self._fresh = self._fresh, {}
        return found if self._folder is not None else {}


def _together(parts: Sequence[tuple[Array, Numbers]], rows: int) -> Numbers:
    import numpy as np

    if len(parts) == 1:
        return parts[0][1]
    whole = {name: np.empty(rows, column.dtype) for name, column in parts[0][1].items()}
    for place, numbers in parts:
        for name, column in numbers.items():
            whole[name][place] = column
    return whole


def told(counts: Mapping[str, Counter[str]]) -> str:
    """How much was known, for the log."""
    known = [(name.rpartition("-")[0], count) for name, count in counts.items() if count["known"]]
    said = ", ".join(f"{count['known']:,} of {count['rows']:,} rows ({name})" for name, count in known)
    return f"statistics were known of {said}" if said else ""
