"""Near-duplicates on one core, from JSON lines to JSON lines: our `minhash` step on 200 MB against the four stages of datatrove
0.10.1 on a 30 MB sample of it, both with FineWeb's 14 bands of 8 hashes over word 5-grams. Ours looks at every candidate pair's
exact similarity and keeps numbers and accents; datatrove's takes every candidate and does not; `words: datatrove` decides as
that does, with the same hashes, and words and documents that differ are listed. Processor seconds; imports, and compiled code
read from its cache, are told apart. The text is the machine's own manual pages, documentation and Python packages.

`python -m benchmarks dedup_vs_datatrove [--megabytes 200] [--peer-megabytes 30] [--repeats 3]`
"""

from __future__ import annotations

from benchmarks import _curation


def main() -> dict[str, float]:
    """Print the table; returns our rate over theirs."""
    return _curation.against("dedup", {"kind": "minhash"}, {"minhash": {"kind": "minhash", "words": "datatrove", "seed": 1}})
