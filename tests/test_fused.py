"""Compiled pieces of our own forward pass: the same numbers, one kernel for any number of tokens, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.parallel import Parallel
from modelwright.core.stage import Input, Run
from modelwright.nn import fused
from modelwright.nn import model as models
from modelwright.nn.attention import Layout, Segment
from tests import train_kit as kit
from tests.test_nn_packed import BRANCHES, made

MACHINE = Machine("test", 2, 8e9, 1e11, 0.0)


@pytest.fixture(autouse=True)
def quickly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not compiled: that takes a minute."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(fused, "BACKEND", "eager")


def gradients(model: Any, lengths: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model.zero_grad()
    layout = BRANCHES if lengths == 36 else Layout([Segment(0, 7), Segment(7, lengths)])
    ids = torch.arange(lengths) * 7 % 97
    direction = torch.randn(lengths, 64, generator=torch.Generator().manual_seed(lengths))
    hidden = models.Trunk(model).hidden(ids, layout, dtype)
    (hidden * direction).sum().backward()
    return {"": hidden.detach(), **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}


def compared(name: str) -> tuple[Any, Any]:
    """The model in fused pieces and without, after their gradients in float32 were found to be the same."""
    plain, model = made(name), made(name)
    fused.choose(model)
    assert models.Trunk(model).decoder.blocks[0].fused is not None  # type: ignore[union-attr]
    for lengths in (36, 19, 36):
        ours, theirs = gradients(model, lengths, torch.float32), gradients(plain, lengths, torch.float32)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            scale = max(float(theirs[key].abs().max()), 1.0)
            assert torch.allclose(value, theirs[key], atol=1e-5 * scale), (key, lengths)
    return model, plain


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3 window"])
def test_the_same_numbers(name: str) -> None:
    compared(name)


@pytest.mark.slow
def test_the_compiler_of_torch_gives_the_same_numbers() -> None:
    """In bfloat16 it rounds less often: what it gives is as near to float32 as what single operations give."""
    model, plain = compared("gemma3 window")
    for lengths in (36, 19):
        truth = gradients(plain, lengths, torch.float32)
        away = [
            sum(
                float((value - truth[key]).norm() / truth[key].norm())
                for key, value in gradients(one, lengths, torch.bfloat16).items()
            )
            for one in (model, plain)
        ]
        assert away[0] < 1.2 * away[1] and away[0] < 0.05 * len(truth), away


def test_any_number_of_tokens_runs_the_same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    monkeypatch.setattr(fused, "BACKEND", lambda graph, inputs: traced.append(1) or graph.forward)
    model = made("llama")
    fused.choose(model)
    for lengths in (36, 19):  # with branches attention's results lie otherwise in memory
        gradients(model, lengths, torch.float32)
    before = len(traced)
    for lengths in (22, 25, 30):
        gradients(model, lengths, torch.float32)
    assert before == len(traced) > 0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    folder = tmp_path_factory.mktemp("fused")
    return {
        "data": kit.records(folder / "texts", kit.texts(24)),
        "vocab": Input("vocab", "tokenizer", kit.tokenizer(folder / "vocab")),
    }


def trained(out: Path, inputs: dict[str, Input], events: list[Any] | None = None, **fields: Any) -> Any:
    return kit.stage(**{"steps": 4, **fields}).run(kit.run_of(out, inputs, events=events))


def test_the_stage_says_so_and_learns_the_same(inputs: dict[str, Input], tmp_path: Path) -> None:
    events: list[Any] = []
    plain = trained(tmp_path / "plain", inputs)
    ours = trained(tmp_path / "fused", inputs, events, compile=True)
    assert any("are compiled" in fields.get("text", "") for event, fields in events if event == "note")
    assert ours["loss_last"] == pytest.approx(plain["loss_last"], rel=1e-4)


@pytest.mark.slow
def test_a_training_that_goes_on_in_another_process_runs_the_same_kernels(inputs: dict[str, Input], tmp_path: Path) -> None:
    trained(tmp_path / "whole", inputs, compile=True, steps=5)

    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "progress" and fields["label"] == "train" and fields["done"] == 3:
            raise KeyboardInterrupt

    stage = kit.stage(compile=True, steps=5, checkpoint_every_s=0.0)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(Run(tmp_path / "stopped", inputs, 0, Log(None, stop)))
    torch._dynamo.reset()  # as a new process begins: what is compiled first is the first thing that it meets
    fused.pieces.cache_clear()
    stage.run(kit.run_of(tmp_path / "stopped", inputs))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert one == two


def test_a_machine_without_a_compiler_is_said(inputs: dict[str, Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no g++")

    monkeypatch.setattr(fused, "BACKEND", lacks)
    with pytest.raises(UserError, match="does not work on this machine") as error:
        trained(tmp_path / "none", inputs, compile=True)
    assert "no g++" in error.value.why


@pytest.mark.parametrize(
    ("fields", "parallel", "says"),
    [
        ({"model": {"kind": "moe", "depth": 1}}, Parallel(), "it fuses parts of the forward pass"),
        ({}, Parallel(shard=2), "divided weights come for transformers' modules"),
    ],
)
def test_where_it_cannot_work_it_is_refused_by_the_plan(fields: dict[str, Any], parallel: Parallel, says: str) -> None:
    stage = kit.stage(**fields, compile=True)
    with pytest.raises(UserError) as error:
        stage.estimate(Given(MACHINE, {"data": Facts(type="records", tokens=1000)}, 0, parallel))
    assert says in error.value.why
