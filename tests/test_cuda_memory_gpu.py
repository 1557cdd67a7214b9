"""On a machine with a CUDA card: what its allocator reserves for two steps of our loop, against the replay of their trace."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks import plan_exact
from benchmarks.plan_exact import Case

from modelwright.nn.cards import AMPERE
from modelwright.nn.device import Card
from modelwright.plan import cuda
from modelwright.stages._trace import Job, prepared, steps, traced
from modelwright.stages._trace_open import opened

SIZES: dict[str, Any] = {"depth": 8, "hidden": 512, "heads": 8, "kv_heads": 4, "intermediate": 2048}
LARGER: dict[str, Any] = {"depth": 12, "hidden": 1024, "heads": 16, "kv_heads": 4, "intermediate": 4096}
LONG = {"length": 2048, "batch_tokens": 8192, "micro_tokens": 8192}
SHORT = {"length": 256, "batch_tokens": 8192, "micro_tokens": 2048}
HALF = {"precision": "bf16"}
WAYS: tuple[dict[str, Any], ...] = (
    {**LONG, **HALF},
    {**SHORT, **HALF},
    {**LONG, **HALF, "adapter": "lora"},
    {**LONG, **HALF, "recompute": "full"},
    {**LONG, **HALF, "optimizer": "lion"},
    {**LONG, **HALF, "optimizer": "adafactor"},
    {**SHORT, **HALF, "optimizer": "muon"},
    {**SHORT, "precision": "fp32"},
    {**LONG, **HALF, "objective": "sft"},
    {**SHORT, **HALF, "adapter": "lora", "objective": "sft", "recompute": "full"},
)
CONFIGURATIONS = [(way, sizes) for way in WAYS for sizes in (SIZES, LARGER)]


def reserved_bytes(job: Job, folder: Path) -> int:
    """Most that the card's allocator held in two real steps."""
    words, rows = prepared(job, folder)
    torch.cuda.empty_cache()
    model = opened(job.stage, job.config, words, job.seed).to("cuda")
    torch.cuda.reset_peak_memory_stats()
    steps(job, model, rows, folder)
    return torch.cuda.max_memory_reserved()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a CUDA card")
def test_what_a_card_reserves_is_what_the_replay_says(tmp_path: Path) -> None:
    errors, card = [], Card(torch.cuda.get_device_capability() >= AMPERE)
    for number, (way, sizes) in enumerate(CONFIGURATIONS):
        job = plan_exact.job(Case("", way, sizes))
        told = cuda.reserved(traced(job._replace(card=card)).events, torch.cuda.get_device_name()).value
        folder = tmp_path / str(number)
        folder.mkdir()
        errors.append(told / reserved_bytes(job, folder) - 1)
    assert len(errors) == 20
    assert median(abs(error) for error in errors) <= 0.05, errors
    assert max(abs(error) for error in errors) <= 0.10, errors
