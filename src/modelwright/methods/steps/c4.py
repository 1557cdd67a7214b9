"""C4: keeps the lines of a page that read like sentences, and the pages that have enough of them.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21, 20-074,
section 2.2, https://jmlr.org/papers/v21/20-074.html, in the order of datatrove's filter; the rule on paragraphs is mC4's, Xue et
al. 2021, arXiv:2010.11934, section 3.1. How sentences are counted: `_sentences.py`. C4 also removed pages with words of a list,
pages that are not English, and repeated spans: these are steps of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PrivateAttr

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Bound, Cut, Drop, Measure, Measuring, Numbers, is_python
from modelwright.methods.steps._cuts import Losses
from modelwright.methods.steps._sentences import sentences

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_ENDS = (".", "?", "!", '"', "'")
_LOREM, _CURLY = "lorem ipsum", "curly brackets"


class _Page(NamedTuple):
    """What the rules for lines make of a document."""

    paragraphs: int
    lines: list[str]
    losses: Losses
    fault: str = ""
    """Why the whole of it goes, and for which line."""
    line: str = ""


class C4(Measuring):
    """Lines are cut, documents dropped; source code and chats pass. Empty lines and the spaces around lines go too."""

    bytes_per_s: ClassVar[float] = 20e6
    published: ClassVar[str] = "Raffel et al. 2020, JMLR 21, 20-074, section 2.2"
    advice: ClassVar[Advice] = Advice("web pages in English", "code, lists, verse, or text whose lines are wrapped")

    kind: Literal["c4"] = "c4"
    terminal_punctuation: bool = Field(True, examples=[False])
    """Whether a line must end in a full stop, question mark, exclamation mark or quote, and not in `...`. Default: section 2.2;
    FineWeb turned it off, it removes most of a page."""
    min_line_words: int = Field(3, ge=0, examples=[20])
    """Words a line must have; raising it cuts headings and captions. Default: datatrove's, which FineWeb ran; the code that made
    C4 has 5."""
    max_word_chars: int = Field(1000, ge=1, examples=[7])
    """Characters of a line's longest word; lowering it cuts encoded data. Default: the code that made C4."""
    citations: bool = Field(False, examples=[True])
    """Whether Wikipedia's marks (`[1]`, `[edit]`, `[citation needed]`) may stay. Default: they are cut, as in C4's code."""
    javascript: bool = Field(False, examples=[True])
    """Whether lines may stay that name JavaScript: most ask to turn it on. Default: section 2.2."""
    policies: bool = Field(False, examples=[True])
    """Whether lines may stay that name terms of use, a privacy policy or cookies. Default: section 2.2."""
    lorem_ipsum: bool = Field(False, examples=[True])
    """Whether documents may stay that have `lorem ipsum` in a line. Default: section 2.2."""
    curly_brackets: bool = Field(False, examples=[True])
    """Whether documents may stay that have `{` in a line, which is mostly code. Default: section 2.2."""
    min_sentences: int = Field(5, ge=0, examples=[40])
    """Sentences that the lines that stay must have; raising it drops short pages. Default: datatrove's; the code that made
    C4 has 3."""
    min_paragraphs: int = Field(0, ge=0, examples=[2])
    """Long lines that a document must have before any is cut; raising it drops all but essays. mC4 has 3. Default: off, as in
    C4."""
    min_paragraph_chars: int = Field(200, ge=1, examples=[1000])
    """Characters from which a line is a long one. Default: mC4's."""

    def unused(self, context: object) -> dict[str, str]:
        return {} if self.min_paragraphs else {"min_paragraph_chars": "`min_paragraphs` is 0: no document needs long lines"}

    _pages: dict[str, _Page] = PrivateAttr(default_factory=dict)
    """Of the texts that were measured last: their lines are not looked at twice."""

    def measured_by(self, run: Run) -> dict[str, Any]:
        fields = type(self).model_fields.keys() - {"kind", "min_sentences", "min_paragraphs"}
        return {"name": "c4", "counts": bool(self.min_sentences), **{name: getattr(self, name) for name in sorted(fields)}}

    def reads(self, record: Record) -> bool:
        return bool(record.text) and not is_python(record)

    def measurer(self, run: Run) -> Measure:
        import numpy as np

        def measure(rows: Sequence[Record]) -> Numbers:
            self._pages = {record.text: self._page(record.text) for record in rows}
            pages = [self._pages[record.text] for record in rows]
            return {
                "paragraphs": np.array([page.paragraphs for page in pages]),
                "lorem_ipsum": np.array([int(page.fault == _LOREM) for page in pages]),
                "curly_brackets": np.array([int(page.fault == _CURLY) for page in pages]),
                "sentences": np.array([sum(map(sentences, page.lines)) if self.min_sentences else 0 for page in pages]),
            }

        return measure

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        import numpy as np

        found = {f"c4: {fault}": self._without(fault, numbers) for fault in (_LOREM, _CURLY)}
        if self.min_paragraphs:
            paragraphs = self.at_least("long lines", numbers["paragraphs"], "min_paragraphs")
            found = {"c4: too few paragraphs": paragraphs, **found}
        if self.min_sentences:
            whole_D = np.where(numbers["lorem_ipsum"] + numbers["curly_brackets"], np.nan, numbers["sentences"])
            found["c4: too few sentences"] = self.at_least("sentences", whole_D, "min_sentences")
        return found

    def _without(self, fault: str, numbers: Numbers) -> Bound:
        field = fault.replace(" ", "_")
        return Bound(f"has {fault}", numbers[field], -math.inf, math.inf if getattr(self, field) else 0, field)

    def verdicts(self, rows: Sequence[Record], numbers: Numbers, bounds: Mapping[str, Bound]) -> Iterator[Record | Cut | Drop]:
        for result in super().verdicts(rows, numbers, bounds):
            record = result.record if isinstance(result, Drop) else result
            assert isinstance(record, Record)
            if not isinstance(result, Drop):
                page = self._pages.get(record.text) or self._page(record.text)
                yield page.losses.row(record, replace(record, text="\n".join(page.lines)))
            elif result.reason in (f"c4: {_LOREM}", f"c4: {_CURLY}"):
                yield result._replace(detail=(self._pages.get(record.text) or self._page(record.text)).line[:100])
            else:
                yield result

    def _page(self, text: str) -> _Page:
        lines = text.splitlines()
        paragraphs = sum(len(line) >= self.min_paragraph_chars for line in lines)
        losses = Losses("c4")
        kept: list[str] = []
        for line in filter(None, map(str.strip, lines)):
            words = line.split()
            if len(line) > self.max_word_chars and any(len(word) > self.max_word_chars for word in words):
                losses.add("lines with a word too long", 1, len(line))
                continue
            bare = line if self.citations or "[" not in line else losses.sub("citations", _CITATION, "", line)
            fault, whole_page = self._fault(bare, len(words))
            if whole_page:
                return _Page(paragraphs, [], losses, fault, bare)
            if fault:
                losses.add(fault, 1, len(bare))
            else:
                kept.append(bare)
        return _Page(paragraphs, kept, losses)

    def _fault(self, line: str, words: int) -> tuple[str, bool]:
        """What is wrong with a line, and whether the whole page goes for it."""
        if self.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            return "lines that do not end a sentence", False
        if words < self.min_line_words:
            return "lines of few words", False
        low = line.lower()
        if not self.lorem_ipsum and "lorem ipsum" in low:
            return _LOREM, True
        if not self.javascript and "javascript" in low:
            return "lines that name JavaScript", False
        if not self.curly_brackets and "{" in line:
            return _CURLY, True
        if not self.policies and any(phrase in low for phrase in _POLICIES):
            return "lines that name a policy", False
        return "", False
