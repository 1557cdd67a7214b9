"""Convert: from any layout to any other that holds it, in every form of file; losses are counted, nothing is half-written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from modelwright.api import convert
from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.sources import _convert
from modelwright.methods.sources._files import read

USER, GOOD, BAD = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
}
TOOL = {"role": "tool", "content": "1"}
CHATS: list[dict[str, Any]] = [
    {"messages": [USER, GOOD], "source": "s", "n": 3},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": 'a,"b"\n\tc\r\n'}, GOOD]},
    {"messages": [USER, CALL, TOOL, GOOD], "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [USER, {**GOOD, "weight": 0}, USER, GOOD]},
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", CHATS)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path: Path) -> list[Record]:
    return list(read(path, Log(None)))


def bare(found: list[Record]) -> list[Any]:
    return [(r.text, r.messages, r.chosen, r.rejected, r.meta) for r in found]


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".json"])
@pytest.mark.parametrize("to", ["messages", "sharegpt"])
def test_there_and_back(chats: Path, tmp_path: Path, to: str, end: str) -> None:
    out = tmp_path / f"out{end}"
    found = convert(chats, out, to)
    assert (found.read, found.written, found.left_out, found.fields) == (4, 4, {}, {})
    assert "read as `messages`, because" in found.notes[0]
    assert bare(records(out)) == bare(records(chats))
    convert(out, tmp_path / "back.jsonl", "messages")
    assert bare(records(tmp_path / "back.jsonl")) == bare(records(chats))


def test_the_same_rows_give_the_same_bytes(chats: Path, tmp_path: Path) -> None:
    for end in (".jsonl.gz", ".csv"):
        one, two = tmp_path / f"1{end}", tmp_path / f"2{end}"
        for path in (one, two):
            convert(chats, path, "alpaca")
        assert one.read_bytes() == two.read_bytes()
    assert gzip.decompress((tmp_path / "1.jsonl.gz").read_bytes()).count(b"\n") == 2


def test_what_a_layout_cannot_hold_is_counted(chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    found = convert(chats, out, "alpaca")
    assert (found.read, found.written) == (4, 2)
    assert found.left_out == {
        "it holds plain text, and no `tool_call_id` or `tool_calls` of a turn": 1,
        "it holds plain text, and no `weight` of a turn": 1,
    }
    assert list(found.samples.values()) == ["chats.jsonl:3", "chats.jsonl:4"]
    found = convert(chats, out, "alpaca", spare=True, force=True)
    assert found.written == 3 and found.fields == {"`weight` of turns: the layout has no place for it": 1}
    assert records(out)[2].messages == [USER, GOOD, USER, GOOD]


def test_tables(chats: Path, tmp_path: Path) -> None:
    for end in (".csv", ".tsv"):
        table = tmp_path / f"out{end}"
        found = convert(chats, table, "prompt_completion")
        assert found.written == 1 and found.fields == {"`n`: kept as text": 1}
        assert found.left_out == {f"as {end} it would be read back otherwise: messages": 3}
        assert bare(records(table)) == [("", [USER, GOOD], [], [], {"source": "s", "n": "3"})]
    alpaca = tmp_path / "alpaca.csv"
    assert convert(chats, alpaca, "alpaca").written == 2
    assert [r.messages for r in records(alpaca)] == [row["messages"] for row in CHATS[:2]]


def test_parquet(chats: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.parquet"
    found = convert(chats, out, "messages")
    assert found.written == 4 and found.fields == {"`tools`: kept as text": 1}
    assert [r.messages for r in records(out)] == [r.messages for r in records(chats)]
    more = [{"messages": [USER, {**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {key: 1}}}]}]} for key in "ab"]
    found = convert(write(tmp_path / "more.jsonl", [*more, CHATS[0]]), out, "messages", force=True)
    assert (found.written, found.left_out) == (1, {"as .parquet it would be read back otherwise: messages": 2})
    clash = [{"text": "t", "x": 1}, {"text": "t", "x": [1]}]
    with pytest.raises(UserError, match="cannot be written as Parquet"):
        convert(write(tmp_path / "clash.jsonl", clash), tmp_path / "clash.parquet", "text")
    assert not (tmp_path / "clash.parquet").exists()


def test_pairs_and_judged_answers(tmp_path: Path) -> None:
    pairs = write(
        tmp_path / "pairs.jsonl", [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}]
    )
    out = tmp_path / "out.jsonl"
    assert convert(pairs, out, "preference").written == 1
    assert json.loads(out.read_text()) == {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=r"no row of .* can be written as `messages`") as error:
        convert(pairs, tmp_path / "none.jsonl", "messages")
    assert "1 of 1: it holds chats alone" in error.value.why and not (tmp_path / "none.jsonl").exists()
    multi = write(tmp_path / "multi.jsonl", [CHATS[3]])
    for end in (".csv", ".json", ".parquet"):
        with pytest.raises(UserError, match="no row of"):
            convert(multi, tmp_path / f"none{end}", "prompt_completion" if end == ".csv" else "dolly")
    ranked = write(tmp_path / "ranked.jsonl", [{"prompt": "q", "responses": ["b", "a", "c"], "scores": [2, 3, 1]}])
    found = convert(ranked, out, "preference", force=True)
    assert (found.read, found.written) == (2, 2), "a row may give several"
    chats = convert(ranked, out, "prompt_completion", "{kind: ranked, gives: chats}", force=True)
    assert chats.written == 3 and chats.notes == []


def test_a_file_that_would_be_read_otherwise_says_so(tmp_path: Path) -> None:
    words = write(tmp_path / "raw.jsonl", [{"text": "a document"}])
    found = convert(words, tmp_path / "out.jsonl", "{kind: text, key: body}")
    assert "has to be read with `format: text`" in found.notes[-1]


def test_nothing_is_overwritten_or_half_written(chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        convert(chats, out, "messages")
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(CHATS[0]) + '\n{"messages": [')
    with pytest.raises(UserError, match="torn last line"):
        convert(torn, out, "messages", force=True)
    assert out.read_text() == "mine"
    found = convert(torn, out, "messages", on_bad="drop", force=True)
    assert found.written == 1 and found.unreadable == {"torn last line": 1}
    assert found.samples["torn last line"].startswith("torn.jsonl line 2: ")
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_convert, "_write", full)
    with pytest.raises(OSError, match="No space"):
        convert(chats, out, "messages", force=True)
    assert out.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["chats.jsonl", "out.jsonl", "torn.jsonl"]


def test_command(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.json")
    assert main(["convert", str(chats), out, "--to", "alpaca"]) == 0
    said = capsys.readouterr().out
    assert "read as `messages`, because" in said and "2 of 4 records written" in said and "chats.jsonl:3" in said
    assert main(["convert", str(chats), out, "--to", "sharegpt", "--from", "messages", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 4
    for args, fault in (
        ([str(chats), out, "--to", "messages"], "--force"),
        ([str(chats), str(tmp_path / "x.txt"), "--to", "messages"], "let its name end in"),
        ([str(tmp_path / "none.jsonl"), str(tmp_path / "x.jsonl"), "--to", "messages"], "there is no file"),
        ([str(chats), str(tmp_path / "x.jsonl"), "--to", "mesages"], "known: alpaca"),
        ([str(chats), str(tmp_path / "x.jsonl"), "--to", "{kind: text, kee: x}"], "is no format"),
        ([str(chats), str(tmp_path / "x.jsonl"), "--to", "ranked"], "can only be read"),
    ):
        assert main(["convert", *args]) == 2
        assert fault in capsys.readouterr().err
