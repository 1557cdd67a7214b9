"""Layers divided over processes (`tensor`) or shared out among them (`pipeline`) take the steps that one process alone takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.parallel import Parallel
from tests import train_kit as kit
from tests.parallel_kit import together, train

TENSOR, PIPELINE = {"tensor": 2}, {"pipeline": 2}
SMALL = {"micro_tokens": 20}
"""More micro-batches a step than processes, so that a pipeline fills."""
SHORT = {"steps": 12}
TWO: dict[str, dict[str, Any]] = {
    "tensor": {"sizes": TENSOR},
    "tensor untied": {"sizes": TENSOR, "tied": False, **SHORT},
    "tensor dpo": {"sizes": TENSOR, "objective": "dpo", **SHORT},
    "tensor qwen3": {"sizes": TENSOR, "family": "qwen3", **SHORT},
    "tensor gemma3": {"sizes": TENSOR, "family": "gemma3_text", **SHORT},
    "tensor lora": {"sizes": TENSOR, "rank": 4, **SHORT},
    "pipeline": {"sizes": PIPELINE, **SMALL},
    "pipeline untied": {"sizes": PIPELINE, "tied": False, **SMALL, **SHORT},
    "pipeline dpo": {"sizes": PIPELINE, "objective": "dpo", **SMALL, **SHORT},
    "pipeline average": {"sizes": PIPELINE, "average": 0.9, "validate_every": 2, "keep_best": True, **SMALL, **SHORT},
    "tensor schedule-free": {"sizes": TENSOR, "optimizer": "schedule_free", "validate_every": 2, "keep_best": True, **SHORT},
    "pipeline gemma3 lora": {"sizes": PIPELINE, "family": "gemma3_text", "rank": 4, **SMALL, **SHORT},
}
FOUR: dict[str, dict[str, Any]] = {
    "tensor x data": {"sizes": TENSOR | {"data": 2}, **SHORT},
    "tensor x shard": {"sizes": TENSOR | {"shard": 2}, **SHORT},
    "tensor x shard qwen3 lora": {"sizes": TENSOR | {"shard": 2}, "family": "qwen3", "rank": 4, **SHORT},
    "pipeline x data": {"sizes": PIPELINE | {"data": 2}, **SMALL, **SHORT},
    "pipeline x tensor": {"sizes": PIPELINE | TENSOR, **SMALL, **SHORT},
    "pipeline of four": {"sizes": {"pipeline": 4}, **SMALL, **SHORT},
}
CHAIN = [({}, 5), ({"data": 2}, 10), (TENSOR, 15), (PIPELINE, 20), ({}, 25), (PIPELINE | TENSOR, None)]
"""A training that goes on under one layout after the other, and the step that each stops after."""
CHAINED = {**SMALL, "steps": 30}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("some")
    links: list[dict[str, Any]] = [
        {"sizes": sizes, "stop": stop, "folder": str(folder / "chain"), **CHAINED} for sizes, stop in CHAIN
    ]
    results: dict[str, Any] = {"chain": []}
    for processes, jobs, own in ((2, TWO, links[:4]), (4, FOUR, links[4:])):
        alone, *others = own
        results["chain"].append(train(alone, folder / "chain", steps=alone["stop"]))
        said = together([*jobs.values(), *others], folder / str(processes), processes)
        results |= dict(zip(jobs, said, strict=False))
        results["chain"] += said[len(jobs) :]
    return results


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_several_processes_take_the_steps_of_one(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    job = (TWO | FOUR)[name]
    alone, ours = train(job, tmp_path), found[name]
    assert len(ours["loss"]) == len(alone["loss"]) == job.get("steps", 50)
    for key in ("loss", "norm", "validation"):
        assert ours[key] == pytest.approx(alone[key], rel=1e-9 if key == "loss" else 1e-5), key
    assert ours["weights"] == pytest.approx(alone["weights"], rel=1e-7)


def test_a_training_goes_on_under_another_layout(found: dict[str, Any], tmp_path: Path) -> None:
    alone = train(CHAINED, tmp_path)
    assert [loss for part in found["chain"] for loss in part["loss"]] == pytest.approx(alone["loss"], rel=1e-9)
    assert found["chain"][-1]["weights"] == pytest.approx(alone["weights"], rel=1e-7)


def test_processes_keep_what_they_compute_with(found: dict[str, Any], tmp_path: Path) -> None:
    whole = train({"steps": 1, "tied": False}, tmp_path)["held"]
    table, norm = 61 * 32, 32
    layers = whole - 2 * table - norm
    assert found["pipeline untied"]["held"] == table + layers // 2
    assert found["tensor untied"]["held"] == 2 * table + norm + 4 * 2 * norm + (layers - 4 * 2 * norm) // 2


@pytest.mark.parametrize(
    ("fields", "parallel", "says"),
    [
        ({}, {"tensor": 4}, "2 key-value heads"),
        ({}, {"tensor": 3}, "4 heads and 2 key-value heads"),
        ({"model": {"kind": "moe", "depth": 2}}, TENSOR, "how its layers divide"),
        ({"model": {"kind": "encoder", "depth": 2}, "objective": "masked_token"}, TENSOR, "how its layers divide"),
        ({"optimizer": "muon"}, TENSOR | PIPELINE, "whole matrices"),
        ({}, PIPELINE | {"shard": 2}, "each keeps all weights of its layers"),
        ({"model": {"kind": "moe", "depth": 2}}, PIPELINE, "does not know it"),
        ({}, {"pipeline": 4}, "it has 2 layers"),
        ({"samples_every": 1}, PIPELINE, "no process has a whole model"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_the_plan(fields: dict[str, Any], parallel: dict[str, int], says: str) -> None:
    given = Given(Machine("test", 2, 8e9), {"data": Facts(type="records", tokens=1000)}, 0, Parallel(**parallel))
    with pytest.raises(UserError) as error:
        kit.stage(**fields).estimate(given)
    assert says in error.value.why
