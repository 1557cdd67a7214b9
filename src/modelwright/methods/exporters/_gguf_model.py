"""A Hugging Face model folder as GGUF reads it: what it is, header values, vocabulary. Nothing is written here.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (header keys), and what llama.cpp's
architectures compute (`src/models/*.cpp`); a model that has more than that is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.exporters import _pre

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "gemma3_text": "gemma3",
}
"""model_type -> llama.cpp's architecture."""
_OTHERS = {
    "t5": "llama.cpp runs an encoder-decoder in two passes, which no engine here does, so nothing could prove the file",
    **dict.fromkeys(("bert", "modernbert"), "it fills gaps and does not go on with a text, so nothing here could prove the file"),
}
"""model_type -> why not."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`llama_token_type`."""


class Vocabulary(NamedTuple):
    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str


class Source(NamedTuple):
    """The folder's small files, read and checked."""

    folder: Path
    config: dict[str, Any]
    architecture: str
    head_width: int
    rope_theta: float
    rope: dict[str, Any]
    local_theta: float | None
    """Base of the rotary frequencies of layers that see a window only; None where there are none."""


def open_source(folder: Path) -> Source:
    """UserError where llama.cpp has no architecture that computes the same."""
    config = _json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise UserError(
            f"a model of type {kind!r} cannot be written to GGUF here",
            _OTHERS.get(kind, f"supported: {', '.join(ARCHITECTURES)}"),
            "llama.cpp's own convert_hf_to_gguf.py knows more architectures",
        )
    for wrong, what in _differences(kind, config):
        if wrong:
            raise UserError(
                f"llama.cpp's {ARCHITECTURES[kind]} does not compute what this model does",
                f"{what}, in config.json",
                "use a model without it, or `format: safetensors`",
            )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = None
    if kind == "gemma3_text":
        nested = "full_attention" in rope
        local = float(rope["sliding_attention"]["rope_theta"] if nested else config.get("rope_local_base_freq", 10000.0))
        rope = rope["full_attention"] if nested else rope
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "linear", "llama3"):
        raise UserError(
            f"rotary positions of type {scaling!r} cannot be written to GGUF here", "supported: default, linear, llama3"
        )
    return Source(
        folder,
        config,
        ARCHITECTURES[kind],
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        {**rope, "rope_type": scaling},
        local,
    )


def _differences(kind: str, config: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Whether the model has each thing that llama.cpp's architecture of this name leaves out, and its name."""
    gemma, moe = kind == "gemma3_text", kind in ("qwen3_moe", "olmoe")
    name, wanted = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    yield config.get(name, wanted) != wanted, f"{name}: {config.get(name)} where llama.cpp computes {wanted}"
    windowed = config.get("use_sliding_window") or kind in ("mistral", "mixtral")
    yield not gemma and windowed and config.get("sliding_window") is not None, f"sliding_window: {config.get('sliding_window')}"
    if gemma:
        yield period(config) is None, f"layer_types: {config.get('layer_types')}, which do not repeat"
        scale, head = config.get("query_pre_attn_scalar"), config.get("head_dim")
        yield scale not in (None, head), f"query_pre_attn_scalar: {scale} where heads are {head} wide"
        for cap in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            yield bool(config.get(cap)), f"{cap}: {config.get(cap)}"
    if moe:
        normed = bool(config.get("norm_topk_prob"))
        yield normed != (kind == "qwen3_moe"), f"norm_topk_prob: {normed} (do experts' shares sum to 1)"
        yield bool(config.get("mlp_only_layers")), f"mlp_only_layers: {config.get('mlp_only_layers')}"
        yield config.get("decoder_sparse_step", 1) != 1, f"decoder_sparse_step: {config.get('decoder_sparse_step')}"
        yield kind == "olmoe" and bool(config.get("tie_word_embeddings")), "tie_word_embeddings: True"
        yield config.get("clip_qkv") is not None, f"clip_qkv: {config.get('clip_qkv')}"


def key_heads(config: dict[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def experts(config: dict[str, Any]) -> int:
    """MLPs of a layer among which a router chooses; 0: there is no router."""
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def period(config: dict[str, Any]) -> int | None:
    """Every how many layers one sees everything; None where they follow no such rule."""
    kinds = config.get("layer_types")
    if not kinds:
        return int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
    fits = all((kind == "full_attention") == ((layer + 1) % every == 0) for layer, kind in enumerate(kinds))
    return every if fits else None


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"the model's folder lacks {path.name}",
            "a GGUF file needs the tokenizer and the configuration too",
            "export a model folder that `save_pretrained` wrote",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path.name} of the model cannot be read", str(error), "copy the model again") from None
    assert isinstance(tree, dict)
    return tree


def header(source: Source) -> dict[str, int | float | str]:
    """Header keys of the architecture; integers are written as uint32, floats as float32."""
    config, arch = source.config, source.architecture
    values: dict[str, int | float | str] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": key_heads(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": source.head_width,
        "attention.value_length": source.head_width,
        "rope.dimension_count": source.head_width,
        "rope.freq_base": source.rope_theta,
        "vocab_size": config["vocab_size"],
    }
    if count := experts(config):
        values |= {"expert_count": count, "expert_used_count": config["num_experts_per_tok"]}
        if width := config.get("moe_intermediate_size"):
            values["expert_feed_forward_length"] = width
    if source.local_theta is not None:
        every = period(config)
        assert every is not None, "open_source refuses layers without a rule"
        values |= {
            "attention.sliding_window": config["sliding_window"],
            "attention.sliding_window_pattern": every,
            "rope.freq_base_swa": source.local_theta,
        }
    if source.rope["rope_type"] == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(source.rope["factor"])}
    return {f"{arch}.{key}": value for key, value in values.items()}


def vocabulary(source: Source, tokenizer: Any) -> Vocabulary:
    """The tokenizer, as transformers opened it, with one entry for every row of the embedding.

    Not tokenizer.json: for some architectures (Qwen2) transformers puts its own pre-tokenizer in place of the file's,
    and the model was trained with what transformers opened.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)  # only tokenizers written in Rust have one
    if not isinstance(backend, Tokenizer):
        raise UserError(
            "this tokenizer cannot be written to GGUF",
            f"{type(tokenizer).__name__} has no tokenizer.json",
            "use a model with a fast tokenizer",
        )
    tree = json.loads(backend.to_str())
    config_path = source.folder / "tokenizer_config.json"
    pre = _pre.name(tree, _json(config_path) if config_path.exists() else {})
    size = source.config["vocab_size"]
    tokens = {index: (text, NORMAL) for text, index in tree["model"]["vocab"].items()}
    for added in tree.get("added_tokens", []):
        tokens[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    if max(tokens) >= size:
        raise UserError(
            f"the tokenizer has a token number {max(tokens)}, the model only {size} rows",
            "they do not belong together",
            "export the model with the tokenizer that it was trained with",
        )
    texts, types = zip(*(tokens.get(index, (f"[UNUSED{index}]", UNUSED)) for index in range(size)), strict=True)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    return Vocabulary(list(texts), list(types), merges, pre)
