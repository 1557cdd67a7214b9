"""Steps: what happens to rows between a source and an artifact. One file a kind; each accounts for every row it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from modelwright.core.record import Message, Record
from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Run

STEPS = Kinds(__name__, f"{__name__}:Step")


class Drop(NamedTuple):
    """A row that goes no further. The stage's ledger counts it under `reason` and keeps samples."""

    record: Record
    reason: str
    """Short and countable: `gopher: mean word length`; the value that failed goes into `detail`."""
    detail: str = ""


class Lost(NamedTuple):
    """What one reason took from a row."""

    reason: str
    pieces: int
    chars: int


class Cut(NamedTuple):
    """A row that goes on without some of its text. The ledger counts the pieces and characters under `reason`."""

    record: Record
    """The row as it goes on."""
    reason: str
    pieces: int
    chars: int
    detail: str = ""
    also: tuple[Lost, ...] = ()
    """What the same row lost for other reasons."""


class Made(NamedTuple):
    """A row more, behind one that went on: what came in as one row leaves as several. The ledger counts it."""

    record: Record


Judge = Callable[[Iterator[Record]], "Iterator[Record | Cut | Drop]"]
Maker = Callable[[Iterator[Record]], "Iterator[Record | Cut | Drop | Made]"]
"""A judge that may also make rows."""
Numbers = Mapping[str, Any]
"""Arrays whose first axis is the rows."""
HELD_NUMBERS = 64 << 20
"""Bytes of the numbers of all rows that a choice has in memory; more lie on the disk, and one array is read at a time."""


class Why(NamedTuple):
    reason: str
    detail: str | Callable[[], str] = ""
    """Asked for only where it is shown."""


Choice = Callable[[Numbers, Sequence[Record]], Mapping[int, "Why | Cut"]]


class Step(Spec):
    """A pure map over rows: yields each row, changed or not, or a Cut or a Drop in its place, and behind it what else was Made of
    it."""

    random: ClassVar[bool] = False
    bytes_per_s: ClassVar[float]
    """Text that one core works through, for estimates; measured on the standard library's source, 2-core EPYC."""
    alone: ClassVar[bool] = True
    """True: what becomes of a row depends on that row alone, so that rows may be divided over processes."""
    judges: ClassVar[bool] = True
    """True: a drop says something of the data, so the stage's limits count it; False: it was asked for (a sample)."""

    def keeps(self, rows: float | None) -> float:
        """Share of the bytes that goes on, for estimates; 1 where only the data can tell. `rows`: how many come in, if known."""
        return 1.0

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop | Made]:
        """`run` gives inputs by reference and the seed; nothing is written and nothing else is read."""
        raise NotImplementedError

    def ready(self, run: Run) -> Maker:
        """What judges one chunk of rows after the other; made once in each process, where something has to be made first."""
        return lambda rows: self.apply(rows, run)

    def shown(self, text: str) -> str:
        """A text as samples of dropped and of kept rows may show it."""
        return text


class Bound(NamedTuple):
    """A number of each row, and how far it may go. What bounds the same number from two sides shows as one histogram."""

    of: str
    """What the number is: `words`."""
    value_D: Any
    """[D]; NaN is of a row that is not judged by it."""
    least: float
    most: float
    field: str
    """The threshold."""


class ByNumbers(Step):
    """Judges rows by numbers of their text (`content`) that its thresholds do not enter: a run with other ones finds them in the
    store."""

    published: ClassVar[str] = ""
    """Where default thresholds come from, for the report."""
    in_company: ClassVar[bool] = False
    """True: the last bits of a row's numbers depend on the rows beside it."""

    def measured_by(self, run: Run) -> dict[str, Any] | None:
        """What else numbers depend on, as a JSON tree with the `name` of the numbers: steps with an equal tree share them. None:
        they are not worth keeping. The code that makes them counts by itself."""
        return None

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        """By the reason for which a row goes, in the order in which they are told."""
        return {}

    def at_least(self, of: str, value_D: Any, field: str) -> Bound:
        least = getattr(self, field)
        return Bound(of, value_D, -math.inf if least is None else least, math.inf, field)

    def at_most(self, of: str, value_D: Any, field: str) -> Bound:
        most = getattr(self, field)
        return Bound(of, value_D, -math.inf, math.inf if most is None else most, field)


Measure = Callable[[Sequence[Record]], Numbers]


class Judged(NamedTuple):
    results: list[Record | Cut | Drop]
    bounds: dict[str, Bound]
    gone_D: bytes
    """Of the rows that have numbers: 1 for those that were dropped."""


class Measuring(ByNumbers):
    """Judges each row by itself. Every number of it is the same in any company."""

    def reads(self, record: Record) -> bool:
        """Whether a row is judged; another one passes."""
        return True

    def measurer(self, run: Run) -> Measure:
        """Made once in each process; only given rows that are read."""
        raise NotImplementedError

    def verdicts(self, rows: Sequence[Record], numbers: Numbers, bounds: Mapping[str, Bound]) -> Iterator[Record | Cut | Drop]:
        """What becomes of each row: here it goes at the first bound that it does not keep."""
        import numpy as np

        if not bounds:
            yield from rows
            return
        failed_RD = np.stack([(value_D < least) | (value_D > most) for _, value_D, least, most, _ in bounds.values()])
        first_D = np.where(failed_RD.any(axis=0), failed_RD.argmax(axis=0), -1).tolist()
        reasons = list(bounds)
        for row, first in enumerate(first_D):
            if first < 0:
                yield rows[row]
            else:
                yield Drop(rows[row], reasons[first], told(bounds[reasons[first]], row))

    def judged(self, rows: Sequence[Record], measure: Measure) -> Judged:
        read = [self.reads(record) for record in rows]
        judged = [record for record, is_read in zip(rows, read, strict=True) if is_read]
        if not judged:
            return Judged(list(rows), {}, b"")
        numbers = measure(judged)
        bounds = self.bounds(numbers)
        results = list(self.verdicts(judged, numbers, bounds))
        gone = bytes(isinstance(result, Drop) for result in results)
        verdict = iter(results)
        return Judged([next(verdict) if is_read else row for row, is_read in zip(rows, read, strict=True)], bounds, gone)

    def ready(self, run: Run) -> Judge:
        measure = self.measurer(run)
        return lambda rows: (result for batch in batches(rows) for result in self.judged(batch, measure).results)

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        return self.ready(run)(rows)


def told(bound: Bound, row: int) -> str:
    """By how much a row fails."""
    value = bound.value_D[row].item()
    below = value < bound.least
    shown = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{bound.of} {shown}, {f'less than {bound.least:g}' if below else f'more than {bound.most:g}'}"


class Choosing(ByNumbers):
    """Looks at all rows together, but only at numbers: those of a chunk of rows are worked out anywhere, then `choose` sees all.

    So the rows themselves need not be in memory, and only the choice waits for the last one."""

    alone: ClassVar[bool] = False

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        """Of each row the same as in any other company."""
        raise NotImplementedError

    def waits(self) -> bool:
        """Whether the choice needs the last row; else what becomes of a row depends on those before it."""
        return True

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        """Of the numbers of so many rows and what the choice makes of them, for estimates. Default: two numbers a row."""
        return 16 * rows

    def chooser(self, run: Run) -> Choice:
        """Gives the rows that go and why, or what is cut from them: of all rows at once where the choice waits, else of one chunk
        after the other. Looking at a row may read it from a disk."""
        raise NotImplementedError

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        held = list(rows)
        if held:
            gone = self.chooser(run)(self.numbers(held, run), held)
            yield from (chosen(gone.get(i), record) for i, record in enumerate(held))


def chosen(found: Why | Cut | None, record: Record) -> Record | Cut | Drop:
    """What a choice makes of a row."""
    if not isinstance(found, Why):
        return found or record
    return Drop(record, found.reason, found.detail if isinstance(found.detail, str) else found.detail())


# --- what several steps and the stage ask of a row ------------------------------------------------------


def content(record: Record) -> str:
    """All text of a row: the document, or every turn of a chat or a preference, one under the other."""
    if record.text:
        return record.text
    return "\n".join(spoken(message) for message in (*record.messages, *record.chosen, *record.rejected))


def size_of(record: Record) -> int:
    """Bytes of a row's text in UTF-8."""
    text = content(record)
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def spoken(message: Message) -> str:
    """Text of one turn; of a call to a tool, its JSON."""
    text = message.get("content") or ""
    calls: Any = message.get("tool_calls")
    return f"{text}\n{calls}" if calls else str(text)


def identity(record: Record) -> str:
    """What makes two rows the same: text and roles, not where they came from."""
    if record.text:
        return record.text
    sides = (record.messages, record.chosen, record.rejected)
    return "\x02".join("\x00".join(f"{turn.get('role')}\x01{spoken(turn)}" for turn in side) for side in sides)


BATCH_BYTES = 1 << 20


def batches(rows: Iterator[Record]) -> Iterator[list[Record]]:
    """A megabyte of text or so at a time, for steps that work on many rows at once."""
    batch: list[Record] = []
    chars = 0
    for record in rows:
        batch.append(record)
        chars += len(record.text)
        if chars >= BATCH_BYTES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def is_python(record: Record) -> bool:
    """Whether a document is Python source: `meta.language` says so, else the suffix of its path."""
    if not record.text:
        return False
    language = record.meta.get("language")
    return language == "python" if language else str(record.meta.get("path", record.id)).endswith((".py", ".pyi"))
