"""Run by an interpreter that has datatrove: `python _datatrove.py dedup|filters ROWS.jsonl FOLDER`; prints one JSON object.

Processor seconds are of this process alone, after imports and after one small document, so that nothing is loaded in them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def documents(path: str) -> list[Any]:
    from datatrove.data import Document

    rows = map(json.loads, Path(path).read_bytes().splitlines())
    return [Document(text=row["text"], id=row["id"]) for row in rows]


def dedup(path: str, folder: Path) -> dict[str, Any]:
    """The four stages of its MinHash pipeline with FineWeb's settings, on one task."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import simplify_text

    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
    MinhashDedupSignature(str(folder / "warm"), config).get_shingles("the spaCy tokenizer is loaded now, and it has seen words")
    reader = [JsonlReader(str(Path(path).parent), glob_pattern=Path(path).name)]
    signatures, buckets, removed = (str(folder / name) for name in ("signatures", "buckets", "removed"))
    stages: list[tuple[list[Any], int]] = [
        ([*reader, MinhashDedupSignature(signatures, config)], 1),
        ([MinhashDedupBuckets(signatures, buckets, config=config)], 14),
        ([MinhashDedupCluster(buckets, removed, config=config)], 1),
        ([*reader, MinhashDedupFilter(removed), JsonlWriter(str(folder / "kept"), compression=None)], 1),
    ]
    start = time.process_time()
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(folder / f"log-{number}")).run()
    seconds = time.process_time() - start
    kept = [json.loads(line)["id"] for line in (folder / "kept" / "00000.jsonl").read_bytes().splitlines()]
    signature = MinhashDedupSignature(str(folder / "words"), config)
    words = (signature.word_tokenizer.word_tokenize(simplify_text(document.text)) for document in documents(path))
    return {"seconds": seconds, "kept": {"minhash": kept}, "words": _written(words, folder)}


def _written(words: Iterable[list[str]], folder: Path) -> str:
    """A document a line, for a look at how words differ; not timed."""
    place = folder / "words.jsonl"
    place.parent.mkdir(exist_ok=True)
    with place.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(found) + "\n" for found in words)
    return str(place)


def filters(path: str, folder: Path) -> dict[str, Any]:
    """Its two Gopher filters, each on every document: the second would else see only what the first lets through."""
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.text import split_into_words

    judges = [GopherQualityFilter(), GopherRepetitionFilter()]
    found = documents(path)
    for judge in judges:
        judge.filter(found[0])
    start = time.process_time()
    verdicts = [[judge.filter(document) for judge in judges] for document in found]
    seconds = time.process_time() - start
    passed = [document.id for document, said in zip(found, verdicts, strict=True) if all(verdict is True for verdict in said)]
    fine = FineWebQualityFilter()  # its verdicts count, not its time
    also = [document.id for document in found if fine.filter(document) is True]
    words = (split_into_words(document.text) for document in found)
    return {"seconds": seconds, "kept": {"gopher": passed, "fineweb": also}, "words": _written(words, folder)}


if __name__ == "__main__":
    print(json.dumps({"dedup": dedup, "filters": filters}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))
