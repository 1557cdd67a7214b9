"""Warc: pages of a web archive: the HTML that servers answered (WARC), or the text that a crawler made of it (WET).

Sources: ISO 28500:2017, the WARC file format, https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/;
WET as Common Crawl writes it, https://commoncrawl.org/get-started. Read by FastWARC, Bevendorff et al. 2021, arXiv:2112.03103.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Accepts
from modelwright.methods.sources import OnBad
from modelwright.methods.sources._files import EVERY, Bad, Files, refuse
from modelwright.methods.sources._open import cannot_read
from modelwright.methods.sources._web import PAGE_BYTES, decode_page, too_large

HTML = ("text/html", "application/xhtml+xml")
_CHUNK_BYTES = 1 << 18


class Warc(Files):
    """Responses that are HTML become raw pages, conversions plain text; requests, metadata and other records are no pages."""

    bytes_per_s: ClassVar[float] = 70e6
    suffixes: ClassVar[tuple[str, ...]] = (".warc", ".warc.gz", ".wet", ".wet.gz")

    kind: Literal["warc"] = "warc"
    path: Annotated[str, Accepts(("crawl",))] = Field(examples=["./crawl/"])
    """A stage that crawled, a file or folder (with a slash, from the recipe's folder), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/*.wet"])
    """Glob of the files in a folder; the default takes every archive at any depth."""
    max_page_bytes: int = Field(PAGE_BYTES, ge=1, examples=[60])
    """Bytes of the largest page that is read, unpacked; raising it costs memory. Default: 8 MiB, more than Common Crawl keeps."""
    on_bad: OnBad = Field("drop", examples=["error"])
    """A page that cannot be read (too large, torn, in no known encoding): leave it out and count it, or stop and name it.
    Default: count, because a crawl holds what servers sent, and nobody can mend that; the stage's limits still hold."""

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        left_out: Counter[str] = Counter()
        try:
            with file.open("rb") as stream:
                yield from self._archive(stream, name, left_out, log)
        except OSError as error:
            refuse(name, cannot_read(error), log, self.on_bad)
        for reason, records in sorted(left_out.items()):
            log.event("excluded", reason=reason, files=records, path=name)

    def _archive(self, stream: IO[bytes], name: str, left_out: Counter[str], log: Log) -> Iterator[Record]:
        """Record by record; after a tear nothing of the archive can be found again."""
        try:
            from fastwarc.warc import ArchiveIterator, WarcRecordType
        except ImportError:
            raise missing_extra("fastwarc", "web", "reading web archives") from None

        unpacked: Any = _Unpacked(stream)  # reads and tells, all that is asked of it
        kinds = WarcRecordType.response | WarcRecordType.conversion
        records = ArchiveIterator(unpacked, record_types=kinds, parse_http=False, stream_detect=False)
        number, fault = 0, ""
        try:
            for number, found in enumerate(records, 1):
                page = self._page(found)
                place = f"{name}:{number}"
                if isinstance(page, _Other):
                    left_out[page] += 1
                elif isinstance(page, Bad):
                    refuse(place, page, log, self.on_bad)
                else:
                    yield Record(place, text=page, meta=_facts(found))
        except (_Torn, OSError) as error:
            fault = str(error)
        if fault := fault or unpacked.fault():
            refuse(name, Bad("torn archive", f"{fault}; nothing after record {number} is read"), log, self.on_bad)
        elif not number:
            refuse(name, Bad("empty file", "it holds no answer of a server and no text"), log, self.on_bad)

    def _page(self, found: Any) -> str | Bad:
        """The text of a record; an `_Other` says why it is no page."""
        said = None
        if found.is_http:
            with contextlib.suppress(OSError):  # a server may answer anything
                found.parse_http(auto_decode="none")
            answer = found.http_headers
            if answer is None or answer.status_code is None:
                if not found.reader.read(1):
                    raise _Torn
                return _Other("no HTTP status")
            if answer.status_code != 200:
                return _Other(f"HTTP status {answer.status_code}")
            if found.http_content_type not in HTML:
                return _Other(f"not HTML: {found.http_content_type or 'no type given'}")
            said = found.http_charset
        elif not found.headers.get("Content-Type", "").startswith("text/plain"):
            return _Other("neither HTTP nor plain text")
        data: bytes = found.reader.read(min(self.max_page_bytes, found.content_length) + 1)
        if len(data) > self.max_page_bytes:
            return too_large(self.max_page_bytes)
        if len(data) < found.content_length:
            raise _Torn
        page = self._unpacked(data, found.http_headers) if found.is_http else data
        if isinstance(page, Bad):
            return page
        return decode_page(page, said) if page.strip() else _Other("empty page")

    def _unpacked(self, data: bytes, headers: Any) -> bytes | Bad:
        """The page as it was before the server packed it, unless that is too large."""
        from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader

        readers = {"chunked": ChunkedReader, "gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader, "zstd": ZstdReader}
        fields = {key.lower(): value.lower() for key, value in headers.items()}
        for coding in (fields.get("transfer-encoding", ""), fields.get("content-encoding", "")):
            if coding in ("", "identity"):
                continue
            if coding not in readers:
                return Bad("unknown packing", coding)
            try:
                data = readers[coding](io.BytesIO(data)).read(self.max_page_bytes + 1)
            except OSError as error:
                return Bad("wrong packing", f"{coding}: {error}")
            if len(data) > self.max_page_bytes:
                return too_large(self.max_page_bytes)
        return data


class _Other(str):
    """Why a record is no page."""


class _Torn(Exception):
    """The archive ends inside a record."""

    def __str__(self) -> str:
        return "it ends inside a record"


def _facts(found: Any) -> dict[str, str]:
    facts = {
        "url": found.headers.get("WARC-Target-URI", "").strip("<>"),
        "date": found.headers.get("WARC-Date", ""),
        "media": "text/html" if found.is_http else "text/plain",
        "truncated": found.headers.get("WARC-Truncated", ""),
    }
    return {name: value for name, value in facts.items() if value}


class _Unpacked:
    """What an archive holds, a chunk at a time; ends at a fault, after all that came before it, and keeps it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._packed, self._at, self._tail = stream, stream.read(_CHUNK_BYTES), 0, b""
        self._zip = zlib.decompressobj(31) if self._packed.startswith(b"\x1f\x8b") else None
        self._fault = ""

    def tell(self) -> int:
        return self._at

    def read(self, size: int = _CHUNK_BYTES) -> bytes:
        data = b"" if self._fault else self._next(size)
        self._at += len(data)
        self._tail = (self._tail + data)[-4:]
        return data

    def fault(self) -> str:
        """Once all is read: why it is not whole; every record ends with an empty line."""
        return self._fault or ("" if self._tail.endswith((b"\r\n\r\n", b"\n\n")) or not self._at else "it ends inside a record")

    def _next(self, size: int) -> bytes:
        while self._packed or (more := self._stream.read(_CHUNK_BYTES)):
            self._packed = self._packed or more
            if self._zip is None:
                data, self._packed = self._packed[:size], self._packed[size:]
                return data
            if self._zip.eof:
                self._zip = zlib.decompressobj(31)
            try:
                data = self._zip.decompress(self._packed, size)
            except zlib.error as error:
                self._fault = str(error)
                return b""
            self._packed = self._zip.unused_data if self._zip.eof else self._zip.unconsumed_tail
            if data:
                return data
        if self._zip is not None and not self._zip.eof:
            self._fault = "it ends inside a member of gzip"
        return b""
