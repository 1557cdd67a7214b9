"""Preview: what is shown is what the loss sees, for chats, pairs, texts, judged rows; with colours, without, and as a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import modelwright as mw
from modelwright.api import preview_file
from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.preview import Part, Preview, Shown, Token
from modelwright.core.record import Record
from modelwright.report.preview import page
from modelwright.stages._train_preview import Asked, _with_cut, preview
from tests import train_kit

ASKED = {"role": "user", "content": "the red fox [sleeps] <|im_end|>"}
CHATS = [
    {
        "messages": [
            ASKED,
            {"role": "assistant", "content": "Seven 八."},
            ASKED,
            {"role": "assistant", "content": "no", "weight": 0},
        ]
    },
    {"messages": [{"role": "user", "content": "a lazy dog " * 30}, {"role": "assistant", "content": "yes"}]},
    {"messages": [{"role": "user", "content": "only asked \x1b[31m"}]},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    train_kit.tokenizer(folder / "tok")
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    return folder


def shown(home: Path, rows: list[Record], **fields: Any) -> Preview:
    """As the stage with these fields would see the rows."""
    folder = home / "run"
    stage = train_kit.stage(template={"kind": "chatml"}, **fields)
    inputs = {"data": train_kit.records(home / "data", rows), "vocab": train_kit.Input("vocab", "tokenizer", home / "tok")}
    return preview(stage, train_kit.run_of(folder, inputs), "stage", Asked())


def text(tokens: list[Token], *states: str) -> str:
    return "".join(token.text for token in tokens if token.state in states)


def test_chats_show_what_is_trained_what_is_context_and_what_is_cut(home: Path) -> None:
    found = preview_file(home / "chats.jsonl", home / "tok", "chatml", length=128)
    assert (found.records, found.used, found.made) == (3, 1, 1)
    assert found.dropped == {"a chat of more than 128 tokens": 1, "nothing to train on": 1}
    row, long, unanswered = found.rows
    (part,) = row.parts
    assert text(part.tokens, "trained") == "Seven 八.<|im_end|>", "an answer of weight 0 is context"
    assert "".join(token.text for token in part.tokens).count("<|im_end|>") == 6
    assert sum(token.special for token in part.tokens) == 8, "what a person typed is no mark"
    assert [token.text for token in part.tokens if token.ends] == ["<|im_end|>"]
    assert long.why == "a chat of more than 128 tokens" and long.count("cut") > 128 and not long.count("trained")
    assert unanswered.why == "nothing to train on" and "only asked" in text(unanswered.parts[0].tokens, "cut")
    assert found.tokens == {state: sum(row.count(state) for row in found.rows) for state in ("trained", "context", "cut")}
    assert any("read as `messages`" in note for note in found.notes)


def test_preview_agrees_with_the_micro_batch(home: Path) -> None:
    """The tokens shown as trained are the targets of the batch that the loss gets."""
    from modelwright.nn.rows import pack, store
    from modelwright.stages._train_rows import encode
    from modelwright.stages._train_text import Ledger, Text

    rows = train_kit.chats(4)
    found = shown(home, rows, objective="sft")
    stage = train_kit.stage(template={"kind": "chatml"}, objective="sft")
    from modelwright.nn.model import load_tokenizer

    text_of = Text(load_tokenizer(home / "tok"), stage.template, "answers", stage.length)
    stored = store(encode(text_of, rows, Ledger()), home / "stored", len(text_of.tokenizer))
    batch = pack(stored, range(len(stored)))
    trained = [token.id for row in found.rows for token in row.parts[0].tokens if token.state == "trained"]
    assert trained == batch.target_N.tolist() and len(found.rows) == 4
    assert [token.id for row in found.rows for token in row.parts[0].tokens] == batch.ids_T.tolist()


def test_pairs_texts_and_completions(home: Path) -> None:
    pairs = preview_file(
        _file(home, "pairs", [{"prompt": "q", "chosen": "the red", "rejected": "the dog"}]), home / "tok", "chatml"
    )
    shared, chosen, rejected = pairs.rows[0].parts
    assert [part.name for part in pairs.rows[0].parts] == ["begins both", "chosen", "rejected"]
    assert text(shared.tokens, "trained", "context") + text(chosen.tokens, "trained") == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nthe red<|im_end|>"
    )
    assert text(rejected.tokens, "trained").endswith("dog<|im_end|>") and rejected.tokens[0].state == "trained"
    texts = preview_file(_file(home, "texts", [{"text": "the red fox jumps " * 20}]), home / "tok", length=64)
    pieces = [row.parts[0].tokens for row in texts.rows]
    assert len(pieces) > 1 and all(tokens[0].state == "context" for tokens in pieces)
    assert "".join(text(tokens, "trained") for tokens in pieces) == ("the red fox jumps " * 20)[1:] + "<|endoftext|>" or (
        text(pieces[0], "context", "trained") + "".join(text(tokens, "trained") for tokens in pieces[1:])
        == "the red fox jumps " * 20 + "<|endoftext|>"
    )
    assert texts.tokens["cut"] == 0 and texts.rows[1].name.endswith("piece 2")
    raw = preview_file(_file(home, "raw", [{"completion": "a dog"}]), home / "tok")
    assert text(raw.rows[0].parts[0].tokens, "context", "trained") == "a dog<|endoftext|>"


def _file(home: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = home / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_objectives_that_judge_or_hide(home: Path) -> None:
    rows = [Record(f"r{i}", text="the red fox jumps over the lazy dog", meta={"label": i, "positive": "a dog"}) for i in (0, 1)]
    small = {"kind": "encoder", "depth": 2, "hidden": 32, "heads": 4, "intermediate": 48}
    judged = shown(home, rows, objective={"kind": "regress", "field": "label"})
    assert judged.tokens["trained"] == 0 and [row.note for row in judged.rows] == ["label 0", "label 1"]
    hidden = shown(home, rows, objective={"kind": "masked_token", "mask": "<|im_start|>", "rate": 0.3}, model=small)
    tokens = hidden.rows[0].parts[0].tokens
    asked = [token for token in tokens if token.state == "trained"]
    assert asked and any(token.text == "<|im_start|>" for token in asked) and "drawn anew" in hidden.notes[0]


def test_what_truncation_took_out_is_shown_where_it_was() -> None:
    def part(ids: str, state: Any) -> Part:
        return Part("", [Token(ord(char), char, state) for char in ids])

    for kept, whole, cut in (("abc", "abcdef", "def"), ("def", "abcdef", "abc"), ("abf", "abcdef", "cde"), ("abc", "abc", "")):
        found = _with_cut(part(kept, "trained"), part(whole, "trained")).tokens
        assert "".join(token.text for token in found) == whole and text(found, "cut") == cut
    assert text(_with_cut(part("xyz", "trained"), part("abcdef", "trained")).tokens, "cut") == ""


# --- a recipe -------------------------------------------------------------------------------------------

RECIPE = """
name: demo
stages:
  corpus: {kind: curate, source: {kind: jsonl, path: ./texts.jsonl}, steps: []}
  vocab: {kind: tokenizer, data: corpus, method: {kind: bpe, size: 300}, template: chatml}
  chat: {kind: train, data: ./many.jsonl, vocab: vocab, model: {kind: llama, depth: 2, hidden: 32, heads: 4, kv_heads: 2},
         objective: sft, length: 64, batch_tokens: 128, steps: 2}
  more: {kind: train, data: [{ref: ./many.jsonl, weight: 2}, {ref: corpus, weight: 1}], start: chat,
         validation: corpus, objective: next_token, length: 96, batch_tokens: 128, steps: 2}
"""


@pytest.fixture(scope="module")
def recipe(home: Path) -> Path:
    _file(home, "texts", [{"text": row.text} for row in train_kit.texts(8)])
    _file(home, "many", [{"messages": row.messages} for row in train_kit.chats(9)])
    (home / "r.yaml").write_text(RECIPE)
    return home / "r.yaml"


def test_a_recipe_before_and_after_its_vocabulary_is_made(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = mw.load(recipe, store=recipe.parent / "store")
    with pytest.raises(UserError, match="vocab is not made") as error:
        project.preview()
    assert error.value.fix == f"modelwright run {recipe} --only vocab"
    project.run(only="vocab")
    more = project.preview(rows=2)
    assert more.title == "stage more", "its start is not made, but the vocabulary of that is"
    assert dict(more.facts)["weight of ./many.jsonl"] == "2"
    found = project.preview("chat", rows=2)
    assert found.title == "stage chat" and len(found.rows) == 2 and found.records == 9
    assert dict(found.facts)["objective"] == "sft" and "[" in str(found)
    step = project.preview("chat", step=1)
    assert step.side_by_side and len(step.rows) > 1 and sum(len(row.parts[0].tokens) for row in step.rows) <= 128
    assert step.rows != project.preview("chat", step=2).rows
    with pytest.raises(UserError, match="no step 3"):
        project.preview("chat", step=3)
    with pytest.raises(UserError, match="no stage 'corpus' that trains"):
        project.preview("corpus")
    with pytest.raises(UserError, match="no row is called 'x'"):
        project.preview(row="x")

    store = ["--store", str(recipe.parent / "store")]
    assert main(["preview", str(recipe), "chat", "--row", "many.jsonl:3", "stages.chat.length=63", *store]) == 0
    out = capsys.readouterr().out
    assert "── row 1 · many.jsonl:3" in out and "63 tokens at most" in out and re.search(r"\[.+<\|im_end\|>¶\]", out)
    assert main(["preview", str(recipe), "--json", "--rows", "1", *store]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["rows"][0]["parts"][0]["tokens"][0]["text"] == "<|im_start|>" and tree["tokens"]["trained"] > 0
    assert main(["preview", str(recipe), "chat", "more", *store]) == 2
    assert main(["preview", str(recipe), "--length", "9", *store]) == 2
    assert "the recipe says that" in capsys.readouterr().err


def test_a_file_without_a_tokenizer_says_what_to_give(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats = str(home / "chats.jsonl")
    for args, said in (
        ([chats], "give --tokenizer DIR"),
        ([chats, "a.b=1", "--tokenizer", str(home / "tok")], "is no recipe"),
        ([chats, "--tokenizer", str(home / "tok"), "--template", "chatnl"], "no chat template 'chatnl'"),
        ([chats, "--tokenizer", str(home / "tok"), "--template", "llama3"], "lacks '<|start_header_id|>'"),
        ([str(home / "none.jsonl"), "--tokenizer", str(home / "tok")], "there is no file"),
    ):
        assert main(["preview", *args]) == 2
        assert said in capsys.readouterr().err


def test_rows_that_cannot_be_read_are_counted(home: Path) -> None:
    path = home / "torn.jsonl"
    path.write_text(json.dumps(CHATS[0]) + "\nno JSON\n" + json.dumps(CHATS[2]) + "\n")
    found = preview_file(path, home / "tok", "chatml")
    assert found.records == 2 and any(
        note.startswith("cannot be read: 1 bad JSON, first torn.jsonl line 2: ") for note in found.notes
    )


def test_plain_text_and_page_are_safe(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = preview_file(home / "chats.jsonl", home / "tok", "chatml", length=128)
    said = str(found)
    assert "\x1b" not in said and "␛" in said and "\\[sleeps\\] \\<|im_end|>" in said and "[Seven 八.<|im_end|>¶]" in said
    evil = Shown("<script>", [Part("<b>", [Token(1, "<script>alert(1)</script>\u202e", "trained", label="<i>")])], note='"')
    made = page(found._replace(rows=[*found.rows, evil], notes=["<img src=x>"]))
    assert "<script" not in made and "<img" not in made and "<b>" not in made and "&lt;U+202E&gt;" in made
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', made)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    style = re.search(r"<style>(.*?)</style>", made, re.S)
    import base64
    import hashlib

    assert style and base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy[1]
    target = tmp_path / "p.html"
    args = ["preview", str(home / "chats.jsonl"), "--tokenizer", str(home / "tok"), "--template", "chatml", "--length", "128"]
    assert main([*args, "--html", str(target)]) == 0
    assert target.read_text() == page(found) and "page: " in capsys.readouterr().out


def test_colours_on_a_terminal(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from modelwright.cli.preview import _coloured

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    _coloured(preview_file(home / "chats.jsonl", home / "tok", "chatml", length=128))
    out = capsys.readouterr().out
    assert "\x1b[" in out and "Seven" in re.sub(r"\x1b\[[0-9;]*m", "", out) and "\x1b[31m" not in out.replace("\x1b[1;31m", "")


def test_a_file_of_bad_rows_alone_says_which_and_why(home: Path) -> None:
    path = home / "bad.jsonl"
    path.write_text("no JSON\n" * 3)
    with pytest.raises(UserError, match=r"bad\.jsonl line 1: bad JSON"):
        preview_file(path, home / "tok", "chatml")
