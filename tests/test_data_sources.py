"""Sources: good files of every kind, and bad input of every format with its place."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record, quick_json, write_records
from modelwright.core.stage import Input
from modelwright.methods.sources import SOURCES, Source, digest_files, open_records

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "é"}]}
LINE = json.dumps(ROW, ensure_ascii=False)


class Events(Log):
    """Remembers events."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        super().__init__(None, lambda name, fields: self.seen.append((name, fields)))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.seen if event == name]


def make(kind: str, **fields: Any) -> Source:
    spec = SOURCES.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Source)
    return spec


def rows(path: Path, log: Log | None = None, **fields: Any) -> list[Record]:
    return list(make("jsonl", path="./x", **fields).rows({"./x": Input("./x", "path", path)}, log or Log(None)))


def test_json_lines_json_csv_and_gzip_hold_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINE + "\n\n" + LINE)
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps([ROW, ROW]))
    (tmp_path / "c.json").write_text(LINE + "\n" + LINE + "\n")
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": [ROW, ROW]}))
    with gzip.open(tmp_path / "e.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(LINE + "\n" + LINE)
    for name in ("a.jsonl", "b.json", "c.json", "d.json", "e.jsonl.gz"):
        log = Events()
        found = rows(tmp_path / name, log)
        assert [r.messages for r in found] == [ROW["messages"]] * 2, name
        assert "read as `messages`, because" in log.of("note")[0]["text"]
    assert [r.id for r in rows(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]
    assert len(rows(tmp_path)) == 10 and len(rows(tmp_path, match="*.jsonl")) == 2
    (tmp_path / "f.csv").write_text('question;answer\n"a ""b""\nc";d;e\n1;2\n', encoding="utf-8-sig")
    log = Events()
    assert [r.messages[0]["content"] for r in rows(tmp_path / "f.csv", log, on_bad="drop")] == ["1"]
    assert log.of("unreadable") == [{"file": "f.csv", "line": 2, "why": "bad CSV: 3 cells, but the header has 2"}]
    (tmp_path / "g.tsv").write_text("prompt\tcompletion\nx,y\tz\n")
    assert rows(tmp_path / "g.tsv")[0].messages[0]["content"] == "x,y"


BAD: list[tuple[str, bytes, str, str]] = [
    ("torn.jsonl", f"{LINE}\n{LINE[:20]}".encode(), "torn.jsonl line 2", "torn last line"),
    ("bad.jsonl", f"{LINE}\n{{'a': 1}}\n{LINE}\n".encode(), "bad.jsonl line 2", "bad JSON"),
    ("list.jsonl", f"{LINE}\n[1]\n".encode(), "list.jsonl line 2", "not an object"),
    ("latin.jsonl", f"{LINE}\n".encode() + LINE.encode("latin-1") + b"\n", "latin.jsonl line 2", "wrong encoding"),
    ("nul.jsonl", f"{LINE}\n".encode() + b"\0" * 40 + b"\n" + LINE.encode(), "nul.jsonl line 2", "NUL byte"),
    (
        "half.jsonl",
        f'{LINE}\n{{"messages": [{{"role": "user", "content": "\\ud83d"}}]}}\n'.encode(),
        "half.jsonl line 2",
        "broken character",
    ),
    (
        "format.jsonl",
        f'{LINE}\n{{"messages": [{{"role": "user", "content": ""}}]}}\n'.encode(),
        "format.jsonl line 2",
        "not the format",
    ),
    ("deep.jsonl", f"{LINE}\n".encode() + b"[" * 100_000 + b"\n", "deep.jsonl line 2", "bad JSON"),
    ("cut.json", json.dumps([ROW, ROW])[:-9].encode(), "cut.json line 1", "bad JSON"),
    ("item.json", json.dumps([ROW, 3]).encode(), "item.json line 2", "not an object"),
    ("utf16.json", json.dumps([ROW]).encode("utf-16"), "utf16.json line 1", "wrong encoding"),
    ("cells.csv", b"prompt,completion\na,b\nc\n", "cells.csv line 3", "bad CSV"),
    ("quote.csv", b'prompt,completion\na,b\n"c,d\n', "quote.csv line 3", "bad CSV"),
    ("latin.csv", "prompt,completion\na,b\nc,é\n".encode("latin-1"), "latin.csv line 3", "wrong encoding"),
    ("nul.csv", b"prompt,completion\na,b\nc,\0\n", "nul.csv line 3", "NUL byte"),
]


@pytest.mark.parametrize(("name", "data", "place", "what"), BAD)
def test_bad_rows_are_told_with_their_place_or_counted(tmp_path: Path, name: str, data: bytes, place: str, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        rows(tmp_path / name)
    assert error.value.where == place and error.value.what == what and "on_bad: drop" in error.value.fix
    log = Events()
    kept = rows(tmp_path / name, log, on_bad="drop")
    assert len(log.of("unreadable")) == 1 and log.of("unreadable")[0]["why"].startswith(what)
    assert len(kept) == {"bad.jsonl": 2, "nul.jsonl": 2, "cut.json": 0, "utf16.json": 0}.get(name, 1)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(LINE.encode() * 50)[:-20])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz line \d+: torn archive"):
        rows(tmp_path / "cut.jsonl.gz")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"x\.parquet line 1: damaged Parquet"):
        rows(tmp_path / "x.parquet")
    (tmp_path / "x.exe").write_bytes(b"MZ")
    with pytest.raises(UserError, match="no reader for this kind of file"):
        rows(tmp_path / "x.exe")
    with pytest.raises(UserError, match="holds no file to read"):
        rows(tmp_path, match="*.none")
    (tmp_path / "one.jsonl").write_text(LINE)
    with pytest.raises(UserError, match="would be ignored"):
        rows(tmp_path / "one.jsonl", match="*.jsonl")
    if os.geteuid():
        (tmp_path / "p.jsonl").write_text(LINE)
        (tmp_path / "p.jsonl").chmod(0)
        with pytest.raises(UserError, match="cannot be read"):
            rows(tmp_path / "p.jsonl")


def test_text(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one\ntwo\n\n  \nthree\n")
    (tmp_path / "sub" / "b.md").write_bytes(b"\xef\xbb\xbf# four")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "c.bin").write_bytes(b"\0")

    def read(log: Log | None = None, **fields: Any) -> list[tuple[str, str]]:
        source = make("text", path="./t", **fields)
        return [(r.id, r.text) for r in source.rows({"./t": Input("./t", "path", tmp_path)}, log or Log(None))]

    assert read() == [("a.txt", "one\ntwo\n\n  \nthree\n"), ("sub/b.md", "# four")]
    assert read(match="*.txt", per="paragraph") == [("a.txt:1", "one\ntwo"), ("a.txt:2", "three")]
    assert read(match="*.txt", per="line") == [("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:5", "three")]
    (tmp_path / "z.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "zz.txt").write_text("  \n")
    with pytest.raises(UserError, match=r"z\.txt: wrong encoding"):
        read()
    log = Events()
    assert len(read(log, on_bad="drop")) == 2 and len(log.of("unreadable")) == 2
    assert next(make("text", path=str(tmp_path / "a.txt")).read(Log(None))).id == "a.txt"


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), path)


def test_hub_reads_a_local_dataset_by_split(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [ROW, ROW])
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [ROW])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [ROW])
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")

    def read(**fields: Any) -> list[Record]:
        return list(make("hub", dataset="./d", **fields).rows({"./d": Input("./d", "path", tmp_path)}, Log(None)))

    found = read()
    assert [r.id for r in found] == [f"data/train-0000{i}-of-00002.parquet:{n}" for i, n in ((0, 1), (0, 2), (1, 1))]
    assert found[0].messages == ROW["messages"]
    assert len(read(split="test")) == 1 and len(read(match="data/train-00001*")) == 1
    with pytest.raises(UserError, match="has no split 'validation'") as error:
        read(split="validation")
    assert "test, train" in error.value.fix
    assert len(list(make("hub", dataset=str(tmp_path) + "/").read(Log(None)))) == 3
    parquet(tmp_path / "data" / "dev.parquet", [{**ROW, "licence": "x"}])
    assert read(split="validation")[0].meta and not read(split="validation", columns=["messages"])[0].meta


def test_the_hub_is_asked_for_the_files_of_one_split_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    names = ["train-0.jsonl", "train-1.jsonl", "test.jsonl", "run.py", "sub/other.bin"]
    asked: list[Any] = []

    def names_of(self: Any, name: str, **options: Any) -> list[str]:
        asked.append((name, options))
        return names

    def fetch(name: str, file: str, **options: Any) -> str:
        asked.append((file, options))
        (tmp_path / file).write_text(LINE + "\n")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", names_of)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    commit = "0" * 40
    rows = make("hub", dataset=f"hf:org/data@{commit}").read(Log(None))
    pinned = {"revision": commit, "repo_type": "dataset"}
    assert next(rows).id == "train-0.jsonl:1" and asked == [("org/data", pinned), ("train-0.jsonl", pinned)]
    assert [r.id for r in rows] == ["train-1.jsonl:1"] and [name for name, _ in asked] == ["org/data", *names[:2]]


CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - {split: train, path: "en/*.jsonl"}
  - {split: held, path: [en/more/x.jsonl]}
- config_name: de
  data_files: {train: de/**}
- config_name: all
  data_dir: .
---
# A data set
"""


def test_configurations_of_a_card(tmp_path: Path) -> None:
    for name in ("en/a.jsonl", "en/b.jsonl", "en/more/x.jsonl", "de/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(LINE + "\n")
    (tmp_path / "README.md").write_text(CARD)

    def read(**fields: Any) -> list[str]:
        spec = make("hub", dataset="./d", **fields)
        return [r.id for r in spec.rows({"./d": Input("./d", "path", tmp_path)}, Log(None))]

    assert read(config="en") == ["en/a.jsonl:1", "en/b.jsonl:1"] and read(config="de") == ["de/deep/c.jsonl:1"]
    assert read(config="en", split="held") == ["en/more/x.jsonl:1"] and read(config="en", match="en/b*") == ["en/b.jsonl:1"]
    for fields, what in (({}, "several configurations"), ({"config": "fr"}, "no configuration 'fr'")):
        with pytest.raises(UserError, match=what) as error:
            read(**fields)
        assert "en, de, all" in error.value.why
    (tmp_path / "README.md").write_text(CARD.replace("config_name: de", "config_name: de\n  default: true"))
    assert read() == ["de/deep/c.jsonl:1"]
    (tmp_path / "README.md").write_text("# No facts\n")
    assert len(read()) == 4
    with pytest.raises(UserError, match="its card names none"):
        read(config="en")
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(UserError, match=r"README\.md cannot be read"):
        read()


def test_columns_and_dialects(tmp_path: Path) -> None:
    rows_of = [{"text": f"t{n}", "other": n} for n in range(5000)]
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.Table.from_pylist(rows_of), tmp_path / "a.parquet", row_group_size=700)
    found = rows(tmp_path / "a.parquet", columns=["text"])
    assert [r.text for r in found] == [row["text"] for row in rows_of] and found[-1].id == "a.parquet:5000"
    with pytest.raises(UserError, match="has no column 'txt'") as error:
        rows(tmp_path / "a.parquet", columns=["txt"])
    assert "text, other" in error.value.why
    (tmp_path / "a.csv").write_text("'a|b'|c\n")
    dialect = {"delimiter": "|", "quote": "'", "header": ["prompt", "completion"]}
    [row] = rows(tmp_path / "a.csv", csv=dialect)
    assert [turn["content"] for turn in row.messages] == ["a|b", "c"]
    log = Events()
    assert not rows(tmp_path / "a.csv", log, on_bad="drop") and "between cells" in log.of("note")[0]["text"]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package 'huggingface_hub'") as error:
        list(make("hub", dataset=f"hf:org/data@{'0' * 40}").read(Log(None)))
    assert "modelwright[hub]" in error.value.fix
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs the package 'pyarrow'"):
        rows(tmp_path / "x.parquet")


def test_open_records(tmp_path: Path) -> None:
    write_records(tmp_path / "all.jsonl", [Record("a", text="t")])
    write_records(tmp_path / "test.jsonl", [Record("b", messages=ROW["messages"])])
    assert [r.id for r in open_records(Input("c", "records", tmp_path), Log(None))] == ["a"]
    assert [r.id for r in open_records(Input("c:test", "records", tmp_path, "test"), Log(None))] == ["b"]
    assert [r.id for r in open_records(Input("./x", "path", tmp_path), Log(None))] == ["all.jsonl:1", "test.jsonl:1"]
    assert [r.id for r in make("jsonl", path="c").rows({"c": Input("c", "records", tmp_path)}, Log(None))] == ["a"]
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match="empty file"):
        list(open_records(Input("./none.jsonl", "path", tmp_path / "none.jsonl"), Log(None)))
    with pytest.raises(UserError, match="is a model, not rows"):
        list(open_records(Input("m", "model", tmp_path), Log(None)))


def test_stages_are_read_by_jsonl_alone() -> None:
    for kind, field in (("text", "path"), ("hub", "dataset")):
        with pytest.raises(ValueError, match="'pairs' is a stage"):
            make(kind, **{field: "pairs"})
    source = make("jsonl", path="pairs:train")
    unread = {"match", "format", "columns", "on_bad", "csv.delimiter", "csv.quote", "csv.header"}
    assert set(source.unused(source)) == unread and not make("jsonl", path="./x").unused(source)


def test_digest_of_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    both = digest_files([tmp_path / "b", tmp_path / "a"])
    assert both == digest_files([tmp_path / "a", tmp_path / "b"]) and len(both) == 64
    (tmp_path / "b").write_text("3")
    assert digest_files([tmp_path / "a", tmp_path / "b"]) != both


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_subnormal=False) | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_the_quick_reader_reads_what_python_reads_or_nothing(tree: Any) -> None:
    line = json.dumps({"tree": tree}).encode()
    found = quick_json(line)
    assert found is None or repr(found) == repr(json.loads(line))


LEFT = ("123456789012345678901234567890", "NaN", "1E400", '"\\ud800"', "-9223372036854775809", "[1, [2, 1e300]]")


@pytest.mark.parametrize("text", LEFT)
def test_what_the_quick_reader_might_change_is_left_to_python(text: str) -> None:
    assert quick_json(f'{{"a": {text}}}'.encode()) is None
    assert quick_json(b'{"a": 9223372036854775808, "b": 0.1}') == {"a": 9223372036854775808, "b": 0.1}


def test_columns_that_are_not_there_and_types_that_json_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\na,1\n")
    with pytest.raises(UserError, match="has no column 'titel'"):
        rows(tmp_path / "a.csv", columns=["text", "titel"])
    (tmp_path / "b.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="line 1: bad CSV") as error:
        rows(tmp_path / "b.csv")
    assert "'text'" in error.value.why
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n')
    log = Events()
    assert rows(tmp_path / "a.jsonl", log, columns=["text", "titel"])[0].meta == {}
    assert "titel" in log.of("note")[0]["text"]
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    day = datetime.datetime(2026, 1, 2, 3)
    row = {
        "text": b"as bytes",
        "when": day,
        "day": day.date(),
        "took": datetime.timedelta(seconds=90),
        "price": Decimal("1.50"),
        "in": {"at": [day]},
    }
    pq.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    [found] = rows(tmp_path / "a.parquet")
    assert found.text == "as bytes" and found.meta == json.loads(found.to_json())["meta"]
    assert found.meta["when"] == "2026-01-02T03:00:00" and found.meta["day"] == "2026-01-02" and found.meta["took"] == 90
    assert found.meta["price"] == 1.5 and found.meta["in"] == {"at": ["2026-01-02T03:00:00"]}
    pq.write_table(pyarrow.Table.from_pylist([{"text": "a", "image": b"\xff\xd8"}]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="line 1: no text") as error:
        rows(tmp_path / "b.parquet")
    assert "'image'" in error.value.why and rows(tmp_path / "b.parquet", columns=["text"])[0].text == "a"


def test_code_of_the_hub_is_refused() -> None:
    with pytest.raises(ValueError, match="no code is fetched"):
        make("code", path="hf:org/name")
