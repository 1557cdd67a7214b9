"""GGUF's types: what each tensor gets, that blocks are llama.cpp's, sizes foretold to the byte, proofs that pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.stage import STAGES
from modelwright.methods.exporters import EXPORTERS, _ggml, _proof, _servable, _types
from tests import engine_kit as kit
from tests.test_export import export

pytest.importorskip("xllamacpp")
gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

SHAPE = Shape(layers=2, hidden=256, intermediate=512, heads=4, kv_heads=2, vocab=400)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.folder(
        tmp_path_factory.mktemp("wide"), hidden_size=256, intermediate_size=512, num_hidden_layers=2, initializer_range=0.05
    )


def test_numbers_are_ggmls() -> None:
    assert {
        kind: tuple(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]) for kind in _types.BLOCKS
    } == _types.BLOCKS
    names = {"f32": "ALL_F32"}
    assert set(get_args(EXPORTERS.load("gguf").model_fields["type"].annotation)) == set(_types.TYPES)
    for kind, found in _types.TYPES.items():
        assert found.number == gguf.LlamaFileType[names.get(kind, "MOSTLY_" + kind.upper())].value, kind


@pytest.mark.parametrize("kind", [kind for kind in _types.BLOCKS if kind not in ("f32", "f16", "bf16")])
def test_blocks_read_back(kind: str) -> None:
    """By the `gguf` package's own reading, and as near as that many bits come to random numbers."""
    array = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    blocks = _ggml.quantised(array, kind)
    wanted = gguf.GGMLQuantizationType[kind.upper()]
    assert blocks.nbytes == _types.size_bytes(kind, array.shape)
    error = float(np.abs(gguf.dequantize(blocks, wanted) - array).mean() / np.abs(array).mean())
    bits = 8 * _types.BLOCKS[kind][1] / _types.BLOCKS[kind][0]
    assert error < 3 * 2**-bits, error


def test_both_quantisers_make_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(1).normal(size=(4, 64)).astype(np.float32)
    ours = {kind: _ggml.quantised(array, kind) for kind in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")}
    monkeypatch.setattr(_ggml, "_BY_PACKAGE", frozenset())
    assert all(np.array_equal(_ggml.quantised(array, kind), found) for kind, found in ours.items())


def test_without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    _ggml.library.cache_clear()
    monkeypatch.setattr(_ggml, "_LIBRARIES", {"no_such_package": ("*.so",)})
    try:
        _ggml.check({"q8_0", "f32"})
        with pytest.raises(UserError, match=r"needs llama\.cpp"):
            _ggml.check({"q4_k"})
    finally:
        _ggml.library.cache_clear()


def chosen(kind: str, model: _types.Model, width: int = 256) -> dict[str, str]:
    names = ["token_embd", "output", *(f"blk.{i}.{part}" for i in range(16) for part in ("attn_v", "attn_q", "ffn_down"))]
    return {name: _types.of_tensor(kind, f"{name}.weight", (64, width), model)[0] for name in names}


def test_mixtures_are_llama_quantizes() -> None:
    """By hand from `llama_tensor_get_type`, for sixteen layers."""
    medium = chosen("q4_k_m", _types.Model(16, 2, 0, False))
    assert medium["output"] == "q6_k" and medium["token_embd"] == medium["blk.0.attn_q"] == "q4_k"
    more = [i for i in range(16) if medium[f"blk.{i}.attn_v"] == "q6_k"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15] == [i for i in range(16) if medium[f"blk.{i}.ffn_down"] == "q6_k"]
    assert chosen("q4_k_m", _types.Model(16, 2, 0, True))["token_embd"] == "q6_k", "the embedding is the head, too"
    small = chosen("q4_k_s", _types.Model(16, 2, 0, True))
    assert [i for i in range(16) if small[f"blk.{i}.attn_v"] == "q5_k"] == [0, 1, 2, 3]
    assert [i for i in range(16) if small[f"blk.{i}.ffn_down"] == "q5_k"] == [0, 1]
    assert {chosen("q2_k", _types.Model(16, shared, 0, True))["blk.3.attn_v"] for shared in (2, 4)} == {"q3_k", "q4_k"}
    assert chosen("q4_0", _types.Model(16, 2, 8, True))["blk.3.attn_v"] == "q8_0", "eight experts"
    assert set(chosen("q5_k_m", _types.Model(16, 2, 0, True), 96).values()) == {"q8_0", "q5_1"}, "rows of 96"
    assert set(chosen("q4_k_m", _types.Model(16, 2, 0, True), 100).values()) == {"f16"}, "rows of 100"
    router = _types.of_tensor("q2_k", "blk.0.ffn_gate_inp.weight", (4, 256), _types.Model(1, 2, 4, True))
    assert router == ("f32", "f32")


@pytest.mark.parametrize("kind", ["q6_k", "q5_k_s", "q5_1", "q4_k_m", "iq4_xs", "q3_k_l", "iq3_s", "q2_k"])
def test_types_are_proved_and_foretold(wide: Path, tmp_path: Path, kind: str) -> None:
    written, proof = export(wide, tmp_path / "out", type=kind)
    assert proof["perplexity_rise_low_frac"] <= proof["perplexity_rise_frac"] <= proof["perplexity_rise_high_frac"]
    assert written["rows_not_whole_blocks"] == {} and written["tensors"]["f32"] == 5
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    size = (tmp_path / "out" / "model.gguf").stat().st_size - reader.data_offset
    assert _types.data_bytes(kind, SHAPE) == size, "to the byte"
    assert reader.fields["general.file_type"].contents() == _types.TYPES[kind].number


def test_rows_of_other_lengths_are_told(tmp_path: Path) -> None:
    source = kit.folder(tmp_path / "model")  # 64 wide
    written, _ = export(source, tmp_path / "out", type="q4_k_m")
    assert written["rows_not_whole_blocks"] == {"q4_k became q5_0": 12, "q6_k became q8_0": 2}
    assert written["tensors"] == {"f32": 5, "q5_0": 12, "q8_0": 3}
    narrow = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=400)
    exporter: Any = EXPORTERS.load("gguf")
    assert "q4_k became q5_0 in 12, q6_k became q8_0 in 2" in exporter(type="q4_k_m").remark(narrow), "before it runs"
    assert exporter(type="q4_k_m").remark(SHAPE) == exporter().remark(narrow) == ""
    given = Given(Machine("laptop", 2, 8e9), {"chat": Facts(type="model", shape=narrow)})
    stage: Any = STAGES.load("export").model_validate(
        {"kind": "export", "model": "chat", "format": {"kind": "gguf", "type": "q2_k"}}
    )
    assert "multiples of 256" in stage.estimate(given).disk.why


def gemma(out: Path, **fields: Any) -> Path:
    import torch
    import transformers

    from modelwright.methods.architectures import ARCHITECTURES

    torch.manual_seed(0)
    spec: Any = ARCHITECTURES.load("gemma")(hidden=64, head_dim=32, window=16, intermediate=96, **fields)
    config = spec.config(400, 256)
    config.initializer_range = 0.1
    model = transformers.Gemma3ForCausalLM(config)
    with torch.no_grad():  # norms that do something
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(out)
    kit.tokenizer().save_pretrained(out)
    return out


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("Qwen3Moe", {**EXPERTS, "moe_intermediate_size": 64, "head_dim": 32, "norm_topk_prob": True}),
    ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 2}),
    ("Olmoe", {**EXPERTS, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    ("gemma", {"depth": 3}),
    ("gemma", {"depth": 4, "local_layers": 1, "rope_theta_local": 3000.0, "tied": False}),
]


@pytest.mark.parametrize(("kind", "sizes"), VARIANTS, ids=[f"{kind}-{n}" for n, (kind, _) in enumerate(VARIANTS)])
def test_architectures(tmp_path: Path, kind: str, sizes: dict[str, Any]) -> None:
    from transformers import AutoConfig

    from modelwright.methods.architectures import shape_of

    source = gemma(tmp_path / "model", **sizes) if kind == "gemma" else kit.folder(tmp_path / "model", kind=kind, **sizes)
    _, proof = export(source, tmp_path / "out", type="f32")
    assert proof["logprob_difference_mean"] < 0.002 and proof["answer_tokens_equal_frac"] > 0.5
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    size = (tmp_path / "out" / "model.gguf").stat().st_size - reader.data_offset
    if kind != "Olmoe":  # its norms of queries and keys are as wide as all heads, which `Shape` does not tell
        assert _types.data_bytes("f32", shape_of(AutoConfig.from_pretrained(source))) == size


def test_models_that_compute_more(tmp_path: Path) -> None:
    def refused(match: str, source: Path, **values: Any) -> None:
        tree = json.loads((source / "config.json").read_text(encoding="utf-8"))
        (source / "config.json").write_text(json.dumps({**tree, **values}), encoding="utf-8")
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=match):
            EXPORTERS.load("gguf")().write(source, tmp_path / "out", kit_log())  # type: ignore[attr-defined]

    refused("norm_topk_prob: False", kit.folder(tmp_path / "one", kind="Qwen3Moe", moe_intermediate_size=64, **EXPERTS))
    tied = kit.folder(tmp_path / "tied", kind="Olmoe", **EXPERTS)
    refused("tie_word_embeddings: True", tied)
    refused("clip_qkv: 4.0", tied, clip_qkv=4.0, tie_word_embeddings=False)
    soft = gemma(tmp_path / "soft", depth=2)
    refused("do not repeat", soft, layer_types=["full_attention", "sliding_attention"])
    refused(
        "final_logit_softcapping: 30", soft, layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=30.0
    )
    refused("query_pre_attn_scalar: 16", soft, final_logit_softcapping=None, query_pre_attn_scalar=16)
    refused("two passes", soft, model_type="t5")
    refused("does not go on with a text", soft, model_type="modernbert")


def kit_log() -> Any:
    from modelwright.core.events import Log

    return Log(None)


def test_the_interval_of_the_rise() -> None:
    low, high = _proof._rise_between([[0.1, 0.1], [0.1]])
    assert [low, high] == pytest.approx([0.105171] * 2, abs=1e-6), "every token lost the same"
    low, high = _proof._rise_between([[0.2, 0.2], [0.0, 0.0]])  # mean 0.1, of two clusters: error 0.1
    assert np.log1p([low, high]) == pytest.approx([0.1 - 0.196, 0.1 + 0.196])
    low, high = _proof._rise_between([[0.2, 0.0, 0.2, 0.0]])  # one text: over its tokens
    assert np.log1p([low, high]) == pytest.approx([0.1 - 1.96 * 0.1 / 3**0.5, 0.1 + 1.96 * 0.1 / 3**0.5])


def test_the_report_tells_the_interval() -> None:
    from modelwright.report import page

    assert page._rise(10.0, 10.1, 0.002, 0.018) == "+1.00 %, 95 % interval +0.20 to +1.80 %"
    assert page._rise(10.0, 9.0, None, None) == "-10.00 %" and page._rise(None, 9.0, None, None) == ""


def test_a_folder_for_vllm(tmp_path: Path) -> None:
    """What transformers 4 reads under old names is there, and transformers 5 opens the same model (the proof's answers)."""
    source = kit.folder(
        tmp_path / "model", kind="Qwen3Moe", moe_intermediate_size=64, head_dim=32, rope_parameters={"rope_type": "linear",
        "rope_theta": 5000.0, "factor": 2.0}, **EXPERTS,
    )  # fmt: skip
    written, proof = export(source, tmp_path / "out", "safetensors", precision="fp32")
    assert proof["answers_equal_frac"] == 1 and proof["perplexity_rise_frac"] == 0
    assert written["serves"] == {"architecture": "Qwen3MoeForCausalLM", "chat_template": True, "end_tokens": [2]}
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3MoeForCausalLM"] and config["num_experts"] == 4
    assert config["rope_theta"] == 5000.0 and config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["torch_dtype"] == "float32"
    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == kit.CHATML
    local = gemma(tmp_path / "local", depth=2, rope_theta_local=3000.0)
    export(local, tmp_path / "out2", "safetensors", precision="fp32")
    config = json.loads((tmp_path / "out2" / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 1e6 and config["rope_local_base_freq"] == 3000.0
    settings = json.loads((tmp_path / "out2" / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == 2, "the template's end of turn, which the model's own settings do not name"


def test_a_folder_that_vllm_could_not_open(tmp_path: Path) -> None:
    folder = kit.folder(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="lacks the model's chat template"):
        _servable.served(folder, True, frozenset())
    (folder / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks generation_config\.json"):
        _servable.served(folder, False, frozenset())
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="what computes this model"):
        _servable.served(folder, False, frozenset())
