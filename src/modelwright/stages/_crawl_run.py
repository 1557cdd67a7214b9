"""The work of a crawl: each host is asked for one page at a time, several hosts beside each other; an outcome is on the disk
before the same host is asked again.

Source: RFC 9309 (robots.txt), RFC 9110 (redirects 15.4, Retry-After 10.2.3), RFC 6585 (429).
"""

from __future__ import annotations

import io
import math
import queue
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.events import Log
from modelwright.stages import _crawl_net as net
from modelwright.stages import _crawl_robots as robots
from modelwright.stages import _crawl_warc as warc
from modelwright.stages._crawl_frontier import TOO_DEEP, TOO_LONG, Found, Frontier, Host, Page
from modelwright.stages._crawl_pages import SITEMAP_BYTES, links, sitemap
from modelwright.stages._crawl_urls import Scope, canonical, place_of

EXCHANGES = "exchanges.warc.gz"
"""The archive as it grows, in the order in which answers came."""
REDIRECTS = 5
BUSY = (429, 503)


class Settings(NamedTuple):
    """A crawl's fields, as the stage has them."""

    seeds: tuple[str, ...]
    scope: Scope
    agent: str
    """The whole header; it begins with the name that robots.txt is asked for."""
    token: str
    sitemaps: bool
    types: tuple[str, ...]
    max_depth: int
    max_pages: int
    max_bytes: int
    max_page_bytes: int
    timeout_s: float
    delay_s: float
    tries: int
    max_wait_s: float
    allow_private: bool
    hosts: int
    """Asked beside each other."""


class Came(NamedTuple):
    """What a request of a thread came to."""

    host: str
    take: Callable[[Any], None]
    found: Any
    """Or the exception."""


class RobotsFile(NamedTuple):
    """What was asked for in vain or not, to know what a host asks for."""

    text: bytes | None
    """None where there was no answer; no bytes where the site has none."""
    exchanges: list[tuple[str, net.Answer, str]]


class Crawler:
    """`run` goes on from what is in the folder. Threads only ask; everything else happens in this one."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        log: Log,
        deadline_s: float = math.inf,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings, self._log, self._deadline_s, self._clock, self._sleep = settings, log, deadline_s, clock, sleep
        self.frontier = Frontier(folder / "frontier.sqlite")
        self._archive = warc.Archive(folder / EXCHANGES, settings.agent, self.frontier.counted("archive"))
        self._rules: dict[str, robots.Robots] = {}
        self._under_way: dict[str, int] = {}
        self._came: queue.SimpleQueue[Came] = queue.SimpleQueue()
        self._cut: int | None = None

    def close(self) -> None:
        self.frontier.close()
        self._archive.close()

    def write(self, folder: Path) -> None:
        """What the crawl leaves, in the order of the pages."""
        self.frontier.write(folder / "pages.jsonl")
        self._archive.write(folder / warc.NAME, self.frontier.exchanges())

    def run(self) -> None:
        """Until nothing waits or a limit is reached; KeyboardInterrupt at the deadline."""
        with self.frontier.change():
            for place, seed in enumerate(self.settings.seeds):
                self._met(seed, Found(0, place), 0, "seed")
        for stored in self._archive.unaccounted:
            page = self.frontier.waiting(stored.url)
            if page is not None:
                answer = net.read(io.BytesIO(stored.raw), self._limit(page), stored.wanted)
                self._account(page, answer, stored.date, stored.at)
        with self.frontier.change():
            self._settle()
        while (wait_s := self._start()) is not None:
            self._take(wait_s)

    def _start(self) -> float | None:
        """Ask all that may be asked now; seconds until more may be, None where nothing is left to do."""
        while not self.full():
            if self._cut is None:
                self._cut = self.frontier.cut(self.settings.max_pages)
            waiting = self.frontier.next_hosts(self._cut)
            if not waiting and not self._under_way:
                with self.frontier.change():
                    planned = self.frontier.plan()
                self._cut = None
                if planned:
                    continue
                return None
            free = [host for host in waiting if host.name not in self._under_way]
            if not free or len(self._under_way) == self.settings.hosts:
                return math.inf
            wait_s = free[0].ready_s - self._clock()
            if max(free[0].ready_s, self._clock()) >= self._deadline_s:
                if self._under_way:
                    return math.inf
                raise KeyboardInterrupt("time is up; the crawl goes on from here")
            if wait_s > 0:
                return wait_s
            self._turn(free[0])
        return math.inf if self._under_way else None

    def _take(self, wait_s: float) -> None:
        """What came of one request, or the time that passed."""
        if not self._under_way:
            self._sleep(wait_s)
            return
        try:
            came = self._came.get(timeout=None if wait_s == math.inf else wait_s)
        except queue.Empty:
            return
        del self._under_way[came.host]
        if isinstance(came.found, Exception) and not isinstance(came.found, (net.Refused, net.Failed)):
            raise came.found
        came.take(came.found)

    def _ask_beside(self, host: Host, pages: int, ask: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """`take` sees what `ask` came to, in this thread. A daemon, because a slow server must not hold up the end."""

        def asked() -> None:
            try:
                found = ask()
            except Exception as fault:
                found = fault
            self._came.put(Came(host.name, take, found))

        self._under_way[host.name] = pages
        threading.Thread(target=asked, daemon=True).start()

    def _turn(self, host: Host) -> None:
        if host.robots is None or self._clock() - host.robots_s > robots.FRESH_S:
            rank = self.frontier.next_page(host.origin).rank
            self._ask_beside(host, 0, lambda: self._fetch_robots(host.origin), lambda found: self._met_robots(host, rank, found))
            return
        rules = self._rules_of(host)
        page = self.frontier.next_page(host.origin)
        if rules.allows(place_of(page.url).path):
            self._ask_beside(host, 1, lambda: self._ask(page), lambda found: self._answered(page, found))
        else:
            self._leave_out(page, "robots.txt" if rules is not robots.FORBIDDEN else "robots.txt cannot be read")

    def _leave_out(self, page: Page, why: str) -> None:
        with self.frontier.change():
            self.frontier.left_out(page.url, why)
        self._cut = None

    def full(self) -> str:
        """Which limit is reached, with what is under way."""
        if self.frontier.counted("asked") + sum(self._under_way.values()) >= self.settings.max_pages:
            return "`max_pages` was reached"
        return "`max_bytes` was reached" if self.frontier.counted("bytes") >= self.settings.max_bytes else ""

    # --- robots.txt -------------------------------------------------------------------------------------

    def _rules_of(self, host: Host) -> robots.Robots:
        if host.origin not in self._rules:
            assert host.robots is not None
            unreachable = host.robots == _UNREACHABLE
            self._rules[host.origin] = robots.FORBIDDEN if unreachable else robots.parse(host.robots, self.settings.token)
        return self._rules[host.origin]

    def _met_robots(self, host: Host, rank: int, file: RobotsFile) -> None:
        tries = host.tries + 1
        found = file.text
        if found is None and tries >= self.settings.tries:
            found = _UNREACHABLE
        self._rules.pop(host.origin, None)
        self._cut = None
        spans = [self._archive.add(*exchange) for exchange in file.exchanges]
        with self.frontier.change():
            self._settle()
            for span in spans:
                self.frontier.exchanged(rank, *span)
            if found is None:
                self.frontier.robots(host.origin, None, 0.0, tries)
                self.frontier.rest(host.origin, self._clock() + self._backoff_s(tries))
                return
            self.frontier.robots(host.origin, found, self._clock(), 0)
            rules = robots.parse(found, self.settings.token)
            self.frontier.rest(host.origin, self._clock() + max(self.settings.delay_s, rules.delay_s))
            if rules.delay_s > self.settings.max_wait_s:
                self.frontier.host_left_out(host.origin, "Crawl-delay longer than `max_wait_s`")
            if self.settings.sitemaps and found != _UNREACHABLE:
                self._met_sitemaps(host.origin, rank, rules.sitemaps)

    def _fetch_robots(self, origin: str) -> RobotsFile:
        url = f"{origin}/robots.txt"
        limits = net.Limits(robots.ROBOTS_BYTES, self.settings.timeout_s, self.settings.allow_private)
        exchanges: list[tuple[str, net.Answer, str]] = []
        for hops in range(robots.REDIRECTS + 1):
            try:
                answer = net.ask(place_of(url), self.settings.agent, limits, lambda status, media: True)
            except net.Refused:  # the pages of a private host are refused, and counted, one by one
                return RobotsFile(None if hops else b"", exchanges)
            except net.Failed:
                return RobotsFile(None, exchanges)
            exchanges.append((url, answer, warc.now()))
            if 300 <= answer.status < 400 and (target := canonical(answer.header("Location"), url)):
                url = target
                continue
            if 200 <= answer.status < 300:
                return RobotsFile(net.unpacked(answer, 4 * robots.ROBOTS_BYTES) or b"", exchanges)
            return RobotsFile(b"" if answer.status < 500 and answer.status not in BUSY else None, exchanges)
        return RobotsFile(b"", exchanges)

    def _met_sitemaps(self, origin: str, rank: int, named: tuple[str, ...]) -> None:
        links = named or (f"{origin}/sitemap.xml",)
        for place, link in enumerate(links, -len(links)):
            if url := canonical(link, origin):
                self._met(url, Found(rank, place), 0, f"{origin}/robots.txt", sort="sitemap")

    # --- pages ------------------------------------------------------------------------------------------

    def _met(self, url: str, found: Found, depth: int, source: str, hops: int = 0, sort: str = "page") -> None:
        why = self.settings.scope.outside(url)
        if not why and depth > self.settings.max_depth:
            why = TOO_DEEP
        elif not why and hops > REDIRECTS:
            why = "more than 5 redirects"
        self.frontier.add(url, found, depth=depth, source=source, hops=hops, sort=sort, why=why)

    def _limit(self, page: Page) -> int:
        return SITEMAP_BYTES if page.sort == "sitemap" else self.settings.max_page_bytes

    def _ask(self, page: Page) -> net.Answer:
        limits = net.Limits(self._limit(page), self.settings.timeout_s, self.settings.allow_private)

        def wanted(status: int, media: str) -> bool:
            return status != 200 or page.sort == "sitemap" or media in self.settings.types

        return net.ask(place_of(page.url), self.settings.agent, limits, wanted)

    def _answered(self, page: Page, answer: net.Answer | net.Refused | net.Failed) -> None:
        if isinstance(answer, net.Refused):
            self._leave_out(page, "private address")
            return
        if isinstance(answer, net.Failed):
            self._failed(page, f"error: {answer}", self._backoff_s(page.tries + 1))
        elif answer.status in BUSY:
            wait_s = retry_after_s(answer.header("Retry-After"), self._clock())
            self._failed(page, f"HTTP status {answer.status}", self._backoff_s(page.tries + 1) if wait_s is None else wait_s)
        else:
            date = warc.now()
            self._account(page, answer, date, self._archive.add(page.url, answer, date))
        self._log.progress(self.frontier.counted("asked"), self.settings.max_pages, "pages", "crawl")

    def _failed(self, page: Page, why: str, wait_s: float) -> None:
        """Asked again later, until the tries are used up or the host asks for more patience than there is."""
        self._cut = None
        with self.frontier.change():
            self.frontier.count("asked", 1)
            if wait_s > self.settings.max_wait_s:
                self.frontier.done(page.url, why)
                self.frontier.host_left_out(page.host, TOO_LONG)
                return
            self.frontier.rest(page.host, self._clock() + max(wait_s, self.settings.delay_s))
            if page.tries + 1 < self.settings.tries:
                self.frontier.again(page.url)
            else:
                self.frontier.done(page.url, why)

    def _backoff_s(self, tries: int) -> float:
        return min((1 + self.settings.delay_s) * 2.0**tries, self.settings.max_wait_s)

    def _account(self, page: Page, answer: net.Answer, date: str, at: warc.Span) -> None:
        """What an answer leads to, and its outcome, at once."""
        with self.frontier.change():
            why = self._outcome(page, answer)
            self.frontier.done(page.url, why, answer.status, answer.received_bytes, answer.type(), date)
            self.frontier.exchanged(page.rank, *at)
            self.frontier.count("asked", 1)
            self.frontier.count("bytes", answer.received_bytes)
            self._settle()
            rules = self._rules.get(page.host, robots.Robots())
            self.frontier.rest(page.host, self._clock() + max(self.settings.delay_s, rules.delay_s))

    def _settle(self) -> None:
        """All that is in the archive is accounted for."""
        self.frontier.count("archive", self._archive.size_bytes - self.frontier.counted("archive"))

    def _outcome(self, page: Page, answer: net.Answer) -> str:
        """Why an answer is not kept as a page; '' where it is. Adds what it leads to."""
        if 300 <= answer.status < 400 and (target := canonical(answer.header("Location"), page.url)):
            self._met(target, Found(page.rank, 0), page.depth, page.url, page.hops + 1, page.sort)
            return "redirect"
        if answer.status != 200:
            return f"HTTP status {answer.status}"
        if page.sort == "page" and answer.type() not in self.settings.types:
            return f"type: {answer.type() or 'none'}"
        if not answer.whole:
            return "longer than `max_page_bytes`"
        body = net.unpacked(answer, self._limit(page))
        if body is None:
            return "packed wrongly, or unpacks to more than `max_page_bytes`"
        if page.sort == "sitemap":
            return self._from_sitemap(page, body)
        for place, url in enumerate(links(answer, body, page.url)):
            self._met(url, Found(page.rank, place), page.depth + 1, page.url)
        return ""

    def _from_sitemap(self, page: Page, body: bytes) -> str:
        try:
            for place, (sort, url) in enumerate(sitemap(body)):
                if url:
                    self._met(url, Found(page.rank, place), page.depth + (sort == "page"), page.url, sort=sort)
        except ValueError as error:
            return f"no sitemap: {error}"
        return "sitemap"


_UNREACHABLE = b"\0"
"""Stands for a robots.txt that could not be read; no such file holds it alone."""


def retry_after_s(text: str, now_s: float) -> float | None:
    """Seconds from now; None where the header says nothing."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - now_s, 0.0)
    except (ValueError, TypeError):
        return None
