"""Decoders from scratch: what comes out loads anywhere, has the promised layers, and its experts are kept even."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from modelwright.core.errors import UserError
from modelwright.methods.architectures import ARCHITECTURES, shape_of
from modelwright.nn import experts
from modelwright.nn import model as models
from modelwright.nn.attention import Layout, Segment
from modelwright.nn.forward import Decoder
from tests.parallel_kit import train

VOCAB = 64
TINY = {"depth": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 48}
DECODERS: dict[str, dict[str, Any]] = {"qwen3": TINY, "gemma": {**TINY, "window": 6}, "moe": {**TINY, "experts": 4}}


def made(kind: str, **fields: Any) -> tuple[Any, Any]:
    architecture: Any = ARCHITECTURES.load(kind).model_validate({"kind": kind, **DECODERS.get(kind, {}), **fields})
    torch.manual_seed(0)
    model = models.build(architecture.config(VOCAB, 128))
    architecture.initialise(model)
    return architecture, model.eval()


MORE: list[dict[str, Any]] = [{}, {"tied": False}, {"kv_heads": 4}, {"head_dim": 32}, {"intermediate": 40}, {"depth": 3}]


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("kind", DECODERS)
def test_the_arithmetic_of_a_shape_is_that_of_the_model(kind: str, more: dict[str, Any]) -> None:
    architecture, model = made(kind, **more)
    assert architecture.shape(VOCAB).params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", *DECODERS])
def test_a_shape_is_read_back_from_the_configuration(kind: str) -> None:
    architecture, model = made(kind, depth=3)
    asked, found = architecture.shape(VOCAB), shape_of(model.config)
    assert found.params == asked.params and found.flops_per_token(9) == asked.flops_per_token(9)
    assert found.model_copy(update={"head_dim": asked.head_dim}) == asked


@pytest.mark.parametrize("more", [{"experts": 6}, {"experts_per_token": 1}, {"experts_per_token": 4}], ids=str)
def test_experts_are_counted(more: dict[str, Any]) -> None:
    architecture, model = made("moe", **more)
    shape = architecture.shape(VOCAB)
    assert shape.params == sum(p.numel() for p in model.parameters())
    expert = 3 * shape.hidden * shape.intermediate
    idle = shape.layers * (shape.experts - shape.experts_per_token) * expert
    assert shape.flops_per_token() == 2.0 * (shape.params - idle)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", DECODERS)
def test_the_dial_alone_is_enough(kind: str, depth: int) -> None:
    if kind == "gemma" and depth == 1:
        with pytest.raises(ValidationError, match="depth"):
            ARCHITECTURES.load(kind)(depth=depth)
        return
    shape = ARCHITECTURES.load(kind)(depth=depth).shape(VOCAB)
    assert (shape.layers, shape.hidden) == (depth, 64 * depth) and shape.heads % shape.kv_heads == 0
    if depth < 3:
        config = ARCHITECTURES.load(kind)(depth=depth).config(VOCAB, 64)
        with torch.device("meta"):
            assert sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()) == shape.params


@pytest.mark.parametrize("kind", DECODERS)
def test_what_comes_out_loads_anywhere(kind: str, tmp_path: Path) -> None:
    _, model = made(kind)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)
    assert type(again.config) is type(model.config)


@pytest.mark.parametrize(("kind", "ours"), [("qwen3", True), ("gemma", True), ("moe", False)])
def test_packed_rows_are_sound_and_fast_where_we_have_a_forward_pass(kind: str, ours: bool) -> None:
    _, model = made(kind)
    models.check_packed(model)
    assert (Decoder.of(model) is not None) is ours


@pytest.mark.parametrize("kind", DECODERS)
def test_starting_weights(kind: str) -> None:
    _, model = made(kind, hidden=256, depth=2)
    adds = 0.02 if kind == "gemma" else 0.02 / 2
    layer = model.model.layers[0]
    down = layer.mlp.experts.down_proj if kind == "moe" else layer.mlp.down_proj.weight
    for weight, std in ((model.get_input_embeddings().weight, 0.02), (layer.self_attn.q_proj.weight, 0.02), (down, adds)):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
    norm = layer.input_layernorm.weight.detach()
    assert torch.equal(norm, torch.zeros_like(norm) if kind == "gemma" else torch.ones_like(norm))


def test_gemma_sees_far_in_some_layers_only() -> None:
    far = [kind == "full_attention" for kind in ARCHITECTURES.load("gemma")(depth=12).layer_types()]  # type: ignore[attr-defined]
    assert [at for at, sees_all in enumerate(far) if sees_all] == [5, 11]
    short: Any = ARCHITECTURES.load("gemma")(depth=4)
    assert short.layer_types() == ["sliding_attention"] * 3 + ["full_attention"], "a shallow model has one that sees all"
    architecture, model = made("gemma", depth=2, window=4, local_layers=1)
    assert architecture.layer_types() == ["sliding_attention", "full_attention"]
    assert model.model.layers[0].self_attn.sliding_window == 4 and model.model.layers[1].self_attn.sliding_window is None
    turns = model.model.rotary_emb
    assert turns.full_attention_inv_freq[1] < turns.sliding_attention_inv_freq[1], "global layers reach further"


def test_gemmas_first_token_learns() -> None:
    """With transformers' own default it would be padding, whose embedding gets no gradient."""
    _, model = made("gemma", tied=False)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.square().sum().backward()
    assert float(model.get_input_embeddings().weight.grad[0].abs().max()) > 0


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize(("fields", "says"), [({"heads": 4, "kv_heads": 3}, "heads"), ({"head_dim": 15}, "wide")])
def test_shapes_that_cannot_be_are_refused(kind: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ARCHITECTURES.load(kind).model_validate({"kind": kind, **TINY, **fields}).shape(VOCAB)  # type: ignore[attr-defined]


def test_gemmas_width_is_a_multiple_of_its_heads() -> None:
    with pytest.raises(UserError, match="split"):
        ARCHITECTURES.load("gemma")(hidden=66, heads=4).shape(VOCAB)  # type: ignore[attr-defined]


def test_no_more_experts_for_a_token_than_there_are() -> None:
    with pytest.raises(ValidationError, match="more than the 4 `experts`"):
        ARCHITECTURES.load("moe")(experts=4, experts_per_token=5)


# --- what keeps experts even ------------------------------------------------------------------------------


def logits_of(model: Any, tokens: int = 48) -> tuple[torch.Tensor, ...]:
    ids = torch.randint(VOCAB, (1, tokens), generator=torch.Generator().manual_seed(1))
    found: tuple[torch.Tensor, ...] = model.base_model(input_ids=ids, output_router_logits=True).router_logits
    return found


def test_balance_is_1_where_even_and_their_number_where_one_has_all() -> None:
    even_TE = 20 * torch.eye(4).repeat(3, 1)
    lone_TE = torch.zeros(6, 4)
    lone_TE[:, 2] = 50.0
    for logits_TE, balance in ((even_TE, 1.0), (lone_TE, 4.0)):
        counted = experts.count([logits_TE], 1)
        assert counted.metrics()["balance"] == pytest.approx(balance)
        assert float(experts.balance_loss([logits_TE], counted.share_LE)) == pytest.approx(balance)
        assert float(experts.balance_loss([logits_TE], torch.full((1, 4), 0.25))) == pytest.approx(1.0)  # nothing to keep from
    assert experts.count([lone_TE, even_TE[:6]], 1).share_LE[0].tolist() == [0, 0, 1, 0]
    both = experts.count([lone_TE], 1).plus(experts.count([even_TE], 1))
    assert both.share_LE.tolist() == [[3 / 18, 3 / 18, 9 / 18, 3 / 18]] and both.tokens == 18


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_balance_is_transformers_own_but_for_the_scale(chosen: int) -> None:
    logits_TE = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = load_balancing_loss_func((logits_TE,), 6, chosen)
    ours = experts.balance_loss([logits_TE], experts.count([logits_TE], chosen).share_LE)
    assert float(ours.detach()) * chosen == pytest.approx(float(theirs.detach()), rel=1e-6)
    grads = [torch.autograd.grad(loss, logits_TE, retain_graph=True)[0] for loss in (ours * chosen, theirs)]
    assert torch.allclose(grads[0], grads[1], atol=1e-7)


def test_the_z_loss_is_its_equation() -> None:
    logits_TE = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    by_hand = sum(float(row.exp().sum().log()) ** 2 for row in logits_TE) / 5
    assert float(experts.z_loss([logits_TE, logits_TE])) == pytest.approx(by_hand, rel=1e-5)


def test_a_models_routers_are_read_with_its_own_numbers() -> None:
    _, model = made("moe", balance=0.5, router_z=0.25, experts_per_token=2)
    router = experts.Router.of(model)
    assert router == experts.Router(4, 2, 0.5, 0.25) and experts.Router.of(made("qwen3")[1]) is None
    logits_LTE = logits_of(model)
    assert [tuple(logits.shape) for logits in logits_LTE] == [(48, 4)] * 2
    told = experts.count(logits_LTE, 2)
    routed = router.routed(logits_LTE, told.share_LE)
    assert set(told.metrics()) == {"balance", "router_z", "expert_most", "experts_idle"}
    expected = 0.5 * told.metrics()["balance"] + 0.25 * told.metrics()["router_z"]
    assert float(routed.loss.detach()) == pytest.approx(expected, rel=1e-6)
    routed.loss.backward()
    gradients = [layer.mlp.gate.weight.grad for layer in model.model.layers]
    assert all(grad is not None and float(grad.abs().max()) > 0 for grad in gradients)


def test_router_logits_come_through_packed_rows_too() -> None:
    _, model = made("moe")
    models.packed(model)
    ids, layout = torch.randint(VOCAB, (20,)), Layout([Segment(0, 9), Segment(9, 20)])
    output = model.base_model(
        input_ids=ids[None], position_ids=layout.positions()[None], use_cache=False, segments=layout, output_router_logits=True
    )
    models.unpacked(model)
    alone = [logits_for(model, ids[:9]), logits_for(model, ids[9:])]
    for layer, logits_TE in enumerate(output.router_logits):
        assert torch.allclose(logits_TE, torch.cat([first[layer] for first in alone]), atol=1e-5)


def logits_for(model: Any, ids_T: torch.Tensor) -> Any:
    return model.base_model(input_ids=ids_T[None], output_router_logits=True).router_logits


def test_the_balance_loss_spreads_tokens() -> None:
    """Routers alone are trained, from a start in which one expert is preferred."""
    _, model = made("moe", balance=1.0, router_z=0.0)
    router = experts.Router.of(model)
    assert router is not None
    gates = [layer.mlp.gate.weight for layer in model.model.layers]
    with torch.no_grad():
        for gate in gates:
            gate[1:] = 0.3 * gate[1:] - gate[:1]
    optimizer = torch.optim.Adam(gates, lr=0.02)
    measured = []
    choices = experts.Choices()
    for _ in range(40):  # it is balanced by the step before, so it swings around first
        routed = router.routed(logits_of(model), choices.before_LE)
        choices.made(routed.counted)
        measured.append(float(routed.counted.share_LE.max()))
        optimizer.zero_grad()
        routed.loss.backward()
        optimizer.step()
    assert measured[-1] < 0.35 and max(measured[:10]) > 0.45


@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_the_balance_of_experts_enters_the_training_loss_and_not_the_validation(balance: float, tmp_path: Path) -> None:
    from modelwright.methods.objectives.next_token import NextToken
    from modelwright.nn.measure import evaluate, micro_loss
    from modelwright.nn.rows import Row, pack, store
    from modelwright.stages._train_run import objective_loss

    spec = ARCHITECTURES.load("moe")(depth=2, hidden=64, heads=4, head_dim=16, experts=4, balance=balance)
    torch.manual_seed(0)
    model = models.build(spec.config(VOCAB, 64))
    spec.initialise(model)
    models.packed(model)
    rows = store([Row(list(range(1, 21)), [0, *[1] * 19])], tmp_path, VOCAB)
    loss = objective_loss(NextToken())
    trunk = models.Trunk(model.train())
    micro_loss(trunk, pack(rows, [0]), loss, torch.float32)
    trunk.choices.made(trunk.choices.counted)  # what a second step at the same weights keeps from
    trunk.choices.begin(19, 20)
    total, weight, _ = micro_loss(trunk, pack(rows, [0]), loss, torch.float32)
    plain = evaluate(model, rows, [0], loss, 64, torch.float32)
    assert trunk.choices.counted is not None
    mean = trunk.choices.counted.metrics()
    assert mean["balance"] >= 1 and "balance" not in plain
    z = getattr(model.config, "router_z_loss_coef", 0.0) * mean["router_z"]
    assert float(total.detach()) / float(weight) == pytest.approx(plain["loss"] + balance * mean["balance"] + z, rel=1e-5)


def test_the_size_of_micro_batches_changes_no_step_of_a_mixture(tmp_path: Path) -> None:
    """Balance and z-loss are of the whole step, so the law of accumulation holds for them too; prompts have no targets."""
    jobs = [{"family": "qwen3_moe", "balance": 0.5, "steps": 5, "micro_tokens": tokens} for tokens in (1, 40, 10**6)]
    found = [train(job, tmp_path / str(number)) for number, job in enumerate(jobs)]
    for other in found[1:]:
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-9)
        assert other["weights"] == pytest.approx(found[0]["weights"], rel=1e-7)
