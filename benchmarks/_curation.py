"""Curation beside datatrove, on one core: megabytes of text a processor second, of fresh processes, from rows to rows."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._peers import python_of, said
from benchmarks._web_text import write

PEER = ("datatrove", "datatrove==0.10.1", "xxhash<4", "spacy", "nltk", "regex", "tldextract", "tokenizers", "orjson", "fasteners")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def against(job: str, own: dict[str, Any], compatible: dict[str, dict[str, Any]]) -> dict[str, float]:
    """`job`: of `_datatrove.py`; `own`: the step that does the same; `compatible`: the steps that decide as datatrove does, by
    the names that the job gives what it keeps. The first of these is timed."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {sys.argv[1] if len(sys.argv) > 1 else ''}")
    parser.add_argument("--megabytes", type=float, default=200, help="of text for ours")
    parser.add_argument("--peer-megabytes", type=float, default=30, help="of text, a sample of it, for datatrove")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours; the median is told")
    given = parser.parse_args(sys.argv[2:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small = folder / "large" / "rows.jsonl", folder / "small" / "rows.jsonl"
        for path in (large, small):
            path.parent.mkdir()
        rows, size = write(large, int(given.megabytes * 1e6))
        few, less = write(small, int(given.peer_megabytes * 1e6))
        first, python = next(iter(compatible)), python_of(*PEER)
        ours, like = ([_ours(step, large) for _ in range(given.repeats // 2)] for step in (own, compatible[first]))
        theirs = said([python, str(Path(__file__).with_name("_datatrove.py")), job, str(small), str(folder / "theirs")])
        for runs, step in ((ours, own), (like, compatible[first])):  # before and after theirs: a machine's speed changes
            runs += [_ours(step, large) for _ in range(given.repeats - given.repeats // 2)]
        alike = _agreed(_ours(own, small)["kept"], theirs["kept"][first], few)
        kept = {name: _ours(step, small)["kept"] for name, step in compatible.items()}
        _tell_words(job, small, Path(theirs["words"]))
    rate, same = (size / 1e6 / median(run["seconds"] for run in runs) for runs in (ours, like))
    peer = less / 1e6 / theirs["seconds"]
    print(f"modelwright             {size / 1e6:7.1f} MB, {rows} documents: {rate:8.2f} MB/s, {ours[0]['rows']} stay")
    print(f"modelwright, compatible {size / 1e6:7.1f} MB, {rows} documents: {same:8.2f} MB/s, {like[0]['rows']} stay")
    loading = " and ".join(f"{runs[0]['loading_s']:.2f}" for runs in (ours, like))
    print(f"            before: {loading} s of imports and of compiled code read from the cache")
    print(f"datatrove               {less / 1e6:7.1f} MB, {few} documents: {peer:8.2f} MB/s, {len(theirs['kept'][first])} stay")
    print(f"of these {few} documents {alike:.2%} are judged alike by ours as it is")
    for name, found in kept.items():
        print(f"{name} in compatible mode: {len(found)} stay, in datatrove's {len(theirs['kept'][name])}")
        for document in sorted(set(found) ^ set(theirs["kept"][name])):
            print(f"  judged otherwise: {document} stays in {'ours' if document in found else 'theirs'}")
    return {
        "speed": round(rate / peer, 1),
        "speed_compatible": round(same / peer, 1),
        "agreement": round(min(_agreed(found, theirs["kept"][name], few) for name, found in kept.items()), 4),
        "agreement_own": round(alike, 4),
        "mb_per_s": round(rate, 2),
        "mb_per_s_compatible": round(same, 2),
        "mb_per_s_peer": round(peer, 3),
    }


def _agreed(ours: list[str], theirs: list[str], documents: int) -> float:
    """Share of documents that stay in both or in neither."""
    return 1 - len(set(ours) ^ set(theirs)) / documents


def _tell_words(job: str, rows: Path, theirs: Path) -> None:
    """Where words are split otherwise, in compatible mode."""
    from modelwright.text.datatrove import words_of
    from modelwright.text.datatrove_near import normal_words

    split = normal_words if job == "dedup" else words_of
    count, documents = 0, 0
    with rows.open("rb") as ours, theirs.open("rb") as lines:
        for row, line in zip(map(json.loads, ours), lines, strict=True):
            found, true = split(row["text"]), json.loads(line)
            count += len(true)
            if found != true:
                documents += 1
                place = next((i for i, pair in enumerate(zip(found, true, strict=False)) if pair[0] != pair[1]), 0)
                print(f"  split otherwise: {row['id']}: {found[place : place + 4]} in ours, {true[place : place + 4]} in theirs")
    print(f"{count} words of theirs, other ones in {documents} documents")


def _ours(step: dict[str, Any], path: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks._curation", json.dumps(step), str(path)]
    return said(command, env={**os.environ, **ONE_THREAD}, cwd=Path(__file__).parents[1])


def _measured(step: dict[str, Any], path: Path) -> dict[str, Any]:
    """In a process of its own."""
    start = time.process_time()
    from modelwright.core.events import Log
    from modelwright.core.stage import STAGES, Input, Run

    def curated(rows: Path, out: Path) -> dict[str, Any]:
        out.mkdir()
        tree = {"kind": "curate", "source": {"kind": "jsonl", "path": str(rows)}, "steps": [step]}
        stage: Any = STAGES.build({**tree, "limits": {"max_dropped_frac": 1.0}})
        ref = str(rows)
        return stage.run(Run(out, {ref: Input(ref, "path", rows)}, 0, Log(None), workers=1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with path.open("rb") as whole, (folder / "head.jsonl").open("wb") as head:
            head.writelines(line for line, _ in zip(whole, range(40), strict=False))
        curated(folder / "head.jsonl", folder / "warm")
        loading_s = time.process_time() - start
        start = time.process_time()
        stats = curated(path, folder / "out")
        seconds = time.process_time() - start
        lines = (folder / "out" / "all.jsonl").read_bytes().splitlines()
    names = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
    kept = [names[int(json.loads(line)["id"].rpartition(":")[2]) - 1] for line in lines]  # a row's name ends in its line
    return {"seconds": seconds, "loading_s": loading_s, "rows": stats["rows_out"], "kept": kept}


if __name__ == "__main__":
    print(json.dumps(_measured(json.loads(sys.argv[1]), Path(sys.argv[2]))))
