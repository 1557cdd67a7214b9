"""A Hugging Face model folder as GGUF reads it: tensor names, header values, vocabulary. Nothing is written here.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (header keys, tensor names), and
llama.cpp's `llama` architecture, which turns neighbouring pairs of a head's values where transformers turns halves: rows
of the query and key weights are put in that order (Su et al. 2021, RoFormer, arXiv:2104.09864, equation 34).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.exporters import _pre

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type -> llama.cpp's architecture."""
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
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


def open_source(folder: Path) -> Source:
    """UserError where llama.cpp has no architecture that computes the same."""
    config = _json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in _ARCHITECTURES:
        raise UserError(
            f"a model of type {kind!r} cannot be written to GGUF here",
            f"supported: {', '.join(_ARCHITECTURES)}",
            "llama.cpp's own convert_hf_to_gguf.py knows more architectures",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(
            f"llama.cpp computes silu, this model {config['hidden_act']}", "hidden_act in config.json", "use a model with silu"
        )
    if config.get("sliding_window") is not None and (kind == "mistral" or config.get("use_sliding_window")):
        raise UserError(
            "the model's attention has a window, which llama.cpp's architecture of this name does not compute",
            f"sliding_window: {config['sliding_window']} in config.json",
            "use a model with full attention",
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in ("default", "linear", "llama3"):
        raise UserError(
            f"rotary positions of type {scaling!r} cannot be written to GGUF here", "supported: default, linear, llama3"
        )
    heads = config["num_attention_heads"]
    return Source(
        folder,
        config,
        _ARCHITECTURES[kind],
        config.get("head_dim") or config["hidden_size"] // heads,
        float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        {**rope, "rope_type": scaling},
    )


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
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": source.head_width,
        "attention.value_length": source.head_width,
        "rope.dimension_count": source.head_width,
        "rope.freq_base": source.rope_theta,
        "vocab_size": config["vocab_size"],
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


class Tensor(NamedTuple):
    """One tensor of the folder: where it is and what it is called in GGUF."""

    name: str
    file: Path
    key: str
    shape: tuple[int, ...]


def tensors(source: Source) -> list[Tensor]:
    """Every tensor in the order of the file, from the headers alone."""
    from safetensors import SafetensorError, safe_open

    found = []
    tied = source.config.get("tie_word_embeddings", False)
    for file in sorted(source.folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    if key == "lm_head.weight" and tied:
                        continue  # llama.cpp uses the embedding where there is no output tensor
                    if key.endswith("rotary_emb.inv_freq"):
                        continue  # computed from the header
                    found.append(Tensor(_name(key), file, key, tuple(opened.get_slice(key).get_shape())))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file.name} cannot be read", str(error), "copy the model again; `modelwright verify` tells whether it changed"
            ) from None
    names = {tensor.name for tensor in found}
    missing = {
        "token_embd.weight",
        "output_norm.weight",
        *(f"blk.{i}.attn_q.weight" for i in range(source.config["num_hidden_layers"])),
    } - names
    if missing or (not tied and "output.weight" not in names):
        raise UserError(
            "the model's folder lacks weights",
            ", ".join(sorted(missing)[:4]) or "lm_head.weight",
            "export a whole model; merge an adapter first",
        )
    return sorted(found, key=_order)


def _name(key: str) -> str:
    if key in _TOP:
        return _TOP[key]
    parts = key.split(".")
    inner = ".".join(parts[3:-1])
    if parts[:2] != ["model", "layers"] or inner not in _BLOCK:
        raise UserError(
            f"the model has a tensor {key!r} that GGUF has no place for",
            "it is not a plain model of its type (an unmerged adapter?)",
            "merge the adapter into the model first",
        )
    return f"blk.{parts[2]}.{_BLOCK[inner]}.{parts[-1]}"


def _order(tensor: Tensor) -> tuple[int, str]:
    parts = tensor.name.split(".")
    return (int(parts[1]), tensor.name) if parts[0] == "blk" else (-1 if parts[0] == "token_embd" else 1 << 30, tensor.name)


def values(source: Source, wanted: list[Tensor]) -> Iterator[tuple[Tensor, Any]]:
    """Each tensor as a float32 array, in llama.cpp's order of rows; one at a time is in memory."""
    import numpy as np
    import torch
    from safetensors import safe_open

    heads = {
        "attn_q": source.config["num_attention_heads"],
        "attn_k": source.config.get("num_key_value_heads") or source.config["num_attention_heads"],
    }
    for tensor in wanted:
        with safe_open(tensor.file, framework="pt") as opened:
            array = opened.get_tensor(tensor.key).to(torch.float32).numpy()
        if not np.isfinite(array).all():
            raise UserError(
                f"the weights of {tensor.key} hold numbers that are not finite",
                "training diverged",
                "train again with a lower rate",
            )
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if source.architecture == "llama" and part in heads:
            array = _pairs(array, heads[part])
        yield tensor, np.ascontiguousarray(array)


def _pairs(array: Any, heads: int) -> Any:
    """Rows of each head from halves (0..d/2, d/2..d) to neighbouring pairs."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def frequency_factors(source: Source) -> list[float] | None:
    """Divisors of the rotary frequencies (tensor `rope_freqs`) for Llama 3.1's long contexts
    (transformers `modeling_rope_utils.py`, rope type llama3); None where frequencies are plain."""
    if source.rope["rope_type"] != "llama3":
        return None
    factor, low, high = (float(source.rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(source.rope["original_max_position_embeddings"])
    factors = []
    for place in range(0, source.head_width, 2):
        wave = 2 * math.pi * source.rope_theta ** (place / source.head_width)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
