"""What saves memory in training and changes no result: activations and states elsewhere, steps in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.parallel import Parallel
from modelwright.core.stage import Input
from modelwright.methods.objectives import OBJECTIVES
from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.nn import model as models
from modelwright.nn import offload
from modelwright.nn.early import Early
from modelwright.nn.loop import Hooks, Settings, Trainer
from modelwright.nn.measure import micro_loss
from modelwright.nn.offload import Activations
from modelwright.nn.order import Source, order
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed, pack
from modelwright.stages._train_run import objective_loss
from tests import parallel_kit, train_kit

KINDS = OPTIMIZERS.names()
JOBS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "gemma3": {"family": "gemma3_text"},
    "experts": {"family": "mixtral", "balance": 0.01},
    "lora": {"rank": 2},
    "dpo": {"objective": "dpo"},
    "multi_token": {"objective": "multi_token"},
}


class Stop(Exception):
    """The test's own kill."""


class Trained:
    """A short training of a tiny model in float32."""

    def __init__(
        self,
        folder: Path,
        job: dict[str, Any] = {},  # noqa: B006
        optimizer: str = "adamw",
        own: bool = True,
        again: bool = False,
        every_s: float = 1e9,
        stop_at: int | None = None,
        steps: int = 3,
        break_at: int | None = None,
        **settings: Any,
    ) -> None:
        self.model = parallel_kit.make({**job, "float64": False})
        if again:
            models.recompute(self.model)
        rows = parallel_kit.rows(folder / "rows", job.get("objective", "sft"))
        objective: Any = OBJECTIVES.build(job.get("objective", "sft"))
        objective.attach(models.core(self.model))
        spread = Spread(self.model.train())
        if not own:
            vars(spread)["trunk"] = models.Trunk(self.model, own=False)
        plain = objective_loss(objective)

        def prepare(batch: Packed) -> Packed:
            return batch._replace(reference_N=torch.full((len(batch.target_N),), -4.0)) if rows.pairs else batch

        def loss(policy: Any, batch: Packed) -> Any:
            total, weight, metrics = plain(policy, batch)
            return (total * float("inf") if self.trainer.done == break_at else total), weight, metrics

        def progress(done: int, loss: float) -> None:
            if done == stop_at:
                raise Stop

        plan = order([Source(0, rows.lengths_R)], 60, 0, steps)
        built = OPTIMIZERS.load(optimizer).model_validate({"kind": optimizer}).build(spread.trained.items())
        settled = Settings(60, torch.float32, 0.0, 1, every_s, validate_every=2, **settings)
        self.trainer = Trainer(
            self.model, rows, plan, built, lambda step, steps: 1.0, loss, settled, folder / "run", prepare, spread=spread
        )
        self.told: list[dict[str, Any]] = []
        self.trainer.fit(Hooks(self.told.append, progress, lambda *_: None, lambda *_: 0.0))

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self.model.parameters()]

    def equals(self, other: Trained, atol: float = 0.0) -> bool:
        pairs = zip(self.weights(), other.weights(), strict=True)
        return all(torch.equal(a, b) if not atol else torch.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALL_BYTES", 1)


# --- what a forward pass keeps -----------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("own", [True, False], ids=["ours", "transformers"])
def test_activations_away_give_the_same_gradients(own: bool, again: bool, tmp_path: Path) -> None:
    found = []
    for away in (False, True):
        model = parallel_kit.make({"float64": False}).train()
        if again:
            models.recompute(model)
        batch = pack(parallel_kit.rows(tmp_path / str(away), "sft"), [0, 1, 2])
        keeper, loss = Activations(model, pin=False), objective_loss(OBJECTIVES.build("sft"))
        trunk = models.Trunk(model, own)
        if away:
            with keeper.kept():
                total, *_ = micro_loss(trunk, batch, loss, torch.float32)
            assert keeper.moved_bytes >= 4 * 4 * 32 * len(batch.ids_T), "what enters each of four layers, at least"
        else:
            total, *_ = micro_loss(trunk, batch, loss, torch.float32)
        total.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_weights_small_tensors_and_integers_stay_and_nothing_is_copied_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(8, 8)
    x_TD = torch.randn(4, 8, requires_grad=True)
    keeper = Activations(layer, pin=False)
    with keeper.kept():
        y_TD = layer(x_TD)
    assert keeper.moved_bytes == x_TD.nbytes, "the weight is kept, too, but where it is"
    with keeper.kept():
        z_TD = y_TD.exp() * y_TD.index_select(0, torch.tensor([0, 1, 2, 3]))
    assert keeper.moved_bytes == 3 * x_TD.nbytes, "the product keeps both, and exp what the product does"
    z_TD.sum().backward()
    assert x_TD.grad is not None
    one, keeper.moved_bytes = x_TD * 2, 0
    with keeper.kept():
        _ = one.sin() + one.cos()
    assert keeper.moved_bytes == one.nbytes
    with keeper.kept():
        one.detach().add_(1)  # the same place, other values
        _ = one.sin()
    assert keeper.moved_bytes == 2 * one.nbytes
    wide_TD = torch.randn(64, 64, requires_grad=True)
    with keeper.kept():  # what was copied is freed, and its place taken by the next
        total = sum((wide_TD * float(factor)).sin().sum() for factor in range(1, 6))
    total.backward()
    assert torch.allclose(wide_TD.grad, sum(factor * (wide_TD * factor).cos() for factor in range(1, 6)).detach(), atol=1e-5)
    keeper.moved_bytes = 2 * one.nbytes
    monkeypatch.setattr(offload, "SMALL_BYTES", 1 << 16)
    with keeper.kept():
        _ = one.sin()
    assert keeper.moved_bytes == 2 * one.nbytes


# --- where states of optimizers are ---------------------------------------------------------------------------


@pytest.mark.parametrize("early", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "schedule_free"])
def test_states_away_give_the_same_bits_and_resume(kind: str, early: bool, tmp_path: Path) -> None:
    here = Trained(tmp_path / "here", optimizer=kind, step_in_backward=early)
    away = {"optimizer": kind, "step_in_backward": early, "offload": ("states", "activations")}
    there = Trained(tmp_path / "there", **away)
    states = there.trainer.update.states
    assert states is not None and states.moved_bytes > 0
    assert here.equals(there)
    with pytest.raises(Stop):
        Trained(tmp_path / "killed", stop_at=2, every_s=0.0, **away)
    assert Trained(tmp_path / "killed", **away).equals(here)


# --- steps in the backward pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["ours", "transformers"])
@pytest.mark.parametrize("name", JOBS)
def test_a_step_in_the_backward_pass_is_the_usual_one(name: str, own: bool, tmp_path: Path) -> None:
    job, again = JOBS[name], name == "untied"
    usual = Trained(tmp_path / "usual", job, own=own, again=again)
    early = Trained(tmp_path / "early", job, own=own, again=again, step_in_backward=True)
    assert early.equals(usual, atol=1e-6)
    for a, b in zip(usual.told, early.told, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert all(parameter.grad is None for parameter in early.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_may_step_so_and_resumes(kind: str, tmp_path: Path) -> None:
    usual = Trained(tmp_path / "usual", optimizer=kind)
    early = Trained(tmp_path / "early", optimizer=kind, step_in_backward=True)
    assert early.equals(usual, atol=1e-4 if kind == "muon" else 1e-6)  # products of a stack of matrices round otherwise
    with pytest.raises(Stop):
        Trained(tmp_path / "killed", optimizer=kind, step_in_backward=True, stop_at=2, every_s=0.0)
    assert Trained(tmp_path / "killed", optimizer=kind, step_in_backward=True).equals(early)


@pytest.mark.parametrize("own", [True, False], ids=["ours", "transformers"])
def test_gradients_never_exist_together(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = Early._step

    def watched(self: Early, weights: Any) -> None:
        seen.append(sum(w.grad.numel() for w in self.trained if w.grad is not None and w is not self.table))
        step(self, weights)

    monkeypatch.setattr(Early, "_step", watched)
    early = Trained(tmp_path, own=own, step_in_backward=True)
    layer = sum(parameter.numel() for parameter in models.core(early.model).base_model.layers[0].parameters())
    assert 0 < max(seen) <= (layer + 32 if own else layer // 2)
    model = early.model  # no hook is left behind
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert early.trainer.spread.trunk.decoder is None or early.trainer.spread.trunk.decoder.behind is None


def test_a_weight_without_a_gradient_this_time_goes_on_as_usual() -> None:
    """Its states move, as where gradients are kept as zeros."""
    model = parallel_kit.make({"float64": False})
    named = dict(model.named_parameters())
    optimizers = OPTIMIZERS.load("adamw").model_validate({"kind": "adamw"}).build(named.items())
    early = Early(models.Trunk(model), named, optimizers)
    weight = named["model.layers.0.mlp.up_proj.weight"]
    weight.grad = torch.ones_like(weight)
    early.begin(1.0)
    assert early.end() == pytest.approx(weight.numel() ** 0.5)
    before = weight.detach().clone()
    early.begin(1.0)
    assert early.end() == 0.0 and not torch.equal(weight, before)


def test_a_loss_that_is_no_number_steps_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the loss became inf"):
        Trained(tmp_path, step_in_backward=True, break_at=0)


# --- what cannot be --------------------------------------------------------------------------------------------

GIVEN = Given(Machine("m", 2, 8e9), {"data": Facts(type="records", tokens=1e6), "vocab": Facts(type="tokenizer", rows=300)})
FITS = {"step_in_backward": True, "clip": 0.0, "micro_tokens": 128}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"clip": 1.0}, "write `clip: 0`"),
        ({"on_bad_step": "skip"}, "on_bad_step: stop"),
        ({"micro_tokens": 64}, "one micro-batch"),
        ({"objective": "contrastive"}, "compares all rows"),
        ({"precision": "fp16"}, "precision: bf16"),
    ],
)
def test_what_steps_in_the_backward_pass_cannot_do_is_refused(fields: dict[str, Any], says: str) -> None:
    train_kit.stage(**FITS)
    with pytest.raises(ValueError, match=says):
        train_kit.stage(**{**FITS, **fields})


def test_several_processes_are_refused() -> None:
    for fields in (FITS, {"offload": ["states"]}):
        with pytest.raises(UserError, match=r"cannot be used with `parallel"):
            train_kit.stage(**fields).estimate(GIVEN._replace(parallel=Parallel(data=2)))


def test_an_optimizer_that_looks_at_several_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPTIMIZERS.load("lamb"), "weightwise", False)
    with pytest.raises(ValueError, match="several weights"):
        train_kit.stage(**FITS, optimizer={"kind": "lamb"})


def test_on_a_processor_nothing_can_be_moved_to_it(tmp_path: Path) -> None:
    inputs = {"data": train_kit.records(tmp_path / "data", train_kit.texts(4))}
    with pytest.raises(UserError, match="training is on cpu"):
        train_kit.stage(offload=["activations"]).run(train_kit.run_of(tmp_path / "out", inputs))


def test_the_plan_knows_the_micro_batch_and_the_memory() -> None:
    whole = train_kit.stage(**{**FITS, "step_in_backward": False})
    early = train_kit.stage(**{**FITS, "micro_tokens": None})
    assert early.resolve(GIVEN).micro_tokens == early.batch_tokens
    weights = 2 * 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)  # bytes of two layers
    saved = whole.estimate(GIVEN).memory.value - early.estimate(GIVEN).memory.value
    # the largest moment is the loss, before any layer has a gradient
    assert "at the loss" in early.estimate(GIVEN).memory.why and saved == pytest.approx(weights, rel=0.1)


# --- the stage -------------------------------------------------------------------------------------------------


def test_the_stage_trains_so(tmp_path: Path) -> None:
    found = []
    for name, fields in (("usual", {"clip": 0.0, "micro_tokens": 128}), ("early", FITS)):
        events: list[tuple[str, dict[str, Any]]] = []
        inputs = {"data": train_kit.records(tmp_path / name / "data", train_kit.texts(24))}
        inputs["vocab"] = Input("vocab", "tokenizer", train_kit.tokenizer(tmp_path / name / "vocab"))
        stats = train_kit.stage(**fields).run(train_kit.run_of(tmp_path / name / "out", inputs, events=events))
        steps = [fields for event, fields in events if event == "step"]
        found.append((stats["loss_last"], [step["grad_norm"] for step in steps]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1] == pytest.approx(found[1][1], rel=1e-4)
