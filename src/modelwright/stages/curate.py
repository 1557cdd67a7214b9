"""Curate: rows from sources, through steps, into parts, with a ledger of everything that was left out and why.

Source: the pipeline shape of datatrove (Penedo et al. 2024, arXiv:2406.17557) and Dolma (Soldaini et al. 2024, arXiv:2402.00159).
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import BeforeValidator, Field, PrivateAttr

from modelwright.core.errors import UserError
from modelwright.core.estimate import KERNELS, Estimate, Facts, Given, estimate
from modelwright.core.events import Log
from modelwright.core.measure import cores
from modelwright.core.record import Record
from modelwright.core.spec import Spec, kind_of
from modelwright.core.stage import Check, Run, Stage, Stats
from modelwright.core.units import bytes_text
from modelwright.methods.sources import SOURCES, Source
from modelwright.methods.steps import STEPS, Choosing, Drop, Numbers, Step
from modelwright.stages._curate_cost import Cost, cost, counted, held_bytes, work_s, workers_for
from modelwright.stages._curate_flow import CHUNK_BYTES, CHUNK_ROWS, Cluster, Flow, How, chunked
from modelwright.stages._curate_journal import JOURNALS, Journals
from modelwright.stages._curate_ledger import Entry, Ledger, Reading
from modelwright.stages._curate_parts import Measured, Parts, histogram
from modelwright.stages._curate_rows import Held
from modelwright.stages._curate_split import Kinship, Split, assign, find_leaks
from modelwright.stages._curate_work import Chunk, Named, Piece

SLICE_ROWS = 200
"""Rows that `checks` looks at, or fewer once they hold SLICE_BYTES: enough to meet each reason to drop, a second of work."""
SLICE_BYTES = 400_000


class Limits(Spec):
    """What stops the run, because the result would not be what anyone meant."""

    max_dropped_frac: float = Field(0.95, gt=0, le=1, examples=[0.01])
    """Share of rows that the steps may drop (samples that were asked for do not count). Lower it to be warned early."""
    max_unreadable_frac: float = Field(0.05, ge=0, le=1, examples=[0.0])
    """Share of rows that `on_bad: drop` may leave out; more means that the file is not what it is taken for."""
    min_rows: int = Field(1, ge=1, examples=[1000])
    """Rows that every part must have at least. Default: a part without rows is never meant."""


class _Opened(NamedTuple):
    """Sources under way. `checks` looks at the head and `run` goes on from there, because opening some costs seconds."""

    run: Run
    head: list[Record]
    rest: Iterator[Record]
    counts: Reading


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


class Curate(Stage):
    """Makes `records`: one part `all`, or the parts of `split`."""

    produces: ClassVar[str] = "records"
    works: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    scratch: ClassVar[tuple[str, ...]] = (JOURNALS,)

    kind: Literal["curate"] = "curate"
    source: Annotated[
        tuple[Annotated[Source, SOURCES], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1, examples=[{"kind": "text", "path": "./notes/"}]),
    ]
    """Where rows come from: one source or a list, read in order."""
    steps: tuple[Annotated[Step, STEPS], ...] = Field((), examples=[["exact_dedup"]])
    """What happens to them, in order. Default: nothing."""
    split: Split | None = Field(None, examples=[{"test": 0.5}])
    """How rows are divided into `train`, `validation` and `test`. Default: one part."""
    limits: Limits = Field(Limits(), examples=[{"max_dropped_frac": 0.01}])
    """When to stop instead of leaving a result that nobody meant."""

    _opened: _Opened | None = PrivateAttr(None)

    @property
    def random(self) -> bool:  # type: ignore[override]
        """The seed enters the key only where something is drawn."""
        return self.split is not None or any(step.random for step in self.steps)

    def parts(self) -> tuple[str, ...]:
        return self.split.names() if self.split else ()

    def unused(self, context: Spec) -> dict[str, str]:
        if any(getattr(source, "on_bad", "drop") == "drop" for source in self.source):
            return {}
        return {"limits.max_unreadable_frac": "every source stops at the first row that it cannot read"}

    # --- before the work ------------------------------------------------------------------------------

    def estimate(self, given: Given) -> Estimate:
        facts, seconds, unknown = self._sources(given)
        bytes_in = sum(fact.bytes or 0.0 for fact in facts)
        rows = [fact.rows for fact in facts]
        count = sum(r for r in rows if r is not None) if None not in rows else None
        found = self._cost(seconds, bytes_in, count, given.machine.memory_bytes, given.machine.cores)
        why = found.why_seconds
        if unknown:
            why += f"; how much {', '.join(unknown)} holds is not known yet"
        return estimate(
            found.seconds,
            why,
            found.memory_bytes,
            found.why_memory,
            found.bytes_out * 1.1 + found.waiting_bytes,
            "the text that goes on, as JSON lines; what the steps will drop is not known before"
            + (f"; and {bytes_text(found.waiting_bytes)} while it is made" if found.waiting_bytes else ""),
            self._predicted(found.rows_out, found.bytes_out, sum(fact.chars or 0.0 for fact in facts) / max(bytes_in, 1.0)),
        )._replace(spans=found.spans, leaves=KERNELS if self.steps else {})

    def _cost(self, reading_s: float, bytes_in: float, rows: float | None, memory_bytes: float, cores: int) -> Cost:
        steps = [(kind_of(step), step) for step in self.steps]
        split = self.split.memory_bytes if self.split else None
        kinds = " ".join(map(kind_of, self.source))
        return cost(steps, split, len(self.source), kinds, reading_s, bytes_in, rows, cores, memory_bytes)

    def _sources(self, given: Given) -> tuple[list[Facts], float, list[str]]:
        """What each source will give, seconds to read it all, and references of unknown size."""

        def known(source: Source, ref: str) -> float | None:
            if ref in given.paths:
                return source.bytes_under(given.paths[ref])
            return given.parents[ref].bytes if ref in given.parents else None

        sizes, unknown = self._sizes(known)
        seconds = sum(size / source.bytes_per_s for source, size in zip(self.source, sizes, strict=True))
        refs = {path.split(".")[1]: ref for path, (ref, _) in self.refs().items() if path.startswith("source.")}
        of = [given.parents.get(refs.get(str(number), "")) for number in range(len(sizes))]
        return [counted(*three) for three in zip(self.source, sizes, of, strict=True)], seconds, unknown

    def _sizes(self, of: Callable[[Source, str], float | None]) -> tuple[list[float], list[str]]:
        """Bytes of each source, of its references what `of` says; and those of which it knows nothing."""
        sizes, unknown = [source.size_bytes() for source in self.source], []
        for path, (ref, _) in self.refs().items():
            owner, *number = path.split(".")[:2]
            if owner == "source":
                index = int(number[0])
                if (size := of(self.source[index], ref)) is None:
                    unknown.append(ref)
                sizes[index] += size or 0.0
        return sizes, unknown

    def _predicted(self, rows: float | None, bytes_out: float, text_frac: float) -> dict[str, Facts]:
        def fact(share: float, exact: float | None = None) -> Facts:
            count = exact if exact is not None else rows * share if rows is not None else None
            return Facts(type=self.produces, rows=count, chars=bytes_out * share * text_frac, bytes=bytes_out * share)

        if self.split is None:
            return {"": fact(1.0)}
        shares = {name: s if s < 1 else min(s / rows, 1.0) if rows else 0.05 for name, s in self.split.sizes().items()}
        exact = {name: s if s >= 1 else None for name, s in self.split.sizes().items()}
        found = {name: fact(share, exact[name]) for name, share in shares.items()}
        return {"": fact(1.0), "train": fact(max(1.0 - sum(shares.values()), 0.0)), **found}

    def checks(self, run: Run) -> Iterator[Check]:
        ledger, opened = Ledger(None), self._open(run)
        counts = Reading(run.log)
        chunks = chunked(ledger.read(opened.head, counts))
        flow = self._flow(run._replace(columns=None, log=Log(None)), ledger, whole=False)  # what it says is not of all rows
        rows = [record for found in flow.rows(chunks, counts, How()) for record in found]
        seen = ledger.entries[0].rows_out
        reasons = [f"{reason} {count}" for entry in ledger.entries for reason, count in entry.reasons.most_common(3)]
        yield Check(
            "data ledger",
            bool(rows),
            f"{len(rows)} of the first {seen} rows pass" + (f"; {', '.join(reasons)}" if reasons else ""),
            "" if rows else "loosen the step that drops them, or correct the source",
        )
        yield from self._memory(run, opened)
        if self.split is not None and len(rows) >= 2:
            try:
                assigned = assign(rows, self.split, run.seed)
            except UserError:
                return  # too few rows in the slice for this split; the run itself decides
            leaks = find_leaks(rows, assigned.part, self.split)
            yield Check(
                "parts do not leak",
                not leaks,
                f"{len(leaks)} of {len(rows)} rows are also, or nearly, in a part that is held out more",
                "" if not leaks else "set `split.group` or lower `split.near`",
            )

    def _memory(self, run: Run, opened: _Opened) -> Iterator[Check]:
        """Whether the numbers that steps choose by will fit, by the size of the first rows."""
        chars = sum(len(record.text) for record in opened.head)
        bytes_in = sum(self._on_disk(run))
        rows = bytes_in / (chars / len(opened.head)) if chars else None
        found = self._cost(0.0, bytes_in, rows, run.memory_bytes, 1)
        if found.memory_bytes > run.memory_bytes:
            fix = "leave out the step that takes most, work through the sources one by one, or raise `runtime.memory`"
            yield Check("memory", False, found.why_memory, fix)

    # --- the work -------------------------------------------------------------------------------------

    def run(self, run: Run) -> Stats:
        opened, ledger = self._open(run), Ledger(run.out / "dropped.jsonl")
        self._opened = None
        how = self._how(run)
        with self._journals(run) as journals:
            measured = self._made(opened, run, ledger, how._replace(journals=journals))
        ledger.close(run.log)
        if run.laps is not None and how.workers == 1:  # those of several processes overlap
            run.laps.spans |= ledger.spans()
        self._limit(ledger.entries, measured)
        first, last = ledger.entries[0], ledger.entries[-1]
        return {
            "rows_in": first.rows_in,
            "rows_out": last.rows_out,
            "bytes_in": first.bytes_in,
            "bytes_out": last.bytes_out,
            "parts": {name: len(lengths) for name, (lengths, _) in measured.items()},
            "ledger": [entry.stats() for entry in ledger.entries],
            "statistics": [statistic for entry in ledger.entries for statistic in entry.seen.stats(entry.step)],
            "lengths": {name: histogram(lengths) for name, (lengths, _) in measured.items()},
            "facts": self._facts(measured),
        }

    def _how(self, run: Run) -> How:
        own = sorted({kind_of(spec) for _, spec in self.children() if not type(spec).__module__.startswith("modelwright.")})
        choices = sum(isinstance(step, Choosing) and step.waits() for step in self.steps) + (self.split is not None)
        held = held_bytes(run.memory_bytes, choices)
        if own:
            if (run.workers or 1) > 1 or run.cluster is not None:
                run.log.note(f"one process works through the rows: {', '.join(own)} of your own is known to this command alone")
            return How(held_bytes=held)
        if run.cluster is not None:
            run.log.note("a Ray cluster works through the rows")
            return How(run.workers, cast(Cluster, run.cluster), held)
        workers = workers_for(work_s(self.source, self.steps, self._on_disk(run)), run.workers, cores(), run.memory_bytes)
        if workers > 1:
            run.log.note(f"{workers} processes work through the rows")
        return How(workers, held_bytes=held)

    def _on_disk(self, run: Run) -> list[float]:
        """Bytes of each source, as far as they are on the disk."""

        def there(source: Source, ref: str) -> float:
            given = run.inputs[ref]
            if given.type == "records":
                return float((given.path / f"{given.part or 'all'}.jsonl").stat().st_size)
            return source.bytes_under(given.path)

        return self._sizes(there)[0]

    @contextmanager
    def _journals(self, run: Run) -> Iterator[Journals]:
        """Kept when the work is cut off, so that the next run goes on from there."""
        for left in run.out.glob("waiting-*"):  # by a run that was killed
            left.unlink()
        made_by = (metadata.version("modelwright"), CHUNK_BYTES, CHUNK_ROWS)
        with closing(Journals(run.out / JOURNALS, [self.model_dump(mode="json"), run.seed, made_by])) as journals:
            yield journals

    def _made(self, opened: _Opened, run: Run, ledger: Ledger, how: How) -> dict[str, Measured]:
        chunks, counts = self._chunks(opened, run, ledger)
        flow = self._flow(run, ledger)
        if self.split is None:
            with Parts(run, ["all"]) as parts:
                for rows in flow.rows(chunks, counts, how):
                    parts.write("all", rows)
                measured = parts.measured
        else:
            with flow.held(chunks, counts, how) as (held, numbers):
                measured = self._write_parts(held, numbers, self.split, run, ledger)
        read = ledger.entries[0]
        read.rows_in, read.bytes_in = read.rows_out + counts.unreadable, read.bytes_out
        return measured

    def _chunks(self, opened: _Opened, run: Run, ledger: Ledger) -> tuple[Iterator[Chunk], Reading]:
        """Rows that are read here, or where they are worked on."""
        counts = Reading(run.log)
        if (pieces := self._pieces(run, counts)) is None:
            rows = ledger.read(itertools.chain(opened.head, opened.rest), opened.counts)
            return iter(chunked(rows)), opened.counts
        read = ledger.entry("read")
        read.reasons, read.left_out, read.samples = counts.reasons, counts.left_out, counts.samples
        return (Piece(0, piece) for piece in pieces), counts

    def _pieces(self, run: Run, log: Log) -> Iterator[Any] | None:
        """The only source, in parts that workers read; None where it has none. Rows of several are named with all in view."""
        return self.source[0].pieces(run.inputs, log) if len(self.source) == 1 else None

    def _read(self, run: Run, counts: Reading) -> Iterator[Record]:
        """Every source in order; rows of several that have one name are told apart by their source's number."""
        seen: set[str] = set()
        for number, source in enumerate(self.source):
            for record in source.rows(run.inputs, counts):
                if len(self.source) > 1:
                    if record.id in seen:
                        record = dataclasses.replace(record, id=f"{number}:{record.id}")
                    seen.add(record.id)
                yield record

    def _open(self, run: Run) -> _Opened:
        if self._opened is None or self._opened.run is not run:
            divided = self._pieces(run, Log(None)) is not None  # then the run begins anew, and tells what it meets
            counts = Reading(Log(None) if divided else run.log)
            rest = self._read(run, counts)
            head: list[Record] = []
            seen, start = 0, time.perf_counter()
            while len(head) < SLICE_ROWS and seen < SLICE_BYTES and (record := next(rest, None)) is not None:
                head.append(record)
                seen += len(record.text)
            counts.seconds = time.perf_counter() - start
            self._opened = _Opened(run, head, rest, counts)
        return self._opened

    def _flow(self, run: Run, ledger: Ledger, *, whole: bool = True) -> Flow:
        kinds = [kind_of(step) for step in self.steps]
        again = [kinds[:number].count(kind) for number, kind in enumerate(kinds)]
        names = [f"{kind} {before + 1}" if before else kind for kind, before in zip(kinds, again, strict=True)]
        last = Kinship(self.split, run.seed) if self.split is not None and whole else None
        return Flow(list(map(Named, names, self.steps)), last, self.source, run, ledger)

    def _write_parts(self, rows: Held, numbers: Numbers, split: Split, run: Run, ledger: Ledger) -> dict[str, Measured]:
        entry = ledger.of("split")
        if len(rows) < 2:
            raise UserError("there is nothing to split", f"{len(rows)} rows are left after the steps", self._fix(ledger.entries))
        assigned = assign(rows, split, run.seed, numbers)
        for row, detail in assigned.leaks.items():
            ledger.drop(entry, Drop(rows[row], "split: would leak", detail))
        with Parts(run, split.names()) as parts:
            for first, some in rows.chunks():
                entry.rows_in, entry.bytes_in = entry.rows_in + len(some), entry.bytes_in + sum(some.sizes)
                homes = assigned.part[first : first + len(some)]
                for name in split.names():
                    parts.write(name, some.changed({index: None for index, home in enumerate(homes) if home != name}))
        entry.rows_out = sum(len(lengths) for lengths, _ in parts.measured.values())
        entry.bytes_out = sum(total for _, total in parts.measured.values())
        return parts.measured

    def _limit(self, entries: Sequence[Entry], measured: dict[str, Measured]) -> None:
        """Stop where the result cannot be what was meant."""
        read = entries[0]
        unreadable = read.rows_in - read.rows_out
        if unreadable > self.limits.max_unreadable_frac * read.rows_in:
            raise UserError(
                f"{unreadable} of {read.rows_in} rows cannot be read",
                f"the limit is {self.limits.max_unreadable_frac:g} of them; first: {read.samples[0]['detail']}",
                "mend the file, or raise `limits.max_unreadable_frac`",
            )
        dropped = sum(entry.reasons.total() for entry in entries[1:] if entry.judges)
        rows = read.rows_out + sum(entry.rows_made for entry in entries)
        small = {name: len(lengths) for name, (lengths, _) in measured.items() if len(lengths) < self.limits.min_rows}
        if not read.rows_out:
            raise UserError("the sources hold no rows", fix="check the source's path and what it leaves out")
        if dropped > self.limits.max_dropped_frac * rows:
            raise UserError(
                f"the steps drop {dropped} of {rows} rows",
                f"the limit is {self.limits.max_dropped_frac:g} of them",
                self._fix(entries) + ", or raise `limits.max_dropped_frac`",
            )
        if small:
            raise UserError(
                "too few rows are left: " + ", ".join(f"{count} in {name!r}" for name, count in small.items()),
                f"at least {self.limits.min_rows} are needed in each part",
                self._fix(entries),
            )

    def _fix(self, entries: Sequence[Entry]) -> str:
        worst = max(entries[1:], key=lambda entry: entry.reasons.total(), default=None)
        if worst is None or not worst.reasons:
            return "add rows"
        reason, count = worst.reasons.most_common(1)[0]
        return f"loosen `{worst.step}`, which drops {count} rows for '{reason}'"

    def _facts(self, measured: dict[str, Measured]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (lengths, total) in measured.items():
            fact = Facts(type=self.produces, rows=len(lengths), chars=sum(lengths), bytes=total, measured=True)
            found[name if self.split else ""] = fact.model_dump(mode="json")
        if self.split:
            whole = Facts(
                type=self.produces,
                rows=sum(len(lengths) for lengths, _ in measured.values()),
                chars=sum(sum(lengths) for lengths, _ in measured.values()),
                bytes=sum(total for _, total in measured.values()),
                measured=True,
            )
            found[""] = whole.model_dump(mode="json")
        return found
