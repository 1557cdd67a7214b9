"""Steps: what happens to rows between a source and an artifact. One file a kind; each accounts for every row it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Cut(NamedTuple):
    """A row that goes on without some of its text. The ledger counts the pieces and characters under `reason`."""

    record: Record
    """The row as it goes on."""
    reason: str
    pieces: int
    chars: int
    detail: str = ""


class Step(Spec):
    """A pure map over rows: yields each row, changed or not, or a Cut or a Drop in its place."""

    random: ClassVar[bool] = False
    bytes_per_s: ClassVar[float]
    """Text that one core works through, for estimates; measured on the standard library's source, 2-core EPYC."""
    holds: ClassVar[bool] = False
    """True: it keeps every row in memory before it yields the first one."""
    judges: ClassVar[bool] = True
    """True: a drop says something of the data, so the stage's limits count it; False: it was asked for (a sample)."""

    def keeps(self, rows: float | None) -> float:
        """Share of the bytes that goes on, for estimates; 1 where only the data can tell. `rows`: how many come in, if known."""
        return 1.0

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        """`run` gives inputs by reference and the seed; nothing is written and nothing else is read."""
        raise NotImplementedError


# --- what several steps and the stage ask of a row ------------------------------------------------------


def content(record: Record) -> str:
    """All text of a row: the document, or every turn of a chat or a preference, one under the other."""
    if record.text:
        return record.text
    return "\n".join(spoken(message) for message in (*record.messages, *record.chosen, *record.rejected))


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


def is_python(record: Record) -> bool:
    """Whether a document is Python source: `meta.language` says so, else the suffix of its path."""
    if not record.text:
        return False
    language = record.meta.get("language")
    return language == "python" if language else str(record.meta.get("path", record.id)).endswith((".py", ".pyi"))


def near_clusters(texts: Iterable[str], threshold: float, seed: int = 0) -> list[int]:
    """For each text the number of the first one of its cluster of near-duplicates: Jaccard of word 5-grams, as `minhash`."""
    from modelwright.methods.steps._near import clusters, shingle

    return clusters(shingle(texts, 5), threshold, seed=seed)[0]
