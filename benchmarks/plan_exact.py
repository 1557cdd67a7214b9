"""How near the count of `plan --exact` (two training steps on tensors without values) is to what the same steps, run for real,
ask of c10's CPU allocator: torch.profiler's memory events, everything that operations take for themselves included. Every
objective, optimizer, architecture and adapter that there is, by file; recomputation, precision, averages, steps inside the
backward pass, lengths and micro-batches. A mixture of experts is counted with even routing, and routes as its random weights do.

`python -m benchmarks plan_exact [--only TEXT]`; `worst` is the largest difference, as a fraction.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

VOCAB, LENGTH, BATCH = 2000, 128, 512
SIZES: dict[str, Any] = {"depth": 4, "hidden": 128, "heads": 4}
MORE: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32, "window": 64},
    "moe": {"head_dim": 32, "experts": 4},
    "encoder": {"window": 64},
    "encoder_decoder": {"head_dim": 32},
}
"""Architecture -> what it needs to be small; one that is not named here is as its file says."""
OF_HEAD = {"masked": "encoder", "seq2seq": "encoder_decoder"}
"""Head that an objective needs -> an architecture that has it; else `llama`."""
SUITED = {"encoder": "masked_token", "encoder_decoder": "span_corruption"}
"""Architecture -> an objective for it; else `next_token`."""
ADAPTED: tuple[dict[str, Any], ...] = ({}, {"ends": "both"}, {"dropout": 0.1}, {"targets": "attention"})
"""Settings that adapters are tried with, where they have them."""


class Case(NamedTuple):
    name: str
    fields: dict[str, Any]
    """Of the stage."""
    sizes: dict[str, Any] = {}
    """Of the architecture."""


def cases() -> Iterator[Case]:
    from modelwright.methods.adapters import ADAPTERS
    from modelwright.methods.architectures import ARCHITECTURES
    from modelwright.methods.objectives import OBJECTIVES
    from modelwright.methods.optimizers import OPTIMIZERS

    for kind in OBJECTIVES.names():
        yield Case(f"objective {kind}", {"objective": kind})
    for kind in OPTIMIZERS.names():
        yield Case(f"optimizer {kind}", {"optimizer": kind, "schedule": "constant"})
    for kind in ARCHITECTURES.names():
        for more in ({}, {"precision": "bf16"}, {"recompute": "full"}):
            yield Case(f"{kind}{''.join(f' {value}' for value in more.values())}", {"architecture": kind, **more})
    for kind in ADAPTERS.names():
        for settings in ADAPTED:
            if settings.keys() <= ADAPTERS.load(kind).model_fields.keys():
                said = "".join(f" {name} {value}" for name, value in settings.items())
                yield Case(f"{kind}{said}", {"adapter": {"kind": kind, **settings}, "objective": "sft"})
        yield Case(f"{kind} dpo bf16", {"adapter": kind, "objective": "dpo", "precision": "bf16"})
    yield Case("two tables", {}, {"tied": False})
    yield Case("micro-batches", {"micro_tokens": 128})
    yield Case("long rows", {"length": 512, "batch_tokens": 1024, "micro_tokens": 1024})
    yield Case("short rows", {"length": 16})
    yield Case("steps in the backward pass", {"step_in_backward": True, "clip": 0})
    yield Case("average", {"average": 0.9})
    yield Case("average, validated", {"average": 0.9, "validation": "held"})
    free = {"optimizer": "schedule_free", "schedule": "constant"}
    yield Case("validated", {"validation": "held", **free})


def job(case: Case) -> Any:
    from modelwright.core.stage import STAGES
    from modelwright.methods.architectures import ARCHITECTURES
    from modelwright.methods.objectives import OBJECTIVES
    from modelwright.stages._trace import Job

    fields: dict[str, Any] = dict(case.fields)
    model = fields.pop("architecture", "")
    objective: Any = OBJECTIVES.load(fields.setdefault("objective", SUITED.get(model, "next_token")))
    if "mask" in objective.model_fields:
        fields["objective"] = {"kind": fields["objective"], "mask": "[MASK]"}
    kind = model or OF_HEAD.get(objective.head, "llama")
    small = {**SIZES, **MORE[kind]} if kind in MORE else {}
    built: Any = ARCHITECTURES.build({"kind": kind, **small, **case.sizes})
    begins = {"start": "./start"} if "adapter" in fields or objective.reference else {"vocab": "vocab", "model": built}
    tree = {"kind": "train", "data": "rows", "steps": 2, "threads": 1}
    sizes = {"length": LENGTH, "batch_tokens": BATCH, "micro_tokens": BATCH}
    stage: Any = STAGES.load("train").model_validate({**tree, **sizes, **begins, **fields})
    return Job(stage, built.config(VOCAB, stage.length), products="bf16" if stage.precision == "bf16" else "fp32")


def main() -> dict[str, float]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(prog="python -m benchmarks plan_exact")
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose name holds this")
    only = parser.parse_known_args()[0].only

    import torch

    from modelwright.stages._trace import traced
    from modelwright.stages._trace_real import allocated

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    print(f"{'configuration':<30}{'counted':>14}{'allocated':>14}{'difference':>12}  operation at the peak")
    for case in cases():
        if only not in case.name:
            continue
        counted, real = traced(job(case)), allocated(job(case))
        off = found[case.name] = counted.peak.bytes / real - 1
        interval = (
            f", {counted.low_bytes:,} to {counted.high_bytes:,} by routing" if counted.low_bytes != counted.high_bytes else ""
        )
        where = f"{counted.peak.operation} in {counted.peak.place}{interval}"
        print(f"{case.name:<30}{counted.peak.bytes:>14,}{real:>14,}{100 * off:>+11.3f} %  {where}", flush=True)
    if not found:
        sys.exit(f"no configuration has {only!r} in its name")
    worst = max(found, key=lambda name: abs(found[name]))
    print(f"\n{len(found)} configurations; worst: {worst}, {100 * found[worst]:+.3f} %")
    return {"worst": round(abs(found[worst]), 5), "configurations": len(found)}
