"""Memory of a curation (Gopher's filters, MinHash, a split) of more text than fits in it: peaks of the command and of its
workers for generated text of several sizes, in one packed file. 20 GB are to stay within 2 GB.

`python -m benchmarks curate_20gb [--gigabytes 1 20] [--workers 2]`: 20 GB take half an hour and 65 GB of the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = ["gopher", "minhash"]
WORDS, PARAGRAPHS, DOCUMENT_PARAGRAPHS = 5000, 20_000, 8
COPY_SHARE = 0.1
"""Documents that are the one before with another paragraph at the end."""
LIMIT_BYTES = 2e9


def paragraphs(chance: random.Random) -> list[str]:
    """Some 500 characters each, with stop words."""
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(WORDS)] + ["the", "of", "and", "to"] * 400
    return [" ".join(chance.choices(words, k=85)).capitalize() + ".\\n\\n" for _ in range(PARAGRAPHS)]


def generate(path: Path, bytes_: float) -> int:
    """Packed JSON lines of documents, so that the disk has room for what the run needs; returns how many."""
    import zstandard

    chance = random.Random(0)
    known = paragraphs(chance)
    written = rows = 0
    parts: list[str] = []
    with zstandard.open(path, "wt", cctx=zstandard.ZstdCompressor(level=1, threads=2), encoding="utf-8") as file:
        while written < bytes_:
            if not parts or chance.random() >= COPY_SHARE:
                parts, more = chance.choices(known, k=DOCUMENT_PARAGRAPHS), []
            else:
                more = [chance.choice(known)]
            written += file.write(f'{{"id": "d{rows}", "text": "{"".join([*parts, *more])}"}}\n')
            rows += 1
    return rows


def curated(path: Path, out: Path, workers: int) -> dict[str, Any]:
    """In this process; peaks of it and of the largest worker."""
    from modelwright.core.events import Log
    from modelwright.core.measure import Meter
    from modelwright.core.stage import STAGES, Input, Run

    spec = {"kind": "curate", "source": {"kind": "jsonl", "path": str(path)}, "steps": STEPS, "split": {"test": 0.01}}
    stage: Any = STAGES.build(spec)
    meter = Meter()
    inputs = {str(path): Input(str(path), "path", path)}
    stats = stage.run(Run(out, inputs, 0, Log(None), workers=workers, memory_bytes=LIMIT_BYTES))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "command_bytes": meter.peak_bytes() - Meter.workers_bytes,
        "worker_bytes": Meter.workers_bytes / max(workers, 1),
        "command_cpu_s": round(used[0].ru_utime + used[0].ru_stime, 1),
        "workers_cpu_s": round(used[1].ru_utime + used[1].ru_stime, 1),
        "seconds": round(meter.seconds(), 1),
        "rows_out": stats["rows_out"],
    }


def main() -> dict[str, float]:
    """Print the table; returns the peak of all processes for the largest input, in GB."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks curate_20gb")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0, 20.0])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(sys.argv[2:])
    print(f"{'text':>8}{'documents':>11}{'command':>10}{'a worker':>10}{'together':>10}{'seconds':>9}{'CPU s':>14}")
    peak = 0.0
    for size in given.gigabytes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = time.monotonic()
            rows = generate(folder / "rows.jsonl.zst", size * 1e9)
            made_s = time.monotonic() - start
            (folder / "out").mkdir()
            command = [sys.executable, "-m", "benchmarks.curate_20gb", str(folder), str(given.workers)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        peak = told["command_bytes"] + given.workers * told["worker_bytes"]
        peaks = "".join(f"{bytes_ / 1e6:7.0f} MB" for bytes_ in (told["command_bytes"], told["worker_bytes"], peak))
        print(
            f"{size:5.2f} GB{rows:11,}{peaks}"
            f"{told['seconds']:9.0f}{told['command_cpu_s']:7.1f} +{told['workers_cpu_s']:6.1f}   (made in {made_s:.0f} s)"
        )
        assert peak < LIMIT_BYTES
    return {"peak_gb": round(peak / 1e9, 3)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps(curated(folder / "rows.jsonl.zst", folder / "out", int(sys.argv[2]))))
