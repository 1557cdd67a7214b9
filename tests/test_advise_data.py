"""What the advisor sees in the user's data and words, what it asks, the command and its page."""

import json
import random

import pytest
import yaml

from modelwright.core.recipe import load
from modelwright.plan._advise_ask import MOST, following
from modelwright.plan._advise_fit import choose
from modelwright.plan._advise_words import told
from modelwright.plan.advise import Files, Known, Situation, advise
from modelwright.plan.models import of_params
from tests.advise_kit import FILES, T4, named, rows_in
from tests.train_kit import sentence


@pytest.fixture
def folder(tmp_path):
    return rows_in(tmp_path)


# --- the user's data ----------------------------------------------------------------------------------


def test_data_becomes_facts_with_evidence(folder):
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    paths = [folder / f"{name}.jsonl" for name in ("rows", "pairs", "texts")]
    found = seen([(path, probe([path])) for path in paths], folder)
    assert found.files.rows == ("./rows.jsonl",) and found.files.pairs == ("./pairs.jsonl",)
    assert found.files.texts == ("./texts.jsonl",)
    assert found.fields["rows"] == found.fields["pairs"] == 120 and found.fields["text_tokens"] > 100
    assert all(how == "data" and said for how, said in found.origins.values())
    assert set(found.fields) <= set(Situation._fields)
    short, long = (
        choose(Situation(rows=1e5, row_tokens=tokens, shape=of_params("135M").shape), T4, "sft") for tokens in (30, 900)
    )
    assert found.fields["row_tokens"] < 100 and short.seconds < long.seconds / 5


@pytest.mark.parametrize("device", ["t4", "rtx-4090", "a100-40"])
@pytest.mark.parametrize("words", [20, 300, 1200])
@pytest.mark.parametrize("sort", ["rows", "pairs", "labels", "near", "texts"])
def test_what_is_advised_fits_where_it_is_advised_for(sort, words, device, tmp_path):
    """It was reckoned with rows of 1,024 tokens, whatever the recipe said: DPO on rows of 2,048 did not fit its own T4."""
    import modelwright as mw
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    rng, path = random.Random(0), tmp_path / f"{sort}.jsonl"
    rows = []
    for number in range(100):
        one, other, asked = sentence(rng, words), sentence(rng, words), sentence(rng, 9)
        chat = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": one}]}
        kinds = {
            "rows": chat,
            "pairs": {"prompt": asked, "chosen": one, "rejected": other},
            "labels": {"text": one, "label": number % 2},
            "near": {"text": asked, "positive": one},
            "texts": {"text": one},
        }
        rows.append(kinds[sort])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = seen([(path, probe([path]))], tmp_path)
    fields = found.fields | {"texts": {"goal": "domain", "text_tokens": 2e8}, "near": {"near": 5e3}}.get(sort, {})
    answer = advise(Known(Situation(**fields), found.origins), named(device), files=found.files)
    assert answer.recipe, answer.no_recipe
    (tmp_path / "r.yaml").write_text(answer.recipe)
    plan = mw.load(tmp_path / "r.yaml", store=tmp_path / "store").plan(device)
    assert not plan.misfits()
    assert answer.chosen is not None
    trained = [row for row in plan.rows if row.kind == "train"]
    short = answer.chosen.room.ways["lora" if "kind: lora" in answer.recipe else "full"]
    assert trained and short[0], short


ODD = {
    "torn": "".join(
        '{"prompt": "x\n' if n % 3 == 0 else json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) + "\n" for n in range(300)
    ),
    "few": "".join("{\n" if n == 7 else json.dumps({"prompt": f"q {n}", "completion": f"a {n}"}) + "\n" for n in range(300)),
    "empty": "",
    "broken": "no json\n" * 60,
    "binary": "\0\1\2\n" * 60,
    "nulls": "null\n" * 60,
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_read_is_told_and_no_recipe_stops_at_it(name, tmp_path, capsys, monkeypatch):
    """A third of a file was broken, nothing said so, and the recipe stopped at its first line; of an empty one it was told that
    files should be named."""
    import modelwright as mw

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ODD[name])
    _, out = run_command(["rows.jsonl", "--device", "t4", "--yes"], capsys)
    assert "What is in rows.jsonl" in out and "broken: " in out and "cannot be read" in out
    if name not in ("torn", "few"):
        assert "no recipe: ./rows.jsonl: " in out and not (tmp_path / "advised.yaml").exists()
        return
    (outcome,) = (one for one in mw.load("advised.yaml", store=tmp_path / "store").iterate(only="rows"))
    assert outcome.state == "made", outcome


@pytest.mark.parametrize("limits", [{"hours": 0.4}, {"hours": 0.2}, {"usd": 0.05}, {"usd": 0.02}])
@pytest.mark.parametrize("sorts", [("rows",), ("rows", "pairs")])
def test_a_recipe_does_not_break_the_budget_that_it_is_for(limits, sorts, tmp_path):
    """Half an hour of measuring before and after was not reckoned, and the plan refused the recipe."""
    import modelwright as mw

    rng, amount = random.Random(0), 2000
    for sort in sorts:
        lines = []
        for _ in range(amount):
            asked, one, other = sentence(rng, 30), sentence(rng, 90), sentence(rng, 90)
            row = {"prompt": asked, "completion": one}
            lines.append(json.dumps(row if sort == "rows" else {"prompt": asked, "chosen": one, "rejected": other}))
        (tmp_path / f"{sort}.jsonl").write_text("\n".join(lines))
    files = Files(**{sort: (f"./{sort}.jsonl",) for sort in sorts}, length=256, amounts=dict.fromkeys(sorts, amount))
    told = {"goal": "preference" if "pairs" in sorts else "behaviour", "row_tokens": 180, **dict.fromkeys(sorts, amount)}
    answer = advise(Known(Situation(**told, **limits)), T4, files=files)
    assert answer.recipe, answer.no_recipe
    (tmp_path / "r.yaml").write_text(answer.recipe)
    mw.load(tmp_path / "r.yaml", store=tmp_path / "store").plan("t4").refuse()


def test_a_column_without_a_name_is_no_answer(tmp_path):
    """A table's index was an answer that a program can check, and RL on it was advised."""
    from modelwright.plan.probe import probe

    lines = [f"{number},is it thing {number} of them?,web" for number in range(200)]
    (tmp_path / "table.csv").write_text("\n".join([",prompt,source", *lines]))
    assert not probe([tmp_path / "table.csv"]).verifiable.of


def test_rows_of_an_almost_known_layout_are_to_be_converted(tmp_path):
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"how many are {n} and {n}?", "answer": 2 * n}) + "\n" for n in range(200)))
    found = seen([(path, probe([path]))], tmp_path)
    assert "convert --from" in advise(Known(Situation(**found.fields, goal="behaviour")), T4, files=found.files).no_recipe


@pytest.mark.parametrize("amount", [1, 20])
def test_what_is_only_measured_is_measured_on_all_rows(amount, tmp_path):
    """A tenth of twenty rows was held out, and prompts were measured on two of them; of one row on none."""
    import modelwright as mw

    rows = [{"prompt": f"what is {n}?", "completion": f"it is the number {n}, which is written so."} for n in range(amount)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = advise(Known(Situation(goal="behaviour", rows=amount)), T4, files=Files(rows=("./rows.jsonl",)))
    assert answer.walks[0].leaf == "prompt"
    tree = yaml.safe_load(answer.recipe)["stages"]
    assert tree["before"]["data"] == "rows" and "split" not in tree["rows"]
    (tmp_path / "r.yaml").write_text(answer.recipe)
    (outcome,) = mw.load(tmp_path / "r.yaml", store=tmp_path / "store").iterate(only="rows")
    assert outcome.artifact is not None and outcome.artifact.manifest["stats"]["rows_out"] == amount


def test_the_interview_asks_for_rows_where_prompts_do_not_give_the_form():
    """Nobody was asked, so that retrieval with SFT was never an answer of an interview."""
    told = Situation(goal="facts", fresh=True, cited=True, reading_tokens=1e7, text_tokens=0.0)
    assert following(Known(told), False).field == "prompting"
    assert following(Known(told._replace(prompting="short")), False).field == "rows"
    assert advise(Known(told._replace(prompting="short", rows=500)), T4).walks[0].leaf == "rag_sft"
    (step,) = (one for one in advise(Known(told), T4).walks[0].steps if one.name == "form")
    assert "prompts" in step.fact and "rows" not in step.fact


def test_a_time_is_told_of_what_it_is_of():
    """Passes of SFT were told as KTO's, and hours of a training that fits nowhere."""
    from modelwright.cli._advise_print import start

    kto = advise(Known(Situation(goal="preference", ratings=500.0)), T4)
    assert "passes of sft, reckoned in place of KTO" in start(kto, T4)
    large = advise(Known(Situation(rows=500, shape=of_params("70B").shape)), T4)
    assert start(large, T4).endswith("its training does not fit NVIDIA T4")
    assert "reckoned in place" not in start(advise(Known(Situation(rows=500)), T4), T4)


def test_every_source_of_files_can_leave_out_what_it_cannot_read():
    from modelwright.methods.sources import SOURCES
    from modelwright.methods.sources._files import Files

    kinds = [cls for kind in SOURCES.names() if issubclass(cls := SOURCES.load(kind), Files)]
    assert kinds and all("on_bad" in cls.model_fields for cls in kinds)


def test_what_the_trees_do_not_turn_on_is_told_too(tmp_path):
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    rows = [{"prompt": f"write to person{n}@example.com", "completion": f"I wrote to her, case {n}."} for n in range(80)]
    (tmp_path / "data").mkdir()
    for name, found in (("train", rows), ("test", rows[:40])):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    found = seen([(tmp_path / "data", probe([tmp_path / "data"]))], tmp_path)
    answer = advise(Known(Situation(**found.fields), found.origins), T4, files=found.files)
    assert any("`pii`" in text for text in answer.remarks)
    assert any("train on one of them alone" in text for text in answer.remarks), answer.remarks


@pytest.mark.parametrize(("name", "kind"), [("labels", "texts"), ("spans", "words")])
def test_labels_are_found_in_data(folder, name, kind):
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    path = folder / f"{name}.jsonl"
    found = seen([(path, probe([path]))], folder)
    assert found.fields["labelled"] == 120 and found.fields["label_kind"] == kind
    assert found.files.labelled == (f"./{name}.jsonl",)
    answer = advise(Known(Situation(**found.fields), found.origins), T4, files=found.files)
    assert answer.methods[0].name == {"texts": "classify", "words": "classify_tokens"}[kind]
    if kind == "texts":
        assert found.files.labels == ("0", "1")
    load_text(answer.recipe, folder)


def test_each_sort_of_document_gets_the_source_that_reads_it(folder):
    """A packed file of rows was named as plain text, and of a folder only plain text was read."""
    import gzip

    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    pytest.importorskip("resiliparse")
    (folder / "docs").mkdir()
    for number in range(3):
        (folder / "docs" / f"{number}.md").write_text(f"# Lamps\n\nlamp number {number}")
        (folder / "docs" / f"{number}.html").write_text(
            "<html><body><p>" + f"A lamp {number} gives light. " * 20 + "</p></body></html>"
        )
    (folder / "texts.jsonl.gz").write_bytes(gzip.compress((folder / "texts.jsonl").read_bytes()))
    paths = [folder / "docs", folder / "texts.jsonl.gz"]
    found = seen([(path, probe([path])) for path in paths], folder)
    answer = advise(Known(Situation(goal="domain", text_tokens=2e8)), T4, files=found.files)
    source = yaml.safe_load(answer.recipe)["stages"]["texts"]["source"]
    assert sorted((row["kind"], row["path"]) for row in source) == [
        ("html", "./docs/"),
        ("jsonl", "./texts.jsonl.gz"),
        ("markdown", "./docs/"),
    ]
    load_text(answer.recipe, folder)


@pytest.mark.parametrize("keys", [("text", "positive"), ("anchor", "positive"), ("query", "pos")])
def test_pairs_that_belong_together_are_found_in_data(keys, folder, tmp_path):
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    rows = [json.loads(line) for line in (folder / "near.jsonl").read_text().splitlines()]
    named = [dict(zip(keys, (row["text"], row["positive"]), strict=True)) for row in rows]
    (tmp_path / "near.jsonl").write_text("\n".join(map(json.dumps, named)))
    folder = tmp_path
    found = seen([(folder / "near.jsonl", probe([folder / "near.jsonl"]))], folder)
    assert found.fields["near"] == 120 and found.files.near == ("./near.jsonl",)
    found.fields["near"] = 5000
    answer = advise(Known(Situation(**found.fields), found.origins), T4, files=found.files)
    assert answer.methods[0].name == "contrastive" and "labels" not in answer.recipe.partition("# Texts")[0]
    load_text(answer.recipe, folder)


def test_what_is_held_out_goes_by_the_rows_of_its_own_file():
    files = FILES._replace(amounts={"rows": 200_000, "pairs": 900})
    found = advise(Known(Situation(goal="preference", rows=2e5, pairs=900)), T4, files=files)
    stages = yaml.safe_load(found.recipe)["stages"]
    assert stages["rows"]["split"]["test"] == 0.01 and stages["pairs"]["split"]["test"] == 0.1


def test_the_time_is_that_of_all_passes():
    once = choose(Situation(pairs=2000), T4, "dpo")
    twice = choose(Situation(rows=4000), T4, "sft")
    assert once.trains == "1 pass of dpo" and twice.trains == "2 passes of sft"
    shape = of_params("1.7B").shape
    hours = choose(Situation(rows=7500, shape=shape), T4, "sft").seconds / 3600
    tight = choose(Situation(rows=7500, hours=0.75 * hours), T4, "sft")
    assert tight.room.params < shape.params, "a pass of the two alone would fit"


def test_what_nobody_said_of_thinking_is_assumed():
    """A file of rows says nothing of whether thinking helps: that was told as known from the data."""
    fields = {"rows": 300.0, "verifiable": 1.0, "verifier": "choice"}
    found = advise(Known(Situation(**fields), dict.fromkeys(fields, ("data", "x"))), T4)
    step = next(step for step in found.walks[0].steps if step.name == "reasoning")
    assert (step.branch, step.how) == ("no", "assumed")


def test_what_no_task_here_can_check_is_said():
    s = Situation(goal="reasoning", rows=500, verifiable=1.0, traces=1.0, verifier="marked number")
    found = advise(Known(s), T4, files=FILES)
    assert yaml.safe_load(found.recipe)["stages"]["after"]["tasks"][0]["max_tokens"] == FILES.length, "not cut at 64"
    assert "rouge" in found.recipe and "no task here does that yet" in found.recipe.partition("name:")[0].replace("\n# ", " ")
    assert any("no task here does that yet" in remark for remark in found.remarks)
    alike = advise(Known(s._replace(goal="behaviour", verifier="short answer")), T4, files=FILES)
    assert not any("no task here" in remark for remark in alike.remarks)


@pytest.mark.parametrize("labels", [["two  words", "b"], [True, False], [f"intent {n}" for n in range(30)], [1.0, 2.0]])
def test_labels_are_written_as_the_objective_names_them(folder, labels):
    """Those shown as evidence are cut, tidied and the 20 commonest: a recipe with these left rows out."""
    from modelwright.core.record import Record
    from modelwright.methods.objectives import OBJECTIVES
    from modelwright.plan._advise_seen import seen
    from modelwright.plan.probe import probe

    path = folder / "own.jsonl"
    rows = [{"text": f"text number {n}", "category": labels[n % len(labels)]} for n in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = seen([(path, probe([path]))], folder).files
    classify = OBJECTIVES.build({"kind": "classify", "field": files.label_key, "labels": files.labels})
    assert {classify.label(Record("", meta=row)) for row in rows} == set(range(len(labels)))
    path.write_text("".join(json.dumps({"text": row["text"], "meta": {"category": row["category"]}}) + "\n" for row in rows))
    found = seen([(path, probe([path]))], folder)
    assert "top of each row" in advise(Known(Situation(**found.fields)), T4, files=found.files).no_recipe


def load_text(text, folder):
    path = folder / "written.yaml"
    path.write_text(text)
    return load(path)


# --- words, questions, the command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("classify support mails into queues", "labels"),
        ("answer questions about our documentation and cite the page", "facts"),
        ("solve school maths problems", "reasoning"),
        ("write replies in our house style", "behaviour"),
        ("make it faster on a phone", "smaller"),
        ("find similar questions", "search"),
        ("answers that people prefer", "preference"),
        ("train a model from scratch on protein sequences", "model"),
        ("understand the jargon of insurance", "domain"),
        ("a helpful assistant that replies with reasonable care and resolves complaints", "behaviour"),
    ],
)
def test_words_of_a_task(task, goal):
    assert told(task)["goal"][0] == goal


def test_the_interview_asks_what_the_path_turns_on():
    known, asked = Known(Situation()), []
    while (question := following(known, False)) is not None:
        asked.append(question.field)
        assert question.why and question.default
        known = Known(known.situation._replace(**{question.field: question.read(question.default)}))
    assert asked == ["goal", "prompting", "rows"]
    known = Known(Situation(goal="behaviour", prompting="untried", rows=900.0))
    while (question := following(known, False)) is not None:
        asked.append(question.field)
        known = Known(known.situation._replace(**{question.field: question.read(question.default)}))
    assert asked[-1] == "target" and len(asked) == len(set(asked)) <= MOST
    asked_for = following(Known(Situation(goal="facts", fresh=False, cited=False, text_tokens=0.0)), False)
    assert asked_for.field == "reading_tokens", "no text to train on is not no text to read"
    known = Known(Situation(goal="facts"))
    assert following(known, False).field == "cited"
    assert following(Known(Situation(goal="behaviour", prompting="short", rows=10.0)), True).field != "rows"
    with pytest.raises(ValueError, match="one of"):
        following(Known(Situation()), False).read("nonsense")
    assert following(Known(Situation()), False).read("2") == "facts"


def run_command(args, capsys):
    from modelwright.cli.advise import main

    code = main([*map(str, args)])
    return code, capsys.readouterr().out


def test_the_command_looks_at_data_and_writes_a_recipe(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, out = run_command(["rows.jsonl", "pairs.jsonl", "--device", "t4", "--target", "laptop", "--yes"], capsys)
    assert code == 0 and "wrote advised.yaml" in out and "Turned down" in out and "your data" in out and "├─▶" in out
    assert (folder / "advised.yaml").read_text().startswith("# ")
    load(folder / "advised.yaml")
    _, out = run_command(["rows.jsonl", "--device", "t4", "--yes"], capsys)
    assert "wrote advised-2.yaml" in out


def test_the_command_as_json_and_page(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    args = ["rows.jsonl", "--device", "t4", "--goal", "behaviour", "--task", "<b>x</b>", "--json", "--html", "page.html"]
    _, out = run_command(args, capsys)
    tree = json.loads(out)
    assert tree["data"][0]["path"] == "rows.jsonl" and tree["data"][0]["rows"]
    assert tree["recipe"] == "advised.yaml" and tree["trees"][0]["path"][0]["how"] == "flag"
    assert {row["role"] for row in tree["methods_side_by_side"]} == {"advised", "turned down"}
    columns = {"cost", "memory", "energy", "data", "data quality", "deployment", "time"}
    assert columns <= set(tree["methods_side_by_side"][0])
    page = (folder / "page.html").read_text()
    assert "<svg" in page and "<script" not in page and "default-src 'none'" in page and "SFT" in page
    assert "What is in rows.jsonl" in page and "length of answers" in page


def test_the_command_refuses_what_it_cannot_do(folder, capsys, monkeypatch):
    from modelwright.core.errors import UserError

    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text("name: mine\n")
    for args, what in (
        (["rows.jsonl", "--out", "mine.yaml", "--yes"], "there already"),
        (["--out", "no/where.yaml", "--yes"], "no folder"),
        (["rows.jsonl", "--html", "no/where.html", "--yes"], "no folder"),
        (["--start", "NoSuchModel", "--yes"], "not known"),
        (["--target-memory", "lots", "--yes"], "target-memory"),
        (["--devices", "2", "--yes"], "needs a device"),
    ):
        with pytest.raises(UserError, match=what):
            run_command(args, capsys)
    assert (folder / "mine.yaml").read_text() == "name: mine\n" and not (folder / "advised.yaml").exists()


def test_the_path_is_told_without_torch():
    import subprocess
    import sys

    code = "import sys; from modelwright.plan.advise import *; from modelwright.plan.devices import named\n"
    code += "advise(Known(Situation(rows=500)), named('t4')); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
