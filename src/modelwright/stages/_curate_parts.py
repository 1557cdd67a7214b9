"""The files that a curation leaves, and how long their rows are."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from modelwright.core.stage import Run
from modelwright.stages._curate_rows import Rows

Measured = tuple["array[int]", int]
"""Characters of each row, and bytes of all."""


class Parts(ExitStack):
    """The files of an artifact while they are written, all at once."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        super().__init__()
        self._files = {name: self.enter_context((run.out / f"{name}.jsonl").open("wb")) for name in names}
        self.measured: dict[str, Measured] = {name: (array("q"), 0) for name in names}

    def write(self, name: str, rows: Rows) -> None:
        self._files[name].write(rows.lines())
        lengths, total = self.measured[name]
        lengths.extend(rows.chars)
        self.measured[name] = lengths, total + sum(rows.sizes)


def histogram(lengths: array[int]) -> dict[str, Any]:
    """Rows by length in characters; bin i holds lengths from edges[i] up to edges[i + 1], which are powers of two."""
    import numpy as np

    if not lengths:
        return {"unit": "chars", "edges": [], "counts": []}
    ordered = np.sort(np.frombuffer(lengths, np.int64))
    top = max(1, math.ceil(math.log2(int(ordered[-1]) + 1)))
    edges = [0, *(2**power for power in range(top + 1))]
    return {
        "unit": "chars",
        "edges": edges,
        "counts": np.diff(np.searchsorted(ordered, edges)).tolist(),
        "min": int(ordered[0]),
        "median": int(ordered[len(ordered) // 2]),
        "mean": round(int(ordered.sum()) / len(ordered), 1),
        "max": int(ordered[-1]),
    }
