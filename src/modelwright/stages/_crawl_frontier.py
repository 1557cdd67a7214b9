"""The frontier of a crawl: every address that was met, what became of it, and when each host may be asked again; on the disk.

Source: the frontier of Heydon and Najork 1999, "Mercator: A scalable, extensible Web crawler", doi:10.1023/A:1019213109274, with
its seen-set; in one SQLite database (https://www.sqlite.org/transactional.html), so that each outcome is there whole or not.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from modelwright.stages._crawl_urls import place_of

_TABLES = """
CREATE TABLE IF NOT EXISTS pages (
  id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, host TEXT NOT NULL, sort TEXT NOT NULL, depth INTEGER NOT NULL,
  hops INTEGER NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL, status INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, media TEXT NOT NULL DEFAULT '',
  date TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS turn ON pages (host, depth, id) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS hosts (
  origin TEXT PRIMARY KEY, name TEXT NOT NULL, ready_s REAL NOT NULL DEFAULT 0, robots BLOB, robots_s REAL NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_PAGE = "SELECT url, host, sort, depth, hops, tries FROM pages WHERE state = 'waiting'"


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


class Host(NamedTuple):
    """A site that has pages waiting."""

    origin: str
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

    def add(self, url: str, *, depth: int, source: str, sort: str = "page", hops: int = 0, why: str = "") -> None:
        """Remember an address; `why` says that it is left out. One that was too deep comes back where a shorter way is found."""
        place = place_of(url)
        self._db.execute("INSERT OR IGNORE INTO hosts (origin, name) VALUES (?, ?)", (place.origin, place.host))
        self._db.execute(
            "INSERT INTO pages (url, host, sort, depth, hops, source, state, why) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (url) DO UPDATE SET depth = min(depth, excluded.depth), "
            "state = CASE WHEN state = 'left' AND why = ? THEN excluded.state ELSE state END, "
            "why = CASE WHEN state = 'left' AND why = ? THEN excluded.why ELSE why END WHERE state != 'done'",
            (url, place.origin, sort, depth, hops, source, "left" if why else "waiting", why, TOO_DEEP, TOO_DEEP),
        )

    def next_host(self) -> Host | None:
        """The host that may be asked first, of those with pages waiting."""
        row = self._db.execute(
            "SELECT origin, ready_s, robots, robots_s, tries FROM hosts "
            "WHERE EXISTS (SELECT 1 FROM pages WHERE host = origin AND state = 'waiting') ORDER BY ready_s, rowid LIMIT 1"
        ).fetchone()
        return Host(*row) if row else None

    def next_page(self, host: str) -> Page:
        """The page of a host whose turn it is: the shallowest, in the order in which they were met."""
        row = self._db.execute(f"{_PAGE} AND host = ? ORDER BY depth, id LIMIT 1", (host,)).fetchone()
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
            "SELECT url, sort, depth, source, state, why, status, tries, bytes, media, date FROM pages ORDER BY id"
        )
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


TOO_DEEP = "deeper than `max_depth`"
