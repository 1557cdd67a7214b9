"""Beginnings that are computed once, prompts in pieces, and kept rows: the answers are those without any of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers

from modelwright.nn.generate import Decoder
from modelwright.nn.prefix import same
from modelwright.nn.sample import GREEDY, Draw
from tests import engine_kit as kit
from tests.test_generate import theirs

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Qwen3", {"head_dim": 16}),
    ("Gemma2", {"head_dim": 16, "sliding_window": 24, "initializer_range": 0.08}),
    ("Gemma3", {"head_dim": 16, "sliding_window": 24, "initializer_range": 0.08, "sliding_window_pattern": 2}),
    ("Qwen3Moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
]


def words(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 400) for _ in range(count)]


SHARED = words(70, 0)
PROMPTS = [
    *(SHARED + words(length, length) for length in (1, 5, 30, 12)),
    words(50, 1),
    *(SHARED[:40] + words(length, length) for length in (3, 45)),
    [9, 8, 7],
    SHARED,
]


def gemma3(**sizes: Any) -> Any:
    torch.manual_seed(0)
    names = {**kit.SIZES, "vocab_size": 400, "eos_token_id": 2, "pad_token_id": 0, **sizes}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**names)).eval()


def answers(decoder: Decoder, prompts: list[list[int]], tokens: int, draw: Draw = GREEDY) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for key, prompt in enumerate(prompts):
        decoder.add(key, prompt, tokens, draw._replace(seed=draw.seed + key))
    while decoder.busy:
        for step in decoder.step():
            found[step.key].append(step.token)
    return found


@pytest.mark.parametrize(("kind", "sizes"), KINDS, ids=[kind for kind, _ in KINDS])
def test_equal_to_transformers_however_it_is_cut(kind: str, sizes: dict[str, Any]) -> None:
    """Batches of 1, 3 and 16, whole prompts and pieces of 16 tokens, with and without memory kept of finished rows."""
    model = gemma3(**sizes) if kind == "Gemma3" else kit.model(kind, **sizes)
    wanted = [theirs(model, prompt, 10, []) for prompt in PROMPTS]
    for max_batch, prefill_tokens, keep_bytes in ((16, 2048, 0), (3, 16, 2**20), (1, 2048, 2**24), (16, 16, 0)):
        decoder = Decoder(model, (), max_batch, prefill_tokens, keep_bytes)
        assert decoder.why.startswith("packed")
        assert answers(decoder, PROMPTS, 10) == wanted, (max_batch, prefill_tokens, keep_bytes)
        if keep_bytes != 2**20:
            saved = sum(map(len, PROMPTS)) + 9 * len(PROMPTS) - decoder.computed_tokens
            assert (saved >= 4 * len(SHARED)) == (max_batch > 1 or keep_bytes > 0)
        decoder.close()


def test_a_later_request_and_a_chat_that_goes_on() -> None:
    model = kit.model()
    decoder = Decoder(kit.model())
    prompt = SHARED + words(9, 3)
    (first,) = answers(decoder, [prompt], 12)
    turn = [*prompt, *first, *words(6, 4)]
    before = decoder.computed_tokens
    (second,) = answers(decoder, [turn], 8)
    assert second == theirs(model, turn, 8, [])
    assert decoder.computed_tokens - before == 1 + 6 + 7, "the answer's last token was never computed"
    before = decoder.computed_tokens
    assert answers(decoder, [prompt], 12) == [first]
    assert decoder.computed_tokens - before == 12, "the prompt's last token and the answer"
    decoder.close()


def test_rows_share_while_one_is_far_ahead() -> None:
    """The second request comes when the first is in the middle of its answer, the third when the first has gone."""
    model = kit.model()
    decoder = Decoder(kit.model(), keep_bytes=0)
    prompts = [SHARED + words(4, seed) for seed in range(3)]
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    decoder.add(0, prompts[0], 9)
    for number in range(30):
        for step in decoder.step():
            found[step.key].append(step.token)
        if number in (4, 10):
            decoder.add(1 if number == 4 else 2, prompts[1 if number == 4 else 2], 9)
    assert [found[key] for key in range(3)] == [theirs(model, prompt, 9, []) for prompt in prompts]
    assert decoder.computed_tokens == len(prompts[0]) + 2 * 4 + 3 * 8
    decoder.close()


def test_a_draw_does_not_depend_on_sharing() -> None:
    model, draw = kit.model(), Draw(temperature=1.4, top_p=0.9, seed=5)
    alone = [
        answers(Decoder(kit.model(), keep_bytes=0), [prompt], 8, draw._replace(seed=5 + key))
        for key, prompt in enumerate(PROMPTS)
    ]
    assert answers(Decoder(model, max_batch=4, prefill_tokens=20), PROMPTS, 8, draw) == [row[0] for row in alone]


def test_rows_under_way_are_not_held_up_by_a_long_prompt() -> None:
    decoder = Decoder(kit.model(), prefill_tokens=16)
    decoder.add(0, words(4, 0), 40)
    decoder.step()
    decoder.add(1, words(160, 1), 2)
    seen = [[step.key for step in decoder.step()] for _ in range(11)]
    assert seen[:9] == [[0]] * 9 and sorted(seen[9]) == [0, 1] and sorted(seen[10]) == [0, 1]


def test_kept_memory_is_bounded() -> None:
    decoder = Decoder(kit.model(), keep_bytes=200_000)
    row_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, float32
    for seed in range(20):
        answers(decoder, [words(60, seed)], 2)
        assert decoder._finished.bytes <= 200_000
    assert decoder._finished.bytes == 200_000 // (61 * row_bytes) * 61 * row_bytes
    before = decoder.computed_tokens
    answers(decoder, [words(60, 19)], 2)
    assert decoder.computed_tokens - before == 2, "the newest is there"
    answers(decoder, [words(60, 0)], 2)
    assert decoder.computed_tokens - before == 2 + 61, "the oldest is not"


def test_bf16_differs_only_where_it_is_close() -> None:
    """Equal up to the first step whose two likeliest tokens are nearer than what bf16 moves a pair of logits by, at the most."""
    half, plain = (kit.model().to(torch.bfloat16) for _ in range(2))
    exact = kit.model().to(torch.bfloat16).float()  # of the same weights
    compared = 0
    with torch.no_grad():
        for prompt, answer in zip(PROMPTS, answers(Decoder(half, max_batch=4), PROMPTS, 10), strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            logits_TV, rounded_TV = (kind(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() for kind in (exact, plain))
            noise = 2 * float((logits_TV - rounded_TV).abs().max())
            for token, logits_V in zip(answer, logits_TV, strict=True):
                first, second = logits_V.topk(2).values.tolist()
                if first - second < noise:
                    break
                assert token == int(logits_V.argmax())
                compared += 1
    assert compared > 30


def test_how_long_two_begin_alike() -> None:
    draw = random.Random(0)
    for _ in range(200):
        one = [draw.randrange(2) for _ in range(draw.randrange(8))]
        other = [draw.randrange(2) for _ in range(draw.randrange(8))]
        assert same(one, other) == next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
