"""How near the plan's arithmetic of memory (`core/memory/`, no torch) is to the exact count of our own training loop
(`stages/_trace.py`: two steps on tensors without values). Bytes of tensors at the peak, over architectures x lengths x
micro-batches x adapters x recomputation x optimizers x precisions x objectives x devices; both are told the same stage and
nothing else. Cards are not needed: both tiers say what their kernels would ask for.

`python -m benchmarks plan_closed_form [--random 150] [--seed 0]`: every dimension alone, from four places, and so many drawn at
random. `median` and `worst` are of the absolute differences, as fractions of the exact count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from random import Random
from statistics import median
from typing import Any, NamedTuple

VOCAB = 2048
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama", "depth": 3, "kv_heads": 1},
    "llama wide": {"kind": "llama", "depth": 3, "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536, "tied": False},
    "qwen3": {"kind": "qwen3", "depth": 3, "hidden": 192, "heads": 4, "head_dim": 64},
    "gemma": {"kind": "gemma", "depth": 4, "hidden": 128, "heads": 4, "window": 96},
    "moe": {"kind": "moe", "depth": 3, "hidden": 128, "heads": 4, "head_dim": 64},
    "encoder": {"kind": "encoder", "depth": 3, "window": 64},
    "encoder_decoder": {"kind": "encoder_decoder", "depth": 3, "hidden": 128, "heads": 4, "head_dim": 32},
    "135M": {"kind": "llama", "depth": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536},
}
OWN = ("llama", "llama wide", "qwen3", "gemma", "135M")
"""Those that our own forward pass runs."""
DECODERS = (*OWN, "moe")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "lamb", "muon", "schedule_free")
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "lora": {"kind": "lora"},
    "attention": {"kind": "lora", "targets": "attention", "rank": 64},
    "head": {"kind": "lora", "ends": "head"},
    "embeddings": {"kind": "lora", "ends": "embeddings"},
    "dropout": {"kind": "lora", "dropout": 0.1},
}
OBJECTIVES = {
    "decoders": ("next_token", "sft", "dpo", "multi_token", "contrastive"),
    "encoder": ("masked_token", "contrastive"),
    "encoder_decoder": ("span_corruption",),
}
AXES: dict[str, tuple[Any, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "length": (128, 64, 256, 512),
    "batch": ((512, 512), (1024, 1024), (1024, 256)),
    "adapter": tuple(ADAPTERS),
    "recompute": ("selective", "full"),
    "optimizer": OPTIMIZERS,
    "precision": ("fp32", "bf16"),
    "objective": ("plain", "sft", "dpo", "multi_token", "contrastive"),
    "more": ("none", "early", "average", "validated", "large vocabulary"),
    "device": ("processor", "new card", "old card"),
}
"""What is varied; the first of each is the usual one. `batch`: tokens of a step, and of a micro-batch. `device`: new cards have
flash attention, and old ones (before Ampere) float16 in place of bfloat16."""


BESIDE = ("imports", "rows", "reference")
"""Parts of the plan that are no tensors of the loop."""


class Result(NamedTuple):
    combination: dict[str, Any]
    closed_bytes: float
    moment: str
    exact_bytes: float
    operation: str

    @property
    def error_frac(self) -> float:
        return self.closed_bytes / self.exact_bytes - 1


def possible(one: dict[str, Any]) -> bool:
    """Whether a recipe may say so, and the words mean what they say."""
    architecture, early = one["architecture"], one["more"] == "early"
    if (
        one["objective"] != "plain"
        and architecture not in DECODERS
        and not (architecture == "encoder" and one["objective"] == "contrastive")
    ):
        return False
    if one["adapter"] != "none" and (architecture not in OWN or one["objective"] in ("multi_token", "contrastive")):
        return False
    if early and (one["batch"][0] != one["batch"][1] or one["objective"] == "contrastive"):
        return False
    if one["optimizer"] == "schedule_free" and one["more"] in ("average", "validated"):
        return False
    if early and one["device"] == "old card" and one["precision"] != "fp32":
        return False
    return not (one["length"] > one["batch"][1] or (one["objective"] == "dpo" and 1.25 * one["length"] > one["batch"][1]))


def combinations(drawn: int, seed: int) -> Iterator[dict[str, Any]]:
    """Every value of every axis, the other axes as in each of four places; then as many more, drawn at random."""
    usual = {axis: values[0] for axis, values in AXES.items()}
    places = [usual, {**usual, "precision": "bf16", "length": 256}, {**usual, "adapter": "lora", "objective": "sft"}]
    places.append({**usual, "architecture": "moe", "optimizer": "muon", "length": 128})
    seen = set()
    draw = Random(seed)
    lone = [{**place, axis: value} for place in places for axis, values in AXES.items() for value in values]
    while lone or drawn:
        one = lone.pop(0) if lone else {axis: draw.choice(values) for axis, values in AXES.items()}
        random = len(seen) and not lone
        if one["architecture"] == "135M" and random and draw.random() < 0.7:
            continue  # seconds each
        if not possible(one) or str(one) in seen:
            continue
        drawn -= bool(random)
        seen.add(str(one))
        yield one


def described(one: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(stage, what is given, the model's configuration) of a combination."""
    from modelwright.core.estimate import Facts, Given
    from modelwright.methods.architectures import ARCHITECTURES as KINDS
    from modelwright.stages.train import Train

    sizes = ARCHITECTURES[one["architecture"]]
    architecture: Any = KINDS.build(sizes)
    vocab = 32_000 if one["more"] == "large vocabulary" else VOCAB
    objective = {"encoder": "masked_token", "encoder_decoder": "span_corruption"}.get(one["architecture"], "next_token")
    starts = one["adapter"] != "none" or one["objective"] == "dpo"
    fields: dict[str, Any] = {
        "kind": "train",
        "data": "data",
        "steps": 2,
        "objective": objective if one["objective"] == "plain" else one["objective"],
        "length": one["length"],
        "batch_tokens": one["batch"][0],
        "micro_tokens": one["batch"][1],
        "adapter": ADAPTERS[one["adapter"]],
        "recompute": one["recompute"],
        "optimizer": one["optimizer"],
        "precision": "fp16" if one["device"] == "old card" and one["precision"] == "bf16" else one["precision"],
        **({"start": "base"} if starts else {"model": sizes, "vocab": "vocab"}),
        **({"schedule": "constant"} if one["optimizer"] == "schedule_free" else {}),
        **({"step_in_backward": True, "clip": 0.0} if one["more"] == "early" else {}),
        **({"average": 0.9} if one["more"] in ("average", "validated") else {}),
        **({"validation": ["data"], "validate_every": 1} if one["more"] == "validated" else {}),
    }
    machine = machines()[one["device"]]
    facts = {"data": Facts(type="records"), "vocab": Facts(type="tokenizer", rows=vocab)}
    given = Given(machine, {**facts, "base": Facts(type="model", shape=architecture.shape(vocab))})
    return Train.model_validate(fields).resolve(given), given, architecture.config(vocab, one["length"])


def machines() -> dict[str, Any]:
    from modelwright.core.estimate import Machine

    card = Machine("card", 2, 16e9, "cuda", flops_per_s=1e13, device_memory_bytes=16e9)
    return {
        "processor": Machine("here", 2, 16e9, flops_per_s=1e11, bf16_flops_per_s=2e11),
        "new card": card._replace(bf16_flops_per_s=1e14),
        "old card": card._replace(fp16_flops_per_s=1e14),
    }


def planned(stage: Any, given: Any) -> tuple[float, str]:
    """Bytes of the loop's tensors by the plan, and the moment that it names."""
    found = stage.estimate(given)
    held = sum(part.bytes for part in found.device_parts or found.parts if part.name not in BESIDE)
    return held, (found.device_memory or found.memory).why.partition("; at ")[2].partition(";")[0]


def measured(one: dict[str, Any]) -> Result:
    """Both numbers of one combination."""
    from modelwright.stages._trace import Job, traced

    stage, given, config = described(one)
    exact = traced(Job.of(stage, config, given)).peak
    return Result(one, *planned(stage, given), exact.bytes, f"{exact.operation} in {exact.place}")


def table(results: list[Result]) -> None:
    print(f"{'':28}{'number':>8}{'median':>9}{'worst':>9}")
    rows = [("all", results)]
    for axis, values in AXES.items():
        rows += [(f"{axis} {value}", [r for r in results if r.combination[axis] == value]) for value in values]
    for name, some in rows:
        if some:
            errors = [abs(result.error_frac) for result in some]
            print(f"{name:28}{len(some):>8}{median(errors):>9.2%}{max(errors):>9.2%}")
    print("\nThe ten furthest off:")
    for result in sorted(results, key=lambda result: -abs(result.error_frac))[:10]:
        said = " ".join(str(value) for axis, value in result.combination.items() if value != AXES[axis][0]) or "usual"
        print(f"{result.error_frac:+7.2%} of {result.exact_bytes / 1e6:.1f} MB: {said}")
        print(f"        {result.moment}; counted: {result.operation}")


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan_closed_form")
    parser.add_argument("--random", type=int, default=150, help="combinations drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(sys.argv[2:])
    results = []
    for one in combinations(given.random, given.seed):
        results.append(measured(one))
        print(f"\r{len(results)} combinations, worst {max(abs(r.error_frac) for r in results):.2%} ", end="", file=sys.stderr)
    print(file=sys.stderr)
    table(results)
    errors = [abs(result.error_frac) for result in results]
    return {"median": round(median(errors), 5), "worst": round(max(errors), 5), "combinations": len(results)}


if __name__ == "__main__":
    print(main())
