"""A training stage on several processes, as a recipe asks for it: same result, same resume, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.parallel import Parallel
from modelwright.core.recipe import loads
from modelwright.core.spec import Spec
from modelwright.core.stage import Input, Run
from modelwright.methods.launchers import Launcher
from modelwright.methods.launchers.local import Local
from modelwright.stages import _train_spread
from modelwright.stages._train_spread import chosen
from tests import launch_kit
from tests import train_kit as kit

MACHINE = Machine("test", 2, 8e9)


def run_of(
    out: Path, tmp_path: Path, parallel: Parallel | None, events: list[Any], stop_at: int = 0, launch: Spec | None = None
) -> Run:
    out.mkdir(parents=True, exist_ok=True)
    inputs = {"data": kit.records(tmp_path / "data", kit.chats(24)), "held": kit.records(tmp_path / "held", kit.chats(6, 1))}
    inputs["vocab"] = Input("vocab", "tokenizer", kit.tokenizer(tmp_path / "vocab"))

    def listen(event: str, fields: dict[str, Any]) -> None:
        events.append((event, fields))
        if stop_at and event == "step" and fields["step"] == stop_at:
            raise KeyboardInterrupt

    return Run(out, inputs, 0, Log(out / "metrics.jsonl", listen), {}, parallel=parallel, launch=launch)


def made(
    tmp_path: Path, name: str, parallel: Parallel, stop_at: int = 0, launch: Spec | None = None, **fields: Any
) -> tuple[dict[str, Any], list[Any], Path]:
    stage = kit.stage(objective="sft", template="chatml", validation="held", validate_every=3, log_every=1, **fields)
    events: list[Any] = []
    run = run_of(tmp_path / name, tmp_path, parallel, events, stop_at, launch)
    return stage.run(run), events, run.out


@pytest.mark.parametrize("parallel", [Parallel(data=2), pytest.param(Parallel(shard=2, zero=3), marks=pytest.mark.slow)])
def test_two_processes_leave_what_one_leaves(parallel: Parallel, tmp_path: Path) -> None:
    alone, told_alone, first = made(tmp_path, "alone", Parallel())
    ours, told, second = made(tmp_path, "two", parallel)
    for key in ("params", "trainable", "steps", "tokens", "target_tokens", "rows"):
        assert ours[key] == alone[key], key
    assert ours["loss_last"] == pytest.approx(alone["loss_last"], rel=1e-5)
    one, two = (load_file(out / "model.safetensors") for out in (first, second))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())
    for event in ("step", "validation"):
        mine, theirs = ([f["loss"] for e, f in events if e == event] for events in (told, told_alone))
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_it_goes_on_in_another_layout(tmp_path: Path) -> None:
    """To the bits it cannot: float32 sums in another order, which this training makes 1 % of in 60 steps, moved or not.
    `test_parallel.py` has the law, in float64."""
    alone, told_alone, _ = made(tmp_path, "alone", Parallel(), steps=60)
    told: list[Any] = []
    for parallel, stop_at in ((Parallel(data=2), 2), (Parallel(shard=2), 20), (Parallel(), 0)):
        try:
            ours, events, _ = made(tmp_path, "moved", parallel, stop_at=stop_at, steps=60)
            told += events
        except KeyboardInterrupt:
            assert stop_at
    assert any(event == "resumed" and fields["step"] >= 20 for event, fields in told)
    assert ours["tokens"] == alone["tokens"] and ours["target_tokens"] == alone["target_tokens"]
    losses, theirs = ({f["step"]: f["loss"] for e, f in events if e == "step"} for events in (told, told_alone))
    first = min(losses)
    assert losses[first] == pytest.approx(theirs[first], rel=1e-4)
    assert losses[60] == pytest.approx(theirs[60], rel=0.05)


@pytest.mark.parametrize(
    ("fields", "parallel", "says"),
    [
        ({"optimizer": "muon"}, Parallel(shard=2, tensor=2), "each lies in parts along two axes"),
        ({"optimizer": "lamb"}, Parallel(tensor=2, pipeline=2), "on some processes of the pipeline"),
        ({"optimizer": "lamb"}, Parallel(shard=2, zero=1), "the engine hands out parts"),
        ({"average": 0.9}, Parallel(shard=2, zero=1), "a copy of whole weights"),
        ({"optimizer": "schedule_free", "schedule": "constant"}, Parallel(shard=2, zero=1), "an average of whole weights"),
        ({"on_bad_step": "skip"}, Parallel(shard=2, zero=1), "takes back a step"),
        ({"precision": "fp16"}, Parallel(shard=2, zero=1), "and so does the engine"),
        ({"model": {"kind": "moe", "depth": 2}}, Parallel(shard=2, zero=2), "the engine waits for it"),
        ({"objective": "multi_token"}, Parallel(shard=2, zero=2), "the engine waits for their gradient"),
        *(({}, Parallel(shard=2, zero=1, **{name: 2}), f"`{name}` beside it") for name in ("data", "tensor")),
    ],
)
def test_what_cannot_be_divided_is_refused_by_the_plan(fields: dict[str, Any], parallel: Parallel, says: str) -> None:
    stage = kit.stage(**fields)
    with pytest.raises(UserError) as error:
        stage.estimate(Given(MACHINE, {"data": Facts(type="records", tokens=1000)}, 0, parallel))
    assert says in error.value.why


@pytest.mark.parametrize(
    ("threads", "launch", "told"), [(None, "direct", None), (2, "direct", 2), (None, "local", 4), (2, "local", 2)]
)
def test_threads_are_those_of_the_machines_that_work(
    threads: int | None, launch: str, told: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that gives a job to a cluster may have other cores than those that run it."""
    monkeypatch.setattr(Launcher, "start", lambda self, job: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Local, "start", Launcher.start)
    spec = launch_kit.Direct() if launch == "direct" else Local()
    run = run_of(tmp_path / "out", tmp_path, Parallel(data=2), [], launch=spec)
    stage = kit.stage(threads=threads).resolve(Given(Machine("here", 8, 8e9), {}, 0, Parallel(data=2)))
    with pytest.raises(KeyboardInterrupt):
        stage.run(run)
    payload = json.loads((run.out / "workers" / "worker.json").read_text())["payload"]
    assert payload["stage"]["threads"] == told


TEXT = """
name: spread
runtime: {RUNTIME}
stages:
  vocab: {kind: tokenizer, data: ./rows.jsonl, method: {kind: bpe, size: 300}}
"""


TRAINING = TEXT + "  base: {kind: train, data: ./rows.jsonl, vocab: vocab, model: llama, objective: next_token, steps: 2}\n"


def test_a_cluster_gets_one_process_where_it_is_asked_for(tmp_path: Path) -> None:
    """Its cards cannot be counted from here, so how many is not guessed; without a word it would train on this machine."""
    with pytest.raises(UserError, match="`launch: slurm` does not say how many processes") as error:
        loads(TRAINING.replace("{RUNTIME}", "{launch: slurm}"))
    assert "parallel: {data: 1}" in error.value.fix
    loads(TRAINING.replace("{RUNTIME}", "{launch: slurm, parallel: {data: 1}}"))
    loads(TRAINING.replace("{RUNTIME}", "{launch: local}"))
    with pytest.raises(UserError, match="'launch' would be ignored"):
        loads(TRAINING.replace("{RUNTIME}", "{launch: local, parallel: {data: 1}}"))

    alone, _, first = made(tmp_path, "alone", Parallel())
    direct = launch_kit.Direct()
    ours, events, second = made(tmp_path, "elsewhere", Parallel(), launch=direct)
    assert [fields["step"] for event, fields in events if event == "step"] == list(range(1, alone["steps"] + 1))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert ours["load"] and ours["loss_last"] == alone["loss_last"]


@pytest.mark.parametrize("runtime", ["{parallel: {data: 2}}", "{launch: local}"])
def test_a_recipe_that_trains_nothing_does_not_take_processes(runtime: str) -> None:
    with pytest.raises(UserError, match="would be ignored") as error:
        loads(TEXT.replace("{RUNTIME}", runtime))
    assert "no stage of this recipe runs on several processes" in error.value.why


def test_memory_of_a_shard_is_less() -> None:
    stage = kit.stage(model={"kind": "llama", "depth": 8})
    facts = {"data": Facts(type="records", tokens=1000)}
    layouts = [Parallel(), *(Parallel(shard=4, zero=zero) for zero in (1, 2, 3, 0))]
    found = [stage.estimate(Given(MACHINE, facts, 0, parallel)).memory for parallel in layouts]
    assert found == sorted(found, key=lambda memory: -memory.value) and found[0].value > found[-1].value
    assert "of each process (shard 4)" in found[-1].why and "of each process (shard 4 by ZeRO 2)" in found[2].why


def test_zero_divides_a_shard_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="`zero` says how `shard` divides"):
        Parallel(data=2, zero=1)
    monkeypatch.setattr(_train_spread, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package 'deepspeed'") as error:
        made(tmp_path, "two", Parallel(shard=2, zero=1))
    assert "modelwright[deepspeed]" in error.value.fix


@pytest.mark.parametrize(
    ("cards", "memory", "fields", "expected"),
    [
        (2, 1e9, {}, "data 2"),
        (2, 1e5, {}, "shard 2"),
        (8, 4e6, {}, "data 4 x shard 2"),
        (6, 3e6, {}, "data 2 x shard 3"),
        (2, 1e5, {"optimizer": "muon"}, "shard 2"),
        (2, 1e5, {"compile": True}, "data 2"),
        (2, 1e9, {"step_in_backward": True, "clip": 0.0, "micro_tokens": None}, "one process"),
    ],
)
def test_unset_it_follows_the_cards(
    cards: int, memory: float, fields: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=memory))
    events: list[Any] = []
    run = run_of(tmp_path / "out", tmp_path, None, events)
    assert str(chosen(kit.stage(**fields), run)) == expected
    (told,) = [told["text"] for event, told in events if event == "note"]
    assert f"trained by {expected}, since" in told
    assert all(f"`{name}" in told for name in fields if name in ("compile", "step_in_backward"))
    assert chosen(kit.stage(device="cpu"), run) == Parallel()
