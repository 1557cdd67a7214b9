"""Exact duplicates: drops a row whose text was seen before.

Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv:2107.06499 (exact matches); the
normalised form as in CCNet, Wenzek et al. 2020, arXiv:1911.00359, section 3.1 (lower case, no punctuation), digits kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Numbers, Why, identity

_WORDS = re.compile(r"\w+|[\x00-\x02]")


class ExactDedup(Choosing):
    """The first of equal rows stays. Metadata does not count."""

    bytes_per_s: ClassVar[float] = 400e6

    kind: Literal["exact_dedup"] = "exact_dedup"
    by: Literal["text", "words"] = Field("text", examples=["words"])
    """What must be equal: every character, or only the words in lower case (also finds copies with other spacing). Default: the
    one that can never remove two different rows."""

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        digests = [blake2b(self._form(record).encode("utf-8", "surrogatepass"), digest_size=16).digest() for record in rows]
        ids = np.empty(len(rows), object)
        ids[:] = [record.id for record in rows]
        return {"digest": np.frombuffer(b"".join(digests), np.uint64).reshape(len(rows), 2), "id": ids}

    def _form(self, record: Record) -> str:
        text = identity(record)
        return text if self.by == "text" else " ".join(_WORDS.findall(text.lower()))

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return 260 * rows  # a digest and the first row's id, in a table

    def waits(self) -> bool:
        return False

    def chooser(self, run: Run) -> Choice:
        seen: dict[bytes, str] = {}

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            gone = {}
            for index, (digest, id_) in enumerate(zip(map(bytes, numbers["digest"]), numbers["id"], strict=True)):
                if (first := seen.get(digest)) is not None:
                    gone[index] = Why("exact duplicate", f"of {first}")
                else:
                    seen[digest] = id_
            return gone

        return choose
