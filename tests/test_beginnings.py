"""What plans know of the user's own files: how many rows they hold, and how much text."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import pytest

from modelwright.api import load
from modelwright.core import beginnings
from modelwright.core.beginnings import held

ROWS = [
    {"messages": [{"role": "user", "content": "ä" * (n % 7)}, {"role": "assistant", "content": f"{n:04}"}]} for n in range(300)
]
CHARS = sum(len(turn["content"]) for row in ROWS for turn in row["messages"])
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CELLS = "".join(f'"a, {n:03}";bc\n' for n in range(300))


@pytest.fixture(params=[1 << 20, 4096], ids=["whole", "beginning"])
def near(request, monkeypatch):
    """How near a count is, of whole files and of their beginnings."""
    monkeypatch.setattr(beginnings, "HEAD_BYTES", request.param)
    beginnings._of_file.cache_clear()
    yield lambda value: pytest.approx(value, rel=0.0 if request.param == 1 << 20 else 0.1)
    beginnings._of_file.cache_clear()


@pytest.mark.parametrize(
    ("name", "data", "chars"),
    [
        ("a.jsonl", LINES.encode(), CHARS),
        ("a.ndjson", b"\xef\xbb\xbf" + LINES.encode(), CHARS),
        ("a.json", json.dumps(ROWS).encode(), CHARS),
        ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False).encode(), CHARS),
        ("a.json", LINES.encode(), CHARS),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), CHARS),
        ("a.jsonl.bz2", bz2.compress(LINES.encode()), CHARS),
        ("a.jsonl.xz", lzma.compress(LINES.encode()), CHARS),
        ("a.csv", ("question;answer\n" + CELLS).encode(), 2400),
        ("a.tsv", ("question\tanswer\n" + "one\tthree\n" * 300).encode(), 2400),
    ],
)
def test_rows_and_text_are_counted(name, data, chars, tmp_path, near):
    (tmp_path / name).write_bytes(data)
    for path in (tmp_path / name, tmp_path):
        found = held(path)
        assert found is not None and found.rows == near(300) and found.chars == near(chars)


def test_many_files_are_told_from_some(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.jsonl").write_text(LINES)
    found = held(tmp_path)
    assert found is not None and found.rows == pytest.approx(40 * 300)
    (tmp_path / "0.jsonl").write_text(LINES[: len(LINES) // 2])
    less = held(tmp_path)
    assert less is not None and less.rows < found.rows, "a file that has changed is read anew"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"words\n" * 100),
        ("a.parquet", b"PAR1"),
        ("a.json", b'{"data": [1, 2, 3], "version": "x"}'),
        ("a.json", b"[1, 2, 3]"),
        ("a.jsonl", b""),
        ("a.jsonl", b"no json\n"),
        ("a.jsonl", b'{"a": ' * 5000),
        ("a.jsonl.gz", b"not packed"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:12]),
    ],
)
def test_of_other_files_nothing_is_told(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert held(tmp_path / name) is None and held(tmp_path) is None


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_bomb_is_not_unpacked(ending, pack, tmp_path):
    (tmp_path / f"a.jsonl.{ending}").write_bytes(pack(LINES.encode() + b'{"a": "' + b"x" * (64 << 20)))
    tracemalloc.start()
    try:
        assert held(tmp_path / f"a.jsonl.{ending}") is None
        assert tracemalloc.get_traced_memory()[1] < 3 * beginnings.DENSE_BYTES
    finally:
        tracemalloc.stop()


def test_rows_beside_text_do_not_tell_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("words\n" * 10_000)
    (tmp_path / "b.jsonl").write_text(LINES)
    assert held(tmp_path) is None


def test_a_torn_line_does_not_hide_what_stands_before_it(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES + LINES[: len(LINES) // 2] + '{"torn": \n' + LINES)
    found = held(tmp_path / "a.jsonl")
    assert found is not None and found.rows == pytest.approx(750, rel=0.02)


# --- in plans ---------------------------------------------------------------------------------------


RECIPE = """
name: own
stages:
  rows: {kind: curate, source: {kind: jsonl, path: ./chats.jsonl}, split: {test: 0.1}}
  again: {kind: curate, source: {kind: jsonl, path: "rows:train"}, steps: [exact_dedup]}
  vocab: {kind: tokenizer, data: again, method: {kind: bpe, size: 512}}
  base: {kind: train, data: again, vocab: vocab, model: llama, objective: next_token, steps: 5}
  chat: {kind: train, start: base, data: ./chats.jsonl, objective: sft, epochs: 2}
  score: {kind: evaluate, model: chat, data: ./chats.jsonl, tasks: [{kind: exact_match, rows: 1000}]}
"""


def test_plans_count_the_rows_of_files(tmp_path):
    (tmp_path / "chats.jsonl").write_text(LINES)
    (tmp_path / "r.yaml").write_text(RECIPE)
    found = {row.stage: row.estimate for row in load(tmp_path / "r.yaml", store=tmp_path / "store").plan().rows}
    assert found["rows"].facts["train"].rows == pytest.approx(270) and found["rows"].facts["test"].rows == pytest.approx(30)
    assert found["rows"].facts[""].chars == pytest.approx(CHARS, rel=0.01), "keys are no text"
    assert "nobody has counted" not in found["again"].memory.why
    assert found["again"].facts[""].rows == pytest.approx(270, rel=0.1), "some may be copies"
    assert found["score"].facts[""].rows == pytest.approx(300) and "300 items" in found["score"].disk.why
    assert found["chat"].facts[""].tokens == pytest.approx(2 * (CHARS / 3 + 300 * 2 * 5), rel=0.1), "with the marks of each turn"


def test_what_is_no_data_is_not_read_as_rows(tmp_path):
    """A tokenizer's folder holds JSON files, too."""
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "tokenizer.json").write_text(json.dumps(ROWS))
    (tmp_path / "texts.jsonl").write_text('{"text": "some words"}\n' * 100)
    base = "{kind: train, data: ./texts.jsonl, vocab: ./vocab/, model: llama, objective: next_token, steps: 5}"
    (tmp_path / "r.yaml").write_text(f"name: own\nstages:\n  base: {base}\n")
    (row,) = load(tmp_path / "r.yaml", store=tmp_path / "store").plan().rows
    assert "a vocabulary of 8,192 tokens" in row.estimate.seconds.why
