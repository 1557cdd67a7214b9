"""Remote inputs: pinned by what their server says, fetched whole or not at all; on file systems in memory and on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.execute import execute
from modelwright.core.gc import garbage
from modelwright.core.recipe import loads
from modelwright.core.remote import remote_digest, remote_files
from modelwright.core.stage import parse_ref
from modelwright.core.steps import prepare
from modelwright.core.store import Store
from tests.crawl_kit import Page, served

fsspec = pytest.importorskip("fsspec")
RECIPE = "name: far\nstages:\n  rows: {kind: curate, source: {kind: jsonl, path: '%s'}}\n"


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    for name, text in {"a.jsonl": "one", "deep/b.jsonl": "two", "c.txt": "three"}.items():
        system.pipe(f"/bucket/{name}", f'{{"text": "{text}"}}\n'.encode())
    yield system
    system.rm("/bucket", recursive=True)


def made(url: str, store: Store) -> list[tuple[str, str]]:
    *_, done = execute(loads(RECIPE % url), store, Machine("m", 1, 1e9), lambda event, fields: None)
    assert done.artifact is not None
    rows = [json.loads(line) for line in (done.artifact.path / "all.jsonl").read_text().splitlines()]
    return [(row["id"], row["text"]) for row in rows]


def test_references() -> None:
    assert parse_ref("s3://bucket/a.jsonl").kind == parse_ref("https://example.org/a").kind == "remote"
    assert parse_ref("./a://b").kind == "path" and parse_ref("hf:a/b").kind == "hf" and parse_ref("pairs:test").kind == "stage"


def test_files_folders_and_globs(memory: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert made("memory://bucket/a.jsonl", store) == [("a.jsonl:1", "one")]
    assert made("memory://bucket/", store) == [("a.jsonl:1", "one"), ("deep/b.jsonl:1", "two")]
    assert made("memory://bucket/*/*.jsonl", store) == [("deep/b.jsonl:1", "two")]
    assert any(item.path == store.root / "remote" for item in garbage(store, []))
    for url, what in (
        ("memory://bucket/none", "cannot be fetched"),
        ("memory://nowhere/", "holds no file"),
        ("nope://x/", "cannot be"),
    ):
        with pytest.raises(UserError, match=what):
            made(url, store)
    with pytest.raises(UserError, match="a password has no place"):
        made("https://me:secret@example.org/a.jsonl", store)


def test_what_is_there_now_enters_the_key(memory: Any, tmp_path: Path) -> None:
    store, url = Store(tmp_path / "store"), "memory://bucket/a.jsonl"
    with pytest.raises(UserError, match="not known yet"):
        prepare(loads(RECIPE % url), store)
    key = prepare(loads(RECIPE % url), store, network=True)[0].key
    assert prepare(loads(RECIPE % url), store)[0].key == key, "the plan remembers"
    memory.pipe("/bucket/a.jsonl", b'{"text": "new"}\n')
    assert prepare(loads(RECIPE % url), store)[0].key == key
    assert prepare(loads(RECIPE % url), store, network=True)[0].key != key
    assert made(url, store) == [("a.jsonl:1", "new")]


def test_what_changes_or_breaks_while_it_is_fetched(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://bucket/"
    digest = remote_digest(url, "here")
    whole = type(memory).get_file
    calls = 0

    def torn(self: Any, name: str, target: str, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            Path(target).write_text("half")
            raise OSError("connection reset")
        whole(self, name, target, **options)

    monkeypatch.setattr(type(memory), "get_file", torn)
    with pytest.raises(UserError, match="cannot be fetched"):
        remote_files(url, digest, tmp_path, "here")
    folder = remote_files(url, digest, tmp_path, "here")
    assert (folder / "c.txt").read_text() == '{"text": "three"}\n' and calls == 4, "what was whole is not fetched again"
    assert remote_files(url, digest, tmp_path, "here") == folder and calls == 4
    memory.pipe("/bucket/a.jsonl", b"other")
    with pytest.raises(UserError, match="changed meanwhile"):
        remote_files(url, digest, tmp_path / "again", "here")


def test_over_http(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    body = b'{"text": "over the wire"}\n'
    with served({"/a.jsonl": Page(body, headers={"ETag": '"1"'}), "/b.jsonl": Page(body)}) as site:
        assert made(f"{site.url}/a.jsonl", Store(tmp_path / "store")) == [("a.jsonl:1", "over the wire")]
        first = remote_digest(f"{site.url}/a.jsonl", "here")
        site.pages["/a.jsonl"] = Page(body, headers={"ETag": '"2"'})
        assert remote_digest(f"{site.url}/a.jsonl", "here") != first
        with pytest.raises(UserError, match="neither ETag nor time"):
            remote_digest(f"{site.url}/b.jsonl", "here")


def test_fsspec_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match="needs the package 'fsspec'") as error:
        remote_digest("s3://bucket/a", "here")
    assert "modelwright[remote]" in error.value.fix
