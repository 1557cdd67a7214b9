"""The native engine against transformers' `generate` at the SmolLM-135M shape: random weights, greedy answers of fixed lengths,
equal threads, medians of runs in turns in one process. Both sides run in float32 and in bfloat16 and count in their faster one
(bfloat16 for transformers where a short trial has it faster; ours holds bfloat16 weights and sums in float32 where the processor
has no bfloat16 products), transformers with the faster of its `sdpa` and `eager` attention.

- *batch*: 32 requests, 256 tokens that all share, 8 to 48 of their own, answers of 8 to 64 tokens; answer tokens a second.
  transformers takes them in batches padded to the left, with several sizes and orders: the best of these counts. A batch is
  done when its longest answer is.
- *single*: tokens a second of one answer, from its first token to its last.
- *prefill_share*: useful floating-point operations a second of a 512-token prompt over the best product of two 2,048-square
  matrices measured just before and after it, in the type that is faster on the machine; the median of the runs.
- *memory_over*: in a process of its own, which loads the model from a folder and answers 8 requests of the kind above: resident
  memory over what it was after the imports, the most of all steps, divided by the bytes of weights and of the most keys and
  values that there were, minus 1. The second of two processes counts: the first one of an installation may compile kernels.

`python -m benchmarks engine_vs_transformers [--runs 3] [--depth 30] [--threads N]`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks._training import SHAPE, VOCAB
from modelwright.core import environment

LENGTH = 2048
SHARED, OWN, ANSWERS, REQUESTS = 256, (8, 48), (8, 64), 32
PROMPT, ANSWER, PREFILL = 64, 32, 512


class Asked(NamedTuple):
    prompt: list[int]
    answer_tokens: int


def model(depth: int) -> Any:
    import torch

    from modelwright.methods.architectures.llama import Llama
    from modelwright.nn.model import build

    torch.manual_seed(0)
    return build(Llama(**{**SHAPE, "depth": depth}).config(VOCAB, LENGTH)).eval()


def requests(count: int) -> list[Asked]:
    """The same for all."""
    draw = random.Random(0)
    shared = [draw.randrange(VOCAB) for _ in range(SHARED)]
    return [
        Asked(shared + [draw.randrange(VOCAB) for _ in range(draw.randint(*OWN))], draw.randint(*ANSWERS)) for _ in range(count)
    ]


def ours(decoded: Any, asked: Sequence[Asked]) -> list[float]:
    """Answer them; seconds from the start to each step's tokens, a step's as often as it gave tokens."""
    from modelwright.nn.generate import Decoder

    decoder = Decoder(decoded, max_batch=len(asked))
    try:
        for key, one in enumerate(asked):
            decoder.add(key, one.prompt, one.answer_tokens)
        start_s, ends = time.perf_counter(), []
        while decoder.busy:
            steps = decoder.step()
            ends += [time.perf_counter() - start_s] * len(steps)
    finally:
        decoder.close()
    assert len(ends) == sum(one.answer_tokens for one in asked)
    return ends


class Clock:
    """A `streamer`: told of the prompt, then of each new token."""

    def __init__(self) -> None:
        self.start_s = time.perf_counter()
        self.ends: list[float] = []

    def put(self, tokens: Any) -> None:
        self.ends.append(time.perf_counter() - self.start_s)

    def end(self) -> None:
        """Nothing is left to say."""


def theirs(decoded: Any, asked: Sequence[Asked]) -> list[float]:
    """Answer them in one batch; seconds from the start to each step."""
    import torch

    longest, most = max(len(one.prompt) for one in asked), max(one.answer_tokens for one in asked)
    ids = torch.tensor([[0] * (longest - len(one.prompt)) + one.prompt for one in asked])
    mask = torch.tensor([[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for one in asked])
    clock = Clock()
    streamer: Any = {"streamer": clock} if len(asked) == 1 else {}
    with torch.inference_mode():
        decoded.generate(
            ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=0, **streamer
        )
    return [*clock.ends[1:], time.perf_counter() - clock.start_s]


def batched(decoded: Any, asked: Sequence[Asked], size: int, by_length: bool) -> float:
    """Seconds that transformers takes for all."""
    if by_length:
        asked = sorted(asked, key=lambda one: len(one.prompt))
    return sum(theirs(decoded, asked[start : start + size])[-1] for start in range(0, len(asked), size))


def _decode_rate(ends: list[float]) -> float:
    """Tokens a second behind the first."""
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _in_turns(runs: int, *sides: Callable[[], float]) -> list[float]:
    """The median of each."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(runs):
        for side, figures in zip(sides, found, strict=True):
            figures.append(side())
    return [median(figures) for figures in found]


def _trial(decoded: dict[str, Any], asked: Sequence[Asked]) -> tuple[str, str]:
    """transformers' faster type and attention, at four short answers to prompts of batches' length."""
    found = {}
    few = [Asked(one.prompt, 4) for one in asked[:4]]
    for name, one in decoded.items():
        for attention in ("sdpa", "eager"):
            one.set_attn_implementation(attention)
            found[name, attention] = theirs(one, few)[-1]
        one.set_attn_implementation("sdpa")
    return min(found, key=lambda key: found[key])


def batch(decoded: dict[str, Any], ours_name: str, runs: int) -> float:
    """Ours over transformers' tokens a second."""
    asked = requests(REQUESTS)
    tokens = sum(one.answer_tokens for one in asked)
    name, attention = _trial(decoded, asked)
    decoded[name].set_attn_implementation(attention)
    tried = {(size, True): batched(decoded[name], asked, size, True) for size in (8, 16, 32)}
    tried[16, False] = batched(decoded[name], asked, 16, False)
    size, by_length = min(tried, key=lambda key: tried[key])
    for (one, ordered), taken_s in tried.items():
        order = " by length" if ordered else ""
        print(f"  transformers, {name}, {attention}, batches of {one}{order}: {tokens / taken_s:.1f} tokens/s")
    ours_s, theirs_s = _in_turns(
        runs, lambda: ours(decoded[ours_name], asked)[-1], lambda: batched(decoded[name], asked, size, by_length)
    )
    decoded[name].set_attn_implementation("sdpa")
    print(f"batch   ours ({ours_name}) {tokens / ours_s:8.1f} tokens/s   transformers, its best {tokens / theirs_s:8.1f}")
    return theirs_s / ours_s


def single(decoded: dict[str, Any], runs: int) -> float:
    """Ours over transformers' tokens a second, each in its faster type."""
    asked = [requests(1)[0]._replace(answer_tokens=ANSWER)]
    asked[0] = Asked(asked[0].prompt[:PROMPT], ANSWER)
    sides: list[Callable[[], float]] = []
    for one in decoded.values():
        sides.append(lambda one=one: _decode_rate(ours(one, asked)))  # type: ignore[misc]
        sides.append(lambda one=one: _decode_rate(theirs(one, asked)))  # type: ignore[misc]
    found = _in_turns(runs, *sides)
    for at, name in enumerate(decoded):
        print(f"single  {name}: ours {found[2 * at]:6.1f} tokens/s   transformers {found[2 * at + 1]:6.1f}")
    return max(found[::2]) / max(found[1::2])


def prefill(decoded: Any, name: str, depth: int, runs: int) -> float:
    """Share of the matrix rate."""
    import torch

    from modelwright.core.flops import forward_flops_per_token
    from modelwright.methods.architectures.llama import Llama
    from modelwright.nn.rate import measured

    shape = Llama(**{**SHAPE, "depth": depth}).shape(VOCAB)
    draw = random.Random(1)
    asked = [Asked([draw.randrange(VOCAB) for _ in range(PREFILL)], 1)]
    dtype, cpu = next(decoded.parameters()).dtype, torch.device("cpu")
    ours(decoded, asked)  # warms up
    cubes, rates = [measured(dtype, cpu)], []
    for _ in range(3 * runs):
        rates.append(PREFILL / ours(decoded, asked)[-1])
        cubes.append(measured(dtype, cpu))
    per_token = forward_flops_per_token(shape, PREFILL, 1 / PREFILL, whole_last_layer=True)
    shares = [rate * per_token / max(pair) for rate, pair in zip(rates, pairwise(cubes), strict=True)]
    useful, cube = median(rates) * per_token / 1e9, median(cubes) / 1e9
    print(f"prefill ({name}) {median(rates):.0f} tokens/s: {useful:.0f} GFLOP/s useful; cube {cube:.0f} GFLOP/s;", end="")
    print(f" shares {' '.join(f'{share:.2f}' for share in sorted(shares))}")
    return median(shares)


def memory_over(depth: int, threads: int) -> float:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model(depth).save_pretrained(folder)
        command = [sys.executable, "-m", "benchmarks.engine_vs_transformers", folder, str(threads)]
        for run in ("first", "second"):  # kernels are compiled once an installation, in the first process that needs them
            done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
            found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
            mib = {key: value / 2**20 for key, value in found.items()}
            print(
                f"memory, {run} process: over the imports {mib['grown']:.0f} MiB; weights {mib['weights']:.0f},"
                f" keys and values {mib['cache']:.0f} MiB"
            )
    return found["grown"] / (found["weights"] + found["cache"]) - 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cache_bytes(decoder: Any) -> int:
    """Keys and values of rows under way and of what they share."""
    memory = decoder.runner.memory
    own: int = sum(part.numel() * part.element_size() for pair in memory.layers.values() for part in pair)
    shared: dict[int, int] = {id(one): one.bytes for one in memory.shared if one is not None}
    return own + sum(shared.values())


def work(folder: str, threads: int) -> dict[str, float]:
    """The largest resident memory of all steps, and the most keys and values."""
    environment.prepare()
    import torch
    from transformers import LlamaForCausalLM

    from modelwright.nn.generate import Decoder

    torch.set_num_threads(threads)
    before = resident_bytes()
    decoded: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decoded.eval()
    weights = sum(weight.numel() * weight.element_size() for weight in decoded.parameters())
    decoder = Decoder(decoded, max_batch=8, keep_bytes=0)
    for key, one in enumerate(requests(8)):
        decoder.add(key, one.prompt, one.answer_tokens)
    grown = cache = 0
    while decoder.busy:
        decoder.step()
        # what a row leaves is free for the next one, not given back: largest stands against largest
        grown, cache = max(grown, resident_bytes() - before), max(cache, cache_bytes(decoder))
    return {"grown": grown, "weights": weights, "cache": cache}


def main() -> dict[str, float]:
    """Print the table; returns the four figures."""
    environment.prepare()  # as the command and the engine's own process do
    import torch

    from modelwright.nn.model import has_bf16

    options = argparse.ArgumentParser(prog="engine_vs_transformers")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--depth", type=int, default=SHAPE["depth"])
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = options.parse_args(sys.argv[2:])
    torch.set_num_threads(given.threads)
    decoded = {"float32": model(given.depth), "bfloat16": model(given.depth).to(torch.bfloat16)}
    fast = "bfloat16" if has_bf16() else "float32"
    share = prefill(decoded[fast], fast, given.depth, given.runs)  # first: an engine's own process holds nothing of transformers'
    return {
        "single": round(single(decoded, given.runs), 2),
        "batch": round(batch(decoded, fast, given.runs), 2),
        "prefill_share": round(share, 3),
        "memory_over": round(memory_over(given.depth, given.threads), 3),
    }


if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], int(sys.argv[2]))))
