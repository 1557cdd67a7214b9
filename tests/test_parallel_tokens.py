"""Tokens divided over processes (`context`), tokens that travel to experts (`expert`), losses over all rows of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.parallel import Parallel
from tests import train_kit as kit
from tests.parallel_kit import together, train

CONTEXT, EXPERT = {"context": 2}, {"expert": 2}
FEW: dict[str, Any] = {"steps": 5}
MOE: dict[str, Any] = {"family": "qwen3_moe"}
CONTRASTIVE: dict[str, Any] = {"objective": "contrastive", "micro_tokens": 16}
TWO: dict[str, dict[str, Any]] = {
    "context": {"sizes": CONTEXT, **FEW},
    "context dpo": {"sizes": CONTEXT, "objective": "dpo"},
    "context window": {"sizes": CONTEXT, "family": "mistral", **FEW},
    "context dpo window": {"sizes": CONTEXT, "family": "gemma3_text", "objective": "dpo", **FEW},
    "context lora": {"sizes": CONTEXT, "rank": 4, **FEW},
    "context multi_token": {"sizes": CONTEXT, "objective": "multi_token", **FEW},
    "contrastive": {"sizes": {"data": 2}, **CONTRASTIVE},
    "expert": {"sizes": EXPERT, **MOE},
    "expert dpo": {"sizes": EXPERT, "family": "mixtral", "objective": "dpo", **FEW},
    "expert, balanced": {"sizes": EXPERT, **MOE, **FEW, "balance": 0.1},
    "data, balanced": {"sizes": {"data": 2}, **MOE, **FEW, "balance": 0.1},
}
FOUR: dict[str, dict[str, Any]] = {
    "context x data": {"sizes": CONTEXT | {"data": 2}, **FEW},
    "context of four": {"sizes": {"context": 4}, "family": "gemma3_text", "objective": "dpo", **FEW},
    "context of rows too short for four": {"sizes": {"context": 4}, "shortest": 3, "micro_tokens": 1, **FEW},
    "contrastive of four": {"sizes": {"data": 4}, **CONTRASTIVE, **FEW},
    "expert x data": {"sizes": EXPERT | {"data": 2}, **MOE, **FEW},
    "expert of four": {"sizes": {"expert": 4}, **MOE, **FEW},
}
MOVED: dict[str, Any] = {"sizes": EXPERT, **MOE, "steps": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moved")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[str, dict[str, Any]]:
    results = {}
    for processes, jobs in ((2, TWO | {"stopped": {**MOVED, "stop": 4, "folder": str(folder)}}), (4, FOUR)):
        results |= dict(zip(jobs, together(list(jobs.values()), tmp_path_factory.mktemp("some"), processes), strict=True))
    return results


@pytest.mark.parametrize("name", [*TWO, *FOUR])
def test_several_processes_take_the_steps_of_one(name: str, found: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    alone, ours = train((TWO | FOUR)[name], tmp_path), found[name]
    assert len(ours["loss"]) == len(alone["loss"])
    for key in ("loss", "norm", "validation"):
        assert ours[key] == pytest.approx(alone[key], rel=1e-9 if key == "loss" else 1e-5), key
    assert ours["weights"] == pytest.approx(alone["weights"], rel=1e-7)


def test_divided_experts_go_on_as_whole_ones(found: dict[str, dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    stopped, ours, alone = found["stopped"], train(MOVED, folder), train(MOVED, tmp_path)
    assert stopped["stopped"] and len(stopped["loss"]) == 4
    assert [*stopped["loss"], *ours["loss"]] == pytest.approx(alone["loss"], rel=1e-9)
    assert ours["weights"] == pytest.approx(alone["weights"], rel=1e-7)


MIXTURE = {"model": {"kind": "moe", "depth": 1, "experts": 4}}


@pytest.mark.parametrize(
    ("fields", "parallel", "says"),
    [
        ({"objective": "contrastive"}, Parallel(shard=2), "compares all rows of a step"),
        ({"objective": "contrastive"}, Parallel(context=2), "no process computes all tokens"),
        (MIXTURE, Parallel(context=2), "does not know it"),
        ({}, Parallel(context=2, shard=2), "needs every weight whole"),
        ({}, Parallel(expert=2), "it has 0 experts"),
        ({"start": "base", "model": None, "vocab": None, "adapter": "lora"}, Parallel(expert=2), "beside whole experts"),
        (MIXTURE, Parallel(expert=3), "it has 4 experts"),
        (MIXTURE, Parallel(expert=2, shard=2), "experts are divided whole"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_the_plan(fields: dict[str, Any], parallel: Parallel, says: str) -> None:
    stage = kit.stage(**fields)
    with pytest.raises(UserError) as error:
        stage.estimate(Given(Machine("test", 2, 8e9), {"data": Facts(type="records", tokens=1000)}, 0, parallel))
    assert says in error.value.why
