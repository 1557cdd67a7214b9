"""Rows that pitfall rules look at: what is made, and what lies in the user's own files, read once for all rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.execute import resolve_input
from modelwright.core.record import Record
from modelwright.core.steps import Step
from modelwright.methods.sources import open_records
from modelwright.methods.steps import content

SAMPLE_ROWS, MOST_ROWS, MOST_CHARS = 1000, 200_000, 200_000_000
"""Rows of each reference that are looked at, drawn from so many of its first ones: some seconds of reading."""


class Data:
    """By reference: a sample of its rows, and hashes of all of them."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._made = {step.name: step.artifact for step in steps if step.artifact is not None}
        self._parents = {parent.ref: parent for step in steps for parent in step.parents}
        self._samples: dict[str, list[Record]] = {}
        self._forms: dict[str, frozenset[bytes]] = {}

    def folders(self, step: Step) -> dict[str, Path]:
        """Of what is made: by reference, and by name those of all stages in order."""
        found = {parent.ref: self._made[parent.stage].path for parent in step.parents if parent.stage in self._made}
        return found | {name: artifact.path for name, artifact in self._made.items()}

    def sample(self, refs: Sequence[str]) -> list[Record]:
        """Some rows of each, all as likely; none of what is not made or cannot be read."""
        return [record for ref in refs for record in self._looked(ref)[0]]

    def forms(self, refs: Sequence[str]) -> frozenset[bytes]:
        """`form_of` all rows of these."""
        return frozenset().union(*(self._looked(ref)[1] for ref in refs))

    def _looked(self, ref: str) -> tuple[list[Record], frozenset[bytes]]:
        if ref not in self._samples:
            kept: list[Record] = []
            forms: set[bytes] = set()
            draw, chars = Random(0), 0
            try:
                for number, record in enumerate(islice(self._rows(ref), MOST_ROWS)):
                    forms.add(form_of(record))
                    if number < SAMPLE_ROWS:
                        kept.append(record)
                    elif (at := draw.randrange(number + 1)) < SAMPLE_ROWS:
                        kept[at] = record
                    if (chars := chars + len(content(record))) > MOST_CHARS:
                        break
            except UserError:
                pass  # the stage's own checks say what is wrong with them
            self._samples[ref], self._forms[ref] = kept, frozenset(forms)
        return self._samples[ref], self._forms[ref]

    def _rows(self, ref: str) -> Iterator[Record]:
        parent = self._parents[ref]
        if parent.path is None if parent.stage is None else parent.stage not in self._made:
            return iter(())
        return open_records(resolve_input(parent, self._made), Log(None), "drop")


def form_of(record: Record) -> bytes:
    """Equal for rows that differ in case and white space alone."""
    words = " ".join(content(record).lower().split())
    return blake2b(words.encode("utf-8", "surrogatepass"), digest_size=12).digest()
