"""Trackers hear what the log hears, and nothing leaves the machine by default; the load of the machine; FLOPs and MFU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelwright.core import load
from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.events import Log, read_events
from modelwright.core.flops import mfu, training_flops_per_token
from modelwright.core.load import Sampler
from modelwright.core.series import Series, thinned
from modelwright.core.stage import Input
from modelwright.methods.trackers import TRACKERS, Tracker, flat, tracked
from tests import tracker_kit, train_kit

KINDS = ("mlflow", "tensorboard", "trackio", "wandb")
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("rates", {"flops_per_token": 2e6, "matrix_flops_per_s": 1e9, "products": "float32"}),
    ("step", {"step": 2, "steps": 4, "loss": 2.5, "lr": 0.1, "tokens": 100, "seconds": 1.0}),
    ("load", {"cpu_frac": 0.5, "memory_bytes": 9, "gpus": [{"index": 0, "use_frac": 0.25}]}),
    ("note", {"text": "not a number"}),
    ("step", {"step": 4, "steps": 4, "loss": float("nan"), "lr": 0.05, "tokens": 300, "seconds": 2.0}),
    ("validation", {"step": 4, "loss": 2.0}),
]
TOLD = {
    (2, "train/loss"): 2.5,
    (2, "train/lr"): 0.1,
    (2, "train/tokens"): 100,
    (2, "load/cpu_frac"): 0.5,
    (2, "load/memory_bytes"): 9,
    (2, "load/gpu0_use_frac"): 0.25,
    (4, "train/lr"): 0.05,
    (4, "train/tokens"): 300,
    (4, "train/tokens_per_s"): 200.0,
    (4, "train/mfu"): 0.4,
    (4, "validation/loss"): 2.0,
}


def make(kind: str, **fields: Any) -> Tracker:
    spec = TRACKERS.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Tracker)
    return spec


def numbers(calls: list[Any]) -> dict[tuple[int, str], float]:
    """Every number that a library was told, by step and name."""
    found: dict[tuple[int, str], float] = {}
    for call in calls:
        if call[0] == "log":
            found.update({(call[1], name): value for name, value in call[2].items()})
        elif call[0] == "add_scalar":
            found[call[3], call[1]] = call[2]
        elif call[0] == "log_batch":
            found.update({(step, name): value for name, value, step in call[2]})
    return found


def feed(tracker: Tracker, log: Log, name: str = "base-0123456789ab") -> None:
    with tracked(tracker, name, {"steps": 4}, log):
        for event, fields in STEPS:
            log.event(event, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tracker_hears_the_numbers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    log = Log(None, lambda event, fields: heard.append(fields["text"]) if event == "note" else None)
    with tracker_kit.installed() as calls:
        feed(make(kind), log)
        log.event("step", step=5, loss=9.0)  # after the block: no longer heard
    assert numbers(calls) == TOLD
    assert any("base-0123456789ab" in str(call) for call in calls), "the run has its artifact's name"
    assert heard[0].startswith(f"tracked by {kind}: "), "where to look is said"
    assert "greets" not in capsys.readouterr().out, "the standard output is ours: it may be JSON"


def test_several_validation_sets_are_told_apart() -> None:
    def told(*sets: str) -> dict[str, float]:
        log = Log(None)
        with tracker_kit.installed() as calls, tracked(make("trackio"), "base-1", {}, log, sets):
            for number, name in enumerate(sets):
                log.event("validation", step=4, set=name, rows=7, loss=float(number))
        return {name: value for (_, name), value in numbers(calls).items()}

    assert told("./held.jsonl") == {"validation/loss": 0.0, "validation/rows": 7}
    assert told("./held.jsonl", "corpus:validation") == {
        "validation/held.jsonl/loss": 0.0,
        "validation/held.jsonl/rows": 7,
        "validation/corpus_validation/loss": 1.0,
        "validation/corpus_validation/rows": 7,
    }
    assert told("a:b", "a_b").keys() == {f"validation/{name}/{what}" for name in ("0_a_b", "1_a_b") for what in ("loss", "rows")}


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_nothing_leaves_the_machine(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    with tracker_kit.installed() as calls:
        feed(make(kind), Log(None))
    begun = calls[0]
    assert {
        "trackio": lambda: begun[3] is None,
        "wandb": lambda: begun[5] == "offline",
        "mlflow": lambda: begun[1].startswith(f"sqlite:///{tmp_path}"),
        "tensorboard": lambda: begun[1] == "runs/base-0123456789ab",
    }[kind]()
    assert os.environ["DO_NOT_TRACK"] and os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_library_is_said_with_the_line_that_installs_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch.utils.tensorboard" if kind == "tensorboard" else kind
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"pip install {kind}"):
        feed(make(kind), Log(None))


def test_a_killed_run_goes_on_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tracker_kit.installed() as calls:
        with pytest.raises(KeyboardInterrupt), tracked(make("mlflow"), "base-1", {"a": 1}, Log(None)):
            raise KeyboardInterrupt
        feed(make("mlflow"), Log(None), "base-1")
    assert [call[0] for call in calls if call[0] in ("create_run", "update_run", "set_terminated")] == [
        "create_run",
        "set_terminated",
        "update_run",
        "set_terminated",
    ]
    assert [call[2] for call in calls if call[0] == "set_terminated"] == ["FAILED", "FINISHED"]
    with tracker_kit.installed() as calls:
        feed(make("wandb", mode="online"), Log(None))
    assert calls[0][3] == "base-0123456789ab" and calls[0][-1] == "allow"


def test_a_tracker_that_breaks_does_not_end_the_training(tmp_path: Path) -> None:
    notes: list[str] = []
    log = Log(tmp_path / "metrics.jsonl", lambda event, fields: notes.append(fields["text"]) if event == "note" else None)

    def broken(self: Any, metrics: Any, step: int) -> None:
        raise ConnectionError("no route to host")

    with tracker_kit.installed() as calls, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker_kit.Told, "log", broken)
        patch.setattr(tracker_kit.Told, "finish", broken)
        feed(make("trackio"), log)
    log.close()
    assert [call[0] for call in calls] == ["trackio.init"]
    assert sum("no route to host" in note for note in notes) == 1 and "could not be closed" in notes[-1]
    assert len(list(read_events(tmp_path / "metrics.jsonl", "step"))) == 2


def test_fields_are_flat_for_people() -> None:
    tree = {"a": {"b": 1, "c": None}, "d": ({"ref": "x"}, {"ref": "y"}), "e": (1, 2)}
    assert flat(tree) == {"a.b": 1, "d.0.ref": "x", "d.1.ref": "y", "e": [1, 2]}


# --- the training stage -----------------------------------------------------------------------------------


def test_a_training_feeds_its_trackers_and_leaves_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs = {
        "data": train_kit.records(tmp_path / "texts", train_kit.texts(20)),
        "vocab": Input("vocab", "tokenizer", train_kit.tokenizer(tmp_path / "vocab")),
    }
    plain, shown = train_kit.stage(steps=2, log_every=1), train_kit.stage(steps=2, log_every=1, trackers=["trackio"])
    assert plain.identity() == shown.identity(), "who listens does not change what is made"
    plain.run(train_kit.run_of(tmp_path / "plain", inputs))
    with tracker_kit.installed() as calls:
        shown.run(train_kit.run_of(tmp_path / "base-1.part", inputs))
    assert calls[0][:3] == ["trackio.init", "modelwright", "base-1"] and calls[0][4]["optimizer.kind"] == "adamw"
    assert [call[1] for call in calls if call[0] == "log" and "train/loss" in call[2]] == [1, 2]
    assert calls[-1] == ["finish", 0]
    left = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "base-1.part")]
    assert left[0] == left[1]


def test_the_measured_rate_is_told_where_the_work_is_worth_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelwright.nn import rate
    from modelwright.stages import _train_watch

    monkeypatch.setattr(_train_watch, "SHORT_FLOPS", 0.0)
    monkeypatch.setattr(rate, "SIDE", {"cpu": 64})
    monkeypatch.setattr(rate, "SECONDS", 0.0)
    events: list[tuple[str, dict[str, Any]]] = []
    inputs = {
        "data": train_kit.records(tmp_path / "texts", train_kit.texts(20)),
        "vocab": Input("vocab", "tokenizer", train_kit.tokenizer(tmp_path / "vocab")),
    }
    train_kit.stage(steps=3, log_every=1).run(train_kit.run_of(tmp_path / "base", inputs, events=events))
    rates = [fields for event, fields in events if event == "rates"]
    assert len(rates) == 1 and rates[0]["products"] == "float32" and rates[0]["matrix_flops_per_s"] > 1e6
    weights = 2 * 32 * (2 * 32 + 2 * 16 + 3 * 48) + 300 * 32
    assert 6 * weights * 0.8 < rates[0]["flops_per_token"] < 6 * weights * 1.3
    series = Series()
    for event, fields in events:
        series.add({"event": event, **fields})
    assert series.mfu() and all(share > 0 for _, share in series.mfu())


# --- load -------------------------------------------------------------------------------------------------


def test_the_load_is_sampled_while_the_block_runs(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    with Sampler(log, every_s=0.02, powercap=tmp_path / "none", driver=tmp_path / "none"):
        end_s = time.monotonic() + 0.25
        while time.monotonic() < end_s:
            log.event("step", step=1)
    log.close()
    loads = list(read_events(tmp_path / "metrics.jsonl", "load"))
    assert len(loads) >= 3 and all(fields["memory_bytes"] > 1e6 and 0 <= fields["cpu_frac"] <= 1.5 for fields in loads)
    assert max(fields["cpu_frac"] for fields in loads) > 0 and "gpus" not in loads[0]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():  # two threads wrote: no line is torn
        json.loads(line)


class _NVMLError(Exception):
    pass


def nvml(**broken: str) -> ModuleType:
    """A card that took 2 J since the first look."""
    module = ModuleType("pynvml")
    asked = iter(range(5000, 100_000, 2000))

    def fail(*_: Any) -> Any:
        raise _NVMLError("Not Supported")

    members: dict[str, Any] = {
        "NVMLError": _NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3_000_000_000),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=75),
        "nvmlDeviceGetPowerUsage": lambda handle: 123_400,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: next(asked),
    }
    vars(module).update(members | {name: fail for name in broken})
    return module


def test_cards_through_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    with Sampler(Log(None), every_s=60) as sampler:
        found = sampler.sample()["gpus"]
    assert found == [{"index": 0, "memory_bytes": 3_000_000_000, "use_frac": 0.75, "power_w": 123.4, "energy_j": 2.0}]
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetPowerUsage="", nvmlDeviceGetTotalEnergyConsumption=""))
    with Sampler(Log(None), every_s=60) as sampler:
        assert sampler.sample()["gpus"] == [{"index": 0, "memory_bytes": 3_000_000_000, "use_frac": 0.75}]


def test_what_cannot_be_read_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    driver.touch()
    for module, why in ((None, "nvidia-ml-py"), (nvml(nvmlInit=""), "Not Supported")):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        notes: list[str] = []
        log = Log(None, lambda event, fields, notes=notes: notes.append(fields["text"]) if event == "note" else None)  # type: ignore[misc]
        with Sampler(log, every_s=0.01, driver=driver):
            time.sleep(0.05)
        assert len(notes) == 1 and why in notes[0]
        notes.clear()
        with Sampler(log, every_s=60, driver=tmp_path / "no driver") as sampler:
            assert "gpus" not in sampler.sample()
        assert not notes, "a machine without a card lacks nothing"


def test_the_processors_energy_is_read_where_it_may_be(tmp_path: Path) -> None:
    zone = tmp_path / "intel-rapl:0"
    (zone / "intel-rapl:0:0").mkdir(parents=True)
    (tmp_path / "intel-rapl:0:0").mkdir()
    (zone / "max_energy_range_uj").write_text("10000000")
    (zone / "energy_uj").write_text("9000000")
    energy = load._Energy(tmp_path)
    (zone / "energy_uj").write_text("1000000\n")  # it wrapped
    assert energy.read() == pytest.approx(2.0)
    assert load._Energy(tmp_path / "none").read() is None


# --- FLOPs and series ---------------------------------------------------------------------------------------


def test_flops_of_a_token() -> None:
    shape = Shape(layers=3, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=300)
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96
    forward = 3 * (2 * layer + 2 * 64 * 50) + 2 * 300 * 64
    assert training_flops_per_token(shape, 50, 1.0, None) == 3 * forward
    assert training_flops_per_token(shape, 50, 1.0, 1000) == 2 * forward + 6000
    less = training_flops_per_token(shape, 50, 0.0, None)
    assert less == 3 * (2 * (2 * layer + 2 * 64 * 50) + 2 * 64 * 32 * 2), "the last layer's keys and values alone, and no logits"
    assert mfu(1000, 1e6, 4e9) == 0.25
    assert training_flops_per_token(shape, 50, 1.0, None, causal=False) == 3 * (forward + 3 * 2 * 64 * 50)
    sparse = shape.model_copy(update={"experts": 8, "experts_per_token": 2})
    assert training_flops_per_token(sparse, 50, 1.0, None) == 3 * (forward + 3 * 2 * 64 * (3 * 96 + 8))
    wide = shape.model_copy(update={"head_dim": 32})
    assert training_flops_per_token(wide, 0, 1.0, None) > training_flops_per_token(shape, 0, 1.0, None)


def test_series_of_a_resumed_run() -> None:
    series = Series()
    for step in (2, 4, 6):
        series.add(
            {"event": "step", "time_s": 10.0 + step, "step": step, "steps": 10, "loss": 9.0, "tokens": 10 * step, "seconds": step}
        )
    series.add({"event": "load", "time_s": 15.0, "cpu_frac": 0.5})
    series.add({"event": "resumed", "time_s": 100.0, "step": 4})
    assert series.last["step"] == 4 and series.left_s() == pytest.approx(6.0)
    series.add(
        {"event": "step", "time_s": 102.0, "step": 6, "steps": 10, "loss": 1.0, "tokens": 60, "seconds": 8.0, "margin": 0.5}
    )
    assert series.points("loss") == [(2, 9.0), (4, 9.0), (6, 1.0)] and series.metrics() == ["loss", "margin"]
    assert series.left_s() == pytest.approx(4 * 6 / 4)
    assert series.load_points("cpu_frac") == [(pytest.approx(4.02, abs=0.02), 0.5)]
    assert series.mfu() == [] and Series().left_s() is None and Series().last == {}
    assert thinned([(k, float(k)) for k in range(10)], 4) == [(2, 1.0), (5, 4.0), (8, 7.0), (9, 9.0)]
