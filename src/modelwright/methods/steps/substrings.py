"""Substrings: cuts long runs of words that came before, word by word the same, in any document.

Source: ExactSubstr, Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv:2107.06499, section 4.2
(50 tokens). Differs: words, whatever their case and the signs between them, instead of BPE tokens; the first occurrence stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Cut, Numbers, Why


class Substrings(Choosing):
    """Documents only: a chat without some of its words is no chat. Keeps some forty bytes in memory for each word of all rows."""

    bytes_per_s: ClassVar[float] = 40e6
    advice: ClassVar[Advice] = Advice(
        "pages that share notices, licences or quotations which duplicate removal leaves",
        "text in which each part must stay whole",
    )

    kind: Literal["substrings"] = "substrings"
    words: int = Field(50, ge=2, examples=[20])
    """Words that a repeated run has at least; raising it cuts less. Default: as ExactSubstr, in its tokens."""

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        from modelwright.text.suffix import words_at

        hashes = np.empty(len(rows), object)
        for i, record in enumerate(rows):
            hashes[i] = words_at(record.text).folded_W
        return {"words": hashes}

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return 40 * bytes_in / 6  # for each word, with the space behind it

    def chooser(self, run: Run) -> Choice:
        return self._cuts

    def _cuts(self, numbers: Numbers, rows: Sequence[Record]) -> Mapping[int, Why | Cut]:
        import numpy as np

        from modelwright.text.suffix import repeats

        start_D = np.concatenate([[0], np.cumsum([len(words) for words in numbers["words"]])]).astype(np.int64)
        gone_M = repeats(np.concatenate(list(numbers["words"])), start_D, self.words)
        found: dict[int, Why | Cut] = {}
        for row in np.unique(np.searchsorted(start_D, np.flatnonzero(gone_M), "right") - 1).tolist():
            found[row] = _without(rows[row], gone_M[start_D[row] : start_D[row + 1]])
        return found


def _without(record: Record, gone_W: Any) -> Why | Cut:
    """The row without these words, each taken up to where the next one begins."""
    import numpy as np

    from modelwright.text.suffix import words_at

    data = record.text.encode("utf-8", "surrogatepass")
    begin_W = np.append(words_at(record.text).begin_W, len(data))
    edges = np.flatnonzero(np.diff(gone_W, prepend=False, append=False)).tolist()
    parts, at = [], 0
    for first, stop in zip(edges[::2], edges[1::2], strict=True):
        parts.append(data[at : begin_W[first]])
        at = int(begin_W[stop])
    text = b"".join([*parts, data[at:]]).decode("utf-8", "surrogatepass")
    if gone_W.all():
        return Why("substrings: nothing is left", f"{len(gone_W)} words")
    kept = Record(record.id, text=text, meta=record.meta)
    return Cut(kept, "substrings", len(edges) // 2, len(record.text) - len(text))
