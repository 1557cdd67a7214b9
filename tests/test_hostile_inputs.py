"""A law over every source of files: whatever lies there becomes a row, a count, or an error that names it, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import html
import io
import lzma
import os
import random
import shutil
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelwright.core.errors import UserError
from modelwright.core.stage import Input
from modelwright.methods.sources import SOURCES, _files, _open, _rows
from tests import document_kit, web_kit
from tests.test_data_sources import Events, make

for package in ("resiliparse", "fastwarc", "defusedxml", "pypdf"):
    pytest.importorskip(package)

NO_FILES = {"python_package", "python_preferences", "python_questions"}
"""They read installed packages."""
TEXT = "The river came down from the mountain in the night.\n\nNobody in the village heard it.\n"


class Sort(NamedTuple):
    """How a kind's files are called, and a good one."""

    suffix: str
    good: Callable[[], bytes]
    field: str = "path"


def _made(build: Callable[[Path], Any]) -> Callable[[], bytes]:
    def good() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "made"
            build(file)
            return file.read_bytes()

    return good


def _lines() -> bytes:
    return b'{"text": "The river came down."}\n{"text": "Nobody heard it."}\n'


SORTS = {
    "text": Sort(".txt", TEXT.encode),
    "markdown": Sort(".md", TEXT.encode),
    "html": Sort(".html", lambda: web_kit.page("T", f"<p>{TEXT}").encode()),
    "code": Sort(".py", lambda: b"def river(night):\n    return night\n"),
    "jsonl": Sort(".jsonl", _lines),
    "hub": Sort(".jsonl", _lines, "dataset"),
    "pdf": Sort(".pdf", lambda: document_kit.pdf([["The river came down."], ["Nobody heard it."]])),
    "docx": Sort(".docx", _made(lambda file: document_kit.docx(file, document_kit.paragraph("The river came down.")))),
    "epub": Sort(".epub", _made(lambda file: document_kit.epub(file, ["<p>The river came down.</p>"]))),
    "warc": Sort(".warc", lambda: web_kit._record(web_kit.page("T", f"<p>{TEXT}")) * 2),
    "mediawiki": Sort(".xml", partial(web_kit._dump, "The river.", "The night.")),
    "mail": Sort(".eml", f"From: a@b.example\nSubject: River\n\n{TEXT}".encode),
    "social": Sort(".jsonl", lambda: b'{"subreddit": "rivers", "body": "It came down."}\n' * 2),
}


class Told(NamedTuple):
    rows: list[Any]
    log: Events
    error: UserError | None

    def silent(self, name: str) -> bool:
        """Neither a row, nor a count, nor an error that names the file."""
        if self.error is not None:
            return name not in str(self.error)
        counted = self.log.of("unreadable") + self.log.of("excluded")
        return not counted and not any(name in row.id for row in self.rows)


def told(kind: str, path: Path, on_bad: str, **fields: Any) -> Told:
    field = SORTS[kind].field
    spec = make(kind, **{field: "./x/", "on_bad": on_bad, **fields})
    log, rows, error = Events(), [], None
    try:
        rows.extend(spec.rows({"./x/": Input("./x/", "path", path)}, log))
    except UserError as fault:
        error = fault
    return Told(rows, log, error)


def names(kind: str) -> tuple[str, str]:
    """Of the good file and of the hostile one; `hub` reads by split."""
    return f"a-train{SORTS[kind].suffix}", f"evil-train{SORTS[kind].suffix}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_the_law_knows_every_source() -> None:
    assert set(SORTS) | NO_FILES == set(SOURCES.names())


@pytest.mark.parametrize("kind", SORTS)
def test_good_files_are_read(kind: str, folder: Path) -> None:
    (folder / names(kind)[0]).write_bytes(SORTS[kind].good())
    found = told(kind, folder, "error")
    assert found.error is None and found.rows and not found.log.of("unreadable")


def _spoilt(how: str, good: bytes) -> bytes:
    half = len(good) // 2
    return {
        "empty": b"",
        "blank": b" \n\n",
        "torn": good[:half],
        "nul": good[:half] + b"\0" * 9 + good[half:],
        "latin": good[:half] + b"\xe9t\xe9" + good[half:],
        "utf-16": "caf\xe9 olé".encode("utf-16"),
        "noise": random.Random(0).randbytes(5000),
        "long line": good + b"x" * 3_000_000,
        "deep": b"<div>" * 30_000 + b'{"a":' * 30_000 + b"[" * 30_000,
        "marks": b"\xef\xbb\xbf" * 3 + b"\r\r\n\x1a",
        "lone \\r": good.replace(b"\n", b"\r"),
    }[how]


HOWS = ("empty", "blank", "torn", "nul", "latin", "utf-16", "noise", "long line", "deep", "marks", "lone \\r")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", SORTS)
def test_spoilt_files(kind: str, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_open, _rows, _files):
        monkeypatch.setattr(module, "LINE_BYTES", 1_000_000)
    good, evil = names(kind)
    (folder / good).write_bytes(SORTS[kind].good())
    (folder / evil).write_bytes(_spoilt(how, SORTS[kind].good()))
    for on_bad in ("error", "drop"):
        found = told(kind, folder, on_bad)
        assert not found.silent(evil), (on_bad, found)
        assert on_bad == "error" or found.error is None, found.error
        assert any(good in row.id for row in found.rows), "what is good comes through before the error, and with `drop`"
        (folder / evil).rename(folder / "gone")
        assert not told(kind, folder, on_bad, match="**/a*").log.of("unreadable") if kind != "code" else True
        (folder / "gone").rename(folder / evil)


@pytest.mark.parametrize("how", [*HOWS, "cut off"])
def test_in_pieces_the_same_is_read_and_told(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As several processes read it."""
    monkeypatch.setattr(_files, "LINES_BYTES", 50)
    for module in (_open, _rows, _files):
        monkeypatch.setattr(module, "LINE_BYTES", 1_000_000)
    good, evil = names("jsonl")
    (folder / f"{good}.gz").write_bytes(gzip.compress(_lines() * 9)[: -9 if how == "cut off" else None])
    (folder / evil).write_bytes(b"" if how == "cut off" else _spoilt(how, _lines()) + _lines())
    whole, log, rows = told("jsonl", folder, "drop"), Events(), []
    spec = make("jsonl", path="./x/", on_bad="drop")
    for piece in spec.pieces({"./x/": Input("./x/", "path", folder)}, log) or ():
        rows += spec.of_piece(piece, log)
    assert [row.id for row in rows] == [row.id for row in whole.rows]
    assert log.of("unreadable") == whole.log.of("unreadable")


@pytest.mark.parametrize("kind", SORTS)
def test_memory_is_bounded_where_a_file_is_enormous(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """160 MB without a line feed, most of them a hole; the limits are lowered as the file is: 10 GB with those of use."""
    for module in (_open, _rows, _files):
        monkeypatch.setattr(module, "LINE_BYTES", 1 << 20)
    monkeypatch.setattr(_rows, "JSON_BYTES", 4 << 20)
    good, evil = (folder / name for name in names(kind))
    good.write_bytes(SORTS[kind].good())
    with evil.open("wb") as file:
        file.write(SORTS[kind].good()[:-2])
        file.truncate(160 << 20)
    tracemalloc.start()
    try:
        for on_bad in ("error", "drop"):
            assert not told(kind, folder, on_bad).silent(evil.name)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize("kind", SORTS)
def test_pipes_devices_links_and_nothing(kind: str, folder: Path) -> None:
    suffix = SORTS[kind].suffix
    good, _ = names(kind)
    (folder / good).write_bytes(SORTS[kind].good())
    evils: dict[str, Callable[[Path], Any]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path.name),
        "nowhere": lambda path: path.symlink_to("not there"),
    }
    for name, build in evils.items():
        evil = folder / f"{name}-train{suffix}"
        build(evil)
        for on_bad in ("error", "drop"):
            found = told(kind, folder, on_bad)
            assert not found.silent(evil.name) and (found.error or found.log.of("unreadable") or kind == "code"), (
                name,
                on_bad,
                found,
            )
        if name == "pipe":
            alone = told(kind, evil, "drop")
            assert alone.error is not None and evil.name in str(alone.error)
        evil.unlink()
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    assert len(told(kind, folder, "error").rows) in (1, 2)
    (folder / good).unlink()
    assert told(kind, folder, "drop").error is not None, "an empty folder is not nothing"


@contextmanager
def _nobody() -> Iterator[None]:
    """Root may read everything; so it is somebody else meanwhile."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("kind", SORTS)
def test_what_nobody_may_read(kind: str) -> None:
    place = Path(tempfile.mkdtemp())
    good, evil = names(kind)
    try:
        place.chmod(0o755)
        (place / good).write_bytes(SORTS[kind].good())
        assert told(kind, place, "error").error is None
        (place / evil).write_bytes(SORTS[kind].good())
        (place / evil).chmod(0)
        (place / "closed").mkdir(mode=0o000)
        for on_bad in ("error", "drop"):
            with _nobody():
                found = told(kind, place, on_bad)
            assert not found.silent("closed") or not found.silent(evil)
            if on_bad == "drop":
                assert found.error is None and {event["file"].rstrip("/") for event in found.log.of("unreadable")} == {
                    evil,
                    "closed",
                }
                assert found.rows
    finally:
        (place / "closed").chmod(0o700)
        shutil.rmtree(place)


@pytest.mark.parametrize("kind", SORTS)
def test_a_file_that_changes_while_it_is_read(kind: str, folder: Path) -> None:
    good, _ = names(kind)
    (folder / good).write_bytes(SORTS[kind].good())
    field = SORTS[kind].field
    spec = make(kind, **{field: "./x/", "on_bad": "drop"})
    rows = spec.rows({"./x/": Input("./x/", "path", folder)}, Events())
    next(rows)
    with (folder / good).open("ab") as file:
        file.write(SORTS[kind].good())
    with pytest.raises(UserError, match="changed while it was read") as error:
        list(rows)
    assert good in str(error.value)


# --- packed files ---------------------------------------------------------------------------------------


def zst(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", ["text", "jsonl", "hub", "social"])
def test_packed_files_torn_and_bombs(kind: str, packing: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "social" and packing != ".gz":
        pytest.skip("the exports come as they are, or in gzip")
    good, evil = (name + packing for name in names(kind))
    pack = PACKERS[packing]
    (folder / good).write_bytes(pack(SORTS[kind].good()))
    plain = told(kind, folder, "error")
    assert plain.error is None and plain.rows
    many = b"".join(b'{"text": "%d", "subreddit": "r", "body": "%d"}\n' % (n, n * n) for n in range(20_000))
    (folder / evil).write_bytes(pack(many)[:-40])
    found = told(kind, folder, "drop")
    assert found.log.of("unreadable")[-1]["why"].startswith("torn archive") and evil in str(told(kind, folder, "error").error)
    assert kind == "text" or len(found.rows) > 4_000, "what came before the tear is kept"
    (folder / evil).write_bytes(b"not packed at all")
    assert not told(kind, folder, "drop").silent(evil) and told(kind, folder, "error").error
    monkeypatch.setattr(_open, "BOMB_FROM_BYTES", 4 << 20)
    (folder / evil).write_bytes(pack(b" " * (12 << 20)))
    found = told(kind, folder, "drop")
    assert [event["why"].partition(":")[0] for event in found.log.of("unreadable")][-1:] == ["zip bomb"], found.log.of(
        "unreadable"
    )


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_zip_archives_member_by_member(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix = SORTS[kind].suffix
    members = {f"b/two{suffix}": SORTS[kind].good(), f"a/one{suffix}": SORTS[kind].good(), "picture.png": b"\x89PNG"}
    document_kit.archive(folder / "all.zip", members)
    found = told(kind, folder, "error")
    assert found.error is None
    assert list(dict.fromkeys(row.id.rsplit(":", 1)[0] for row in found.rows)) == [
        f"all.zip/a/one{suffix}",
        f"all.zip/b/two{suffix}",
    ]
    document_kit.archive(folder / "no.zip", {"picture.png": b"\x89PNG"})
    assert told(kind, folder, "error").log.of("excluded")
    (folder / "torn.zip").write_bytes((folder / "all.zip").read_bytes()[:-30])
    assert "torn.zip" in str(told(kind, folder, "error").error) and told(kind, folder, "drop").log.of("unreadable")
    (folder / "torn.zip").unlink()
    monkeypatch.setattr(_open, "BOMB_FROM_BYTES", 1 << 20)
    document_kit.archive(folder / "bomb.zip", {f"bomb{suffix}": b" " * (8 << 20)})
    found = told(kind, folder, "drop")
    assert [event["why"].partition(":")[0] for event in found.log.of("unreadable")] == ["zip bomb"] and len(found.rows) >= 2
    with zipfile.ZipFile(folder / "bomb.zip", "w") as out:
        out.writestr(f"../../up{suffix}", SORTS[kind].good())
    assert len(told(kind, folder, "error").rows) > len(found.rows), "a name is only a name: nothing is unpacked to the disk"


@pytest.mark.parametrize("kind", ["docx", "epub"])
def test_zip_bombs_among_documents(kind: str, folder: Path) -> None:
    good, evil = names(kind)
    (folder / good).write_bytes(SORTS[kind].good())
    inner = {"docx": "word/document.xml", "epub": "META-INF/container.xml"}[kind]
    document_kit.archive(folder / evil, {inner: b"<" * (40 << 20)})
    found = told(kind, folder, "drop", max_unpacked_bytes=1 << 20)
    assert [event["why"].partition(":")[0] for event in found.log.of("unreadable")] == ["zip bomb"] and len(found.rows) == 1


# --- what the parsers of others raise -------------------------------------------------------------------


def _zip(packing: int = zipfile.ZIP_DEFLATED, member: str = "a.jsonl") -> bytearray:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as made:
        made.writestr(member, b'{"text": "The river came down."}\n' * 200)
    return bytearray(out.getvalue())


def _locked() -> bytes:
    data = _zip()
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def _damaged(packing: int, member: str) -> bytes:
    data = _zip(packing, member)
    at = 50 + len(member)
    data[at : at + 40] = bytes(byte ^ 0x5A for byte in data[at : at + 40])
    return bytes(data)


def _book(chapter: str) -> bytes:
    return _made(lambda file: document_kit.epub(file, [chapter]))()


MARKED = "<p>The river</p><![if it rains[]]><p>came down</p><![ %x]>"
"""Sections that a parser of HTML may not know."""
POSTS = f"""<posts>
<row Id="1" PostTypeId="1" AcceptedAnswerId="2" Title="Rivers" Body="{html.escape(MARKED)}"/>
<row Id="2" PostTypeId="2" Score="1e999" Body="{html.escape(MARKED)}"/>
</posts>
"""
TRICKS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "zip with a password": ("jsonl", "evil.zip", _locked),
    "zip whose member has no head": ("jsonl", "evil.zip", lambda: b"XXXX" + bytes(_zip())[4:]),
    "docx packed by LZMA, broken": ("docx", "evil.docx", lambda: _damaged(zipfile.ZIP_LZMA, "word/document.xml")),
    "docx packed by bzip2, broken": ("docx", "evil.docx", lambda: _damaged(zipfile.ZIP_BZIP2, "word/document.xml")),
    "mail with marked sections": ("mail", "evil.eml", f"Subject: s\nContent-Type: text/html\n\n{MARKED}\n".encode),
    "book with marked sections": ("epub", "evil.epub", lambda: _book(MARKED)),
    "posts with marked sections": ("social", "evil.xml", POSTS.encode),
    "a score beyond numbers": ("social", "evil.jsonl", lambda: b'{"subreddit": "r", "body": "b", "score": 1e999}\n'),
    "XML in Big5": ("mediawiki", "evil.xml", lambda: b'<?xml version="1.0" encoding="big5"?><mediawiki></mediawiki>'),
    "front matter alone": ("markdown", "evil.md", lambda: b"---\ntitle: River\n---\n"),
    "one name for two columns": ("jsonl", "evil.csv", lambda: b"text,text\nThe river,came down\n"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_what_the_parsers_of_others_raise(trick: str, folder: Path) -> None:
    kind, name, data = TRICKS[trick]
    (folder / names(kind)[0]).write_bytes(SORTS[kind].good())
    (folder / name).write_bytes(data())
    for on_bad in ("error", "drop"):
        found = told(kind, folder, on_bad)
        assert not found.silent(name), found
        assert on_bad == "error" or (found.error is None and any(names(kind)[0] in row.id for row in found.rows))


def test_a_thread_of_files_that_change(folder: Path) -> None:
    (folder / "a.eml").write_bytes(SORTS["mail"].good())
    (folder / "b.eml").write_bytes(SORTS["mail"].good())
    rows = make("mail", path="./x/", per="thread").rows({"./x/": Input("./x/", "path", folder)}, Events())
    next(rows)
    (folder / "a.eml").write_bytes(SORTS["mail"].good() * 2)
    with pytest.raises(UserError, match=r"a\.eml changed while it was read"):
        list(rows)


@pytest.mark.parametrize("kind", sorted(SORTS.keys() - {"code", "mail"}))
def test_files_that_are_passed_over_are_counted(kind: str, folder: Path) -> None:
    good, other = names(kind)
    (folder / "deep").mkdir()
    (folder / ".git").mkdir()
    (folder / "far").symlink_to(folder / "deep", target_is_directory=True)
    for name in (good, f"deep/{other}", f".git/{good}", f".{good}", "notes.odt", "README"):
        (folder / name).write_bytes(SORTS[kind].good())
    told_of = {event["reason"]: event["files"] for event in told(kind, folder, "error", match="a*").log.of("excluded")}
    assert told_of == {
        "files ending in .odt": 1,
        "files ending in nothing": 1,
        "files not in `match`": 1,
        "hidden files": 2,
        "links to folders": 1,
    }
