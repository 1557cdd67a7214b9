"""Byte-level BPE: learning a vocabulary (rustbpe) and turning text into ids (our own kernel) against tokenizers, in MB a second.

The text is the installed standard library's own sources, a file a row. Both sides learn the same number of tokens from it with
the same cuts (`smollm`); tokenizers gets its rows in lists, which is its fastest way in. Then both encode the text with one and
the same tokenizer.json, which our side learned: tokenizers by `encode_batch_fast`, on as many threads as we say
(`RAYON_NUM_THREADS`), ours on one thread, into the arrays that training stores; ids are compared row by row. Every figure is the
median of three runs in a fresh process, after one that is not counted where text is encoded. Making and checking the fast encoder
is not in the rate and is shown beside it; so is its first run, in a table of known pieces that is empty.

`python -m benchmarks.tokenizer_vs_tokenizers [--threads N] [--size 8192]`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

SIZE, LEAST_BYTES, RUNS = 8192, 10_000_000, 3
SPECIAL = ("<|endoftext|>",)


def texts() -> list[str]:
    """Sources of the standard library; its tests too where the rest is less than 10 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    paths = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & {*path.parts}]
    tests = [path for path in paths if {"test", "tests", "idle_test"} & {*path.relative_to(root).parts}]
    total = 0
    for path in [*(path for path in paths if path not in set(tests)), *tests]:
        if path in tests and total >= LEAST_BYTES:
            break
        try:
            found.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:  # a few tests are written in other encodings
            continue
        total += len(found[-1].encode())
    if total < LEAST_BYTES:
        raise SystemExit(f"{root} holds {total} bytes of sources, {LEAST_BYTES} are needed")
    return found


# --- one run in its own process -------------------------------------------------------------------------


def _method(size: int) -> Any:
    from modelwright.methods.tokenizers import TOKENIZERS

    return TOKENIZERS.load("bpe").model_validate({"kind": "bpe", "size": size})


def learn_ours(rows: list[str], size: int) -> Any:
    return _method(size).train(iter(rows), SPECIAL)


def learn_theirs(rows: list[str], size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((rows[at : at + 256] for at in range(0, len(rows), 256)), trainer)
    return tokenizer


def worker(work: str, side: str, size: int, file: Path) -> dict[str, Any]:
    """Seconds of every run; for encoding also what the ids are."""
    rows = texts()
    if work == "train":
        learn = learn_ours if side == "ours" else learn_theirs
        seconds, tokenizer = _timed(lambda: learn(rows, size), RUNS)
        tokenizer.save(str(file))
        return {"seconds": seconds, "tokens": tokenizer.get_vocab_size()}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    began = time.perf_counter()
    if side == "ours":
        from modelwright.methods.tokenizers import fast_encoding

        encoding = fast_encoding(tokenizer)
        if encoding.encode is None:
            raise SystemExit(f"there is no fast encoder here: {encoding.about}")
        encode: Callable[[list[str]], list[Any]] = encoding.encode
        about = encoding.about
    else:
        encode = lambda given: [item.ids for item in tokenizer.encode_batch_fast(given, add_special_tokens=False)]
        about = f"tokenizers {metadata.version('tokenizers')}"
    made = time.perf_counter() - began
    first, _ = _timed(lambda: encode(rows), 1)
    seconds, found = _timed(lambda: encode(rows), RUNS)
    ids = [list(map(int, row)) for row in found]
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return {"seconds": seconds, "first": first[0], "made": made, "about": about, "tokens": sum(map(len, ids)), "ids": digest}


def _timed(call: Callable[[], Any], runs: int) -> tuple[list[float], Any]:
    seconds, result = [], None
    for _ in range(runs):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return seconds, result


# --- the comparison -------------------------------------------------------------------------------------


def measure(work: str, side: str, size: int, threads: int, file: Path) -> dict[str, Any]:
    """One fresh process."""
    command = [sys.executable, "-m", "benchmarks.tokenizer_vs_tokenizers", "--worker", work, "--side", side]
    command += ["--size", str(size), "--file", str(file)]
    settings = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main(threads: int = 0, size: int = SIZE) -> dict[str, float]:
    """Print the table; returns our rates over theirs."""
    from modelwright.plan.machine import this_machine

    threads = threads or this_machine().cores
    total = sum(len(text.encode()) for text in texts())
    print(f"{total / 1e6:.1f} MB in {len(texts())} rows, {size} tokens, {threads} threads for both learners, medians of {RUNS}")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        learned = Path(folder) / "ours.json"
        for work in ("train", "encode"):
            found = {}
            for side in ("ours", "tokenizers"):
                file = Path(folder) / "theirs.json" if (work, side) == ("train", "tokenizers") else learned
                found[side] = measure(work, side, size, threads, file)
                rate = total / 1e6 / median(found[side]["seconds"])
                print(f"{work:7s} {side:11s} {rate:7.2f} MB/s   {_about(work, side, found[side])}", flush=True)
            ratios[work] = round(median(found["tokenizers"]["seconds"]) / median(found["ours"]["seconds"]), 2)
        same = found["ours"]["ids"] == found["tokenizers"]["ids"]
    print(f"ids of {found['ours']['tokens']:,} tokens are {'identical' if same else 'NOT identical'}")
    if not same:
        raise SystemExit("the two encoders do not agree")
    return ratios


def _about(work: str, side: str, found: dict[str, Any]) -> str:
    if work == "train":
        library = _method(SIZE).learner() if side == "ours" else f"tokenizers {metadata.version('tokenizers')}"
        return f"{library}, {found['tokens']} tokens"
    return found["about"] + (f", made in {found['made']:.2f} s, first run {found['first']:.2f} s" if side == "ours" else "")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizer_vs_tokenizers")
    parser.add_argument(
        "--threads", type=int, default=0, help="of both learners and of their encoder; 0: the cores of this machine"
    )
    parser.add_argument("--size", type=int, default=SIZE, help="tokens to learn")
    parser.add_argument("--worker", choices=("train", "encode"), help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("ours", "tokenizers"), default="ours", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, default=Path(), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = _parse()
    if given.worker:
        result = worker(given.worker, given.side, given.size, given.file)
    else:
        result = main(given.threads, given.size)
    print(json.dumps(result))
