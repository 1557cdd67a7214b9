"""Which of llama.cpp's built-in pre-tokenizers a tokenizer has: they are known by name, a GGUF file cannot describe one.

Source: llama.cpp `src/llama-vocab.cpp` (the regular expressions by name) and the `tokenizer.json` format of
https://github.com/huggingface/tokenizers. A tokenizer that is none of them cannot be exported: a wrong name would cut
text in other places and quietly make the model worse.
"""

from __future__ import annotations

from typing import Any

from modelwright.core.errors import UserError

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe", _LETTERS + r"\p{N}" + _REST: "qwen2"}
NAMES = {"gpt2": "gpt-2", "gpt-2": "gpt-2", "smollm": "smollm", "llama-bpe": "llama-bpe", "qwen2": "qwen2"}
"""Spelling in `modelwright_pre` (tokenizer_config.json) -> llama.cpp's name."""


def name(tokenizer: dict[str, Any], config: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer in `tokenizer` (tokenizer.json's tree), checked against what `config` says."""
    if tokenizer["model"].get("type") != "BPE" or tokenizer["model"].get("byte_fallback"):
        raise UserError(
            "this tokenizer cannot be written to GGUF",
            "only byte-level BPE is supported, as GPT-2, Llama 3, Qwen and our own `bpe` use",
            "use a model with such a tokenizer",
        )
    found = _recognise(tokenizer.get("pre_tokenizer") or {})
    said = config.get("modelwright_pre")
    if said is not None and NAMES.get(said) != found:
        raise UserError(
            f"the tokenizer says that its pre-tokenizer is {said!r}, but transformers opens it as {found or 'another one'}",
            "its files were changed apart, or transformers puts its own in their place for this architecture",
            "train the tokenizer again, or use a Llama architecture",
        )
    if found is None:
        raise UserError(
            "llama.cpp does not know this tokenizer's way of splitting text",
            f"pre_tokenizer of tokenizer.json: {_short(tokenizer)}",
            "train the vocabulary with `method: {kind: bpe}`, whose pre-tokenizer llama.cpp has",
        )
    if bool(tokenizer["model"].get("ignore_merges")) != (found == "llama-bpe"):
        raise UserError(
            "llama.cpp would merge this tokenizer's words in another order",
            "`ignore_merges` differs from what its pre-tokenizer implies there",
            "train the vocabulary with `method: {kind: bpe}`",
        )
    return found


def _recognise(node: dict[str, Any]) -> str | None:
    parts = node["pretokenizers"] if node.get("type") == "Sequence" else [node]
    kinds = [part.get("type") for part in parts]
    if not parts or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and parts[-1].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[-1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not parts[-1].get("use_regex", True) and parts[0].get("behavior") == "Isolated":
        return _SPLITS.get(parts[0].get("pattern", {}).get("Regex", ""))
    return None


def _short(tokenizer: dict[str, Any]) -> str:
    text = str(tokenizer.get("pre_tokenizer"))
    return text if len(text) < 200 else text[:200] + "…"
