"""Filters of web text on one core: all of Gopher's and FineWeb's statistics in our `gopher` step, from JSON lines to JSON
lines, on 200 MB, against datatrove 0.10.1's two Gopher filters on documents in memory, on a 30 MB sample of it. What counts as
a word differs: ours stands between spaces, datatrove's is spaCy's, as ours is with `words: datatrove`, whose verdicts are held
against both Gopher filters and FineWeb's; words and documents that differ are listed. Processor seconds; imports, and compiled
code read from its cache, are told apart. The text is the machine's own manual pages, documentation and Python packages (whose
sources `gopher` passes on unjudged only where they are marked as such, which these rows are not).

`python -m benchmarks filters_vs_datatrove [--megabytes 200] [--peer-megabytes 30] [--repeats 3]`
"""

from __future__ import annotations

from benchmarks import _curation


def main() -> dict[str, float]:
    """Print the table; returns our rate over theirs."""
    steps = {kind: {"kind": kind, "words": "datatrove"} for kind in ("gopher", "fineweb")}
    return _curation.against("filters", {"kind": "gopher"}, steps)
