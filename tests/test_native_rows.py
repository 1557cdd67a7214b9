"""Rows of key/value memory: whatever is done to them, what comes next is what the model says of their tokens."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from modelwright.nn import _kv
from modelwright.nn._kv import Rows, open_rows
from modelwright.nn._plain import Plain
from tests import engine_kit as kit

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"num_key_value_heads": 4}),
    ("Qwen3", {"head_dim": 16}),
    ("Qwen3Moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    ("Gemma2", {"head_dim": 16, "sliding_window": 8, "initializer_range": 0.08}),
    ("GptOss", {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
]


def told(model: Any, tokens: list[int], places: int) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -places:].float()
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize(("kind", "sizes"), KINDS, ids=[f"{kind}{len(sizes)}" for kind, sizes in KINDS])
@torch.inference_mode()
def test_any_order_of_steps(kind: str, sizes: dict[str, Any], plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random steps: new rows, pieces of prompts, several tokens at once, forks, rewinds, kept rows, dropped rows."""
    monkeypatch.setattr(_kv, "SHARE", 6)
    reference, model = kit.model(kind, **sizes), kit.model(kind, **sizes)
    runner = Plain(model, 12, "asked for") if plain else open_rows(model, 12)
    assert plain or isinstance(runner, Rows)
    draw = random.Random(f"{kind}{plain}")
    rows: list[list[int]] = []
    kept: list[tuple[Any, list[int]]] = []
    shared = 0
    for _ in range(16 if plain else 40):
        deed = draw.choice(["begin", "fork", "rewind", "drop", "keep", "again", "none", "none"])
        row = draw.randrange(len(rows)) if rows else 0
        if deed == "begin" and len(rows) < 8:
            assert runner.begin() == len(rows)
            rows.append([])
        elif deed == "fork" and 0 < len(rows) < 8 and rows[row]:
            length = draw.randint(1, len(rows[row]))
            assert runner.fork(row, length) == len(rows)
            rows.append(rows[row][:length])
        elif deed == "rewind" and rows and rows[row]:
            del rows[row][draw.randint(1, len(rows[row])) :]
            runner.rewind(row, len(rows[row]))
        elif deed == "drop" and len(rows) > 1:
            runner.drop(row)
            rows[row] = rows[-1]
            rows.pop()
        elif deed == "keep" and runner.keeps and rows and rows[row]:
            kept.append((runner.keep(row), list(rows[row])))
        elif deed == "again" and kept and len(rows) < 8:
            memory, tokens = draw.choice(kept)
            length = draw.randint(1, len(tokens))
            assert runner.again(memory, length) == len(rows)
            rows.append(tokens[:length])
        if not rows:
            continue
        counts = [draw.choice([0, 1, 1, 1, 3, 20]) if tokens else draw.choice([1, 5, 20]) for tokens in rows]
        if not any(counts):
            counts[0] = 1
        new = [[draw.randrange(400) for _ in range(count)] for count in counts]
        ask = [draw.randint(0, count) for count in counts]
        first = next(at for at, count in enumerate(counts) if count)
        ask[first] = max(ask[first], 1)
        seen = runner.forward(new, ask)
        for tokens, more in zip(rows, new, strict=True):
            tokens += more
        assert runner.lengths == [len(tokens) for tokens in rows]
        wanted = [told(reference, tokens, places) for tokens, places in zip(rows, ask, strict=True) if places]
        assert float((seen.logits_RV - torch.cat(wanted)).abs().max()) < 2e-4
        assert seen.hidden_RE.shape == (sum(ask), 64)
        shared += sum(one is not None for one in runner.memory.shared) if isinstance(runner, Rows) else 0
        for tokens in [tokens for tokens in rows if len(tokens) > 90]:
            at = rows.index(tokens)
            runner.drop(at)
            rows[at] = rows[-1]
            rows.pop()
    assert plain or shared > 10
