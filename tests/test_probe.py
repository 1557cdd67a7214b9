"""A look at data: known counts in made files, every verifier, large files in parts, and what is torn, empty or forbidden."""

import gzip
import json
import os
import random
import sys

import pytest

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.plan import _probe_read
from modelwright.plan._probe_verify import VERIFIERS, Case, case, reasoned, verified
from modelwright.plan.probe import CHARS_PER_TOKEN, probe

WORDS = "river house tree fox lamp stone cloud green quick small light water bread paper winter summer".split()


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_name(shares):
    return {share.name: share.count for share in shares}


# --- rows, layouts, shapes ------------------------------------------------------------------------------


def chat(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def test_rows_layouts_and_shapes_are_counted(tmp_path):
    rng = random.Random(0)
    write(tmp_path / "chats.jsonl", [chat(sentence(rng, 6), sentence(rng, 9)) for _ in range(30)])
    pair = lambda: {"prompt": sentence(rng, 6), "chosen": sentence(rng, 12), "rejected": sentence(rng, 7)}
    write(tmp_path / "pairs.jsonl", [pair() for _ in range(20)])
    judged = ({"prompt": sentence(rng, 5), "completion": sentence(rng, 5), "label": i < 4} for i in range(10))
    write(tmp_path / "judged.jsonl", judged)
    steps = [{"prompt": sentence(rng, 5), "completions": ["a b", "c d"], "labels": [True, False]} for _ in range(5)]
    write(tmp_path / "steps.jsonl", steps)
    (tmp_path / "note.txt").write_text(sentence(rng, 40))
    found = probe([tmp_path])
    assert found.rows.exact and found.rows.value == 66 and found.looked == 66
    assert by_name(found.holds) == {"chats": 30, "pairs": 20, "binary feedback": 10, "step labels": 5, "documents": 1}
    assert by_name(found.layouts) == {"messages": 30, "preference": 20, "binary_feedback": 10, "stepwise": 5, "documents": 1}
    assert "it has `chosen` and `rejected`" in {file.name: file.why for file in found.files}["pairs.jsonl"]
    assert found.tokens.value == pytest.approx(found.chars.value / CHARS_PER_TOKEN)
    assert found.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert not found.broken and not found.empty.count


def test_the_result_is_plain_json_with_fractions(tmp_path):
    write(tmp_path / "a.jsonl", [{"question": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(8)])
    found = probe([tmp_path / "a.jsonl"])
    tree = json.loads(json.dumps(found.to_json()))
    assert tree["verifiable"]["count"] == 8 and tree["verifiable"]["share"] == 1.0
    assert tree["verifiable"]["interval"][0] == pytest.approx(0.676, abs=0.01)  # Wilson, 8 of 8
    assert tree["files"][0]["rows"]["exact"] is True
    assert {row["what"] for row in found.table()} >= {"rows", "tokens", "verifiable", "verifier: number"}


def test_turns_system_prompts_and_tool_calls(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "How is the weather in Rome today?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "sunny"},
                {"role": "assistant", "content": "It is sunny in Rome, so take a hat with you."},
            ]
        }
        for _ in range(4)
    ]
    found = probe([write(tmp_path / "a.jsonl", rows)])
    assert found.system.count == 4 and found.system.samples == ("Be short.",)
    assert by_name(found.holds)["tool calls"] == 4
    assert by_name(found.verifiers)["tool call"] == 4
    assert {length.name: length.p50 for length in found.lengths}["turns"] == 5
    assert found.duplicates.exact.count == 3


def test_objects_of_no_layout_are_looked_at_all_the_same(tmp_path):
    rows = [
        {"Body": f"There are {i} apples and {i} pears.", "Question": "How many is that?", "Answer": 2.0 * i} for i in range(9)
    ]
    found = probe([write(tmp_path / "svamp.jsonl", rows)])
    assert by_name(found.holds) == {"objects": 9}
    assert "no known format" in found.files[0].why and "Answer" in found.files[0].why
    assert by_name(found.verifiers)["number"] == 9


def test_rows_that_a_layout_cannot_read_are_broken_and_still_looked_at(tmp_path):
    rows = [{"question": "Which of these?", "choices": ["a b", "c d"], "answer": i % 2} for i in range(6)]
    found = probe([write(tmp_path / "a.jsonl", rows)])
    assert found.rows.value == 6 and by_name(found.broken) == {"not the layout": 6}
    assert "'answer' is int, not text" in found.broken[0].samples[0]
    assert by_name(found.verifiers) == {"choice": 6}
    rows = [{"question": "Which of these?", "choices": [f"a{i}", f"b{i}"], "answer": 1} for i in range(6)]
    assert not probe([write(tmp_path / "b.jsonl", rows)]).duplicates.exact.count


# --- verifiers ------------------------------------------------------------------------------------------

ANSWERS = {
    "marked number": (Case("", "How many?", "6 * 7 = 42 clips.\n#### 42"), Case("", "How many?", "#### many of them I guess so")),
    "boxed": (Case("", "", r"So it is \boxed{\frac{1}{2}} then, as is seen."), Case("", "", r"So it is \boxed{\frac{1}{2} then")),
    "choice": (Case("", "Which? A) one B) two", "(B) two"), Case("", "Which?", "Because two is the larger one of them")),
    "number": (Case("", "", "The answer is $1,200.50."), Case("", "", "There are 12 of them, or 13 as some would say")),
    "yes or no": (Case("", "", "Yes."), Case("", "", "Yes, but only on days when it does not rain")),
    "Python with tests": (
        Case("", "def f(x):\n", "    return x + 1\n", tests="assert f(1) == 2"),
        Case("", "", "def f(x):\n    return x + 1\n"),
    ),
    "tool call": (
        Case("", "", "", calls=({"name": "add", "arguments": '{"a": 1}'},)),
        Case("", "", "", calls=({"name": "add", "arguments": '{"a": '},)),
    ),
    "JSON": (Case("", "", '```json\n{"name": "Ada", "born": 1815}\n```'), Case("", "", '{"name": "Ada", "born": 1815')),
    "SQL": (
        Case("", "", "SELECT name FROM people WHERE age > 3"),
        Case("", "", "Select a chair from the people who are there (now"),
    ),
    "short answer": (Case("", "", "Ada Lovelace"), Case("", "", "It was Ada Lovelace who wrote the first program of all")),
}


@pytest.mark.parametrize("name", list(VERIFIERS))
def test_each_verifier_takes_what_it_can_check_and_nothing_else(name):
    good, bad = ANSWERS[name]
    assert name in by_name(verified([good]).each)
    assert name not in by_name(verified([bad]).each)


@pytest.mark.parametrize(
    "case",
    [
        Case("", "q", "²", options=("a", "b", "c")),
        Case("", "q", "1" * 19_000, options=("a", "b")),
        Case("", "q", "", calls=({"name": "x", "arguments": "[" * 100_000},)),
        Case("", "q", "", calls=({},)),
        Case("", "A. " * 7000, "B"),
        Case("", "", "A:" + " " * 19_000 + "x"),
        Case("", "", "A: 5" + " " * 19_000 + "x"),
        Case("", "", "yes" + " " * 19_000 + "x"),
        Case("", "", "<think>" * 2800),
    ],
    ids=["superscript", "digits", "nested", "no call", "listed", "spaces", "more spaces", "yes", "think"],
)
def test_answers_made_to_break_a_verifier_are_told_in_no_time(case):
    """Patterns that search again from each letter took up to a minute for one of these, and the first three raised."""
    assert verified([case]).any.of == reasoned([case])[0].of == 1


def test_a_call_that_is_no_object_is_no_call(tmp_path):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{"function": "abc"}]}]
    assert not probe([write(tmp_path / "a.jsonl", [{"messages": turns}])]).verifiers


def test_what_a_verifier_would_compare_is_shown():
    assert verified([ANSWERS["boxed"][0]]).each[0].samples == (r"\frac{1}{2}",)
    assert verified([ANSWERS["number"][0]]).each[0].samples == ("$1,200.50",)
    assert verified([Case("", "", "So she has 9 of them left.\nA: 18")]).each[0][:2] == ("number", 1)
    schema = verified([ANSWERS["JSON"][0]] * 3).each[0]
    assert schema.count == 3 and "{born, name}" in schema.why
    assert verified([Case("", "x", "2", options=("a", "b", "c"))]).each[0][:2] == ("choice", 1)


def test_code_is_parsed_and_never_run(tmp_path):
    trap = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(trap)!r}).touch()\n"
    assert by_name(verified([Case("", "", code, tests="assert True")]).each) == {"Python with tests": 1}
    assert not trap.exists()


def test_reasoning_is_told_by_its_traces():
    cases = [
        Case("", "", "<think>two and two</think>four"),
        Case("", "", "Let's go step by step: first this."),
        Case("", "", "She has 3 apples and buys 4 more, which makes 3 + 4 = 7 apples, and then eats none of them.\n#### 7"),
        Case("", "", "four", thought="two and two"),
        Case("", "", "#### 7"),
    ]
    whole, traces = reasoned(cases)
    assert whole.count == 4
    assert by_name(traces) == {"<think>": 1, "step by step": 1, "derivation before the answer": 1, "thoughts apart": 1}


@pytest.mark.parametrize(
    ("row", "thinks"),
    [
        (
            {"question": "How many?", "options": ["A) 3", "B) 7"], "rationale": "It is the sum, seven. " * 4, "correct": "B"},
            True,
        ),
        ({"problem": "How many?", "solution": "Three and four are seven, so there are seven of them. " * 2, "answer": "7"}, True),
        ({"problem": "How many?", "solution": "Seven.", "answer": "7"}, False),
        ({"question": "How many?", "answer": "7", "comment": "Three and four are seven. " * 4}, False),
    ],
)
def test_a_derivation_in_a_column_of_its_own_is_reasoning(row, thinks):
    """AQuA-RAT's rationales and MATH's solutions stand beside the answer."""
    whole, _ = reasoned([case("", row, None)])
    assert whole.count == thinks


# --- labels and pairs -----------------------------------------------------------------------------------


def test_labels_and_their_balance(tmp_path):
    rng = random.Random(1)
    rows = [{"text": sentence(rng, 8), "sentiment": "good" if i < 90 else "bad", "id": i} for i in range(100)]
    (label,) = probe([write(tmp_path / "a.jsonl", rows)]).labels
    assert label.key == "sentiment" and label.distinct == 2 and label.imbalance == 9
    assert by_name(label.classes) == {"good": 90, "bad": 10}


def test_scores_are_numbers_and_feedback_is_balanced(tmp_path):
    rng = random.Random(2)
    rows = [{"text": sentence(rng, 8), "score": round(rng.random(), 4)} for _ in range(80)]
    (label,) = probe([write(tmp_path / "a.jsonl", rows)]).labels
    assert label.sort == "numbers" and 0 <= label.numbers.least <= label.numbers.most <= 1
    judged = [chat(sentence(rng, 4), sentence(rng, 4), label=i % 4 == 0) for i in range(40)]
    (label,) = probe([write(tmp_path / "b.jsonl", judged)]).labels
    assert by_name(label.classes) == {"False": 30, "True": 10}


def test_pairs_and_what_is_wrong_with_them(tmp_path):
    rng = random.Random(3)

    def row(prompt, chosen, rejected):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    rows = [row(sentence(rng, 5), sentence(rng, 20), sentence(rng, 10)) for _ in range(30)]
    near = sentence(rng, 30)
    rows.append(row("near", near + " stone", near + " cloud"))
    rows += [row("again", "one two three", "four five six"), row("again", "four five six", "one two three")]
    rows.append(row("same", "equal words here", "equal words here"))
    pairs = probe([write(tmp_path / "a.jsonl", rows)]).pairs
    assert pairs.of == 34 and pairs.identical.count == 1
    assert pairs.near.count == 1 and pairs.contradicted.count == 2
    assert pairs.longer.count >= 30 and pairs.length_ratio > 1.5


# --- languages, copies, personal data -------------------------------------------------------------------


def test_languages_are_told_or_said_by_name_why_not(tmp_path, monkeypatch):
    pytest.importorskip("py3langid")
    german = "Der Hund läuft am frühen Morgen durch den Garten, weil er die Nachbarn hören kann und sie begrüßen möchte."
    english = "The dog runs through the garden early in the morning because it hears the neighbours and wants to greet them."
    file = write(tmp_path / "a.jsonl", [{"text": german}, {"text": english}, {"text": "12345"}])
    assert by_name(probe([file]).languages) == {"de": 1, "en": 1}
    monkeypatch.setitem(sys.modules, "pycld2", None)
    from modelwright.methods.steps import STEPS

    step = sys.modules[STEPS.load("language").__module__]

    step._Detectors.load.cache_clear()
    found = probe([file])
    step._Detectors.load.cache_clear()
    assert found.languages == () and any("modelwright[language]" in note for note in found.notes)


def test_without_compiled_kernels_near_copies_are_left_out_by_name(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "numba" or name.startswith("modelwright.text")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    found = probe([write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "one"}])])
    assert found.duplicates.exact.count == 1 and found.duplicates.near.of == 0
    assert any("near copies" in note and "modelwright[data]" in note for note in found.notes)


def test_exact_and_near_copies(tmp_path):
    rng = random.Random(4)
    texts = [sentence(rng, 60) for _ in range(20)]
    near = [text + " and one word more" for text in texts[:4]]
    found = probe([write(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts[:5], *near]])])
    assert found.duplicates.exact.count == 5 and found.duplicates.exact.of == 29
    assert found.duplicates.near.count == 4


def test_rows_of_the_training_file_in_the_test_file(tmp_path):
    rng = random.Random(5)
    train = [{"question": sentence(rng, 12), "answer": sentence(rng, 6)} for _ in range(50)]
    test = [{"question": sentence(rng, 12), "answer": sentence(rng, 6)} for _ in range(17)]
    again = [{**row, "question": row["question"].upper() + "!"} for row in train[:2]]
    other = {"question": train[7]["question"], "answer": "something else"}
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "atest.jsonl", [*test, *again, other])
    found = probe([tmp_path / "train.jsonl", tmp_path / "atest.jsonl"])
    (overlap,) = found.overlaps
    assert (overlap.left, overlap.right) == ("train.jsonl", "atest.jsonl")
    assert overlap.rows.count == 2 and overlap.prompts.count == 3 and overlap.rows.of == 20


def test_personal_data_is_counted_and_never_shown(tmp_path):
    rng = random.Random(6)
    rows = [chat(sentence(rng, 5), f"Write to ada.lovelace@example.org or call {i}") for i in range(3)]
    found = probe([write(tmp_path / "a.jsonl", rows)])
    assert by_name(found.personal) == {"email": 3}
    assert "ada.lovelace" not in json.dumps(found.to_json())


# --- large files ----------------------------------------------------------------------------------------


def numbered(count, rng):
    return [{"text": f"{i} {sentence(rng, 5 + 30 * (i % 7))}"} for i in range(count)]


def test_a_large_file_is_looked_at_in_places_spread_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_probe_read, "LEAST_BLOCK_BYTES", 4096)
    monkeypatch.setattr(_probe_read, "LEAST_BUDGET_BYTES", 1)
    file = write(tmp_path / "a.jsonl", numbered(8000, random.Random(7)))
    found = probe([file], whole_bytes=file.stat().st_size / 2)
    assert not found.rows.exact and not found.files[0].whole
    assert found.files[0].read_rows < 3000
    assert found.rows.low <= 8000 <= found.rows.high and found.rows.high - found.rows.low < 1600
    assert "places spread evenly" in found.rows.why and any("in parts" in note for note in found.notes)


def test_places_in_a_file_that_is_hardly_large_do_not_overlap(tmp_path):
    """Blocks were longer than the way from one to the next: rows were read twice, and told as copies."""
    file = write(tmp_path / "a.jsonl", numbered(4000, random.Random(11)))
    assert _probe_read.LEAST_BUDGET_BYTES < file.stat().st_size < _probe_read.BLOCKS * _probe_read.LEAST_BLOCK_BYTES
    found = probe([file], whole_bytes=1)
    assert found.files[0].read_rows <= 4000 and not found.duplicates.exact.count
    assert found.rows.low <= 4000 <= found.rows.high
    text = file.read_text()
    at = text.index("\n", len(text) // 2) + 1
    file.write_text(text[:at] + "{torn\n" + text[at:])
    (broken,) = probe([file], whole_bytes=1).broken
    assert broken.samples[0].startswith(f"a.jsonl:byte {at}:"), "no number of a line, which nobody counted"


def test_a_large_packed_file_is_looked_at_from_its_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(_probe_read, "LEAST_BUDGET_BYTES", 1)
    rows = numbered(4000, random.Random(8))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    found = probe([path], whole_bytes=path.stat().st_size / 1.01)
    assert not found.rows.exact and found.rows.high is None and found.rows.low < 4000
    assert found.rows.value == pytest.approx(4000, rel=0.2)
    assert "the first" in found.rows.why


def test_a_large_table_knows_its_rows(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(_probe_read, "LEAST_BUDGET_BYTES", 1)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(numbered(3000, random.Random(8))), path, compression="none")
    found = probe([path], whole_bytes=path.stat().st_size / 2)
    assert found.rows.exact and found.rows.value == 3000 and found.files[0].read_rows < 1000
    assert not found.chars.exact


def test_archives_and_documents_of_other_kinds(tmp_path):
    import zipfile

    pytest.importorskip("resiliparse")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"inner/{i}.txt", f"a text number {i}")
    (tmp_path / "page.html").write_text(
        "<html><body><h1>Lamps</h1><p>" + "A lamp gives light at night. " * 20 + "</p></body></html>"
    )
    found = probe([tmp_path])
    assert by_name(found.holds) == {"documents": 4} and found.rows.value == 4
    assert "`kind: html`" in {file.name: file.why for file in found.files}["page.html"]


def test_the_sample_is_drawn_from_all_rows_and_the_same_each_time(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": f"row {'early' if i < 500 else 'late'} {i}"} for i in range(1000)])
    found = probe([file], sample=200)
    assert found.looked == 200 and found.rows.value == 1000
    assert found.duplicates.exact.of == 1000  # these are of every row
    assert probe([file], sample=200).to_json() | {"seconds": 0} == found.to_json() | {"seconds": 0}


def test_progress_is_told_when_it_takes_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("modelwright.plan.probe.QUIET_S", -1.0)
    heard = []
    file = write(tmp_path / "a.jsonl", numbered(300, random.Random(9)))
    probe([file], log=Log(None, lambda event, fields: heard.append((event, fields["label"]))))
    assert ("progress", "trying verifiers") in heard and ("progress", "reading a.jsonl") in heard


def test_tokens_are_counted_where_a_tokenizer_is_named(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "model").mkdir()
    made.save(str(tmp_path / "model" / "tokenizer.json"))
    file = write(tmp_path / "a.jsonl", [{"text": "a b a b"}, {"text": "b"}])
    found = probe([file], tokenizer=tmp_path / "model")
    assert found.tokens.value == pytest.approx(5) and "counted by model" in found.tokens.why
    with pytest.raises(UserError, match="no tokenizer"):
        probe([file], tokenizer=tmp_path / "a.jsonl")


def test_lengths_are_those_of_whole_texts_though_samples_are_cut(tmp_path):
    found = probe([write(tmp_path / "a.jsonl", [{"text": "word " * 20_000}, {"text": "word"}])])
    assert {length.name: length.most for length in found.lengths}["rows"] == 100_000 / CHARS_PER_TOKEN


def test_a_document_whose_lines_look_like_rows_is_told(tmp_path):
    rng = random.Random(10)
    (tmp_path / "prompts.txt").write_text("\n".join(sentence(rng, 9) for _ in range(40)))
    (tmp_path / "story.txt").write_text("\n\n".join(sentence(rng, 9) for _ in range(40)))
    notes = [note for note in probe([tmp_path]).notes if "per: line" in note]
    assert len(notes) == 1 and notes[0].startswith("prompts.txt")


# --- what cannot be read --------------------------------------------------------------------------------


def test_torn_and_broken_lines_are_counted_with_their_places(tmp_path):
    good = json.dumps({"text": "a fine row"})
    (tmp_path / "a.jsonl").write_bytes(f"{good}\n[1]\n{{bad\n{good}\n".encode() + b"\xff\xfe\n" + b'{"text": "to')
    found = probe([tmp_path / "a.jsonl"])
    assert found.rows.value == 2
    broken = by_name(found.broken)
    assert broken["bad JSON"] == 1 and broken["not an object"] == 1 and broken["torn last line"] == 1
    assert any(share.samples[0].startswith("a.jsonl:3") for share in found.broken if share.name == "bad JSON")


def test_archives_and_files_that_nothing_reads_are_told(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "b.zip").write_bytes(b"PK, and nothing more")
    (tmp_path / "c.log").write_text("one two")
    found = probe([tmp_path / "a.jsonl", tmp_path / "b.zip", tmp_path / "c.log"])
    assert found.rows.value == 1 and by_name(found.broken) == {"not a zip archive": 1, "c.log cannot be read": 1}
    with pytest.raises(UserError, match="cannot be read"):
        probe(["x" * 5000])


def test_empty_files_and_empty_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.txt").write_text(" \n")
    write(tmp_path / "c.jsonl", [{"words": " "}, {"words": "one"}])
    found = probe([tmp_path])
    assert by_name(found.broken)["empty file"] == 2
    assert found.empty.count == 1 and found.rows.value == 2


def test_a_line_that_is_too_long_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("modelwright.methods.sources._open.LINE_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 5000}) + "\n" + json.dumps({"text": "short"}) + "\n")
    found = probe([tmp_path / "a.jsonl"])
    assert found.rows.value == 1 and by_name(found.broken) == {"line too long": 1}


def test_one_giant_line_takes_neither_memory_nor_time(tmp_path, monkeypatch):
    monkeypatch.setattr("modelwright.methods.sources._open.LINE_BYTES", 4096)
    monkeypatch.setattr(_probe_read, "LEAST_BUDGET_BYTES", 1)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 1_000_000)
    found = probe([tmp_path / "a.jsonl"], whole_bytes=100_000)
    assert found.rows.value == 0 and "line too long" in by_name(found.broken)


def test_a_missing_path_and_a_folder_of_nothing_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        probe([tmp_path / "nothing.jsonl"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder holds no file"):
        probe([tmp_path / "folder"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told_with_its_place(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret").chmod(0)
    try:
        found = probe([tmp_path])
    finally:
        (tmp_path / "secret").chmod(0o700)
    assert any("secret" in sample for share in found.broken for sample in share.samples)


def test_a_forbidden_file_is_told_and_alone_it_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    forbidden = write(tmp_path / "b.jsonl", [{"text": "two"}])
    opened = type(forbidden).open

    def refuse(self, *args, **kwargs):
        if self.name == "b.jsonl":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(type(forbidden), "open", refuse)
    found = probe([tmp_path])
    assert found.rows.value == 1 and "b.jsonl" in found.broken[0].samples[0]
    with pytest.raises(UserError, match=r"b\.jsonl: cannot be read"):
        probe([forbidden])


def test_a_pipe_and_a_link_to_nowhere_are_told(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "one"}])
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    found = probe([tmp_path])
    assert by_name(found.broken) == {"not a file": 2}


def test_torch_stays_out():
    import subprocess

    code = "import sys, modelwright.plan.probe, modelwright.plan.lint; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
