"""Addresses of a crawl: one spelling for one page, and which pages belong to it.

Sources: RFC 3986, section 6.2 (normal forms of addresses) and 5.2.4 (dots in paths); RFC 5890 (names beyond ASCII).
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

Stay = Literal["folder", "host", "domain", "anywhere"]

MAX_CHARS = 2000
"""Longer addresses are left out: what servers and search engines take (https://www.sitemaps.org/protocol.html says 2,048)."""
MAX_REPEATS = 4
"""A path in which one name stands so often is a trap: links that are relative to themselves, calendars without end."""
PORTS = {"http": 80, "https": 443}
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_LONE = re.compile(r"%(?![0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT = "%/:@!$&'()*+,;=~?[]"


class Place(NamedTuple):
    """Where a page is asked for."""

    scheme: str
    host: str
    port: int
    path: str
    """With its query."""

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def place_of(url: str) -> Place:
    """The parts of an address that `canonical` made."""
    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme], path)


def canonical(link: str, base: str = "") -> str:
    """The one spelling of an address; '' for what no crawler asks for: other schemes, names and passwords in it, nonsense."""
    try:
        parts = urlsplit(urljoin(base, re.sub(r"[\t\r\n]", "", link.strip())))
        port, host = parts.port, (parts.hostname or "").rstrip(".")
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError:  # UnicodeError is one
        return ""
    if parts.scheme not in PORTS or parts.username is not None or not re.fullmatch(r"[a-z0-9._:-]+", host) or port == 0:
        return ""
    path = normal(_without_dots(parts.path) or "/")
    query = f"?{normal(parts.query)}" if parts.query else ""
    return f"{Place(parts.scheme, host, port or PORTS[parts.scheme], '').origin}{path}{query}"


def normal(text: str) -> str:
    """Escapes in one spelling: none for letters that need none, capitals in all others, everything else escaped."""

    def one(found: re.Match[str]) -> str:
        sign = chr(int(found[1], 16))
        return sign if sign in _UNRESERVED else found[0].upper()

    return quote(_ESCAPE.sub(one, _LONE.sub("%25", text)), safe=_KEPT)


def _without_dots(path: str) -> str:
    kept: list[str] = []
    parts = path.split("/")
    for part in parts:
        if part == "..":
            del kept[max(len(kept) - 1, 1) :]
        elif part != ".":
            kept.append(part)
    return "/".join(kept) + ("/" if parts[-1] in (".", "..") and kept[-1:] != [""] else "")


class Scope:
    """Which addresses belong to the crawl."""

    def __init__(self, seeds: Sequence[str], stay: Stay, allow: Sequence[str], deny: Sequence[str]) -> None:
        self._stay = stay
        self._folders = {url.partition("?")[0].rpartition("/")[0] + "/" for url in seeds}
        self._hosts = {place_of(url).host for url in seeds}
        self._domains = {host.removeprefix("www.") for host in self._hosts}
        self._allow, self._deny = ([re.compile(fnmatch.translate(glob)).match for glob in globs] for globs in (allow, deny))

    def outside(self, url: str) -> str:
        """Why an address is left out; '' for one that belongs to the crawl."""
        if len(url) > MAX_CHARS:
            return "address longer than 2000 characters"
        place = place_of(url)
        if not self._near(url, place.host):
            return f"not on the same {self._stay}"
        if any(match(url) for match in self._deny):
            return "by `deny`"
        if self._allow and not any(match(url) for match in self._allow):
            return "not in `allow`"
        names = Counter(filter(None, place.path.partition("?")[0].split("/")))
        return "a path that repeats itself" if names and max(names.values()) >= MAX_REPEATS else ""

    def _near(self, url: str, host: str) -> bool:
        if self._stay == "folder":
            return url.startswith(tuple(self._folders))
        if self._stay == "host":
            return host in self._hosts
        return self._stay == "anywhere" or any(host == name or host.endswith(f".{name}") for name in self._domains)
