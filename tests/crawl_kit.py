"""A site on this machine for tests of the crawler: pages good, bad and hostile, and a list of what was asked for."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from modelwright.stages import _crawl_warc

with suppress(ImportError):  # its compiled parts come but once: not where a kit takes away what was imported meanwhile
    import resiliparse.parse.html  # noqa: F401


class Page(NamedTuple):
    body: bytes = b""
    media: str = "text/html; charset=utf-8"
    status: int = 200
    headers: dict[str, str] = {}
    wait_s: float = 0.0
    raw: bytes | None = None
    """Sent as it stands instead of everything else."""


def html(*links: str, text: str = "", head: str = "") -> Page:
    anchors = "".join(f"<a href='{link}'>{link}</a> " for link in links)
    return Page(f"<!doctype html><html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>".encode())


class Site:
    """What is served: path -> page, or a list of pages, one for each time it is asked for."""

    def __init__(self, pages: dict[str, Page | list[Page]]) -> None:
        self.pages, self.asked, self.agents = pages, [], set()
        self.times: list[float] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    asked: list[str]
    agents: set[str]


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            site.times.append(time.monotonic())
            site.agents.add(self.headers["User-Agent"])
            given = site.pages.get(self.path, Page(b"nothing here", status=404))
            page = given if isinstance(given, Page) else given[min(site.asked.count(self.path), len(given)) - 1]
            time.sleep(page.wait_s)
            if page.raw is not None:
                self.wfile.write(page.raw)
                return
            self.send_response_only(page.status)  # no date: the same bytes each time
            for name, value in {"Content-Type": page.media, "Content-Length": str(len(page.body)), **page.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # it hangs up where it does not want the body
                self.wfile.write(page.body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler


@contextmanager
def served(pages: dict[str, Any]) -> Iterator[Site]:
    site = Site(pages)
    try:
        yield site
    finally:
        site.server.shutdown()
        site.server.server_close()


LAW_SEED = "http://crawl.example/docs/"


def law_pages() -> dict[str, Any]:
    """A site on which each field of a crawl matters."""
    return {
        "/robots.txt": Page(b"User-agent: Example-Bot\nDisallow: /a\n\nUser-agent: *\nCrawl-delay: 0.002\n", "text/plain"),
        "/docs/": html("one", "/", "http://api.crawl.example/a", "http://elsewhere.example/a", text="documents"),
        "/docs/one": html(text="one"),
        "/": html("/a", "/plain.txt", "/busy", "/slow", text="start"),
        "/a": html("/a/b", text="short"),
        "/a/b": html(text="long " * 300),
        "/plain.txt": Page(b"plain", "text/plain"),
        "/busy": [Page(status=503, headers={"Retry-After": "0"}), html(text="at last")],
        "/slow": html(text="slow")._replace(wait_s=0.1),
        "/sitemap.xml": Page(b"<urlset><url><loc>http://crawl.example/hidden</loc></url></urlset>", "application/xml"),
    }


@contextmanager
def law() -> Iterator[None]:
    """Every name is a site on this machine, and time stands still."""
    with served(law_pages()) as site, pytest.MonkeyPatch.context() as patch:
        address = ("127.0.0.1", site.server.server_address[1])
        whole = socket.getaddrinfo

        def resolve(host: str, *args: Any, **options: Any) -> Any:
            at_home = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]
            return at_home if str(host).endswith(".example") else whole(host, *args, **options)

        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr(_crawl_warc, "now", lambda: "2026-01-01T00:00:00Z")
        yield


def packed(text: str, size_bytes: int) -> Page:
    body = gzip.compress(text.encode().ljust(size_bytes))
    return Page(body, headers={"Content-Encoding": "gzip"})
