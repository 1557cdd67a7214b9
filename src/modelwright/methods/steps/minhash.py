"""MinHash: drops near-duplicates, keeping the first of each cluster.

Sources: Broder 1997, "On the resemblance and containment of documents"; settings of Penedo et al. 2024, "FineWeb",
arXiv:2406.17557 (word 5-grams, 14 bands of 8 hashes). Candidates are verified by exact Jaccard similarity; see `text/near.py`.
datatrove's own way, to the document, is in `text/datatrove_near.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import HELD_NUMBERS, Choice, Choosing, Numbers, Why, content

if TYPE_CHECKING:
    from modelwright.text.near import Clusters

HELD_SETS = 4096
"""Documents whose shingles are remembered while pairs are compared."""


class MinHash(Choosing):
    """Documents that share most of their word n-grams with an earlier one go."""

    bytes_per_s: ClassVar[float] = 100e6
    advice: ClassVar[Advice] = Advice(
        "documents come from several versions, mirrors or templates", "rows are short questions that differ in one word by design"
    )

    kind: Literal["minhash"] = "minhash"
    words: Literal["unicode", "datatrove"] = Field("unicode", examples=["datatrove"])
    """What makes documents alike. `unicode`: words in any script, numbers and accents kept, pairs verified, the first kept.
    `datatrove`: as datatrove 0.10.1 has it, with its hashes: accents and punctuation removed, numbers 0, spaCy's words, pairs not
    verified, one of the largest cluster kept; a third of the speed. Default: loses nothing to chance."""
    threshold: float = Field(0.8, gt=0, le=1, examples=[0.3])
    """Jaccard similarity (0 to 1) from which two documents are the same; raising it keeps more. Default: what FineWeb's 14 bands
    of 8 find with 92 % probability."""
    ngram: int = Field(5, ge=1, le=50, examples=[1])
    """Words a shingle; longer ones see only longer copies. Default: FineWeb."""
    bands: int = Field(14, ge=1, le=256, examples=[1])
    """Groups of hashes; two documents are compared when they agree in one. More find more pairs, slower. Default: FineWeb."""
    rows: int = Field(8, ge=1, le=32, examples=[32])
    """Hashes a band; more compare fewer pairs and miss more. Default: FineWeb."""
    seed: int = Field(0, ge=0, examples=[1])
    """Seed of the hash functions: which pairs near the threshold are found. A field of its own, so that the recipe's seed can
    change and the corpus stay."""

    def unused(self, context: object) -> dict[str, str]:
        return {"threshold": "`words: datatrove` verifies no pair"} if self.words == "datatrove" else {}

    def measured_by(self, run: Run) -> dict[str, Any]:
        return {"name": "minhash", **self.model_dump(include={"words", "ngram", "bands", "rows", "seed"})}

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        from modelwright.text import Texts, datatrove_near, near

        signatures = datatrove_near.signatures if self.words == "datatrove" else near.signatures
        return signatures(Texts.of(map(content, rows)), self.ngram, self.bands, self.rows, self.seed).columns()

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return min(8 * (self.bands + 1) * rows, HELD_NUMBERS) + 100 * rows  # a band is sorted; a cluster for each document

    def chooser(self, run: Run) -> Choice:
        return self._choose

    def _choose(self, numbers: Numbers, rows: Sequence[Record]) -> Mapping[int, Why]:
        from modelwright.text import Texts, datatrove_near, near

        @lru_cache(maxsize=HELD_SETS)
        def set_of(row: int) -> Any:
            return near.shingle_set(Texts.of([content(rows[row])]), 0, self.ngram)

        bands, shingles = near.bands_of(numbers, self.bands), numbers["shingles"]
        if self.words == "datatrove":
            return _Gone(datatrove_near.clusters(bands, shingles), rows)
        return _Gone(near.clusters(bands, shingles, self.threshold, set_of), rows)


class _Gone(Mapping[int, Why]):
    """The rows that go, of which there may be millions."""

    def __init__(self, found: Clusters, rows: Sequence[Record]) -> None:
        self._found, self._rows = found, rows
        self._goes = found.goes().tobytes()

    def __len__(self) -> int:
        return sum(self._goes)

    def __iter__(self) -> Iterator[int]:
        return itertools.compress(itertools.count(), self._goes)

    def __getitem__(self, row: int) -> Why:
        if not self._goes[row]:
            raise KeyError(row)
        return Why("near duplicate", lambda: self._detail(row))

    def get(self, row: int, default: Any = None) -> Any:
        return self[row] if self._goes[row] else default

    def _detail(self, row: int) -> str:
        home, like, similarity = (column_D[row].item() for column_D in self._found)
        detail = f"like {self._rows[like].id}" + ("" if math.isnan(similarity) else f", Jaccard {similarity:.2f}")
        return detail + (f"; kept: {self._rows[home].id}" if home != like else "")
