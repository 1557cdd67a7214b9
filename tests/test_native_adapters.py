"""Adapters: rows of one batch with different LoRAs, each as PEFT computes it; what is no plain LoRA is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core.errors import UserError
from modelwright.methods.engines import ENGINES, Request, Sampling, open_engine
from modelwright.nn import _kv, adapters
from modelwright.nn._plain import Plain
from modelwright.nn.generate import Decoder
from tests import engine_kit as kit


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return {
        "all": kit.adapter(base / "all", kit.model(), 1, r=4, lora_alpha=8, target_modules=kit.PROJECTIONS),
        "few": kit.adapter(
            base / "few", kit.model(), 2, r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_rslora=True
        ),
        "uneven": kit.adapter(
            base / "uneven",
            kit.model(),
            3,
            r=3,
            target_modules=["v_proj", "up_proj"],
            rank_pattern={"up_proj": 6},
            alpha_pattern={"up_proj": 5},
        ),
    }


def theirs(folder: Path | None, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    """PEFT's greedy answer and its log-probabilities."""
    import peft

    model: Any = kit.model(num_hidden_layers=2)
    if folder is not None:
        model = peft.PeftModel.from_pretrained(model, folder).eval()
    found: list[int] = []
    logps: list[float] = []
    with torch.no_grad():
        for _ in range(tokens):
            logp_V = model(input_ids=torch.tensor([[*prompt, *found]])).logits[0, -1].log_softmax(-1)
            found.append(int(logp_V.argmax()))
            logps.append(float(logp_V.max()))
    return found, logps


@pytest.mark.parametrize("way", ["lean", "modules", "plain"])
def test_rows_with_different_adapters_in_one_batch(folders: dict[str, Path], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = kit.model(num_hidden_layers=2)
    if way == "modules":
        monkeypatch.setattr(_kv, "lean_of", lambda model: None)
    elif way == "plain":
        monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    decoder = Decoder(model, prefill_tokens=30)
    assert isinstance(decoder.runner, Plain) == (way == "plain")
    read = {name: adapters.read(name, folder, model) for name, folder in folders.items()}
    asked = [(name, prompt) for prompt in kit.PROMPTS for name in (None, "all", "few", "uneven")]
    for key, (name, prompt) in enumerate(asked):
        decoder.add(key, prompt, 5, adapter=read[name] if name else None)
    found: dict[int, list[tuple[int, float]]] = {}
    while decoder.busy:
        for step in decoder.step():
            found.setdefault(step.key, []).append((step.token, step.logprob))
    for key, (name, prompt) in enumerate(asked):
        tokens, logps = theirs(folders[name] if name else None, prompt, 5)
        assert [token for token, _ in found[key]] == tokens, (name, len(prompt))
        assert [logp for _, logp in found[key]] == pytest.approx(logps, abs=1e-4)
    decoder.close()
    assert not any(module._forward_hooks for module in model.modules() if type(module) is torch.nn.Linear)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = kit.folder(tmp_path_factory.mktemp("model"))
    with open_engine(folder, ENGINES.load("native")(threads=1, device="cpu", max_batch=4)) as engine:
        yield engine


def test_the_engine_swaps_adapters_while_answers_come(engine: Any, folders: dict[str, Path]) -> None:
    """What is under way keeps the adapter that it began with, whatever happens to its name."""
    request = Request(kit.PROMPTS[0], Sampling(max_tokens=60))
    engine.load_adapter("mine", folders["all"])
    engine.load_adapter("other", str(folders["few"]))
    assert engine.adapters == ("mine", "other")
    named = request._replace(adapter="mine")
    before = {name: engine.generate([request._replace(adapter=name)])[0].tokens for name in ("", "mine", "other")}
    assert len(set(before.values())) == 3
    streams = {"mine": engine.submit(named), "": engine.submit(request)}
    read = {name: iter(stream) for name, stream in streams.items()}
    first = {name: next(pieces) for name, pieces in read.items()}
    engine.load_adapter("mine", folders["uneven"])
    engine.unload_adapter("other")
    swapped = engine.generate([named])[0].tokens
    for name, pieces in read.items():
        rest = [token for piece in pieces for token in piece.tokens]
        assert (*first[name].tokens, *rest) == before[name], name
    assert swapped not in before.values() and engine.adapters == ("mine",)
    assert list(swapped[:5]) == theirs(folders["uneven"], kit.PROMPTS[0], 5)[0]
    for name in ("other", "never"):
        with pytest.raises(UserError, match=f"there is no adapter '{name}'"):
            engine.generate([request._replace(adapter=name)])
    with pytest.raises(UserError, match="there is no adapter 'other'"):
        engine.unload_adapter("other")
    engine.unload_adapter("mine")
    assert engine.adapters == () and engine.generate([request])[0].tokens == before[""]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"r": None}, "not that of a LoRA"),
]


@pytest.mark.parametrize(("settings", "why"), REFUSED, ids=[why.replace(" ", "-") for _, why in REFUSED])
def test_what_is_no_plain_lora_is_refused(folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    copied = shutil.copytree(folders["few"], tmp_path / "copy")
    file = copied / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=why):
        adapters.read("x", copied, kit.model())


@pytest.mark.filterwarnings("ignore")  # PEFT's, about heads and tables
def test_other_models_and_torn_files_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sizes at"):
        adapters.read("x", folders["all"], kit.model(hidden_size=32))
    with pytest.raises(UserError, match="no linear layer"):
        adapters.read("x", folders["all"], kit.model(num_hidden_layers=1))
    with pytest.raises(UserError, match="cannot be attached"):
        adapters.read("x", tmp_path, kit.model())
    copied = shutil.copytree(folders["few"], tmp_path / "copy")
    (copied / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be attached"):
        adapters.read("x", copied, kit.model())
    (copied / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="cannot be attached"):
        adapters.read("x", copied, kit.model())
    kit.adapter(tmp_path / "table", kit.model(), 4, r=2, target_modules=["embed_tokens"])
    with pytest.raises(UserError, match="not that of a linear layer"):
        adapters.read("x", tmp_path / "table", kit.model())
    kit.adapter(tmp_path / "head", kit.model(), 5, r=2, target_modules=["lm_head"])
    with pytest.raises(UserError, match="linear layer"):
        adapters.read("x", tmp_path / "head", kit.model())


def test_embeddings(engine: Any) -> None:
    assert "embed" in engine.capabilities
    found = engine.embed(kit.PROMPTS)
    model = kit.model(vocab=len(kit.tokenizer()))
    for prompt, vector in zip(kit.PROMPTS, found, strict=True):
        with torch.no_grad():
            mean_E = model.base_model(input_ids=torch.tensor([prompt])).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean_E / mean_E.norm()).tolist(), abs=1e-4)
    assert engine.embed([]) == []
    with pytest.raises(UserError, match="context holds 256"):
        engine.embed([[5] * 257])
    assert len(engine.embed([[5] * 256])[0]) == 64
    with pytest.raises(UserError, match="prompt is empty"):
        engine.embed([[]])
