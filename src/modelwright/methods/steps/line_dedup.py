"""Line duplicates: cuts lines or paragraphs that came before, in an earlier document or in the same one.

Source: Wenzek et al. 2020, "CCNet: Extracting High Quality Monolingual Datasets from Web Crawl Data", arXiv:1911.00359, section
3.1 (64 bits of each paragraph's hash, all later ones removed; its paragraphs are lines). What is hashed: `text/lines.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Cut, Numbers, Why, is_python

_ENDS = {"lines": re.compile(r"(\n)"), "paragraphs": re.compile(r"(\n[^\S\n]*\n\s*)")}


class LineDedup(Choosing):
    """The first of equal lines stays; a document of which nothing is left goes. Source code and chats pass, and are not compared
    with. Case, digits, spaces and punctuation do not count."""

    bytes_per_s: ClassVar[float] = 90e6
    advice: ClassVar[Advice] = Advice(
        "web pages of the same sites", "verse, plays, lists or text that was wrapped into short lines"
    )

    kind: Literal["line_dedup"] = "line_dedup"
    by: Literal["lines", "paragraphs"] = Field("lines", examples=["paragraphs"])
    """What is compared and cut: lines, or what stands between empty lines. Default: lines, as CCNet."""
    min_chars: int = Field(1, ge=1, examples=[200])
    """Characters from which a line or paragraph is compared at all; raising it keeps headings and `Yes.` wherever they come.
    Default: all with a letter or digit, as CCNet."""

    def waits(self) -> bool:
        return False

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        from modelwright.text import Texts
        from modelwright.text.lines import hashes

        pieces = [self._pieces(record)[::2] for record in rows]
        hash_L = hashes(Texts.of(piece if len(piece) >= self.min_chars else "" for row in pieces for piece in row))
        hash_D = np.empty(len(rows), object)
        ends = np.cumsum([len(row) for row in pieces])
        for row, end in enumerate(ends.tolist()):
            hash_D[row] = hash_L[end - len(pieces[row]) : end]
        return {"hashes": hash_D}

    def _pieces(self, record: Record) -> list[str]:
        """Lines and what stands between them, by turns."""
        return _ENDS[self.by].split(record.text) if record.text and not is_python(record) else []

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return 32 * bytes_in / 40  # a hash for each line, in a table that is half empty

    def chooser(self, run: Run) -> Choice:
        from modelwright.text.lines import Seen

        seen = Seen()

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why | Cut]:
            found: dict[int, Why | Cut] = {}
            for row, hash_L in enumerate(numbers["hashes"]):
                before_L = seen.came_before(hash_L)
                if before_L.any():
                    found[row] = self._without(rows[row], before_L.tolist())
            return found

        return choose

    def _without(self, record: Record, before: list[bool]) -> Why | Cut:
        pieces = [*self._pieces(record), ""]
        kept = "".join(pieces[2 * i] + pieces[2 * i + 1] for i, gone in enumerate(before) if not gone)
        if not kept.strip():
            return Why("line dedup: nothing is left", f"{sum(before)} {self.by} came before")
        return Cut(replace(record, text=kept), f"line dedup: {self.by}", sum(before), len(record.text) - len(kept))
