"""Curate: rows from sources, through steps, into parts, with a ledger of everything that was left out and why.

Source: the pipeline shape of datatrove (Penedo et al. 2024, arXiv:2406.17557) and Dolma (Soldaini et al. 2024, arXiv:2402.00159).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PrivateAttr

from modelwright.core.errors import UserError
from modelwright.core.measure import cores
from modelwright.core.record import Record, write_records
from modelwright.core.spec import Spec
from modelwright.core.stage import Check, Estimate, Facts, Given, Run, Stage, Stats, estimate
from modelwright.core.units import bytes_text
from modelwright.methods.sources import SOURCES, Source
from modelwright.methods.steps import STEPS, Choosing, Drop, Step, content
from modelwright.stages._curate_flow import HELD_BYTES, Named, flow
from modelwright.stages._curate_ledger import Entry, Ledger, Reading, size
from modelwright.stages._curate_split import Split, assign, find_leaks

SLICE_ROWS = 200
"""Rows that `checks` looks at, or fewer once they hold SLICE_BYTES: enough to meet each reason to drop, a second of work."""
SLICE_BYTES = 400_000
BASE_BYTES = 50e6
"""Peak of an empty run: the interpreter, pydantic and numpy; measured."""
HELD_BYTES_PER_BYTE = 5.0
"""Memory of rows that are held, for each byte read; measured on 41,000 chats (36 MB of JSON lines, peak 208 MB)."""


WORTH_WORKERS_S = 10.0
"""Seconds of work from which worker processes pay: one takes two to start."""


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
        flow = bytes_in
        rows = [fact.rows for fact in facts]
        count = sum(r for r in rows if r is not None) if None not in rows else None
        slowest = ("reading", seconds)
        for step in self.steps:
            cost = flow / step.bytes_per_s
            seconds += cost
            slowest = max(slowest, (_kind(step), cost), key=lambda pair: pair[1])
            share = step.keeps(count)
            flow *= share
            count = count * share if count is not None else None
        waits = any(isinstance(step, Choosing) and step.waits() for step in self.steps)
        held = bytes_in if self.split is not None else min(bytes_in, HELD_BYTES) if waits else 0.0
        memory = BASE_BYTES + HELD_BYTES_PER_BYTE * held
        why = f"{bytes_text(bytes_in)} of text through {len(self.steps)} steps, {slowest[0]} takes longest"
        if unknown:
            why += f"; how much {', '.join(unknown)} holds is not known yet"
        return estimate(
            seconds + 0.5,
            why,
            memory,
            f"{bytes_text(BASE_BYTES)} for the program"
            + (f", and {bytes_text(held)} of rows are held" if held else "; rows flow through"),
            flow * 1.1,
            "the text that goes on, as JSON lines; what the steps will drop is not known before",
            self._predicted(count, flow),
        )

    def _sources(self, given: Given) -> tuple[list[Facts], float, list[str]]:
        """What each source will give, seconds to read it all, and references of unknown size."""
        facts: list[Facts] = []
        seconds = 0.0
        unknown: list[str] = []
        for index, source in enumerate(self.source):
            bytes_in = source.size_bytes()
            for path, (ref, _) in self.refs().items():
                if path.startswith(f"source.{index}."):
                    known = given.parents.get(ref)
                    bytes_in += known.bytes or 0.0 if known else 0.0
                    if known is None or known.bytes is None:
                        unknown.append(ref)
            facts.append(source.facts(bytes_in))
            seconds += bytes_in / source.bytes_per_s
        return facts, seconds, unknown

    def _predicted(self, rows: float | None, bytes_out: float) -> dict[str, Facts]:
        def fact(share: float, exact: float | None = None) -> Facts:
            count = exact if exact is not None else rows * share if rows is not None else None
            return Facts(type=self.produces, rows=count, chars=bytes_out * share, bytes=bytes_out * share)

        if self.split is None:
            return {"": fact(1.0)}
        shares = {name: s if s < 1 else min(s / rows, 1.0) if rows else 0.05 for name, s in self.split.sizes().items()}
        exact = {name: s if s >= 1 else None for name, s in self.split.sizes().items()}
        found = {name: fact(share, exact[name]) for name, share in shares.items()}
        return {"": fact(1.0), "train": fact(max(1.0 - sum(shares.values()), 0.0)), **found}

    def checks(self, run: Run) -> Iterator[Check]:
        ledger, opened = Ledger(None), self._open(run)
        rows = list(self._flow(opened.head, run, ledger, Reading(run.log)))
        seen = ledger.entries[0].rows_out
        reasons = [f"{reason} {count}" for entry in ledger.entries for reason, count in entry.reasons.most_common(3)]
        yield Check(
            "data ledger",
            bool(rows),
            f"{len(rows)} of the first {seen} rows pass" + (f"; {', '.join(reasons)}" if reasons else ""),
            "" if rows else "loosen the step that drops them, or correct the source",
        )
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

    # --- the work -------------------------------------------------------------------------------------

    def run(self, run: Run) -> Stats:
        ledger, opened = Ledger(run.out / "dropped.jsonl"), self._open(run)
        self._opened = None
        own = [_kind(step) for step in self.steps if not type(step).__module__.startswith("modelwright.")]
        workers = 1 if own else run.workers or self._workers()
        if own and (run.workers or 1) > 1:
            run.log.note(f"one process works through the rows: {', '.join(own)} of your own is known to this command alone")
        if workers > 1:
            run.log.note(f"{workers} processes work through the rows")
        rows = self._flow(itertools.chain(opened.head, opened.rest), run, ledger, opened.counts, workers)
        shown = run.log.track(rows, "rows", label="curate")
        if self.split is None:
            measured = {"all": _write(run, "all", shown)}
        else:
            measured = self._write_parts(list(shown), self.split, run, ledger)
        ledger.close(run.log)
        self._limit(ledger.entries, measured)
        first, last = ledger.entries[0], ledger.entries[-1]
        return {
            "rows_in": first.rows_in,
            "rows_out": last.rows_out,
            "bytes_in": first.bytes_in,
            "bytes_out": last.bytes_out,
            "parts": {name: len(lengths) for name, (lengths, _) in measured.items()},
            "ledger": [entry.stats() for entry in ledger.entries],
            "lengths": {name: _histogram(lengths) for name, (lengths, _) in measured.items()},
            "facts": self._facts(measured),
        }

    def _workers(self) -> int:
        """One for each core where the work is much longer than their start."""
        seconds = sum(source.size_bytes() for source in self.source) * sum(1 / step.bytes_per_s for step in self.steps)
        return cores() if seconds > WORTH_WORKERS_S else 1

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
            counts = Reading(run.log)
            rest = self._read(run, counts)
            head: list[Record] = []
            seen, start = 0, time.perf_counter()
            while len(head) < SLICE_ROWS and seen < SLICE_BYTES and (record := next(rest, None)) is not None:
                head.append(record)
                seen += len(record.text)
            counts.seconds = time.perf_counter() - start
            self._opened = _Opened(run, head, rest, counts)
        return self._opened

    def _flow(self, rows: Iterable[Record], run: Run, ledger: Ledger, counts: Reading, workers: int = 1) -> Iterator[Record]:
        kinds = [_kind(step) for step in self.steps]
        again = [kinds[:number].count(kind) for number, kind in enumerate(kinds)]
        names = [f"{kind} {before + 1}" if before else kind for kind, before in zip(kinds, again, strict=True)]
        return flow(ledger.read(rows, counts), list(map(Named, names, self.steps)), run, ledger, workers)

    def _write_parts(self, rows: list[Record], split: Split, run: Run, ledger: Ledger) -> dict[str, Measured]:
        entry = ledger.entry("split")
        entry.rows_in, entry.bytes_in = len(rows), sum(map(size, rows))
        if len(rows) < 2:
            raise UserError("there is nothing to split", f"{len(rows)} rows are left after the steps", self._fix(ledger.entries))
        assigned = assign(rows, split, run.seed)
        for row, detail in assigned.leaks.items():
            ledger.drop(entry, Drop(rows[row], "split: would leak", detail))
        measured = {}
        for name in split.names():
            measured[name] = _write(run, name, (record for record, part in zip(rows, assigned.part, strict=True) if part == name))
        entry.rows_out = sum(len(lengths) for lengths, _ in measured.values())
        entry.bytes_out = sum(total for _, total in measured.values())
        return measured

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


Measured = tuple[list[int], int]
"""Characters of each row, and bytes of all."""


def _kind(step: Step) -> str:
    return str(step.model_dump(include={"kind"})["kind"])


def _write(run: Run, name: str, rows: Iterable[Record]) -> Measured:
    lengths: list[int] = []
    total = 0

    def counted() -> Iterator[Record]:
        nonlocal total
        for record in rows:
            lengths.append(len(content(record)))
            total += size(record)
            yield record

    write_records(run.out / f"{name}.jsonl", counted())
    return lengths, total


def _histogram(lengths: list[int]) -> dict[str, Any]:
    """Rows by length in characters; bin i holds lengths from edges[i] up to edges[i + 1], which are powers of two."""
    if not lengths:
        return {"unit": "chars", "edges": [], "counts": []}
    top = max(1, math.ceil(math.log2(max(lengths) + 1)))
    edges = [0, *(2**power for power in range(top + 1))]
    counts = [0] * (len(edges) - 1)
    for length in lengths:
        counts[length.bit_length()] += 1
    ordered = sorted(lengths)
    return {
        "unit": "chars",
        "edges": edges,
        "counts": counts,
        "min": ordered[0],
        "median": ordered[len(ordered) // 2],
        "mean": round(sum(ordered) / len(ordered), 1),
        "max": ordered[-1],
    }
