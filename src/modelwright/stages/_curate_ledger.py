"""The ledger: what each step took in, let through, cut and dropped, why, with samples."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Cut, Drop, Step, content

SAMPLES = 3
"""Dropped rows that the manifest shows for each reason."""
SAMPLE_CHARS = 300
KEPT = 20
"""Dropped rows that `dropped.jsonl` keeps whole for each step and reason."""


@dataclass
class Entry:
    """One step's account."""

    step: str
    judges: bool = True
    rows_in: int = 0
    rows_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    cuts: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that the source's own settings pass over; they are no rows."""
    samples: list[dict[str, Any]] = field(default_factory=list)

    def stats(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(self.seconds, 3),
            "reasons": dict(sorted(self.reasons.items())),
            "cuts": self.cuts,
            "left_out": dict(sorted(self.left_out.items())),
            "samples": self.samples,
        }


def size(record: Record) -> int:
    """Bytes of a row's text in UTF-8."""
    return len(content(record).encode("utf-8", "surrogatepass"))


class Ledger:
    """Accounts of all steps; dropped rows go to `dropped.jsonl` as samples."""

    def __init__(self, dropped: Path | None) -> None:
        self.entries: list[Entry] = []
        self._file = dropped.open("w", encoding="utf-8", newline="\n", errors="surrogatepass") if dropped else None
        self._kept: Counter[tuple[str, str]] = Counter()

    def read(self, rows: Iterable[Record], counts: Reading) -> Iterator[Record]:
        """Rows from the sources; what could not be read is the first entry's account."""
        entry = self.entry("read")
        return self._read(entry, iter(rows), counts)

    def _read(self, entry: Entry, source: Iterator[Record], counts: Reading) -> Iterator[Record]:
        entry.reasons, entry.left_out, entry.samples = counts.reasons, counts.left_out, counts.samples
        entry.seconds = counts.seconds
        while True:
            start = time.perf_counter()
            record = next(source, None)
            entry.seconds += time.perf_counter() - start
            if record is None:
                break
            entry.rows_out += 1
            entry.bytes_out += size(record)
            yield record
        entry.rows_in = entry.rows_out + counts.unreadable
        entry.bytes_in = entry.bytes_out

    def step(self, name: str, step: Step, rows: Iterator[Record], run: Run) -> Iterator[Record]:
        """Rows that pass `step`."""
        return self._step(self.entry(name, step.judges), step, rows, run)

    def entry(self, name: str, judges: bool = True) -> Entry:
        """Open the next account."""
        self.entries.append(Entry(name, judges))
        return self.entries[-1]

    def _step(self, entry: Entry, step: Step, rows: Iterator[Record], run: Run) -> Iterator[Record]:
        waited = 0.0

        def incoming() -> Iterator[Record]:
            nonlocal waited
            while True:
                start = time.perf_counter()
                record = next(rows, None)
                if record is not None:
                    entry.rows_in += 1
                    entry.bytes_in += size(record)
                waited += time.perf_counter() - start
                if record is None:
                    return
                yield record

        results = step.apply(incoming(), run)
        spent = 0.0
        while True:
            start = time.perf_counter()
            result = next(results, None)
            spent += time.perf_counter() - start
            entry.seconds = spent - waited
            if result is None:
                return
            if isinstance(result, Drop):
                self.drop(entry, result)
                continue
            if isinstance(result, Cut):
                cut = entry.cuts.setdefault(result.reason, {"rows": 0, "pieces": 0, "chars": 0})
                cut["rows"] += 1
                cut["pieces"] += result.pieces
                cut["chars"] += result.chars
                result = result.record
            entry.rows_out += 1
            entry.bytes_out += size(result)
            yield result

    def drop(self, entry: Entry, drop: Drop) -> None:
        """Count a dropped row and keep it as a sample while there are few of its sort."""
        entry.reasons[drop.reason] += 1
        text = content(drop.record)
        if entry.reasons[drop.reason] <= SAMPLES:
            entry.samples.append(
                {"id": drop.record.id, "reason": drop.reason, "detail": drop.detail, "text": text[:SAMPLE_CHARS]}
            )
        self._kept[entry.step, drop.reason] += 1
        if self._file and self._kept[entry.step, drop.reason] <= KEPT:
            tree = {"step": entry.step, "reason": drop.reason, "detail": drop.detail, **json.loads(drop.record.to_json())}
            self._file.write(json.dumps(tree, ensure_ascii=False) + "\n")

    def close(self, log: Log) -> None:
        """Write the accounts as events."""
        for entry in self.entries:
            log.event("ledger", **{key: value for key, value in entry.stats().items() if key != "samples"})
        if self._file:
            self._file.close()


class Reading(Log):
    """Passes a source's events on and counts what it could not read."""

    def __init__(self, log: Log) -> None:
        super().__init__(None)
        self._log = log
        self.unreadable = 0
        self.seconds = 0.0
        """Spent on rows that were read before the ledger was opened."""
        self.reasons: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []

    def event(self, name: str, **fields: Any) -> None:
        if name == "unreadable":
            self.unreadable += 1
            why = str(fields.get("why", ""))
            reason = "unreadable: " + why.partition(":")[0]
            self.reasons[reason] += 1
            if self.reasons[reason] <= SAMPLES:
                place = f"{fields.get('file', '')}" + (f" line {fields['line']}" if fields.get("line") else "")
                self.samples.append({"id": place, "reason": reason, "detail": why[:SAMPLE_CHARS], "text": ""})
        elif name == "excluded":  # files that the source's own settings leave out: told, but no rows
            self.left_out[str(fields.get("reason", ""))] += int(fields.get("files", 1))
        self._log.event(name, **fields)

    def progress(self, done: float, total: float | None, unit: str, label: str = "", **metrics: float) -> None:
        self._log.progress(done, total, unit, label, **metrics)
