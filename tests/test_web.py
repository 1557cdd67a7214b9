"""Web material: HTML files, web archives, wiki dumps; rules on addresses. All inputs are made here."""

from __future__ import annotations

import bz2
import gzip
import random
import time
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.stage import Input, Run
from modelwright.methods.sources import SOURCES
from modelwright.methods.sources._web_wikitext import plain
from modelwright.methods.steps import STEPS, Drop
from tests.test_data_sources import Events

pytest.importorskip("resiliparse")
pytest.importorskip("fastwarc")
pytest.importorskip("trafilatura")
pytest.importorskip("defusedxml")


def read(kind: str, path: Path, log: Events | None = None, **fields: Any) -> list[Record]:
    spec: Any = SOURCES.load(kind).model_validate({"kind": kind, "path": "./x", **fields})
    return list(spec.rows({"./x": Input("./x", "path", path)}, log or Events()))


def judge(rows: list[Record], kind: str, inputs: dict[str, Path] | None = None, **fields: Any) -> list[Any]:
    spec: Any = STEPS.load(kind).model_validate({"kind": kind, **fields})
    given = {ref: Input(ref, "path", path) for ref, path in (inputs or {}).items()}
    return list(spec.apply(iter(rows), Run(Path(), given, 0, Events())))


def why(log: Events) -> list[str]:
    return [event["why"].partition(":")[0] for event in log.of("unreadable")]


def left_out(log: Events) -> dict[str, int]:
    return {event["reason"]: event["files"] for event in log.of("excluded")}


# --- HTML files -----------------------------------------------------------------------------------------

HEAD = "<!doctype html><html><head>{}<title> On\n rivers </title>"


def test_html_files_are_raw_pages(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    head = HEAD.format('<link rel="stylesheet canonical" href="https://a.example/x?y=1&amp;z=2">')
    (tmp_path / "a.html").write_text(head + "<body>é", encoding="utf-8")
    (tmp_path / "sub" / "b.htm").write_bytes(
        ("\ufeff" + HEAD.format('<link rel="canonical" href="/here">') + "<body>é").encode("utf-16")
    )
    (tmp_path / "c.html").write_bytes(HEAD.format('<meta charset="ISO-8859-1">').encode() + b"<body>\xe9 \x93q\x94")
    (tmp_path / "d.xhtml").write_bytes(
        HEAD.format('<meta http-equiv=x content="text/html; charset=Shift_JIS">').encode() + "日本".encode("shift_jis")
    )
    (tmp_path / "e.html").write_bytes(b"<p>" + "é".encode("latin-1"))
    (tmp_path / "f.html").write_bytes(b"<meta charset='rot13'><p>plain")
    (tmp_path / "g.html").write_bytes(b"<meta charset=utf-16><p>said by an ASCII page")
    (tmp_path / "h.html").write_bytes(b" \n")
    (tmp_path / "i.html").write_bytes(b"<p>\0")
    (tmp_path / "j.txt").write_text("no page")
    log = Events()
    found = {row.id: row for row in read("html", tmp_path, log, on_bad="drop")}
    assert list(found) == ["a.html", "c.html", "d.xhtml", "f.html", "g.html", "sub/b.htm"]
    assert found["a.html"].meta == {
        "path": "a.html",
        "url": "https://a.example/x?y=1&z=2",
        "title": "On rivers",
        "media": "text/html",
    }
    assert found["sub/b.htm"].text.endswith("<body>é") and "url" not in found["sub/b.htm"].meta
    assert found["c.html"].text.endswith("é “q”") and found["d.xhtml"].text.endswith("日本")
    assert why(log) == ["wrong encoding", "empty file", "NUL byte"]
    with pytest.raises(UserError, match=r"e\.html: wrong encoding"):
        read("html", tmp_path)
    log = Events()
    assert not read("html", tmp_path / "a.html", log, max_page_bytes=20, on_bad="drop") and why(log) == ["too large"]


# --- web archives ---------------------------------------------------------------------------------------

OK = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=latin1\r\n"
PAGE = "<html><body>é"


def record(body: bytes, sort: str = "response", media: str = "application/http; msgtype=response", more: str = "") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {sort}\r\nWARC-Target-URI: http://a.example/x\r\nWARC-Date: 2024-01-02T03:04:05Z\r\n{more}"
        f"WARC-Record-ID: <urn:uuid:0>\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(body: bytes = PAGE.encode("latin-1"), head: str = OK, more: str = "") -> bytes:
    return record(head.encode() + b"\r\n" + body, more=more)


def packed(*records: bytes) -> bytes:
    return b"".join(map(gzip.compress, records))


def test_archives_give_pages_and_count_the_rest(tmp_path: Path) -> None:
    everything = [
        record(b"software: by hand\r\n", "warcinfo", "application/warc-fields"),
        record(b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request"),
        response(more="WARC-Truncated: length\r\n"),
        response(head="HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n"),
        response(head="HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"),
        response(head="HTTP/1.1 200 OK\r\n"),
        response(gzip.compress(b"<p>packed"), OK + "Content-Encoding: gzip\r\n"),
        response(b"5\r\n<p>ch\r\n4\r\nunks\r\n0\r\n\r\n", OK + "Transfer-Encoding: chunked\r\n"),
        response(b"?", OK + "Content-Encoding: rot13\r\n"),
        response(b"no gzip", OK + "Content-Encoding: gzip\r\n"),
        response(b"\xe9", "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"),
        response(b"  "),
        response(b"x" * 2000),
        response(gzip.compress(b"x" * 30_000_000), OK + "Content-Encoding: gzip\r\n"),
        record("Text é.\n".encode(), "conversion", "text/plain"),
        record(b"93.184.216.34", "response", "text/dns"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(everything))
    (tmp_path / "b.warc.gz").write_bytes(packed(*everything))
    (tmp_path / "c.wet.gz").write_bytes(gzip.compress(b"".join(everything)))  # one member for all
    for name in ("a.warc", "b.warc.gz", "c.wet.gz"):
        log = Events()
        found = read("warc", tmp_path / name, log, max_page_bytes=1500)
        assert [row.text for row in found] == [PAGE, "<p>packed", "<p>chunks", "Text é.\n"], name
        assert found[0].meta == {
            "url": "http://a.example/x", "date": "2024-01-02T03:04:05Z", "media": "text/html", "truncated": "length"
        }  # fmt: skip
        assert found[-1].meta["media"] == "text/plain" and found[0].id == f"{name}:1"
        assert why(log) == ["unknown packing", "wrong packing", "wrong encoding", "too large", "too large"]
        assert left_out(log) == {
            "HTTP status 404": 1, "empty page": 1, "neither HTTP nor plain text": 1, "not HTML: image/png": 1,
            "not HTML: no type given": 1,
        }  # fmt: skip
    with pytest.raises(UserError, match="unknown packing"):
        read("warc", tmp_path / "a.warc", on_bad="error")


@pytest.mark.parametrize(
    ("said", "meta", "encoding", "text"),
    [
        ("iso-8859-1", "", "utf-8", "Über die größten Flüße"),  # a server's default for everything
        ("iso-8859-1", "utf-8", "utf-8", "Ü"),
        ("utf-8", "windows-1251", "windows-1251", "Река Волга"),
        ("windows-1256", "utf-8", "windows-1256", "نهر النيل"),
        ("", "gb2312", "gbk", "黄河流入渤海"),
        ("shift_jis", "", "shift_jis", "日本の川"),
        ("euc-kr", "iso-8859-1", "euc-kr", "한강은 흐른다"),
        ("iso-2022-jp", "", "iso-2022-jp", "日本の川"),
        ("bogus", "rot13", "utf-8", "é"),
    ],
)
def test_what_a_server_says_of_the_encoding(tmp_path: Path, said: str, meta: str, encoding: str, text: str) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html" + (f"; charset={said}" if said else "") + "\r\n"
    inside = f"<html><head>{f'<meta charset={meta}>' if meta else ''}</head><body>{text}"
    (tmp_path / "a.warc").write_bytes(response(inside.encode(encoding), head))
    assert [row.text for row in read("warc", tmp_path)] == [inside]


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(packed(response(b"<p>" * 10_000_000), response()))
    log = Events()
    assert [row.text for row in read("warc", tmp_path, log)] == [PAGE] and why(log) == ["too large"]


def test_a_torn_archive_is_counted_wherever_it_ends(tmp_path: Path) -> None:
    whole = response()
    for name, data, first in (
        ("a.warc", whole + whole, len(whole)),
        ("b.warc.gz", packed(whole, whole), len(packed(whole))),
        ("c.warc.gz", gzip.compress(whole + whole), 0),
    ):
        for cut in range(first + 8, len(data) - 8, 3):
            (tmp_path / name).write_bytes(data[:cut])
            log = Events()
            rows = read("warc", tmp_path / name, log)
            assert (why(log) == ["torn archive"]) and len(rows) <= 2 and (not first or rows), (
                name,
                cut,
                len(data),
                rows,
                log.seen,
            )
    spoilt = bytearray(packed(whole, whole, whole))
    spoilt[len(packed(whole)) + 60] ^= 255
    for data, rows in ((bytes(spoilt), 1), (b"no archive" * 9, 0), (whole + b"junk\r\n\r\n" * 9 + whole, 1)):
        (tmp_path / ("d.warc.gz" if data[0] == 31 else "d.warc")).write_bytes(data)
        log = Events()
        assert len(read("warc", tmp_path / ("d.warc.gz" if data[0] == 31 else "d.warc"), log)) == rows
        assert why(log) == ["torn archive"]


# --- wiki dumps -----------------------------------------------------------------------------------------

WIKI = """{{Infobox river|name={{lang|de|Rhein}}|length={{convert|1230|km}}}}
[[Datei:Rhine.jpg|thumb|The [[Rhine]] at [[Basel|Bâle]]]]
The '''Rhine''' ({{IPA|raɪn}}) is a [[river]] of [[Europe|the continent]].<ref name="a">A book, {{p.|3}}</ref><ref name=b />
It is [https://a.example/long over 1,200 km] long [http://b.example] &amp; ''old''.<!-- who
says so? --> Write <nowiki>[[river]] ''so''</nowiki>.

== Course ==
* The [[Alps]]
# Second
: said

{| class="wikitable"
! a !! b
|-
| {{x}} ||
 {| nested
| c
|}
|}
=== Empty ===
{{main|Nothing}}
== Code ==
<syntaxhighlight lang="c">if (a[0]) { x = {{1}}; }</syntaxhighlight>
== Unclosed ==
a {{ b and [[ c and <ref>d
== References ==
{{reflist}}
[[Category:Rivers]]
[[de:Rhein]]
__NOTOC__
"""
READ = """The Rhine is a river of the continent.
It is over 1,200 km long  & old. Write [[river]] ''so''.

Course
- The Alps
- Second
said

Code
if (a[0]) { x = {{1}}; }
Unclosed
a {{ b and [[ c and d"""


def dump(*pages: str, namespaces: str = '<namespace key="6">Datei</namespace>') -> str:
    site = f"<siteinfo><base>https://de.example.org/wiki/Start</base><namespaces>{namespaces}</namespaces></siteinfo>"
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">{site}{"".join(pages)}</mediawiki>'


def page(number: int, text: str, title: str = "The Rhine", ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    revision = f"<revision><id>9</id><model>{model}</model><text>{escaped}</text></revision>"
    return f"<page><title>{title}</title><ns>{ns}</ns><id>{number}</id>{more}{revision}</page>"


def test_wikitext_becomes_what_a_reader_sees() -> None:
    assert plain(WIKI, ("datei", "category")) == READ
    assert plain("[[:Category:Rivers]] [[River (water)|]] [[a|b|c]]") == "Category:Rivers River (water) c"
    assert plain("a\n----\nb") == "a\nb" and plain("{{box\n|x\n|}}after") == "after"
    for nasty in (
        "{{" * 100_000,
        "[[{{" * 50_000 + "]]" * 50_000,
        "<ref>" * 100_000,
        "<nowiki>" * 50_000,
        "=" * 200_000,
        "[//a" * 50_000,
    ):
        begin = time.process_time()
        plain(nasty)
        assert time.process_time() - begin < 2, nasty[:10]


def test_dumps_are_read_page_by_page(tmp_path: Path) -> None:
    text = dump(
        page(1, WIKI),
        page(2, "#REDIRECT [[x]]", more='<redirect title="x"/>'),
        page(3, "talk", ns=1),
        page(4, "{}", model="json"),
        page(5, "{{only}}"),
        page(6, "Ünder", title="Straße & so"),
    ).replace("Straße & so", "Straße &amp; so")
    (tmp_path / "a.xml").write_text(text, encoding="utf-8")
    (tmp_path / "b.xml.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "c.xml.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.xml", "b.xml.bz2", "c.xml.gz"):
        log = Events()
        one, two = read("mediawiki", tmp_path / name, log)
        assert one.id == f"{name}:1" and one.text.startswith("The Rhine is")
        assert two.meta == {"title": "Straße & so", "page": "6", "url": "https://de.example.org/wiki/Stra%C3%9Fe_%26_so"}
        assert left_out(log) == {"redirect": 1, "another namespace": 1, "not wikitext: json": 1, "no text": 1}
    assert len(read("mediawiki", tmp_path / "a.xml", namespaces=[0, 1])) == 3


def test_dumps_that_cannot_be_read_to_their_end(tmp_path: Path) -> None:
    text = dump(page(1, "whole"), page(2, "x" * 300_000), page(3, "after"))
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + dump(page(1, "&b;"))
    for name, data, fault, rows in (
        ("torn.xml", text[:-200].encode(), "broken XML", 2),
        ("torn.xml.gz", gzip.compress(random.Random(0).randbytes(9) + text.encode())[:-900], "broken XML", 0),
        ("cut.xml.gz", gzip.compress(text.encode())[:-9], "torn archive", 2),
        ("cut.xml.bz2", bz2.compress(text.encode())[:-9], "torn archive", 0),
        ("bomb.xml", bomb.encode(), "XML that declares entities", 0),
        ("large.xml", text.encode(), "too large", 1),
    ):
        (tmp_path / name).write_bytes(data)
        log = Events()
        limit = 100_000 if name.startswith("large") else 1_000_000
        found = read("mediawiki", tmp_path / name, log, on_bad="drop", max_page_bytes=limit)
        assert why(log) == [fault] and len(found) >= min(rows, 1), (name, log.seen, len(found))
        with pytest.raises(UserError, match=fault):
            read("mediawiki", tmp_path / name, max_page_bytes=limit)
    (tmp_path / "x.xml.bz2").write_bytes(b"no bzip2 at all")
    with pytest.raises(UserError, match="cannot be read"):
        read("mediawiki", tmp_path / "x.xml.bz2")


# --- addresses ------------------------------------------------------------------------------------------


def urls(*all_urls: str, **fields: Any) -> list[str]:
    """What became of each: '' where it stayed."""
    rows = [Record(str(n), text="x", meta={"url": url} if url else {}) for n, url in enumerate(all_urls)]
    results = judge(rows, "url_rules", fields.pop("inputs", None), **{"domains": [], **fields})
    return [result.reason.removeprefix("url: ") if isinstance(result, Drop) else "" for result in results]


def test_url_rules(tmp_path: Path) -> None:
    banned = {"domains": ["Bad.example", "co.example."]}
    found = urls(
        "https://bad.example/x", "http://www.BAD.example:80", "https://user@a.b.co.example./", "https://notbad.example/",
        "https://good.example/bad.example", "//bad.example", "", **banned,
    )  # fmt: skip
    assert found == ["banned domain"] * 3 + ["", "", "banned domain", ""]
    assert urls("", "x", no_url="drop") == ["none", ""]
    found = urls("https://a.example/the-Casino_x", "https://a.example/casinos", "https://a.example/c%61sino", words=["casino"])
    assert found == ["banned word", "", "banned word"]
    assert urls("https://a.example/my-cas-inos", "https://a.example/cas", parts=["cas-ino"]) == ["banned part", ""]
    soft = {"soft_words": ["free", "win"]}
    assert urls("https://win.example/free", "https://a.example/free/free", **soft) == ["soft words", ""]
    assert urls("https://a.example/free", soft_limit=1, **soft) == ["soft words"]
    assert urls("https://x.good.example/", "https://other.example/", "no address", allow=["good.example"]) == [
        "", "domain not allowed", "domain not allowed",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no rule is given"):
        urls("https://a.example/")
    (tmp_path / "list.txt").write_text("# banned\nbad.example  # why\n\nworse.example\n")
    given = {"inputs": {"./list.txt": tmp_path / "list.txt"}}
    assert urls("https://worse.example/", "https://a.example", domains_from="./list.txt", **given) == ["banned domain", ""]
    assert urls("https://worse.example/", "https://a.example", allow_from="./list.txt", **given) == ["", "domain not allowed"]
