"""A made-up run of eleven stages, for the tests of the report and for looking at it.

`python tests/report_fixture.py report.html` writes the page. Every number is invented, but each has the size that a
run of the quickstart gives.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelwright.report import RunView, StageView, render

RECIPE = """\
# An assistant for Python's standard library, made from the library on this machine.
name: stdlib-assistant
seed: 0
stages:
  questions:   {kind: curate, source: {kind: code_questions, package: stdlib}, split: {test: 400}}
  corpus:      {kind: curate, source: {kind: python_docs}, steps: [exact_dedup, gopher, {kind: minhash, threshold: 0.8}]}
  vocab:       {kind: tokenizer, data: [corpus, "questions:train"], method: {kind: bpe, size: 4096}}
  base:        {kind: train, data: [corpus, "questions:train"], vocab: vocab, model: {kind: llama, depth: 4}}
  chat:        {kind: train, start: base, data: "questions:train", objective: sft}
  preferences: {kind: curate, source: {kind: code_preferences, package: stdlib}}
  aligned:     {kind: train, start: chat, data: preferences, objective: {kind: dpo, beta: 0.1}, adapter: {kind: lora, rank: 16}}
  base_score:  {kind: evaluate, model: base, tasks: [perplexity, answers]}
  chat_score:  {kind: evaluate, model: chat, tasks: [perplexity, answers], against: base_score}
  final_score: {kind: evaluate, model: aligned, tasks: [perplexity, answers], against: chat_score}
  small:       {kind: export, model: aligned, format: {kind: gguf, quantization: q8_0}}
"""

GROUPS = ("parameters", "default", "raises", "calls", "from memory")
SHAPE = {"layers": 4, "hidden": 256, "intermediate": 704, "heads": 4, "kv_heads": 2, "vocab": 4096, "tied": True, "head_dim": 64}
MADE_BY = {
    "modelwright": "0.1.0",
    "python": "3.12.8",
    "platform": "Linux-6.1-x86_64",
    "host": "laptop",
    "cores": 2,
    "time": "2026-11-21T10:04:11Z",
    "libraries": {"torch": "2.13.0", "transformers": "5.23.0", "tokenizers": "0.22.1", "peft": "0.21.0"},
}

FUNCTIONS = """
textwrap.shorten|parameters|def shorten(text, width, **kwargs):~    w = TextWrapper(width=width, max_lines=1, **kwargs)
|What are the parameters of `shorten`?|text, width, **kwargs
shlex.quote|calls|def quote(s):~    if not s:~        return "''"~    if _find_unsafe(s) is None:~    return s.replace(_, "")
|Which functions does `quote` call?|_find_unsafe, s.replace
bisect.insort_left|default|def insort_left(a, x, lo=0, hi=None, *, key=None):~    ...|What is the default of `lo`?|0
queue.Queue.put_nowait|raises|def put_nowait(self, item):~    return self.put(item, block=False)
|What does `put_nowait` raise when the queue is full?|queue.Full
colorsys.rgb_to_hsv|from memory||What does `colorsys.rgb_to_hsv` return?|a tuple (h, s, v)
stat.filemode|parameters|def filemode(mode):~    perm = []~    for table in _filemode_table: ...
|What are the parameters of `filemode`?|mode
glob.escape|default|def escape(pathname, *, sep=None): ...|What is the default of `sep`?|None
heapq.nlargest|from memory||In one sentence, what does `heapq.nlargest` do?|Find the n largest elements in a dataset.
"""
"""Name, group, source with ~ for line feeds, question, right answer."""

ANSWERS = {
    "base_score": "text width|s|0|Full|a value|mode|0|Return the largest",
    "chat_score": "text, width, **kwargs|_find_unsafe, replace|0|queue.Full|a tuple|mode|None|Return the n largest elements",
    "final_score": "text, width, **kwargs|_find_unsafe, s.replace|0|queue.Full|the colour|mode|None|Find the n largest.",
}
RIGHT = {
    "base_score": (0, 0, 1, 0, 0, 1, 0, 0),
    "chat_score": (1, 0, 1, 1, 0, 1, 1, 0.62),
    "final_score": (1, 1, 1, 1, 0, 1, 1, 0.81),
}
SHARES = {
    "base_score": (0.31, 0.36, 0.22, 0.12, 0.01),
    "chat_score": (0.76, 0.81, 0.66, 0.44, 0.025),
    "final_score": (0.775, 0.825, 0.7, 0.3, 0.025),
}
PERPLEXITY = {"base_score": 9.7, "chat_score": 9.85, "final_score": 10.4}

COSTS = """
questions    9   0.21 18    11.2 0.24 17.4
corpus       14  0.30 12    16.8 0.34 11.4
vocab        6   0.40 0.4   4.6  0.37 0.36
base         355 1.10 9     371  1.24 9.1
chat         88  1.10 9     96   1.19 9.1
preferences  4   0.20 2.4   3.1  0.22 2.3
aligned      40  1.00 9     92   1.12 9.6
base_score   25  0.60 0.3   27   0.61 0.31
chat_score   25  0.60 0.3   24   0.60 0.3
final_score  25  0.60 0.3   25   0.60 0.3
small        8   0.70 5     7.4  0.66 4.93
"""
"""Seconds, GB at the peak and MB on disk: planned, then measured."""

STAGES = """
questions    curate     records
corpus       curate     records     questions
vocab        tokenizer  tokenizer   corpus questions
base         train      model       corpus questions vocab
chat         train      model       base questions
preferences  curate     records
aligned      train      model       chat preferences
base_score   evaluate   evaluation  base questions corpus
chat_score   evaluate   evaluation  chat questions base_score corpus
final_score  evaluate   evaluation  aligned questions chat_score corpus
small        export     export      aligned
"""
"""Name, kind, artifact type, parents."""


def quantity(value: float, unit: str, why: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "why": why}


def manifest(name: str, kind: str, type_: str, spec: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
    cost = next(line.split()[1:] for line in COSTS.split("\n") if line.startswith(name + " "))
    scale = (1, 1e9, 1e6)
    planned = [float(v) * k for v, k in zip(cost[:3], scale, strict=True)]
    actual = [float(v) * k for v, k in zip(cost[3:], scale, strict=True)]
    digest = hashlib.sha256(name.encode()).hexdigest()
    tree = {"schema": 1, "type": type_, "stage": name, "kind": kind, "recipe": "stdlib-assistant", "key": digest, "spec": spec}
    tree |= {
        "identity": {},
        "parents": {},
        "external": {"source": digest} if kind == "curate" else {},
        "files": {},
        "stats": stats,
    }
    tree["estimate"] = {
        "seconds": quantity(planned[0], "s", "3.6M tokens at 5.3k tokens/s, measured on this machine"),
        "memory": quantity(planned[1], "bytes", "weights, gradients, optimizer and one micro-batch"),
        "disk": quantity(planned[2], "bytes", "weights in bf16"),
    }
    tree["actual"] = dict(zip(("seconds", "peak_bytes", "disk_bytes"), actual, strict=True))
    return tree | {"made_by": MADE_BY}


def ledger(rows: int, steps: list[tuple[str, dict[str, int]]]) -> tuple[list[dict[str, Any]], int]:
    """Steps with what each dropped."""
    found = []
    for step, reasons in steps:
        left = rows - sum(reasons.values())
        samples = [
            {
                "id": f"lib/{step}_{k}.py",
                "reason": reason,
                "detail": "0.91 of 0.8",
                "text": "# This module is a part of the tests.\nimport os\n",
            }
            for k, reason in enumerate(reasons)
        ]
        found.append(
            {
                "step": step,
                "rows_in": rows,
                "rows_out": left,
                "bytes_in": rows * 16_000,
                "bytes_out": left * 16_000,
                "reasons": reasons,
                "samples": samples,
            }
        )
        rows = left
    return found, rows


def curated(
    rows: int, row_bytes: int, steps: list[tuple[str, dict[str, int]]], parts: Callable[[int], dict[str, int]]
) -> dict[str, Any]:
    lines, left = ledger(rows, steps)
    return {
        "facts": {},
        "rows_in": rows,
        "rows_out": left,
        "bytes_in": rows * row_bytes,
        "bytes_out": left * row_bytes,
        "parts": parts(left),
        "licences": {"PSF-2.0": left},
        "ledger": lines,
    }


def training(
    params: int, trainable: int, steps: int, tokens: int, targets: int, rows: int, losses: tuple[float, float], cut: int
) -> dict[str, Any]:
    return {
        "facts": {"": {"type": "model", "shape": SHAPE}},
        "params": params,
        "trainable": trainable,
        "steps": steps,
        "tokens": tokens,
        "target_tokens": targets,
        "rows": {"read": rows + 12, "used": rows, "dropped": {"nothing to learn from": 12}},
        "truncated_tokens": cut,
        "sources": [{"ref": "corpus", "tokens": tokens * 0.62}, {"ref": "questions:train", "tokens": tokens * 0.38}],
        "masked_tokens": tokens - targets,
        "loss_first": losses[0],
        "loss_last": losses[1],
        "tokens_per_s": 5300,
        "samples": [{"prompt": "What are the parameters of `escape`?", "answer": "pattern"}],
    }


def write_steps(folder: Path, steps: int, first: float, last: float, rate: float, dpo: bool, seed: int) -> None:
    """A plausible `metrics.jsonl`: falling loss, warm-up and decay, a validation now and then."""
    noise = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    seconds = 0.0
    for step in range(1, steps + 1):
        done = step / steps
        loss = last + (first - last) * math.exp(-6 * done) + noise.gauss(0, 0.04 * (first - last))
        lr = rate * min(1.0, step / (0.06 * steps)) * (1.0 if done < 0.7 else (1 - done) / 0.3)
        seconds += 0.386 * noise.uniform(0.93, 1.12)
        event = {
            "event": "step",
            "time_s": 1.0 * step,
            "step": step,
            "steps": steps,
            "loss": loss,
            "lr": lr,
            "grad_norm": 0.4 + 2.2 * math.exp(-9 * done) + abs(noise.gauss(0, 0.12)),
            "tokens": 2048 * step,
            "seconds": seconds,
        }
        if dpo:
            event.update(
                margin=1.6 * (1 - math.exp(-3 * done)) + noise.gauss(0, 0.16),
                accuracy=min(1.0, 0.5 + 0.38 * (1 - math.exp(-4 * done)) + noise.gauss(0, 0.05)),
            )
        lines.append(event)
        if step % (steps // 6) == 0:
            lines.append(
                {
                    "event": "validation",
                    "time_s": 1.0 * step,
                    "step": step,
                    "loss": last + (first - last) * math.exp(-6 * done) + 0.06,
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def interval(p: float, n: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(max(p * (1 - p), 0.002) / n)
    return {"value": p, "low": max(0.0, p - half), "high": min(1.0, p + half), "n": n}


def evaluation(folder: Path, name: str, against: str) -> dict[str, Any]:
    """One evaluate stage, with its items written to `folder`."""
    n, exact = 80, {"task": "answers", "name": "exact match", "higher_is_better": True}
    shares = {"": sum(SHARES[name]) / 5, **dict(zip(GROUPS, SHARES[name], strict=True))}
    value = PERPLEXITY[name]
    metrics: list[dict[str, Any]] = [
        {
            "task": "perplexity",
            "name": "perplexity",
            "group": "",
            "value": value,
            "low": value * 0.95,
            "high": value * 1.06,
            "n": 200,
        }
        | {"higher_is_better": False}
    ]
    for group, share in shares.items():
        metrics.append({**exact, "group": group, **interval(share, n if group else 5 * n), "baseline": 0.075 if group else None})
    comparisons: list[dict[str, Any]] = []
    if against:
        old = {"": sum(SHARES[against]) / 5, **dict(zip(GROUPS, SHARES[against], strict=True))}
        changes = [("perplexity", "perplexity", "", PERPLEXITY[against], value, 0.3, 200)]
        changes += [("answers", "exact match", g, old[g], p, 0.07 if g else 0.03, n if g else 5 * n) for g, p in shares.items()]
        for task, metric, group, before, after, half, items in changes:
            change, shown = after - before, abs(after - before) > half
            row = {
                "task": task,
                "name": metric,
                "group": group,
                "before": before,
                "after": after,
                "difference": change,
                "n": items,
            }
            row |= {"low": change - half, "high": change + half, "p": 0.0002 if shown else 0.34}
            comparisons.append(row | {"better": (change > 0) == (task == "answers") if shown else None})
    items = asked(name)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [{k: item[k] for k in ("id", "task", "group", "answer", "score")} | {"mark": item["id"]} for item in items]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in kept))
    samples = items if name == "final_score" else items[:6]
    return {"facts": {}, "metrics": metrics, "comparisons": comparisons, "against": against, "samples": samples}


def asked(name: str) -> list[dict[str, Any]]:
    """The items with the answers of one stage."""
    functions = [line.split("|") for line in FUNCTIONS.strip().replace("\n|", "|").split("\n")]
    found = []
    for k, (function, group, source, question, expected) in enumerate(functions):
        prompt = f"{source.replace('~', chr(10))}\n\n{question}".strip()
        row = {"id": f"{function}#{k}", "task": "answers", "group": group, "prompt": prompt, "expected": expected}
        found.append(row | {"answer": ANSWERS[name].split("|")[k], "score": float(RIGHT[name][k])})
    return found


def specs() -> dict[str, dict[str, Any]]:
    """What the recipe declares, by stage."""
    train = {"kind": "train", "objective": {"kind": "next_token"}, "optimizer": {"kind": "muon", "lr": 0.02, "adamw_lr": 0.003}}
    train |= {"schedule": {"kind": "wsd", "warmup_frac": 0.06, "decay_frac": 0.3}, "batch_tokens": 2048, "context": 512}
    return {
        "questions": {"source": {"kind": "code_questions", "package": "stdlib"}},
        "corpus": {"source": {"kind": "python_docs"}, "steps": ["exact_dedup", "gopher"]},
        "vocab": {"method": {"kind": "bpe", "size": 4096}},
        "base": {**train, "model": {"kind": "llama", "depth": 4}},
        "chat": {**train, "objective": {"kind": "sft"}, "start": "base"},
        "preferences": {"source": {"kind": "code_preferences", "package": "stdlib"}},
        "aligned": {**train, "objective": {"kind": "dpo", "beta": 0.1}, "start": "chat", "adapter": {"kind": "lora", "rank": 16}},
        "small": {"format": {"kind": "gguf", "quantization": "q8_0"}},
    }


def measured(root: Path) -> dict[str, dict[str, Any]]:
    """The stats of every stage; event files go to its folder under `root`."""
    write_steps(root / "base", 960, 8.3, 2.05, 0.02, False, 1)
    write_steps(root / "chat", 240, 1.9, 0.42, 0.004, False, 2)
    write_steps(root / "aligned", 60, 0.693, 0.31, 0.0005, True, 3)
    gopher = {"mean word length": 41, "too few words": 118, "symbols to words": 9}
    asked_steps = [
        ("length", {"function too long": 8_400, "function too short": 3_122}),
        ("exact_dedup", {"exact duplicate": 1_738}),
    ]
    corpus_steps = [("exact_dedup", {"exact duplicate": 14}), ("holdout", {"holds a test function": 88}), ("gopher", gopher)]
    corpus_steps += [("minhash", {"near duplicate": 63})]
    preview = (
        'def| |short|en|(|text|,| width|,| **|kwargs|):|\n   | """|Collapse| and| trunc|ate| the| given| text| to| fit|."""|\n'
    )
    reference = {"name": "gpt2", "bytes_per_token": 2.31, "tokens_per_word": 2.88}
    vocab = {"facts": {}, "vocab_size": 4096, "bytes_per_token": 3.47, "tokens_per_word": 1.92, "reference": reference}
    proof = {"texts": 64, "tokens": 20_480, "tokens_equal": 20_480, "perplexity_before": 10.412, "perplexity_after": 10.419}
    proof |= {"largest_difference_nats": 0.0123, "engine": "llama.cpp"}
    return {
        "questions": curated(41_260, 620, asked_steps, lambda left: {"train": left - 400, "test": 400}),
        "corpus": curated(1312, 17_000, corpus_steps, lambda left: {"": left}),
        "vocab": vocab | {"preview": preview.split("|")},
        "base": training(4_458_752, 4_458_752, 960, 1_966_080, 1_966_080, 18_240, (8.31, 2.06), 0),
        "chat": training(4_458_752, 4_458_752, 240, 491_520, 61_200, 2_610, (1.9, 0.43), 5_120),
        "preferences": curated(3_000, 840, [("length", {"chosen equals rejected": 212})], lambda left: {"": left}),
        "aligned": training(4_458_752, 229_376, 60, 122_880, 33_000, 480, (0.69, 0.31), 0),
        "base_score": evaluation(root / "base_score", "base_score", ""),
        "chat_score": evaluation(root / "chat_score", "chat_score", "base_score"),
        "final_score": evaluation(root / "final_score", "final_score", "chat_score"),
        "small": {"facts": {}, "format": "gguf", "bytes": 4.93e6, "proof": proof},
    }


def make_run(root: Path, state: str = "made") -> RunView:
    """The run; `state="cached"` takes the first three stages from the store."""
    stats, spec = measured(root), specs()
    views = []
    for line in STAGES.strip().split("\n"):
        name, kind, type_, *parents = line.split()
        tree = manifest(name, kind, type_, spec.get(name, {}), stats[name])
        is_cached = state == "cached" and name in ("questions", "corpus", "vocab")
        views.append(StageView(name, kind, "cached" if is_cached else "made", tree, root / name, tuple(parents)))
    return RunView("stdlib-assistant", RECIPE, tuple(views), "2 cores, 8.4 GB, CPU", "21 November 2026, 10:04", 681.4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        Path(sys.argv[1]).write_text(render(make_run(Path(place))), encoding="utf-8")
