"""What holding answers to a JSON schema costs: time per token of a batch whose answers are lists of strings without end, over
the same batch free, less one. SmolLM-135M's shape, random weights; a byte-level vocabulary learned from the standard library's
sources, of 49,152 tokens at most; every answer has the same length. The two take turns in one process, and the median of the
rounds' ratios counts. The native engine, and llama.cpp (Q8_0) beside it.

`python -m benchmarks structured_overhead [--rounds 5] [--tokens 96] [--batch 8] [--threads 2] [--temperature 1]`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._training import SHAPE, VOCAB
from benchmarks.tokenizer_vs_tokenizers import SPECIAL, learn_ours, texts

CONTEXT = 1024
PROMPT = "def names(path: str) -> list[str]:\n"
SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 8}, "minItems": 10_000}


def write_model(folder: Path) -> None:
    """As a folder for the native engine and as a GGUF file in it."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from modelwright.core.events import Log
    from modelwright.methods.architectures.llama import Llama
    from modelwright.methods.exporters import EXPORTERS
    from modelwright.nn.model import build

    torch.manual_seed(0)
    build(Llama(**SHAPE).config(VOCAB, CONTEXT)).save_pretrained(folder)
    tokenizer = learn_ours(texts(), VOCAB)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0]).save_pretrained(folder)
    EXPORTERS.load("gguf")(type="q8_0").write(folder, folder, Log(None))  # type: ignore[attr-defined]


def seconds(engine: Any, given: argparse.Namespace, held: bool) -> tuple[float, float]:
    """Of one batch, per token: on the clock, and on processors."""
    from modelwright.methods.engines import Constraint, Request, Sampling

    constraint = Constraint("json_schema", json.dumps(SCHEMA)) if held else None
    prompt = engine.encode(PROMPT)
    sampling = Sampling(given.tokens, given.temperature)
    requests = [Request(prompt, sampling._replace(seed=n), constraint) for n in range(given.batch)]
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    found = engine.generate(requests)
    whole_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    assert all(len(answer.tokens) == given.tokens for answer in found), "an answer ended before its time; take another seed"
    assert not held or all(answer.text.lstrip().startswith("[") for answer in found)
    return whole_s / given.tokens, cpu_s / given.tokens


def measure(engine: Any, name: str, given: argparse.Namespace) -> float:
    """Print both; returns the median share."""
    for held in (False, True):
        seconds(engine, given, held)  # not timed: the table of tokens is built, memory is grown
    free, under = [], []
    for _ in range(given.rounds):
        free.append(seconds(engine, given, held=False))
        under.append(seconds(engine, given, held=True))
    clock, processors = (median(b[i] / a[i] for a, b in zip(free, under, strict=True)) - 1 for i in range(2))
    rates = (1000 * median(side[0] for side in sides) for sides in (free, under))
    print("{:9s} free {:7.2f} ms a token, under the schema {:7.2f} ms".format(name, *rates), end="")
    print(f"   {clock:+.1%} on the clock, {processors:+.1%} of processor time")
    return clock


def main() -> dict[str, float]:
    """Both engines; returns the native one's share."""
    from modelwright.methods.engines import ENGINES, open_engine

    options = argparse.ArgumentParser(prog="structured_overhead")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--temperature", type=float, default=1.0)
    given = options.parse_args(sys.argv[2:])
    found = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_model(folder)
        for name, path in (("native", folder), ("llamacpp", folder / "model.gguf")):
            spec: Any = ENGINES.load(name)(max_batch=given.batch, threads=given.threads)  # type: ignore[call-arg]
            with open_engine(path, spec) as engine:
                found[name] = measure(engine, name, given)
    return {"share": round(found["native"], 4), "share_llamacpp": round(found["llamacpp"], 4)}
