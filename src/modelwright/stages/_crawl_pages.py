"""What a page or a sitemap leads to.

Sources: HTML's links, `nofollow` and `base` (https://html.spec.whatwg.org/multipage/links.html); the robots meta element and
X-Robots-Tag (https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag); https://www.sitemaps.org/protocol.html.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator

from modelwright.core.errors import missing_extra
from modelwright.methods.sources._files import Bad
from modelwright.methods.sources._web import decode_page
from modelwright.stages._crawl_net import Answer, gunzip
from modelwright.stages._crawl_urls import canonical

HTML = ("text/html", "application/xhtml+xml")
SITEMAP_BYTES = 50 << 20
"""The protocol's own limit, unpacked; so is the next one."""
SITEMAP_URLS = 50_000
_LINKS = "a[href]:not([rel~='nofollow' i]), area[href]:not([rel~='nofollow' i])"


def ready() -> None:
    """UserError before the first request where a package is missing."""
    for package in ("resiliparse.parse.html", "defusedxml.ElementTree"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise missing_extra(package.partition(".")[0], "web", "a crawl") from None


def links(answer: Answer, body: bytes, url: str) -> list[str]:
    """The addresses that a page leads to, each once, in its order; none where it asks crawlers not to follow."""
    from resiliparse.parse.html import HTMLTree

    if answer.type() not in HTML or "nofollow" in answer.header("X-Robots-Tag").lower():
        return []
    text = decode_page(body, answer.headers.get_content_charset())
    if isinstance(text, Bad) or not text.strip():
        return []
    page = HTMLTree.parse(text).document
    if page is None:
        return []
    asked = page.query_selector("meta[name='robots' i][content*='nofollow' i], meta[name='robots' i][content*='none' i]")
    if asked is not None:
        return []
    given = page.query_selector("base[href]")
    base = canonical(given.getattr("href") or "", url) if given is not None else ""
    found = (canonical(link.getattr("href") or "", base or url) for link in page.query_selector_all(_LINKS))
    return list(dict.fromkeys(filter(None, found)))


def sitemap(body: bytes) -> Iterator[tuple[str, str]]:
    """(`page` or `sitemap`, address) of each entry; ValueError where it is no sitemap."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    plain = gunzip(body, SITEMAP_BYTES) if body.startswith(b"\x1f\x8b") else body
    if plain is None:
        raise ValueError("broken, or longer than 50 MB")
    sorts = {"url": "page", "sitemap": "sitemap"}
    entries = 0
    try:
        for _, element in iterparse(io.BytesIO(plain), forbid_dtd=True):
            tag = element.tag.rpartition("}")[2]
            if tag in sorts and entries < SITEMAP_URLS:
                entries += 1
                yield sorts[tag], canonical(element.findtext("{*}loc") or "")
                element.clear()
    except (ParseError, DefusedXmlException) as error:
        raise ValueError(f"{type(error).__name__}") from None
