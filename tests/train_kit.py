"""Tiny models, tokenizers and rows made on the spot, for the tests of training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from modelwright.core.events import Log
from modelwright.core.record import Record, write_records
from modelwright.core.stage import STAGES, Input, Run

WORDS = "the a red green blue fox dog cat jumps runs sleeps over under near lazy quick small house tree river".split()
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(folder: Path) -> Path:
    """A byte-level BPE of 300 tokens with ChatML's marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=list(CHATML), initial_alphabet=alphabet, show_progress=False)
    bare.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=CHATML[0]).save_pretrained(folder)
    return folder


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def texts(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [Record(f"text-{i}", text=sentence(rng, rng.randint(5, 25))) for i in range(count)]


def chats(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    return [
        Record(
            f"chat-{i}",
            messages=[
                {"role": "user", "content": sentence(rng, rng.randint(3, 9))},
                {"role": "assistant", "content": sentence(rng, rng.randint(2, 9))},
            ],
        )
        for i in range(count)
    ]


def pairs(count: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)

    def answer() -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": sentence(rng, rng.randint(2, 7))}]

    return [
        Record(f"pair-{i}", messages=[{"role": "user", "content": sentence(rng, 6)}], chosen=answer(), rejected=answer())
        for i in range(count)
    ]


def records(folder: Path, rows: list[Record]) -> Input:
    """Rows as another stage would leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "all.jsonl", rows)
    return Input("data", "records", folder)


def run_of(out: Path, inputs: dict[str, Input], seed: int = 0, events: list[tuple[str, dict[str, Any]]] | None = None) -> Run:
    out.mkdir(parents=True, exist_ok=True)

    def listen(event: str, fields: dict[str, Any]) -> None:
        if events is not None:
            events.append((event, json.loads(json.dumps(fields))))

    return Run(out, inputs, seed, Log(None, listen))


def stage(**fields: Any) -> Any:
    """A training stage at tiny size; `fields` replace the defaults."""
    tree = {
        "kind": "train",
        "data": "data",
        "vocab": "vocab",
        "model": {"kind": "llama", "depth": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48},
        "objective": "next_token",
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "schedule": {"kind": "constant", "warmup": 2},
        "length": 64,
        "batch_tokens": 128,
        "steps": 6,
        "threads": 1,
        "micro_tokens": 64,
        "log_every": 2,
        **fields,
    }
    if "start" in tree:
        tree.pop("vocab"), tree.pop("model")
    if "epochs" in tree:
        tree.pop("steps")
    return STAGES.load("train").model_validate({k: v for k, v in tree.items() if v is not None})
