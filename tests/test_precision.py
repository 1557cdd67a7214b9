"""Which numbers a device multiplies in, scaled losses, float8 through a stand-in, and attention of all documents at once."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from modelwright.core.errors import UserError
from modelwright.core.estimate import Given, Machine
from modelwright.nn import attention, cards, forward, loop, precision, update, varlen
from modelwright.nn import device as devices
from modelwright.nn.attention import Layout, Segment, by_document, packed_attention, plain
from modelwright.nn.scaling import FIRST, LEAST, Scaling
from tests import train_kit as kit
from tests.fakes import _varlen as fake_kernel
from tests.test_nn_loop import Stop, documents, tiny, trained, weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes a card of a capability; what is measured on it is told by `rates`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = SimpleNamespace(rates={torch.float32: 50e12, torch.bfloat16: 700e12}, measured=[])

    def measured(dtype: torch.dtype, device: torch.device) -> float:
        found.measured.append(dtype)
        return float(found.rates[dtype])

    def make(major: int, minor: int) -> Any:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"a card {major}.{minor}")
        monkeypatch.setattr(precision, "measured", measured)
        return found

    return make


# --- where ----------------------------------------------------------------------------------------------------


def test_a_card_is_taken_where_torch_has_code_for_it(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose("cpu") == (CPU, "`device: cpu`")
    assert devices.choose("auto").device == CPU and "no cuda: torch" in devices.choose("auto").why
    with pytest.raises(UserError, match="`device: cuda` cannot be used here"):
        devices.choose("cuda")
    card(6, 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(cards, "told", lambda: "too old")
    for platform, told in (("linux", ""), ("darwin", "; no mps: this is no Mac with a GPU that torch can use")):
        monkeypatch.setattr(sys, "platform", platform)
        assert devices.choose("auto") == (CPU, f"`device: auto` (no cuda: too old{told})")
    card(9, 0)
    assert devices.choose("auto").device == devices.choose("cuda").device == CUDA


def test_mps_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose("auto").device.type == "mps"
    assert devices.choose("auto", processes=2).device.type == "cpu"
    with pytest.raises(UserError, match="cannot be used here") as found:
        devices.choose("mps", processes=2)
    assert "cannot exchange" in found.value.why


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelwright.nn.parallel.several import _card

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_card(0), _card(1)] == [0, 1]
    with pytest.raises(UserError, match="more processes on this machine than its 2 cards"):
        _card(2)


def test_random_states_of_a_card_are_kept_behind_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [torch.arange(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: own[0])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: own.__setitem__(0, state.clone()))
    torch.manual_seed(3)
    state = devices.random_state(CUDA)
    drawn, own[0] = torch.rand(2), torch.zeros(16, dtype=torch.uint8)
    devices.restore_random(CUDA, state)
    assert torch.equal(torch.rand(2), drawn) and own[0].tolist() == list(range(16))
    devices.restore_random(CPU, state)  # resumed on a processor
    assert torch.equal(torch.rand(2), drawn)
    own[0] = torch.zeros(16, dtype=torch.uint8)
    devices.restore_random(CUDA, devices.random_state(CPU))
    assert own[0].tolist() == [0] * 16


# --- in what ------------------------------------------------------------------------------------------------


def test_bf16_is_taken_where_it_is_fast_and_measured_once(card: Any, tmp_path: Path) -> None:
    new = card(9, 0)
    assert precision.numbers("auto", CUDA).dtype == precision.numbers("bf16", CUDA).dtype == torch.bfloat16
    assert new.measured == [torch.float32, torch.bfloat16], "once"
    stored = json.loads((tmp_path / "modelwright" / "rates.json").read_text())
    ((name, rates),) = stored.items()
    assert name.startswith(f"a card 9.0 | torch {torch.__version__}") and rates == {"fp32": 50e12, "bf16": 700e12}
    (tmp_path / "modelwright" / "rates.json").write_text("{")  # torn
    new.rates[torch.bfloat16] = 54e12
    how = precision.numbers("bf16", CUDA)
    assert how.dtype == torch.float32 and "1.08 times" in how.why


def test_cards_before_ampere_get_float16_and_scaled_losses(card: Any) -> None:
    old = card(7, 5)
    how = precision.numbers("auto", CUDA)
    assert (how.dtype, how.scaling) == (torch.float16, True) and "no bf16 products" in how.why
    assert precision.numbers("bf16", CUDA).dtype == torch.float32 and not old.measured, "never emulated"
    assert precision.numbers("fp16", CUDA) == (torch.float16, "", True, False)
    with pytest.raises(UserError, match="needs a card with products in float8"):
        precision.numbers("fp8", CUDA)


def test_a_processor_never_multiplies_in_float16(card: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for graphics cards"):
        precision.numbers("fp16", CPU)
    with pytest.raises(ValidationError, match="for graphics cards"):
        kit.stage(precision="fp16", device="cpu")
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    assert precision.numbers("auto", CPU) == precision.numbers("bf16", CPU)
    assert precision.numbers("auto", CPU).dtype == torch.float32 and "no bf16 products" in precision.numbers("auto", CPU).why
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    card(9, 0)
    assert precision.numbers("auto", CPU).dtype == torch.bfloat16


def test_auto_is_planned_by_what_the_machine_has() -> None:
    stage = kit.stage(precision="auto")
    assert [stage._half(Given(Machine("m", 1, 1e9, bf16_flops_per_s=rate), {})) for rate in (0.0, 1e12)] == [False, True]


# --- scaled losses ------------------------------------------------------------------------------------------


def test_the_factor_grows_and_is_halved() -> None:
    scaling = Scaling(every=3)
    for _ in range(7):
        scaling.good()
    assert (scaling.factor, scaling.steady) == (4 * FIRST, 1)
    assert scaling.overflow() and (scaling.factor, scaling.steady, scaling.overflows) == (2 * FIRST, 0, 1)
    other = Scaling()
    other.load(scaling.state())
    assert other.state() == scaling.state()
    assert not Scaling(LEAST).overflow()


def test_a_scaled_loss_takes_the_same_steps(tmp_path: Path) -> None:
    """Products in float32 and a factor that is a power of two: to the same bits."""
    rows = documents(40, tmp_path / "rows")
    plain, _, _ = trained(rows, tmp_path / "plain", every_s=1e9)
    scaled, outcome, _ = trained(rows, tmp_path / "scaled", every_s=1e9, scaling=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(scaled), strict=True)) and outcome.overflows == 0


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of more than a bound become infinite, as in float16; the factor grows every second step."""
    original = loop.backward

    def backward(spread: Any, *given: Any, **named: Any) -> Any:
        found = original(spread, *given, **named)
        for parameter in spread.trained.values():
            parameter.grad.masked_fill_(parameter.grad.abs() > 1000, torch.inf)
        return found

    monkeypatch.setattr(loop, "backward", backward)
    monkeypatch.setattr(update, "Scaling", lambda: Scaling(every=2))


@pytest.mark.usefixtures("narrow")
def test_an_overflow_is_counted_told_and_no_bad_step(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    _, outcome, told = trained(rows, tmp_path / "run", steps=20, scaling=True)
    overflows = [event["overflow"] for event in told if "overflow" in event]
    assert 0 < outcome.overflows == len(overflows) < 10 and outcome.steps == 20 and outcome.skipped == 0
    assert all(event["factor"] < 1000 for event in overflows) and not any("bad_step" in event for event in told)
    assert outcome.loss_last < outcome.loss_first


@pytest.mark.usefixtures("narrow")
def test_a_resumed_run_keeps_the_factor_to_the_same_bits(tmp_path: Path) -> None:
    rows = documents(40, tmp_path / "rows")
    whole, outcome, _ = trained(rows, tmp_path / "whole", steps=16, scaling=True)
    for stop_at in (5, 12):
        folder = tmp_path / f"killed-{stop_at}"
        with pytest.raises(Stop):
            trained(rows, folder, stop_at, steps=16, scaling=True)
        again, resumed, _ = trained(rows, folder, steps=16, scaling=True)
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
        assert resumed._replace(seconds=0.0) == outcome._replace(seconds=0.0) and outcome.overflows


def test_an_overflow_that_no_factor_mends_is_a_bad_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = documents(40, tmp_path / "rows")
    monkeypatch.setattr(update, "Scaling", lambda: Scaling(LEAST))
    original = loop.backward

    def backward(spread: Any, *given: Any, **named: Any) -> Any:
        found = original(spread, *given, **named)
        next(iter(spread.trained.values())).grad.fill_(torch.inf)
        return found

    monkeypatch.setattr(loop, "backward", backward)
    with pytest.raises(UserError, match="norm became inf"):
        trained(rows, tmp_path / "run", scaling=True)


def test_the_training_stage_tells_overflows_and_resumed_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of an old card, forced: its losses are scaled, its products are float32."""
    how = precision.Numbers(torch.float32, "forced", scaling=True)
    monkeypatch.setattr(precision, "numbers", lambda wanted, device: how)
    vocab = kit.tokenizer(tmp_path / "vocab")
    from modelwright.core.stage import Input

    events: list[tuple[str, dict[str, Any]]] = []
    inputs = {"data": kit.records(tmp_path / "rows", kit.texts(20)), "vocab": Input("vocab", "tokenizer", vocab)}
    stats = kit.stage(steps=2).run(kit.run_of(tmp_path / "out", inputs, events=events))
    assert stats["steps_overflowed"] == 0 and stats["device_peak_bytes"] is None
    assert {"training on cpu", "forced"} <= {str(fields.get("text")).partition(":")[0] for _, fields in events}


# --- float8 -------------------------------------------------------------------------------------------------


class Float8Linear(nn.Linear):
    """Stands for torchao's."""


def fake_torchao() -> ModuleType:
    module = ModuleType("torchao.float8")

    def convert_to_float8_training(model: nn.Module, *, module_filter_fn: Any) -> nn.Module:
        for name, part in list(model.named_modules()):
            if isinstance(part, nn.Linear) and module_filter_fn(part, name):
                part.__class__ = Float8Linear
        return model

    vars(module)["convert_to_float8_training"] = convert_to_float8_training
    return module


def test_float8_takes_the_layers_that_its_kernels_can(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card(9, 0)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match="needs torchao") as lacking:
        precision.numbers("fp8", CUDA)
    assert "modelwright[gpu]" in lacking.value.fix
    monkeypatch.setitem(sys.modules, "torchao.float8", fake_torchao())
    assert precision.numbers("fp8", CUDA) == (torch.bfloat16, "", False, True)
    model: Any = tiny()
    names = list(model.state_dict())
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 47)
    taken = precision.in_float8(model)
    assert len(taken) == 2 * 7 - 1 and "lm_head" not in taken and "model.layers[0].mlp.up_proj" not in taken
    assert list(tiny().state_dict()) == names and forward.Decoder.of(model) is None, "its modules run, not our forward pass"
    odd: Any = nn.Module()
    odd.get_output_embeddings, odd.layer = lambda: None, nn.Linear(3, 3)
    with pytest.raises(UserError, match="no layer"):
        precision.in_float8(odd)
    with pytest.raises(ValidationError, match="adapter"):
        kit.stage(start="base", precision="fp8", adapter={"kind": "lora"})


# --- attention ----------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: fake_kernel.varlen_attn)


LAYOUT = [Segment(0, 5), Segment(5, 9), Segment(9, 12, 1), Segment(12, 16, 1), Segment(16, 17)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 3])
def test_all_documents_at_once_are_each_document(window: int | None) -> None:
    torch.manual_seed(0)
    given = [torch.randn(17, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    out = []
    alone = by_document(*given, Layout(LAYOUT), window, partial(plain, scaling=0.3))
    for found in (varlen.attended(*given, Layout(LAYOUT), 0.3, window), alone):
        out.append([found, *torch.autograd.grad(found.square().sum(), given)])
    for a, b in zip(*out, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_transformers_modules_get_the_same(causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, layout = nn.Module(), Layout([Segment(0, 6), Segment(6, 17)])
    module.is_causal = causal  # type: ignore[assignment]
    query, key, value = (torch.randn(1, heads, 17, 8) for heads in (4, 2, 2))
    given: Any = {"scaling": 0.3, "sliding_window": window, "segments": layout}
    plain, _ = packed_attention(module, query, key, value, None, **given)
    monkeypatch.setattr(varlen, "fits", lambda device, dtype, width: True)
    at_once, _ = packed_attention(module, query, key, value, None, **given)
    assert at_once.shape == plain.shape and torch.allclose(at_once, plain, atol=1e-6)


@pytest.mark.usefixtures("kernel")
def test_what_autocast_would_cast_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions of transformers' modules make float32 of it: the kernel was never used for them."""
    asked: list[torch.dtype] = []
    monkeypatch.setattr(varlen, "fits", lambda device, dtype, width: not asked.append(dtype))
    given = [torch.randn(17, heads, 8) for heads in (4, 2, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.together(*given, Layout(LAYOUT), 0.3, None)
    assert found is not None and found.dtype == torch.bfloat16 and asked == [torch.bfloat16]


@pytest.mark.usefixtures("kernel")
def test_a_kernel_is_used_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen.proven.cache_clear()
    assert varlen.proven(CPU, torch.float32, 8)
    wrong = fake_kernel.varlen_attn
    monkeypatch.setattr(varlen, "kernel", lambda: lambda *a, **k: wrong(*a, **{**k, "window_size": (-1, -1)}))
    varlen.proven.cache_clear()
    assert not varlen.proven(CPU, torch.float32, 8), "it looks ahead"
    monkeypatch.setattr(varlen, "kernel", lambda: None)
    varlen.proven.cache_clear()
    assert not varlen.proven(CPU, torch.float32, 8)
    varlen.proven.cache_clear()
    assert not varlen.fits(CPU, torch.bfloat16, 8) and varlen.told(CPU, torch.bfloat16) == ""
    assert "document by document" in varlen.told(torch.device("mps"), torch.float32)


def test_torch_has_the_kernel_that_is_asked_for() -> None:
    import inspect

    assert (found := varlen.kernel()) is not None
    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale", "window_size", "enable_gqa"} <= set(
        inspect.signature(found).parameters
    )


def test_keys_are_shared_among_heads_on_a_processor_alone() -> None:
    query, key = torch.zeros(3, 4, 8), torch.arange(3 * 2 * 8.0).view(3, 2, 8)
    assert attention.one_each(query, key, key, 1)[2]
    there, _, shared = attention.one_each(query.to("meta"), key.to("meta"), key.to("meta"), 1)
    assert there.shape == query.shape and not shared
