"""Exact duplicates: drops a row whose text was seen before.

Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv:2107.06499 (exact matches); the
normalised form as in CCNet, Wenzek et al. 2020, arXiv:1911.00359, section 3.1 (lower case, no punctuation), digits kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Drop, Step, identity

_WORDS = re.compile(r"\w+|[\x00-\x02]")


class ExactDedup(Step):
    """The first of equal rows stays. Metadata does not count."""

    bytes_per_s: ClassVar[float] = 400e6

    kind: Literal["exact_dedup"] = "exact_dedup"
    by: Literal["text", "words"] = Field("text", examples=["words"])
    """What must be equal: every character, or only the words in lower case (also finds copies with other spacing). Default: the
    one that can never remove two different rows."""

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        seen: dict[bytes, str] = {}
        for record in rows:
            text = identity(record)
            if self.by == "words":
                text = " ".join(_WORDS.findall(text.lower()))
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            if digest in seen:
                yield Drop(record, "exact duplicate", f"of {seen[digest]}")
            else:
                seen[digest] = record.id
                yield record
