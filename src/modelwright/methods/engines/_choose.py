"""What `engine: auto` looks at: the model's files, this machine, and which programs are there.

Source of the architectures: https://docs.vllm.ai/en/latest/models/supported_models.html (text generation).
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.load import DRIVER
from modelwright.core.units import bytes_text
from modelwright.methods.engines import ENGINES, EngineSpec
from modelwright.methods.engines._providers import PROVIDERS

FOR_VLLM = frozenset(
    f"{name}ForCausalLM"
    for name in ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Gemma", "Gemma2", "Gemma3", "Phi",
                 "Phi3", "Olmo", "Olmo2", "OlmoE", "SmolLM3", "Granite", "GraniteMoe", "StableLm", "Starcoder2", "Falcon",
                 "Cohere", "Cohere2", "Exaone", "Glm", "Glm4", "GptOss", "MiniCPM", "Nemotron", "Persimmon")
) | {"GPT2LMHeadModel", "GPTNeoXForCausalLM", "GPTJForCausalLM", "BloomForCausalLM"}  # fmt: skip
_ADDRESS = re.compile(r"(https?):/+")
FULL = 0.8
"""A model that takes more than this share of the memory is told of."""


def no_vllm(model: Path) -> str | None:
    """Why vLLM is not the one to serve a model that it could open; None where it is."""
    if not DRIVER.exists():
        return "no NVIDIA GPU here"
    names = _json(model / "config.json").get("architectures") or ["an unnamed architecture"]
    return None if set(names) & FOR_VLLM else f"it does not list {names[0]}"


def memory(model: Path) -> str:
    """A warning where the weights hardly fit into this machine's memory; '' where they do."""
    files = [model] if model.is_file() else [*model.glob("*.safetensors"), *model.glob("*.gguf")]
    size = sum(path.stat().st_size for path in files)
    if sys.platform != "linux" or size < FULL * (total := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        return ""
    return f"; its files have {bytes_text(size)}, this machine {bytes_text(total)} of memory"


def check_whole(model: Path) -> None:
    """UserError where a file is missing that the model's own list names."""
    for index in model.glob("*.safetensors.index.json"):
        named = set(_json(index).get("weight_map", {}).values())
        if missing := sorted(name for name in named if not (model / name).is_file()):
            raise UserError(
                f"{model.name} is not whole: {len(missing)} of its {len(named)} files of weights are missing",
                f"{index.name} names {', '.join(missing[:5])}",
                "copy or download them again, into the same folder",
            )


def named(model: Path) -> EngineSpec | None:
    """What an address (`https://…/v1`, `…/v1#model`) or `provider:model` means; None where `model` is neither."""
    text = str(model)
    if address := _ADDRESS.match(text):  # a path has lost one slash of two
        url, _, name = text[address.end() :].partition("#")
        return _spec("openai", base_url=f"{address[1]}://{url}", model=name)
    kind, colon, name = text.partition(":")
    if not colon or model.exists():
        return None
    if kind in ("ollama", "lmstudio"):
        return _spec(kind, model=name)
    return _spec("openai", provider=kind, model=name) if kind in PROVIDERS else None


def _spec(kind: str, **fields: str) -> EngineSpec:
    spec = ENGINES.load(kind).model_validate(fields)
    assert isinstance(spec, EngineSpec)
    return spec


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} of the model cannot be read", str(error), "copy or download it again") from None
    return tree if isinstance(tree, dict) else {}
