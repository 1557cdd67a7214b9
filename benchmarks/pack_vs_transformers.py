"""From JSON lines of texts to packed tokens on disk, on one core: ours as a training stage does it, against transformers' fast
tokenizer through `datasets.map` with the packing of its `run_clm` example (texts joined, cut into blocks) or TRL's best-fit
decreasing, whichever is faster. In MB of text a processor second.

Ours reads the file, checks and counts the rows, makes and checks its encoder, cuts texts into rows of at most 1,024 tokens,
stores them, and packs all of them into micro-batches as a training step gets them. Theirs has its rows in Arrow before the clock
starts, makes no attention masks and no labels, and is done once the blocks are stored. Both have one tokenizer, learned before
from the text. Runs alternate in fresh processes that are bound to one core; imports, reading of compiled code and a small run go
before; the figures are medians. The ids of all texts are compared. The text is the machine's own manual pages, documentation and
packages.

`python -m benchmarks pack_vs_transformers [--megabytes 20] [--repeats 3]`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._peers import said
from benchmarks._web_text import write

LENGTH, MICRO_TOKENS, ROWS_A_STEP, SIZE = 1024, 8192, 64, 16_384
END = "<|endoftext|>"
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
ONE_THREAD = {**dict.fromkeys(THREADS, "1"), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def main() -> dict[str, float]:
    """Print the table; returns our rate over theirs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pack_vs_transformers")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; medians are told")
    given = parser.parse_args(sys.argv[2:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, size = write(folder / "rows.jsonl", int(given.megabytes * 1e6))
        _learn(folder)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("ours", "run_clm", "bfd")}
        for _ in range(given.repeats):
            for side, runs in found.items():
                command = [sys.executable, "-m", "benchmarks.pack_vs_transformers", side, name]
                runs.append(said(command, env={**os.environ, **ONE_THREAD}, cwd=Path(__file__).parents[1]))
    print(f"{size / 1e6:.1f} MB in {rows} texts, {SIZE} tokens learned, one core, medians of {given.repeats}")
    rates = {side: size / 1e6 / median(run["seconds"] for run in runs) for side, runs in found.items()}
    for side, runs in found.items():
        label = {"ours": "modelwright", "run_clm": "transformers, as run_clm", "bfd": "transformers, TRL's bfd"}[side]
        print(f"{label:24s} {rates[side]:7.2f} MB/s   {runs[0]['tokens']:,} tokens in {runs[0]['packed']}, {runs[0]['about']}")
    same = len({run["ids"] for runs in found.values() for run in runs}) == 1
    print(f"ids of all texts are {'identical' if same else 'NOT identical'}")
    if not same:
        raise SystemExit("the sides do not agree")
    best = max(rates["run_clm"], rates["bfd"])
    return {"speed": round(rates["ours"] / best, 2), "mb_per_s": round(rates["ours"], 2), "mb_per_s_peer": round(best, 3)}


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_bytes().splitlines()]


def _learn(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from modelwright.methods.tokenizers import TOKENIZERS

    method: Any = TOKENIZERS.load("bpe").model_validate({"kind": "bpe", "size": SIZE})
    learned = method.train(iter(_texts(folder / "rows.jsonl")), (END,))
    PreTrainedTokenizerFast(tokenizer_object=learned, eos_token=END).save_pretrained(folder / "tokenizer")


# --- one run in its own process -------------------------------------------------------------------------


def ours(folder: Path, rows: Path, out: Path) -> dict[str, Any]:
    """What a training stage does before its first step, and the packing of every step."""
    from modelwright.core.events import Log
    from modelwright.core.stage import Input, Run
    from modelwright.methods.templates import encoded_by
    from modelwright.nn.model import load_tokenizer
    from modelwright.nn.rows import micro_batches, pack
    from modelwright.stages._train_rows import prepared
    from modelwright.stages._train_text import Text

    ref, tokenizer = str(rows), load_tokenizer(folder / "tokenizer")
    start = time.process_time()
    run = Run(out, {ref: Input(ref, "path", rows)}, 0, Log(None))
    stored = prepared(Text(tokenizer, None, "text", LENGTH), [ref], run, out).rows
    batches = 0
    for begin in range(0, len(stored), ROWS_A_STEP):
        step = range(begin, min(begin + ROWS_A_STEP, len(stored)))
        batches += len([pack(stored, chosen) for chosen in micro_batches(stored, step, MICRO_TOKENS)])
    seconds = time.process_time() - start
    # a text in several rows: each begins with the last token of the one before
    names = (out / "names.txt").read_text(encoding="utf-8").splitlines()
    again = [bool(re.search(r" piece (?!1$)\d+$", name)) for name in names]
    bounds = zip(stored.starts_R[:-1].tolist(), stored.starts_R[1:].tolist(), again, strict=True)
    ids = [token for begin, end, more in bounds for token in stored.ids[begin + more : end].tolist()]
    packed = f"{batches} micro-batches of at most {MICRO_TOKENS}"
    return {"seconds": seconds, "tokens": len(ids), "packed": packed, "about": encoded_by(tokenizer), "ids": _digest(ids)}


def theirs(folder: Path, rows: Path, out: Path, packing: str) -> dict[str, Any]:
    """Rows to ids and ids to blocks, each by one pass of `datasets.map`."""
    from importlib import metadata

    import datasets
    from transformers import AutoTokenizer
    from trl import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    data = datasets.Dataset.from_json(str(rows), cache_dir=str(out))
    start = time.process_time()

    def tokenised(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [text + END for text in batch["text"]]
        return {"input_ids": tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]}

    def blocks(batch: dict[str, list[list[int]]]) -> dict[str, Any]:
        ids = list(chain.from_iterable(batch["input_ids"]))
        whole = len(ids) // LENGTH * LENGTH
        return {"input_ids": [ids[at : at + LENGTH] for at in range(0, whole, LENGTH)]}

    encoded = data.map(tokenised, batched=True, remove_columns=data.column_names)
    done = encoded.map(blocks, batched=True) if packing == "run_clm" else pack_dataset(encoded, LENGTH, "bfd_split")
    seconds = time.process_time() - start
    ids = list(chain.from_iterable(encoded["input_ids"]))
    about = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "tokenizers", "datasets", "trl"))
    return {"seconds": seconds, "tokens": len(ids), "packed": f"{len(done)} blocks", "about": about, "ids": _digest(ids)}


def _digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def worker(side: str, folder: Path) -> dict[str, Any]:
    """A small run that is not counted, then the real one."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        head = Path(name) / "head.jsonl"
        with (folder / "rows.jsonl").open("rb") as whole:
            head.write_bytes(b"".join(line for line, _ in zip(whole, range(80), strict=False)))
        for rows, out in (head, Path(name) / "warm"), (folder / "rows.jsonl", Path(name) / "out"):
            result = ours(folder, rows, out) if side == "ours" else theirs(folder, rows, out, side)
    return result


if __name__ == "__main__":
    print(json.dumps(worker(sys.argv[1], Path(sys.argv[2]))))
