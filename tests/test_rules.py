"""Rules on logits: the same tokens are left, as likely, as by transformers' own processors; numpy's path and torch's agree."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from modelwright.core.errors import UserError
from modelwright.methods.engines import Sampling
from modelwright.methods.engines._draw import Dial, choose
from modelwright.methods.engines._rules import Rules, behind, check, cut, rule_of

VOCAB = 300
ALONE: list[dict[str, Any]] = [
    {"min_p": 0.05},
    {"typical_p": 0.4},
    {"typical_p": 0.95},
    {"eta": 0.01},
    {"eta": 0.3},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"logit_bias": ((3, 5.0), (7, -100.0))},
    {"top_k": 20, "min_p": 0.02},
    {"top_p": 0.8, "min_p": 0.02},
    {"top_k": 50, "top_p": 0.9, "typical_p": 0.7, "temperature": 1.7},
    {"top_p": 1e-6, "eta": 0.1},
]


def some_logits(seed: int) -> Any:
    return np.random.default_rng(seed).normal(scale=1 + seed % 4, size=VOCAB).astype(np.float32)


def by_transformers(logits_V: Any, sampling: Sampling, tokens: list[int], answer: list[int]) -> Any:
    """transformers' processors in the order of its `_get_logits_processor`, OpenAI's penalties where custom ones are put."""
    import torch
    from transformers.generation import logits_process as theirs

    ids, scores = torch.tensor([tokens + answer]), torch.from_numpy(logits_V.copy())[None]
    found: list[Any] = []
    if sampling.logit_bias:
        found.append(theirs.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias]))
    if sampling.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))

    def openai(ids: Any, scores: Any) -> Any:
        for token, count in Counter(answer).items():
            scores[0, token] -= count * sampling.frequency_penalty + sampling.presence_penalty
        return scores

    found.append(openai)
    if sampling.temperature > 0:
        found.append(theirs.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            found.append(theirs.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(theirs.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0:
            found.append(theirs.MinPLogitsWarper(sampling.min_p))
        if sampling.typical_p < 1:
            found.append(theirs.TypicalLogitsWarper(sampling.typical_p))
        if sampling.eta > 0:
            found.append(theirs.EtaLogitsWarper(sampling.eta))
    for processor in found:
        scores = processor(ids, scores)
    return scores[0].numpy()


def ours(logits_V: Any, sampling: Sampling, tokens: list[int], answer: list[int]) -> Any:
    """Logits divided by the temperature, as a rule and the engine behind it leave them."""
    rule = rule_of(sampling, tokens)
    for token in answer if rule is not None else ():
        rule.accept(token)
    ruled_V = logits_V.copy() if rule is None else rule(logits_V.copy())
    left = behind(sampling)
    return ruled_V if sampling.temperature == 0 else cut(ruled_V, left)


def agree(sampling: Sampling, seed: int) -> None:
    check(sampling, VOCAB)
    rng = random.Random(seed)
    tokens, answer = ([rng.randrange(VOCAB) for _ in range(count)] for count in (12, 9))
    answer += answer[:4]
    theirs_V, ours_V = (f(some_logits(seed), sampling, tokens, answer) for f in (by_transformers, ours))
    assert np.array_equal(np.isfinite(ours_V), np.isfinite(theirs_V)), sampling
    kept = np.isfinite(ours_V)
    assert kept.any() and ours_V[kept] == pytest.approx(theirs_V[kept], abs=1e-5, rel=1e-5)
    left_V, wanted_V = (np.exp(x[kept] - x[kept].max()) / np.exp(x[kept] - x[kept].max()).sum() for x in (ours_V, theirs_V))
    assert left_V == pytest.approx(wanted_V, abs=1e-6)


@pytest.mark.parametrize("fields", ALONE, ids="-".join)
def test_each_rule_leaves_what_transformers_leaves(fields: dict[str, Any]) -> None:
    for seed in range(8):
        agree(Sampling(**{"temperature": 1.0, **fields}), seed)


def test_rules_together_leave_what_transformers_leaves() -> None:
    for seed in range(120):
        rng = random.Random(seed)

        def some(value: Any, neutral: Any, rng: random.Random = rng) -> Any:
            return value if rng.random() < 0.5 else neutral

        agree(
            Sampling(
                temperature=some(rng.uniform(0.3, 2.5), 1.0),
                top_p=some(rng.uniform(0.2, 0.99), 1.0),
                top_k=some(rng.randrange(1, 2 * VOCAB), 0),
                min_p=some(rng.uniform(0.001, 0.3), 0.0),
                typical_p=some(rng.uniform(0.1, 0.99), 1.0),
                eta=some(rng.uniform(1e-4, 0.3), 0.0),
                repetition_penalty=some(rng.uniform(0.7, 1.6), 1.0),
                frequency_penalty=some(rng.uniform(-2, 2), 0.0),
                presence_penalty=some(rng.uniform(-2, 2), 0.0),
                logit_bias=some(tuple((token, rng.uniform(-5, 5)) for token in rng.sample(range(VOCAB), 5)), ()),
            ),
            seed,
        )


def test_numpy_and_torch_draw_the_same_tokens() -> None:
    import torch

    from modelwright.nn.sample import Draw, sample

    for seed in range(20):
        sampling = Sampling(temperature=0.9, top_p=0.9, top_k=40, frequency_penalty=0.5, min_p=0.01 * (seed % 2), seed=seed)
        left, logits_V, uniform = behind(sampling), some_logits(seed), random.Random(seed).random()
        numpy_rule, torch_rule = (rule_of(sampling, [1, 2, 3]) for _ in range(2))
        for _ in range(4):
            one = choose(logits_V[None], [Dial(left.temperature, left.top_p, left.top_k, uniform, numpy_rule, 2)])[0]
            draw = Draw(left.temperature, left.top_p, left.top_k, seed, torch_rule, 2)
            two = sample(torch.from_numpy(logits_V)[None], [draw], [uniform])[0]
            assert one.token == two.token and one.logprob == pytest.approx(two.logprob, abs=1e-5)
            assert [token for token, _ in one.top] == [token for token, _ in two.top]


def test_penalties_by_openais_formula() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the answer's tokens alone."""
    rule = Rules(Sampling(frequency_penalty=0.5, presence_penalty=0.25), prompt=[1, 1, 1], grammar=None)
    for token in (2, 2, 3):
        rule.accept(token)
    assert rule(np.zeros(5, dtype=np.float32)).tolist() == [0, 0, -1.25, -0.75, 0]
    repeated = Rules(Sampling(repetition_penalty=2.0), prompt=[1, 1], grammar=None)
    repeated.accept(2)
    assert repeated(np.array([4, 4, -4, 4], dtype=np.float32)).tolist() == [4, 2, -8, 4]


def test_a_copy_goes_its_own_way() -> None:
    rule = rule_of(Sampling(presence_penalty=1.0), [])
    assert rule is not None
    rule.accept(0)
    other = rule.copy()
    other.accept(1)
    zeros = np.zeros(3, dtype=np.float32)
    assert rule(zeros.copy()).tolist() == [-1, 0, 0] and other(zeros.copy()).tolist() == [-1, -1, 0]


def test_no_rule_where_nothing_asks_for_one() -> None:
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9), Sampling(min_p=0.1, typical_p=0.5, eta=0.1)):
        assert rule_of(sampling, [1]) is None and behind(sampling) == sampling
    assert behind(Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1))[1:4] == (1.0, 1.0, 0)


def test_ties_and_banned_tokens() -> None:
    sampling = Sampling(temperature=1.0, min_p=0.1, typical_p=0.9, eta=0.1)
    even = cut(np.zeros(8, dtype=np.float32), sampling)
    assert np.isfinite(even).sum() == 8, "equally likely tokens: typical keeps 0.9 of the mass, rounded up"
    one = np.full(8, -np.inf, dtype=np.float32)
    one[3] = 1.0
    assert np.flatnonzero(np.isfinite(cut(one, sampling._replace(top_p=0.5, top_k=2)))).tolist() == [3]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2.0},
        {"typical_p": 0.0},
        {"eta": -0.1},
        {"repetition_penalty": 0.0},
        {"top_logprobs": -1},
        {"logit_bias": ((VOCAB, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, math.nan),)},
        {"frequency_penalty": math.nan},
    ],
    ids=str,
)
def test_settings_that_mean_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        check(Sampling(**fields), VOCAB)
