"""Objectives of whole texts: labels, numbers and vectors, against transformers' own classifiers and the papers' equations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.stage import Input
from modelwright.methods.objectives.classify import Classify
from modelwright.methods.objectives.contrastive import Contrastive
from modelwright.methods.objectives.regress import Regress
from modelwright.nn import dropout
from modelwright.nn import model as models
from modelwright.nn.measure import micro_loss, step_loss
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import FIRST, Row, Rows, pack, store
from modelwright.stages._train_rows import encode
from modelwright.stages._train_run import objective_loss
from modelwright.stages._train_text import Ledger, Text
from tests import train_kit as kit
from tests.objectives_kit import JUDGES, SIZES, VOCAB, made, run_stage, vocabulary


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vocabulary(tmp_path_factory.mktemp("vocab"))


# --- classify and regress -----------------------------------------------------------------------------------


def judge(name: str, objective: Any, seed: int = 0) -> Any:

    torch.manual_seed(seed)
    model = models.build(copy.deepcopy(JUDGES[name]), "sequence", objective.settings())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return model


def labelled(folder: Path, labels: list[float]) -> Rows:
    rng = np.random.default_rng(2)
    rows = [
        Row(ids, [FIRST] * len(ids), label=y)
        for y in labels
        for ids in [rng.integers(4, VOCAB, int(rng.integers(3, 20))).tolist()]
    ]
    return store(rows, folder, VOCAB)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_transformers_own_scores(kind: str, name: str, pooling: str, tmp_path: Path) -> None:
    """Values and gradients of two micro-batches against `AutoModelForSequenceClassification` on one padded batch."""
    if pooling == "mean" and name != "modernbert":
        return
    objective = Classify(labels=("a", "b", "c")) if kind == "classify" else Regress()
    model = judge(name, objective)
    model.config.classifier_pooling = pooling
    models.check_packed(model)
    labels = [0.0, 2.0, 1.0, 1.0, 2.0] if kind == "classify" else [0.5, -1.0, 2.0, 0.1, 0.0]
    rows = labelled(tmp_path, labels)
    total, weight_sum, right = 0.0, 0.0, 0.0
    for group in (range(2), range(2, 5)):
        loss, weight, metrics = micro_loss(models.Trunk(model), pack(rows, group), objective_loss(objective), torch.float32)
        loss.backward()
        total, weight_sum = total + float(loss.detach()), weight_sum + float(weight)
        right += float(metrics["accuracy" if kind == "classify" else "absolute_error"])
    found = {key: p.grad / weight_sum for key, p in model.named_parameters() if p.grad is not None}
    models.unpacked(model)
    model.zero_grad()
    longest = int(max(rows.lengths_R))
    ids, attention = (torch.zeros(5, longest, dtype=torch.long) for _ in range(2))
    for row in range(5):
        part = pack(rows, [row]).ids_T
        ids[row, : len(part)], attention[row, : len(part)] = part, 1
    target = torch.tensor(labels).long() if kind == "classify" else torch.tensor(labels)
    theirs = model(input_ids=ids, attention_mask=attention, labels=target)
    theirs.loss.backward()
    assert total / weight_sum == pytest.approx(float(theirs.loss.detach()), abs=1e-5)
    if kind == "classify":
        assert right == float((theirs.logits.argmax(1) == target).sum())
    else:
        assert right == pytest.approx(float((theirs.logits[:, 0] - target).detach().abs().sum()), abs=1e-4)
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert set(wanted) <= set(found)
    for key, gradient in found.items():
        theirs_grad = wanted.get(key, torch.zeros_like(gradient))
        assert float((gradient - theirs_grad).abs().max()) < 1e-5 * max(1.0, float(theirs_grad.abs().max())), key


def test_labels_are_read_and_wrong_ones_counted() -> None:
    named = Classify(labels=("no", "yes"))
    assert named.label(Record("a", text="x", meta={"label": "yes"})) == 1.0
    assert Classify().label(Record("a", text="x", meta={"label": 1})) == 1.0
    assert Classify().label(Record("a", text="x", meta={"label": True})) == 1.0
    odd = [{"label": value} for value in ("maybe", float("nan"), float("inf"), 10**400, [1])]
    for meta, says in (({}, "no `label`"), *((one, "not among") for one in odd)):
        with pytest.raises(ValueError, match=says):
            named.label(Record("a", text="x", meta=meta))
    assert Regress(unit=5.0).label(Record("a", text="x", meta={"label": 4})) == 0.8
    for value in (None, "4", True, float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match="no number"):
            Regress().label(Record("a", text="x", meta={"label": value}))
    with pytest.raises(ValidationError, match="once"):
        Classify(labels=("a", "a"))


def colours(count: int) -> list[Record]:
    """A text's label is whether it names the fox."""
    return [Record(r.id, text=r.text, meta={"label": "fox" if "fox" in r.text else "none"}) for r in kit.texts(count)]


@pytest.mark.parametrize("kind", ["encoder", "llama"])
def test_the_stage_classifies(kind: str, tmp_path: Path, vocab: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [*colours(120), Record("odd", text="the cat", meta={"label": "cat"}), Record("bare", text="the dog")]
    model = {"kind": kind, "depth": 2, "hidden": 32, "heads": 2, "intermediate": 48}
    objective = {"kind": "classify", "labels": ["none", "fox"]}
    inputs = {"data": kit.records(tmp_path / "rows", rows), "vocab": Input("vocab", "tokenizer", vocab)}
    run = kit.run_of(tmp_path / "out", inputs)
    stats = kit.stage(objective=objective, model=model, steps=120, batch_tokens=512, micro_tokens=256).run(run)
    assert stats["rows"]["dropped"] == {"a label that is not among `labels`": 1, "no `label`": 1}
    assert stats["loss_last"] < 0.2 < stats["loss_first"]
    again, tokenizer = AutoModelForSequenceClassification.from_pretrained(run.out), AutoTokenizer.from_pretrained(run.out)
    assert again.config.id2label == {0: "none", 1: "fox"}
    records = colours(40)
    with torch.no_grad():
        said = [again(**tokenizer(r.text, return_tensors="pt")).logits.argmax().item() for r in records]
    assert sum(again.config.id2label[i] == r.meta["label"] for i, r in zip(said, records, strict=True)) >= 36
    # and on from an artifact: the encoder's own head is kept, another number of labels is refused
    start = Input("start", "model", run.out)
    on = kit.run_of(tmp_path / "on", {**inputs, "start": start})
    assert kit.stage(objective=objective, start="start", steps=2, batch_tokens=512).run(on)["loss_first"] < 0.3
    three = kit.run_of(tmp_path / "three", {**inputs, "start": start})
    with pytest.raises(UserError, match=r"cannot be opened|lacks weights"):
        kit.stage(objective={**objective, "labels": ["a", "b", "c"]}, start="start", steps=2, batch_tokens=512).run(three)


def test_a_new_head_on_a_pretrained_encoder(tmp_path: Path, vocab: Path) -> None:
    model = {"kind": "encoder", "depth": 2, "hidden": 32, "heads": 2, "intermediate": 48}
    _, out = run_stage(tmp_path / "first", vocab, objective="masked_token", model=model, steps=2)
    start = Input("start", "model", out)
    digests = []
    for number in range(2):
        run = kit.run_of(tmp_path / f"run-{number}", {"data": kit.records(tmp_path / "rows", colours(20)), "start": start})
        kit.stage(objective={"kind": "classify", "labels": ["none", "fox"]}, start="start", steps=3).run(run)
        digests.append((run.out / "model.safetensors").read_bytes())
    assert digests[0] == digests[1], "the new head's first weights come from the seed"


# --- contrastive --------------------------------------------------------------------------------------------


def groups(folder: Path, sizes: tuple[int, ...] = (2, 3, 2, 4, 2)) -> Rows:
    """Rows of that many texts each: the text, its partner, hard negatives."""
    rng = np.random.default_rng(3)
    rows = []
    for size in sizes:
        parts = [rng.integers(4, VOCAB, int(rng.integers(3, 9))).tolist() for _ in range(size)]
        ids = [token for part in parts for token in part]
        rows.append(Row(ids, [FIRST] * len(ids), parts=[len(part) for part in parts]))
    return store(rows, folder, VOCAB)


def texts_of(rows: Rows, row: int) -> list[torch.Tensor]:
    return list(torch.split(pack(rows, [row]).ids_T, rows.parts(row)))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("name", ["modernbert", "llama"])
def test_chunks_of_a_step_are_the_whole_step(name: str, pooling: Any, tmp_path: Path) -> None:
    """Three micro-batches against every text alone and the loss of SimCSE's equation 5 written out."""
    torch.manual_seed(0)
    model = made(name) if name != "llama" else models.build(copy.deepcopy(JUDGES["llama"]), "vectors")
    rows, objective = groups(tmp_path), Contrastive(temperature=0.1, pooling=pooling)
    change = objective.change(None, 0)
    assert change is not None
    models.packed(model)
    batches = [change(pack(rows, part)) for part in ([0], [1, 2], [3, 4])]
    total, weight, metrics = step_loss(Spread(model), batches, objective_loss(objective), torch.float32, True)
    total.backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    models.unpacked(model)
    model.zero_grad()

    def vector(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0]
        picked = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[pooling]
        return picked / picked.norm()

    found_texts = [[vector(ids) for ids in texts_of(rows, row)] for row in range(len(rows))]
    others = torch.stack([v for texts in found_texts for v in texts[1:]])
    theirs, right = torch.zeros(()), 0
    for texts in found_texts:
        scores = others @ texts[0] / 0.1
        own = texts[0] @ texts[1] / 0.1
        theirs = theirs - own + scores.logsumexp(0)
        right += int(own >= scores.max() - 1e-6)
    theirs.backward()
    assert float(weight) == 5 and float(metrics["accuracy"]) == right
    assert float(total.detach()) == pytest.approx(float(theirs.detach()), abs=1e-4)
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for key, gradient in wanted.items():
        assert float((found[key] - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max())), key
    assert all(float(found[key].abs().max()) == 0 for key in found.keys() - wanted.keys())


def test_the_second_pass_has_the_dropout_of_the_first(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, num_hidden_layers=1, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    model, objective = models.build(config, "vectors").train(), Contrastive()
    models.packed(model)
    rows = groups(tmp_path)
    change = objective.change(None, 0)
    assert change is not None
    batches = [change(pack(rows, [row])) for row in range(5)]

    def loss() -> torch.Tensor:
        torch.manual_seed(4)
        return step_loss(Spread(model), batches, objective_loss(objective), torch.float32, True)[0]

    weight = model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    loss().backward()
    assert weight.grad is not None
    slope = float(weight.grad[0, 0])
    after = torch.get_rng_state()
    with torch.no_grad():
        loss()
    assert torch.equal(after, torch.get_rng_state()), "the second pass leaves the random state as it was"
    step = 1e-2
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[0, 0] += sign * step
            found.append(float(loss()))
            weight[0, 0] -= sign * step
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_rows_of_groups_are_read_and_wrong_ones_counted(vocab: Path) -> None:
    objective = Contrastive()
    rows = [
        Record("a", text="the fox", meta={"positive": "a fox", "negatives": ["the cat", "a dog"]}),
        Record("b", text="the cat", meta={"positive": "a cat"}),
        Record("c", text="the dog"),
        Record("d", text="the dog", meta={"positive": "a dog", "negatives": [1]}),
        Record("e", text="the " * 80, meta={"positive": "a dog"}),
        *kit.chats(1),
    ]
    tokenizer, ledger = models.load_tokenizer(vocab), Ledger()
    found = list(encode(Text(tokenizer, None, "groups", 48, parts=objective.parts), rows, ledger))
    assert [[len(row.parts), sum(row.parts) == len(row.ids)] for row in found] == [[4, True], [2, True]]
    assert ledger.dropped == {
        "no text in `positive`": 1,
        "`negatives` is no list of texts": 1,
        "a text of more than 48 tokens": 1,
        "a chat, and this objective takes texts alone": 1,
    }


def test_the_stage_learns_vectors_whatever_the_size_of_its_micro_batches(tmp_path: Path, vocab: Path) -> None:
    """A partner says the same in other words."""
    other = dict(zip(kit.WORDS, [*kit.WORDS[7:], *kit.WORDS[:7]], strict=True))
    rows = []
    for record in kit.texts(60):
        words = record.text.split()[:6]
        rows.append(Record(record.id, text=" ".join(words), meta={"positive": " ".join(map(other.__getitem__, words))}))
    inputs = {"data": kit.records(tmp_path / "rows", rows), "vocab": Input("vocab", "tokenizer", vocab)}
    inputs["held"] = inputs["data"]._replace(ref="held")
    model = {"kind": "encoder", "depth": 1, "hidden": 32, "heads": 2}
    found = []
    for micro_tokens in (32, 256):
        events: list[tuple[str, dict[str, Any]]] = []
        run = kit.run_of(tmp_path / f"out-{micro_tokens}", inputs, events=events)
        optimizer = {"kind": "adamw", "lr": 0.003}
        fields = {"micro_tokens": micro_tokens, "validation": "held", "validate_every": 10, "optimizer": optimizer}
        stats = kit.stage(objective="contrastive", model=model, steps=20, batch_tokens=256, **fields).run(run)
        losses = [fields["loss"] for name, fields in events if name == "validation"]
        assert losses[1] < losses[0] < 5 and stats["loss_last"] < stats["loss_first"]
        found.append([stats["loss_first"], stats["loss_last"], *losses])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


# --- the same text twice ------------------------------------------------------------------------------------


def doubled(folder: Path, count: int = 4) -> Rows:
    """Rows of one text twice."""
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(count):
        ids = rng.integers(4, VOCAB, int(rng.integers(3, 9))).tolist()
        rows.append(Row([*ids, *ids], [FIRST] * 2 * len(ids), parts=[len(ids)] * 2))
    return store(rows, folder, VOCAB)


@pytest.mark.parametrize("name", ["modernbert", "bert", "llama"])
def test_masks_of_a_row_do_not_depend_on_its_micro_batch(name: str, tmp_path: Path) -> None:
    """Values and gradients against SimCSE's equation 4 written out over texts that run alone, with masks put in by hand."""
    torch.manual_seed(0)
    model = made(name) if name != "llama" else models.build(copy.deepcopy(JUDGES["llama"]), "vectors")
    rows, objective = doubled(tmp_path), Contrastive(partner="itself", dropout=0.3)
    change = objective.change(None, 7)
    assert change is not None
    results = []
    for parts in ([[0, 1, 2, 3]], [[0], [1, 2], [3]]):
        models.packed(model)
        model.train().zero_grad()
        torch.manual_seed(len(parts))  # the state outside of it does not matter
        batches = [change(pack(rows, part, visit=5)) for part in parts]
        total, weight, _ = step_loss(Spread(model), batches, objective_loss(objective), torch.float32, True)
        total.backward()
        assert model.training and float(weight) == 4
        found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        results.append((float(total.detach()), found))
    models.unpacked(model)
    model.eval().zero_grad()

    def vector(ids: torch.Tensor, row: int, half: int) -> torch.Tensor:
        hooks = []
        for place, module in enumerate(dropout.places(model)):
            masks = dropout.mask(objective_dropout, 5, row, place, 2 * len(ids), 32).split(len(ids))

            def drop(module: Any, given: Any, result: torch.Tensor, mask: torch.Tensor = masks[half]) -> torch.Tensor:
                return result * mask

            hooks.append(module.register_forward_hook(drop))
        mean = model.base_model(input_ids=ids[None]).last_hidden_state[0].mean(0)
        for hook in hooks:
            hook.remove()
        return mean / mean.norm()

    objective_dropout = dropout.Dropout(0.3, 7)
    texts = [texts_of(rows, row) for row in range(4)]
    anchors, partners = (torch.stack([vector(texts[row][0], row, half) for row in range(4)]) for half in (0, 1))
    scores = anchors @ partners.t() / 0.05
    theirs = (scores.logsumexp(1) - scores.diagonal()).sum()
    theirs.backward()
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for value, found in results:
        assert value == pytest.approx(float(theirs.detach()), abs=1e-4)
        for key, gradient in wanted.items():
            assert float((found[key] - gradient).abs().max()) < 2e-5 * max(1.0, float(gradient.abs().max())), key


def test_dropout_keeps_the_mean_and_another_seed_step_or_place_is_another_mask() -> None:
    how = dropout.Dropout(0.25, 3)
    first = dropout.mask(how, 1, 2, 0, 400, 50)
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(first.mean()) == pytest.approx(1, abs=0.02) and float(first.max()) == pytest.approx(1 / 0.75)
    assert torch.equal(first, dropout.mask(how, 1, 2, 0, 400, 50))
    others = [
        dropout.mask(how._replace(seed=4), 1, 2, 0, 400, 50),
        dropout.mask(how, 2, 2, 0, 400, 50),
        dropout.mask(how, 1, 3, 0, 400, 50),
        dropout.mask(how, 1, 2, 1, 400, 50),
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_a_text_is_its_own_partner_and_prefixes_are_kept(tmp_path: Path, vocab: Path) -> None:
    """Learns from texts alone; the same bits with micro-batches resumed; what stands before texts is saved."""
    rows = [Record(r.id, text=" ".join(r.text.split()[:6])) for r in kit.texts(40)]
    inputs = {"data": kit.records(tmp_path / "rows", rows), "vocab": Input("vocab", "tokenizer", vocab)}
    model = {"kind": "encoder", "depth": 1, "hidden": 32, "heads": 2}
    objective = {"kind": "contrastive", "partner": "itself", "query": "the ", "passage": "the "}
    fields: dict[str, Any] = {"objective": objective, "model": model, "steps": 10, "batch_tokens": 256}
    losses = []
    for micro_tokens in (32, 256):
        run = kit.run_of(tmp_path / f"out-{micro_tokens}", inputs)
        stats = kit.stage(**fields, micro_tokens=micro_tokens).run(run)
        losses.append([stats["loss_first"], stats["loss_last"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0][1] < losses[0][0]
    tree = {name: json.loads((run.out / name).read_text()) for name in ("modules.json", "config_sentence_transformers.json")}
    assert tree["config_sentence_transformers.json"]["prompts"] == {"query": "the ", "passage": "the "}
    assert [part["path"] for part in tree["modules.json"]] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((run.out / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] and not pooling["pooling_mode_cls_token"]
    assert pooling["word_embedding_dimension"] == 32


def test_a_killed_training_on_dropout_ends_with_the_same_bits(tmp_path: Path, vocab: Path) -> None:
    from modelwright.nn import loop

    rows = [Record(r.id, text=" ".join(r.text.split()[:6])) for r in kit.texts(30)]
    inputs = {"data": kit.records(tmp_path / "rows", rows), "vocab": Input("vocab", "tokenizer", vocab)}
    model = {"kind": "llama", "depth": 1, "hidden": 32, "heads": 2}
    fields: dict[str, Any] = {"objective": {"kind": "contrastive", "partner": "itself", "pooling": "last"}, "model": model}
    stage = kit.stage(**fields, steps=6, batch_tokens=256, checkpoint_every_s=0.0)
    whole = kit.run_of(tmp_path / "whole", inputs)
    stage.run(whole)
    killed = kit.run_of(tmp_path / "killed", inputs)
    real, seen = loop.Trainer._step, []

    def step(self: Any, index: int) -> Any:
        seen.append(index)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            stage.run(killed)
    stage.run(killed)
    assert (killed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_rows_of_one_text_and_their_prefixes() -> None:
    record = Record("a", text="the fox", meta={"positive": "a fox", "negatives": "the cat"})
    assert Contrastive(query="q: ", passage="p: ").parts(record) == ["q: the fox", "p: a fox", "p: the cat"]
    assert Contrastive(partner="itself").parts(Record("b", text="the fox")) == ["the fox", "the fox"]
    with pytest.raises(ValidationError, match="dropout"):
        Contrastive(partner="itself", dropout=0.0)
