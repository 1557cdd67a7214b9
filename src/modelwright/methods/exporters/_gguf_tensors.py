"""The weights of a Hugging Face model folder by GGUF's names and in llama.cpp's order, one tensor at a time.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (tensor names), and llama.cpp's `llama`
architecture, which turns neighbouring pairs of a head's values where transformers turns halves: rows of the query and key
weights are put in that order (Su et al. 2021, RoFormer, arXiv:2104.09864, equation 34). Gemma's norms multiply with 1 + weight,
llama.cpp's with the weight: 1 is added here. The experts of a layer become one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.exporters._gguf_model import Source, experts, key_heads

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
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_GEMMA = {
    **_BLOCK,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")
_EXPERT_PARTS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class Tensor(NamedTuple):
    """One tensor of the GGUF file: what it is called there, and which tensors of the folder it holds, one behind the other."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Path, str], ...]


def tensors(source: Source) -> list[Tensor]:
    """Every tensor in the order of the file, from the headers alone."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, dict[int, tuple[Path, str, tuple[int, ...]]]] = {}
    tied = source.config.get("tie_word_embeddings", False)
    for file in sorted(source.folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    if key == "lm_head.weight" and tied:
                        continue  # llama.cpp uses the embedding where there is no output tensor
                    if key.endswith("rotary_emb.inv_freq"):
                        continue  # computed from the header
                    name, number = _name(source.architecture, key)
                    found.setdefault(name, {})[number] = (file, key, tuple(opened.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file.name} cannot be read", str(error), "copy the model again; `modelwright verify` tells whether it changed"
            ) from None
    missing = {
        "token_embd.weight",
        "output_norm.weight",
        *(f"blk.{i}.attn_q.weight" for i in range(source.config["num_hidden_layers"])),
    } - found.keys()
    stacks = {name for name in found if "_exps." in name}
    missing |= {name for name in stacks if sorted(found[name]) != list(range(experts(source.config)))}
    if missing or (not tied and "output.weight" not in found):
        raise UserError(
            "the model's folder lacks weights",
            ", ".join(sorted(missing)[:4]) or "lm_head.weight",
            "export a whole model; merge an adapter first",
        )
    made = []
    for name, numbered in found.items():
        parts = [numbered[number] for number in sorted(numbered)]
        stack = (len(parts),) if name in stacks else ()
        made.append(Tensor(name, (*stack, *parts[0][2]), tuple((file, key) for file, key, _ in parts)))
    return sorted(made, key=_order)


def matrix(architecture: str, path: str) -> str | None:
    """GGUF's name of the weight of one linear layer; None for what is none, or is part of a stack of experts."""
    key = f"{path}.weight"
    if key in _TOP:
        return _TOP[key]
    parts = path.split(".")
    inner = (_GEMMA if architecture == "gemma3" else _BLOCK).get(".".join(parts[3:]))
    return f"blk.{parts[2]}.{inner}.weight" if parts[:2] == ["model", "layers"] and inner else None


def _name(architecture: str, key: str) -> tuple[str, int]:
    """Where a tensor of the folder goes: a name, and its place among the experts of a layer."""
    if key in _TOP:
        return _TOP[key], 0
    parts = key.split(".")
    inner = ".".join(parts[3:-1])
    names = _GEMMA if architecture == "gemma3" else _BLOCK
    expert = _EXPERT.fullmatch(inner)
    if parts[:2] == ["model", "layers"] and expert and expert[2] in _EXPERT_PARTS:
        return f"blk.{parts[2]}.ffn_{_EXPERT_PARTS[expert[2]]}_exps.{parts[-1]}", int(expert[1])
    if parts[:2] != ["model", "layers"] or inner not in names:
        raise UserError(
            f"the model has a tensor {key!r} that GGUF has no place for",
            "it is not a plain model of its type (an unmerged adapter?)",
            "merge the adapter into the model first",
        )
    return f"blk.{parts[2]}.{names[inner]}.{parts[-1]}", 0


def _order(tensor: Tensor) -> tuple[int, str]:
    parts = tensor.name.split(".")
    return (int(parts[1]), tensor.name) if parts[0] == "blk" else (-1 if parts[0] == "token_embd" else 1 << 30, tensor.name)


def values(source: Source, wanted: list[Tensor]) -> Iterator[tuple[Tensor, Any]]:
    """Each tensor as a float32 array, in llama.cpp's order of rows; one at a time is in memory."""
    import numpy as np

    for tensor in wanted:
        arrays = [_read(file, key) for file, key in tensor.parts]
        array = np.stack(arrays) if len(tensor.shape) == 3 else arrays[0]
        array = turned(source.architecture, tensor.name, array, source.config["num_attention_heads"], key_heads(source.config))
        if source.architecture == "gemma3" and tensor.name.endswith("norm.weight"):
            array = array + np.float32(1)
        yield tensor, np.ascontiguousarray(array)


def _read(file: Path, key: str) -> Any:
    import numpy as np
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        array = opened.get_tensor(key).to(torch.float32).numpy()
    if not np.isfinite(array).all():
        raise UserError(
            f"the weights of {key} hold numbers that are not finite", "training diverged", "train again with a lower rate"
        )
    return array


def turned(architecture: str, name: str, array: Any, heads: int, key_heads: int) -> Any:
    """The rows of a weight, or of what is added to it, in llama.cpp's order: each head's from halves (0..d/2, d/2..d) to
    neighbouring pairs."""
    count = {"attn_q": heads, "attn_k": key_heads}.get(name.split(".")[2] if name.startswith("blk.") else "")
    if architecture != "llama" or count is None:
        return array
    return _pairs(array, count)


def _pairs(array: Any, heads: int) -> Any:
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
