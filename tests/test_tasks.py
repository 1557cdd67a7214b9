"""Tasks: every kind by its file, the statistics against published values and brute force, and what each kind forgives."""

import inspect
import itertools
import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.methods.tasks import TASKS, Answer, Generate, Likelihood, Sample, Score, Task
from modelwright.methods.tasks import _statistics as statistics

KINDS = TASKS.names()


def chat(id_, answer="yes", prompt="Is it?", **meta):
    return Record(id_, messages=[{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], meta=meta)


def task(kind, **fields) -> Task:
    spec = TASKS.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Task)
    return spec


# --- the contract of the family ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_kind_keeps_the_contract(kind):
    spec = task(kind)
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    text = sys.modules[type(spec).__module__].__doc__ + (type(spec).__doc__ or "")
    assert "Source:" in text
    for name, field in type(spec).model_fields.items():
        assert name == "kind" or len(spec.field_docs().get(name, "")) > 20, name
        assert name == "kind" or field.examples, f"{name} has no other value to try"
    assert spec.metric and spec.advice is not None
    assert spec.name == kind and task(kind, label="other").name == "other"


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_is_a_legal_other_value(kind):
    default = task(kind)
    for name, field in type(default).model_fields.items():
        for example in field.examples or []:
            assert getattr(task(kind, **{name: example}), name) != getattr(default, name)


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_beat_wrong_ones(kind):
    """The family's law: the best answer gets the better number, intervals hold the value, a comparison sees which is better."""
    spec = task(kind)
    samples = list(spec.samples(chat(f"r{i}", "def f():\n    return 1", sort="code") for i in range(12)))
    assert len(samples) == 12
    good, bad = [], []
    for sample in samples:
        ask = spec.ask(sample)
        if isinstance(ask, Likelihood):
            sides = [Answer("abc", (-0.1, -0.2, -0.1)), Answer("abc", (-2.0, -3.0, -2.5))]
        else:
            assert isinstance(ask, Generate) and ask.max_tokens == spec.new_tokens() > 0
            sides = [Answer("def f():\n    return 1"), Answer("def f( return")]
        good.append(spec.score(sample, sides[0]))
        bad.append(spec.score(sample, sides[1]))
    best, worst = spec.summary(samples, good), spec.summary(samples, bad)
    assert [m.group for m in best] == [g for g in ("", "code") for _ in range(len(best) // 2)]
    assert best[0].name == spec.metric
    for metric in (*best, *worst):
        assert metric.low <= metric.value <= metric.high and math.isfinite(metric.high) and metric.n == 12
    compared = spec.compare(samples, bad, good)
    assert not compared.notes and len(compared.rows) == len(best)
    for row, metric in zip(compared.rows, best, strict=True):
        assert row.better is True and row.p < 0.05 and row.after == pytest.approx(metric.value)
        assert (row.difference > 0) == metric.higher_is_better


def test_family_base_is_light():
    code = "import sys, modelwright.methods.tasks; print([m for m in ('torch', 'numpy', 'rouge_score') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (Wilson score without continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert statistics.wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends():
    assert statistics.wilson(0, 10).low == 0.0 and statistics.wilson(10, 10).high == 1.0
    assert statistics.wilson(10, 10).low == pytest.approx(1 - statistics.wilson(0, 10).high)
    assert statistics.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    # by hand: 2 * sum of binomial(n, k) / 2^n up to the smaller count, at most 1
    [(0, 0, 1.0), (0, 1, 1.0), (1, 5, 2 * 7 / 64), (5, 1, 2 * 7 / 64), (3, 3, 1.0), (0, 10, 2 / 1024), (2, 8, 2 * 56 / 1024)],
)
def test_mcnemar_by_hand(worse, better, p):
    assert statistics.mcnemar(worse, better) == pytest.approx(p)


def test_mcnemar_bears_many_items():
    assert statistics.mcnemar(5000, 5000) == 1.0
    assert 0 < statistics.mcnemar(4900, 5100) < 0.05


def test_bootstrap_interval_is_that_of_the_mean():
    random.seed(1)
    values = [random.gauss(3, 2) for _ in range(500)]
    alone = [str(i) for i in range(500)]
    low, high = statistics.bootstrap(statistics.columns(values, [1.0] * 500, alone), lambda x: x)
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(500)
    assert low == pytest.approx(np.mean(values) - half, abs=0.03) and high == pytest.approx(np.mean(values) + half, abs=0.03)
    assert (low, high) == statistics.bootstrap(statistics.columns(values, [1.0] * 500, alone), lambda x: x)


def test_student_is_the_table_and_few_items_give_wide_intervals():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for freedom, value in table.items():
        assert statistics.student(freedom) == pytest.approx(value, rel=2e-3)
    generator, covered = np.random.default_rng(4), 0
    for _ in range(200):
        column = statistics.columns(generator.normal(size=10), np.ones(10), [str(i) for i in range(10)])
        low, high = statistics.bootstrap(column, lambda x: x)
        covered += low <= 0 <= high
    assert 184 <= covered <= 197  # 190 expected; plain percentiles cover about 181
    spec, samples = task("rouge"), [Sample(str(i), chat(str(i))) for i in range(3)]
    scores = [[Score(v + i / 10, others={"rougeL": v + i / 10, "rouge1": 0, "rouge2": 0}) for i in range(3)] for v in (0.1, 0.5)]
    row = spec.compare(samples, *scores).rows[0]
    assert row.low > 0 and row.p == pytest.approx(0.25, abs=0.02) and row.better is None  # three items show nothing


def test_copies_of_an_item_add_nothing():
    """Ten copies of each item, named as one cluster, must give the interval of the items alone."""
    random.seed(2)
    values = [random.random() for _ in range(40)]
    once = statistics.columns(values, [1.0] * 40, [str(i) for i in range(40)])
    copied = [v for v in values for _ in range(10)]
    clusters = [str(i) for i in range(40) for _ in range(10)]
    low, high = statistics.bootstrap(once, lambda x: x)
    assert statistics.bootstrap(statistics.columns(copied, [1.0] * 400, clusters), lambda x: x) == pytest.approx(
        (low, high), rel=0.2
    )
    shares = [float(v > 0.4) for v in values]
    items = statistics.effective_items([v for v in shares for _ in range(10)], clusters)
    assert items == pytest.approx(40, rel=0.05)
    assert statistics.effective_items(shares, [str(i) for i in range(40)]) == 40
    assert statistics.effective_items([1.0] * 400, clusters) == 40


def test_permutation_agrees_with_all_flips():
    before, after = [0.1, 0.5, 0.4, 0.2, 0.7, 0.3, 0.2, 0.6], [0.3, 0.6, 0.4, 0.5, 0.6, 0.5, 0.4, 0.9]
    alone, ones = [str(i) for i in range(8)], [1.0] * 8
    found = statistics.compare(statistics.columns(before, ones, alone), statistics.columns(after, ones, alone), lambda x: x)
    gaps = np.subtract(after, before)
    all_flips = [abs(np.mean(gaps * signs)) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean([flip >= abs(gaps.mean()) - 1e-12 for flip in all_flips])
    assert found.p == pytest.approx(exact, abs=0.02)
    assert found.difference == pytest.approx(gaps.mean()) and found.interval.low < found.difference < found.interval.high


def test_permutation_rarely_finds_what_is_not_there():
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(60):
        values = generator.normal(size=(2, 30))
        sides = [statistics.columns(v, np.ones(30), [str(i) for i in range(30)]) for v in values]
        found += statistics.compare(sides[0], sides[1], lambda x: x).p < 0.05
    assert found <= 8  # 3 expected


def test_shares_of_lone_items_use_mcnemar_and_clusters_do_not():
    spec = task("exact_match")
    alone = [Sample(str(i), chat(str(i))) for i in range(12)]
    together = [Sample(str(i), chat(str(i), object=f"f{i // 4}")) for i in range(12)]
    before, after = [Score(0.0)] * 12, [Score(float(i < 8)) for i in range(12)]
    assert spec.compare(alone, before, after).rows[0].p == pytest.approx(statistics.mcnemar(0, 8))
    assert spec.compare(together, before, after).rows[0].p > 0.2  # two of three clusters say nothing
    assert spec.summary(together, after)[0].clusters == 3 and spec.summary(alone, after)[0].clusters == 12
    wide, narrow = spec.summary(together, after)[0], spec.summary(alone, after)[0]
    assert wide.high - wide.low > narrow.high - narrow.low


# --- which rows -------------------------------------------------------------------------------------


def test_rows_are_chosen_by_hash_not_by_order():
    rows = [chat(f"row {i}") for i in range(200)]
    spec, dropped = task("exact_match", rows=20), Counter()
    chosen = [s.id for s in spec.samples(iter(rows), dropped)]
    assert len(chosen) == 20 and chosen != [r.id for r in rows[:20]] and dropped.total() == 180
    assert sorted(chosen) == sorted(s.id for s in spec.samples(reversed(rows)))
    more = [s.id for s in task("rouge", rows=40).samples(iter(rows))]
    assert set(chosen) < set(more)  # so that tasks of other sizes share answers


def test_where_keeps_what_it_names():
    rows = [chat("a", **{"from": "prompt"}), chat("b", **{"from": "memory"}), chat("c", **{"from": "written"}), chat("d")]
    dropped = Counter()
    assert [s.id for s in task("rouge", where={"from": "prompt"}).samples(iter(rows), dropped)] == ["a"]
    assert dropped == {"`where`: from is another": 3}
    assert [s.id for s in task("rouge", where={"from": ["prompt", "memory"]}).samples(iter(rows))] == ["a", "b"]


def test_headline_groups_stand_beside_the_sorts():
    rows = [chat(f"r{i}", sort=("name", "where")[i % 2], **{"from": ("prompt", "memory")[i % 2]}) for i in range(10)]
    spec = task("exact_match")
    samples = list(spec.samples(iter(rows)))
    found = spec.summary(samples, [Score(float(s.group == "name")) for s in samples])
    assert {m.group: (m.value, m.n) for m in found} == {
        "": (0.5, 10),
        "from=memory": (0.0, 5),
        "from=prompt": (1.0, 5),
        "name": (1.0, 5),
        "where": (0.0, 5),
    }
    bare = task("exact_match", also=[], group="")
    assert [m.group for m in bare.summary(list(bare.samples(iter(rows))), [Score(1.0)] * 10)] == [""]


def test_rows_that_cannot_be_asked_are_counted():
    rows = [Record("doc", text="x = 1"), Record("open", messages=[{"role": "user", "content": "?"}]), chat("fine")]
    rows += [Record("bare", messages=[{"role": "assistant", "content": "yes"}]), chat("void", answer=" ")]
    dropped = Counter()
    assert [s.id for s in task("exact_match").samples(iter(rows), dropped)] == ["fine"]
    assert dropped == {"a text, not a question": 1, "the last turn is not an answer": 2, "an answer without a question": 1}


def test_a_preference_asks_its_prompt():
    row = Record("p", messages=[{"role": "user", "content": "Q"}], chosen=[{"role": "assistant", "content": "good"}])
    row.rejected = [{"role": "assistant", "content": "bad"}]
    sample = next(task("exact_match").samples(iter([row])))
    assert task("exact_match").ask(sample).messages == ({"role": "user", "content": "Q"},)
    assert task("exact_match").score(sample, Answer("good")).value == 1.0
    assert task("perplexity").ask(sample).messages[-1]["content"] == "good"


# --- the kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "right", "fields", "value"),
    [
        ("a, b", "a, b", {}, 1),
        (" a,  b.\n", "a, b", {}, 1),
        ("a b", "a b...", {}, 0),
        ("None", "none", {}, 0),
        ("None", "none", {"ignore_case": True}, 1),
        ("a\n b", "a b", {"ignore_spaces": False}, 0),
        ("a.", "a", {"ignore_final_stop": False}, 0),
        ("a\nand so on", "a", {}, 0),
        ("a\nand so on", "a", {"first_line": True}, 1),
        ("", "a", {}, 0),
    ],
)
def test_exact_match_forgives_what_it_says(given, right, fields, value):
    spec = task("exact_match", **fields)
    assert spec.score(Sample("x", chat("x", right)), Answer(given)).value == value


def test_baseline_is_the_most_common_answer_of_each_sort():
    rows = [chat(f"n{i}", "none" if i < 6 else str(i), sort="raises") for i in range(10)]
    rows += [chat(f"w{i}", str(i), sort="where") for i in range(10)]
    spec = task("exact_match")
    samples = list(spec.samples(iter(rows)))
    found = {m.group: m.baseline for m in spec.summary(samples, [Score(1.0)] * 20)}
    assert found == {"": pytest.approx(7 / 20), "raises": pytest.approx(0.6), "where": pytest.approx(0.1)}
    assert task("rouge").summary(samples, [task("rouge").score(s, Answer("x")) for s in samples])[0].baseline is None


def test_rouge_equals_the_definition():
    spec = task("rouge")
    sample = Sample("x", chat("x", "the cat sat on the mat"))
    score = spec.score(sample, Answer("the cat lay on the mat"))
    assert score.others == {"rougeL": pytest.approx(5 / 6), "rouge1": pytest.approx(5 / 6), "rouge2": pytest.approx(3 / 5)}
    assert [m.name for m in spec.summary([sample], [score])] == ["ROUGE-L", "ROUGE-1", "ROUGE-2"]
    assert spec.score(sample, Answer("")).value == 0
    stemmed = task("rouge", stem=True).score(Sample("x", chat("x", "returns")), Answer("return"))
    assert stemmed.value == 1 and spec.score(Sample("x", chat("x", "returns")), Answer("return")).value == 0


def test_rouge_says_how_to_get_what_is_missing(monkeypatch):
    from modelwright.methods.tasks import rouge

    rouge._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UserError, match=r"modelwright\[eval\]"):
        task("rouge").score(Sample("x", chat("x")), Answer("yes"))
    rouge._scorer.cache_clear()


FENCED = "Here:\n```python\ndef f():\n    return 1\n```\nDone: it's that."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("def f():\n    return 1", 1),
        ("    def f():\n        return 1\n", 1),
        (FENCED, 1),
        (FENCED.partition("```\n")[0], 1),
        ("```\nx = 1", 1),
        ("def f(:\n", 0),
        ("Here is it: well", 0),
        ("", 0),
        ("# nothing", 0),
        ("x\0y", 0),
        ("(" * 5000 + ")" * 5000, 0),
        ("-" * 150_000 + "1", 0),
        ("x = 1\n" * 100_000, 0),
    ],
    ids=range(13),
)
def test_python_parses(text, value):
    assert task("python_parses").score(Sample("x", chat("x")), Answer(text)).value == value


def test_python_parses_can_ask_for_a_definition():
    spec, sample = task("python_parses", definition=True), Sample("x", chat("x"))
    assert spec.score(sample, Answer("word")) == Score(0.0, detail="defines nothing")
    assert spec.score(sample, Answer("class A: pass")).value == 1
    assert "line 1" in spec.score(sample, Answer("def f(")).detail


def test_parsing_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    task("python_parses").score(Sample("x", chat("x")), Answer(f"open({str(mark)!r}, 'w')"))
    assert not mark.exists()


def test_perplexity_weighs_tokens_and_bits_per_byte_weigh_bytes():
    spec = task("perplexity")
    rows = [Record("a", text="abcd"), Record("b", text="ab")]
    samples = list(spec.samples(iter(rows)))
    scores = [spec.score(samples[0], Answer("bcd", (-1.0, -2.0, -3.0))), spec.score(samples[1], Answer("b", (-4.0,)))]
    found = {m.name: m for m in spec.summary(samples, scores)}
    assert found["perplexity"].value == pytest.approx(math.exp(10 / 4))
    assert found["bits per byte"].value == pytest.approx(10 / math.log(2) / 4)
    assert not found["perplexity"].higher_is_better


def test_other_tokenizers_are_compared_by_bytes_only():
    spec = task("perplexity")
    samples = [Sample(str(i), Record(str(i), text="abcd")) for i in range(8)]
    one = [spec.score(s, Answer("abcd", (-1.0, -1.0))) for s in samples]
    two = [spec.score(s, Answer("abcd", (-1.0, -0.5, -0.2))) for s in samples]
    compared = spec.compare(samples, one, two)
    assert [row.name for row in compared.rows] == ["bits per byte"] and compared.rows[0].better is True
    assert "different tokens" in compared.notes[0]


def test_perplexity_refuses_what_is_no_number():
    spec = task("perplexity")
    with pytest.raises(UserError, match="finite"):
        spec.score(Sample("x", Record("x", text="ab")), Answer("b", (float("nan"),)))


def test_perplexity_chooses_texts_or_answers():
    rows = [chat("chat"), Record("text", text="ab"), Record("void", text="  ")]
    for value, ids in (("both", ["chat", "text"]), ("texts", ["text"]), ("answers", ["chat"])):
        assert [s.id for s in task("perplexity", of=value).samples(iter(rows))] == ids


def test_scoring_identity_leaves_out_what_only_chooses_rows():
    plain, chosen = task("exact_match"), task("exact_match", rows=3, where={"a": 1}, group="x", also=[], cluster="", label="l")
    assert plain.scoring() == chosen.scoring() != task("exact_match", ignore_case=True).scoring()
    assert "max_tokens" in plain.scoring()


def test_family_has_no_hidden_members():
    """Every public method of a task is documented."""
    for name, member in inspect.getmembers(Task, inspect.isfunction):
        if member.__module__ == Task.__module__ and not name.startswith("_") and name not in ("ask", "score"):
            assert member.__doc__, name
