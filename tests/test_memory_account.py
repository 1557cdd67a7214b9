"""The arithmetic of memory: against counted bytes of tiny trainings, by its own laws, and by what is published of formats."""

from __future__ import annotations

from typing import Any

import pytest

from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.memory import Training, training_account
from modelwright.core.memory.kernels import chunk
from modelwright.core.memory.own import Texts, Work
from modelwright.core.memory.serving import (
    CODINGS,
    beside_policy,
    beside_rule,
    cache_bytes,
    rule_of_thumb,
    serving_parts,
    weights_bytes,
)
from modelwright.core.memory.spread import Shares
from modelwright.core.memory.weights import Weight, total, weights_of
from modelwright.core.parallel import Parallel
from modelwright.methods.architectures import ARCHITECTURES
from modelwright.methods.engines import ENGINES
from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.stages.train import Train

VOCAB = 300
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"depth": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 96},
    "qwen3": {"depth": 2, "hidden": 64, "heads": 2, "head_dim": 32},
    "gemma": {"depth": 3, "hidden": 64, "heads": 4, "head_dim": 16, "window": 24},
    "moe": {"depth": 2, "hidden": 64, "heads": 2, "head_dim": 32, "experts": 4, "intermediate": 32},
    "encoder": {"depth": 3, "hidden": 64, "heads": 4, "window": 16},
    "encoder_decoder": {"depth": 2, "hidden": 64, "heads": 4, "head_dim": 16},
}
USUAL = {"encoder": "masked_token", "encoder_decoder": "span_corruption"}
HERE = Machine("here", 2, 16e9, flops_per_s=1e11, bf16_flops_per_s=2e11)
BESIDE = ("imports", "rows", "reference")
TABLES = {"adapter": {"kind": "lora", "rank": 4, "ends": "embeddings"}, "objective": "sft"}
DROPOUT = {"kind": "lora", "rank": 4, "dropout": 0.1}


def given(kind: str, machine: Machine = HERE, parallel: Parallel = Parallel(), vocab: int = VOCAB) -> Given:  # noqa: B008
    shape = ARCHITECTURES.load(kind)(**SIZES[kind]).shape(vocab)  # type: ignore[attr-defined]
    facts = {
        "data": Facts(type="records"),
        "vocab": Facts(type="tokenizer", rows=vocab),
        "base": Facts(type="model", shape=shape),
    }
    return Given(machine, facts, parallel=parallel)


def stage(kind: str, **fields: Any) -> Train:
    starts = "adapter" in fields or fields.get("objective") == "dpo"
    begin = {"start": "base"} if starts else {"model": {"kind": kind, **SIZES[kind]}, "vocab": "vocab"}
    more = {"objective": USUAL.get(kind, "next_token"), "length": 48, "batch_tokens": 144, "micro_tokens": 144}
    return Train.model_validate({"kind": "train", "data": "data", "steps": 2, **begin, **more, **fields})


def held(kind: str, among: Given | None = None, **fields: Any) -> float:
    """Bytes of tensors that the plan says."""
    found = among or given(kind)
    told = stage(kind, **fields).resolve(found).estimate(found)
    return sum(part.bytes for part in told.device_parts or told.parts if part.name not in BESIDE)


MATRICES = {"kind": "llama", "depth": 3, "hidden": 320, "heads": 5, "intermediate": 960, "tied": False}
SHORT = {"length": 32, "batch_tokens": 32, "micro_tokens": 32, "model": MATRICES}
"""Steps that take more than passes."""
NO_FLASH = [{"depth": 2, "hidden": 576, "heads": 2, "kv_heads": 1}, {"depth": 3, "hidden": 160, "heads": 8, "kv_heads": 4}]
"""Heads that are too wide for flash attention's kernel, and of a width that it does not know."""

# --- against counted bytes -----------------------------------------------------------------------------------

COUNTED: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"precision": precision}) for kind in SIZES for precision in ("fp32", "bf16")),
    *((kind, {"recompute": "full"}) for kind in ("llama", "moe", "encoder_decoder")),
    ("llama", {"optimizer": "muon", "objective": "sft"}),
    ("llama", {"optimizer": "adafactor", "objective": "dpo"}),
    ("llama", {"optimizer": "adamw8bit", "objective": "multi_token"}),
    ("gemma", {"adapter": {"kind": "lora", "targets": "attention"}, "objective": "sft"}),
    ("qwen3", {"adapter": {"kind": "lora", "ends": "head"}, "precision": "bf16"}),
    ("llama", {"adapter": DROPOUT, "recompute": "full", "precision": "bf16"}),
    *(("llama", {**TABLES, **more}) for more in ({}, {"recompute": "full"}, {"recompute": "full", "precision": "bf16"})),
    ("qwen3", {"adapter": {"kind": "lora"}, "recompute": "full", "precision": "bf16", "objective": "sft"}),
    ("llama", {"micro_tokens": 48, "optimizer": "lamb"}),
    ("llama", {"step_in_backward": True, "clip": 0.0, "objective": "sft"}),
    *(
        ("llama", {"step_in_backward": True, "clip": 0.0, "optimizer": kind, "schedule": "constant", **SHORT})
        for kind in OPTIMIZERS.names()
        if OPTIMIZERS.load(kind).weightwise or OPTIMIZERS.load(kind).elementwise  # type: ignore[attr-defined]
    ),
    ("llama", {"average": 0.9, "validation": ["data"], "validate_every": 1}),
    ("llama", {"length": 100, "objective": "sft", "batch_tokens": 230, "micro_tokens": 230}),
]
"""Of these the account is 1.5 % off at most: what it leaves out is small, and so are they."""


CARD = Machine("card", 2, 16e9, "cuda", flops_per_s=1e13, device_memory_bytes=16e9)
NEW, OLD = CARD._replace(bf16_flops_per_s=1e14), CARD._replace(fp16_flops_per_s=1e14)
"""With flash attention, and before Ampere."""
ON_CARDS: list[tuple[Machine, str, dict[str, Any]]] = [
    *((NEW, kind, {"precision": precision}) for kind in SIZES for precision in ("fp32", "bf16")),
    *((OLD, kind, {"precision": "fp16"}) for kind in SIZES),
    *((NEW, kind, {"objective": "dpo", "precision": precision}) for kind in ("llama", "gemma") for precision in ("fp32", "bf16")),
    (OLD, "gemma", {"adapter": DROPOUT, "objective": "dpo", "precision": "fp16"}),
    (NEW, "gemma", {"adapter": DROPOUT, "objective": "sft", "precision": "bf16"}),
    *((NEW, "llama", {"optimizer": optimizer}) for optimizer in ("adamw8bit", "muon", "lion", "adafactor")),
    *((NEW, "llama", {"precision": "bf16", "model": {"kind": "llama", **size}}) for size in NO_FLASH),
    *((NEW, kind, {"optimizer": "schedule_free", "schedule": "constant"}) for kind in ("llama", "qwen3")),
]


@pytest.mark.parametrize(
    ("machine", "kind", "fields"), [*((HERE, *one) for one in COUNTED), *ON_CARDS], ids=lambda one: getattr(one, "name", str(one))
)
def test_the_account_is_what_is_counted(machine: Machine, kind: str, fields: dict[str, Any]) -> None:
    from modelwright.stages._trace import Job, counted

    among = given(kind, machine)
    resolved = stage(kind, **fields).resolve(among)
    sizes = {name: value for name, value in fields.get("model", SIZES[kind]).items() if name != "kind"}
    config = ARCHITECTURES.load(kind)(**sizes).config(VOCAB, 128)  # type: ignore[attr-defined]
    tally, _ = counted(Job.of(resolved, config, among), "even")
    assert held(kind, among, **fields) == pytest.approx(tally.peak().bytes, rel=0.02)


# --- its own laws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZES)
def test_weights_are_those_of_the_shape(kind: str) -> None:
    shape = ARCHITECTURES.load(kind)(**SIZES[kind]).shape(VOCAB)  # type: ignore[attr-defined]
    assert total(weights_of(shape)) == shape.params
    untied = shape.model_copy(update={"tied": False})
    assert total(weights_of(untied)) == untied.params


@pytest.mark.parametrize("kind", SIZES)
def test_parts_are_the_whole(kind: str) -> None:
    found = stage(kind).resolve(given(kind)).estimate(given(kind))
    assert sum(part.bytes for part in found.parts) == pytest.approx(found.memory.value)
    names = [part.name for part in found.parts]
    assert len(names) == len(set(names)) and {"imports", "weights", "gradients", "optimizer", "activations"} <= set(names)
    assert all(part.bytes >= 0 and part.why for part in found.parts) and "; at the " in found.memory.why
    assert found.device_memory is None and not found.device_parts


MANY = {"batch_tokens": 1152, "micro_tokens": 1152}
"""Blocks of products in bf16 are as large with few tokens."""
MORE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"batch_tokens": 288, "micro_tokens": 288}, {}),
    ({}, {"micro_tokens": 48}),
    ({}, {"recompute": "full"}),
    (MANY, {**MANY, "precision": "bf16"}),
    ({}, {"optimizer": "adafactor"}),
    ({}, {"optimizer": "lion"}),
    ({"average": 0.9}, {}),
    ({}, {"adapter": "lora"}),
    ({"adapter": DROPOUT}, {"adapter": {"kind": "lora", "rank": 4}}),
    ({"adapter": {"kind": "lora", "ends": "both"}}, {"adapter": {"kind": "lora", "ends": "head"}}),
    ({"clip": 0.0}, {"clip": 0.0, "step_in_backward": True}),
]


@pytest.mark.parametrize(("larger", "smaller"), MORE, ids=str)
def test_what_costs_memory_costs_it(larger: dict[str, Any], smaller: dict[str, Any]) -> None:
    assert held("llama", **larger) > held("llama", **smaller)


@pytest.mark.parametrize("kind", SIZES)
def test_a_plan_knows_how_many_tokens_a_model_will_see(kind: str) -> None:
    found = stage(kind).resolve(given(kind)).estimate(given(kind)).facts[""]
    config = ARCHITECTURES.load(kind)(**SIZES[kind]).config(VOCAB, 48)  # type: ignore[attr-defined]
    assert found.context == getattr(config, "max_position_embeddings", None)


def test_a_card_holds_the_training_and_the_host_the_rest() -> None:
    card = HERE._replace(device="cuda", devices=1, device_memory_bytes=80e9)
    found = stage("llama", device="cuda").resolve(given("llama", card)).estimate(given("llama", card))
    assert found.device_memory is not None and found.device_memory.value == sum(part.bytes for part in found.device_parts)
    assert {part.name for part in found.parts} == {"imports", "rows", "opening"}
    assert not {part.name for part in found.device_parts} & {"imports", "rows", "opening"}
    away = stage("llama", device="cuda", offload=["states", "activations"]).resolve(given("llama", card))
    moved = away.estimate(given("llama", card))
    assert moved.device_memory is not None and moved.device_memory.value < found.device_memory.value
    assert "offloaded" in {part.name for part in moved.parts}


@pytest.mark.parametrize("machine", [HERE._replace(device="mps", device_memory_bytes=16e9), HERE], ids=["mps", "processor"])
def test_nothing_moves_where_there_is_no_card_to_move_it_from(machine: Machine) -> None:
    """As a run refuses."""
    found, asked = (
        stage("llama", **more).resolve(given("llama", machine)).estimate(given("llama", machine))
        for more in ({}, {"offload": ["states", "activations"]})
    )
    assert asked == found


def test_each_process_opens_the_whole_model() -> None:
    deep = {**SIZES["llama"], "depth": 400}
    whole = 4 * ARCHITECTURES.load("llama")(**deep).shape(VOCAB).params  # type: ignore[attr-defined]
    alone, divided = (
        held("llama", given("llama", HERE, Parallel(shard=count)), model={"kind": "llama", **deep}, recompute="full")
        for count in (1, 16)
    )
    assert divided == whole and alone > 4 * whole


def test_a_card_that_weights_nearly_fill_computes_less_at_once() -> None:
    large = {"kind": "llama", "depth": 24, "hidden": 1536, "heads": 12}
    asked = stage("llama", model=large, length=512, batch_tokens=65536, micro_tokens=None)
    small, middle, roomy = (
        asked.resolve(given("llama", NEW._replace(device_memory_bytes=size * 1e9))).micro_tokens or 0
        for size in (11.5, 13.0, 40.0)
    )
    assert 256 == small < middle < roomy < 65536


def account(parallel: Parallel, shape: Shape | None = None, **more: Any) -> dict[str, float]:
    shape = shape or Shape(layers=4, hidden=64, intermediate=128, heads=4, kv_heads=4, vocab=256)
    work = Work((Texts(64, 63, 63, number=2),), of_step=4)
    training = Training(shape, work, weights_of(shape), OPTIMIZERS.build("adamw"), parallel=parallel, **more)  # type: ignore[arg-type]
    return {part.name: part.bytes for part in training_account(training).parts}


def test_layouts_are_their_arithmetic() -> None:
    alone = account(Parallel())
    assert account(Parallel(data=2))["weights"] == alone["weights"]
    for zero, kept in ((0, ()), (1, ("weights", "gradients")), (2, ("weights",)), (3, ())):
        found = account(Parallel(shard=4, zero=zero))
        for name in ("weights", "gradients"):
            assert found[name] == pytest.approx(alone[name] / (1 if name in kept else 4))
        copy = alone["weights"] / 4 if zero else 0.0
        assert found["optimizer"] == pytest.approx(alone["optimizer"] / 4 + copy)
        assert ("gathered" in found) == (zero in (0, 3))
    in_layers = 4 * (4 * 64 * 64 + 3 * 64 * 128)
    by_heads = account(Parallel(tensor=2))
    assert alone["weights"] - by_heads["weights"] == 4 * in_layers / 2
    assert by_heads["activations"] < alone["activations"] < 2 * by_heads["activations"]
    assert account(Parallel(context=2))["activations"] == pytest.approx(alone["activations"] / 2, rel=0.1)
    by_layers = account(Parallel(pipeline=2))
    assert alone["weights"] - by_layers["weights"] == 4 * (in_layers + 4 * 2 * 64) / 2
    mixed = Shape(
        layers=4, hidden=64, intermediate=32, heads=4, kv_heads=4, vocab=256, experts=4, experts_per_token=2, qk_norm=True
    )
    one, four = (account(Parallel(expert=size), mixed, own=False)["weights"] for size in (1, 4))
    assert one - four == 4 * 4 * (4 * 3 * 64 * 32) * 3 / 4


@pytest.mark.parametrize("beside", [{}, {"shard": 2}, {"data": 2}, {"data": 2, "shard": 2}], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_heads_and_columns_are_shared_beside_every_axis(beside: dict[str, int], half: bool) -> None:
    """Also where weights are divided by value, and transformers' modules run."""
    shape = Shape(layers=4, hidden=64, intermediate=4096, heads=4, kv_heads=4, vocab=256)
    one, two, four = (account(Parallel(tensor=size, **beside), shape, half=half)["activations"] for size in (1, 2, 4))
    assert one - two == pytest.approx(2 * (two - four), rel=0.01), "half of what is shared, and half of that"
    assert two < 0.6 * one


def test_an_owner_of_whole_weights_needs_room_for_them() -> None:
    shape = Shape(layers=4, hidden=64, intermediate=128, heads=4, kv_heads=4, vocab=50_000)
    work, table = Work((Texts(64, 63, 63, number=2),), of_step=4), 4.0 * 50_000 * 64
    whole, parts = (
        training_account(Training(shape, work, weights_of(shape), OPTIMIZERS.build(kind), parallel=Parallel(shard=4)))  # type: ignore[arg-type]
        for kind in ("lamb", "adamw")
    )
    held, usual = ({part.name: part.bytes for part in one.parts} for one in (whole, parts))
    assert held["optimizer"] == 2 * table > usual["optimizer"]
    assert whole.moment == "the optimizer's step" and held["working"] >= 4 * table


def test_shares_of_zero() -> None:
    assert Shares.of(Parallel(shard=4)) == (0.25, 0.25, 0.25, 0.0)
    assert Shares.of(Parallel(shard=4, zero=2)) == (1.0, 0.25, 0.25, 0.25)


@pytest.mark.parametrize("half", [False, True])
def test_chunks_are_those_of_the_loss(half: bool) -> None:
    from modelwright.nn.logps import chunk_bytes_of, chunks

    for positions, vocab in ((1, 300), (500, 300), (4096, 49152), (700, 151_936), (192, 49_152), (193, 49_152), (385, 49_152)):
        real = list(chunks(positions, vocab, chunk_bytes_of(vocab) * (2 if half else 1)))
        assert chunk(vocab, positions, half) == (real[0].stop - real[0].start, len(real))


@pytest.mark.parametrize("kind", OPTIMIZERS.names())
def test_states_are_those_that_a_step_makes(kind: str) -> None:
    import torch

    optimizer: Any = OPTIMIZERS.build(kind)
    weights = {
        "model.layers.0.mlp.up_proj.weight": Weight("mlp", (96, 64)),
        "model.layers.0.mlp.odd.weight": Weight("mlp", (61, 67)),
        "model.embed_tokens.weight": Weight("table", (300, 64)),
        "model.norm.weight": Weight("last", (64,)),
    }
    named = {name: torch.nn.Parameter(torch.randn(weight.sides)) for name, weight in weights.items()}
    built = optimizer.build(named.items())
    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    for one in built:
        one.step()
    for name, parameter in named.items():
        states = [value for one in built for value in one.state[parameter].values() if isinstance(value, torch.Tensor)]
        made = sum(value.nbytes for value in states if value.ndim)
        assert made == pytest.approx(optimizer.state_bytes(weights[name]), rel=0.001), name


# --- answering --------------------------------------------------------------------------------------------------

LLAMA_7B = Shape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, vocab=32000, tied=False)


def test_bits_of_codings_count_their_scales() -> None:
    assert CODINGS["nf4"].bits_per_value == 4.5, "QLoRA, section 3: 0.5 bits for scales of 32 bits in blocks of 64"
    assert CODINGS["nf4-dq"].bits_per_value == pytest.approx(4.127, abs=5e-4), "0.127 bits with double quantisation"
    assert CODINGS["mxfp4"].bits_per_value == 4.25
    assert weights_bytes(LLAMA_7B, CODINGS["fp32"]) == 4 * LLAMA_7B.params
    assert weights_bytes(LLAMA_7B, CODINGS["bf16"]) == 2 * LLAMA_7B.params


def test_keys_and_values() -> None:
    assert cache_bytes(LLAMA_7B, 4096) == 2 * 2**30, "half a megabyte a token"
    grouped = LLAMA_7B.model_copy(update={"kv_heads": 8})
    assert cache_bytes(grouped, 4096, sequences=4) == cache_bytes(LLAMA_7B, 4096)
    assert cache_bytes(LLAMA_7B, 4096, bits=8.5) == cache_bytes(LLAMA_7B, 4096) * 8.5 / 16
    windowed = LLAMA_7B.model_copy(update={"window": 1024, "windowed_layers": 24})
    assert cache_bytes(windowed, 4096) == cache_bytes(LLAMA_7B, 4096) * (8 * 4 + 24) / (32 * 4)
    assert cache_bytes(windowed, 4096, windows=False) == cache_bytes(LLAMA_7B, 4096)


def test_engines_say_what_they_hold() -> None:
    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=400)
    exact, half = (ENGINES.build({"kind": "native", "precision": kind}).memory(shape, 200, 4) for kind in ("fp32", "bf16"))  # type: ignore[attr-defined]
    assert exact[0].bytes == 4 * shape.params == 2 * half[0].bytes
    assert exact[1].bytes == half[1].bytes >= cache_bytes(shape, 200, 4, 32), "keys and values are float32 on a processor"
    llama = ENGINES.build({"kind": "llamacpp", "context": 512, "max_batch": 2})
    found = llama.memory(shape, 20, 1, weights_bytes=12345.0)  # type: ignore[attr-defined]
    assert found[0].bytes == 12345 and found[1].bytes == cache_bytes(shape, 512, 2), "reserved whatever is asked"
    assert ENGINES.build({"kind": "openai", "model": "x"}).memory(shape, 20, 1) == ()  # type: ignore[attr-defined]


def test_the_native_cache_grows_as_it_is_planned() -> None:
    import torch

    from modelwright.nn.memory import Memory

    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=400)
    memory = Memory(8)
    for _ in range(3):
        memory.begin(None)
    for length in range(1, 700):
        memory.reserve(length)
        for layer in range(2):
            memory.layer(layer, (torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 1, 16)))
    made = sum(part.nbytes for pair in memory.layers.values() for part in pair)
    planned = ENGINES.build("native").memory(shape, 699, 3)  # type: ignore[attr-defined]
    assert made == next(part.bytes for part in planned if part.name == "cache")


def test_models_beside_a_policy() -> None:
    found = {part.name: part.bytes for part in beside_policy(LLAMA_7B, LLAMA_7B, LLAMA_7B)}
    assert found["reference"] == found["reward"] == 2 * LLAMA_7B.params and found["value"] == 16 * LLAMA_7B.params
    assert beside_policy(reference=LLAMA_7B, coding=CODINGS["nf4"])[0].bytes < 0.32 * found["reference"]


def test_the_rule_of_thumb_is_shown_with_what_it_leaves_out() -> None:
    assert rule_of_thumb(70e9, 16) == pytest.approx(168e9)
    parts = serving_parts(LLAMA_7B, CODINGS["nf4"], tokens=32768, sequences=8)
    rule = beside_rule(LLAMA_7B.params, 4, parts)
    assert rule.bytes == rule_of_thumb(LLAMA_7B.params, 4) and rule.error_frac < -0.9, "it knows no cache"
    assert "cache" in rule.wrong[0] and any("scales" in text for text in rule.wrong)
    assert rule.account_bytes == sum(part.bytes for part in parts)


def test_65_billion_weights_do_not_lie_in_24_gigabytes() -> None:
    large = Shape(layers=80, hidden=8192, intermediate=22016, heads=64, kv_heads=64, vocab=32000, tied=False)
    assert 65e9 < large.params < 66e9
    parts = serving_parts(large, CODINGS["nf4-dq"], tokens=2048)
    assert parts[0].bytes > 32.5e9, "folklore says that they do"


def test_the_largest_moment_is_named() -> None:
    shape = Shape(layers=4, hidden=64, intermediate=128, heads=4, kv_heads=4, vocab=256)
    many, few = (Work((Texts(64, 63, 63, number=number),)) for number in (64, 0.1))
    names = [
        training_account(Training(shape, work, weights_of(shape), OPTIMIZERS.build("muon"))).moment  # type: ignore[arg-type]
        for work in (many, few)
    ]
    assert "backward pass" in names[0] and names[1] == "the optimizer's step", "Muon steps all matrices of a shape together"
