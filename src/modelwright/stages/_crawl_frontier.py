"""The frontier of a crawl: every address that was met, what became of it, and when each host may be asked again; on the disk.

Addresses go in waves: all that are equally many links (and then redirects) from a seed, in an order that depends on the pages
alone. A wave is planned when the one before it is done, so it does not matter which host was how fast.

Source: the frontier of Heydon and Najork 1999, "Mercator: A scalable, extensible Web crawler", doi:10.1023/A:1019213109274, with
its seen-set; in one SQLite database (https://www.sqlite.org/transactional.html), so that each outcome is there whole or not.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from modelwright.stages._crawl_urls import place_of

_TABLES = """
CREATE TABLE IF NOT EXISTS pages (
  id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, host TEXT NOT NULL, sort TEXT NOT NULL, depth INTEGER NOT NULL,
  hops INTEGER NOT NULL, source TEXT NOT NULL, found INTEGER NOT NULL, place INTEGER NOT NULL, rank INTEGER, state TEXT NOT NULL,
  why TEXT NOT NULL, status INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
  media TEXT NOT NULL DEFAULT '', date TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS turn ON pages (host, rank) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS wave ON pages (depth, hops) WHERE state = 'waiting' AND rank IS NULL;
CREATE INDEX IF NOT EXISTS ranks ON pages (rank) WHERE state != 'left';
CREATE TABLE IF NOT EXISTS hosts (
  origin TEXT PRIMARY KEY, name TEXT NOT NULL, ready_s REAL NOT NULL DEFAULT 0, robots BLOB, robots_s REAL NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0, closed TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS ready ON hosts (ready_s);
CREATE TABLE IF NOT EXISTS exchanges (rank INTEGER NOT NULL, start INTEGER PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_PAGE = "SELECT url, host, sort, depth, hops, tries, rank FROM pages WHERE state = 'waiting' AND rank IS NOT NULL"
_UNPLANNED = "state = 'waiting' AND rank IS NULL"


class Found(NamedTuple):
    """Where an address stands: of several such places the first in order counts, whichever was seen first."""

    rank: int
    """Of the page that leads to it; 0 for the recipe."""
    place: int
    """Among what that page leads to; what its robots.txt names stands before."""


class Page(NamedTuple):
    """An address that waits to be asked."""

    url: str
    host: str
    """Its origin, as in `hosts`."""
    sort: str
    """`page` or `sitemap`."""
    depth: int
    hops: int
    """Redirects that led here."""
    tries: int
    rank: int
    """Its place in the order of all."""


class Host(NamedTuple):
    """A site that has pages of this wave waiting."""

    origin: str
    name: str
    ready_s: float
    """Unix time from which it may be asked."""
    robots: bytes | None
    robots_s: float
    tries: int


class Frontier:
    """Changes between `with frontier.change():` are there together or not at all, whenever the process is killed."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path)
        self._db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {_TABLES}")

    def change(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._db

    def close(self) -> None:
        self._db.close()

    # --- pages ------------------------------------------------------------------------------------------

    def add(self, url: str, found: Found, *, depth: int, source: str, sort: str = "page", hops: int = 0, why: str = "") -> None:
        """Remember an address; `why` says that it is left out. One that was too deep comes back where a shorter way is found."""
        place = place_of(url)
        self._db.execute(
            "INSERT OR IGNORE INTO hosts (origin, name, ready_s) "
            "VALUES (?, ?, (SELECT ifnull(max(ready_s), 0) FROM hosts WHERE name = ?))",
            (place.origin, place.host, place.host),
        )
        self._db.execute(
            "INSERT INTO pages (url, host, sort, depth, hops, source, found, place, state, why) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (url) DO UPDATE SET sort = excluded.sort, "
            "depth = excluded.depth, hops = excluded.hops, source = excluded.source, found = excluded.found, "
            "place = excluded.place, state = excluded.state, why = excluded.why "
            "WHERE rank IS NULL AND (excluded.state != 'waiting', excluded.depth, excluded.hops, excluded.found, excluded.place) "
            "< (state != 'waiting', depth, hops, found, place)",
            (url, place.origin, sort, depth, hops, source, *found, "left" if why else "waiting", why),
        )

    def plan(self) -> bool:
        """The next wave: of each host the first page, then of each the second, and so on; False where nothing waits."""
        self._db.execute(
            f"UPDATE pages SET state = 'left', why = (SELECT closed FROM hosts WHERE origin = host) WHERE {_UNPLANNED} "
            "AND host IN (SELECT origin FROM hosts WHERE closed != '')"
        )
        wave = self._db.execute(f"SELECT depth, hops FROM pages WHERE {_UNPLANNED} ORDER BY depth, hops LIMIT 1").fetchone()
        if wave is None:
            return False
        turns = self._db.execute(
            "SELECT id FROM (SELECT id, found, place, row_number() OVER (PARTITION BY host ORDER BY found, place) AS turn "
            f"FROM pages WHERE {_UNPLANNED} AND depth = ? AND hops = ?) ORDER BY turn, found, place",
            wave,
        ).fetchall()
        first = 1 + self._db.execute("SELECT ifnull(max(rank), 0) FROM pages").fetchone()[0]
        self._db.executemany("UPDATE pages SET rank = ? WHERE id = ?", [(first + n, id) for n, (id,) in enumerate(turns)])
        for name, value in (("wave", first), ("asked_before", self.counted("asked"))):
            self.count(name, value - self.counted(name))
        return True

    def cut(self, most_pages: int) -> int:
        """From which rank on pages must wait for good, because those before them are as many as may still be asked."""
        room = max(most_pages - self.counted("asked_before"), 0)
        row = self._db.execute(
            "SELECT rank FROM pages WHERE rank >= ? AND state != 'left' ORDER BY rank LIMIT 1 OFFSET ?",
            (self.counted("wave"), room),
        ).fetchone()
        return int(row[0]) if row else 1 << 62

    def next_hosts(self, cut: int) -> list[Host]:
        """Those with pages of this wave waiting, in the order in which they may be asked."""
        rows = self._db.execute(
            "SELECT origin, name, ready_s, robots, robots_s, tries FROM hosts "
            "WHERE (SELECT min(rank) FROM pages WHERE host = origin AND state = 'waiting' AND rank IS NOT NULL) < ? "
            "ORDER BY ready_s, rowid",
            (cut,),
        )
        return [Host(*row) for row in rows]

    def next_page(self, host: str) -> Page:
        """The page of a host whose turn it is."""
        row = self._db.execute(f"{_PAGE} AND host = ? ORDER BY rank LIMIT 1", (host,)).fetchone()
        return Page(*row)

    def waiting(self, url: str) -> Page | None:
        row = self._db.execute(f"{_PAGE} AND url = ?", (url,)).fetchone()
        return Page(*row) if row else None

    def done(self, url: str, why: str, status: int = 0, size_bytes: int = 0, media: str = "", date: str = "") -> None:
        """It was asked for; `why` is '' where it is kept."""
        self._db.execute(
            "UPDATE pages SET state = 'done', tries = tries + 1, why = ?, status = ?, bytes = ?, media = ?, date = ? "
            "WHERE url = ?",
            (why, status, size_bytes, media, date, url),
        )

    def left_out(self, url: str, why: str) -> None:
        self._db.execute("UPDATE pages SET state = 'left', why = ? WHERE url = ?", (why, url))

    def host_left_out(self, origin: str, why: str) -> None:
        """Now, and whatever leads to it later."""
        self._db.execute("UPDATE hosts SET closed = ? WHERE origin = ?", (why, origin))
        self._db.execute("UPDATE pages SET state = 'left', why = ? WHERE host = ? AND state = 'waiting'", (why, origin))

    def again(self, url: str) -> None:
        self._db.execute("UPDATE pages SET tries = tries + 1 WHERE url = ?", (url,))

    # --- hosts ------------------------------------------------------------------------------------------

    def rest(self, origin: str, ready_s: float) -> None:
        """No request to this host, whatever its scheme and port, before then."""
        self._db.execute(
            "UPDATE hosts SET ready_s = max(ready_s, ?) WHERE name = (SELECT name FROM hosts WHERE origin = ?)", (ready_s, origin)
        )

    def robots(self, origin: str, text: bytes | None, at_s: float, tries: int) -> None:
        """What a host's robots.txt says; None: it could not be read this time."""
        self._db.execute("UPDATE hosts SET robots = ?, robots_s = ?, tries = ? WHERE origin = ?", (text, at_s, tries, origin))

    # --- the archive ------------------------------------------------------------------------------------

    def exchanged(self, rank: int, start: int, size_bytes: int) -> None:
        """Bytes of the archive that were asked for the sake of a page."""
        self._db.execute("INSERT INTO exchanges VALUES (?, ?, ?)", (rank, start, size_bytes))

    def exchanges(self) -> Iterator[tuple[int, int]]:
        """(start, bytes) in the order of the pages."""
        return iter(self._db.execute("SELECT start, size FROM exchanges ORDER BY rank, start"))

    # --- counts -----------------------------------------------------------------------------------------

    def count(self, name: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value", (name, value)
        )

    def counted(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def tally(self, group: str, where: str) -> Counter[str]:
        """Pages by one of their columns."""
        return Counter(dict(self._db.execute(f"SELECT {group}, count(*) FROM pages WHERE {where} GROUP BY {group} ORDER BY 1")))

    def hosts(self) -> int:
        return int(self._db.execute("SELECT count(DISTINCT host) FROM pages WHERE state = 'done'").fetchone()[0])

    def write(self, path: Path) -> None:
        """Every address with what became of it, as JSON lines."""
        names = ("url", "sort", "depth", "from", "state", "why", "status", "tries", "bytes", "media", "date")
        rows = self._db.execute(
            "SELECT url, sort, depth, source, state, why, status, tries, bytes, media, date FROM pages ORDER BY found, place"
        )
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


TOO_DEEP = "deeper than `max_depth`"
TOO_LONG = "the host asks to wait longer than `max_wait_s`"
