"""Several hosts asked beside each other: each keeps its own rate and order, and nothing that is kept depends on which was faster.

Every name is a server of its own on this machine.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Given, Machine
from modelwright.core.recipe import loads
from modelwright.stages import _crawl_warc
from modelwright.stages._crawl_frontier import Frontier
from modelwright.stages._crawl_warc import Archive
from tests.crawl_kit import Page, Site, html, served
from tests.test_crawl import Killed, crawl, spec

pytest.importorskip("resiliparse")
pytest.importorskip("defusedxml")

NAMES = tuple("abcde")


@contextmanager
def hosts(pages: dict[str, dict[str, Any]]) -> Iterator[dict[str, Site]]:
    """Sites by name: `a` is http://a.example/."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        sites = {name: stack.enter_context(served(given)) for name, given in pages.items()}
        whole = socket.getaddrinfo

        def resolve(host: str, *args: Any, **options: Any) -> Any:
            site = sites.get(str(host).removesuffix(".example"))
            if site is None:
                return whole(host, *args, **options)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", site.server.server_address[1]))]

        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr(_crawl_warc, "now", lambda: "2026-01-01T00:00:00Z")
        yield sites


def web(seed: int = 0) -> dict[str, dict[str, Any]]:
    """Pages of five sites with links between all; each answers after its own while."""
    draw = random.Random(seed)
    paths = [f"/{n}" for n in range(7)]
    every = [f"http://{name}.example{path}" for name in NAMES for path in paths]
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        pages: dict[str, Any] = {
            path: html(*draw.sample(every, 4), text=path)._replace(wait_s=draw.choice((0.0, 0.005, 0.03))) for path in paths
        }
        pages["/"] = html(*(f"http://{name}.example{path}" for path in paths[:2]))
        pages["/robots.txt"] = Page(b"User-agent: *\nDisallow: /5\n", "text/plain")._replace(wait_s=draw.random() / 50)
        pages["/6"] = Page(status=302, headers={"Location": f"http://{draw.choice(NAMES)}.example/3"})
        found[name] = pages
    return found


SEEDS = [f"http://{name}.example/" for name in NAMES]


def left(out: Path) -> tuple[bytes, bytes]:
    return (out / "pages.jsonl").read_bytes(), (out / "crawl.warc.gz").read_bytes()


@pytest.mark.parametrize("most", [9, 1000])
def test_how_many_are_asked_at_once_changes_nothing_that_is_kept(tmp_path: Path, most: int) -> None:
    seen, stats = set(), []
    for beside in (1, 2, 8):
        for turn in range(3):
            with hosts(web()) as sites:
                for site in sites.values():  # another host is the slow one each time
                    for path, page in site.pages.items():
                        site.pages[path] = page._replace(wait_s=random.Random(f"{turn} {path}").random() / 40)
                out = tmp_path / f"{beside}-{turn}"
                stats.append(crawl(out, SEEDS[0], seeds=SEEDS, hosts=beside, max_pages=most))
            seen.add(left(out))
    assert len(seen) == 1 and stats[0] == stats[-1]
    rows = [json.loads(line) for line in seen.pop()[0].splitlines()]
    assert len({row["url"] for row in rows}) == len(rows) and stats[0]["hosts"] == 5
    assert stats[0]["requests"] == sum(row["tries"] for row in rows) == (9 if most == 9 else stats[0]["requests"])
    assert stats[0]["left_out"].get("`max_pages` was reached", 0) == sum(row["state"] == "waiting" for row in rows)


def test_each_host_is_asked_for_one_page_at_a_time_at_its_own_pause(tmp_path: Path) -> None:
    pages = web()
    pages["b"]["/robots.txt"] = Page(b"User-agent: *\nCrawl-delay: 0.12\n", "text/plain")
    with hosts(pages) as sites:
        start = time.monotonic()
        crawl(tmp_path / "out", SEEDS[0], seeds=SEEDS, delay_s=0.06)
        took_s = time.monotonic() - start
    gaps = {name: [b - a for a, b in itertools.pairwise(site.times)] for name, site in sites.items()}
    assert all(min(found) >= (0.12 if name == "b" else 0.06) for name, found in gaps.items())
    assert took_s < 0.7 * sum(map(sum, gaps.values())), "the pauses of hosts overlap"


def test_a_slow_host_holds_up_nobody(tmp_path: Path) -> None:
    pages = {name: {"/": html("/x"), "/x": html(text="x")} for name in NAMES}
    for name in NAMES[:3]:
        pages[name]["/x"] = html()._replace(wait_s=0.4)
    took_s = {}
    for beside in (1, 5):
        with hosts(pages):
            start = time.monotonic()
            assert crawl(tmp_path / str(beside), SEEDS[0], seeds=SEEDS, hosts=beside)["pages"] == 10
            took_s[beside] = time.monotonic() - start
    assert took_s[1] > 1.2 and took_s[5] < 0.6 * took_s[1]


def test_a_host_that_asks_for_too_long_a_pause_is_not_waited_for_later(tmp_path: Path) -> None:
    """Pages that lead to it again, found when it was left alone already, are counted with the others."""
    pages: dict[str, dict[str, Any]] = {
        "a": {"/": html("/1", "http://b.example/1"), "/1": html("http://b.example/2", "/2"), "/2": html()},
        "b": {"/robots.txt": Page(b"User-agent: *\nCrawl-delay: 9999\n", "text/plain")},
        "c": {"/": html("http://b.example/3", "/busy"), "/busy": Page(status=503, headers={"Retry-After": "9999"})},
    }
    with hosts(pages) as sites:
        start = time.monotonic()
        stats = crawl(tmp_path / "out", SEEDS[0], seeds=[SEEDS[0], SEEDS[2]], stay="anywhere")
        assert time.monotonic() - start < 10 and sites["b"].asked == ["/robots.txt"]
    assert stats["left_out"] == {"Crawl-delay longer than `max_wait_s`": 3, "HTTP status 503": 1} and stats["pages"] == 4


def test_another_port_of_a_name_is_the_same_host(tmp_path: Path) -> None:
    """One machine serves both: a pause between two requests holds for all its origins, those met later, too."""
    with served({"/": html()}) as other, served({"/": html(f"{other.url}/", "/1"), "/1": html()}) as site:
        crawl(tmp_path / "out", site.url, delay_s=0.1)
        times = sorted(site.times + other.times)
    assert len(times) == 5 and min(b - a for a, b in itertools.pairwise(times)) >= 0.1


def test_killed_anywhere_with_several_hosts_the_same_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [
        *((Archive, name) for name in ("add", "write")),
        *((Frontier, name) for name in ("done", "rest", "add", "plan", "exchanged", "write")),
    ]
    with hosts(web()):
        crawl(tmp_path / "whole", SEEDS[0], seeds=SEEDS)
    for cls, name in steps:
        for turn in (1, 2, 17):
            out = tmp_path / f"{cls.__name__}-{name}-{turn}"
            with hosts(web()) as sites:
                _killed(out, cls, name, turn, monkeypatch)
                crawl(out, SEEDS[0], seeds=SEEDS)
                asked = [(host, path) for host, site in sites.items() for path in site.asked if path != "/robots.txt"]
            assert left(out) == left(tmp_path / "whole"), out.name
            assert sorted(path.name for path in out.iterdir()) == ["crawl.json", "crawl.warc.gz", "pages.jsonl"]
            assert len(asked) - len(set(asked)) <= len(NAMES), "at most what was in hand is asked again"


def _killed(out: Path, cls: Any, name: str, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = 0, getattr(cls, name)

    def torn(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == turn:
            raise Killed
        return whole(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, torn)
        try:
            crawl(out, SEEDS[0], seeds=SEEDS)
        except Killed:
            pass


def test_the_plan_counts_hosts_and_refuses_where_there_is_one() -> None:
    given = Given(Machine("m", 1, 1e9), {}, {})
    one, five = (spec(SEEDS[0], seeds=SEEDS, delay_s=1.0, hosts=n).estimate(given) for n in (1, 5))
    assert five.seconds.value == one.seconds.value / 5 and five.memory.value > one.memory.value
    text = "name: web\nstages:\n  site: {kind: crawl, seeds: ['http://a.example/'], contact: 'mailto:m@e.example', hosts: 2%s}\n"
    with pytest.raises(UserError) as error:
        loads(text % "")
    assert "hosts" in str(error.value) and "on one host" in str(error.value)
    loads(text % ", stay: anywhere")
