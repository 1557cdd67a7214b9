"""Decoders: beams against transformers and against a search without any cache, the others against their formulas."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from modelwright.core.errors import UserError
from modelwright.methods.decoders import DECODERS, Decoded, Decoder, mean_logprob, seed_of
from modelwright.methods.engines import ENGINES, Completion, Constraint, Request, Sampling, open_engine
from tests import engine_kit as kit
from tests.decoder_kit import Scripted, said

STOPS = list(range(340, 398))
"""So many tokens end an answer that random models end some."""
FEW = STOPS[:8]
PROMPT = list(range(40, 52))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(path: Path, seed: int = 0, kind: str = "Llama", stops: Sequence[int] = FEW, **sizes: Any) -> Path:
    words = kit.tokenizer()
    model = kit.model(kind, len(words), **sizes)
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.15)
    model.generation_config.eos_token_id = list(stops)
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def opened(path: Path) -> Any:
    return open_engine(path, ENGINES.load("native")(threads=1, device="cpu"))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(save(tmp_path_factory.mktemp("model"))) as found:
        yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same weights under transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(save(tmp_path_factory.mktemp("same"))).eval()


def decoder(kind: str, **fields: Any) -> Any:
    return DECODERS.load(kind)(**fields)


def asked(tokens: Sequence[int] = PROMPT, most: int = 10, **sampling: Any) -> Request:
    return Request(tokens, Sampling(most, **sampling))


# --- beams --------------------------------------------------------------------------------------------------

BEAMS: list[dict[str, Any]] = [
    {"beams": 4},
    {"beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"beams": 5, "length_penalty": -1.0},
    {"beams": 2, "early_stopping": True},
]


@pytest.mark.parametrize("seed", range(3))
def test_beams_are_those_of_transformers(seed: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = save(tmp_path, seed, stops=STOPS)
    theirs = AutoModelForCausalLM.from_pretrained(path).eval()
    ends = set()
    with opened(path) as engine:
        for fields in BEAMS:
            for prompt in (PROMPT, PROMPT[:3], [7 * n % 400 for n in range(20, 60)]):
                found = decoder("beam", **fields).run(engine, asked(prompt))
                wanted = _transformers_beams(theirs, prompt, fields)
                assert [list(c.tokens) for c in found.completions] == [tokens for tokens, _ in wanted]
                assert list(found.scores) == pytest.approx([score for _, score in wanted], abs=1e-4)
                ends |= {c.finish for c in found.completions}
                assert found.tokens_spent >= max(len(c.tokens) for c in found.completions)
    assert ends == {"stop", "length"}


def _transformers_beams(model: Any, prompt: Sequence[int], fields: dict[str, Any]) -> list[tuple[list[int], float]]:
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=10,
        num_beams=fields["beams"],
        num_return_sequences=fields["beams"],
        length_penalty=fields.get("length_penalty", 1.0),
        early_stopping=fields.get("early_stopping", False),
        do_sample=False,
        eos_token_id=STOPS,
        pad_token_id=399,
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = []
    for row, score in zip(out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist(), strict=True):
        end = next((n for n, token in enumerate(row) if token in STOPS), len(row) - 1)
        rows.append((row[: end + 1], score))
    return rows


def full_logps(model: Any, tokens: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_diverse_beams_are_those_of_the_algorithm(groups: int, penalty: float, engine: Any, model: Any) -> None:
    """Vijayakumar et al. 2016, algorithm 1, by a whole forward pass for each beam and step."""
    beams, most = 4, 7
    size = beams // groups
    live: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(groups)]
    closed = [False] * groups
    for length in range(1, most + 1):
        taken: Counter[int] = Counter()
        for g in range(groups):
            if closed[g]:
                continue
            rows = []
            for score, line in live[g]:
                logps = full_logps(model, [*PROMPT, *line]).tolist()
                rows += [(score + logp - penalty * taken[token], [*line, token]) for token, logp in enumerate(logps)]
            rows.sort(key=lambda row: -row[0])
            done = [(score / length, line) for score, line in rows[:size] if line[-1] in FEW or length == most]
            taken.update(line[-1] for _, line in done)
            ended[g] = sorted(ended[g] + done, key=lambda row: -row[0])[:size]
            live[g] = [row for row in rows if row[1][-1] not in FEW][:size] if length < most else []
            taken.update(line[-1] for _, line in live[g])
            closed[g] = not live[g] or (len(ended[g]) == size and live[g][0][0] / length <= ended[g][-1][0])
    wanted = sorted((row for group in ended for row in group), key=lambda row: -row[0])
    extra = {"diversity_penalty": penalty} if groups > 1 else {}
    found = decoder("beam", beams=beams, groups=groups, **extra).run(engine, asked(most=most))
    assert [list(c.tokens) for c in found.completions] == [line for _, line in wanted]
    assert list(found.scores) == pytest.approx([score for score, _ in wanted], abs=1e-4)
    if groups == 4 and penalty == 3.0:
        assert len({c.tokens[0] for c in found.completions}) == 4


def test_one_beam_is_greedy(engine: Any) -> None:
    greedy = decoder("greedy").run(engine, asked(most=24, top_logprobs=3)).completions[0]
    beam = decoder("beam", beams=1, early_stopping=True).run(engine, asked(most=24, top_logprobs=3)).completions[0]
    assert (beam.text, beam.tokens, beam.finish) == (greedy.text, greedy.tokens, greedy.finish)
    assert beam.logprobs == pytest.approx(greedy.logprobs, abs=1e-4)
    assert [[t for t, _ in top] for top in beam.top] == [[t for t, _ in top] for top in greedy.top]


def test_beams_keep_to_what_the_request_says_of_logits(engine: Any) -> None:
    request = asked(engine.encode("the number is"), most=12)._replace(constraint=Constraint("regex", r"-?[0-9]{2,4}"))
    for kind, fields in (("beam", {"beams": 3}), ("contrastive", {"top_k": 3})):
        for completion in decoder(kind, **fields).run(engine, request).completions:
            assert completion.text.lstrip("-").isdigit() and completion.finish == "stop"
    plain = decoder("beam").run(engine, asked()).completions[0]
    without = decoder("beam").run(engine, asked(logit_bias=((plain.tokens[0], -100.0),)))
    assert all(plain.tokens[0] not in completion.tokens for completion in without.completions)
    for completion in without.completions:  # what is told is the model's own probability
        (logps,) = engine.score([[*PROMPT, *completion.tokens]])
        assert list(completion.logprobs) == pytest.approx(logps[len(PROMPT) - 1 :], abs=1e-4)


def test_beams_end_at_stop_strings(engine: Any) -> None:
    texts = [c.text for c in decoder("beam").run(engine, asked(most=12)).completions]
    stop = texts[0][3]
    found = decoder("beam").run(engine, asked(most=12, stop=(stop,)))
    assert all(stop not in c.text for c in found.completions)
    ended = [c for c in found.completions if c.finish == "stop" and stop in engine.decode(c.tokens)]
    assert ended and all(stop not in engine.decode(c.tokens[:-1]) for c in ended)


# --- contrastive search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "top_k"), [(0.6, 4), (0.3, 8), (1.0, 3)])
def test_contrastive_search_is_its_formula(alpha: float, top_k: int, engine: Any, model: Any) -> None:
    """Su et al. 2022, equation 5, by a whole forward pass for each candidate."""
    line: list[int] = []
    while len(line) < 8 and not (line and line[-1] in FEW):
        prob_V = full_logps(model, [*PROMPT, *line]).exp()
        scores = {}
        for token in prob_V.topk(top_k).indices.tolist():
            ids = torch.tensor([[*PROMPT, *line, token]])
            with torch.inference_mode():
                hidden_TE = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
            likeness = torch.cosine_similarity(hidden_TE[:-1], hidden_TE[-1:], dim=-1).max()
            scores[token] = float((1 - alpha) * prob_V[token] - alpha * likeness)
        line.append(max(scores, key=lambda token: scores[token]))
    found = decoder("contrastive", penalty_alpha=alpha, top_k=top_k).run(engine, asked(most=8))
    assert list(found.completions[0].tokens) == line
    assert found.tokens_spent == top_k * len(line)


# --- branches ---------------------------------------------------------------------------------------------------

CARRIERS = [("Llama", {}), ("Gemma2", {"head_dim": 16, "sliding_window": 8}), ("GPTNeoX", {})]


@pytest.mark.parametrize(("kind", "sizes"), CARRIERS, ids=[kind for kind, _ in CARRIERS])
def test_branches_are_whole_forward_passes(kind: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    """Kept, doubled, reordered and dropped, on packed rows and on transformers' own caches; beside other requests."""
    from transformers import AutoModelForCausalLM

    if kind == "GPTNeoX":
        sizes = {"num_key_value_heads": None}
    path = save(tmp_path, kind=kind, **sizes)
    theirs = AutoModelForCausalLM.from_pretrained(path).eval()
    prompt = [3 + n * 5 % 380 for n in range(45)]  # long enough to be shared
    with opened(path) as engine, engine.branches(asked(prompt), hidden=True) as branches:
        assert branches.prompt_hidden.shape[0] == len(prompt) and branches.stop == engine._stop
        lines: list[list[int]] = [[]]
        for which, tokens in (([0, 0, 0], [5, 6, 7]), ([2, 0, 2, 1], [8, 9, 10, 11]), ([3, 1], [12, 13]), ([1, 1], [14, 15])):
            under_way = engine.submit(asked(prompt[:5], most=4))
            branches.keep(which)
            branches.extend(tokens)
            lines = [[*lines[place], token] for place, token in zip(which, tokens, strict=True)]
            assert len(list(under_way)) > 0
            for line, logps_V in zip(lines, branches.logps(), strict=True):
                assert float((torch.tensor(logps_V) - full_logps(theirs, prompt + line)).abs().max()) < 1e-4


def test_branches_wear_the_adapter_of_their_request(engine: Any, tmp_path: Path) -> None:
    kit.adapter(tmp_path / "few", kit.model(), 2, r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"])
    engine.load_adapter("few", tmp_path / "few")
    request, named = asked(most=8), asked(most=8)._replace(adapter="few")
    beam = decoder("beam", beams=1, early_stopping=True)
    found = [beam.run(engine, one).completions[0].tokens for one in (request, named)]
    assert found == [decoder("greedy").run(engine, one).completions[0].tokens for one in (request, named)]
    assert found[0] != found[1] and engine.branches(named, hidden=True).prompt_hidden.shape[0] == len(PROMPT)
    engine.unload_adapter("few")
    with pytest.raises(UserError, match="no adapter 'few'"):
        beam.run(engine, named)


def test_searches_in_several_threads_do_not_meet(engine: Any) -> None:
    requests = [asked(PROMPT[n:], most=8) for n in range(4)]
    beam = decoder("beam", beams=3)
    alone = [beam.run(engine, request) for request in requests]
    found: dict[int, Decoded] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: beam.run(engine, requests[n])})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n].completions[0].tokens for n in range(4)] == [one.completions[0].tokens for one in alone]


# --- draws ------------------------------------------------------------------------------------------------------


def test_a_sample_is_the_engines_own(engine: Any) -> None:
    fields = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 0.5}
    request = asked(most=8)
    sampling = request.sampling._replace(**fields, seed=seed_of(4, request))
    (wanted,) = engine.generate([request._replace(sampling=sampling)])
    assert decoder("sample", **fields, seed=4).run(engine, request) == Decoded([wanted], len(wanted.tokens))


def test_what_is_found_is_told_before_the_last_is_asked() -> None:
    """A batch of an evaluation shows how far it is."""
    heard: list[int] = []

    class Slow(Scripted):
        def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
            for request in requests:
                heard.append(len(request.tokens))
                yield self.answer(request, "yes")

    found = decoder("greedy").run_all(Slow(str), [Request([65] * size, Sampling(4)) for size in (3, 2, 1)])
    next(found)
    assert heard == [3]
    assert len(list(found)) == 2


def test_all_together_is_each_alone(engine: Any) -> None:
    requests = [asked(PROMPT[n:], most=6) for n in range(3)]
    kinds: dict[str, Any] = {"sample": {}, "best_of_n": {"samples": 3}, "step_search": {"separator": "e"}, "beam": {"beams": 2}}
    for kind, fields in kinds.items():
        spec = decoder(kind, **fields)
        together = list(spec.run_all(engine, requests))
        assert [one.completions[0].tokens for one in together] == [
            spec.run(engine, request).completions[0].tokens for request in requests
        ]
    one, two = decoder("sample", temperature=2.0).run_all(engine, [asked(), asked([*PROMPT[:-1], 99])])
    assert one.completions[0].tokens != two.completions[0].tokens


def test_the_best_of_n_by_each_sort_of_scorer(engine: Any) -> None:
    by_model = decoder("best_of_n", samples=5).run(engine, asked(most=6))
    assert list(by_model.scores) == sorted(by_model.scores, reverse=True) and by_model.tokens_spent <= 30
    assert list(by_model.scores) == [mean_logprob(c) for c in by_model.completions]
    longest = decoder("best_of_n", samples=5).scored_by(lambda prompt, answer: len(answer))
    found = longest.run(engine, asked(most=6))
    assert found.scores == tuple(sorted((len(c.text) for c in by_model.completions), reverse=True))
    with pytest.raises(UserError, match="cannot be part of a recipe"):
        longest.identity()
    code = Scripted(said(["def (", "x = 1", "y = 2"]))
    parses = decoder("best_of_n", samples=3, scorer="python_parses").run(code, asked([65], most=40))
    assert [c.text for c in parses.completions] == ["x = 1", "y = 2", "def ("] and parses.scores == (1.0, 1.0, 0.0)
    with pytest.raises(ValidationError, match="would be to cheat"):
        decoder("best_of_n", scorer="exact_match")


def test_steps_go_on_where_they_ended(engine: Any) -> None:
    """Of cold draws one path is left: the greedy one, in as many pieces as it has separators."""
    greedy = decoder("greedy").run(engine, asked(most=20)).completions[0]
    separator = greedy.text[len(greedy.text) // 2]
    for fields in ({"samples": 1, "keep": 1}, {"samples": 2, "keep": 2}):
        found = decoder("step_search", temperature=1e-4, separator=separator, **fields).run(engine, asked(most=20))
        assert [c.tokens for c in found.completions] == [greedy.tokens] and found.completions[0].text == greedy.text
        assert found.completions[0].logprobs == pytest.approx(greedy.logprobs, abs=1e-4)


def test_steps_are_kept_by_their_scores() -> None:
    steps = {"Q": ["bad\n", "good\n"], "Qgood\n": ["worse", "better"]}

    def say(text: str) -> str:
        steps[text].append(steps[text].pop(0))
        return steps[text][-1]

    words = {"bad": -1, "good": 1, "worse": -2, "better": 2}
    score = decoder("step_search", samples=2, keep=1).scored_by(lambda prompt, a: sum(words.get(w, 0) for w in a.split()))
    found = score.run(Scripted(say), asked([ord("Q")], most=40))
    assert [c.text for c in found.completions] == ["good\nbetter"] and found.scores == (3.0,)
    assert found.tokens_spent == len("bad\ngood\nworse.better.")
    stopped = score.run(Scripted(say), asked([ord("Q")], most=40, stop=("\nb", "\nw"))).completions[0]
    assert stopped.text == "good" and stopped.finish == "stop"


# --- speculation ------------------------------------------------------------------------------------------------


def test_guesses_do_not_change_the_answer(engine: Any, tmp_path: Path) -> None:
    other = save(tmp_path / "other", seed=5, num_hidden_layers=1)
    kinds: dict[str, Any] = {"lookup": {"ngram": 1}, "draft": {"model": str(other)}, "layer_skip": {"layers": (1,)}}
    for prompt in (PROMPT, PROMPT * 3):
        request = asked(prompt, most=20)
        greedy = decoder("greedy").run(engine, request)
        for kind, fields in kinds.items():
            found = decoder(kind, **fields).run(engine, request)
            assert found.completions[0].tokens == greedy.completions[0].tokens
            assert found.completions[0].text == greedy.completions[0].text
            assert found.completions[0].logprobs == pytest.approx(greedy.completions[0].logprobs, abs=1e-4)
            wrong = found.completions[0].proposed - found.completions[0].accepted
            assert found.tokens_spent == greedy.tokens_spent + wrong and found.completions[0].proposed > 0
    assert decoder("draft", model="small").placed(lambda ref: Path("at") / ref).how().model == Path("at/small")
    with pytest.raises(UserError, match="cannot speculate"):
        decoder("beam").run(engine, asked()._replace(speculate=decoder("lookup").how()))


# --- majority ---------------------------------------------------------------------------------------------------

ANSWERS: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "First 3, then 1,204.50 apples.", "1204.5"),
    ({}, "so 7 - 10 = -3.0", "-3"),
    ({}, "5-3", "3"),
    ({}, "\u22120.0", "0"),
    ({}, ".50 of it", "0.5"),
    ({}, "123456789012345678901234567890.10", "123456789012345678901234567890.1"),
    ({}, "none", None),
    ({"answer": "last_line"}, "a\n  b \n\n", "b"),
    ({"answer": "last_line"}, "\n", None),
    ({"answer": "regex", "pattern": r"answer is (\w+)"}, "the answer is x; no, the answer is y", "y"),
    ({"answer": "regex", "pattern": r"[A-Z]+"}, "ab CD ef", "CD"),
    ({"answer": "regex", "pattern": r"(a)?x"}, "x", None),
    ({"answer": "choice", "choices": ("A", "B")}, "A? B! As ABBA", "B"),
    ({"answer": "choice", "choices": ("A", "not A")}, "it is not A", "not A"),
    ({"answer": "choice", "choices": ("A",)}, "", None),
]


@pytest.mark.parametrize(("fields", "text", "wanted"), ANSWERS)
def test_an_answer_is_found(fields: dict[str, Any], text: str, wanted: str | None) -> None:
    assert decoder("self_consistency", **fields).extract(text) == wanted


def test_the_majority_wins() -> None:
    texts = ["it is 4", "that makes 5.0", "no idea", "5, so", "4"]
    best = {"answer": ["4", "4", "5", "5", "no idea"], "all": ["it is 4", "4", "that makes 5.0", "5, so", "no idea"]}
    for show, wanted in best.items():
        found = decoder("self_consistency", samples=5, show=show).run(Scripted(said(texts)), asked([65], most=40))
        assert [c.text for c in found.completions] == wanted and found.scores == (0.4, 0.4, 0.4, 0.4, 0.0)
        assert found.tokens_spent == sum(len(text) + 1 for text in texts)
    for bad in ({"answer": "regex"}, {"answer": "regex", "pattern": "("}, {"answer": "choice"}):
        with pytest.raises(ValidationError):
            decoder("self_consistency", **bad)


# --- thinking ---------------------------------------------------------------------------------------------------


def test_thoughts_are_made_longer_and_shorter() -> None:
    def say(text: str) -> str:
        if text.endswith("</t>="):
            return f"{len(text)}!"
        return "hmm hmm" if text.endswith("Wait") else "so</t> 1"

    def run(engine: Any = None, **fields: Any) -> Decoded:
        spec = decoder("budget_forcing", end="</t>", answer="=", show="all", **fields)
        return spec.run(engine or Scripted(say), asked([ord("Q")], most=40))

    free = run()
    assert free.completions[0].text == "so</t>=8!" and free.tokens_spent == 6 + 3
    longer = run(least_tokens=9)  # "so</t>" are six tokens
    assert longer.completions[0].text == "soWaithmm hmm</t>=19!" and longer.tokens_spent == 6 + 8 + 4
    assert longer.completions[0].tokens == (*map(ord, "soWaithmm hmm</t>=19!"), 0)
    shorter = run(most_tokens=1)
    assert shorter.completions[0].text == "s</t>=7!" and shorter.tokens_spent == 1 + 3
    assert run(begin="<t>").completions[0].text == "<t>so</t>=11!"
    alone = decoder("budget_forcing", end="</t>", answer="=").run(Scripted(say), asked([ord("Q")], most=40))
    assert alone.completions[0].text == "8!" and alone.completions[0].prompt_tokens == 1
    assert run(Scripted(say, context=52), most_tokens=30).completions[0].text == "so</t>=8!"
    with pytest.raises(UserError, match="hides"):
        run(Scripted(say, hidden="</t>"))


def test_budget_on_a_real_tokenizer(engine: Any) -> None:
    request = asked(engine.encode("the cat sat"), most=6)
    greedy = decoder("greedy").run(engine, asked(request.tokens, most=12)).completions[0]
    spec = decoder("budget_forcing", end=" mat", most_tokens=12, show="all")
    found = spec.run(engine, request).completions[0]
    assert found.tokens[: len(greedy.tokens)] == greedy.tokens or greedy.finish == "stop"
    assert " mat\n" in found.text and engine.decode(found.tokens).startswith(found.text)


# --- refusals ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_refused(engine: Any) -> None:
    for kind in ("beam", "contrastive"):
        with pytest.raises(UserError, match=f"`{kind}` needs branch"):
            decoder(kind).run(Scripted(str), asked())
    with pytest.raises(UserError, match="needs rules"):
        decoder("sample", min_p=0.1).run(Scripted(str), asked())
    with pytest.raises(UserError, match="messages alone"):
        decoder("step_search").run(Scripted(str, more=frozenset({"messages"})), asked())
    for kind in ("greedy", "beam", "best_of_n"):
        with pytest.raises(UserError, match=f"sets temperature, and so does the decoder `{kind}`"):
            decoder(kind).run(engine, asked(temperature=1.0))
    for kind in ("step_search", "budget_forcing"):
        with pytest.raises(UserError, match="cannot hold an answer to a regex"):
            decoder(kind).run(engine, asked()._replace(constraint=Constraint("regex", "a")))
    with pytest.raises(ValidationError, match="groups of equal size"):
        decoder("beam", beams=4, groups=3)


def test_log_probabilities_are_told_only_where_they_are_wanted(engine: Any) -> None:
    request = asked(most=5, logprobs=False)
    for kind in ("greedy", "sample", "beam", "contrastive"):
        assert decoder(kind).run(engine, request).completions[0].logprobs == ()
    by_model = decoder("best_of_n", samples=4)
    assert by_model.run(engine, request).scores == by_model.run(engine, asked(most=5)).scores


def test_budgets_are_at_least_an_answers() -> None:
    for kind in DECODERS.names():
        spec = decoder(kind) if kind not in ("draft",) else decoder(kind, model="./small/")
        assert isinstance(spec, Decoder) and spec.budget(10) >= 10
