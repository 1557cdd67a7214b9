"""Crawl: pages of the web, asked for politely and kept as a web archive, which the source `warc` reads.

Sources: RFC 9309 (robots.txt), ISO 28500 (WARC 1.1), RFC 9110 (HTTP). A stage and no source, because a page must not be asked for
again when a step of the curation changes. `pages.jsonl` says of every address that was met what became of it. Hosts are asked
beside each other and each in its own order; what is kept, and its order, depends on what they answer and not on how fast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Facts, Given, estimate
from modelwright.core.spec import Runtime, Spec
from modelwright.core.stage import Run, Stage, Stats
from modelwright.core.store import write_json
from modelwright.core.units import bytes_text
from modelwright.stages._crawl_pages import ready
from modelwright.stages._crawl_run import EXCHANGES, Crawler, Settings
from modelwright.stages._crawl_urls import Scope, Stay, canonical, place_of
from modelwright.stages._crawl_warc import NAME

ANSWER_S = 0.5
"""What an answer takes beside the pause: measured nowhere, a usual server's."""
PAGE_BYTES = 100_000
"""Of a usual page as it is sent (https://httparchive.org/reports/page-weight: HTML alone, packed, is a third of it)."""
PACKED_FRAC = 0.3
PAGES_HELD = 3
"""What a page takes while it comes: its bytes, its body, and the room to grow."""
_DONE = "crawl.json"


def _seeds(given: tuple[str, ...]) -> tuple[str, ...]:
    for url in given:
        if not canonical(url):
            raise ValueError(f"{url!r} is no address of a page; write https://host/path, without name and password")
    return tuple(dict.fromkeys(map(canonical, given)))


class Crawl(Stage):
    """Makes `crawl`: `crawl.warc.gz` and `pages.jsonl`. Killed anywhere it goes on, and asks for no page again that it has."""

    version: ClassVar[int] = 2
    produces: ClassVar[str] = "crawl"
    resumes: ClassVar[bool] = True
    random: ClassVar[bool] = False

    kind: Literal["crawl"] = "crawl"
    seeds: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_seeds)] = Field(
        examples=[["https://example.org/docs/"]]
    )
    """Addresses to begin with."""
    contact: str = Field(pattern=r"^[\x21-\x7e]{3,200}$", examples=["mailto:me@example.org"])
    """An address of mail or a page about you: every request carries it, so that a site's owner can reach you."""
    agent: str = Field("Modelwright", pattern=r"^[A-Za-z_-]{1,40}$", examples=["Example-Bot"])
    """The name under which robots.txt may speak of this crawler. Default: the program's; a project of its own takes its own."""
    stay: Stay = Field("host", examples=["folder"])
    """Where links may lead: below a seed's folder, on a seed's host, on that and names below it (`www.` apart), or anywhere.
    Default: the host, which is one owner's."""
    allow: tuple[str, ...] = Field((), examples=[["*/a*"]])
    """Globs of addresses, of which one must match; `*` stands for slashes, too. Default: every address."""
    deny: tuple[str, ...] = Field((), examples=[["*/a*"]])
    """Globs of addresses that are left out, whatever `allow` says. Default: none."""
    sitemaps: bool = False
    """Begin also with what the sitemaps of the seeds' hosts list. Default: off; links reach what a site shows its visitors."""
    types: tuple[str, ...] = Field(("text/html", "application/xhtml+xml"), examples=[["text/html", "text/plain"]])
    """Media types to keep; of others the body is not even read. Default: pages, which the source `warc` reads."""
    max_depth: int = Field(8, ge=0, examples=[1])
    """Links between a seed and a page; raise it for archives listed page by page. Default: deep for a site made by hand."""
    max_pages: int = Field(1000, ge=1, examples=[3])
    """Requests, whatever is answered (robots.txt apart). Default: a quarter of an hour at one a second."""
    max_bytes: int = Field(1_000_000_000, ge=1, examples=[400])
    """Bytes that may be received in all; the pages under way when it is passed are the last, which of several hosts'
    depends on the network. Default: ten times what 1000 usual pages take."""
    max_page_bytes: int = Field(8 << 20, ge=1, examples=[600])
    """Longer pages are left out and counted; raising it costs memory. Default: as the source `warc`."""
    timeout_s: float = Field(30.0, gt=0, examples=[0.05])
    """Seconds for one request, from the connection to the last byte. Default: patient with slow servers."""
    delay_s: Annotated[float, Runtime] = Field(1.0, ge=0, examples=[0.01])
    """Seconds between two requests to one host; a longer `Crawl-delay` of its robots.txt holds instead. Raise it to be kinder.
    Default: what the Internet Archive's crawlers and most others keep to."""
    hosts: Annotated[int, Runtime] = Field(8, ge=1, le=256, examples=[1])
    """Hosts that are asked beside each other, each for one page at a time and at its own pause. Raising it costs memory and
    connections; pages and their order stay the same. Default: enough that slow answers of some do not hold up the rest."""
    tries: int = Field(3, ge=1, examples=[1])
    """Requests for one page where there was no answer or one of 429 or 503, each after twice the pause, or after `Retry-After`.
    Default: two tries again."""
    max_wait_s: float = Field(300.0, ge=0, examples=[0.5])
    """A host that asks for a longer pause is left alone, and its pages are counted. Default: five minutes."""
    allow_private: bool = False
    """Ask also addresses of this machine and its network. Default: off, because a link of any page could reach them."""

    def estimate(self, given: Given) -> Estimate:
        size_bytes = float(min(self.max_pages * PAGE_BYTES, self.max_bytes))
        beside, at_once = min(self.hosts, len(self._seed_hosts())), self._most_hosts()
        return estimate(
            self.max_pages * (self.delay_s + ANSWER_S) / beside,
            f"at most {self.max_pages} requests, {self.delay_s:g} s between them and {ANSWER_S} s for an answer"
            + (f", {beside} hosts beside each other" if beside > 1 else ""),
            60e6 + PAGES_HELD * (1.0 + at_once) * self.max_page_bytes,
            f"60 MB for the program, {at_once} of pages up to {bytes_text(self.max_page_bytes)} as they come, one with its tree",
            size_bytes * (1 + 2 * PACKED_FRAC),
            f"pages of {bytes_text(PAGE_BYTES)} packed to {PACKED_FRAC:g}, twice while they are put in order, and the addresses",
            {"": Facts(type=self.produces, bytes=size_bytes * PACKED_FRAC)},
        )

    def _seed_hosts(self) -> set[str]:
        return {place_of(url).host for url in self.seeds}

    def _most_hosts(self) -> int:
        """That may be asked at once."""
        return min(self.hosts, len(self._seed_hosts())) if self.stay in ("folder", "host") else self.hosts

    def unused(self, context: Spec) -> dict[str, str]:
        if self.stay in ("folder", "host") and len(self._seed_hosts()) == 1:
            return {"hosts": f"the seeds are on one host and `stay: {self.stay}` leads to no other; leave it out"}
        return {}

    def run(self, run: Run) -> Stats:
        ready()
        if (run.out / _DONE).exists():  # killed after the last word and before the manifest
            _tidy(run.out)
            return json.loads((run.out / _DONE).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        crawler = Crawler(self._settings(), run.out, run.log, run.deadline_s)
        try:
            crawler.run()
            return self._finish(crawler, run)
        finally:
            crawler.close()

    def _settings(self) -> Settings:
        return Settings(
            seeds=self.seeds,
            scope=Scope(self.seeds, self.stay, self.allow, self.deny),
            agent=f"{self.agent} (Modelwright crawler; +{self.contact})",
            token=self.agent,
            sitemaps=self.sitemaps,
            types=self.types,
            max_depth=self.max_depth,
            max_pages=self.max_pages,
            max_bytes=self.max_bytes,
            max_page_bytes=self.max_page_bytes,
            timeout_s=self.timeout_s,
            delay_s=self.delay_s,
            tries=self.tries,
            max_wait_s=self.max_wait_s,
            allow_private=self.allow_private,
            hosts=self.hosts,
        )

    def _finish(self, crawler: Crawler, run: Run) -> Stats:
        frontier, limit = crawler.frontier, crawler.full()
        left_out = frontier.tally("why", "why != ''")
        if rest := frontier.tally("state", "state = 'waiting'").total():
            left_out[limit] += rest
        for reason, pages in sorted(left_out.items()):
            run.log.event("excluded", reason=reason, files=pages)
        kept = frontier.tally("state", "state = 'done' AND why = ''").total()
        if not kept:
            told = ", ".join(f"{reason}: {pages}" for reason, pages in left_out.most_common(5))
            raise UserError("the crawl kept no page", told, "correct `seeds`, or what is allowed")
        crawler.write(run.out)
        size_bytes = (run.out / NAME).stat().st_size
        stats = {
            "pages": kept,
            "requests": frontier.counted("asked"),
            "bytes_received": frontier.counted("bytes"),
            "hosts": frontier.hosts(),
            "statuses": {str(status): pages for status, pages in frontier.tally("status", "status > 0").items()},
            "left_out": dict(sorted(left_out.items())),
            "facts": {"": Facts(type=self.produces, rows=kept, bytes=size_bytes, measured=True).model_dump(mode="json")},
        }
        write_json(run.out / _DONE, stats)
        crawler.close()
        _tidy(run.out)
        return stats


def _tidy(folder: Path) -> None:
    """Without what only a crawl under way needs."""
    for file in (*folder.glob("frontier.sqlite*"), folder / EXCHANGES):
        file.unlink(missing_ok=True)
