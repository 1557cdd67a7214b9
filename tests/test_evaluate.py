"""The evaluate stage: with an engine of known answers, then with our own on a tiny model, against transformers."""

import json
import math
import subprocess
import sys
from contextlib import contextmanager
from typing import ClassVar, Literal

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.events import Log, read_events
from modelwright.core.record import Record, write_records
from modelwright.core.stage import Input, Run
from modelwright.methods.engines import Completion, EngineSpec
from modelwright.methods.tasks import Generate, Likelihood
from modelwright.stages import _evaluate_ask as asking
from modelwright.stages.evaluate import Evaluate


class Fake:
    """Tokens are characters. Answers come from a table by the last question; a character costs one nat, an `x` two."""

    def __init__(self, table, chat=True, context=400, score=True, mark=""):
        self.table, self.context, self.mark = table, context, mark
        self.capabilities = frozenset({"logprobs"} | ({"chat"} if chat else set()) | ({"score"} if score else set()))
        self.asked, self.scored = [], []

    def encode(self, text):
        return [ord(c) for c in self.mark + text]

    def decode(self, tokens):
        return "".join(map(chr, tokens)).replace(self.mark or "\0", "")

    def render(self, messages):
        text = "".join(f"<{m['role']}> {m['content']} " for m in messages) + "<assistant>"
        return [ord(c) for c in self.mark + text]

    def generate(self, requests):
        done = []
        for request in requests:
            text = self.decode(request.tokens)
            assert len(request.tokens) + request.sampling.max_tokens <= self.context
            assert request.sampling.temperature == 0
            self.asked.append(text)
            answer = next((a for q, a in self.table.items() if q in text), "?")[: request.sampling.max_tokens]
            done.append(Completion(answer, tuple(self.encode(answer)), (), "stop", len(request.tokens)))
        return done

    def answers(self, requests):
        yield from self.generate(requests)

    def score(self, tokens):
        self.scored += [self.decode(t) for t in tokens]
        assert all(len(t) <= self.context for t in tokens)
        return [[-2.0 if chr(c) == "x" else -1.0 for c in t[1:]] for t in tokens]

    def close(self):
        self.closed = True


class FakeSpec(EngineSpec):
    kind: Literal["fake"] = "fake"
    engines: ClassVar[dict] = {}

    def accepts(self, model):
        return None if model.name in self.engines else "not a fake"

    def open(self, model):
        return self.engines[model.name]


ROWS = [
    Record(
        f"q{i}",
        messages=[{"role": "user", "content": f"Question {i:02d}?"}, {"role": "assistant", "content": f"answer {i}"}],
        meta={"sort": ("name", "where")[i % 2], "from": ("prompt", "memory")[i % 2]},
    )
    for i in range(20)
]


def right(upto):
    return {f"Question {i:02d}?": f"answer {i}" for i in range(upto)}


@contextmanager
def engines(**named):
    FakeSpec.engines.update(named)
    try:
        yield named
    finally:
        FakeSpec.engines.clear()


def make_run(tmp_path, stage, rows=ROWS, against_type="model", stats=None, name="out"):
    """A run whose references are folders of the same name."""
    data = tmp_path / "pairs"
    data.mkdir(exist_ok=True)
    write_records(data / "test.jsonl", rows)
    out = tmp_path / name
    out.mkdir()
    inputs = {"pairs:test": Input("pairs:test", "records", data, "test")}
    inputs["new"] = Input("new", "model", tmp_path / "new", stats={"stage": "new"})
    if stage.against:
        inputs[stage.against] = Input(
            stage.against, against_type, tmp_path / stage.against, stats={"stage": stage.against, **(stats or {})}
        )
    notes = []
    log = Log(out / "metrics.jsonl", lambda event, fields: notes.append((event, fields)))
    return Run(out, inputs, 0, log), notes


def stage(**fields):
    return Evaluate.model_validate(
        {"model": "new", "data": "pairs:test", "tasks": ["exact_match"], "engine": FakeSpec(), **fields}
    )


def by_group(stats, task="exact_match", name="exact match"):
    return {m["group"]: m for m in stats["metrics"] if m["task"] == task and m["name"] == name}


def said(notes):
    return " | ".join(fields["text"] for event, fields in notes if event == "note")


# --- one model --------------------------------------------------------------------------------------


def test_numbers_samples_and_items(tmp_path):
    evaluate = stage()
    with engines(new=Fake(right(10))) as open_:
        run, _ = make_run(tmp_path, evaluate)
        stats = evaluate.run(run)
    assert open_["new"].closed
    found = by_group(stats)
    assert found[""]["value"] == 0.5 and found[""]["n"] == 20 and found[""]["low"] == pytest.approx(0.2993, abs=1e-4)
    assert set(found) == {"", "from=prompt", "from=memory", "name", "where"}
    assert found["name"]["baseline"] == pytest.approx(0.1)
    assert stats["comparisons"] == [] and stats["against"] == ""
    items = [json.loads(line) for line in (run.out / "items.jsonl").read_text().splitlines()]
    assert len(items) == 20 == stats["facts"][""]["rows"]
    assert {"id", "task", "group", "score", "weight", "answer"} <= set(items[0])
    assert items[3]["id"] == "q3" and items[3]["answer"] == "answer 3" and items[3]["score"] == 1.0
    samples = stats["samples"]
    assert len(samples) == 20 and [s["score"] for s in samples[:4]] == [1.0, 1.0, 0.0, 0.0]
    assert [s["group"] for s in samples[:4]] == ["name", "where", "name", "where"]
    assert samples[0]["prompt"].startswith("Question") and samples[0]["expected"].startswith("answer")
    assert next(read_events(run.out / "metrics.jsonl", "evaluation"))["metrics"] == stats["metrics"]
    json.dumps(stats, allow_nan=False)
    Facts(**stats["facts"][""])


def test_tasks_share_an_answer(tmp_path):
    tasks = ["exact_match", {"kind": "rouge", "rows": 8}, {"kind": "python_parses", "max_tokens": 64}]
    tasks.append({"kind": "exact_match", "label": "short", "max_tokens": 3})
    evaluate = stage(tasks=tasks)
    with engines(new=Fake(right(20))) as open_:
        stats = evaluate.run(make_run(tmp_path, evaluate)[0])
    assert len(open_["new"].asked) == 40 == stats["asked"]["different_asks"]  # 20 at 64 tokens, 20 at 3
    assert stats["asked"]["items"] == 68
    assert by_group(stats)[""]["value"] == 1.0 and by_group(stats, "short")[""]["value"] == 0.0
    assert len(stats["samples"]) == 24 and {s["task"] for s in stats["samples"]} == {
        t if isinstance(t, str) else t.get("label", t["kind"]) for t in tasks
    }


def test_same_numbers_every_time_and_for_any_batch(tmp_path):
    found = []
    for name, batch in (("a", 64), ("b", 64), ("c", 3)):
        evaluate = stage(tasks=["exact_match", "rouge", "perplexity"], batch=batch)
        with engines(new=Fake(right(7))):
            run, _ = make_run(tmp_path, evaluate, name=name)
            found.append((evaluate.run(run), (run.out / "items.jsonl").read_bytes()))
    assert found[0] == found[1] == found[2]


def test_likelihood_of_a_chat_is_that_of_its_answer(tmp_path):
    rows = [Record("a", messages=[{"role": "user", "content": "xxxx?"}, {"role": "assistant", "content": "axb"}])]
    evaluate = stage(tasks=["perplexity"])
    with engines(new=Fake({})) as open_:
        stats = evaluate.run(make_run(tmp_path, evaluate, rows)[0])
    assert open_["new"].scored == ["<user> xxxx? <assistant> axb"]  # the space is the template's
    assert by_group(stats, "perplexity", "perplexity")[""]["value"] == pytest.approx(math.exp(5 / 4))
    assert by_group(stats, "perplexity", "bits per byte")[""]["value"] == pytest.approx(5 / math.log(2) / 3)
    assert stats["samples"] == [] and stats["prompts"] == "chat template"


def test_a_mark_at_the_start_of_texts_is_not_put_before_answers(tmp_path):
    rows = [
        Record("a", messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]),
        Record("b", text="abc"),
    ]
    evaluate = stage(tasks=["perplexity"])
    with engines(new=Fake({}, mark="^")) as open_:
        stats = evaluate.run(make_run(tmp_path, evaluate, rows)[0])
    assert open_["new"].scored == ["<user> ? <assistant> yes", "abc"] and stats["asked"]["scored_tokens"] == 4 + 3
    assert by_group(stats, "perplexity", "bits per byte")[""]["value"] == pytest.approx(7 / math.log(2) / 6)


def test_long_texts_are_scored_in_windows(tmp_path):
    text = "".join("abcdefghijklmnopqrstuvwx"[i % 24] for i in range(100))
    evaluate = stage(tasks=["perplexity"])
    with engines(new=Fake({}, context=30)) as open_:
        run, notes = make_run(tmp_path, evaluate, [Record("long", text=text), Record("short", text="abc")])
        stats = evaluate.run(run)
    assert stats["asked"]["scored_tokens"] == 99 + 2 and stats["asked"]["texts_in_windows"] == 1
    assert len(open_["new"].scored) == stats["asked"]["windows"] > 4 and "windows" in said(notes)
    nats = 99 + text[1:].count("x") + 2
    assert by_group(stats, "perplexity", "perplexity")[""]["value"] == pytest.approx(math.exp(nats / 101))


@pytest.mark.parametrize(
    ("length", "first", "context"), [(1, 1, 8), (8, 1, 8), (9, 1, 8), (50, 1, 8), (50, 20, 8), (50, 3, 8), (20, 12, 16)]
)
def test_windows_score_each_token_once(length, first, context):
    ids = list(range(length))
    pieces = asking.windows(ids, first, context)
    scored = [token for piece in pieces for token in piece.tokens[-piece.scored :]]
    assert scored == ids[first:]
    for piece in pieces:
        assert len(piece.tokens) <= context
        assert len(piece.tokens) - piece.scored >= min(context // 2, ids[-1], 1) or piece.tokens[0] == 0
        assert piece.tokens == list(range(piece.tokens[0], piece.tokens[-1] + 1))


def test_what_does_not_fit_is_counted(tmp_path):
    rows = [*ROWS[:2], Record("long", messages=[{"role": "user", "content": "y" * 500}, {"role": "assistant", "content": "z"}])]
    rows.append(Record("tight", messages=[{"role": "user", "content": "y" * 340}, {"role": "assistant", "content": "z"}]))
    evaluate = stage(tasks=["exact_match", "perplexity"])
    with engines(new=Fake(right(2))):
        run, notes = make_run(tmp_path, evaluate, rows)
        stats = evaluate.run(run)
    assert stats["asked"]["prompts_without_room"] == 1 and stats["asked"]["answers_with_less_room"] == 1
    assert stats["asked"]["prompt_tokens_cut"] == len("<user>  <assistant> z") + 500 - 400
    assert by_group(stats)[""]["value"] == 0.5 and "do not fit" in said(notes) and "were cut" in said(notes)


def test_a_model_without_template_is_asked_in_plain_words(tmp_path):
    evaluate = stage(tasks=["exact_match", "perplexity"])
    with engines(new=Fake(right(20), chat=False)) as open_:
        run, notes = make_run(tmp_path, evaluate)
        stats = evaluate.run(run)
    assert "Question: Question 03?\nAnswer:" in open_["new"].asked
    assert "Question: Question 03?\nAnswer: answer 3" in open_["new"].scored
    assert by_group(stats)[""]["value"] == 1.0
    assert stats["prompts"] == "plain question and answer" and "no chat template" in said(notes)


def test_an_engine_without_probabilities_says_so(tmp_path):
    evaluate = stage(tasks=["perplexity"])
    with engines(new=Fake({}, score=False)), pytest.raises(UserError, match="engine: native"):
        evaluate.run(make_run(tmp_path, evaluate)[0])


def test_progress_is_shown(tmp_path):
    evaluate = stage(tasks=["exact_match", "perplexity"])
    with engines(new=Fake({})):
        run, notes = make_run(tmp_path, evaluate)
        evaluate.run(run)
    last = {f["label"]: (f["done"], f["total"]) for event, f in notes if event == "progress"}
    assert last == {"new: answers": (20, 20), "new: probabilities": (20, 20)}


# --- two models -------------------------------------------------------------------------------------


def test_against_a_model_and_against_its_evaluation_are_the_same(tmp_path):
    tasks = ["exact_match", "rouge", "perplexity"]
    with engines(new=Fake(right(15)), old=Fake(right(5))):
        both = stage(tasks=tasks, against="old")
        one = both.run(make_run(tmp_path, both, name="both")[0])
        earlier = stage(tasks=tasks, model="old")
        run, _ = make_run(tmp_path, earlier, name="old_report")
        run.inputs["old"] = Input("old", "model", tmp_path / "old")
        stats = earlier.run(run)
        stored = stage(tasks=tasks, against="old_report")
        run, _ = make_run(tmp_path, stored, against_type="evaluation", stats=stats, name="stored")
        two = stored.run(run)
    assert one["against"] == "old" and two["against"] == "old_report"
    assert one["comparisons"] == two["comparisons"] and one["samples"] == two["samples"]
    rows = {(c["name"], c["group"]): c for c in one["comparisons"]}
    change = rows["exact match", ""]
    assert (change["before"], change["after"], change["difference"], change["n"]) == (0.25, 0.75, 0.5, 20)
    assert (
        change["p"] == pytest.approx(2 / 1024) and change["better"] is True and 0.2 < change["low"] < 0.5 < change["high"] < 0.8
    )
    same = rows["perplexity", ""]
    assert same["difference"] == 0 and same["p"] == 1.0 and same["better"] is None
    assert one["common_items"] == {"exact_match": 20, "rouge": 20, "perplexity": 20}
    shown = next(s for s in one["samples"] if s["task"] == "exact_match" and s["score"] > s["score_before"])
    assert shown["answer"] == shown["expected"] and shown["answer_before"] == "?"


def earlier_report(tmp_path, tasks, rows=ROWS, table=None):
    with engines(new=Fake(table or right(5))):
        earlier = stage(tasks=tasks)
        run, _ = make_run(tmp_path, earlier, rows, name="before")
        return earlier.run(run)


def against_report(tmp_path, stats, **fields):
    later = stage(against="before", **fields)
    run, notes = make_run(tmp_path, later, against_type="evaluation", stats=stats)
    with engines(new=Fake(right(20))):
        return later.run(run), notes


def test_only_items_asked_in_the_same_words_are_compared(tmp_path):
    changed = [
        *ROWS[:10],
        *(Record(r.id, messages=[{"role": "user", "content": "Else?"}, r.messages[1]], meta=r.meta) for r in ROWS[10:]),
    ]
    stats, notes = against_report(tmp_path, earlier_report(tmp_path, ["exact_match"], changed))
    assert stats["common_items"] == {"exact_match": 10} and "10 of 20 items are not in 'before'" in said(notes)
    assert stats["comparisons"][0]["n"] == 10


def test_other_rows_cannot_be_compared(tmp_path):
    other = [Record(f"z{i}", messages=r.messages, meta=r.meta) for i, r in enumerate(ROWS)]
    with pytest.raises(UserError, match="none of the items"):
        against_report(tmp_path, earlier_report(tmp_path, ["exact_match"], other))


def test_another_way_of_scoring_cannot_be_compared(tmp_path):
    stats = earlier_report(tmp_path, [{"kind": "exact_match", "ignore_case": True}])
    with pytest.raises(UserError, match="set otherwise"):
        against_report(tmp_path, stats)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="no task 'rouge'"):
        against_report(other, stats, tasks=["rouge"])


def test_fewer_rows_of_the_same_task_can_be_compared(tmp_path):
    stats, _ = against_report(tmp_path, earlier_report(tmp_path, ["exact_match"]), tasks=[{"kind": "exact_match", "rows": 6}])
    assert stats["common_items"] == {"exact_match": 6}


# --- gates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ({"at_least": 0.5}, True),
        ({"at_least": 0.51}, False),
        ({"at_most": 0.4}, False),
        ({"at_least": 0.9, "group": "from=prompt"}, False),
        ({"at_least": 0.5, "metric": "exact match"}, True),
    ],
)
def test_gates(tmp_path, gate, passes):
    evaluate = stage(gates=[{"task": "exact_match", **gate}])
    with engines(new=Fake(right(10))):
        run, _ = make_run(tmp_path, evaluate)
        if passes:
            row = evaluate.run(run)["gates"][0]
            assert row["passed"] and row["value"] == 0.5 and row["metric"] == "exact match"
            return
        with pytest.raises(UserError, match="did not pass") as caught:
            evaluate.run(run)
    assert "exact match (from=memory) 0.5, 95 % " in str(caught.value)  # the numbers are in the message


def test_gate_against_the_model_before(tmp_path):
    evaluate = stage(against="old", gates=[{"task": "exact_match", "not_worse_than_against": True}])
    with engines(new=Fake(right(10)), old=Fake(right(11))):
        assert evaluate.run(make_run(tmp_path, evaluate, name="a")[0])["gates"][0]["passed"]  # one item shows nothing
    with engines(new=Fake(right(5)), old=Fake(right(15))):
        with pytest.raises(UserError, match=r"worse than 0\.75 of 'old'"):
            evaluate.run(make_run(tmp_path, evaluate, name="b")[0])


def test_gate_about_nothing_measured(tmp_path):
    evaluate = stage(gates=[{"task": "exact_match", "group": "nothing", "at_least": 0.5}])
    with engines(new=Fake({})), pytest.raises(UserError, match="not measured") as caught:
        evaluate.run(make_run(tmp_path, evaluate)[0])
    assert "from=prompt" in str(caught.value)


# --- faults before the work -------------------------------------------------------------------------

BASE = {"kind": "evaluate", "model": "new", "data": "pairs:test", "tasks": ["exact_match"]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": ["exact_match", "exact_match"]}, "another `label`"),
        ({"tasks": []}, "at least 1"),
        ({"tasks": ["exact_mach"]}, "exact_match"),
        ({"gates": [{"task": "rouge", "at_least": 0.1}]}, "none of the tasks"),
        ({"gates": [{"task": "exact_match"}]}, "a gate needs"),
        ({"data": [{"ref": "pairs:test", "weight": 2.0}]}, "for training"),
        ({"against": "new"}, "the model itself"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_faults_of_the_recipe(change, match):
    from modelwright.core.faults import build
    from modelwright.core.stage import STAGES

    spec, faults = build(STAGES, BASE | change, ())
    assert spec is None and match in " ".join(f"{fault.what} {fault.fix}" for fault in faults)


def test_json_round_trip_and_references():
    spec = stage(against="old", engine=None, gates=[{"task": "exact_match", "at_least": 0.5}])
    assert Evaluate.model_validate_json(spec.model_dump_json()) == spec
    assert {path: ref for path, (ref, _) in spec.refs().items()} == {"model": "new", "against": "old", "data.0.ref": "pairs:test"}
    assert not Evaluate.random and Evaluate.produces == "evaluation"


def test_the_ledger_names_a_gate_without_against():
    spec = stage(gates=[{"task": "exact_match", "not_worse_than_against": True}])
    assert "not_worse_than_against" in spec.gates[0].unused(spec)
    assert not spec.gates[0].unused(stage(against="old"))


def test_empty_data(tmp_path):
    evaluate = stage()
    with pytest.raises(UserError, match="holds no rows"):
        evaluate.run(make_run(tmp_path, evaluate, [])[0])


def test_no_row_that_fits(tmp_path):
    evaluate = stage(tasks=[{"kind": "exact_match", "where": {"from": "promt"}}])
    run, _ = make_run(tmp_path, evaluate)
    with pytest.raises(UserError, match="has no item") as caught:
        evaluate.run(run)
    assert "prompt" in caught.value.fix
    check = next(evaluate.checks(run))
    assert not check.ok and "prompt" in check.fix
    check = next(stage().checks(run))
    assert check.ok and check.detail.startswith("20 of 20")


def test_ids_of_two_sources_do_not_clash(tmp_path):
    evaluate = stage(data=["pairs:test", "more:test"])
    run, _ = make_run(tmp_path, evaluate)
    run.inputs["more:test"] = Input("more:test", "records", run.inputs["pairs:test"].path, "test")
    with engines(new=Fake(right(20))):
        stats = evaluate.run(run)
    assert by_group(stats)[""]["n"] == 40 and stats["asked"]["different_asks"] == 20


def test_estimate_tells_its_numbers_and_needs_no_torch():
    shape = Shape(layers=4, hidden=256, intermediate=640, heads=4, kv_heads=4, vocab=4096)
    machine = Machine("test", 2, 8e9, flops_per_s=60e9)
    parents = {"pairs:test": Facts(type="records", rows=1000, chars=700_000), "new": Facts(type="model", shape=shape)}
    parents["old"] = parents["new"]
    parents["report"] = Facts(type="evaluation")
    given = Given(machine, parents)
    one = stage(engine=None).estimate(given)
    assert one.seconds.value > 0 and "tokens read" in one.seconds.why and one.facts[""].type == "evaluation"
    assert stage(engine=None, against="report").estimate(given).seconds == one.seconds
    two = stage(engine=None, against="old").estimate(given)
    assert two.seconds.value > one.seconds.value and "2 models" in two.seconds.why
    more = stage(engine=None, tasks=["exact_match", "rouge"]).estimate(given)
    assert more.seconds == one.seconds and more.disk.value == 2 * one.disk.value  # shared answers
    unknown = stage(engine=None).estimate(Given(machine, {"pairs:test": Facts(type="path"), "new": Facts(type="path")}))
    assert "assumed" in unknown.seconds.why and "assumed" in unknown.memory.why


def test_planning_imports_nothing_heavy():
    heavy = "torch", "numpy", "transformers", "jinja2"
    code = f"import sys, modelwright.stages.evaluate; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_same_question_has_the_same_key():
    ask = Generate(({"role": "user", "content": "é"},), max_tokens=3)
    assert asking.key(ask) == asking.key(Generate(({"content": "é", "role": "user"},), max_tokens=3))
    others = [ask._replace(max_tokens=4), Generate(text="é", max_tokens=3), Likelihood(messages=ask.messages)]
    assert len({asking.key(a) for a in (ask, *others)}) == 4


# --- our own engine ---------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama of 2 layers with a byte-level tokenizer, saved as transformers does."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<|end|>", "<|user|>", "<|assistant|>"]
    words = {token: i for i, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet()), "in"])}
    core = Tokenizer(models.BPE(vocab=words, merges=[("i", "n")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", chat_template=TEMPLATE)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=64, eos_token_id=0, bos_token_id=None, pad_token_id=None, **shape
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # far from the uniform distribution
    folder = tmp_path_factory.mktemp("tiny") / "new"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def nats(model, ids, first):
    """Sum over the tokens from `first` on, by transformers' own loss."""
    import torch

    labels = torch.tensor([[-100] * first + ids[first:]])
    with torch.no_grad():
        mean = model(input_ids=torch.tensor([ids]), labels=labels).loss
    return float(mean) * (len(ids) - max(first, 1))


def test_perplexity_is_that_of_transformers(tmp_path, tiny):
    folder, model, tokenizer = tiny
    texts = ["def add(a, b):", "return a + b  # naïve", "x"]
    rows = [Record(f"t{i}", text=text) for i, text in enumerate(texts)]
    rows.append(Record("chat", messages=[{"role": "user", "content": "Name?"}, {"role": "assistant", "content": "add"}]))
    evaluate = stage(tasks=["perplexity", {"kind": "exact_match", "max_tokens": 8}], engine={"kind": "native", "threads": 1})
    run, _ = make_run(tmp_path, evaluate, rows)
    run.inputs["new"] = Input("new", "model", folder)
    stats = evaluate.run(run)
    total, tokens, size = 0.0, 0, 0
    for text in texts[:2]:
        ids = tokenizer.encode(text)
        total, tokens, size = total + nats(model, ids, 1), tokens + len(ids) - 1, size + len(text.encode()) - 1
    prompt = tokenizer.encode("<|user|>Name?<|end|><|assistant|>")
    total, tokens, size = total + nats(model, prompt + tokenizer.encode("add"), len(prompt)), tokens + 3, size + 3
    assert by_group(stats, "perplexity", "perplexity")[""]["value"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert by_group(stats, "perplexity", "bits per byte")[""]["value"] == pytest.approx(total / math.log(2) / size, rel=1e-4)
    assert stats["asked"]["scored_tokens"] == tokens and stats["engine"] == "native"
    import torch

    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=0, pad_token_id=0)
    sample = stats["samples"][0]
    assert sample["answer"] == tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)


def test_windows_of_a_real_model(tmp_path, tiny):
    folder, model, tokenizer = tiny
    text = "for i in range(10): print(i) # " * 5
    evaluate = stage(tasks=["perplexity"], engine=None)
    run, notes = make_run(tmp_path, evaluate, [Record("long", text=text)])
    run.inputs["new"] = Input("new", "model", folder)
    stats = evaluate.run(run)
    ids = tokenizer.encode(text)
    total = sum(nats(model, p.tokens, len(p.tokens) - p.scored) for p in asking.windows(ids, 1, 64))
    assert by_group(stats, "perplexity", "perplexity")[""]["value"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)
    assert stats["engine"] == "native" and "runs on native" in said(notes)


def test_a_recipe_evaluates_the_users_own_model_and_rows(tmp_path, tiny):
    """Through the core, from files alone: two evaluations of one model, which cannot differ."""
    from modelwright.core.execute import execute
    from modelwright.core.recipe import loads
    from modelwright.core.store import Store

    lines = [json.dumps({"messages": row.messages, "meta": row.meta}) for row in ROWS[:4]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    tasks = "[{kind: exact_match, max_tokens: 4}, perplexity]"
    model = f"model: {tiny[0]}, data: ./rows.jsonl, engine: {{kind: native, threads: 1}}, tasks: {tasks}"
    text = f"name: own\nstages:\n  one: {{kind: evaluate, {model}}}\n  two: {{kind: evaluate, {model}, against: one}}\n"
    store = Store(tmp_path / "store")
    loaded = loads(text, folder=tmp_path)
    outcomes = list(execute(loaded, store, Machine("test", 1, 8e9), lambda event, fields: None))
    stats = outcomes[1].artifact.manifest["stats"]
    assert stats["against"] == "one" and stats["common_items"] == {"exact_match": 4, "perplexity": 4}
    assert all(row["difference"] == 0 and row["better"] is None for row in stats["comparisons"])
    assert [o.state for o in execute(loaded, store, Machine("test", 1, 8e9), lambda event, fields: None)] == ["cached", "cached"]
