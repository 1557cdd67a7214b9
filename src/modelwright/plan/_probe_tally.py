"""What is counted of every row that is read, and the sample of rows that is kept to be looked at closely.

The sample: Vitter 1985, "Random sampling with a reservoir", algorithm R, https://doi.org/10.1145/3147.3165: each row is as likely
as any other, however many come.
"""

from __future__ import annotations

import itertools
from collections import Counter
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple

from modelwright.core.record import Message, Record
from modelwright.methods.steps import content, identity
from modelwright.plan._probe_facts import SAMPLES, Share, clip
from modelwright.plan._probe_labels import WORDS, same_sides
from modelwright.plan._probe_read import UNFIT, Fault, Looked
from modelwright.plan._probe_verify import BESIDE, case

KEPT_CHARS = 20_000
"""Of each text of the sample; longer ones are cut, so that a sample of books takes 80 MB at most."""
KEPT_ITEMS = 50
"""Of each list and object of these."""
COMPARED_ROWS = 400_000
"""Rows whose hashes are kept to find copies, 100 MB; what comes after is compared with these."""
LINES, LINE_CHARS = 20, 300
"""A document of so many lines, none of them empty and as short on average, may be rows."""


class Kept(NamedTuple):
    """A row of the sample."""

    row: Looked
    chars: int
    """Of its whole text."""


class Tally:
    """Takes every row, in order."""

    def __init__(self, sample: int, seed: int, several: bool) -> None:
        self._most, self._draw, self._several = sample, Random(seed), several
        self.kept: list[Kept] = []
        self.rows: Counter[int] = Counter()
        """By file."""
        self.seen = self.empty = self.same_sides = self.copies = 0
        self.faults: Counter[str] = Counter()
        self.copied: list[str] = []
        self.rows_again: Counter[tuple[int, int]] = Counter()
        """(file that had a row first, file that has it too) -> rows; case and punctuation aside."""
        self.prompts_again: Counter[tuple[int, int]] = Counter()
        self.listed: list[str] = []
        """Documents whose lines look like rows."""
        self._places: dict[str, list[str]] = {}
        self._hashes: set[int] = set()
        self._first: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def fault(self, fault: Fault) -> None:
        self.faults[fault.reason] += 1
        places = self._places.setdefault(fault.reason, [])
        if len(places) < SAMPLES:
            places.append(clip(f"{fault.place}: {fault.detail}"))

    def broken(self) -> tuple[Share, ...]:
        of = self.seen + self.faults.total() - self.faults[UNFIT]
        return tuple(Share(reason, count, of, tuple(self._places[reason])) for reason, count in self.faults.most_common())

    def row(self, row: Looked) -> int:
        """How many characters it has."""
        record = as_record(row)
        text = content(record)
        self.rows[row.file] += 1
        self.seen += 1
        self.empty += not text.strip()
        self.same_sides += row.record is None and same_sides(row.raw)
        self._compare(row, record, text)
        if row.record is not None and row.record.text and len(self.listed) < SAMPLES and _is_list(row.raw, text):
            self.listed.append(row.place)
        kept = Kept(row, len(text))
        if len(self.kept) < self._most:
            self.kept.append(_cut(kept))
        elif (at := self._draw.randrange(self.seen)) < self._most:
            self.kept[at] = _cut(kept)
        return len(text)

    def _compare(self, row: Looked, record: Record, text: str) -> None:
        if (key := _hash(identity(record))) in self._hashes:
            self.copies += 1
            if len(self.copied) < SAMPLES:
                self.copied.append(clip(text))
        keep = len(self._hashes) < COMPARED_ROWS
        if keep:
            self._hashes.add(key)
        if not self._several:
            return
        asked = case(row.place, row.raw, row.record)
        for first, again, words in zip(
            self._first, (self.rows_again, self.prompts_again), (text, asked.question if asked else ""), strict=True
        ):
            if words:
                form = _hash(" ".join(WORDS.findall(words.lower())))
                home = first.setdefault(form, row.file) if keep else first.get(form, row.file)
                if home != row.file:
                    again[home, row.file] += 1


def as_record(row: Looked) -> Record:
    """The row as a record; of one that fits no layout its texts as a document."""
    if row.record is not None:
        return row.record
    listed = (value if isinstance(value, list) else [value] for value in row.raw.values())
    texts = [value for values in listed for value in values if isinstance(value, str)]
    return Record(row.place, text="\n".join(texts) or " ".join(map(str, row.raw.values())))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _is_list(raw: dict[str, object], text: str) -> bool:
    """Whether a plain text is one short line after the other."""
    lines = text.strip().split("\n")
    return set(raw) == {"text"} and len(lines) >= LINES and all(map(str.strip, lines)) and len(text) <= LINE_CHARS * len(lines)


def _cut(kept: Kept) -> Kept:
    """With texts that are not too long to keep."""
    row, record = kept.row, kept.row.record
    raw = {key: _short(value) for key, value in row.raw.items()}
    if record is not None:  # what its turns are made of is kept there
        raw = {key: value for key, value in raw.items() if not isinstance(value, list) or key in BESIDE}
        messages, chosen, rejected = (list(map(_cut_turn, side)) for side in (record.messages, record.chosen, record.rejected))
        record = Record(record.id, record.text[:KEPT_CHARS], messages, chosen, rejected, record.meta)
    return kept._replace(row=row._replace(raw=raw, record=record))


def _short(value: Any, inner: bool = False) -> Any:
    """A value without what is long or lies deep in it."""
    if isinstance(value, str):
        return value[:KEPT_CHARS]
    if isinstance(value, dict):
        return {} if inner else {key: _short(part, True) for key, part in itertools.islice(value.items(), KEPT_ITEMS)}
    if isinstance(value, list):
        return [] if inner else [_short(part, True) for part in value[:KEPT_ITEMS]]
    return value


def _cut_turn(turn: Message) -> Message:
    return {key: value[:KEPT_CHARS] if isinstance(value, str) else value for key, value in turn.items()}
