"""Our decoding against transformers' own, token for token, and its independence of what else is in the batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from modelwright.nn.generate import Decoder, chat_template, end_tokens, generate
from tests import engine_kit as kit

LENGTHS = (1, 3, 40, 9, 17, 2, 30)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return kit.model()


def prompts(seed: int = 0, vocab: int = 400) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab) for _ in range(length)] for length in LENGTHS]


def theirs(model: Any, prompt: list[int], tokens: int, stop: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=stop or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


KINDS = [
    ("Llama", {}, True),
    ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}, True),
    ("Llama", {"num_key_value_heads": 1, "head_dim": 32}, True),
    ("Qwen3", {"head_dim": 16}, True),
    ("Mistral", {"sliding_window": 8}, True),
    ("Gemma2", {"head_dim": 16, "sliding_window": 8, "initializer_range": 0.08}, True),
    ("GptOss", {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, True),
]


@pytest.mark.parametrize(("kind", "sizes", "packed"), KINDS, ids=[f"{kind}-{len(sizes)}" for kind, sizes, _ in KINDS])
def test_greedy_equals_transformers(kind: str, sizes: dict[str, Any], packed: bool) -> None:
    """Seven prompts of different lengths through four rows: rows leave and enter in the middle."""
    model = kit.model(kind, **sizes)
    decoder = Decoder(model)
    assert decoder.why.startswith("packed" if packed else "one row at a time")
    decoder.close()
    stop = list(range(60))
    found = generate(model, prompts(), 16, stop, max_batch=4)
    assert [answer.tokens for answer in found] == [theirs(model, prompt, 16, stop) for prompt in prompts()]
    assert {answer.finish for answer in found} == {"stop", "length"} or kind != "Llama"
    for answer in found:
        assert (answer.finish == "stop") == (answer.tokens[-1] in stop)


def test_logprobs_are_those_of_a_full_forward_pass(model: Any) -> None:
    sequences = prompts(1)
    decoder = Decoder(model, prefill_tokens=32)
    scored = decoder.score(sequences)
    decoder.close()
    answers = generate(model, sequences, 6, temperature=1.3, seed=3)
    assert [len(row) for row in scored] == [length - 1 for length in LENGTHS]
    for sequence, got, answer in zip(sequences, scored, answers, strict=True):
        whole = sequence + answer.tokens
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        wanted = logp[:-1].gather(1, torch.tensor(whole[1:])[:, None])[:, 0].tolist()
        assert got == pytest.approx(wanted[: len(sequence) - 1], abs=1e-4)
        assert answer.logprobs == pytest.approx(wanted[len(sequence) - 1 :], abs=1e-4)


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.8}])
def test_a_draw_does_not_depend_on_the_batch(model: Any, cut: dict[str, Any]) -> None:
    together = generate(model, prompts(), 12, temperature=1.5, seed=7, max_batch=3, **cut)
    alone = [generate(model, [prompt], 12, temperature=1.5, seed=7 + i, **cut)[0] for i, prompt in enumerate(prompts())]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    other = generate(model, prompts(), 12, temperature=1.5, seed=8, **cut)
    assert [answer.tokens for answer in other] != [answer.tokens for answer in together]


def test_draws_follow_the_distribution(model: Any) -> None:
    """2,000 draws of one token against the exact probabilities after temperature, top-k and the nucleus."""
    prompt = prompts()[1]
    with torch.no_grad():
        prob = (model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / 2.0).softmax(-1)
    order = prob.argsort(descending=True)
    for cut, kept in (({}, 400), ({"top_k": 3}, 3), ({"top_p": 0.5}, int((prob[order].cumsum(0) < 0.5).sum()) + 1)):
        draws = [
            answer.tokens[0] for answer in generate(model, [prompt] * 2000, 1, temperature=2.0, seed=11, max_batch=500, **cut)
        ]
        wanted = prob[order[:kept]] / prob[order[:kept]].sum()
        assert set(draws) <= set(order[:kept].tolist())
        for token, share in list(zip(order.tolist(), wanted.tolist(), strict=False))[:3]:
            assert draws.count(token) / 2000 == pytest.approx(share, abs=4 * (share * (1 - share) / 2000) ** 0.5 + 1e-9)


def test_nucleus_beyond_the_first_candidates(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    import modelwright.nn.sample as module

    wide = generate(model, prompts(), 8, temperature=5.0, top_p=0.97, seed=1)
    monkeypatch.setattr(module, "_CANDIDATES", 4)
    narrow = generate(model, prompts(), 8, temperature=5.0, top_p=0.97, seed=1)
    assert [answer.tokens for answer in narrow] == [answer.tokens for answer in wide]


def test_cancel_leaves_the_others_alone(model: Any) -> None:
    expected = [answer.tokens for answer in generate(model, prompts(), 10)]
    decoder = Decoder(model, max_batch=4)
    for key, prompt in enumerate(prompts()):
        decoder.add(key, prompt, 10)
    got: dict[int, list[int]] = {key: [] for key in range(len(LENGTHS))}
    steps = 0
    while decoder.busy:
        for step in decoder.step():
            got[step.key].append(step.token)
        steps += 1
        if steps == 3:
            for key in (0, 2, 6):  # two under way, one waiting
                decoder.cancel(key)
    decoder.close()
    assert [len(got[key]) for key in (0, 2, 6)] == [3, 3, 0]
    assert all(got[key] == expected[key] for key in (1, 3, 4, 5))


def test_the_model_is_given_back_as_it_was() -> None:
    model = kit.model()
    model.train()
    before = model.config._attn_implementation
    seen: list[int] = []
    generate(model, prompts()[:2], 3, each=lambda step: seen.append(step.key))
    assert model.training and model.config._attn_implementation == before
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]


def test_bf16_is_close() -> None:
    model = kit.model(num_key_value_heads=4)
    exact = Decoder(model).score(prompts())
    half = Decoder(kit.model(num_key_value_heads=4).to(torch.bfloat16))
    assert half.why.startswith("packed")
    pairs = [(a, b) for one, two in zip(exact, half.score(prompts()), strict=True) for a, b in zip(one, two, strict=True)]
    assert sum(abs(a - b) for a, b in pairs) / len(pairs) < 0.05


def test_end_tokens() -> None:
    words = kit.tokenizer()
    assert end_tokens(words) == {2}
    assert end_tokens(words, 0, [5, 6], None) == {0, 2, 5, 6}
    words.eos_token = "<|endoftext|>"
    assert end_tokens(words) == {0, 2}, "the mark that the template puts after an answer"
    words.chat_template = {"default": kit.CHATML, "tools": "x"}
    assert chat_template(words) == kit.CHATML
    words.chat_template = "{{ raise_exception('no') }}"
    assert end_tokens(words) == {0}
