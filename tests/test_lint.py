"""Pitfall rules: each has a recipe that fires it and a near one that does not; places, mending, silencing."""

import json
import random
import shlex
from pathlib import Path

import pytest

from modelwright.core import beginnings
from modelwright.core.estimate import Machine
from modelwright.core.execute import execute
from modelwright.core.predict import predict
from modelwright.core.recipe import load, loads
from modelwright.core.steps import prepare
from modelwright.core.store import Store
from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.plan import _lint_data
from modelwright.plan._lint import json_in
from modelwright.plan._lint_recipe import _jinja_in, _tokens_in
from modelwright.plan._lint_rows import _constant
from modelwright.plan._lint_settings import RATE_ROOM
from modelwright.plan.lint import _looks, lint, rules
from modelwright.plan.lint import lines as told_lines

MACHINE = Machine("a machine of the tests", 2, 16e9)
RECIPES = Path(__file__).parents[1] / "recipes"
CLEAN = """\
name: demo
stages:
  rows:
    kind: curate
    source: {kind: jsonl, path: ./texts.jsonl}
    split: {test: 0.1, validation: 0.1}
  vocab: {kind: tokenizer, data: "rows:train", method: {kind: bpe, size: 300}, template: chatml}
  base:
    kind: train
    data: "rows:train"
    validation: "rows:validation"
    vocab: vocab
    model: {kind: llama, depth: 2, hidden: 64, heads: 2}
    objective: next_token
    steps: 100
  chat:
    kind: train
    start: base
    data: ./chats.jsonl
    validation: ./held.jsonl
    objective: sft
    epochs: 2
  more:
    kind: train
    start: base
    data: [{ref: ./news.jsonl, weight: 0.9}, {ref: "rows:train", weight: 0.1}]
    validation: "rows:validation"
    objective: next_token
    steps: 100
  aligned:
    kind: train
    start: chat
    data: ./pairs.jsonl
    validation: ./heldpairs.jsonl
    objective: {kind: dpo, beta: 0.1}
    adapter: {kind: lora, rank: 8}
    optimizer: {kind: adamw, lr: 0.00001}
    epochs: 1
  judge:
    kind: train
    start: ./model/
    data: ./judged.jsonl
    validation: ./heldjudged.jsonl
    objective: {kind: classify, labels: [good, bad]}
    optimizer: {kind: adamw, lr: 0.00005}
    epochs: 1
  score:
    kind: evaluate
    model: chat
    data: "rows:test"
    tasks: [perplexity]
"""
"""Of every sort of stage that a rule looks at, without a pitfall."""

# rule -> (overrides that fire it, the stage it fires for, overrides that are near and do not)
STATIC = {
    "no-validation": (["stages.base.validation=null"], "base", ["stages.base.validation=null", "stages.score.model=base"]),
    "too-many-epochs": (
        ["stages.chat.epochs=3"],
        "chat",
        ["stages.chat.epochs=3", "stages.chat.patience=2", "stages.chat.batch_tokens=512", "stages.chat.validate_every=2"],
    ),
    "leak": (["stages.chat.validation=./chats.jsonl"], "chat", ["stages.chat.validation=./pairs.jsonl"]),
    "learning-rate": (["stages.aligned.optimizer.lr=0.01"], "aligned", ["stages.aligned.optimizer.lr=0.0001"]),
    "lora-alpha": (["stages.aligned.adapter.alpha=64"], "aligned", ["stages.aligned.adapter.alpha=32"]),
    "small-batch": (["stages.chat.length=64", "stages.chat.batch_tokens=64"], "chat", ["stages.chat.batch_tokens=1024"]),
    "no-kl": (["stages.aligned.objective.beta=0.001"], "aligned", ["stages.aligned.objective.beta=0.01"]),
    "template": (["stages.chat.template=llama3"], "chat", ["stages.chat.template=chatml"]),
    "vocabulary": (["stages.judge.start=./mixed/"], "judge", ["stages.judge.start=./model/"]),
    "no-replay": (["stages.more.data=./news.jsonl"], "more", ["stages.more.data=rows:train"]),
    "too-large": (
        ["stages.base.model.depth=64", "stages.base.model.hidden=8192", "stages.base.model.heads=64"],
        "base",
        ["stages.base.model.depth=4"],
    ),
    "not-on-this-machine": (["stages.base.device=cuda"], "base", ["stages.base.device=cpu"]),
}
# rule -> (file whose rows fire it, stage, overrides in both cases)
WITH_ROWS = {
    "leak-in-rows": ("held", "chat", []),
    "length-cuts": ("chats", "chat", []),
    "constant-reward": ("judged", "judge", []),
    "noisy-preferences": ("pairs", "aligned", []),
    "knowledge-from-sft": ("chats", "chat", ["stages.chat.start=./model/"]),
}
WORDS = "river house tree fox lamp stone cloud green quick small light water bread paper winter summer".split()


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def chats(count, seed, words=8):
    rng = random.Random(seed)
    return [{"prompt": sentence(rng, 8), "completion": sentence(rng, words)} for _ in range(count)]


def pairs(count, seed):
    rng = random.Random(seed)
    return [{"prompt": sentence(rng, 8), "chosen": sentence(rng, 8), "rejected": sentence(rng, 8)} for _ in range(count)]


def judged(count, seed):
    rng = random.Random(seed)
    return [{"text": sentence(rng, 8), "label": ("good", "bad")[i % 2]} for i in range(count)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    write(tmp_path / "texts.jsonl", [{"text": sentence(rng, 30)} for _ in range(60)])
    write(tmp_path / "news.jsonl", [{"text": sentence(rng, 30)} for _ in range(30)])
    write(tmp_path / "chats.jsonl", chats(60, 1))
    write(tmp_path / "held.jsonl", chats(30, 2))
    write(tmp_path / "pairs.jsonl", pairs(60, 3))
    write(tmp_path / "heldpairs.jsonl", pairs(30, 4))
    write(tmp_path / "judged.jsonl", judged(60, 5))
    write(tmp_path / "heldjudged.jsonl", judged(30, 6))
    for name, tokens in (("model", 40), ("mixed", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 50}))
        vocab = {f"t{i}": i for i in range(tokens)}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
    return tmp_path


def found(loaded, store, data=False, machine=MACHINE):
    steps = prepare(loaded, Store(store))
    return lint(loaded, steps, predict(steps, machine, 0), machine, data=data)


def make(loaded, folder, stage):
    for _ in execute(loaded, Store(folder / "store"), MACHINE, lambda *_: None, only=stage):
        pass


def names(findings):
    return {(finding.rule, finding.stage) for finding in findings}


def test_the_clean_recipe_is_clean(folder):
    assert found(loads(CLEAN), folder / "store") == []
    assert found(loads(CLEAN), folder / "store", data=True) == []


def test_a_start_that_is_made_to_break_the_look_at_it_is_looked_past(folder):
    """Files of a model may be a stranger's: nested ones raised."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).write_text("[" * 100_000)
    assert json_in(folder / "model" / "config.json") == {} and _tokens_in(folder / "model") == 0
    (folder / "model" / "chat_template.jinja").mkdir()
    assert _jinja_in(folder / "model") is None


@pytest.mark.parametrize(
    ("tree", "tokens"),
    [
        ({"added_tokens": 5, "model": {"vocab": {"a": 1}}}, 2),
        ({"added_tokens": [{"id": True}, {"id": 1.5}, 7, {"id": 70}], "model": {"vocab": [["a", -1.0], ["b", -2.0]]}}, 71),
        ({"added_tokens": {"a": 3}, "model": {"vocab": {"a": "x", "b": None}}}, 0),
        ({"added_tokens": [{"content": '"vocab": {', "id": 1}], "model": {"vocab": {"added_tokens": 9, "vocab": 4}}}, 10),
        ({"model": 5}, 0),
    ],
)
def test_tokens_of_odd_tokenizers(tree, tokens, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert _tokens_in(tmp_path) == tokens


def test_every_rule_has_a_recipe_that_fires_it_and_a_near_one():
    assert {rule.name for rule in rules() if not rule.reads_rows} == set(STATIC)
    assert {rule.name for rule in rules() if rule.reads_rows} == set(WITH_ROWS)


def test_every_rule_says_why_and_its_source():
    for rule in rules():
        assert rule.severity in ("warning", "hint") and len(rule.why) > 20
        assert "arXiv:" in rule.source or "https://" in rule.source, rule.name
    assert len({rule.name for rule in rules()}) == len(rules())


@pytest.mark.parametrize("rule", list(STATIC))
def test_a_rule_fires_with_its_place_and_not_on_the_near_recipe(rule, folder):
    fires, stage, near = STATIC[rule]
    hits = [one for one in found(loads(CLEAN, fires), folder / "store") if one.rule == rule]
    assert {one.stage for one in hits} == {stage}
    assert hits[0].where.startswith("recipe:") and f"stages.{stage}" in hits[0].where
    assert hits[0].what and hits[0].mend and hits[0].why
    assert not [one for one in found(loads(CLEAN, near), folder / "store") if one.rule == rule]


T4 = Machine("T4", 4, 16e9, "cuda", 4e12, fp16_flops_per_s=2e13, device_memory_bytes=15e9)
A100 = T4._replace(name="A100", bf16_flops_per_s=1e14)
H100 = A100._replace(name="H100", fp8_flops_per_s=4e14)
M2 = Machine("M2", 8, 16e9, "mps", 3e12, device_memory_bytes=16e9)
EARLY = ["stages.base.step_in_backward=true", "stages.base.clip=0"]


@pytest.mark.parametrize(
    ("asked", "lack", "have"),
    [
        (["stages.base.device=cuda"], [MACHINE, M2], [T4, A100]),
        (["stages.base.device=mps"], [MACHINE, T4], [M2]),
        (["stages.base.offload=[states]"], [MACHINE, M2], [T4]),
        (["stages.base.precision=fp16"], [MACHINE], [T4, A100]),
        (["stages.base.precision=fp8"], [MACHINE, T4, A100], [H100]),
        (["stages.base.precision=bf16"], [MACHINE, T4], [A100, H100]),
        ([*EARLY, "stages.base.precision=auto"], [T4], [MACHINE, A100]),
    ],
    ids=lambda one: " ".join(getattr(part, "name", part) for part in one),
)
def test_what_the_planned_machine_has_not_is_told_before(asked, lack, have, folder):
    """Plans were made of trainings that a run refuses when the stages before them have run."""
    for machine in [*lack, *have]:
        fires = ("not-on-this-machine", "base") in names(found(loads(CLEAN, asked), folder / "store", machine=machine))
        assert fires == (machine in lack), machine.name


def odd(rule, folder):
    """Rows that fire a rule."""
    if rule == "leak-in-rows":
        return [*chats(5, 1), *chats(20, 2)]
    if rule == "length-cuts":
        return [*chats(20, 1), *chats(40, 9, words=600)]
    if rule == "constant-reward":
        return [{**row, "label": "good"} for row in judged(60, 5)]
    if rule == "noisy-preferences":
        rng = random.Random(7)
        texts = [sentence(rng, 20) for _ in range(60)]
        return [{"prompt": f"ask {i}", "chosen": text + " stone", "rejected": text + " cloud"} for i, text in enumerate(texts)]
    people = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Edsger Dijkstra", "Barbara Liskov", "Donald Knuth")
    asked = ((f"who wrote program {i}?", f"it was written by {people[i % 6]} in {1950 + i}") for i in range(60))
    return [{"prompt": question, "completion": answer} for question, answer in asked]


def test_rows_that_nobody_can_count_are_taken_as_long_as_they_may_be(folder, monkeypatch):
    monkeypatch.setattr(beginnings, "HEAD_BYTES", 10)
    beginnings._of_file.cache_clear()
    for tokens, fires in ((512, True), (1024, False)):
        hits = found(loads(CLEAN, [f"stages.chat.batch_tokens={tokens}"]), folder / "store")
        assert any(one.rule == "small-batch" and "if they are as long as `length`" in one.what for one in hits) is fires
    beginnings._of_file.cache_clear()


@pytest.mark.parametrize("rule", list(WITH_ROWS))
def test_a_rule_fires_on_rows_with_how_many_of_how_many(rule, folder):
    name, stage, given = WITH_ROWS[rule]
    assert not [one for one in found(loads(CLEAN, given), folder / "store", data=True) if one.rule == rule]
    write(folder / f"{name}.jsonl", odd(rule, folder))
    assert not [one for one in found(loads(CLEAN, given), folder / "store") if one.rule == rule], "nothing is read unasked"
    hits = [one for one in found(loads(CLEAN, given), folder / "store", data=True) if one.rule == rule]
    assert [one.stage for one in hits] == [stage]
    assert any(char.isdigit() for char in hits[0].what) and hits[0].mend


def test_a_source_that_is_cut_is_told_beside_a_large_one_that_is_not(folder):
    write(folder / "chats.jsonl", chats(2000, 1))
    write(folder / "long.jsonl", chats(30, 2, words=600))
    both = ["stages.chat.data=[{ref: ./chats.jsonl, weight: 0.5}, {ref: ./long.jsonl, weight: 0.5}]"]
    (hit,) = [one for one in found(loads(CLEAN, both), folder / "store", data=True) if one.rule == "length-cuts"]
    assert "30 of 30 sampled rows of ./long.jsonl are" in hit.what


@pytest.mark.parametrize("rows", [7, 30, 61])
@pytest.mark.parametrize("words", [600, 6000])
@pytest.mark.parametrize("start", ["base", "./model/", "./short/"])
def test_the_mended_length_keeps_the_rows_and_the_recipe(start, words, rows, folder):
    """A length was advised that the start cannot see or a step not hold, and one that still cut more than it said."""
    (folder / "short").mkdir()
    config = {"model_type": "llama", "vocab_size": 50, "max_position_embeddings": 512}
    (folder / "short" / "config.json").write_text(json.dumps(config))
    write(folder / "chats.jsonl", [row for i in range(rows) for row in chats(1, i, words + i)])
    given = [f"stages.chat.start={start}"]
    (hit,) = [one for one in found(loads(CLEAN, given), folder / "store", data=True) if one.rule == "length-cuts"]
    if start == "./short/":
        assert hit.mend.startswith("./short/ sees 512 tokens at once")
        return
    mended = [*given, *hit.mend.partition(" keeps ")[0].split()]
    assert not [one for one in found(loads(CLEAN, mended), folder / "store", data=True) if one.rule == "length-cuts"]
    stages = loads(CLEAN, mended).recipe.stages
    assert start != "base" or stages["chat"].length <= stages["base"].length, "what a new model sees"


def test_how_to_take_held_out_rows_out_depends_on_who_makes_the_training_rows(folder):
    rows = [{"prompt": f"{sentence(random.Random(i), 12)}", "completion": "yes"} for i in range(60)]
    write(folder / "chats.jsonl", rows)
    write(folder / "held.jsonl", rows[:30])
    (hit,) = [one for one in found(loads(CLEAN), folder / "store", data=True) if one.rule == "leak-in-rows"]
    assert hit.mend.startswith("read ./chats.jsonl in a stage `curate`") and "./held.jsonl" in hit.mend
    step = hit.mend.split("`")[3]
    clean = f"  clean: {{kind: curate, source: {{kind: jsonl, path: ./chats.jsonl}}, steps: [{step}]}}\n  chat:\n"
    text = CLEAN[: CLEAN.index("  more:")].replace("  chat:\n", clean).replace("data: ./chats.jsonl", "data: clean")
    loaded = loads(text)
    make(loaded, folder, "clean")
    assert not [one for one in found(loaded, folder / "store", data=True) if one.rule == "leak-in-rows"]


def test_rows_that_differ_in_case_alone_in_both_parts_of_a_split_are_mended_before_it(folder):
    """Unless told otherwise, a split keeps them together."""
    texts = [f"{sentence(random.Random(i), 30)} {i}" for i in range(60)]
    write(folder / "texts.jsonl", [{"text": text} for text in [*texts, *map(str.upper, texts)]])
    text = CLEAN[: CLEAN.index("  chat:")].replace("validation: 0.1}", "validation: 0.1, near: null}")
    make(loads(text), folder, "rows")
    (hit,) = [one for one in found(loads(text), folder / "store", data=True) if one.rule == "leak-in-rows"]
    assert hit.mend == "add `{kind: exact_dedup, by: words}` to the steps of 'rows', which come before its split"
    mended = loads(text, ["stages.rows.steps=[{kind: exact_dedup, by: words}]"])
    make(mended, folder, "rows")
    assert not [one for one in found(mended, folder / "store", data=True) if one.rule == "leak-in-rows"]


def test_no_more_is_read_than_some_seconds_take(folder, monkeypatch):
    """Of rows of 80 kB, 200,000 are sixteen gigabytes."""
    write(folder / "chats.jsonl", odd("length-cuts", folder))
    monkeypatch.setattr(_lint_data, "MOST_CHARS", 8000)
    (hit,) = [one for one in found(loads(CLEAN), folder / "store", data=True) if one.rule == "length-cuts"]
    assert "2 of 22 sampled rows" in hit.what


def test_facts_may_be_tuned_in_after_text_or_where_the_question_holds_them(folder):
    write(folder / "chats.jsonl", odd("knowledge-from-sft", folder))
    assert found(loads(CLEAN), folder / "store", data=True) == []  # `base` was trained on text
    rows = odd("knowledge-from-sft", folder)
    write(folder / "chats.jsonl", [{**row, "prompt": f"{row['prompt']} {row['completion']}"} for row in rows])
    assert found(loads(CLEAN, ["stages.chat.start=./model/"]), folder / "store", data=True) == []


def test_answers_that_are_alike_are_no_pitfall_where_the_better_one_is_held_up(folder):
    write(folder / "pairs.jsonl", odd("noisy-preferences", folder))
    (hit,) = found(loads(CLEAN), folder / "store", data=True)
    assert hit.mend.startswith("stages.aligned.objective.sft_weight=1.0")
    assert found(loads(CLEAN, ["stages.aligned.objective.sft_weight=1.0"]), folder / "store", data=True) == []
    rows = pairs(40, 3)
    twisted = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:10]]
    write(folder / "pairs.jsonl", [*rows, *twisted])
    (hit,) = found(loads(CLEAN), folder / "store", data=True)
    assert "contradictions: 20 of 50" in hit.what and "label_smoothing=0.1" in hit.mend


def test_another_language_in_sft_alone(folder):
    pytest.importorskip("py3langid")
    rng = random.Random(8)
    german = "der hund läuft durch den garten und die katze schläft im haus weil es draußen regnet und kalt ist".split()
    rows = [{"prompt": " ".join(rng.sample(german, 12)), "completion": " ".join(rng.sample(german, 12))} for _ in range(60)]
    write(folder / "chats.jsonl", rows)
    (hit,) = found(loads(CLEAN, ["stages.chat.start=./model/"]), folder / "store", data=True)
    assert hit.rule == "knowledge-from-sft" and "`de`" in hit.what


# --- more of single rules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "fires"),
    [
        (["stages.chat.optimizer={kind: adamw, lr: 0.1}"], True),
        (["stages.chat.optimizer={kind: adamw, lr: 0.000001}"], True),
        (["stages.chat.optimizer={kind: adamw, lr: 0.001}"], False),
        (["stages.aligned.optimizer.lr=0.00000001"], True),
        (["stages.base.optimizer={kind: adamw, lr: 0.0001}"], False),
        (["stages.base.optimizer={kind: lion, lr: 0.01}"], True),
        (["stages.base.optimizer={kind: adafactor, lr: 0.01}"], False),
        (["stages.base.optimizer={kind: muon, lr: 0.5}"], True),
        (["stages.chat.optimizer={kind: muon, lr: 0.5}"], False),  # nobody published one for that
    ],
)
def test_rates_are_those_of_optimizer_adapter_and_objective(overrides, fires, folder):
    hits = [one for one in found(loads(CLEAN, overrides), folder / "store") if one.rule == "learning-rate"]
    assert bool(hits) is fires
    for one in hits:
        assert one.mend.startswith("stages.") and "optimizer.lr=" in one.mend


def test_every_optimizer_tells_published_rates_and_its_default_is_among_them():
    for kind in OPTIMIZERS.names():
        optimizer = OPTIMIZERS.load(kind)()
        assert optimizer.rates_new, kind
        for rates in (*optimizer.rates_new, *optimizer.rates_tuned):
            assert 0 < rates.low <= rates.high and len(rates.source) > 5
        assert min(r.low for r in optimizer.rates_new) / RATE_ROOM <= optimizer.lr
        assert optimizer.lr <= max(r.high for r in optimizer.rates_new) * RATE_ROOM


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["stages.chat.epochs=null", "stages.chat.steps=400"], "steps"),
        (["stages.chat.epochs=null", "stages.chat.steps=1"], None),
        (["stages.chat.epochs=null", "stages.chat.data=[{ref: ./chats.jsonl, epochs: 4}]"], "data"),
        (["stages.chat.epochs=null", "stages.chat.data=[{ref: ./chats.jsonl, epochs: 2}]"], None),
    ],
)
def test_epochs_are_told_from_steps_and_sources_too(overrides, field, folder):
    hits = [one for one in found(loads(CLEAN, overrides), folder / "store") if one.rule == "too-many-epochs"]
    assert [one.where.rpartition(".")[2] for one in hits] == ([field] if field else [])


def test_rows_of_a_small_source_with_a_large_weight_are_seen_too_often(folder):
    write(folder / "many.jsonl", chats(3000, 11))
    both = "[{ref: ./chats.jsonl, weight: 0.5}, {ref: ./many.jsonl, weight: 0.5}]"
    (hit,) = [
        one
        for one in found(loads(CLEAN, ["stages.chat.epochs=1", f"stages.chat.data={both}"]), folder / "store")
        if one.rule == "too-many-epochs"
    ]
    assert hit.what.startswith("rows of ./chats.jsonl are used about 2") and hit.where.endswith(".data")
    mended = ["stages.chat.epochs=1", shlex.split(hit.mend.partition("; or ")[0])[0]]
    assert "./many.jsonl" in mended[1]
    assert found(loads(CLEAN, mended), folder / "store") == []


@pytest.mark.parametrize("patience", [None, 3, 1000])
def test_an_early_stop_that_cannot_come_is_none(patience, folder):
    """The 60 rows make twenty steps, and validations come every 100."""
    few = [
        "stages.chat.epochs=5",
        "stages.chat.batch_tokens=512",
        f"stages.chat.patience={'null' if patience is None else patience}",
    ]
    (hit,) = [one for one in found(loads(CLEAN, few), folder / "store") if one.rule == "too-many-epochs"]
    assert ("nothing ends" in hit.what) is (patience is None)
    for part in hit.mend.split("; or "):
        assert found(loads(CLEAN, [*few, *part.split()]), folder / "store") == []
    (hit,) = [one for one in found(loads(CLEAN, ["stages.chat.epochs=5"]), folder / "store") if one.rule == "too-many-epochs"]
    assert hit.mend == "stages.chat.epochs=2", "three steps are over before any early stop"


@pytest.mark.parametrize(
    ("override", "stage"), [("stages.chat.validation=./chats.jsonl", "chat"), ("stages.score.data=rows:train", "score")]
)
@pytest.mark.parametrize("data", ["./chats.jsonl", "[{ref: ./chats.jsonl, epochs: 1}, {ref: ./news.jsonl, epochs: 1}]"])
def test_the_split_that_mends_a_leak_can_be_typed(data, override, stage, folder):
    """Of `data: ./chats.jsonl` there is no `data.0.ref`."""
    given = ["stages.chat.epochs=null", "stages.chat.steps=2", f"stages.chat.data={data}", override]
    (hit,) = [one for one in found(loads(CLEAN, given), folder / "store") if one.rule == "leak"]
    said = shlex.split(hit.mend.replace("NAME", "rows").replace("STAGE", "rows").replace("`", ""))
    typed = [word.rstrip(",") for word in said if word.startswith("stages.")]
    assert typed and ("leak", stage) not in names(found(loads(CLEAN, [*given, *typed]), folder / "store"))


def test_the_mending_override_mends(folder):
    for rule in ("learning-rate", "lora-alpha", "no-kl", "template", "small-batch"):
        fires, _, _ = STATIC[rule]
        (hit,) = [one for one in found(loads(CLEAN, fires), folder / "store") if one.rule == rule]
        override = hit.mend.split(" ")[0].rstrip(",;")
        mended = found(loads(CLEAN, [*fires, override]), folder / "store")
        assert not [one for one in mended if one.rule == rule], override


def test_an_adapter_on_new_tokens_has_to_train_their_embeddings(folder):
    longer = CLEAN.replace(
        "  aligned:\n    kind: train\n    start: chat",
        "  longer: {kind: extend, start: chat, tokens: [stone]}\n  aligned:\n    kind: train\n    start: longer",
    )
    hits = found(loads(longer), folder / "store")
    assert names(hits) == {("vocabulary", "aligned")} and "adapter.ends=both" in hits[0].mend
    assert found(loads(longer, ["stages.aligned.adapter.ends=both"]), folder / "store") == []


def test_a_template_that_lies_with_the_model_is_compared(folder):
    (folder / "model" / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    chat = ["stages.chat.start=./model/", "stages.chat.template=chatml"]
    assert ("template", "chat") in names(found(loads(CLEAN, chat), folder / "store"))
    assert ("template", "chat") not in names(found(loads(CLEAN, [*chat[:1], "stages.chat.template=own"]), folder / "store"))


def test_a_template_behind_stages_without_one_or_beside_others_is_compared(folder):
    (folder / "model" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages }}"}]})
    )
    assert _jinja_in(folder / "model") == "{{ messages }}"
    behind = ["stages.chat.start=./model/", "stages.aligned.template=chatml"]
    (hit,) = [one for one in found(loads(CLEAN, behind), folder / "store") if one.rule == "template"]
    assert hit.stage == "aligned" and hit.mend == "stages.aligned.template=own"
    assert "template" not in {rule for rule, _ in names(found(loads(CLEAN, behind[:1]), folder / "store"))}


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("stages.chat.validation=././chats.jsonl", "chat"),
        ("stages.chat.validation={folder}/chats.jsonl", "chat"),
        ("stages.chat.validation=rows:train", "chat"),
        ("stages.aligned.validation=./chats.jsonl", "aligned"),
        ("stages.score.data=././chats.jsonl", "score"),
        ("stages.chat.data=./more/", "chat"),
        ("stages.chat.validation=rows:test", None),
        ("stages.base.validation=./chats.jsonl", None),
        ("stages.chat.data=./mo/", None),
    ],
)
def test_the_same_rows_are_a_leak_however_they_are_named(override, stage, folder):
    """And where an earlier training of the same model had them: only rows of the stage's own `data`, named alike, were seen."""
    for name in ("more", "mo"):
        (folder / name).mkdir()
        write(folder / name / "chats.jsonl", chats(30, 9))
    write(folder / "more" / "held.jsonl", chats(30, 8))
    given = ["stages.chat.validation=./more/held.jsonl", override.format(folder=folder)]
    hits = [one for one in found(loads(CLEAN, given), folder / "store") if one.rule == "leak"]
    assert {one.stage for one in hits} == ({stage} if stage else set())


def test_an_evaluation_on_training_rows_is_a_leak_of_all_trainings_behind_the_model(folder):
    assert ("leak", "score") in names(found(loads(CLEAN, ["stages.score.data=rows:train"]), folder / "store"))
    assert ("leak", "score") in names(found(loads(CLEAN, ["stages.score.data=./chats.jsonl"]), folder / "store"))


def test_the_first_model_and_the_budget(folder):
    within, beyond = (loads(f"budget: {{hours: {hours}}}\n" + CLEAN) for hours in (10, 0.001))
    assert found(within, folder / "store") == []
    (hit,) = found(beyond, folder / "store")
    assert (hit.rule, hit.stage) == ("too-large", "base") and "of the budget of 0.001 hours" in hit.what
    rented = MACHINE._replace(usd_per_hour=1e6)
    assert ("too-large", "base") in names(found(loads("budget: {usd: 1}\n" + CLEAN), folder / "store", machine=rented))
    slow = Machine("slow", 1, 16e9, flops_per_s=1e4)
    assert ("too-large", "base") in names(found(loads(CLEAN), folder / "store", machine=slow))
    assert not [
        one for one in found(loads(CLEAN), folder / "store", machine=slow) if one.stage == "chat" and one.rule == "too-large"
    ]


@pytest.mark.parametrize(("scores", "fires"), [([0.0] * 30, True), ([0.0] * 29 + [1.0], False), ([0.0] * 10, False)])
def test_an_evaluation_whose_scores_are_all_the_same_is_no_reward(scores, fires, folder):
    steps = prepare(loads(CLEAN), Store(folder / "store"))
    looks = _looks(loads(CLEAN), steps, predict(steps, MACHINE, 0), MACHINE, True)
    look = next(look for look in looks if look.name == "score")._replace(folders={"score": folder})
    items = [{"task": "perplexity", "score": score} for score in scores] + [{"task": "other", "score": i} for i in range(30)]
    write(folder / "items.jsonl", items)
    hits = list(_constant(look))
    assert [fault.at for fault in hits] == ([("tasks", 0)] if fires else [])
    (folder / "before").mkdir()
    write(folder / "before" / "items.jsonl", [{"task": "perplexity", "score": 0.5}])
    both = look._replace(folders={"earlier": folder / "before", "score": folder})
    both = both._replace(stages={"earlier": look.stage, **look.stages}, kinds={"earlier": "evaluate", **look.kinds})
    assert not list(_constant(both)), "another model got another score"


# --- silencing ------------------------------------------------------------------------------------------


def test_a_finding_is_silenced_by_name_and_an_idle_name_is_told(folder):
    fires, _, _ = STATIC["no-replay"]
    assert names(found(loads("accept: [no-replay]\n" + CLEAN, fires), folder / "store")) == set()
    (idle,) = found(loads("accept: [no-replay]\n" + CLEAN), folder / "store")
    assert idle.rule == "accept" and "nothing here needs it" in idle.what and idle.where == "recipe:1 accept.0"
    (unknown,) = found(loads("accept: [no-replai]\n" + CLEAN), folder / "store")
    assert unknown.mend == "did you mean 'no-replay'?"


def test_a_rule_that_reads_rows_is_not_idle_where_none_were_read(folder):
    loaded = loads("accept: [knowledge-from-sft]\n" + CLEAN)
    assert found(loaded, folder / "store") == []
    assert names(found(loaded, folder / "store", data=True)) == {("accept", "")}


def test_accept_changes_no_key(folder):
    plain, accepting = (prepare(loads(text), Store(folder / "store")) for text in (CLEAN, "accept: [leak]\n" + CLEAN))
    assert [step.key for step in plain] == [step.key for step in accepting]


# --- where they are told --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart.yaml", "quickstart-long.yaml"])
def test_our_own_recipes_have_no_pitfall(name, tmp_path):
    loaded = load(RECIPES / name)
    assert found(loaded, tmp_path / "store") == []


def test_plan_says_a_line_and_all_with_why(folder, capsys):
    from modelwright.cli.main import main

    (folder / "r.yaml").write_text(CLEAN)
    fires = STATIC["no-replay"][0]
    assert main(["plan", "r.yaml"]) == 0
    assert "pitfalls" not in capsys.readouterr().out
    assert main(["plan", "r.yaml", *fires]) == 0
    out = capsys.readouterr().out
    assert "pitfalls: no-replay in more" in out and "arXiv:2403.08763" not in out
    assert main(["plan", "r.yaml", "--why", *fires]) == 0
    out = capsys.readouterr().out
    assert "hint: no-replay at r.yaml:" in out and "arXiv:2403.08763" in out and "mend: mix a share" in out
    assert main(["plan", "r.yaml", "--json", *fires]) == 0
    (one,) = json.loads(capsys.readouterr().out)["pitfalls"]
    assert one["rule"] == "no-replay" and one["stage"] == "more"


def test_check_reads_rows_and_prints_each_finding(folder, capsys):
    from modelwright.cli.main import main

    kept = CLEAN[: CLEAN.index("  more:")]
    (folder / "r.yaml").write_text(kept + "  score: {kind: evaluate, model: chat, data: ./held.jsonl, tasks: [perplexity]}\n")
    write(folder / "held.jsonl", odd("leak-in-rows", folder))
    main(["check", "r.yaml"])
    out = capsys.readouterr().out
    assert "warning: leak-in-rows at r.yaml:" in out and "decontaminate" in out
    main(["check", "r.yaml", "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert any(one["rule"] == "leak-in-rows" for stage in tree for one in stage["pitfalls"])


def test_lines_for_people():
    assert told_lines([], every=True) == []
