"""Every way of dividing a training over processes takes the steps that one process alone takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parallel_kit import together, train

MEASURED: dict[str, Any] = {"steps": 8, "validate_every": 2, "keep_best": True}
TWO: dict[str, dict[str, Any]] = {
    "data": {"sizes": {"data": 2}},
    "data dpo": {"sizes": {"data": 2}, "objective": "dpo"},
    "shard": {"sizes": {"shard": 2}},
    "shard untied": {"sizes": {"shard": 2}, "tied": False},
    "shard dpo": {"sizes": {"shard": 2}, "objective": "dpo"},
    "shard average": {"sizes": {"shard": 2}, "average": 0.9, **MEASURED},
    "shard schedule-free": {"sizes": {"shard": 2}, "optimizer": "schedule_free", **MEASURED},
}
AXES = ("data", "shard", "expert", "context", "tensor", "pipeline")
FLOAT32: dict[str, dict[str, Any]] = {
    axis: {"sizes": {axis: 2}, "float64": False, "steps": 1, "micro_tokens": 20} for axis in AXES
}
FLOAT32["expert"]["family"] = "qwen3_moe"
CHAIN: list[tuple[dict[str, int], int | None]] = [({"shard": 2}, 3), ({"context": 2}, 6), ({"data": 2}, 9), ({}, None)]
"""A training that goes on under one layout after the other, and the step that each stops after; `test_parallel_layers.py` has
the other axes."""
CHAINED: dict[str, Any] = {"steps": 12, "average": 0.9, "validate_every": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    links = [{"sizes": sizes, "stop": stop, "folder": str(folder / "chain"), **CHAINED} for sizes, stop in CHAIN]
    said = together([*TWO.values(), *FLOAT32.values(), *links[:-1]], folder, 2)
    parts = [*said[len(TWO) + len(FLOAT32) :], train(links[-1], folder / "chain")]
    return {**dict(zip([*TWO, *(f"float32 {axis}" for axis in AXES)], said, strict=False)), "chain": parts}


@pytest.mark.parametrize("name", TWO)
def test_two_processes_take_the_steps_of_one(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    alone, ours = train(TWO[name], tmp_path), found[name]
    assert len(ours["loss"]) == TWO[name].get("steps", 50)
    for key in ("loss", "norm", "validation"):
        assert ours[key] == pytest.approx(alone[key], rel=1e-9 if key == "loss" else 1e-5), key
    assert ours["weights"] == pytest.approx(alone["weights"], rel=1e-7)


@pytest.mark.parametrize("axis", AXES)
def test_the_first_step_in_float32(axis: str, found: dict[str, Any], tmp_path: Path) -> None:
    alone, ours = train(FLOAT32[axis], tmp_path), found[f"float32 {axis}"]
    for key in ("loss", "norm"):
        assert ours[key] == pytest.approx(alone[key], rel=1e-5), key


def test_a_training_goes_on_under_another_layout(found: dict[str, Any], tmp_path: Path) -> None:
    alone = train(CHAINED, tmp_path)
    assert [len(part["loss"]) for part in found["chain"]] == [3, 3, 3, 3]
    assert [loss for part in found["chain"] for loss in part["loss"]] == pytest.approx(alone["loss"], rel=1e-9)
    assert found["chain"][-1]["weights"] == pytest.approx(alone["weights"], rel=1e-7)
