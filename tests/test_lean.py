"""The decoding pass of our own: the numbers of the model's own modules, at every number of rows, or it is not taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from modelwright.nn import lean
from modelwright.nn._kv import Rows
from modelwright.nn.attend import Plan, Terms, attend
from modelwright.nn.generate import generate
from modelwright.nn.lean import Lean, lean_of
from modelwright.nn.memory import Memory

_gemv = pytest.importorskip("modelwright.nn._gemv", reason="no numba, or a processor without the kernels' vectors")

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 400,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied_biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama_own_keys": ("Llama", {"num_key_value_heads": 4}),
    "llama_one_key_head": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "gemma2": (
        "Gemma2",
        {"sliding_window": 5, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3Text", {"sliding_window": 5, "query_pre_attn_scalar": 16}),
}
BASE = {"rope_theta": 10000.0}
TURNS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.3 * i for i in range(8)],
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}


def model(kind: str, sizes: dict[str, Any]) -> Any:
    """Weights that are larger than those of a fresh model, so that everything in it counts."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**{**SIZES, **sizes})).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.08)
    return made


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = torch.randint(1, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return found


@torch.inference_mode()
def told(made: Any, row: list[int]) -> torch.Tensor:
    """[T, V]"""
    found: torch.Tensor = made(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
    return found


def taken(made: Any) -> Lean:
    found = lean_of(made)
    assert found is not None
    return found


@torch.inference_mode()
def fed(made: Any, trunk: Lean, pieces: list[list[list[int]]]) -> list[torch.Tensor]:
    """Feed rows step by step; [T, V] of each row."""
    rows = Rows(made, 8, trunk)
    found: list[list[torch.Tensor]] = [[] for _ in pieces[0]]
    for _ in pieces[0]:
        rows.begin()
    for new in pieces:
        logits_RV = rows.forward(new, [len(one) for one in new]).logits_RV
        for row, part in zip(found, logits_RV.split([len(one) for one in new]), strict=True):
            row.append(part)
    return [torch.cat(row) for row in found]


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def steps(first: list[int], second: list[int]) -> list[list[list[int]]]:
    """Two rows: prompts, single tokens, several at once, one that waits."""
    return [
        [first[:5], second[:2]],
        [first[5:6], second[2:3]],
        [[], second[3:10]],
        *([[first[at]], [second[at + 4]]] for at in range(6, 12)),
        [first[12:], second[16:]],
    ]


@pytest.mark.parametrize("name", KINDS)
def test_the_models_own_logits(name: str) -> None:
    made = model(*KINDS[name])
    first, second = tokens(16), tokens(20, 1)
    found = fed(made, taken(made), steps(first, second))
    for ours, row in zip(found, (first, second), strict=True):
        assert apart(ours, told(made, row)) < 1e-5


@pytest.mark.parametrize("name", TURNS)
def test_every_scaling_of_positions(name: str) -> None:
    made = model("Llama", {"rope_parameters": {"rope_type": name, **BASE, **TURNS[name]}})
    row = tokens(14)
    (ours,) = fed(made, taken(made), [[row[:9]], [row[9:10]], [row[10:]]])
    assert apart(ours, told(made, row)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_greedy_answers_of_many_rows(name: str) -> None:
    made = model(*KINDS[name])
    shared = tokens(40)  # enough to be shared
    prompts = [shared + tokens(3 + at, at) for at in range(5)] + [tokens(4, 9)]
    answers = generate(made, prompts, 12, max_batch=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        row = prompt + answer.tokens
        theirs = told(made, row[:-1])[len(prompt) - 1 :].argmax(-1).tolist()
        assert answer.tokens == theirs


@pytest.mark.parametrize("name", ["llama_tied_biases", "qwen3", "gemma2"])
def test_bf16_weights_are_summed_in_float32(name: str) -> None:
    """Ten times as near to the exact result of these weights as the model's own modules are in bf16."""
    wide, made = model(*KINDS[name]), model(*KINDS[name]).to(torch.bfloat16)
    wide.load_state_dict(made.state_dict())
    rotary = wide.base_model.rotary_emb
    for buffer, values in rotary.named_buffers():
        made.base_model.rotary_emb.get_buffer(buffer).data = values.clone()  # as `from_pretrained` leaves it
    row = tokens(16)
    exact = told(wide, row)
    (ours,) = fed(made, taken(made), [[row[:7]], [row[7:8]], [row[8:]]])
    assert apart(ours, exact) < 0.1 * apart(told(made, row), exact)
    many = tokens(_gemv.MOST + 9)  # torch's product
    wide.config.max_position_embeddings = made.config.max_position_embeddings = 256
    assert apart(fed(made, taken(made), [[many]])[0], told(wide, many)) < (0.02 if lean.has_bf16() else 1e-5)


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_gemv", None)
    first, second = tokens(16), tokens(20, 1)
    for name, dtype, most in (("gemma3", torch.float32, 1e-5), ("qwen2", torch.bfloat16, 0.05), ("llama", torch.float64, 1e-6)):
        made = model(*KINDS[name]).to(dtype)
        trunk = taken(made)
        assert trunk.dtype == dtype
        assert apart(fed(made, trunk, steps(first, second))[1], told(made, second)) < most


def test_weights_are_not_copied() -> None:
    made = model("Llama", {})
    trunk, row = taken(made), tokens(6)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(0.9)
    assert apart(fed(made, trunk, [[row]])[0], told(made, row)) < 1e-5


def test_what_has_to_run_through_its_own_modules() -> None:
    class Own(nn.Linear):
        pass

    assert lean_of(model("Llama", {})) is not None
    assert lean_of(model("Llama", {"hidden_act": "relu"})) is None
    assert lean_of(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))) is None
    hooked, replaced, mixed = (model("Llama", {}) for _ in range(3))
    hooked.model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: None)
    replaced.model.layers[0].self_attn.q_proj = Own(64, 64, bias=False)
    mixed.lm_head.to(torch.bfloat16)
    assert [lean_of(made) for made in (hooked, replaced, mixed)] == [None, None, None]


def test_an_adapters_part_is_added() -> None:
    """As if the update were in the weights, for every linear layer."""
    made = model("Llama", {})
    row, generator = torch.tensor(tokens(7)), torch.Generator().manual_seed(3)
    updates = {
        name: torch.randn(module.weight.shape, generator=generator) * 0.02
        for name, module in made.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    memory = Memory(1)
    memory.begin(None)
    memory.reserve(7)
    trunk = taken(made)

    def added(place: str, x_TI: torch.Tensor, out_TO: torch.Tensor) -> None:
        out_TO.add_(x_TI @ updates[place].t())

    with torch.inference_mode():
        plan = Plan([7], memory, "cpu")
        ours = trunk.logits(trunk(row, torch.arange(7), plan, added))
        for name, update in updates.items():
            made.get_submodule(name).weight.add_(update)
    assert apart(ours, told(made, row.tolist())) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_few_rows(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(outputs, 96, generator=generator).to(dtype) for outputs in (64, 36, 4)]
    all_TI = torch.randn(_gemv.MOST, 96, generator=generator)
    exact = all_TI.double() @ torch.cat(weights).double().t()
    joint = _gemv.Weights(weights)
    whole = _gemv.product(all_TI, joint, torch.empty(_gemv.MOST, 104))
    for count in (1, 2, 3, 5, 6, 7, 13, 64):
        out = _gemv.product(all_TI[:count], joint, torch.full((count, 104), torch.nan))
        assert float((out - exact[:count]).abs().max() / exact.abs().max()) < 1e-6
        assert torch.equal(out, whole[:count]), "the same bits whatever other rows there are"
        assert torch.allclose(_gemv.product(all_TI[:count], joint, torch.ones(count, 104), onto=True), out + 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(_gemv.product(all_TI, joint, torch.empty(_gemv.MOST, 104)), whole), "or threads"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("window", [None, 7, 30])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 64), (14, 2, 32), (3, 3, 16)])
def test_attention_of_few_tokens(heads: int, kv_heads: int, width: int, window: int | None) -> None:
    """Rows that share a beginning and one that does not, one and several new tokens, over the memory."""
    from modelwright.nn import _attend_few

    def memory() -> Memory:
        generator = torch.Generator().manual_seed(0)
        made = Memory(4)
        made.begin(None)
        made.reserve(40)
        like = torch.empty(1, kv_heads, 1, width)
        for part in made.layer(0, (like, like)):
            part.copy_(torch.randn(part.shape, generator=generator))
        made.lengths[0] = 30
        shared = made.split(0, 21)
        made.begin(None, shared)
        made.begin(None)
        made.reserve(40)
        for part in made.layers[0]:
            part[1:].copy_(torch.randn(part[1:].shape, generator=generator))
        made.lengths = [9, 3, 14]
        return made

    terms = Terms(width**-0.5, window)
    given_TNC = torch.randn(6, heads + 2 * kv_heads, width, generator=torch.Generator().manual_seed(1))
    ours, theirs = memory(), memory()
    with torch.inference_mode():
        found = _attend_few.attend_few(Plan([1, 3, 2], ours, "cpu"), 0, given_TNC, heads, terms)
        parts = (part.transpose(0, 1)[None] for part in given_TNC.split([heads, kv_heads, kv_heads], 1))
        wanted = attend(Plan([1, 3, 2], theirs, "cpu"), 0, *parts, terms)[0].transpose(0, 1).reshape(6, -1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for mine, own in zip(ours.layers[0], theirs.layers[0], strict=True):
        assert torch.equal(mine, own)
