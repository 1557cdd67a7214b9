"""One curation (exact duplicates, Unicode repair, personal data, Gopher's filters, MinHash) of the machine's own text with one
process and with two, wall-clock seconds with the second one's start; the same bytes have to come out. Medians of runs one after
the other, in turns. 400 MB last about a minute on one core, so that starting weighs as little as it does in earnest.

Seconds of the wall mislead on a machine that does other things, too; so the processor's are told beside them: of the command,
which reads, works on chunks where it would wait, and puts together what comes out, and of the process beside it.

`python -m benchmarks curate_two_cores [--megabytes 400] [--repeats 3]`
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks._web_text import write
from modelwright.core.events import Log
from modelwright.core.stage import STAGES, Input, Run

STEPS = ["exact_dedup", "unicode", "pii", "gopher", "minhash"]
WARM_BYTES = 5_000_000
"""Text of a first run that loads libraries and kernels."""


class Took(NamedTuple):
    seconds: float
    command_cpu_s: float
    workers_cpu_s: float
    digest: str


def curated(rows: Path, out: Path, workers: int) -> Took:
    """How long it takes, and a digest of what comes out."""
    out.mkdir()
    stage: Any = STAGES.build({"kind": "curate", "source": {"kind": "jsonl", "path": str(rows)}, "steps": STEPS})
    before, start = _cpu_s(), time.monotonic()
    stage.run(Run(out, {str(rows): Input(str(rows), "path", rows)}, 0, Log(None), workers=workers))
    seconds, after = time.monotonic() - start, _cpu_s()
    digest = hashlib.sha256((out / "all.jsonl").read_bytes()).hexdigest()
    return Took(seconds, after[0] - before[0], after[1] - before[1], digest)


def _cpu_s() -> tuple[float, float]:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


def main() -> dict[str, float]:
    """Print the table; returns how many times faster two are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks curate_two_cores")
    parser.add_argument("--megabytes", type=float, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(sys.argv[2:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "few.jsonl", WARM_BYTES)
        curated(folder / "few.jsonl", folder / "warm", 1)
        documents, size = write(folder / "rows.jsonl", int(given.megabytes * 1e6))
        found: dict[int, list[Took]] = {1: [], 2: []}
        for repeat in range(given.repeats):
            for workers, runs in found.items():
                runs.append(curated(folder / "rows.jsonl", folder / f"{workers}-{repeat}", workers))
    one, two = (median(run.seconds for run in runs) for runs in found.values())
    alone, command, working = (
        median(values)
        for values in (
            [run.command_cpu_s for run in found[1]],
            [run.command_cpu_s for run in found[2]],
            [run.workers_cpu_s for run in found[2]],
        )
    )
    same = len({run.digest for runs in found.values() for run in runs}) == 1
    print(f"{size / 1e6:.1f} MB, {documents} documents: one process {one:.1f} s, two {two:.1f} s, the start included")
    print(f"processor: one process {alone:.1f} s; two: the command {command:.1f} s, the one beside it {working:.1f} s")
    print(f"what came out is {'the same' if same else 'NOT the same'}")
    assert same
    return {
        "speed": round(one / two, 2),
        "seconds_one": round(one, 2),
        "seconds_two": round(two, 2),
        "command_frac": round(command / (command + working), 3),
    }
