"""Rows, their order, checkpoints and the loop: the same bits whatever happens on the way."""

from __future__ import annotations

import errno
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from modelwright.core.errors import UserError
from modelwright.methods.objectives.dpo import DPO
from modelwright.methods.objectives.sft import SFT
from modelwright.nn import checkpoint, trouble
from modelwright.nn import model as models
from modelwright.nn import rows as row_files
from modelwright.nn.logps import Policy
from modelwright.nn.loop import BACK, Hooks, Interrupted, Outcome, Settings, Trainer
from modelwright.nn.measure import evaluate, micro_loss, target_logps
from modelwright.nn.order import Source, order
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed, Row, Rows, micro_batches, pack, pair, runs, store
from modelwright.stages._train_run import objective_loss

VOCAB = 61


def tiny(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = models.build(config)
    models.packed(model)
    return model


def documents(count: int, folder: Path, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(rng.integers(4, 20))
        ids = rng.integers(0, VOCAB, length).tolist()
        rows.append(Row(ids, [0, 0, *[1] * (length - 2)], name=f"row {number}"))
    return store(rows, folder, VOCAB)


def sides(seed: int, prompt: int = 6) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, VOCAB, prompt).tolist()
    found = []
    for length in (5, 8):
        answer = rng.integers(0, VOCAB, length).tolist()
        found.append((start + answer, [0] * prompt + [1] * length))
    return found[0], found[1]


# --- rows ---------------------------------------------------------------------------------------------


def test_rows_are_stored_alike_in_any_groups_and_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(array: Any) -> list[Row]:
        plain = [Row(array(range(n)), array([1] * n), name=f"r{n}", label=n / 2) for n in (3, 1, 7)]
        several = Row(array([4, 5, 6]), array([1, 1, 1]), parts=array([1, 2]), name="parts")
        return [*plain, pair(*sides(1), "p"), several, Row(array([7, 8]), array([0, 1]), tags=array([-1, 3]))]

    stored = store(given(list), tmp_path / "lists", VOCAB)
    assert stored.targets_R.tolist() == [2, 0, 6, len(pack(stored, [3]).target_N), 2, 1]
    monkeypatch.setattr(row_files, "AT_ONCE", 4)
    store(given(np.array), tmp_path / "arrays", VOCAB)
    for name in (*row_files.FILES, "rows.json"):
        assert (tmp_path / "lists" / name).read_bytes() == (tmp_path / "arrays" / name).read_bytes(), name
    for odd in (70_000, -1):
        with pytest.raises(OverflowError, match=f"token {odd} in a vocabulary of 20"):
            store([Row([], []), Row([3, odd], [1, 1])], tmp_path / "large", 20)
    assert not (tmp_path / "large" / "rows.json").exists()


def test_rows_come_back_as_they_were_stored(tmp_path: Path) -> None:
    rows = store([Row([1, 2, 3], [0, 1, 1], name="a\nb"), pair(*sides(1), "p")], tmp_path, VOCAB)
    again = Rows(tmp_path)
    assert len(again) == 2 and again.tokens == rows.tokens == 3 + 6 + 5 + 8
    assert again.name(0) == "a b" and again.name(1) == "p"
    assert again.targets_R.tolist() == [2, 13]


def test_a_pair_shares_what_both_answers_begin_with() -> None:
    row = pair(([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 3, 5, 6], [0, 0, 1, 1, 1]))
    assert row.ids == [1, 2, 3, 4, 5, 6]
    assert row.branches == (1, 2)
    assert row.flags == [0, 0, 3, 1, 2, 2]
    prefix = pair(([1, 2], [0, 1]), ([1, 2, 3], [0, 1, 1]))  # one answer is the beginning of the other
    assert prefix.ids == [1, 2, 2, 3] and prefix.branches == (1, 2)
    apart = pair(([1, 2], [1, 1]), ([3, 4], [1, 1]))
    assert apart.ids == [1, 2, 3, 4] and apart.branches == (2, 2)


def test_targets_and_positions_of_a_pair(tmp_path: Path) -> None:
    rows = store([pair(([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 2, 3, 5, 6], [0, 0, 1, 1, 1]))], tmp_path, VOCAB)
    batch = pack(rows, [0])
    assert batch.target_N.tolist() == [3, 4, 3, 5, 6]
    assert batch.position_N.tolist() == [1, 2, 1, 2, 4]
    assert batch.segment_N.tolist() == [0, 0, 1, 1, 1]
    assert batch.chosen_P is not None and batch.chosen_P.tolist() == [0]


def test_micro_batches_keep_every_row_and_the_limit(tmp_path: Path) -> None:
    rows = documents(50, tmp_path)
    for limit in (1, 20, 64, 10_000):
        in_order = list(runs(rows, range(50), limit))
        assert [row for group in in_order for row in group] == list(range(50))
        groups = micro_batches(rows, range(50), limit)
        assert sorted(row for group in groups for row in group) == list(range(50))
        for group in (*in_order, *groups):
            assert len(group) == 1 or rows.lengths_R[group].sum() <= limit
        assert len(groups) <= len(in_order)


def test_micro_batches_leave_no_short_rest(tmp_path: Path) -> None:
    lengths = [88, 400, 51, 404, 81]  # in order: 488, 455, 81
    rows = store([Row([1] * length, [1] * length) for length in lengths], tmp_path, VOCAB)
    assert [int(rows.lengths_R[group].sum()) for group in micro_batches(rows, range(5), 550)] == [536, 488]


# --- order --------------------------------------------------------------------------------------------


def source(count: int, first: int = 0, **options: float) -> Source:
    return Source(first, np.full(count, 10), **options)


def test_order_depends_on_the_seed_alone() -> None:
    one, two, three = (order([source(30)], 40, seed, epochs=2) for seed in (0, 0, 1))
    assert one.rows.tolist() == two.rows.tolist() != three.rows.tolist()
    assert Counter(one.rows.tolist()) == dict.fromkeys(range(30), 2)
    assert sorted(one.rows[:30].tolist()) == list(range(30)), "the second pass begins after the first"
    assert one.rows[:30].tolist() != one.rows[30:].tolist(), "every pass has its own order"


def test_steps_hold_at_most_the_batch() -> None:
    plan = order([source(30)], 45, 0, steps=7)
    assert plan.steps == 7 and all(len(plan.step(i)) == 4 for i in range(7))
    long = order([Source(0, np.array([100, 10, 10]))], 20, 0, epochs=1)
    assert sorted(len(long.step(i)) for i in range(long.steps)) in ([1, 2], [1, 1, 1])


def test_weights_are_shares_of_tokens_at_any_time() -> None:
    plan = order([source(100, 0, weight=3.0), source(10, 100, weight=1.0)], 40, 0, steps=50)
    for end in (20, 80, 200):
        assert abs((plan.rows[:end] < 100).mean() - 0.75) < 0.06


def test_epochs_of_a_source_are_exact() -> None:
    plan = order([source(20), source(6, 20, epochs=3.0)], 40, 0, epochs=1)
    counts = Counter(plan.rows.tolist())
    assert all(counts[row] == 1 for row in range(20)) and all(counts[row] == 3 for row in range(20, 26))


def test_budgets_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(UserError, match=r"0\.01 epochs of 30 rows are less than one row") as error:
        order([source(20), source(10, 20)], 40, 0, epochs=0.01)
    assert "0.033 epochs" in error.value.fix
    with pytest.raises(UserError, match="lasts for"):
        order([source(4, epochs=1.0)], 10, 0, steps=9)
    with pytest.raises(UserError, match="more tokens than the steps hold"):
        order([source(4), source(100, 4, epochs=9.0)], 10, 0, steps=9)


# --- checkpoints ----------------------------------------------------------------------------------------


def test_a_torn_checkpoint_is_never_taken(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, 5, {"step": 5, "x": torch.ones(100)})
    newer = checkpoint.save(tmp_path / "other", 9, {"step": 9, "x": torch.zeros(100)})
    assert sorted(p.name for p in tmp_path.glob("step*")) == ["step-00000005.json", "step-00000005.pt"]

    whole = newer.read_bytes()
    (tmp_path / newer.name).write_bytes(whole[:-1])  # no note yet: killed while renaming
    assert checkpoint.latest(tmp_path)["step"] == 5
    note = newer.with_suffix(".json").read_text()
    (tmp_path / newer.with_suffix(".json").name).write_text(note)  # cut off
    assert checkpoint.latest(tmp_path)["step"] == 5
    (tmp_path / newer.name).write_bytes(whole[:-1] + b"!")  # right size, other bytes
    assert checkpoint.latest(tmp_path)["step"] == 5
    (tmp_path / newer.with_suffix(".json").name).write_text(note[:-5])  # a torn note
    assert checkpoint.latest(tmp_path)["step"] == 5
    (tmp_path / newer.with_suffix(".json").name).write_text(note)
    (tmp_path / newer.name).write_bytes(whole)
    assert checkpoint.latest(tmp_path)["step"] == 9
    assert json.loads(note)["bytes"] == len(whole)


def test_saving_removes_what_is_older(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"step": step})
    (tmp_path / "step-00000004.pt.tmp").write_bytes(b"a killed writer's")
    checkpoint.save(tmp_path, 5, {"step": 5})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005.json", "step-00000005.pt"]


# --- the loss of a batch --------------------------------------------------------------------------------


def gradients(
    model: torch.nn.Module, rows: Rows, groups: list[list[int]], objective: SFT | DPO
) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    total, weight_sum = 0.0, 0.0
    for group in groups:
        batch = pack(rows, group)
        batch = batch._replace(reference_N=torch.full((len(batch.target_N),), -3.0))
        loss, weight, _ = micro_loss(models.Trunk(model), batch, objective_loss(objective), torch.float32)
        loss.backward()
        total, weight_sum = total + float(loss.detach()), weight_sum + float(weight)
    return total / weight_sum, [p.grad / weight_sum for p in model.parameters()]


def same(one: tuple[float, list[torch.Tensor]], two: tuple[float, list[torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("objective", [SFT(), DPO(label_smoothing=0.1, sft_weight=0.5)], ids=["sft", "dpo"])
def test_accumulation_changes_nothing(objective: SFT | DPO, tmp_path: Path) -> None:
    if objective.needs == "pairs":
        rows = store([pair(*sides(i)) for i in range(6)], tmp_path, VOCAB)
    else:
        rows = documents(6, tmp_path)
    model = tiny()
    together = gradients(model, rows, [list(range(6))], objective)
    same(together, gradients(model, rows, [[i] for i in range(6)], objective))
    same(together, gradients(model, rows, [[3, 1], [5, 0, 2, 4]], objective))


def test_a_shared_prompt_is_a_duplicated_prompt(tmp_path: Path) -> None:
    """The pair's two answers on one prompt, against the same answers as rows of their own."""
    shared = store([pair(*sides(i)) for i in range(3)], tmp_path / "shared", VOCAB)
    alone = store([Row(ids, mask) for i in range(3) for ids, mask in sides(i)], tmp_path / "alone", VOCAB)
    assert shared.tokens < alone.tokens
    found = []
    for rows in (shared, alone):
        model = tiny()
        logp = models.Trunk(model)
        batch = pack(rows, range(len(rows)))
        values = logp.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, torch.float32).logps()
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        found.append((values.detach(), [p.grad for p in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_reference_log_probabilities_are_in_row_order(tmp_path: Path) -> None:
    rows, model = store([pair(*sides(i)) for i in range(5)], tmp_path, VOCAB), tiny()
    found = target_logps(model, rows, range(len(rows)), 20, torch.float32, lambda done: None)
    batch = pack(rows, range(5))
    trunk = models.Trunk(model)
    direct = trunk.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, torch.float32).logps()
    assert torch.allclose(found, direct, atol=1e-5)


# --- the loop -------------------------------------------------------------------------------------------


class Stop(Exception):
    """The test's own kill."""


def trained(
    rows: Rows,
    folder: Path,
    stop_at: int | None = None,
    every_s: float = 0.0,
    lr: float = 0.01,
    micro: int = 32,
    steps: int = 9,
    validate: Callable[[int, Callable[[], bool]], float | None] = lambda step, stop: 0.0,
    break_at: tuple[int, ...] = (),
    listen: Callable[[int, float], None] = lambda done, loss: None,
    **options: Any,
) -> tuple[torch.nn.Module, Outcome, list[dict[str, Any]]]:
    """`break_at`: steps whose first rows' loss is multiplied by infinity."""
    model = tiny().train()
    plan = order([Source(0, rows.lengths_R)], 48, 0, steps=steps)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "initial_lr": lr}], lr=lr, fused=True)
    settings = Settings(micro, torch.float32, options.pop("clip", 1.0), 2, every_s, **options)
    told: list[dict[str, Any]] = []
    plain = objective_loss(SFT())
    broken = {tuple(plan.step(index)) for index in break_at}

    def loss(policy: Policy, batch: Packed) -> Any:
        total, weight, metrics = plain(policy, batch)
        return (total * math.inf if any(set(batch.rows) <= set(step) for step in broken) else total), weight, metrics

    def progress(done: int, loss: float) -> None:
        listen(done, loss)
        if done == stop_at:
            raise Stop

    trainer = Trainer(model, rows, plan, [optimizer], lambda step, steps: 1.0, loss, settings, folder)
    outcome = trainer.fit(Hooks(told.append, progress, lambda event, fields: told.append({event: fields}), validate))
    return model, outcome, told


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("stop_at", [1, 4, 8])
def test_killed_and_resumed_gives_the_same_bits(stop_at: int, tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    model, outcome, _ = trained(rows, tmp_path / "whole")
    with pytest.raises(Stop):
        trained(rows, tmp_path / "killed", stop_at)
    again, resumed, told = trained(rows, tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))
    assert resumed._replace(seconds=0.0) == outcome._replace(seconds=0.0)
    assert stop_at == 1 or told[0] == {"resumed": {"step": stop_at - 1}}


def test_what_listens_takes_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers prompts after a step, or a profiler that writes its trace."""
    rows, clock = documents(6, tmp_path / "rows"), [0.0]
    monkeypatch.setattr("modelwright.nn.loop.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(done: int, loss: float) -> None:
        clock[0] += 100.0

    _, outcome, told = trained(rows, tmp_path / "run", every_s=1e9, listen=slow)
    assert outcome.seconds == told[-1]["seconds"] == 0.0


def test_the_loss_falls_and_the_events_tell_it(tmp_path: Path) -> None:
    rows = documents(6, tmp_path / "rows")
    _, outcome, told = trained(rows, tmp_path / "run", every_s=1e9)
    assert outcome.loss_last < outcome.loss_first and outcome.steps == 9
    assert [event["step"] for event in told] == [2, 4, 6, 8, 9]
    assert {"loss", "lr", "grad_norm", "tokens", "seconds", "steps"} <= told[0].keys()
    assert told[-1]["tokens"] == outcome.tokens


def test_micro_batches_do_not_change_training(tmp_path: Path) -> None:
    rows = documents(20, tmp_path / "rows")
    one, _, _ = trained(rows, tmp_path / "one", every_s=1e9, micro=1)
    many, _, _ = trained(rows, tmp_path / "many", every_s=1e9, micro=10_000)
    for a, b in zip(weights(one), weights(many), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_clipping_limits_the_step(tmp_path: Path) -> None:
    rows = documents(20, tmp_path / "rows")
    _, _, free = trained(rows, tmp_path / "free", every_s=1e9, clip=0.0)
    _, _, clipped = trained(rows, tmp_path / "clipped", every_s=1e9, clip=1e-3)
    assert free[0]["loss"] != clipped[0]["loss"] or free[1]["loss"] != clipped[1]["loss"]


def test_a_loss_that_is_no_number_names_step_and_rows(tmp_path: Path) -> None:
    rows = documents(20, tmp_path / "rows")
    with pytest.raises(UserError, match=r"became (nan|inf).* in step \d") as error:
        trained(rows, tmp_path / "run", every_s=1e9, lr=1e30)
    assert "row " in error.value.why


def test_evaluation_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    rows, model = documents(8, tmp_path), tiny().train()
    attach: Callable[[Packed], Packed] = lambda batch: batch
    one = evaluate(model, rows, range(8), objective_loss(SFT()), 10_000, torch.float32, attach)
    two = evaluate(model, rows, range(8), objective_loss(SFT()), 1, torch.float32, attach)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert model.training and all(p.grad is None for p in model.parameters())


# --- bad steps, time that is up, validation ---------------------------------------------------------------


def test_a_bad_step_is_left_out_and_told(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    _, outcome, told = trained(rows, tmp_path / "run", break_at=(4,), on_bad_step="skip")
    (bad,) = (event["bad_step"] for event in told if "bad_step" in event)
    assert bad["step"] == 5 and bad["rows"] and bad["policy"] == "skip" and outcome.skipped == 1 and outcome.steps == 9
    assert math.isfinite(outcome.loss_last)


def test_rollback_goes_back_and_leaves_out_the_steps_before(tmp_path: Path) -> None:
    rows = documents(400, tmp_path / "rows")
    many = {"steps": BACK + 12, "on_bad_step": "rollback", "break_at": (BACK + 5,)}
    model, outcome, told = trained(rows, tmp_path / "run", **many)
    (back,) = (event["rollback"] for event in told if "rollback" in event)
    assert back == {"step": 6, "skipped": [7, BACK + 6]} and outcome.skipped == BACK
    rare, same, _ = trained(rows, tmp_path / "rare", every_s=1e9, **many)  # from step 0, since nothing else was saved
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(rare), strict=True))
    assert same._replace(seconds=0.0) == outcome._replace(seconds=0.0)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_killed_around_a_bad_step_gives_the_same_bits(policy: Any, stop_at: int, tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    options = {"break_at": (4,), "on_bad_step": policy, "every_s": 0.0}
    model, outcome, _ = trained(rows, tmp_path / "whole", **options)
    if outcome.skipped < stop_at:
        with pytest.raises(Stop):
            trained(rows, tmp_path / "killed", stop_at, **options)
    again, resumed, _ = trained(rows, tmp_path / "killed", **options)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))
    assert resumed._replace(seconds=0.0) == outcome._replace(seconds=0.0)


def test_bad_steps_without_end_stop_the_training(tmp_path: Path) -> None:
    rows = documents(400, tmp_path / "rows")
    with pytest.raises(UserError, match="became inf") as error:
        trained(rows, tmp_path / "run", steps=30, break_at=tuple(range(5, 20)), on_bad_step="skip")
    assert "left out before" in error.value.fix


def test_a_spike_is_far_above_the_last_losses() -> None:
    losses = [2.0 + 0.1 * (i % 3) for i in range(trouble.LEAST)]
    assert trouble.limit(losses[1:], 8.0) == math.inf and trouble.limit(losses, 0.0) == math.inf
    assert 2.4 < trouble.limit(losses, 8.0) < 4.0


def test_the_first_module_whose_result_is_no_number_is_named(tmp_path: Path) -> None:
    rows, model = documents(4, tmp_path), tiny()
    assert trouble.first_bad_weight(dict(model.named_parameters()), gradients=False) == ""
    own = models.Trunk(model, own=False)

    def forward(batch: Packed) -> None:
        own.hidden(batch.ids_T, batch.layout, torch.float32)

    assert trouble.first_bad_module(model, forward, pack(rows, [0])) == ""
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").fill_(3e38)
    assert trouble.first_bad_module(model, forward, pack(rows, [0])) == "model.layers.1.mlp.up_proj"


def test_time_that_is_up_saves_and_ends(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    model, outcome, _ = trained(rows, tmp_path / "whole", every_s=1e9)
    with pytest.raises(Interrupted, match="time is up after step 0 of 9"):
        trained(rows, tmp_path / "run", every_s=1e9, deadline_s=time.time() - 1)
    again, resumed, told = trained(rows, tmp_path / "run", every_s=1e9)
    assert told[0] == {"resumed": {"step": 0}} and resumed._replace(seconds=0.0) == outcome._replace(seconds=0.0)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))


@pytest.mark.parametrize("stop_at", [4, 8])
def test_a_moving_average_is_measured_left_and_survives_a_kill(stop_at: int, tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    last, _, _ = trained(rows, tmp_path / "last")
    options = {"average": 0.5, "validate_every": 3, "validate": lambda step, stop: 1.0}
    model, _, _ = trained(rows, tmp_path / "whole", **options)
    assert not all(torch.equal(a, b) for a, b in zip(weights(last), weights(model), strict=True))
    with pytest.raises(Stop):
        trained(rows, tmp_path / "killed", stop_at, **options)
    again, _, _ = trained(rows, tmp_path / "killed", **options)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))


def test_patience_ends_and_the_best_is_kept(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    losses = {2: 3.0, 4: 1.0, 6: 1.5, 8: 1.2}
    settings = {"validate_every": 2, "validate": lambda step, stop: losses[step]}
    last, outcome, told = trained(rows, tmp_path / "run", patience=2, **settings)
    assert (
        outcome.steps == 8
        and outcome.best_step == 4
        and told[-1] == {"early_stop": {"step": 8, "best_step": 4, "best_loss": 1.0}}
    )
    best, _, _ = trained(rows, tmp_path / "best", patience=2, keep_best=True, **settings)
    four, _, _ = trained(
        rows, tmp_path / "four", steps=9, stop_at=None, patience=1, **{**settings, "validate": lambda step, stop: 1.0}
    )
    assert not all(torch.equal(a, b) for a, b in zip(weights(last), weights(best), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(four), weights(best), strict=True)), "it ended after step 4"


def test_a_validation_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    seen: list[int] = []

    def validate(step: int, stop: Callable[[], bool]) -> float | None:
        seen.append(step)
        if seen == [3]:
            signal.raise_signal(signal.SIGTERM)
        return None if stop() else 1.0

    options = {"validate_every": 3, "validate": validate, "every_s": 1e9}
    with pytest.raises(Interrupted):
        trained(rows, tmp_path / "run", **options)
    trained(rows, tmp_path / "run", **options)
    assert seen == [3, 3, 6, 9]


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        trained(documents(40, tmp_path / "rows"), tmp_path / "run")


def test_a_weight_that_a_step_does_not_reach_is_stepped_like_any_other() -> None:
    """In the first step after a resume as in the middle of an undisturbed run, where zeros of earlier steps lie there."""
    model = tiny()
    model.extra = torch.nn.Parameter(torch.ones(3))
    spread = Spread(model)
    for _ in range(2):
        assert len(spread.gradients()) == len(spread.trained)
    assert torch.equal(model.extra.grad, torch.zeros(3))
