"""The crawler: politeness, limits, refusals, the archive, and that no kill makes it ask twice. Servers are on this machine."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.events import Log
from modelwright.core.execute import execute
from modelwright.core.recipe import loads
from modelwright.core.stage import STAGES, Run
from modelwright.core.store import Store
from modelwright.stages import _crawl_net as net
from modelwright.stages import _crawl_robots as robots
from modelwright.stages._crawl_frontier import Found, Frontier
from modelwright.stages._crawl_pages import sitemap
from modelwright.stages._crawl_run import Crawler, retry_after_s
from modelwright.stages._crawl_urls import Scope, canonical, place_of
from modelwright.stages._crawl_warc import Archive
from tests.crawl_kit import Page, html, packed, served
from tests.test_data_sources import Events, make

pytest.importorskip("resiliparse")
pytest.importorskip("defusedxml")


MACHINE = Machine("m", 1, 1e9)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


def spec(seed: str, **fields: Any) -> Any:
    given = {
        "kind": "crawl",
        "seeds": [seed],
        "contact": "mailto:me@example.org",
        "delay_s": 0.0,
        "allow_private": True,
        **fields,
    }
    return STAGES.load("crawl").model_validate(given)


def crawl(out: Path, seed: str, log: Log | None = None, **fields: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return dict(spec(seed, **fields).run(Run(out, {}, 0, log or Log(None))))


def outcomes(out: Path, base: str) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "pages.jsonl").read_text().splitlines()]
    return {row["url"].removeprefix(base): row["why"] for row in rows}


# --- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "found"),
    [
        ("HTTP://Example.ORG:80/a/../b/./c?q=1#part", "http://example.org/b/c?q=1"),
        ("https://example.org", "https://example.org/"),
        ("https://example.org:443/%7euser/%c3%a4", "https://example.org/~user/%C3%A4"),
        ("/ä b%", "https://here.example/%C3%A4%20b%25"),
        ("../up", "https://here.example/up"),
        ("//other.example/x", "https://other.example/x"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://[::1]:8/x", "https://[::1]:8/x"),
        ("https://example.org./", "https://example.org/"),
        ("a\n b", "https://here.example/x/a%20b"),
        ("?page=2", "https://here.example/x/y?page=2"),
        ("mailto:a@b.example", ""),
        ("javascript:void(0)", ""),
        ("file:///etc/passwd", ""),
        ("ftp://example.org/", ""),
        ("https://user:secret@example.org/", ""),
        ("https://exa mple.org/", ""),
        ("https://example.org:99999/", ""),
        ("https://[::1/", ""),
    ],
)
def test_a_page_has_one_spelling(link: str, found: str) -> None:
    assert canonical(link, "https://here.example/x/y?old#z") == found
    assert not found or canonical(found) == found


def test_what_belongs_to_a_crawl() -> None:
    seeds = ["https://www.example.org/docs/index.html"]
    urls = {
        "below": "https://www.example.org/docs/a/b",
        "host": "https://www.example.org/other",
        "domain": "https://api.example.org/",
        "else": "https://notexample.org/",
    }
    belongs = {
        stay: {name for name, url in urls.items() if not Scope(seeds, stay, (), ()).outside(url)}
        for stay in ("folder", "host", "domain", "anywhere")
    }
    assert belongs == {
        "folder": {"below"},
        "host": {"below", "host"},
        "domain": {"below", "host", "domain"},
        "anywhere": set(urls),
    }
    scope = Scope(seeds, "host", ["*/docs/*"], ["*.pdf", "*?print=*"])
    assert scope.outside(urls["host"]) == "not in `allow`" and not scope.outside(urls["below"])
    assert scope.outside("https://www.example.org/docs/x?print=1") == "by `deny`"
    assert scope.outside("https://www.example.org/docs/" + "a/" * 5) == "a path that repeats itself"
    assert scope.outside("https://www.example.org/docs/" + "a" * 2000).startswith("address longer")


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("192.168.0.1", True),
        ("172.16.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("168.63.129.16", True),
        ("192.0.0.192", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("::ffff:127.0.0.1", True),
        ("2002:7f00:1::", True),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::808:808", False),
        ("8.8.8.8", False),
        ("2001:4860:4860::8888", False),
    ],
)
def test_private_addresses(address: str, is_private: bool) -> None:
    assert net.private(address) is is_private


# --- robots.txt -----------------------------------------------------------------------------------------

ROBOTS = b"""\xef\xbb\xbf# the example of RFC 9309, section 5.1, and more
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot/2.1 and more
Crawl-Delay: 2.5
Disallow: /example/page.html

User-Agent: quxbot
Sitemap: https://example.org/sitemap.xml

User-agent: BarBot
Disallow: /second
"""


@pytest.mark.parametrize(
    ("agent", "path", "allowed"),
    [
        ("anybot", "/example/x", False),
        ("anybot", "/publications/x", True),
        ("anybot", "/a.gif", False),
        ("anybot", "/a.gif?x", True),
        ("foobot", "/", False),
        ("FooBot", "/example/page.html", True),
        ("foobot", "/example/allowed.gif", True),
        ("foobot", "/robots.txt", True),
        ("barbot", "/example/page.html", False),
        ("barbot", "/second/x", False),
        ("bazbot", "/example/page.html", False),
        ("bazbot", "/second", True),
        ("barbot", "/a.gif", True),
        ("quxbot", "/example/x", True),
    ],
)
def test_robots_txt_by_the_rfc(agent: str, path: str, allowed: bool) -> None:
    found = robots.parse(ROBOTS, agent)
    assert found.allows(path) is allowed and found.sitemaps == ("https://example.org/sitemap.xml",)
    assert found.delay_s == (2.5 if agent in ("barbot", "bazbot") else 0.0)


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/fish*", "/fishheads", True),
        ("/fish/", "/fish", False),
        ("/*.php", "/a/b.php?x", True),
        ("/*.php$", "/b.php", True),
        ("/*.php$", "/b.php?x", False),
        ("/a*b*c", "/a1b2c3", True),
        ("/a*b*c$", "/abcb", False),
        ("/*a*a*a*a*a*b", "/" + "a" * 2000, False),
        ("/%7Eme", "/~me", True),
        ("/b\xc3\xa4r", "/b%C3%A4r", True),
        ("/x$", "/x", True),
        ("/x$", "/xy", False),
        ("*", "/", True),
    ],
)
def test_patterns(rule: str, path: str, matches: bool) -> None:
    found = robots.parse(f"User-agent: *\nDisallow: {rule}".encode("latin-1"), "bot")
    assert found.allows(place_of(canonical(f"http://h{path}")).path) is not matches


def test_of_equal_rules_the_kind_one_holds_and_the_longest_decides() -> None:
    text = b"user-agent: *\rallow: /a\rdisallow: /a\rdisallow: /a/b\rallow: /a/b/c\rdisallow:\rnonsense\r"
    found = robots.parse(text, "bot")
    assert [found.allows(path) for path in ("/a", "/a/x", "/a/b", "/a/b/c", "/z")] == [True, True, False, True, True]
    assert robots.parse(b"\0\xff" * 9, "bot").allows("/x") and not robots.FORBIDDEN.allows("/x")


# --- a crawl --------------------------------------------------------------------------------------------


def test_everything_is_counted_and_the_archive_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastwarc = pytest.importorskip("fastwarc.warc")
    monkeypatch.setattr(Crawler, "_backoff_s", lambda self, tries: 0.01 * tries)
    bomb = packed("<p>", 40_000_000)
    with served(
        {
            "/robots.txt": Page(b"User-agent: *\nDisallow: /closed\n", "text/plain"),
            "/": html(
                "a",
                "a#again",
                "/closed/x",
                "/moved",
                "/picture",
                "/gone",
                "/bomb",
                "/large",
                "/torn",
                "/nonsense",
                "/nofollow",
                "/none",
                "http://elsewhere.invalid/",
                "mailto:x@y.example",
                "/chunks",
                "/loop",
                text="Start.",
            ),
            "/a": html("/", "/deep/", text="A."),
            "/deep/": html("deeper", text="D."),
            "/deep/deeper": html(text="E."),
            "/moved": Page(status=301, headers={"Location": "/a2"}),
            "/a2": packed("<p>packed", 100),
            "/loop": Page(status=302, headers={"Location": "/loop"}),
            "/picture": Page(b"GIF", "image/gif"),
            "/bomb": bomb,
            "/large": Page(b"x" * 5_000_000),
            "/torn": Page(raw=HEAD + b"Content-Length: 99\r\n\r\nhalf"),
            "/nonsense": Page(raw=b"\0\1\2 what\r\n\r\n"),
            "/nofollow": html("/secret", head="<meta name=Robots content='noindex, NOFOLLOW'>"),
            "/none": Page(b"<a href=/secret rel='x nofollow'>s</a>"),
            "/chunks": Page(raw=HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n<p>Ch\r\n4\r\nunks\r\n0\r\n\r\n"),
        }
    ) as site:
        log = Events()
        stats = crawl(tmp_path / "out", site.url, log, max_page_bytes=1_000_000, max_depth=2, tries=2)
        why = outcomes(tmp_path / "out", site.url)
    assert why == {
        "/": "",
        "/a": "",
        "/closed/x": "robots.txt",
        "/moved": "redirect",
        "/a2": "",
        "/picture": "type: image/gif",
        "/gone": "HTTP status 404",
        "/bomb": "packed wrongly, or unpacks to more than `max_page_bytes`",
        "/large": "longer than `max_page_bytes`",
        "/torn": "error: the answer ends before its stated length",
        "/nonsense": "error: not HTTP: BadStatusLine",
        "/nofollow": "",
        "/none": "",
        "http://elsewhere.invalid/": "not on the same host",
        "/chunks": "",
        "/loop": "redirect",
        "/deep/": "",
        "/deep/deeper": "deeper than `max_depth`",
    }
    assert stats["pages"] == 7 and stats["left_out"]["redirect"] == 2 and stats["statuses"]["404"] == 1
    assert {event["reason"]: event["files"] for event in log.of("excluded")} == stats["left_out"]
    assert site.agents == {"Modelwright (Modelwright crawler; +mailto:me@example.org)"}
    assert site.asked[0] == "/robots.txt" and site.asked.count("/torn") == 2 and "/secret" not in site.asked
    with (tmp_path / "out" / "crawl.warc.gz").open("rb") as file:
        records = [
            (
                record.headers["WARC-Type"],
                record.headers.get("WARC-Target-URI", "").removeprefix(site.url),
                record.verify_block_digest(),
            )
            for record in fastwarc.ArchiveIterator(file, parse_http=False)
            for found in [record.headers]
        ]
    assert records[0] == ("warcinfo", "", True) and all(digest for _, _, digest in records)
    answered = [path for kind, path, _ in records if kind == "response"]
    assert answered == [path for kind, path, _ in records if kind == "request"] and len(set(answered)) == len(answered)
    assert {"/robots.txt", "/", "/a", "/moved", "/a2", "/gone", "/chunks", "/picture", "/large"} <= set(answered)
    assert not {"/torn", "/closed/x"} & set(answered) and (tmp_path / "out" / "crawl.warc.gz").stat().st_size < 60_000


def test_a_recipe_crawls_and_curates(tmp_path: Path) -> None:
    pytest.importorskip("fastwarc")
    text = (
        "name: web\nstages:\n"
        "  site: {{kind: crawl, seeds: ['{url}'], contact: 'https://me.example', allow_private: true, delay_s: 0}}\n"
        "  pages: {{kind: curate, source: {{kind: warc, path: site}}}}\n"
    )
    with served({"/": html("/b", text="Start."), "/b": html(text="More.")}) as site:
        recipe = loads(text.format(url=site.url))
        store = Store(tmp_path / "store")
        made = [outcome.artifact for outcome in execute(recipe, store, MACHINE, lambda event, fields: None) if outcome.artifact]
        assert site.asked == ["/robots.txt", "/", "/b"]
        again = list(execute(recipe, store, MACHINE, lambda event, fields: None))
        assert [outcome.state for outcome in again] == ["cached", "cached"] and len(site.asked) == 3
    rows = [json.loads(line) for line in (made[1].path / "all.jsonl").read_text().splitlines()]
    assert [row["meta"]["url"] for row in rows] == [f"{site.url}/", f"{site.url}/b"] and "Start." in rows[0]["text"]
    assert sorted(made[0].manifest["files"]) == ["crawl.json", "crawl.warc.gz", "metrics.jsonl", "pages.jsonl"]
    assert make("warc", path="site").rows and not store.verify(made[0])


def test_an_unreachable_robots_txt_forbids_and_a_missing_one_allows(tmp_path: Path) -> None:
    for status, allowed in ((404, True), (403, True), (500, False), (503, False)):
        with served({"/robots.txt": Page(status=status), "/": html()}) as site:
            if allowed:
                assert crawl(tmp_path / str(status), site.url, tries=1)["pages"] == 1
                continue
            with pytest.raises(UserError, match="kept no page") as error:
                crawl(tmp_path / str(status), site.url, tries=1)
            assert "robots.txt cannot be read: 1" in error.value.why and site.asked == ["/robots.txt"]
    hops: dict[str, Any] = {f"/{n}": Page(status=301, headers={"Location": f"/{n + 1}"}) for n in range(9)}
    closed = Page(b"User-agent: *\nDisallow: /\n", "text/plain")
    for last, allowed in (("/4", False), ("/8", True)):  # five redirects are followed, not more
        first = Page(status=302, headers={"Location": "/0"})
        with served({**hops, "/robots.txt": first, last: closed, "/": html()}) as site:
            if allowed:
                assert crawl(tmp_path / last[1:], site.url)["pages"] == 1
            else:
                with pytest.raises(UserError, match="kept no page"):
                    crawl(tmp_path / last[1:], site.url)


def test_pauses_between_requests(tmp_path: Path) -> None:
    pages = {"/": html("/1", "/2"), "/1": html(), "/2": html()}
    with served({**pages, "/robots.txt": Page(b"User-agent: modelwright\nCrawl-delay: 0.15\n", "text/plain")}) as site:
        crawl(tmp_path / "said", site.url)
        assert min(b - a for a, b in zip(site.times, site.times[1:], strict=False)) >= 0.15
    with served(pages) as site:
        crawl(tmp_path / "own", site.url, delay_s=0.1)
        assert min(b - a for a, b in zip(site.times, site.times[1:], strict=False)) >= 0.1
    with (
        served({**pages, "/robots.txt": Page(b"User-agent: *\nCrawl-delay: 9999\n", "text/plain")}) as site,
        pytest.raises(UserError, match="kept no page") as error,
    ):
        crawl(tmp_path / "long", site.url)
    assert "Crawl-delay longer" in error.value.why and site.asked == ["/robots.txt"]


def test_busy_servers_are_asked_again_when_they_say(tmp_path: Path) -> None:
    busy = [Page(status=429, headers={"Retry-After": "1"}), html(text="now")]
    pages: dict[str, Any] = {"/": html("/busy", "/never", "/long"), "/busy": busy}
    pages["/never"] = Page(status=503, headers={"Retry-After": "0"})
    pages["/long"] = Page(status=503, headers={"Retry-After": "86400"})
    with served(pages) as site:
        stats = crawl(tmp_path / "out", site.url)
        times = dict(zip(site.asked, site.times, strict=True))
        first = site.times[site.asked.index("/busy")]
        assert site.asked.count("/busy") == 2 and times["/busy"] - first >= 1.0
        assert site.asked.count("/never") == 3 and site.asked.count("/long") == 1
        assert stats["pages"] == 2 and stats["left_out"] == {"HTTP status 503": 2}
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412470.0) == 10.0
    assert retry_after_s("soon", 0.0) is None and retry_after_s("", 0.0) is None


def test_limits_end_a_crawl_and_the_rest_is_counted(tmp_path: Path) -> None:
    pages = {"/": html(*[f"/{n}" for n in range(9)]), **{f"/{n}": html(text="x" * 1000) for n in range(9)}}
    with served(pages) as site:
        stats = crawl(tmp_path / "pages", site.url, max_pages=4)
        assert stats["requests"] == 4 and stats["left_out"] == {"`max_pages` was reached": 6}
        stats = crawl(tmp_path / "bytes", site.url, max_bytes=3000)
        assert stats["bytes_received"] < 4200 and sum(stats["left_out"].values()) + stats["pages"] == 10
        late = spec(site.url).run
        with pytest.raises(KeyboardInterrupt):
            late(Run(tmp_path, {}, 0, Log(None), {}, time.time() - 1))
    with served({"/": html("/slow", text="x"), "/slow": html()._replace(wait_s=2.0)}) as site:
        start = time.monotonic()
        stats = crawl(tmp_path / "slow", site.url, timeout_s=0.2, tries=1)
        assert stats["left_out"] == {"error: no whole answer in time": 1} and time.monotonic() - start < 1.5


def test_a_server_that_drips_does_not_outlast_the_time(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    place = place_of(f"http://127.0.0.1:{listener.getsockname()[1]}/")

    def drip() -> None:
        wire, _ = listener.accept()
        with wire:
            for _ in range(60):
                try:
                    wire.sendall(b"HTTP/1.1 200 OK\r\nX: y"[:1])
                except OSError:
                    return
                time.sleep(0.05)

    threading.Thread(target=drip, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(net.Failed, match="in time"):
        net.ask(place, "Bot", net.Limits(1000, 0.4, True), lambda status, media: True)
    assert time.monotonic() - start < 1.5
    listener.close()


# --- addresses that must not be asked --------------------------------------------------------------------


def test_private_addresses_are_not_asked(tmp_path: Path) -> None:
    with served({"/": html()}) as site:
        port = site.server.server_address[1]
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            with pytest.raises(UserError, match="kept no page") as error:
                crawl(tmp_path / host.strip("["), f"http://{host}:{port}/", allow_private=False)
            assert "private address: 1" in error.value.why
        assert not site.asked


def test_a_name_that_changes_its_address_reaches_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer would be this machine; there is no second question, and each redirect is asked anew."""
    with served(
        {"/": Page(status=302, headers={"Location": "http://inner.example/secret"}), "/secret": html(text="secret")}
    ) as site:
        port = site.server.server_address[1]
        asked: list[str] = []
        names = {"public.example": "93.184.216.34", "inner.example": "127.0.0.1"}

        def resolve(host: str, _port: int, **options: Any) -> list[Any]:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names[host], port))]

        connected: list[Any] = []
        connect = socket.socket.connect

        def to(self: socket.socket, address: Any) -> None:
            connected.append(address[0])
            connect(self, ("127.0.0.1", port))  # stands for the public machine

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket.socket, "connect", to)
        with pytest.raises(UserError, match="kept no page") as error:
            crawl(tmp_path / "out", "http://public.example/", stay="anywhere", allow_private=False)
    assert "private address: 1" in error.value.why and "redirect: 1" in error.value.why
    assert set(connected) == {"93.184.216.34"} and len(connected) == asked.count("public.example") == 2
    assert "/secret" not in site.asked and "inner.example" in asked


# --- sitemaps -------------------------------------------------------------------------------------------


def test_sitemaps(tmp_path: Path) -> None:
    with served({}) as site:
        entries = "".join(f"<url><loc>{site.url}/{name}</loc></url>" for name in ("x", "y", "closed"))
        site.pages.update(
            {
                "/robots.txt": Page(f"Sitemap: {site.url}/index.xml\nUser-agent: *\nDisallow: /closed".encode(), "text/plain"),
                "/index.xml": Page(f"<sitemapindex><sitemap><loc>{site.url}/s.xml.gz</loc></sitemap></sitemapindex>".encode()),
                "/s.xml.gz": Page(gzip.compress(f"<urlset xmlns='http://s'>{entries}</urlset>".encode()), "application/gzip"),
                "/": html(),
                "/x": html(),
                "/y": html(),
            }
        )
        stats = crawl(tmp_path / "with", site.url, sitemaps=True, max_depth=1)
        assert stats["pages"] == 3 and stats["left_out"] == {"robots.txt": 1, "sitemap": 2}
        assert crawl(tmp_path / "without", site.url)["pages"] == 1
        site.pages["/index.xml"] = Page(b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><urlset><url><loc>&a;</loc></url></urlset>")
        assert crawl(tmp_path / "evil", site.url, sitemaps=True)["left_out"] == {"no sitemap: DTDForbidden": 1}
    with pytest.raises(ValueError, match="50 MB"):
        list(sitemap(gzip.compress(b" " * (60 << 20))))


# --- killed anywhere ------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_killed_anywhere_it_goes_on_and_asks_for_no_page_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each write to the disk, at each of its turns."""
    pages = {"/": html("/1", "/2", "/picture"), "/1": html("/3"), "/2": html(), "/3": html(), "/picture": Page(b"x", "image/gif")}
    steps = [
        (Archive, "add"),
        (Archive, "write"),
        *((Frontier, name) for name in ("done", "rest", "add", "plan", "exchanged", "write")),
    ]
    seen = set()
    for cls, name in steps:
        for after in (False, True):
            for turn in range(1, 4):
                out = tmp_path / f"{cls.__name__}-{name}-{after}-{turn}"
                with served(pages) as site:
                    _killed(out, site.url, cls, name, turn, after, monkeypatch)
                    stats = crawl(out, site.url)
                    asked = [path for path in site.asked if path != "/robots.txt"]
                    lost = name == "add" and cls is Archive and not after and turn > 1  # killed with the answer in hand
                    assert len(asked) == len(set(asked)) + lost, (out.name, asked)
                    seen.add((stats["pages"], stats["requests"], *sorted(outcomes(out, site.url).items())))
    assert len(seen) == 1


def _killed(out: Path, url: str, cls: Any, name: str, turn: int, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    whole = getattr(cls, name)

    def torn(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == turn and not after:
            raise Killed
        made = whole(self, *args, **options)
        if calls == turn:
            raise Killed
        return made

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, torn)
        try:
            crawl(out, url)
        except Killed:
            pass


def test_a_torn_archive_is_cut_and_what_is_whole_is_not_asked_again(tmp_path: Path) -> None:
    with served({"/": html("/1"), "/1": html()}) as site:
        crawler = Crawler(spec(site.url)._settings(), tmp_path, Log(None))
        page = net.ask(place_of(f"{site.url}/"), "Bot", net.Limits(9999, 5, True), lambda status, media: True)
        with crawler.frontier.change():
            crawler._met(f"{site.url}/", Found(0, 0), 0, "seed")
            assert crawler.frontier.plan()
            crawler._settle()
        crawler._archive.add(f"{site.url}/", page, "2026-01-01T00:00:00Z")
        crawler.close()
        with (tmp_path / "exchanges.warc.gz").open("ab") as file:
            file.write(gzip.compress(b"WARC/1.1\r\nWARC-Type: request\r\n\r\n") + gzip.compress(b"torn")[:-3])
        site.asked.clear()
        assert crawl(tmp_path, site.url)["pages"] == 2
        assert site.asked == ["/robots.txt", "/1"]
