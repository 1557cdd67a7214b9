"""Rows through steps, in chunks: those that judge each row by itself run anywhere, in any number of processes; the others see
numbers of all rows and decide in one place. What comes out does not depend on how many processes there are, nor on whether a
run was killed and went on from its journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from time import monotonic, perf_counter
from typing import Any, NamedTuple, Protocol

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.core.workers import Workers
from modelwright.methods.sources import Source
from modelwright.methods.steps import HELD_NUMBERS, Choice, Choosing, Cut, Drop, Numbers, Why, chosen
from modelwright.stages._curate_journal import Journal, Journals
from modelwright.stages._curate_known import set_of
from modelwright.stages._curate_ledger import KEPT, Entry, Ledger
from modelwright.stages._curate_rows import Columns, Held, Place, Rows
from modelwright.stages._curate_shelf import Shelf
from modelwright.stages._curate_work import Chunk, Counting, Done, Named, Stretch, Work, payload_of, work_of

CHUNK_BYTES, CHUNK_ROWS = 1 << 21, 4096
"""A chunk ends with the row that fills one of these: a few hundredths of a second of work, and little memory."""
WORK = f"{work_of.__module__}:{work_of.__name__}"
SHOWN_S = 0.1
"""Between two looks at how far it is."""
HELD_BYTES = 256 << 20
"""Text of rows that wait in memory for a choice; more lies on the disk."""


class Pool(Protocol):
    """Processes that make `work_of(payload)` and call it."""

    def map(self, items: Iterable[Any]) -> Iterator[Any]: ...

    def close(self) -> None: ...


class Cluster(Protocol):
    """Machines that give such processes."""

    def pool(self, target: str, payload: Any, count: int | None) -> Pool: ...


class _Here:
    """No other process."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        return map(self._work, items)

    def close(self) -> None:
        return None


# --- the flow -------------------------------------------------------------------------------------------------


class How(NamedTuple):
    """Where the work is done and what it may take; what comes out does not depend on it."""

    workers: int | None = 1
    """None: as many as a cluster has room for."""
    cluster: Cluster | None = None
    held_bytes: int = HELD_BYTES
    journals: Journals | None = None


class Flow:
    """The chunks of some sources through steps, to rows, or to rows that wait for a split."""

    def __init__(
        self, steps: Sequence[Named], last: Counting | None, sources: Sequence[Source], run: Run, ledger: Ledger
    ) -> None:
        self._run, self._ledger = run, ledger
        self._stretches: list[Stretch] = []
        part: list[Named] = []
        for named in steps:
            ledger.entry(named.name, named.step.judges)
            if isinstance(named.step, Choosing):
                self._stretches.append(Stretch(tuple(part), named.step, named.name))
                part = []
            else:
                part.append(named)
        if last is not None:
            ledger.entry("split")
        if part or last is not None or not self._stretches:
            self._stretches.append(Stretch(tuple(part), last, "split"))
        ledger.hiding = [named.step.shown for named in steps]
        self._shelf = Shelf(run.columns, {name: set_ for name, step in steps if (set_ := set_of(step, run)) is not None}, run.log)
        self._work = Work(self._stretches, sources, run, self._shelf.stored)

    def rows(self, chunks: Iterator[Chunk], counts: Log, how: How) -> Iterator[Rows]:
        """Of rows that pass all steps, in order. `counts` hears what workers cannot read."""
        with closing(self._shelf), closing(self._pool(how)) as pool:
            stage = _Stage(pool, self._run, self._ledger, self._shelf, counts, how)
            for number, stretch in enumerate(self._stretches):
                chunks = stage.through(number, stretch, chunks)
            yield from (rows for rows in chunks if isinstance(rows, Rows))

    @contextmanager
    def held(self, chunks: Iterator[Chunk], counts: Log, how: How) -> Iterator[tuple[Held, Numbers]]:
        """The same rows, all of them, and the numbers that `last` asks for."""
        with closing(self._shelf), closing(self._pool(how)) as pool:
            stage = _Stage(pool, self._run, self._ledger, self._shelf, counts, how)
            *before, last = enumerate(self._stretches)
            for number, stretch in before:
                chunks = stage.through(number, stretch, chunks)
            with stage.gathered(*last, chunks) as found:
                pool.close()
                yield found

    def _pool(self, how: How) -> Pool:
        payload = payload_of(self._work, self._shelf.stored)
        if how.cluster is not None:
            return how.cluster.pool(WORK, payload, how.workers)
        workers = how.workers or 1
        return _Here(self._work) if workers == 1 else Workers(WORK, payload, workers, self._work, partial(self._work, late=True))


class _Stage:
    def __init__(self, pool: Pool, run: Run, ledger: Ledger, shelf: Shelf, counts: Log, how: How) -> None:
        self._pool, self._run, self._ledger, self._shelf = pool, run, ledger, shelf
        self._counts, self._how = counts, how

    def through(self, number: int, stretch: Stretch, chunks: Iterator[Chunk]) -> Iterator[Rows]:
        choosing = stretch.counting
        assert choosing is None or isinstance(choosing, Choosing)
        if choosing is None:
            for done, _ in self._results(number, stretch, chunks):
                if len(done.rows):
                    yield done.rows
            return
        choose = choosing.chooser(self._run)
        entry = self._ledger.of(stretch.name)
        if choosing.waits():
            with self.gathered(number, stretch, chunks) as (held, numbers):
                gone = self._choice(choosing, choose, numbers, held, entry)
                numbers.close()  # rows may wait again behind this
                for first, rows in held.chunks():
                    yield _applied(gone, first, rows, entry, self._ledger)
            return
        for done, _ in self._results(number, stretch, chunks):
            if len(done.rows):
                yield _applied(self._choice(choosing, choose, done.numbers, done.rows, entry), 0, done.rows, entry, self._ledger)

    def _choice(
        self, choosing: Choosing, choose: Choice, numbers: Numbers, rows: Sequence[Record], entry: Entry
    ) -> Mapping[int, Why | Cut]:
        start = perf_counter()
        gone = choose(numbers, rows) if len(rows) else {}
        if len(rows) and (bounds := choosing.bounds(numbers)):
            entry.seen.see(choosing, bounds, bytes(isinstance(gone.get(row), Why) for row in range(len(rows))))
        entry.seconds += perf_counter() - start
        return gone

    @contextmanager
    def gathered(self, number: int, stretch: Stretch, chunks: Iterator[Chunk]) -> Iterator[tuple[Held, Columns]]:
        """All rows, where they wait, and their numbers."""
        path = self._run.out / f"waiting-{number}"
        held, columns = Held(path, self._how.held_bytes), Columns(path, HELD_NUMBERS)
        try:
            for done, place in self._results(number, stretch, chunks):
                if len(done.rows):
                    held.add(done.rows, place)
                    columns.add(done.numbers)
            yield held, columns
        finally:
            held.close()
            columns.close()

    def _results(self, number: int, stretch: Stretch, chunks: Iterator[Chunk]) -> Iterator[tuple[Done, Place | None]]:
        """What became of each chunk, in order, accounted for; where its lines are, if they are in the journal."""
        journal = self._how.journals.open(number) if self._how.journals is not None else None
        if journal:
            self._run.log.note(f"a run that was ended has left {len(journal)} chunks, which are not worked through again")
        names = [named.name for named in stretch.steps] + ([stretch.name] if stretch.counting is not None else [])
        rows, shown_s = 0, 0.0
        for done, place in _remembered(self._pool, journal, number, chunks):
            rows += len(done.rows)
            if journal is not None and (now_s := monotonic()) - shown_s > SHOWN_S:
                shown_s = now_s
                self._run.log.progress(rows, None, "rows", "curate")
            if done.read is not None:
                self._ledger.add("read", done.read.entry)
                for event, fields in done.read.events:
                    self._counts.event(event, **fields)
            for event, fields in done.events:
                self._run.log.event(event, **fields)
            for name, account in zip(names, done.accounts, strict=True):
                self._ledger.add(name, account)
            self._shelf.take(done.fresh)
            yield done, place
        if journal is not None:
            self._run.log.progress(rows, rows, "rows", "curate")


def _remembered(pool: Pool, journal: Journal | None, number: int, chunks: Iterator[Chunk]) -> Iterator[tuple[Done, Place | None]]:
    """Results from the journal, or worked out and written there."""
    if journal is None:
        yield from ((done, None) for done in pool.map((number, chunk) for chunk in chunks))
        return
    under_way: deque[int] = deque()

    def unknown() -> Iterator[tuple[int, Chunk]]:
        for at, chunk in enumerate(chunks):
            under_way.append(at)
            if at not in journal:
                yield number, chunk

    def known() -> Iterator[tuple[Done, Place | None]]:
        while under_way and under_way[0] in journal:
            (done, ends, sizes, chars), lines, place = journal.result(under_way.popleft())
            yield done._replace(rows=Rows.read(lines, ends, sizes, chars)), place

    for done in pool.map(unknown()):
        yield from known()
        at, place = under_way.popleft(), None
        if journal.is_due():
            rows = done.rows
            lines = rows.lines()
            place = journal.write(at, (done._replace(rows=None, fresh={}), rows.ends, rows.sizes, rows.chars), lines)
        yield done, place
    yield from known()


def _applied(gone: Mapping[int, Why | Cut], first: int, rows: Rows, entry: Entry, ledger: Ledger) -> Rows:
    """What a choice leaves of rows from number `first` on."""
    entry.rows_in += len(rows)
    entry.bytes_in += sum(rows.sizes)
    became: dict[int, Record | None] = {}
    for index in range(len(rows)):
        if (found := gone.get(first + index)) is None:
            continue
        if isinstance(found, Why) and entry.reasons[found.reason] >= KEPT:  # counted, and not looked at
            entry.reasons[found.reason] += 1
            became[index] = None
            continue
        result = chosen(found, rows[index])
        if isinstance(result, Drop):
            ledger.drop(entry, result)
            became[index] = None
        else:
            became[index] = entry.judged(result)
    kept = rows.changed(became)
    if entry.seen.of:
        entry.keep(kept)
    entry.rows_out += len(kept)
    entry.bytes_out += sum(kept.sizes)
    return kept


def chunked(rows: Iterable[Record]) -> Iterator[list[Record]]:
    """Where a chunk ends depends on the rows alone."""
    chunk: list[Record] = []
    chars = 0
    for record in rows:
        chunk.append(record)
        chars += len(record.text) or 200
        if chars >= CHUNK_BYTES or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk
