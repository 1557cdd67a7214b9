"""Html: HTML files as raw pages; the step `main_content` makes text of them.

Source: WHATWG, HTML, https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding; the page's own
address is its canonical link, RFC 6596.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from modelwright.core.errors import missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Accepts
from modelwright.methods.sources import OnBad, files_only
from modelwright.methods.sources._files import EVERY, Bad, Files, refuse
from modelwright.methods.sources._open import cannot_read
from modelwright.methods.sources._web import PAGE_BYTES, decode_page, too_large

_BODY = re.compile(r"<body\b", re.IGNORECASE)


class Html(Files):
    """`.html`, `.htm` and `.xhtml` files."""

    bytes_per_s: ClassVar[float] = 30e6
    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")
    small: ClassVar[bool] = True

    kind: Literal["html"] = "html"
    path: Annotated[str, Accepts(("records",)), AfterValidator(files_only)] = Field(examples=["./pages/"])
    """A file or folder (with a slash; it starts at the recipe's folder), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/*.htm"])
    """Glob of the files in a folder; the default takes every page at any depth."""
    max_page_bytes: int = Field(PAGE_BYTES, ge=1, examples=[100])
    """Bytes of the largest page that is read; raising it costs memory. Default: 8 MiB, more than Common Crawl keeps of a page."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A page that cannot be read: stop and name it, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        text = self._text(file)
        if isinstance(text, Bad):
            refuse(name, text, log, self.on_bad)
        else:
            yield Record(name, text=text, meta={"path": name, **facts(text), "media": "text/html"})

    def _text(self, file: Path) -> str | Bad:
        try:
            with file.open("rb") as stream:
                data = stream.read(self.max_page_bytes + 1)
        except OSError as error:
            return cannot_read(error)
        if len(data) > self.max_page_bytes:
            return too_large(self.max_page_bytes)
        return decode_page(data) if data.strip() else Bad("empty file", "it has no character but white space")


def facts(text: str) -> dict[str, Any]:
    """What a page says of itself: `url` where a canonical link names one, `title`."""
    try:
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise missing_extra("resiliparse", "web", "reading HTML") from None

    body = _BODY.search(text)  # both stand before it; the rest is parsed once, by `main_content`
    tree = HTMLTree.parse(text[: body.start()] if body else text)
    link = tree.head.query_selector("link[rel~='canonical' i][href^='http']") if tree.head else None
    found = {"url": (link.getattr("href") or "").strip() if link else "", "title": " ".join((tree.title or "").split())}
    return {name: value for name, value in found.items() if value}
