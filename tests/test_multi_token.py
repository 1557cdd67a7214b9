"""Multi-token prediction: the paper's sum written out, heads that only training has, and that a kill changes no bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, silu
from transformers import AutoModelForCausalLM, LlamaConfig

from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.events import Log
from modelwright.core.stage import Input, Run
from modelwright.methods.objectives.multi_token import MultiToken
from modelwright.methods.objectives.next_token import NextToken
from modelwright.nn import model as models
from modelwright.nn import multi
from modelwright.nn.measure import micro_loss
from modelwright.nn.rows import FIRST, Row, Rows, pack, store
from modelwright.stages._train_run import objective_loss
from tests import train_kit as kit

VOCAB = 61


def made(tied: bool = True) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = models.build(LlamaConfig(**sizes, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return model


def rows_of(folder: Path, lengths: tuple[int, ...] = (9, 2, 14, 3, 6)) -> Rows:
    rng = np.random.default_rng(0)
    return store((Row(rng.integers(0, VOCAB, n).tolist(), [FIRST] * n) for n in lengths), folder, VOCAB)


def ours(
    model: Any, objective: Any, rows: Rows, groups: list[list[int]]
) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Sum of the loss over these micro-batches, sums of its metrics, and the gradients."""
    models.packed(model)
    model.zero_grad()
    total, sums = 0.0, dict[str, float]()
    for group in groups:
        loss, _, metrics = micro_loss(models.Trunk(model), pack(rows, group), objective_loss(objective), torch.float32)
        loss.backward()
        total += float(loss.detach())
        sums = {name: sums.get(name, 0.0) + float(value) for name, value in metrics.items()}
    return total, sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tied", [True, False])
def test_the_sum_over_heads_written_out(tied: bool, tmp_path: Path) -> None:
    model, rows, objective = made(tied), rows_of(tmp_path), MultiToken(heads=4, weight=0.7)
    objective.attach(model)
    with torch.no_grad():
        for parameter in model.ahead.parameters():
            parameter.normal_(0.0, 0.3)
    total, sums, found = ours(model, objective, rows, [[0, 1], [2, 3, 4]])
    models.unpacked(model)
    model.zero_grad()
    parts = [torch.zeros(()) for _ in range(4)]
    for row in range(len(rows)):
        ids = pack(rows, [row]).ids_T
        hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0]
        for distance in range(1, min(5, len(ids))):
            seen = hidden[:-distance]
            if distance > 1:
                seen = seen + silu(seen @ model.ahead[f"token_{distance}"].weight.T)
            parts[distance - 1] = parts[distance - 1] + cross_entropy(model.lm_head(seen), ids[distance:], reduction="sum")
    theirs = parts[0] + 0.7 * (parts[1] + parts[2] + parts[3])
    theirs.backward()
    assert total == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert [sums[f"loss_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([float(part.detach()) for part in parts], rel=1e-5)
    for name, parameter in model.named_parameters():
        assert float((found[name] - parameter.grad).abs().max()) < 1e-5 * max(1.0, float(parameter.grad.abs().max())), name


def test_one_head_is_next_token(tmp_path: Path) -> None:
    model, rows = made(), rows_of(tmp_path)
    objective = MultiToken(heads=1)
    objective.attach(model)
    assert multi.of(model) is None and not objective.detach(model)
    one, plain = (ours(model, each, rows, [[0, 1, 2], [3, 4]]) for each in (objective, NextToken()))
    assert one[0] == plain[0] and one[2].keys() == plain[2].keys()
    assert all(torch.equal(one[2][name], plain[2][name]) for name in plain[2])


def test_heads_begin_as_the_models_own(tmp_path: Path) -> None:
    model, rows = made(), rows_of(tmp_path)
    MultiToken(heads=3).attach(model)
    batch = pack(rows, [0, 2])
    models.packed(model)
    policy = models.Trunk(model).policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, torch.float32)
    every = torch.arange(len(batch.target_N))
    assert torch.equal(policy.further(3, every, batch.target_N).logps(), policy.logps())


# --- the stage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    folder = tmp_path_factory.mktemp("multi")
    vocab = Input("vocab", "tokenizer", kit.tokenizer(folder / "vocab"))
    return {"data": kit.records(folder / "texts", kit.texts(40)), "vocab": vocab}


FIELDS: dict[str, Any] = {"objective": {"kind": "multi_token", "heads": 3}, "optimizer": {"kind": "muon"}}


def test_the_stage_learns_and_leaves_a_plain_decoder(inputs: dict[str, Input], tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    stats = kit.stage(**FIELDS, steps=40).run(run := kit.run_of(tmp_path / "out", inputs, events=events))
    told = [fields["text"] for name, fields in events if name == "note"]
    assert any("left out of the model: 2,048 weights of heads 2 to 3" in text for text in told)
    losses = [fields for name, fields in events if name == "step"]
    for name in ("loss_1", "loss_2", "loss_3"):
        assert losses[-1][name] < 0.8 * losses[0][name]
    again, info = AutoModelForCausalLM.from_pretrained(run.out, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]
    assert stats["params"] == sum(p.numel() for p in again.parameters()) == stats["trainable"] - 2048


def test_heads_beside_an_adapter(inputs: dict[str, Input], tmp_path: Path) -> None:
    kit.stage(steps=2).run(first := kit.run_of(tmp_path / "first", inputs))
    start = {"data": inputs["data"], "start": Input("start", "model", first.out)}
    kit.stage(**FIELDS, start="start", adapter={"kind": "lora", "rank": 2}, steps=4).run(
        run := kit.run_of(tmp_path / "out", start)
    )
    _, info = AutoModelForCausalLM.from_pretrained(run.out, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]


def test_stopped_and_resumed_to_the_same_bits(inputs: dict[str, Input], tmp_path: Path) -> None:
    def stop(event: str, fields: dict[str, Any]) -> None:
        if event == "progress" and fields["label"] == "train" and fields["done"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    stage = kit.stage(**FIELDS, steps=7)
    stage.run(whole := kit.run_of(tmp_path / "whole", inputs))
    (broken := tmp_path / "broken").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(Run(broken, inputs, 0, Log(None, stop)))
    saved = torch.load(next((broken / "checkpoint").glob("*.pt")), weights_only=True)
    assert {"ahead.token_2.weight", "ahead.token_3.weight"} <= saved["weights"].keys()
    assert float(saved["weights"]["ahead.token_3.weight"].abs().max()) > 0
    stage.run(kit.run_of(broken, inputs))
    assert (broken / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_estimates_know_the_heads() -> None:
    shape = Shape(layers=4, hidden=256, intermediate=704, heads=4, kv_heads=4, vocab=4096)
    given = Given(
        Machine("laptop", 2, 16e9), {"data": Facts(type="records", chars=1e6), "base": Facts(type="model", shape=shape)}
    )
    plain, four = (
        kit.stage(start="base", objective=objective, length=256, batch_tokens=2048, micro_tokens=512, steps=900).estimate(given)
        for objective in ("next_token", "multi_token")
    )
    assert 1.3 < four.seconds.value / plain.seconds.value < 2.5
    assert four.memory.value > plain.memory.value + 3 * 256**2 * 12 and four.facts[""].shape == shape
