"""Prose judged by bounds on its statistics: what `gopher` and `fineweb` share, numbers and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Measure, Measuring, Numbers, is_python


class Prose(Measuring):
    """Source code and chats pass."""

    words: Literal["unicode", "datatrove"] = Field("unicode", examples=["datatrove"])
    """What words, lines and paragraphs are. `unicode`: words stand between spaces, in scripts without spaces each letter is one;
    `text/stats.py`. `datatrove`: as datatrove 0.10.1 counts them, so that verdicts are its own: words are spaCy's, every mark of
    punctuation is one; a third of the speed; `text/datatrove.py`. Default: right in any script."""

    def measured_by(self, run: Run) -> dict[str, Any]:
        return {"name": "prose", "words": self.words}

    def reads(self, record: Record) -> bool:
        return bool(record.text) and not is_python(record)

    def measurer(self, run: Run) -> Measure:
        from modelwright.text import Texts, datatrove, stats

        counted = datatrove.counted if self.words == "datatrove" else stats.counted

        def measure(rows: Sequence[Record]) -> Numbers:
            return counted(Texts.of(record.text for record in rows))

        return measure


def share(part_D: Any, whole_D: Any) -> Any:
    """Nothing of nothing is nothing."""
    import numpy as np

    return part_D / np.maximum(whole_D, 1)
