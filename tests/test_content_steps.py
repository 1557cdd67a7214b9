"""Content filters: a classifier from examples, lists of words, perplexity under a model; the kernels under them."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelwright.core.errors import UserError
from modelwright.core.record import Record, write_records
from modelwright.core.stage import Input, Run
from modelwright.methods.steps import Choosing, Step
from modelwright.methods.steps.perplexity import Perplexity
from modelwright.text import Texts
from modelwright.text.linear import Classifier, auc, exp, likely, train, trained
from modelwright.text.listed import Phrases, hits
from modelwright.text.suffix import repeats, words_at
from tests import content_kit
from tests.content_kit import UNWANTED, WANTED, sample
from tests.law_kit_data import Listening
from tests.test_data_steps import docs, go, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return content_kit.files(tmp_path_factory.mktemp("content"))


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder, content_kit.inputs(folder), 0, Listening())


def notes(run: Run) -> list[str]:
    assert isinstance(run.log, Listening)
    return [fields["text"] for name, fields in run.log.heard if name == "note"]


# --- the linear classifier ------------------------------------------------------------------------------


def examples(count: int = 60) -> tuple[Texts, np.ndarray]:
    good = [sample(WANTED, seed) for seed in range(count)]
    return Texts.of(good + [sample(UNWANTED, seed + 1000) for seed in range(count)]), np.arange(2 * count) < count


def test_exp_and_the_logistic_function() -> None:
    for x in (-40.0, -3.3, -1e-9, 0.0, 0.34, 0.35, 1.0, 20.0, 39.9):
        assert exp(x) == pytest.approx(math.exp(x), rel=1e-14)
        assert likely(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-13)
    assert likely(1e300) == likely(40.0) and 0 < likely(-math.inf) < 1e-17


def test_it_tells_texts_apart_that_it_has_not_seen() -> None:
    found = trained(*examples(), seed=0)
    assert found.auc > 0.99 and found.held_out == 24
    fresh = Texts.of([sample(WANTED, 77_000), sample(UNWANTED, 77_001), ""])
    good, bad, empty = found.classifier.good(fresh)
    assert good > 0.8 and bad < 0.2 and 0.3 < empty < 0.7


def test_chance_where_there_is_nothing_to_tell() -> None:
    texts = Texts.of([sample(WANTED, seed) for seed in range(200)])
    assert 0.3 < trained(texts, np.arange(200) % 2 == 0, seed=0).auc < 0.7


def test_the_auc_counts_pairs() -> None:
    score, is_good = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert auc(score, is_good) == 3.5 / 4 and auc(-score, is_good) == 0.5 / 4


def test_both_classes_weigh_the_same() -> None:
    few = Texts.of([sample(WANTED, seed) for seed in range(20)] + [sample(UNWANTED, seed) for seed in range(400)])
    found = train(few, np.arange(420) < 20, seed=0)
    assert (found.good(Texts.of([sample(WANTED, seed) for seed in range(900, 930)])) > 0.5).mean() > 0.9


def test_the_weights_are_the_same_in_every_process() -> None:
    """And on every machine: their digest is pinned."""
    code = "from tests.test_content_steps import digest; print(digest())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert told.stdout.split()[-1] == digest() == "0fe37c8b5aa6dce0"


def digest() -> str:
    import hashlib

    return hashlib.sha256(train(*examples(), seed=0).weight_S.tobytes()).hexdigest()[:16]


def test_a_text_is_judged_alike_in_any_company() -> None:
    found = train(*examples(), seed=0)
    texts = [sample(WANTED + UNWANTED, seed) for seed in range(30)]
    alone = [float(found.good(Texts.of([text]))[0]) for text in texts]
    assert alone == found.good(Texts.of(texts)).tolist()
    assert isinstance(found, Classifier)


# --- quality --------------------------------------------------------------------------------------------


def rated(step: Step, rows: list[Record], run: Run) -> dict[str, float]:
    assert isinstance(step, Choosing)
    return dict(zip([row.id for row in rows], step.numbers(rows, run)["good"], strict=True))


def test_quality_by_threshold_and_by_share(run: Run) -> None:
    chat = Record("chat", messages=[{"role": "user", "content": sample(UNWANTED, 9)}])
    rows = [*docs([sample(WANTED, 5000), sample(UNWANTED, 5001), sample(WANTED, 5002, share=0.2)]), chat]
    step = make("quality", good="./good.jsonl", bad="./bad.jsonl")
    kept, dropped, _ = go(step, rows, run)
    assert [row.id for row in kept] == ["d0", "d2"] and {d.reason for d in dropped} == {"quality: below the threshold"}
    assert "AUC of 1.000 (12 rows)" in notes(run)[-1]
    rates = rated(step, rows, run)
    best = make("quality", good="./good.jsonl", bad="./bad.jsonl", keep=0.25)
    kept, dropped, _ = go(best, rows, run)
    assert [row.id for row in kept] == [max(rates, key=rates.__getitem__)]
    assert {d.reason for d in dropped} == {"quality: not among the best"} and isinstance(best, Choosing) and best.waits()
    assert isinstance(step, Choosing) and not step.waits()


def test_too_few_examples_are_refused(run: Run, tmp_path: Path) -> None:
    write_records(tmp_path / "few.jsonl", [*docs(["one", "two"])])
    given = run._replace(inputs={**run.inputs, "./few.jsonl": Input("./few.jsonl", "path", tmp_path / "few.jsonl")})
    with pytest.raises(UserError, match="`bad` has 2 examples") as refused:
        go(make("quality", good="./good.jsonl", bad="./few.jsonl"), docs(["x"]), given)
    assert "20 of each" in str(refused.value)


def test_a_classifier_that_learnt_nothing_says_so(run: Run) -> None:
    go(make("quality", good="./good.jsonl", bad="./good.jsonl"), docs(["x"]), run)
    assert "hardly better than chance" in notes(run)[-1]


# --- toxicity -------------------------------------------------------------------------------------------


def test_phrases_are_whole_words_in_any_case_and_script() -> None:
    texts = Texts.of(["An ass, a CLASS.", "BIG Bad wolf big bad", "big\nbad", "这是坏话吗", "Straße", "", "bad big"])
    found = hits(texts, Phrases.of(["ass", "big bad", "big bad wolf", "坏话", "straße", "", "..."]))
    assert found.hits_D.tolist() == [1, 2, 1, 1, 1, 0, 0]
    assert found.hit_words_D.tolist() == [1, 5, 2, 2, 1, 0, 0]
    assert found.words_D.tolist() == [4, 5, 2, 5, 1, 0, 2]


def test_toxicity_by_words(run: Run) -> None:
    rows = docs(["a casino", "a b c d casino", "be at", "none of them", "casino casino casino casino", "Free"])
    step = make("toxicity", words=["free"], word_list="./listed.txt")
    kept, dropped, _ = go(step, rows, run)
    assert [row.id for row in kept] == ["d3"] and dropped[0].detail == "1 hits in 2 words"
    kept, _, _ = go(make("toxicity", words=[], word_list="./listed.txt", max_count=3), rows, run)
    assert [row.id for row in kept] == ["d0", "d1", "d2", "d3", "d5"]
    kept, _, _ = go(make("toxicity", words=[], word_list="./listed.txt", max_share=0.3), rows, run)
    assert [row.id for row in kept] == ["d1", "d3", "d5"]


def test_toxicity_by_examples(run: Run) -> None:
    step = make("toxicity", words=[], toxic="./bad.jsonl", clean="./good.jsonl")
    rows = docs([sample(UNWANTED, 5001), sample(WANTED, 5000)])
    kept, dropped, _ = go(step, rows, run)
    assert [row.id for row in kept] == ["d1"] and dropped[0].reason == "toxicity: like the toxic examples"
    assert notes(run)[-1].startswith("toxicity: the classifier tells held-out examples apart")


def test_toxicity_needs_something_to_go_by(run: Run) -> None:
    with pytest.raises(ValueError, match="none is shipped"):
        make("toxicity", words=[])
    with pytest.raises(ValueError, match="both `toxic` and `clean`"):
        make("toxicity", words=[], toxic="./bad.jsonl")
    with pytest.raises(UserError, match="the list has no words"):
        go(make("toxicity", words=["...", " "]), docs(["x"]), run)


# --- perplexity -----------------------------------------------------------------------------------------


def test_perplexity_is_what_transformers_says(run: Run, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder / "judge") for kind in (AutoModelForCausalLM, AutoTokenizer))
    texts = [sample(WANTED, 1), sample(UNWANTED, 2, length=300), "Grüße 🙂", ""]
    expected = []
    for text in texts[:-1]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        nats, count = 0.0, 0
        for begin in range(0, len(ids), 50):
            piece = torch.tensor([[tokenizer.bos_token_id or tokenizer.eos_token_id, *ids[begin : begin + 50]]])
            nats += model(piece, labels=piece).loss.item() * (piece.shape[1] - 1)
            count += piece.shape[1] - 1
        expected.append((nats / math.log(2) / len(text.encode()), math.exp(nats / count)))
    for column, measure in enumerate(("bits_per_byte", "perplexity")):
        step = make("perplexity", model="./judge/", max=1.0, window=50, measure=measure)
        assert isinstance(step, Perplexity)
        found = step.numbers(docs(texts), run)["value"]
        assert found[:-1] == pytest.approx([row[column] for row in expected], rel=1e-4) and math.isnan(found[-1])


def test_perplexity_bounds_and_shares(run: Run) -> None:
    rows = docs([sample(WANTED, seed, length=20) for seed in range(10)] + [""])
    step = make("perplexity", model="./judge/", lowest=0.2, highest=0.3)
    assert isinstance(step, Perplexity) and step.waits() and step.keeps(None) == 0.5
    value = step.numbers(rows, run)["value"]
    order = np.argsort(value[:10], kind="stable")
    kept, dropped, _ = go(step, rows, run)
    assert [row.id for row in kept] == [f"d{i}" for i in sorted(order[2:7])] + ["d10"]
    assert sorted(d.reason for d in dropped) == ["perplexity: among the highest"] * 3 + ["perplexity: among the lowest"] * 2
    bounds = {"min": float(value[order[1]]), "max": float(value[order[8]])}
    bounded = make("perplexity", model="./judge/", **bounds)
    kept, dropped, _ = go(bounded, rows, run)
    assert {d.record.id for d in dropped} == {f"d{order[0]}", f"d{order[9]}"} and "bits per byte" in dropped[0].detail
    assert isinstance(bounded, Perplexity) and not bounded.waits()


def test_perplexity_refusals(run: Run) -> None:
    with pytest.raises(ValueError, match="without a bound every row stays"):
        make("perplexity", model="./judge/")
    with pytest.raises(ValueError, match="no row could pass"):
        make("perplexity", model="./judge/", min=3, max=2)
    with pytest.raises(ValueError, match="leave no row"):
        make("perplexity", model="./judge/", lowest=0.5, highest=0.5)
    with pytest.raises(UserError, match=r"more than .* can see"):
        go(make("perplexity", model="./judge/", max=2.0, window=4096), docs(["x"]), run)


# --- substrings -----------------------------------------------------------------------------------------


def slow_repeats(documents: list[list[str]], n: int) -> list[list[bool]]:
    """By looking at every pair of windows."""
    first: dict[tuple[str, ...], tuple[int, int]] = {}
    gone = [[False] * len(words) for words in documents]
    for d, words in enumerate(documents):
        for at in range(len(words) - n + 1):
            window = tuple(words[at : at + n])
            if window not in first:
                first[window] = (d, at)
                continue
            before, place = first[window]
            for i in range(max(at, place + n) if before == d else at, at + n):
                gone[d][i] = True
    return gone


@pytest.mark.parametrize("n", [2, 3, 7])
def test_repeats_are_those_of_the_slow_way(n: int) -> None:
    draw = random.Random(n)
    documents = [[draw.choice("abc") for _ in range(draw.randrange(40))] for _ in range(12)]
    words = [words_at(" ".join(document)).folded_W for document in documents]
    start = np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int64)
    assert repeats(np.concatenate(words), start, n).tolist() == [gone for row in slow_repeats(documents, n) for gone in row]


def test_words_and_where_they_begin() -> None:
    for text in ("Ab, cd_3!", "", "中文 x", "e\u0301té, नमस्ते", "🙂a\n b"):
        found = words_at(text)
        alone = [text.encode()[at:].decode() for at in found.begin_W.tolist()]
        assert all(rest[0].isalnum() for rest in alone)
        one = Phrases.of([text])
        assert hits(Texts.of([text]), one).words_D[0] == len(found.folded_W)


def test_the_first_occurrence_stays(run: Run) -> None:
    notice = "All rights reserved by the owner of this page and of every page beside it"
    texts = [f"One. {notice}. Two.", f"Three: {notice.upper()}!\nFour, five.", notice, "Grüße an alle. " + notice]
    kept, dropped, cuts = go(make("substrings", words=8), docs(texts), run)
    assert [row.text for row in kept] == [texts[0], "Three: Four, five.", "Grüße an alle. "]
    assert [(d.record.id, d.reason) for d in dropped] == [("d2", "substrings: nothing is left")]
    assert [(cut.pieces, cut.chars) for cut in cuts] == [(1, len(notice) + 2), (1, len(notice))]
    chat = Record("c", messages=[{"role": "user", "content": notice}])
    assert go(make("substrings", words=8), [chat, chat], run)[0] == [chat, chat]
