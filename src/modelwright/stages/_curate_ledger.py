"""The ledger: what each step took in, let through, cut and dropped, why, with samples."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.steps import Cut, Drop, Lost, Made, content, size_of
from modelwright.stages._curate_seen import Seen

SAMPLES = 3
"""Dropped rows that the manifest shows for each reason, and kept ones for each step."""
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
    rows_made: int = 0
    """Rows that a step made more: `rows_out` is `rows_in`, with these, without what `reasons` counts."""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    cuts: dict[str, Counter[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Files that the source's own settings pass over; they are no rows."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    """The first ones of each reason."""
    kept: list[tuple[int, str, str]] = field(default_factory=list)
    """Some rows that went on: a number drawn from the id, the id and the begin of the text; the least of all numbers stay."""
    seen: Seen = field(default_factory=Seen)

    def take(self, rows: Sequence[Record], bytes_in: int) -> None:
        self.rows_in += len(rows)
        self.bytes_in += bytes_in

    def judged(self, result: Record | Cut | Drop | Made) -> Record | None:
        """Account for what became of a row; returns it where it goes on."""
        if isinstance(result, Drop):
            self.reasons[result.reason] += 1
            if self.reasons[result.reason] <= KEPT:
                self.drops.append(result)
            return None
        if isinstance(result, Cut):
            for lost in (Lost(result.reason, result.pieces, result.chars), *result.also):
                self.cuts.setdefault(lost.reason, Counter()).update(rows=1, pieces=lost.pieces, chars=lost.chars)
            return result.record
        if isinstance(result, Made):
            self.rows_made += 1
            return result.record
        return result

    def keep(self, rows: Sequence[Record]) -> None:
        """Some of the rows that went on become samples: the same ones, however rows are divided."""
        if self.judges:
            drawn = [zlib.crc32(record.id.encode("utf-8", "surrogatepass")) for record in rows]
            best = nsmallest(SAMPLES, range(len(rows)), key=lambda i: (drawn[i], rows[i].id))
            self.kept = sorted([*self.kept, *((drawn[i], rows[i].id, content(rows[i])) for i in best)])[:SAMPLES]

    def stats(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_made": self.rows_made,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(self.seconds, 3),
            "reasons": dict(sorted(self.reasons.items())),
            "cuts": {reason: dict(cut) for reason, cut in self.cuts.items()},
            "left_out": dict(sorted(self.left_out.items())),
            "samples": self.samples,
            "kept": [{"id": id_, "text": text} for _, id_, text in self.kept] if self.reasons or self.cuts else [],
        }


class Ledger:
    """Accounts of all steps; dropped rows go to `dropped.jsonl` as samples."""

    def __init__(self, dropped: Path | None) -> None:
        self.entries: list[Entry] = []
        self._dropped = dropped
        self._kept: Counter[tuple[str, str]] = Counter()
        self.hiding: Sequence[Callable[[str], str]] = ()
        """What samples must not show is taken from their text by these."""

    def _shown(self, value: Any) -> Any:
        """A JSON tree as samples may show it."""
        if isinstance(value, str):
            for hide in self.hiding:
                value = hide(value)
            return value
        if isinstance(value, dict):
            return {key: self._shown(inner) for key, inner in value.items()}
        return [self._shown(inner) for inner in value] if isinstance(value, list) else value

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
            entry.bytes_out += size_of(record)
            yield record
        entry.rows_in = entry.rows_out + counts.unreadable
        entry.bytes_in = entry.bytes_out

    def entry(self, name: str, judges: bool = True) -> Entry:
        """Open the next account."""
        self.entries.append(Entry(name, judges))
        return self.entries[-1]

    def of(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.step == name)

    def spans(self) -> dict[str, float]:
        """Seconds of reading and of each kind of step; a split is not timed by itself."""
        found: dict[str, float] = {}
        for entry in self.entries:
            name = entry.step.partition(" ")[0]
            if name != "split":
                found[name] = round(found.get(name, 0.0) + entry.seconds, 3)
        return found

    def add(self, name: str, part: Entry) -> None:
        """A chunk's account to that of all."""
        entry = self.of(name)
        entry.rows_in, entry.rows_out = entry.rows_in + part.rows_in, entry.rows_out + part.rows_out
        entry.rows_made += part.rows_made
        entry.bytes_in, entry.bytes_out = entry.bytes_in + part.bytes_in, entry.bytes_out + part.bytes_out
        entry.seconds += part.seconds
        entry.reasons.update(part.reasons)
        for reason, cut in part.cuts.items():
            entry.cuts.setdefault(reason, Counter()).update(cut)
        entry.seen.add(part.seen)
        entry.kept = sorted([*entry.kept, *part.kept])[:SAMPLES]
        for drop in part.drops:
            self._keep(entry, drop)

    def drop(self, entry: Entry, drop: Drop) -> None:
        """Count a dropped row."""
        entry.reasons[drop.reason] += 1
        self._keep(entry, drop)

    def _keep(self, entry: Entry, drop: Drop) -> None:
        """Keep a dropped row as a sample while there are few of its sort."""
        kept = self._kept[entry.step, drop.reason] = self._kept[entry.step, drop.reason] + 1
        if kept <= SAMPLES:
            text = self._shown(content(drop.record))[:SAMPLE_CHARS]
            detail = self._shown(drop.detail)
            entry.samples.append({"id": self._shown(drop.record.id), "reason": drop.reason, "detail": detail, "text": text})
        if kept <= KEPT:
            entry.drops.append(drop)

    def close(self, log: Log) -> None:
        """Write the accounts as events, and the samples, step by step."""
        for entry in self.entries:
            entry.samples = self._shown(entry.samples)
            entry.kept = [(drawn, id_, self._shown(text)[:SAMPLE_CHARS]) for drawn, id_, text in entry.kept]
            log.event("ledger", **{key: value for key, value in entry.stats().items() if key not in ("samples", "kept")})
        if self._dropped is None:
            return
        with self._dropped.open("w", encoding="utf-8", newline="\n", errors="surrogatepass") as file:
            for entry in self.entries:
                for drop in entry.drops:
                    row = json.loads(drop.record.to_json().decode("utf-8", "surrogatepass"))
                    tree = self._shown({"step": entry.step, "reason": drop.reason, "detail": drop.detail, **row})
                    file.write(json.dumps(tree, ensure_ascii=False) + "\n")


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
