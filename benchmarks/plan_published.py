"""Memory that others measured on cards and published, against a plan made without one: their graph traced on tensors without
values (`benchmarks/_foreign_graph.py`), torch's caching allocator replayed over its allocations (`plan/cuda.py`). The runs of
PEFT's method comparison whose adapter exists here are held against bars; LitGPT's table is told beside, and of torchtune's the
row whose graph is not compiled. Figures and their sources: tests/published. `median` and `worst_under` are fractions of what was
measured, with the length of the longest row as runs of two other adapters fix it; `median_at_bound` at the script's own bound.

`python -m benchmarks plan_published [--only TEXT]`; two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

PUBLISHED = Path(__file__).parents[1] / "tests" / "published"
SIZES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "Llama-3.2-1B": (16, 2048, 32, 8, 8192, 128256, True),
    "Llama-3.2-3B": (28, 3072, 24, 8, 8192, 128256, True),
    "Llama-3-8b": (32, 4096, 32, 8, 14336, 128256, False),
    "Llama-2-7b": (32, 4096, 32, 32, 11008, 32000, False),
    "Llama-2-13b": (40, 5120, 40, 40, 13824, 32000, False),
}
"""Layers, width, heads, key heads, MLP, vocabulary, one table for both ends: the models' `config.json`
(https://huggingface.co/meta-llama)."""
BOUND = 768
"""Tokens that PEFT's script cuts rows at; rows of more than 1,300 characters are dropped before, and few are as long."""
LONGEST = 703
"""Tokens of the longest row of its 5,000 batches, which is published nowhere: the length at which runs of two adapters that are
not here (norms alone, IA3) come out as measured. They are shown and enter no figure."""
SHORTEST = 96
"""Tokens of the batch before it. Batches come in buckets of 20, the longest first, with a mean of 209 tokens, and the cache is
emptied before each bucket; 64 to 160 change the answers by 1 % at most."""


class Row(NamedTuple):
    name: str
    measured_bytes: float
    predicted_bytes: float
    allocated_bytes: float
    operation: str
    held: bool
    """It enters the figures."""

    @property
    def error_frac(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


def config(model: str, tied: bool | None = None) -> Any:
    """`tied`: whether both ends have one table; None: as published."""
    from transformers import LlamaConfig

    layers, hidden, heads, kv_heads, intermediate, vocab, one_table = SIZES[model]
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocab,
        tie_word_embeddings=one_table if tied is None else tied,
        max_position_embeddings=8192,
        dtype="bfloat16",
    )


def adapter(told: dict[str, Any] | None) -> Any:
    """PEFT's configuration."""
    from peft import IA3Config, LNTuningConfig, LoraConfig, TaskType

    if told is None:
        return None
    if told["peft_type"] == "LORA":
        matrices, dropout = told["target_modules"], told.get("dropout", 0.0)
        return LoraConfig(r=told["r"], lora_dropout=dropout, target_modules=matrices, task_type=TaskType.CAUSAL_LM)
    return {"LN_TUNING": LNTuningConfig, "IA3": IA3Config}[told["peft_type"]](task_type=TaskType.CAUSAL_LM)


def replayed(run: Any, card: str, emptied: bool) -> Any:
    """`emptied`: the cache, after every step. transformers asks for all weights at once before it loads them, one segment
    (`caching_allocator_warmup` in its modeling_utils.py)."""
    from modelwright.plan import cuda

    allocator = cuda.with_workspaces(card)
    allocator.allocate(-9, run.weight_bytes)
    allocator.free(-9)
    begin = 0
    for end in (run.begun, *run.steps):
        found = cuda.replay(run.events[begin:end], allocator)
        begin = end
        if emptied:
            allocator.empty()
    return found


def peft_rows(only: str) -> list[Row]:
    from benchmarks._foreign_graph import Style, trained

    rows = []
    for one in json.loads((PUBLISHED / "peft.json").read_text())["rows"]:
        name = one["file"].removesuffix(".json").replace("llama-3.2-3B-", "")
        lengths = (LONGEST,) if one["fixes_length"] else (LONGEST, BOUND)
        for length in lengths if only in name else ():
            run = trained(config("Llama-3.2-3B"), adapter(one["adapter"]), [(4, SHORTEST), (4, length)], Style(cache=True))
            found = replayed(run, one["device"], True)
            held = length == LONGEST and not one["fixes_length"]
            said = "" if held else ", fixes the length" if one["fixes_length"] else f", at {BOUND}"
            sizes = one["max_reserved_bytes"], found.reserved_bytes, found.allocated_bytes
            rows.append(tell(Row(f"PEFT {name}{said}", *sizes, found.operation, held)))
    return rows


def litgpt_rows(only: str) -> list[Row]:
    """Differs: LitGPT has its own modules, with queries, keys and values in one matrix. Its chunks of the loss, its two tables
    and its dropout (litgpt/finetune/lora.py) are here."""
    from benchmarks._foreign_graph import Style, trained

    rows = []
    for one in json.loads((PUBLISHED / "litgpt.json").read_text())["rows"]:
        name = f"LitGPT {one['model']} r{one['rank']}, {one['micro_batch']} x {one['length']}"
        if only in name:
            lora = adapter({"peft_type": "LORA", "r": one["rank"], "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]})
            batches = [(one["micro_batch"], one["length"])] * 2
            style = Style(cache=False, padded=False, chunk=128, adapter_float32=False, clip=False)
            found = replayed(trained(config(one["model"], False), lora, batches, style), one["device"], False)
            sizes = one["peak_gb"] * 1e9, found.allocated_bytes, found.allocated_bytes
            rows.append(tell(Row(name, *sizes, found.operation, False)))
    return rows


def torchtune_rows(only: str) -> list[Row]:
    """Differs: torchtune has its own modules; rows that were compiled are left out, no eager graph is theirs."""
    from benchmarks._foreign_graph import Style, trained

    told, rows = json.loads((PUBLISHED / "torchtune.json").read_text()), []
    for one in told["rows"]:
        name = f"torchtune 3B full, {one['technique']}"
        if only in name and not one["compiled"]:
            style = Style(cache=False, clip=False)
            run = trained(config(told["model"]), None, [(told["batch"], told["length"])] * 2, style)
            found = replayed(run, "A100", False)
            sizes = one["peak_gib"] * 2.0**30, found.allocated_bytes, found.allocated_bytes
            rows.append(tell(Row(name, *sizes, found.operation, False)))
    return rows


def tell(row: Row) -> Row:
    gib = [f"{size / 2**30:9.2f}" for size in row[1:4]]
    mark = "" if row.held else "  (not counted)"
    print(f"{row.name:52}{''.join(gib)} {row.error_frac:+7.1%}  {row.operation}{mark}", flush=True)
    return row


def main() -> dict[str, float]:
    """Print all; returns the errors of the runs that are held against bars."""
    options = argparse.ArgumentParser(prog="python -m benchmarks plan_published")
    options.add_argument("--only", default="", help="runs whose name has this text")
    only = options.parse_args(sys.argv[2:]).only
    begun = time.process_time()
    print(f"{'GiB':52} measured  planned allocated   error  last segment at")
    rows = [*peft_rows(only), *litgpt_rows(only), *torchtune_rows(only)]
    errors = [row.error_frac for row in rows if row.held]
    bound = [row.error_frac for row in rows if row.name.endswith(f"at {BOUND}")]
    print(f"{time.process_time() - begun:.0f} s of processor time")
    if not errors:
        return {}
    return {
        "median": round(median(abs(error) for error in errors), 4),
        "worst_under": round(max(0.0, -min(errors)), 4),
        "runs": len(errors),
        "median_at_bound": round(median(abs(error) for error in bound), 4),
    }
