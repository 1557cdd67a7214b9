"""Optimizers that look at whole weights take the steps of one process where every process holds parts, and go on elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.nn.parallel.owned import cut
from tests.parallel_kit import together, train

KINDS = [kind for kind in OPTIMIZERS.names() if not OPTIMIZERS.load(kind).elementwise]  # type: ignore[attr-defined]
SHARD, TENSOR, EXPERT, PIPELINE = ({axis: 2} for axis in ("shard", "tensor", "expert", "pipeline"))
LARGE: dict[str, Any] = {"hidden": 64, "intermediate": 128}
"""Weights of more than 4,096 values, which have states of 8 bits."""
SHORT = {"steps": 8}
TWO: dict[str, dict[str, Any]] = {f"shard {kind}": {"sizes": SHARD, "optimizer": kind, **LARGE} for kind in KINDS}
TWO |= {f"tensor {kind}": {"sizes": TENSOR, "optimizer": kind, **LARGE, **SHORT} for kind in KINDS}
TWO |= {
    f"expert {kind}": {"sizes": EXPERT, "optimizer": kind, "family": "qwen3_moe", **SHORT}
    for kind in ("lamb", "adafactor", "muon")
}
TWO |= {f"pipeline {kind}": {"sizes": PIPELINE, "optimizer": kind, "micro_tokens": 20, **SHORT} for kind in ("lamb", "muon")}
TWO |= {"shard lora": {"sizes": SHARD, "optimizer": "muon", "rank": 4, **SHORT}}
FOUR: dict[str, dict[str, Any]] = {
    "shard x data": {"sizes": SHARD | {"data": 2}, "optimizer": "muon", **SHORT},
    "shard of four, uneven": {"sizes": {"shard": 4}, "optimizer": "adafactor", "hidden": 40, "intermediate": 50, **SHORT},
}
CHAIN: list[tuple[dict[str, int], int | None]] = [({}, 4), (SHARD, 8), (TENSOR, 12), ({}, None)]
"""A training that goes on under one layout after the other, and the step that each stops after."""
CHAINED: dict[str, Any] = {**LARGE, "steps": 16}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("some")

    def link(kind: str, number: int) -> dict[str, Any]:
        sizes, stop = CHAIN[number]
        return {"sizes": sizes, "stop": stop, "folder": str(folder / kind), "optimizer": kind, **CHAINED}

    chains = {kind: [train(link(kind, 0), folder / kind, steps=CHAIN[0][1])] for kind in KINDS}
    said = together([*TWO.values(), *(link(kind, number) for kind in KINDS for number in (1, 2))], folder / "two", 2)
    for number, (kind, parts) in enumerate(chains.items()):
        parts += [*said[len(TWO) + 2 * number :][:2], train(link(kind, 3), folder / kind)]
    return {**dict(zip(TWO, said, strict=False)), **{f"chain {kind}": parts for kind, parts in chains.items()}}


def same(job: dict[str, Any], ours: dict[str, Any], folder: Path) -> None:
    alone = train(job, folder)
    assert len(ours["loss"]) == job.get("steps", 50)
    for key in ("loss", "norm", "validation"):
        assert ours[key] == pytest.approx(alone[key], rel=1e-9 if key == "loss" else 1e-5), key
    assert ours["weights"] == pytest.approx(alone["weights"], rel=1e-7)


@pytest.mark.parametrize("name", TWO)
def test_two_processes_take_the_steps_of_one(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    same(TWO[name], found[name], tmp_path)


@pytest.mark.slow
def test_four_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    for name, ours in zip(FOUR, together(list(FOUR.values()), tmp_path / "four", 4), strict=True):
        same(FOUR[name], ours, tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_under_another_layout(kind: str, found: dict[str, Any], tmp_path: Path) -> None:
    alone, parts = train({"optimizer": kind, **CHAINED}, tmp_path), found[f"chain {kind}"]
    assert [loss for part in parts for loss in part["loss"]] == pytest.approx(alone["loss"], rel=1e-9)
    assert parts[-1]["weights"] == pytest.approx(alone["weights"], rel=1e-7)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 61])
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_parts_are_those_of_torch(rows: int, processes: int) -> None:
    parts = [len(part) for part in torch.arange(rows).chunk(processes)] if rows else []
    assert list(cut(rows, 0, processes).lengths) == parts + [0] * (processes - len(parts))
