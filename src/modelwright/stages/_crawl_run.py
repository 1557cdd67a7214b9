"""The work of a crawl: one request at a time, to the host whose turn it is, each outcome on the disk before the next.

Source: RFC 9309 (robots.txt), RFC 9110 (redirects 15.4, Retry-After 10.2.3), RFC 6585 (429).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from modelwright.core.events import Log
from modelwright.stages import _crawl_net as net
from modelwright.stages import _crawl_robots as robots
from modelwright.stages import _crawl_warc as warc
from modelwright.stages._crawl_frontier import TOO_DEEP, Frontier, Host, Page
from modelwright.stages._crawl_pages import SITEMAP_BYTES, links, sitemap
from modelwright.stages._crawl_urls import Scope, canonical, place_of

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


class Crawler:
    """`run` goes on from what is in the folder."""

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
        self._archive = warc.Archive(folder / "crawl.warc.gz", settings.agent, self.frontier.counted("archive"))
        self._rules: dict[str, robots.Robots] = {}

    def close(self) -> None:
        self.frontier.close()
        self._archive.close()

    def run(self) -> None:
        """Until nothing waits or a limit is reached; KeyboardInterrupt at the deadline."""
        with self.frontier.change():
            for seed in self.settings.seeds:
                self._met(seed, 0, "seed")
        for stored in self._archive.unaccounted:
            page = self.frontier.waiting(stored.url)
            if page is not None:
                self._account(page, net.read(io.BytesIO(stored.raw), self._limit(page), stored.wanted), stored.date)
        with self.frontier.change():
            self._settle()
        while not self.full() and (host := self.frontier.next_host()) is not None:
            self._wait(host)
            rules = self._robots_of(host)
            if rules is None:
                continue
            page = self.frontier.next_page(host.origin)
            if not rules.allows(place_of(page.url).path):
                with self.frontier.change():
                    self.frontier.left_out(
                        page.url, "robots.txt" if rules is not robots.FORBIDDEN else "robots.txt cannot be read"
                    )
            else:
                self._ask(page)
                self._log.progress(self.frontier.counted("asked"), self.settings.max_pages, "pages", "crawl")

    def full(self) -> str:
        """Which limit is reached."""
        if self.frontier.counted("asked") >= self.settings.max_pages:
            return "`max_pages` was reached"
        return "`max_bytes` was reached" if self.frontier.counted("bytes") >= self.settings.max_bytes else ""

    def _wait(self, host: Host) -> None:
        if max(host.ready_s, self._clock()) >= self._deadline_s:
            raise KeyboardInterrupt("time is up; the crawl goes on from here")
        while (left_s := host.ready_s - self._clock()) > 0:
            self._sleep(left_s)

    # --- robots.txt -------------------------------------------------------------------------------------

    def _robots_of(self, host: Host) -> robots.Robots | None:
        """What a host asks for; None where its turn comes again, after a pause."""
        if host.robots is None or self._clock() - host.robots_s > robots.FRESH_S:
            self._ask_robots(host)
            return None
        if host.origin not in self._rules:
            unreachable = host.robots == _UNREACHABLE
            self._rules[host.origin] = robots.FORBIDDEN if unreachable else robots.parse(host.robots, self.settings.token)
        return self._rules[host.origin]

    def _ask_robots(self, host: Host) -> None:
        tries = host.tries + 1
        found = self._fetch_robots(host.origin)
        if found is None and tries >= self.settings.tries:
            found = _UNREACHABLE
        self._rules.pop(host.origin, None)
        with self.frontier.change():
            self._settle()
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
                self._met_sitemaps(host.origin, rules.sitemaps)

    def _fetch_robots(self, origin: str) -> bytes | None:
        """Its bytes, none where the site has none; None where there was no answer."""
        url = f"{origin}/robots.txt"
        limits = net.Limits(robots.ROBOTS_BYTES, self.settings.timeout_s, self.settings.allow_private)
        for hops in range(robots.REDIRECTS + 1):
            try:
                answer = net.ask(place_of(url), self.settings.agent, limits, lambda status, media: True)
            except net.Refused:
                return None if hops else b""  # the pages of a private host are refused, and counted, one by one
            except net.Failed:
                return None
            self._archive.add(url, answer, warc.now())
            if 300 <= answer.status < 400 and (target := canonical(answer.header("Location"), url)):
                url = target
                continue
            if 200 <= answer.status < 300:
                return net.unpacked(answer, 4 * robots.ROBOTS_BYTES) or b""
            return b"" if answer.status < 500 and answer.status not in BUSY else None
        return b""

    def _met_sitemaps(self, origin: str, named: tuple[str, ...]) -> None:
        for link in named or (f"{origin}/sitemap.xml",):
            if url := canonical(link, origin):
                self.frontier.add(
                    url, depth=0, source=f"{origin}/robots.txt", sort="sitemap", why=self.settings.scope.outside(url)
                )

    # --- pages ------------------------------------------------------------------------------------------

    def _met(self, url: str, depth: int, source: str, hops: int = 0, sort: str = "page") -> None:
        why = self.settings.scope.outside(url)
        if not why and depth > self.settings.max_depth:
            why = TOO_DEEP
        elif not why and hops > REDIRECTS:
            why = "more than 5 redirects"
        self.frontier.add(url, depth=depth, source=source, hops=hops, sort=sort, why=why)

    def _limit(self, page: Page) -> int:
        return SITEMAP_BYTES if page.sort == "sitemap" else self.settings.max_page_bytes

    def _ask(self, page: Page) -> None:
        limits = net.Limits(self._limit(page), self.settings.timeout_s, self.settings.allow_private)

        def wanted(status: int, media: str) -> bool:
            return status != 200 or page.sort == "sitemap" or media in self.settings.types

        try:
            answer = net.ask(place_of(page.url), self.settings.agent, limits, wanted)
        except net.Refused:
            with self.frontier.change():
                self.frontier.left_out(page.url, "private address")
            return
        except net.Failed as fault:
            self._failed(page, f"error: {fault}", self._backoff_s(page.tries + 1))
            return
        if answer.status in BUSY:
            wait_s = retry_after_s(answer.header("Retry-After"), self._clock())
            self._failed(page, f"HTTP status {answer.status}", self._backoff_s(page.tries + 1) if wait_s is None else wait_s)
            return
        date = warc.now()
        self._archive.add(page.url, answer, date)
        self._account(page, answer, date)

    def _failed(self, page: Page, why: str, wait_s: float) -> None:
        """Asked again later, until the tries are used up or the host asks for more patience than there is."""
        with self.frontier.change():
            self.frontier.count("asked", 1)
            if wait_s > self.settings.max_wait_s:
                self.frontier.done(page.url, why)
                self.frontier.host_left_out(page.host, "the host asks to wait longer than `max_wait_s`")
                return
            self.frontier.rest(page.host, self._clock() + max(wait_s, self.settings.delay_s))
            if page.tries + 1 < self.settings.tries:
                self.frontier.again(page.url)
            else:
                self.frontier.done(page.url, why)

    def _backoff_s(self, tries: int) -> float:
        return min((1 + self.settings.delay_s) * 2.0**tries, self.settings.max_wait_s)

    def _account(self, page: Page, answer: net.Answer, date: str) -> None:
        """What an answer leads to, and its outcome, at once."""
        with self.frontier.change():
            why = self._outcome(page, answer)
            self.frontier.done(page.url, why, answer.status, answer.received_bytes, answer.type(), date)
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
            self._met(target, page.depth, page.url, page.hops + 1, page.sort)
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
        for url in links(answer, body, page.url):
            self._met(url, page.depth + 1, page.url)
        return ""

    def _from_sitemap(self, page: Page, body: bytes) -> str:
        try:
            for sort, url in sitemap(body):
                if url:
                    self._met(url, page.depth + (sort == "page"), page.url, sort=sort)
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
