"""Contracts of the families that training uses: every kind is found by its file and tried; and each family's own law."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelwright.core.estimate import Shape
from modelwright.core.spec import Kinds
from modelwright.methods.adapters import ADAPTERS
from modelwright.methods.architectures import ARCHITECTURES
from modelwright.methods.objectives import OBJECTIVES, Batch
from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.methods.schedules import SCHEDULES
from modelwright.nn import model as models
from modelwright.nn.attention import Layout, Segment
from modelwright.nn.logps import Policy

FAMILIES = {
    "adapters": ADAPTERS,
    "architectures": ARCHITECTURES,
    "objectives": OBJECTIVES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
}
EVERY = [(family, kind) for family, kinds in FAMILIES.items() for kind in kinds.names()]
VOCAB = 64
POSITION = torch.tensor([7, 8, 9, 10, 7, 12, 13, 14])
"""What predicts the targets of `batch_of`: a prompt of 8 tokens, two answers of 4."""


def load(family: str, kind: str) -> Any:
    kinds: Kinds = FAMILIES[family]
    return kinds.load(kind)()


def tiny(**fields: Any) -> Any:
    torch.manual_seed(0)
    architecture = ARCHITECTURES.load("llama")(depth=2, hidden=32, heads=4, kv_heads=2, intermediate=48, **fields)
    model = models.build(architecture.config(VOCAB, 32))
    architecture.initialise(model)
    return model


@pytest.mark.parametrize(("family", "kind"), EVERY)
def test_every_kind_keeps_the_house_rules(family: str, kind: str) -> None:
    spec = load(family, kind)
    cls = type(spec)
    assert spec.kind == kind and cls.model_validate_json(spec.model_dump_json()) == spec
    module = importlib.import_module(cls.__module__).__doc__ or ""
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|https?://|et al\. \d{4}", module), f"{kind} cites no source"
    assert cls.advice is not None and cls.advice.use_when and cls.advice.avoid_when
    for name, info in cls.model_fields.items():
        if name != "kind":
            assert len(cls.field_docs().get(name, "")) > 20, f"{kind}.{name} says nothing"
            assert info.examples, f"{kind}.{name} has no second value"
            changed = cls.model_validate({"kind": kind, name: info.examples[0]})
            assert changed.identity() != spec.identity()


@pytest.mark.parametrize("family", FAMILIES)
def test_importing_a_family_leaves_torch_unloaded(family: str) -> None:
    names = FAMILIES[family].names()
    code = f"import sys\nfrom modelwright.methods.{family} import {family.upper()} as k\n[k.load(n)() for n in {names}]\n"
    code += "assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- objectives -------------------------------------------------------------------------------------------


def batch_of() -> tuple[Any, Batch, torch.Tensor]:
    model = tiny()
    models.packed(model)
    ids = torch.randint(0, VOCAB, (24,))
    layout = Layout([Segment(0, 8), Segment(8, 12, 0), Segment(12, 16, 0), Segment(16, 24)])
    segment = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    hidden = models.Trunk(model).hidden(ids, layout, torch.float32)
    target = torch.randint(0, VOCAB, (8,))
    batch = Batch(target, torch.ones(8), segment, 2, torch.tensor([0]), torch.tensor([1]), torch.full((8,), -4.0))
    return model, batch, hidden


ON_LOGPS = [
    kind
    for kind in OBJECTIVES.names()
    if OBJECTIVES.load(kind).head in ("causal", "masked")  # type: ignore[attr-defined]
    and kind != "multi_token"  # its other heads are a part of the model: test_multi_token.py
]


@pytest.mark.parametrize("kind", ON_LOGPS)
def test_a_finite_loss_with_a_gradient(kind: str) -> None:
    objective = load("objectives", kind)
    model, batch, hidden = batch_of()
    loss = objective.loss(Policy(hidden, POSITION, batch.target_N, models.head(model), torch.float32), batch)
    assert torch.isfinite(loss.total) and float(loss.weight) > 0
    loss.total.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)
    assert all(not value.requires_grad for value in loss.metrics.values())


@pytest.mark.parametrize("name", ["beta", "label_smoothing", "sft_weight"])
def test_each_field_of_dpo_changes_the_loss(name: str) -> None:
    model, batch, hidden = batch_of()
    policy = Policy(hidden, POSITION, batch.target_N, models.head(model), torch.float32)
    cls = OBJECTIVES.load("dpo")
    plain, changed = cls(), cls.model_validate({"kind": "dpo", name: cls.model_fields[name].examples[0]})
    assert not torch.equal(plain.loss(policy, batch).total, changed.loss(policy, batch).total)


# --- optimizers -------------------------------------------------------------------------------------------


def after_steps(optimizer: Any, steps: int = 3) -> list[torch.Tensor]:
    model = tiny()
    built = optimizer.build(list(model.named_parameters()))
    ids = torch.arange(20)[None]
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        for each in built:
            assert all(group["initial_lr"] == group["lr"] for group in each.param_groups)
            each.step()
            each.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", OPTIMIZERS.names())
def test_every_parameter_is_trained_once_and_every_field_matters(kind: str) -> None:
    cls = OPTIMIZERS.load(kind)
    model = tiny()
    built = cls().build(list(model.named_parameters()))
    held = [id(p) for each in built for group in each.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    plain = after_steps(cls())
    assert all(not torch.equal(a, b) for a, b in zip(plain, tiny().parameters(), strict=True))
    for name, info in cls.model_fields.items():
        if name != "kind":
            changed = after_steps(cls.model_validate({"kind": kind, name: info.examples[0]}))
            assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), name


def test_muon_takes_hidden_matrices_alone() -> None:
    model = tiny(tied=False)
    muon, adamw = OPTIMIZERS.load("muon")().build(list(model.named_parameters()))
    assert sum(len(group["params"]) for group in muon.param_groups) == 2 * 7
    names = {id(p): name for name, p in model.named_parameters()}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= rest


# --- schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES.names())
def test_schedules_warm_up_and_stay_within_one(kind: str) -> None:
    cls = SCHEDULES.load(kind)
    for steps in (1, 2, 7, 100, 1000):
        factors = [cls().factor(step, steps) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in factors)
    warm = cls(warmup=9)
    assert [round(warm.factor(step, 1000), 6) for step in range(10)] == [round((step + 1) / 10, 6) for step in range(10)]
    long = [warm.factor(step, 1000) for step in range(10, 1000)]
    assert long == sorted(long, reverse=True)
    for name, info in cls.model_fields.items():
        if name != "kind":
            changed = cls.model_validate({"kind": kind, name: info.examples[0]})
            assert any(changed.factor(step, 100) != cls().factor(step, 100) for step in range(100)), name


def test_shapes_of_the_decays() -> None:
    wsd = SCHEDULES.load("wsd")(warmup=0, decay=0.5)
    assert wsd.factor(49, 100) == 1 and wsd.factor(75, 100) == pytest.approx(0.5)
    cosine = SCHEDULES.load("cosine")(warmup=0, floor=0.2)
    assert cosine.factor(50, 100) == pytest.approx(0.6)
    assert SCHEDULES.load("linear")(warmup=0).factor(25, 100) == pytest.approx(0.75)


# --- architectures and adapters ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES.names())
def test_shape_counts_the_weights_that_are_built(kind: str) -> None:
    cls = ARCHITECTURES.load(kind)
    for fields in ({}, {"depth": 2}, {"tied": False}, {"hidden": 96, "heads": 6, "kv_heads": 3, "intermediate": 100}):
        architecture = cls.model_validate({"kind": kind, **{k: v for k, v in fields.items() if k in cls.model_fields}})
        model = models.build(architecture.config(VOCAB, 128))
        architecture.initialise(model)
        assert sum(p.numel() for p in model.parameters()) == architecture.shape(VOCAB).params
        ids = torch.arange(16)[None]
        written = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits = model(input_ids=ids, **written).logits
        assert torch.isfinite(logits).all()
        if written:  # T5 begins with a head that names the token it has just read: the table is shared and its values are large
            continue
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], torch.arange(1, 16))
        assert float(loss) == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.3), "a fresh model knows nothing"


def test_residual_projections_start_smaller() -> None:
    model = tiny()
    layer = model.model.layers[0]
    assert float(layer.mlp.down_proj.weight.std().detach()) == pytest.approx(0.02 / 2, rel=0.1)
    assert float(layer.mlp.up_proj.weight.std().detach()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("fields", [{"hidden": 30, "heads": 4}, {"hidden": 64, "heads": 4, "kv_heads": 3}])
def test_shapes_that_cannot_be_are_refused(fields: dict[str, int]) -> None:
    from modelwright.core.errors import UserError

    with pytest.raises(UserError, match="head"):
        ARCHITECTURES.load("llama")(**fields).shape(VOCAB)


@pytest.mark.parametrize("kind", ADAPTERS.names())
def test_adapters_train_what_they_say_and_start_at_the_model(kind: str) -> None:
    cls = ADAPTERS.load(kind)
    shape = Shape(layers=2, hidden=32, intermediate=48, heads=4, kv_heads=2, vocab=VOCAB)
    fields = [{}] + [{name: info.examples[0]} for name, info in cls.model_fields.items() if name != "kind"]
    for given in fields:
        adapter = cls.model_validate({"kind": kind, **given})
        plain = tiny().eval()
        ids = torch.arange(12)[None]
        before = plain(input_ids=ids).logits.detach()
        wrapped = adapter.wrap(plain).eval()
        assert torch.equal(wrapped(input_ids=ids).logits, before)
        trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
        assert trained == adapter.trainable_params(shape), given


def test_adapters_depend_on_the_seed_alone() -> None:
    found = []
    for seed in (0, 0, 1):
        model = tiny()
        torch.manual_seed(seed)
        wrapped = ADAPTERS.load("lora")().wrap(model)
        found.append(torch.cat([p.flatten() for n, p in wrapped.named_parameters() if "lora_A" in n]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("fields", [{}, {"heads": 4, "kv_heads": 2}, {"hidden": 96, "heads": 2, "rope_theta": 1e6}])
def test_an_induction_start_looks_back_and_compares(fields: dict[str, Any]) -> None:
    """The first layer sees the token before; the second what followed the same token earlier; noise does neither."""
    ids = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    seen = {}
    for init in ("normal", "induction"):
        architecture = ARCHITECTURES.load("llama")(depth=3, tied=False, init=init, **{"hidden": 128, "heads": 2, **fields})
        model = models.build(architecture.config(VOCAB, 64))
        torch.manual_seed(0)
        architecture.initialise(model)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            first, second, _ = model(ids, output_attentions=True).attentions
        back = first.diagonal(-1, -2, -1).mean().item()
        follows = second.diagonal(-23, -2, -1).mean().item()  # of the 2nd copy's tokens: what came behind them in the 1st
        seen[init] = back, follows
    assert seen["normal"][0] < 0.2 and seen["induction"][0] > 0.6, seen
    assert seen["normal"][1] < 0.04 and seen["induction"][1] > 1.5 * seen["normal"][1], seen


@pytest.mark.parametrize("fields", [{"tied": True}, {"depth": 1}])
def test_an_induction_start_needs_its_parts(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="a head of its own"):
        ARCHITECTURES.load("llama")(init="induction", **fields)
