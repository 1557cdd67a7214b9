"""The archive of a crawl: each request and its answer as they went over the wire, a member of gzip each.

Source: ISO 28500:2017, WARC 1.1, https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/: fields (5),
records (6), compression record by record (annex D). Names of records are made from what they hold, not drawn. Exchanges are
written as they come, and put in the order of the pages at the end.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from modelwright.stages._crawl_net import Answer

NAME = "crawl.warc.gz"
"""What a crawl leaves."""


class Span(NamedTuple):
    """Where an exchange lies in the archive."""

    start: int
    size_bytes: int


class Stored(NamedTuple):
    """An answer that lies in the archive."""

    url: str
    date: str
    whole: bool
    raw: bytes
    at: Span

    def wanted(self, status: int, media: str) -> bool:
        """Whether the body was read, as `ask` was told."""
        return self.whole


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Archive:
    """Grows by whole exchanges; `size_bytes` is what the frontier is to remember of it."""

    def __init__(self, path: Path, agent: str, size_bytes: int) -> None:
        self._file = path.open("r+b" if path.exists() else "w+b")
        self.size_bytes = size_bytes
        """What is accounted for, then what there is."""
        self.unaccounted = self._recover()
        """Answers that were written before a kill and are not accounted for."""
        if not self.size_bytes:
            facts = f"software: Modelwright\r\nhttp-header-user-agent: {agent}\r\nformat: WARC File Format 1.1\r\n"
            self._append(_record("warcinfo", "application/warc-fields", facts.encode(), now(), {"WARC-Filename": NAME}))

    def _recover(self) -> list[Stored]:
        """Cuts off what is torn."""
        found: list[Stored] = []
        whole_bytes = begin = 0
        self._file.seek(self.size_bytes)
        for record, end in _members(self._file.read()):
            head, _, body = record.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode("utf-8").split("\r\n")[1:])
            if fields["WARC-Type"] == "response":  # a request without its answer is torn
                at = Span(self.size_bytes + begin, end - begin)
                raw = body[: int(fields["Content-Length"])]
                found.append(Stored(fields["WARC-Target-URI"], fields["WARC-Date"], "WARC-Truncated" not in fields, raw, at))
            if fields["WARC-Type"] in ("response", "warcinfo"):
                whole_bytes = begin = end
        self.size_bytes += whole_bytes
        self._file.truncate(self.size_bytes)
        return found

    def add(self, url: str, answer: Answer, date: str) -> Span:
        """Durably: it is on the disk when this returns. Of an answer that is not whole, its head."""
        fields = {"WARC-Target-URI": url, "WARC-IP-Address": answer.address}
        cut = {} if answer.whole else {"WARC-Truncated": "length"}
        response = _record("response", "application/http; msgtype=response", answer.raw, date, {**fields, **cut})
        fields["WARC-Concurrent-To"] = _name("response", url.encode() + date.encode() + answer.raw)
        return self._append(_record("request", "application/http; msgtype=request", answer.request, date, fields) + response)

    def _append(self, data: bytes) -> Span:
        self._file.seek(self.size_bytes)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.size_bytes += len(data)
        return Span(self.size_bytes - len(data), len(data))

    def write(self, path: Path, spans: Iterable[tuple[int, int]]) -> None:
        """An archive of these exchanges, in this order."""
        self._file.seek(0)
        _, first = next(_members(self._file.read(_FIRST_BYTES)))
        with path.open("wb") as file:
            for start, size_bytes in [(0, first), *spans]:
                self._file.seek(start)
                file.write(self._file.read(size_bytes))

    def close(self) -> None:
        self._file.close()


_FIRST_BYTES = 1 << 16
"""More than the record about the archive itself takes."""


def _record(kind: str, media: str, block: bytes, date: str, more: Mapping[str, str]) -> bytes:
    fields = {
        "WARC-Type": kind,
        "WARC-Record-ID": _name(kind, more.get("WARC-Target-URI", "").encode() + date.encode() + block),
        "WARC-Date": date,
        **more,
        "WARC-Block-Digest": f"sha1:{base64.b32encode(hashlib.sha1(block, usedforsecurity=False).digest()).decode()}",
        "Content-Type": media,
        "Content-Length": str(len(block)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return gzip.compress(f"WARC/1.1\r\n{head}\r\n".encode() + block + b"\r\n\r\n", mtime=0)


def _name(kind: str, holds: bytes) -> str:
    return f"<urn:uuid:{uuid.UUID(bytes=hashlib.sha256(kind.encode() + holds).digest()[:16], version=5)}>"


def _members(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Whole members of gzip, each with where it ends."""
    at = 0
    while at < len(data):
        reader = zlib.decompressobj(31)
        try:
            record = reader.decompress(data[at:])
        except zlib.error:
            return
        if not reader.eof:
            return
        at = len(data) - len(reader.unused_data)
        yield record, at
