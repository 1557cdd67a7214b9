"""A LoRA's folder in PEFT's layout: what its settings allow, and its matrices with the scale in them. Plain arrays, no torch.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, equation 3; the layout is that of https://huggingface.co/docs/peft
(adapter_config.json, adapter_model.safetensors; `use_rslora`: Kalajdzievski 2023, arXiv:2312.03732, equation 2).

Shapes: R a matrix's rank, I and O a layer's inputs and outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""What an adapter's settings may say. Others change more than x A' B', or mean it against changed base weights."""


class Pair(NamedTuple):
    """What is added to one linear layer."""

    first_RI: Any
    """float32 numpy array, as the second."""
    second_OR: Any
    """alpha / rank is in it."""


def refused(folder: Path, why: str, fix: str = "merge it into the model and open that") -> UserError:
    return UserError(f"the adapter in {folder.name} cannot be attached", why, fix)


def read(folder: Path) -> dict[str, Pair]:
    """By the path of a linear layer in transformers' model; UserError for what is no plain LoRA."""
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        weights = _arrays(folder / "adapter_model.safetensors")
    except Exception as error:  # torn files fail in as many ways as there are parsers
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise refused(folder, why, "name a folder with adapter_config.json and adapter_model.safetensors") from error
    for key, allowed in PLAIN.items():
        if isinstance(settings, dict) and settings.get(key, allowed[0]) not in allowed:
            raise refused(folder, f"its settings say {key}: {settings[key]}, and only plain LoRA is computed here")
    if not isinstance(settings, dict) or not isinstance(settings.get("r"), int):
        raise refused(folder, "its adapter_config.json is not that of a LoRA")
    found: dict[str, dict[str, Any]] = {}
    for key, weight in weights.items():
        path, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise refused(folder, f"its weight {key} is not that of a linear layer's LoRA")
        found.setdefault(path, {})[part[0]] = weight
    if not found:
        raise refused(folder, "it holds no weights", "name another folder")
    return {path: _pair(folder, path, parts, settings) for path, parts in found.items()}


def _pair(folder: Path, path: str, parts: dict[str, Any], settings: dict[str, Any]) -> Pair:
    if set(parts) != {"A", "B"} or parts["A"].ndim != 2 or parts["B"].ndim != 2 or len(parts["A"]) != parts["B"].shape[1]:
        raise refused(folder, f"its two matrices at {path} do not belong together", "save the adapter again")
    rank = len(parts["A"])
    alpha = _pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha", rank))
    return Pair(parts["A"], parts["B"] * (alpha / (rank**0.5 if settings.get("use_rslora") else rank)))


def _pattern(pattern: dict[str, float] | None, path: str, otherwise: float) -> float:
    """PEFT's `alpha_pattern`: its keys are regular expressions for the end of a path."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)


def _arrays(path: Path) -> dict[str, Any]:
    """Every tensor of a safetensors file as float32."""
    import numpy as np
    import safetensors

    read: Any = safetensors.deserialize  # it has no types
    found = {}
    for name, tensor in read(path.read_bytes()):
        data, kind = tensor["data"], tensor["dtype"]
        if kind == "BF16":  # the upper half of a float32
            array = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(data, {"F16": np.float16, "F32": np.float32, "F64": np.float64}[kind]).astype(np.float32)
        found[name] = array.reshape(tensor["shape"])
    return found
