"""robots.txt: which pages a site asks crawlers to leave alone.

Source: RFC 9309: groups (2.2.1), the longest match decides and of equal ones `allow` (2.2.2), `*` and `$` (2.2.3), an answer of
4xx allows everything (2.3.1.3), no answer forbids everything (2.3.1.4), at least 500 KiB are read (2.5). `Crawl-delay` is no part
of it; it is honoured as its users mean it, seconds between requests.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from modelwright.stages._crawl_urls import normal

ROBOTS_BYTES = 512 << 10
REDIRECTS = 5
FRESH_S = 86_400.0
"""For how long a copy may be used (RFC 9309, section 2.4)."""
_TOKEN = re.compile(r"[a-zA-Z_-]+")


class Rule(NamedTuple):
    """A line that allows or forbids."""

    allows: bool
    pattern: str


class Robots(NamedTuple):
    """What a site asks of one crawler."""

    rules: tuple[Rule, ...] = ()
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, path: str) -> bool:
        """Whether a path with its query, spelt as `canonical` does, may be asked for."""
        if path == "/robots.txt":
            return True
        found = [(len(rule.pattern), rule.allows) for rule in self.rules if _matches(rule.pattern, path)]
        return max(found)[1] if found else True


FORBIDDEN = Robots((Rule(False, "/"),))


def parse(data: bytes, agent: str) -> Robots:
    """The rules for `agent`, or for every crawler where no group names it; all groups of one name count."""
    groups: dict[str, tuple[list[Rule], list[float]]] = {}
    open_to: list[str] = []
    naming = False
    sitemaps: list[str] = []
    for line in re.split(r"\r\n|\r|\n", data[:ROBOTS_BYTES].decode("utf-8-sig", "replace")):
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            open_to = [*open_to, _name(value)] if naming else [_name(value)]
            groups.setdefault(open_to[-1], ([], []))
            naming = True
        elif key in ("allow", "disallow"):
            naming = False
            if value:  # an empty `Disallow:` forbids nothing
                for name in open_to:
                    groups[name][0].append(Rule(key == "allow", normal(value)))
        elif key == "crawl-delay":
            with contextlib.suppress(ValueError):
                for name in open_to:
                    groups[name][1].append(float(value))
        elif key == "sitemap":
            sitemaps.append(value)
    rules, delays = groups.get(agent.lower(), groups.get("*", ([], [])))
    return Robots(tuple(rules), max((delay for delay in delays if delay > 0), default=0.0), tuple(sitemaps))


def _name(value: str) -> str:
    if value.startswith("*"):
        return "*"
    found = _TOKEN.match(value)
    return found[0].lower() if found else ""


def _matches(pattern: str, path: str) -> bool:
    """From left to right without going back, so that no pattern takes long."""
    ends = pattern.endswith("$")
    first, *parts = (pattern[:-1] if ends else pattern).split("*")
    if not path.startswith(first):
        return False
    if not parts:
        return not ends or path == first
    at = _skip(parts[:-1], path, len(first))
    if at < 0:
        return False
    return path.endswith(parts[-1]) and len(path) - len(parts[-1]) >= at if ends else path.find(parts[-1], at) >= 0


def _skip(parts: Sequence[str], path: str, at: int) -> int:
    for part in parts:
        at = path.find(part, at)
        if at < 0:
            return -1
        at += len(part)
    return at
