"""What is done to a chunk of rows, here or in another process: read it, judge each row, work out the numbers to choose by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.sources import SOURCES, Source
from modelwright.methods.steps import STEPS, Choosing, Cut, Drop, Made, Measuring, Numbers, Step, size_of
from modelwright.stages._curate_known import Fresh, Known, Stored
from modelwright.stages._curate_ledger import KEPT, Entry
from modelwright.stages._curate_rows import Rows


class Named(NamedTuple):
    """A step, and what the ledger calls it."""

    name: str
    step: Step


class Counting(Protocol):
    """What asks for numbers of rows: a step that chooses, or a split."""

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers: ...


class Stretch(NamedTuple):
    """Steps that judge rows by themselves, and what asks for numbers behind them."""

    steps: tuple[Named, ...]
    counting: Counting | None
    name: str = ""
    """Of `counting`, in the ledger."""


class Piece(NamedTuple):
    """Rows that are still to be read: part of a source."""

    source: int
    value: Any


Chunk = list[Record] | Rows | Piece
Events = list[tuple[str, dict[str, Any]]]


class Told(NamedTuple):
    """What the reading of a piece came to."""

    entry: Entry
    events: Events


class Done(NamedTuple):
    """What a chunk became."""

    rows: Rows
    accounts: list[Entry]
    numbers: Numbers
    events: Events
    read: Told | None
    fresh: dict[str, Fresh]
    """Numbers that were not known, for the store."""


Judging = Callable[[list[Record], Entry], Iterable[Record | Cut | Drop | Made]]


class Work:
    """What is done to a chunk of one of the stretches, here or in another process."""

    def __init__(self, stretches: Sequence[Stretch], sources: Sequence[Source], run: Run, stored: Stored) -> None:
        self._events: Events = []
        log = Log(None, lambda event, fields: self._events.append((event, fields)))
        self.stretches, self.sources, self.run = stretches, sources, run._replace(log=log)
        self._judges: dict[int, list[Judging]] = {}
        self._known = Known(run.columns, stored)
        self._kept: Counter[tuple[str, str]] = Counter()

    def __call__(self, item: tuple[int, Chunk], late: bool = False) -> Done:
        """`late`: behind chunks that come after it."""
        number, chunk = item
        stretch = self.stretches[number]
        read = None
        if isinstance(chunk, Piece):
            rows, read = self._read(chunk)
        else:
            rows = list(chunk)
        sizes = list(chunk.sizes) if isinstance(chunk, Rows) else list(map(size_of, rows))
        if read is not None:
            read.entry.rows_out, read.entry.bytes_out = len(rows), sum(sizes)
        if number not in self._judges:
            self._judges[number] = [self._judging(named) for named in stretch.steps]
        accounts = []
        for named, judge in zip(stretch.steps, self._judges[number], strict=True):
            entry = Entry(named.name, named.step.judges)
            rows, sizes = _judged(entry, judge, rows, sizes)
            if not late:
                self._keep_first(entry)
            accounts.append(entry)
        numbers: Numbers = {}
        if stretch.counting is not None:
            start = perf_counter()
            numbers = self._numbers(stretch, rows) if rows else {}
            accounts.append(Entry(stretch.name, seconds=perf_counter() - start))
        return Done(Rows(rows, sizes), accounts, numbers, self._told(), read, self._known.taken())

    def _judging(self, named: Named) -> Judging:
        step = named.step
        if not isinstance(step, Measuring):
            ready = step.ready(self.run)
            return lambda rows, entry: ready(iter(rows))
        measure = self._known.of(named.name, step.measurer(self.run))

        def judging(rows: list[Record], entry: Entry) -> list[Record | Cut | Drop]:
            judged = step.judged(rows, measure)
            entry.seen.see(step, judged.bounds, judged.gone_D)
            return judged.results

        return judging

    def _numbers(self, stretch: Stretch, rows: list[Record]) -> Numbers:
        counting = stretch.counting
        assert counting is not None
        in_company = isinstance(counting, Choosing) and counting.in_company
        return self._known.of(stretch.name, lambda rows: counting.numbers(rows, self.run), in_company)(rows)

    def _read(self, piece: Piece) -> tuple[list[Record], Told]:
        start = perf_counter()
        rows = list(self.sources[piece.source].of_piece(piece.value, self.run.log))
        return rows, Told(Entry("read", seconds=perf_counter() - start), self._told())

    def _told(self) -> Events:
        events, self._events[:] = list(self._events), []
        return events

    def _keep_first(self, entry: Entry) -> None:
        """Chunks come here in their order: what this process has sent enough of, no later chunk adds to."""
        kept = []
        for drop in entry.drops:
            self._kept[entry.step, drop.reason] += 1
            if self._kept[entry.step, drop.reason] <= KEPT:
                kept.append(drop)
        entry.drops = kept


def _judged(entry: Entry, judge: Judging, rows: list[Record], sizes: list[int]) -> tuple[list[Record], list[int]]:
    start = perf_counter()
    known = dict(zip(map(id, rows), sizes, strict=True))
    entry.take(rows, sum(sizes))
    kept: list[Record] = []
    for result in judge(rows, entry):
        if (record := entry.judged(result)) is not None:
            kept.append(record)
    left = [known[id(record)] if id(record) in known else size_of(record) for record in kept]
    entry.rows_out, entry.bytes_out = len(kept), sum(left)
    entry.keep(kept)
    entry.seconds += perf_counter() - start
    return kept, left


# --- in other processes -----------------------------------------------------------------------------------


def work_of(payload: dict[str, Any]) -> Work:
    """For a worker process: the same `Work` from plain values."""
    stretches = []
    for steps, counting, name in payload["stretches"]:
        built: list[Any] = [STEPS.build(tree) for _, tree in steps]
        asks: Any = STEPS.build(counting) if isinstance(counting, dict) else counting
        stretches.append(Stretch(tuple(Named(label, step) for (label, _), step in zip(steps, built, strict=True)), asks, name))
    sources: list[Any] = [SOURCES.build(tree) for tree in payload["sources"]]
    return Work(stretches, sources, Run(log=Log(None), **payload["run"]), payload["stored"])


def payload_of(work: Work, stored: Stored) -> dict[str, Any]:
    return {
        "stored": stored,
        "stretches": [
            (
                [(named.name, named.step.model_dump(mode="json")) for named in stretch.steps],
                stretch.counting.model_dump(mode="json") if isinstance(stretch.counting, Step) else stretch.counting,
                stretch.name,
            )
            for stretch in work.stretches
        ],
        "sources": [source.model_dump(mode="json") for source in work.sources],
        "run": {name: getattr(work.run, name) for name in ("out", "inputs", "seed", "columns")},
    }
