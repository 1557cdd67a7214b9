"""What vLLM and older transformers need of a model's folder beside its weights.

Source: https://docs.vllm.ai/en/latest/configuration/model_resolution.html (`architectures` chooses vLLM's implementation),
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (a chat needs a template, `generation_config.json` gives the
defaults of sampling) and transformers' migration guide from 4 to 5, which renamed what is written here under both names: a
server's environment often has transformers 4, which passes over names that it does not know, without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError

_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
"""Names of tokenizer classes in transformers 5 that 4 does not have -> what both have."""


def both_names(folder: Path) -> None:
    """Say in the folder's configurations by the old names, too, what only the new ones say."""
    path = folder / "config.json"
    config = _read(path)
    rope = config.get("rope_parameters") or {}
    old: dict[str, Any] = {}
    if "dtype" in config:
        old["torch_dtype"] = config["dtype"]
    if "full_attention" in rope:  # Gemma 3
        old |= {
            "rope_theta": rope["full_attention"]["rope_theta"],
            "rope_local_base_freq": rope["sliding_attention"]["rope_theta"],
        }
        rope = rope["full_attention"]
    elif "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        old["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if config.get("model_type") in ("qwen3_moe", "olmoe") and "num_local_experts" in config:
        old["num_experts"] = config["num_local_experts"]
    _write(path, {**old, **config})
    path = folder / "tokenizer_config.json"
    words = _read(path)
    _write(path, {**words, "tokenizer_class": _CLASSES.get(words.get("tokenizer_class", ""), words.get("tokenizer_class"))})


def served(folder: Path, chat: bool, ends: frozenset[int]) -> dict[str, Any]:
    """What a server finds in the folder, for the manifest; UserError where `vllm serve` could not open it. `ends`: tokens that
    must end an answer."""
    config = _read(folder / "config.json")
    named = config.get("architectures") or []
    if len(named) != 1:
        raise UserError("config.json does not say what computes this model", f"architectures: {named}", "export it again")
    for name in ("tokenizer.json", "generation_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"the export lacks {name}", "vLLM reads it", "export a model folder with a fast tokenizer")
    if chat and not (folder / "chat_template.jinja").is_file() and "chat_template" not in _read(folder / "tokenizer_config.json"):
        raise UserError("the export lacks the model's chat template", fix="this is a bug: please report it")
    path = folder / "generation_config.json"
    settings = _read(path)
    stops = settings.get("eos_token_id")
    known = set(stops if isinstance(stops, list) else [stops]) - {None}
    if ends - known:  # a server that reads only this would talk on after the end of its turn
        merged = sorted(known | ends)
        _write(path, {**settings, "eos_token_id": merged if len(merged) > 1 else merged[0]})
    return {"architecture": named[0], "chat_template": chat, "end_tokens": sorted(known | ends)}


def _read(path: Path) -> dict[str, Any]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
