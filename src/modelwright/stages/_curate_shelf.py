"""The one place of a run that writes numbers of rows to the store, and keeps their files few and small."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from modelwright.core.events import Log
from modelwright.core.units import bytes_text
from modelwright.stages._curate_known import SUFFIX, Fresh, Segment, Stored, told

FLUSH_ROWS, FLUSH_S = 1 << 16, 20.0
"""New numbers are written when there are so many, or after so long: as much is lost when a run is killed."""
MANY_FILES, SMALL_BYTES = 8, 32 << 20
"""From so many small files on they become one; a large one stays as it is, so that this needs little memory."""
LIMIT_BYTES = 1 << 30
"""What all sets together may take; the files that no run has read for longest go first."""


class Shelf:
    """`stored` is what lay there when the run began: every process looks there and nowhere else."""

    def __init__(self, folder: Path | None, sets: Mapping[str, str], log: Log) -> None:
        """Without a folder nothing is kept. `sets`: by the names of the steps that ask for them."""
        self._folder, self._log = folder if sets else None, log
        files: dict[str, list[str]] = {}
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._alone(self._folder):
                files = {name: self._sound(self._folder / name) for name in sorted(set(sets.values()))}
        self.stored = Stored(dict(sets), files)
        self._waiting: dict[str, list[Segment]] = {}
        self._rows = 0
        self._written = time.monotonic()
        self._counts: dict[str, Counter[str]] = {}

    def _alone(self, folder: Path) -> FileLock:
        """Files are removed by one process at a time; who reads one that is gone works its numbers out again."""
        return FileLock(folder / ".lock")

    def _sound(self, folder: Path) -> list[str]:
        found = []
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if Segment.read(path, check=True) is None:
                self._log.note(f"statistics in {path.name} of {folder.name} are damaged: they are worked out again")
                path.unlink(missing_ok=True)
            else:
                os.utime(path)
                found.append(path.name)
        return found

    def take(self, fresh: Mapping[str, Fresh]) -> None:
        for name, (segment, known, rows) in fresh.items():
            self._counts.setdefault(name, Counter()).update(known=known, rows=rows)
            if segment is not None:
                self._waiting.setdefault(name, []).append(segment)
                self._rows += len(segment.key_N2)
        if self._rows >= FLUSH_ROWS or (self._rows and time.monotonic() - self._written > FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        assert self._folder is not None
        for name, segments in self._waiting.items():
            Segment.joined(segments).write(self._folder / name)
        self._waiting, self._rows, self._written = {}, 0, time.monotonic()

    def close(self) -> None:
        """Write what is new, join small files, and remove what is too much."""
        if self._folder is None:
            return
        self._flush()
        with self._alone(self._folder):
            for name in self.stored.files:
                self._join(self._folder / name)
            self._evict(self._folder)
        for name, count in self._counts.items():
            self._log.event("columns", set=name, **count)
        if text := told(self._counts):
            self._log.note(text)

    def _join(self, folder: Path) -> None:
        small = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if path.stat().st_size < SMALL_BYTES]
        if len(small) <= MANY_FILES:
            return
        segments = [segment for path in small if (segment := Segment.read(path, check=False)) is not None]
        Segment.joined(segments).write(folder)
        for path in small:
            with suppress(PermissionError):  # Windows: this process still reads it; the next run joins it again
                path.unlink(missing_ok=True)

    def _evict(self, folder: Path) -> None:
        files = [(path.stat(), path) for path in folder.glob(f"*/*{SUFFIX}")]
        total, rows, count = sum(state.st_size for state, _ in files), 0, 0
        for state, path in sorted(files, key=lambda pair: (pair[0].st_mtime_ns, pair[1])):
            if total <= LIMIT_BYTES:
                break
            segment = Segment.read(path, check=False)
            rows, count, total = rows + (len(segment.key_N2) if segment else 0), count + 1, total - state.st_size
            path.unlink(missing_ok=True)
        if count:
            most = bytes_text(LIMIT_BYTES)
            self._log.note(f"the statistics of {rows:,} rows, used least lately, were removed: the store keeps {most} of them")
