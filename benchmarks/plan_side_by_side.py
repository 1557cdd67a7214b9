"""Planners side by side: what each says that training a dozen public models takes (all weights, AdamW, one row of 1,024 tokens
at once), against the bytes that such a step allocates, counted operation by operation on tensors without values. Ours, which is
arithmetic, is held against our own step, so that it can be as near as it is complete; the others describe a usual loop, and are
held against that: transformers' modules and loss and torch's fused AdamW, in the numbers that each of them describes. `accelerate
estimate-memory` runs as it is, with the model made on the spot (given a folder it fails, and without a network it finds nothing);
of DeepSpeed, the estimators for a known number of weights. Two calculators are told anew from their files, with the best settings
that they have for these models. Below, what the one that describes bfloat16 throughout says of such peaks that others measured on
cards and published; ours of the same runs, at the same bound of 768 tokens and at the longest row, stand in `plan_published`.

`python -m benchmarks plan_side_by_side [--length 1024] [--models 12]`
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.measure import cores
from modelwright.core.stage import STAGES
from modelwright.core.units import bytes_text
from modelwright.plan.fit import tried
from modelwright.plan.models import Base, bases

MACHINE = Machine("a card of any size", 8, 1e12, "cuda", 1e13, bf16_flops_per_s=1e14, device_memory_bytes=1e12)
PUBLISHED = Path(__file__).parents[1] / "tests" / "published"
START, DATA = "./start/", "./rows.jsonl"
MIB = 2.0**20


class Says(Protocol):
    """Bytes that a planner says a training takes."""

    def __call__(self, base: Base, length: int, rows: int = 1) -> float: ...


class Tool(NamedTuple):
    """A planner, and what it describes."""

    name: str
    truth: str
    """`ours` (float32), or the numbers of the usual loop: `fp32`, `mixed` (autocast to bfloat16), `masters` (weights and their
    gradients in bfloat16, copies of both in float32 for the step), `bf16` throughout."""
    covers: str
    says: Says


# --- what they say ----------------------------------------------------------------------------------


def ours(base: Base, length: int, rows: int = 1) -> float:
    found = tried(_stage(length, rows), _given(base, length)).estimate.device_memory
    assert found is not None
    return found.value


def _stage(length: int, rows: int = 1) -> Any:
    sizes = {"length": length, "batch_tokens": length * rows, "micro_tokens": length * rows, "steps": 3}
    return STAGES.build({"kind": "train", "start": START, "data": DATA, "objective": "next_token", "precision": "fp32", **sizes})


def _given(base: Base, length: int) -> Given:
    rows = Facts(type="records", rows=1000, tokens=1000.0 * length)
    return Given(MACHINE, {START: Facts(type="model", shape=base.shape, head="causal"), DATA: rows})


def accelerate(precision: str) -> Says:
    """`accelerate/commands/estimate.py` of the installed version: `AutoModel` without weights, its size, and the most of a fixed
    multiple of it."""

    def says(base: Base, length: int, rows: int = 1) -> float:
        import torch
        from accelerate import init_empty_weights
        from accelerate.commands.estimate import calculate_maximum_sizes, estimate_training_usage
        from transformers import AutoModel

        with init_empty_weights():
            model = AutoModel.from_config(config_of(base), dtype=torch.float32)
        size, _ = calculate_maximum_sizes(model)
        return float(max(estimate_training_usage(size, precision).values()))

    return says


def zero(stage: int) -> Says:
    """One card, nothing offloaded; the largest layer is the table of embeddings, as `model_to_params` counts it."""

    def says(base: Base, length: int, rows: int = 1) -> float:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if stage == 2:
                from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as needs

                return float(needs(base.params, cpu_offload=False)[1])
            from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as needs3

            largest = max(base.shape.vocab, base.shape.intermediate) * base.shape.hidden
            return float(needs3(base.params, largest, cpu_offload=False, cpu_offload_params=False)[1])

    return says


def cookbook(base: Base, length: int, rows: int = 1) -> float:
    """EleutherAI's `calc/calc_transformer_mem.py`, https://github.com/EleutherAI/cookbook at 827ee3b: three linears in an MLP, as
    wide as they are, key-value heads by their ratio, mixed precision with gradients and states in float32, no recomputation."""
    shape = base.shape
    wide, layers = shape.hidden, shape.layers
    params = 2 * shape.vocab * wide + wide * length + 8 * wide * layers + 2 * wide
    params += int(2 * (1 + shape.kv_heads / shape.heads) * layers * wide * wide) + 3 * layers * wide * shape.intermediate
    kept = rows * length * wide * layers * ((16 * 2 + 2) + (2 * 2 + 1) * shape.heads * length / wide)
    return params * (2 + 4 + 12) + kept


def gpu_poor(base: Base, length: int, rows: int = 1) -> float:
    """`src/App.js` of https://github.com/RahulSChand/gpu_poor at ad2fc0e: full training with Adam, everything in 16 bits, scores
    of attention kept, 650 MB beside."""
    return 2 * (1 + 3) * _poor_weights(base) + _poor_beside(base, length, rows)


def gpu_poor_lora(base: Base, length: int, rows: int = 1) -> float:
    """The same with LoRA, whose rank it does not ask for."""
    shape = base.shape
    return 2 * _poor_weights(base) + shape.layers * 8 * shape.hidden * 2 * 4 * 3 * 2 + _poor_beside(base, length, rows)


def _poor_weights(base: Base) -> float:
    shape = base.shape
    of_layer = 4 * shape.hidden**2 + 3 * shape.intermediate * shape.hidden
    return 2 * shape.vocab * shape.hidden + shape.layers * of_layer


def _poor_beside(base: Base, length: int, rows: int) -> float:
    wide, inner = base.shape.hidden, base.shape.intermediate
    attention = length * wide * 8 * 2 + length * length * base.shape.heads * (2 + 4 + 2)
    mlp = length * (2 * wide + 6 * inner) * 2
    norms = length * 8 + length * wide * 6 * 2
    return rows * base.shape.layers * (attention + mlp + norms) + 650 * MIB


def thumb(base: Base, length: int, rows: int = 1) -> float:
    """16 bytes a weight: weights, gradients and Adam's two states in float32 (Rajbhandari et al. 2020, arXiv:1910.02054, section
    3.1, has as many for 16 bits beside 32)."""
    return 16.0 * base.params


TOOLS = (
    Tool("modelwright", "ours", "weights, states, activations, logits, step; its own count", ours),
    Tool("accelerate, float32", "fp32", "weights and states; no head, no activations", accelerate("float32")),
    Tool("accelerate, float16", "mixed", "the same", accelerate("float16")),
    Tool("DeepSpeed ZeRO 2", "masters", "weights and states (named so)", zero(2)),
    Tool("DeepSpeed ZeRO 3", "masters", "the same, and the largest layer", zero(3)),
    Tool("EleutherAI cookbook", "masters", "weights, states, activations; no logits", cookbook),
    Tool("gpu_poor", "bf16", "weights, states, activations, overhead; no logits", gpu_poor),
    Tool("16 bytes a weight", "fp32", "weights and states", thumb),
)


# --- what is so -------------------------------------------------------------------------------------


def config_of(base: Base) -> Any:
    """transformers' configuration of these sizes."""
    from transformers import AutoConfig

    shape = base.shape
    more = {"sliding_window": shape.window} if shape.window else {}
    return AutoConfig.for_model(
        base.type,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim or shape.hidden // shape.heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=base.context,
        **more,
    )


def usual(base: Base, length: int, numbers: str) -> float:
    """A step of the usual loop, its optimizer's states there already."""
    import torch
    from transformers import AutoModelForCausalLM

    from modelwright.nn.fake import Fake
    from modelwright.nn.tally import Tally

    tokens = torch.arange(length)[None] % 100
    with Fake():
        dtype = torch.bfloat16 if numbers in ("bf16", "masters") else torch.float32
        model = AutoModelForCausalLM.from_config(config_of(base), dtype=dtype, attn_implementation="sdpa").train()
        stepped = [weight.detach().float() for weight in model.parameters()] if numbers == "masters" else list(model.parameters())
        optimizer = torch.optim.AdamW(stepped, fused=True)
        for weight in stepped:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad()
        with Tally() as tally:
            tally.own("weights", [*model.parameters(), *model.buffers(), *stepped])
            tally.own("optimizer", [value for state in optimizer.state.values() for value in state.values()])
            with torch.autocast("cpu", torch.bfloat16, enabled=numbers == "mixed"):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            if numbers == "masters":
                for wide, weight in zip(stepped, model.parameters(), strict=True):
                    wide.grad = weight.grad.float()
            optimizer.step()
            if numbers == "masters":
                for wide, weight in zip(stepped, model.parameters(), strict=True):
                    weight.data.copy_(wide)
    return float(tally.peak().bytes)


def own(base: Base, length: int) -> float:
    """Two steps of ours."""
    from modelwright.stages._trace import Job, traced

    given = _given(base, length)
    return float(traced(Job.of(_stage(length).resolve(given), config_of(base), given)).peak.bytes)


def truth(base: Base, length: int, name: str) -> float:
    return own(base, length) if name == "ours" else usual(base, length, name)


def published() -> Iterator[tuple[str, Base, int, int, bool, float]]:
    """(whose, model, tokens, rows, LoRA, bytes) of what others measured on cards, all in bfloat16 throughout."""
    known = {base.name.lower(): base for base in bases()}
    known["llama-3-8b"] = known["llama-3.1-8b"]
    for name, layers, hidden, inner, heads in (("llama-2-7b", 32, 4096, 11008, 32), ("llama-2-13b", 40, 5120, 13824, 40)):
        sizes = {"layers": layers, "hidden": hidden, "intermediate": inner, "heads": heads, "kv_heads": heads}
        known[name] = Base(name, Shape(**sizes, vocab=32000, tied=False))
    for row in json.loads((PUBLISHED / "peft.json").read_text())["rows"]:
        adapter, how = row["adapter"], row["train_config"]
        if adapter is None or adapter["peft_type"] == "LORA":
            base = known[how["model_id"].rpartition("/")[2].lower()]
            yield "PEFT", base, how["max_seq_length"], how["batch_size"], adapter is not None, row["max_reserved_bytes"]
    for row in json.loads((PUBLISHED / "litgpt.json").read_text())["rows"]:
        yield "LitGPT", known[row["model"].lower()], row["length"], row["micro_batch"], True, 1e9 * row["peak_gb"]


def _told_of_published() -> dict[str, list[float]]:
    """What those say of them that describe bfloat16 throughout, by name; LoRA only gpu_poor knows."""
    errors: dict[str, list[float]] = {}
    print("\npublished peaks on cards (ours: `plan_published`, which traces those graphs)\n")
    for whose, base, length, rows, lora, size in published():
        tools = {"gpu_poor": gpu_poor_lora} if lora else {tool.name: tool.says for tool in TOOLS if tool.truth == "bf16"}
        found = {name: says(base, length, rows) / size - 1 for name, says in tools.items()}
        for name, error in found.items():
            errors.setdefault(name, []).append(error)
        what = f"{whose}, {base.name}, {'LoRA' if lora else 'all weights'}, {rows} x {length}"
        print(f"{what:42}{bytes_text(size):>9}  " + ", ".join(f"{name} {error:+.0%}" for name, error in found.items()))
    return errors


def _counted(chosen: Sequence[Base], length: int, names: Sequence[str]) -> dict[tuple[str, str], float]:
    """By model and loop; in as many processes as there are cores, the largest first."""
    jobs = [(base, length, name) for base in reversed(chosen) for name in names]
    with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
        found = list(pool.map(truth, *zip(*jobs, strict=True)))
    return {(base.name, name): size for (base, _, name), size in zip(jobs, found, strict=True)}


def main() -> dict[str, Any]:
    """Print the table; returns the median error of each."""
    options = argparse.ArgumentParser(prog="plan_side_by_side")
    options.add_argument("--length", type=int, default=1024)
    options.add_argument("--models", type=int, default=12)
    given = options.parse_args(sys.argv[2:])
    chosen = bases()[: given.models]
    names = list(dict.fromkeys(tool.truth for tool in TOOLS))
    began_s = time.perf_counter()
    counted = _counted(chosen, given.length, names)
    print(f"bytes that a step allocates, one row of {given.length:,} tokens ({time.perf_counter() - began_s:.0f} s to count)\n")
    print(f"{'':16}" + "".join(f"{name:>14}" for name in names))
    for base in chosen:
        print(f"{base.name:16}" + "".join(f"{bytes_text(counted[base.name, name]):>14}" for name in names))
    print(f"\nwhat each says, less what is counted\n\n{'':16}" + "".join(f"{tool.name.split(',')[0][:12]:>13}" for tool in TOOLS))
    errors: dict[str, list[float]] = {tool.name: [] for tool in TOOLS}
    for base in chosen:
        for tool in TOOLS:
            errors[tool.name].append(tool.says(base, given.length) / counted[base.name, tool.truth] - 1)
        print(f"{base.name:16}" + "".join(f"{errors[tool.name][-1]:>+13.1%}" for tool in TOOLS))
    print(f"\n{'':22}{'held against':14}{'median':>8}{'worst':>8}{'under':>8}  covers")
    for tool in TOOLS:
        sizes = [abs(error) for error in errors[tool.name]]
        under = sum(error < -0.02 for error in errors[tool.name])
        print(f"{tool.name:22}{tool.truth:14}{median(sizes):>8.1%}{max(sizes):>8.1%}{under:>5}/{len(sizes):<2}  {tool.covers}")
    found = {_key(tool.name): round(median(map(abs, errors[tool.name])), 4) for tool in TOOLS}
    told = _told_of_published()
    return found | {f"published_{_key(name)}": round(median(map(abs, sizes)), 4) for name, sizes in told.items()}


def _key(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower()).replace("__", "_")
