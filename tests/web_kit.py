"""Web material for the law of use: pages, archives and dumps of which each field changes what is read or kept."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from modelwright.core.record import Record
from modelwright.core.stage import Input

LISTS = {"domains": "bad.example", "words": "casino", "allowed": "good.example"}


def page(title: str, body: str) -> str:
    return f"<!doctype html><html><head><title>{title}</title></head><body>{body}</body></html>"


def _record(body: str) -> bytes:
    data = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{body}".encode()
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/\r\nContent-Length: {len(data)}\r\n"
    return f"{head}Content-Type: application/http\r\n\r\n".encode() + data + b"\r\n\r\n"


def _dump(*texts: str, ns: int = 0) -> bytes:
    pages = "".join(
        f"<page><title>P{n}</title><ns>{ns * n}</ns><id>{n}</id><revision><text>{text}</text></revision></page>"
        for n, text in enumerate(texts)
    )
    return f"<mediawiki>{pages}</mediawiki>".encode()


def files(folder: Path) -> None:
    """Beside other inputs of the law."""
    long = "word " * 800
    for name, data in {
        "pages/a.html": page("A", "short").encode(),
        "pages/b.htm": page("B", long).encode(),
        "other_pages/c.html": b"<p>Another",
        "bad_pages/d.html": b"<p>\xff",
        "crawl/a.warc": _record(page("A", "short")) + _record(long),
        "crawl/b.wet": _record("another"),
        "other_crawl/c.warc.gz": gzip.compress(_record("other")),
        "bad_crawl/d.warc": _record("torn")[:-9],
        "dumps/a.xml": _dump("short", "talk", ns=4) + b"\n",
        "dumps/b.xml.gz": gzip.compress(_dump("short", "x" * 200_000, "after")),
        "other_dumps/c.xml": _dump("other"),
        "bad_dumps/d.xml": _dump("whole")[:-9],
        **{f"{name}.txt": f"{word}\n".encode() for name, word in LISTS.items()},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def inputs(folder: Path) -> dict[str, Input]:
    return {f"./{name}.txt": Input(f"./{name}.txt", "path", folder / f"{name}.txt") for name in LISTS}


def rows() -> list[Record]:
    """Pages sound and doubtful, and rows at good and bad addresses."""
    said = "".join(f"<p>Paragraph {n} says at length where a river begins and ends.</p>" for n in range(9))
    index = "".join(f"<p><a href='/{n}'>Where the river number {n} begins and ends</a></p>" for n in range(30))
    lost = "".join(f"<li>Line {n} of the long list that this page is about, with words in it.</li>" for n in range(60))
    some = said + "<p><a href='/x'>Another river is on the next page</a></p>"
    pages = {
        "page": page("P", f"<nav>menu</nav><main>{some}</main>"),
        "half a page": page("P", f"<main>{said}</main><footer><ul>{lost[:900]}</ul></footer>"),
        "index": page("P", f"<main>{index}</main>"),
        "lost": page("P", f"<main><p>See below.</p></main><footer><ul>{lost}</ul></footer>"),
    }
    urls = (
        "https://x.bad.example/",
        "https://a.example/casino",
        "https://a.example/news-paper",
        "https://good.example/news",
        "https://ads.example",
    )
    found = [Record(name, text=text) for name, text in pages.items()]
    return found + [Record(url, text="A row of some address.", meta={"url": url}) for url in urls]


_PATHS = {"html": "pages", "warc": "crawl", "mediawiki": "dumps"}
SOURCES: dict[str, dict[str, Any]] = {
    **{kind: {"path": f"./{path}/"} for kind, path in _PATHS.items()},
    **{f"{kind}.on_bad": {"path": f"./bad_{path}/"} for kind, path in _PATHS.items()},
    "mediawiki": {"path": "./dumps/", "match": "**/*", "on_bad": "drop"},
    "html.max_page_bytes": {"on_bad": "drop"},
}
OTHER_SOURCES: dict[str, Any] = {
    **{f"{kind}.path": f"./other_{path}/" for kind, path in _PATHS.items()},
    "mediawiki.match": "**/*.gz",
}
STEPS: dict[str, dict[str, Any]] = {"url_rules": {"domains": ["none.example"]}, "url_rules.soft_limit": {"soft_words": ["news"]}}
