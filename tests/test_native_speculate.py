"""Speculation: greedy answers are those without it, draws follow the row's own distribution, whatever proposes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core.errors import UserError
from modelwright.methods.engines import ENGINES, Request, Sampling, Speculate, open_engine
from modelwright.nn.generate import Decoder
from modelwright.nn.sample import Draw, distribution
from modelwright.nn.speculate import Ask, Draft, Guess, Lookup, Proposal, layer_skip
from tests import engine_kit as kit
from tests.test_native_shared import PROMPTS, SHARED, answers


class Parrot:
    """Proposes what it is told, from a distribution that is far from the model's."""

    def __init__(self, known: list[list[int]], wrong_every: int = 0) -> None:
        self.known, self.wrong_every, self.forgotten = known, wrong_every, 0

    def propose(self, asks: Sequence[Ask]) -> list[Guess]:
        found = []
        for ask in asks:
            whole = next(known for known in reversed(self.known) if known[: len(ask.tokens)] == ask.tokens)
            tokens = whole[len(ask.tokens) :][: ask.most]
            if self.wrong_every and len(ask.tokens) % self.wrong_every == 0:
                tokens = [*tokens[:1], 7, *tokens[2:]]
            found.append(Guess(tokens))
        return found

    def forget(self, key: int) -> None:
        self.forgotten += 1


def told(
    decoder: Decoder, prompts: list[list[int]], tokens: int, proposer: Any, draw: Draw, most: int = 4
) -> tuple[Any, int, int]:
    found: list[list[int]] = [[] for _ in prompts]
    proposed = accepted = 0
    for key, prompt in enumerate(prompts):
        decoder.add(
            key, prompt, tokens, draw._replace(seed=draw.seed + key), None, Proposal(proposer, most) if proposer else None
        )
    while decoder.busy:
        for step in decoder.step():
            found[step.key].append(step.token)
            proposed, accepted = proposed + step.proposed, accepted + step.accepted
    return found, proposed, accepted


@pytest.mark.parametrize("kind", ["lookup", "draft", "layer_skip", "right", "half right"])
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_greedy_answers_are_those_without(kind: str, family: str) -> None:
    sizes = {"head_dim": 16, "sliding_window": 24, "initializer_range": 0.08} if family == "Gemma2" else {"num_hidden_layers": 3}
    plain = answers(Decoder(kit.model(family, **sizes)), PROMPTS, 20)
    decoder = Decoder(kit.model(family, **sizes), max_batch=4, prefill_tokens=50)
    whole = [[*prompt, *answer] for prompt, answer in zip(PROMPTS, plain, strict=True)]
    proposer: Any = {
        "lookup": lambda: Lookup(3),
        "draft": lambda: Draft(Decoder(kit.model(family, **sizes, num_attention_heads=2)).runner),
        "layer_skip": lambda: layer_skip(decoder.runner, [1]),
        "right": lambda: Parrot(whole),
        "half right": lambda: Parrot(whole, wrong_every=2),
    }[kind]()
    found, proposed, accepted = told(decoder, PROMPTS, 20, proposer, Draw())
    assert found == plain
    assert 0 <= accepted <= proposed and proposed > 0
    if kind == "right":
        assert accepted == proposed
    if kind == "half right":
        assert 0 < accepted < proposed
    if isinstance(proposer, Draft):
        assert proposer._runner.lengths == [], "rows that ended are forgotten"


def test_stop_tokens_and_lengths_hold_within_a_pass() -> None:
    (plain,) = answers(Decoder(kit.model()), [SHARED], 20)
    for end in range(1, 8):
        decoder = Decoder(kit.model(), [plain[end]])
        (found,), _, _ = told(decoder, [SHARED], 20, Parrot([SHARED + plain]), Draw(), most=5)
        assert found == plain[: plain.index(plain[end]) + 1]
        (found,), _, _ = told(decoder, [SHARED], end, Parrot([SHARED + plain]), Draw(), most=5)
        assert found == plain[: min(end, plain.index(plain[end]) + 1)]
        assert not decoder.busy


def test_what_is_looked_up_draws_the_very_same_tokens() -> None:
    draw = Draw(temperature=0.7, top_p=0.9, seed=3)
    looped = [prompt * 3 for prompt in PROMPTS[:5]]
    plain = answers(Decoder(kit.model()), looped, 12, draw)
    found, proposed, _ = told(Decoder(kit.model(), max_batch=3), looped, 12, Lookup(2), draw)
    assert found == plain and proposed > 0


class Count:
    """A rule with a memory: forbids the token that was drawn last, and counts calls that were not followed by `accept`."""

    def __init__(self) -> None:
        self.last, self.pending = -1, 0

    def __call__(self, logits_V: Any) -> Any:
        self.pending += 1
        assert self.pending == 1
        if self.last >= 0:
            logits_V[self.last] = -1e9
        return logits_V

    def accept(self, token: int) -> None:
        assert token != self.last
        self.last, self.pending = token, 0


def test_rules_see_every_token_once() -> None:
    def asked(proposer: Any, temperature: float) -> list[int]:
        decoder = Decoder(kit.model(num_hidden_layers=3))
        chosen = layer_skip(decoder.runner, [1]) if proposer == "skip" else proposer
        draw = Draw(temperature, seed=1, rule=Count())
        return list(told(decoder, [SHARED * 2], 30, chosen, draw)[0][0])

    assert asked(None, 0) == asked(Lookup(1), 0) == asked("skip", 0)
    assert asked(None, 1.5) == asked(Lookup(1), 1.5)
    assert len(asked("skip", 1.5)) == 30


@pytest.mark.parametrize("cut", [{}, {"top_k": 6}, {"top_p": 0.6}])
def test_drawn_tokens_follow_the_rows_own_distribution(cut: dict[str, Any]) -> None:
    """The second and third token of 1,200 answers of one request: those of a draft are verified and replaced. Chi-square against
    the exact probabilities, given the token before; 5 sigma, with a fixed seed."""
    model = kit.model(vocab=24, num_hidden_layers=3)
    decoder = Decoder(model, max_batch=500)
    draw = Draw(temperature=0.8, seed=100, **cut)
    prompt = [5, 6, 7]
    found, proposed, accepted = told(decoder, [prompt] * 1200, 3, layer_skip(decoder.runner, [1]), draw)
    assert 0.1 < accepted / proposed < 0.95
    decoder.close()
    for place in (1, 2):
        starts: dict[tuple[int, ...], list[int]] = {}
        for answer in found:
            starts.setdefault(tuple(answer[:place]), []).append(answer[place])
        chi2, freedom = 0.0, 0
        for start, drawn in sorted(starts.items(), key=lambda pair: -len(pair[1]))[:3]:
            with torch.no_grad():
                logits_V = model(input_ids=torch.tensor([[*prompt, *start]])).logits[0, -1]
            prob_V = distribution(logits_V, draw)
            assert all(float(prob_V[token]) > 0 for token in drawn)
            common = [token for token in prob_V.argsort(descending=True).tolist() if float(prob_V[token]) * len(drawn) >= 5]
            counts = [drawn.count(token) for token in common]
            shares = [float(prob_V[token]) for token in common]
            counts, shares = [*counts, len(drawn) - sum(counts)], [*shares, 1 - sum(shares)]
            parts = [
                (count - share * len(drawn)) ** 2 / (share * len(drawn))
                for count, share in zip(counts, shares, strict=True)
                if share * len(drawn) > 1
            ]
            chi2, freedom = chi2 + sum(parts), freedom + len(parts) - 1
        assert freedom >= 3 and abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_draws_do_not_depend_on_the_batch() -> None:
    draw = Draw(temperature=1.2, seed=4)

    def asked(max_batch: int, prompts: list[list[int]], seed: int) -> Any:
        decoder = Decoder(kit.model(num_hidden_layers=3), max_batch=max_batch)
        return told(decoder, prompts, 10, layer_skip(decoder.runner, [1]), draw._replace(seed=seed))[0]

    alone = [asked(1, [prompt], 4 + number)[0] for number, prompt in enumerate(PROMPTS)]
    assert asked(4, PROMPTS, 4) == alone


def test_a_recurrent_model_forgets_what_was_not_accepted() -> None:
    """Its state cannot go back: it is computed again."""
    model, prompts = kit.model("Mamba", state_size=8), [prompt[:20] * 2 for prompt in PROMPTS[:2]]
    decoder = Decoder(kit.model("Mamba", state_size=8), prefill_tokens=16)
    assert decoder.why.startswith("one row at a time")
    found, proposed, accepted = told(decoder, prompts, 6, Lookup(2), Draw())
    assert proposed > accepted
    for prompt, answer in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        assert answer == logits_TV.argmax(-1).tolist()


def test_lookup() -> None:
    def after(tokens: list[int], ngram: int, most: int) -> list[int]:
        return Lookup(ngram).propose([Ask(0, tokens, most, Draw())])[0].tokens

    assert after([1, 2, 3, 9, 1, 2], 2, 3) == [3, 9, 1]
    assert after([1, 2, 3, 2, 4, 1, 2], 3, 2) == [3, 2], "two fit, three do not"
    assert after([1, 2, 3, 2, 4, 2], 1, 2) == [4, 2], "the newest place"
    assert after([1, 2, 3], 3, 2) == [] and after([5], 3, 2) == []
    draw = random.Random(1)
    for _ in range(300):
        tokens = [draw.randrange(3) for _ in range(draw.randrange(1, 9))]
        found = after(tokens, 3, 4)
        for length in (3, 2, 1):
            ends = [end for end in range(length, len(tokens)) if tokens[end - length : end] == tokens[-length:]]
            if len(tokens) > length and ends:
                assert found == tokens[ends[-1] :][:4]
                break
        else:
            assert found == []


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "model": kit.folder(tmp_path_factory.mktemp("model"), num_hidden_layers=3),
        "draft": kit.folder(tmp_path_factory.mktemp("draft"), num_hidden_layers=1),
        "other": kit.folder(tmp_path_factory.mktemp("other"), pre="gpt-2", num_hidden_layers=1),
    }


def test_the_engine_speculates(folders: dict[str, Path]) -> None:
    with open_engine(folders["model"], ENGINES.load("native")(threads=1, device="cpu")) as engine:
        assert "speculate" in engine.capabilities
        prompt = engine.encode("def first(items): return items[0]\n" * 3)
        plain = Request(prompt, Sampling(max_tokens=24))
        (wanted,) = engine.generate([plain])
        assert wanted.proposed == wanted.accepted == 0
        kinds = [Speculate("lookup"), Speculate("draft", model=folders["draft"]), Speculate("layer_skip", 3, layers=(1,))]
        for how, found in zip(kinds, engine.generate([plain._replace(speculate=how) for how in kinds]), strict=True):
            assert found.tokens == wanted.tokens and found.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
            assert 0 <= found.accepted <= found.proposed and found.proposed > 0, how
        with pytest.raises(UserError, match="cannot leave out the layers"):
            engine.generate([plain._replace(speculate=Speculate("layer_skip", layers=(9,)))])
        with pytest.raises(UserError, match="no draft model is named"):
            engine.generate([plain._replace(speculate=Speculate("draft"))])
        for wrong in (Speculate("lookup", 0), Speculate("lookup", ngram=0)):
            with pytest.raises(UserError, match="at least one"):
                engine.generate([plain._replace(speculate=wrong)])
        assert engine.generate([plain])[0].tokens == wanted.tokens, "the engine goes on"


def test_a_draft_has_the_same_tokens(folders: dict[str, Path]) -> None:
    with open_engine(folders["model"], ENGINES.load("native")(threads=1, device="cpu")) as engine:
        asked = Request(engine.encode("def"), Sampling(max_tokens=4), speculate=Speculate("draft", model=folders["other"]))
        with pytest.raises(UserError, match="other tokens"):
            engine.generate([asked])
