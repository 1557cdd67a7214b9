"""Tiny Llama folders with a tokenizer and a chat template, for the tests of generation, engines and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = """import os, sys, math
class Point: def __init__(self, x: float, y: float) -> None: self.x = x; self.y = y
for name, value in sorted(values.items()): print(f"{name}: {value:.3f}")
while not found and count < 1000: count += 1; return False, None, True
with open(path, encoding="utf-8") as file: text = file.read(); raise ValueError("a message, and why it is so")
try: import json except ImportError: pass finally: yield from zip(first, second, strict=True)
What does the function return? Which parameters does it have? It raises an error when the number is too large.
"""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
}
PROMPTS = [list(range(10, 60)), list(range(10, 45)), [7, 8, 9], list(range(10, 60))]
"""Tokens: two are equal, one begins as they do, one is short."""
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tokenizer(pre: str = "smollm") -> Any:
    """A byte-level BPE of 400 tokens; `pre`: llama.cpp's name of the pre-tokenizer, or `words`, which it does not have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    first = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "gpt-2": [],
        "words": [pre_tokenizers.Punctuation()],
    }[pre]
    bare.pre_tokenizer = pre_tokenizers.Sequence([*first, last]) if first else last
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "def first(items: list[int]) -> int:\n    return items[0]\nthe cat sat on the mat in 1984. Привет, мир! 日本語 été\n"
    bare.train_from_iterator([text * 4, WORDS], trainer)
    full = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    full.chat_template = CHATML
    return full


def model(kind: str = "Llama", vocab: int = 400, **sizes: Any) -> Any:
    """A random model; weights are large enough that its next token is never a near tie."""
    import torch
    import transformers

    torch.manual_seed(0)
    names = {**SIZES, "vocab_size": vocab, "tie_word_embeddings": True, "eos_token_id": 2, "pad_token_id": 0, **sizes}
    return getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**names)).eval()


def folder(path: Path, pre: str = "smollm", kind: str = "Llama", **sizes: Any) -> Path:
    """Both, saved as a Hugging Face folder."""
    words = tokenizer(pre)
    model(kind, len(words), **sizes).save_pretrained(path)
    words.save_pretrained(path)
    return path


def adapter(path: Path, base: Any, seed: int, **settings: Any) -> Path:
    """A LoRA of the model `base` as PEFT saves it, with weights far from zero."""
    import peft
    import torch

    torch.manual_seed(seed)
    made = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.15)
    made.save_pretrained(path)
    return path
