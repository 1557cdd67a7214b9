"""Mediawiki: the articles of a wiki's XML dump as plain text.

Source: MediaWiki's export format, https://www.mediawiki.org/wiki/Help:Export#Export_format, as https://dumps.wikimedia.org
publishes it. XML is read through defusedxml: a document type or an entity of its own ends the file.
"""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field

from modelwright.core.errors import missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Accepts
from modelwright.methods.sources import OnBad, files_only
from modelwright.methods.sources._files import EVERY, Bad, Files, refuse
from modelwright.methods.sources._open import cannot_read
from modelwright.methods.sources._web import PAGE_BYTES, too_large
from modelwright.methods.sources._web_wikitext import FILES_AND_CATEGORIES, plain

_OPEN: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open}
_FILE, _CATEGORY = "6", "14"
"""Numbers of the namespaces that each wiki calls by a word of its language."""


class MediaWiki(Files):
    """One row a page, its last revision. Redirects and pages that are no wikitext are left out and counted."""

    bytes_per_s: ClassVar[float] = 6e6
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".xml.bz2", ".xml.gz")

    kind: Literal["mediawiki"] = "mediawiki"
    path: Annotated[str, Accepts(("records",)), AfterValidator(files_only)] = Field(examples=["./dumps/"])
    """A dump or a folder of them (with a slash; it starts at the recipe's folder), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/*.bz2"])
    """Glob of the files in a folder; the default takes every dump at any depth."""
    namespaces: tuple[int, ...] = Field((0,), min_length=1, examples=[[0, 4]])
    """Which pages, by the number of their namespace (1 talk, 4 project, 10 template, 14 category). Default: articles."""
    max_page_bytes: int = Field(PAGE_BYTES, ge=1, examples=[1500])
    """Bytes of XML that one page may have, unpacked; a larger one ends its file. Default: four times what MediaWiki lets a page
    have (`$wgMaxArticleSize`)."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A dump that cannot be read to its end: stop and name the place, or count it and keep what came before. Default: stop, to
    lose nothing unseen."""

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        left_out: Counter[str] = Counter()
        yield from self._dump(file, name, left_out, log)
        for reason, pages in sorted(left_out.items()):
            log.event("excluded", reason=reason, files=pages, path=name)

    def _dump(self, file: Path, name: str, left_out: Counter[str], log: Log) -> Iterator[Record]:
        try:
            from defusedxml import DefusedXmlException
            from defusedxml.ElementTree import ParseError
        except ImportError:
            raise missing_extra("defusedxml", "web", "reading XML") from None

        try:
            with _OPEN.get(file.suffix, open)(file, "rb") as stream:
                yield from self._pages(_Bounded(stream, self.max_page_bytes), name, left_out)
        except ParseError as error:
            refuse(name, Bad("broken XML", f"{error}; nothing after is read"), log, self.on_bad, error.position[0])
        except DefusedXmlException as error:
            refuse(name, Bad("XML that declares entities", f"{error}; nothing after is read"), log, self.on_bad)
        except _TooLarge as error:
            refuse(name, too_large(self.max_page_bytes)._replace(detail=str(error)), log, self.on_bad)
        except (LookupError, ValueError) as error:  # an encoding that the parser lacks, or takes for none
            refuse(name, Bad("broken XML", f"{error}; nothing after is read"), log, self.on_bad)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            refuse(name, Bad("torn archive", f"{error}; nothing after is read"), log, self.on_bad)
        except OSError as error:  # of bz2, broken data too
            refuse(name, cannot_read(error), log, self.on_bad)

    def _pages(self, stream: _Bounded, name: str, left_out: Counter[str]) -> Iterator[Record]:
        from defusedxml.ElementTree import iterparse

        root: Any = None
        base, dropped = "", set(FILES_AND_CATEGORIES)
        for event, element in iterparse(stream, ("start", "end"), forbid_dtd=True):
            tag = element.tag.rpartition("}")[2]
            if event == "start":
                root = element if root is None else root
            elif tag == "base":
                base = (element.text or "").rpartition("/")[0]
            elif tag == "namespace" and element.get("key") in (_FILE, _CATEGORY):
                dropped.add((element.text or "").lower())
            elif tag == "page":
                page = self._record(element, name, base, dropped)
                if isinstance(page, Record):
                    yield page
                elif page:
                    left_out[page] += 1
                root.clear()
                stream.page_ends()

    def _record(self, page: Any, name: str, base: str, dropped: set[str]) -> Record | str:
        """The row; or why there is none."""
        number = page.findtext("{*}id", "")
        parts = (page, *page.iterfind("{*}revision"))  # the last revision's text stays
        texts = {child.tag.rpartition("}")[2]: child.text or "" for part in parts for child in part}
        if texts.get("ns", "0") not in map(str, self.namespaces):
            return "another namespace"
        if "redirect" in texts:
            return "redirect"
        if texts.get("model", "wikitext") != "wikitext":
            return f"not wikitext: {texts['model']}"
        title = texts.get("title", "")
        text = plain(texts.get("text", ""), dropped)
        if not text:
            return "no text"
        meta = {"title": title, "page": number}
        if re.match(r"https?://", base):
            meta["url"] = f"{base}/{quote(title.replace(' ', '_'), safe='/:,()!*')}"
        return Record(f"{name}:{number}", text=text, meta=meta)


class _TooLarge(Exception):
    """A page that goes on and on."""


class _Bounded:
    """A stream that ends with `_TooLarge` where a page takes more bytes than it may."""

    def __init__(self, stream: IO[bytes], page_bytes: int) -> None:
        self._stream, self._page_bytes, self._taken = stream, page_bytes, 0

    def page_ends(self) -> None:
        self._taken = 0

    def read(self, size: int = -1) -> bytes:
        if self._taken > self._page_bytes:
            raise _TooLarge(f"a page of more than `max_page_bytes` {self._page_bytes}; nothing after is read")
        data = self._stream.read(size)
        self._taken += len(data)
        return data
