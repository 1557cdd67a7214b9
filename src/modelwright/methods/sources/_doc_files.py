"""What the sources of documents share: which files, what is wrong with one that cannot be read, text out of zip archives.

Source: none to cite, files as they are; zip archives as in APPNOTE.TXT 6.3.10 (https://pkware.cachefly.net/webdocs/APPNOTE/).
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from modelwright.core.errors import missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.units import bytes_text
from modelwright.methods.sources._files import Bad, Files, decode, find, refuse
from modelwright.methods.sources._open import MEMBER_FAULTS, cannot_read


class Unreadable(Exception):
    """Ends the reading of one file; the base says so or counts it."""

    def __init__(self, reason: str, detail: str) -> None:
        self.bad = Bad(reason, detail)
        super().__init__(f"{reason}: {detail}")


class Documents(Files):
    """Files of which each is read whole or not at all. A kind says how it reads one (`records`)."""

    small: ClassVar[bool] = True

    def found(self, path: Path) -> list[Path]:
        return find(path, self.match, self.suffixes + tuple(suffix.upper() for suffix in self.suffixes))

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        try:
            yield from self.records(file, name, log)
        except Unreadable as fault:
            refuse(name, fault.bad, log, self.on_bad)
        except OSError as error:
            refuse(name, cannot_read(error), log, self.on_bad)
        except RecursionError:
            refuse(name, Bad("nested too deeply", "its parts lie in each other hundreds of times"), log, self.on_bad)

    def records(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        """The rows of one file; Unreadable or OSError where it has none."""
        raise NotImplementedError


def text_of(data: bytes) -> str:
    """UTF-8 as everywhere, and UTF-16 with its mark, which XML allows; Unreadable for anything else."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise Unreadable("wrong encoding", f"byte {error.start} is not UTF-16, which its mark announces") from None
    text = decode(data)
    if isinstance(text, Bad):
        raise Unreadable(*text)
    return text


# --- archives -----------------------------------------------------------------------------------------


class Archive:
    """A zip archive that is read member by member, never unpacked to the disk."""

    def __init__(self, file: Path, limit_bytes: int) -> None:
        self._left_bytes = self._limit_bytes = limit_bytes
        if not file.stat().st_size:
            raise Unreadable("empty file", "it has no byte")
        try:
            self._zip = zipfile.ZipFile(file)
        except MEMBER_FAULTS as error:
            raise Unreadable("not a zip archive", f"{error}; cut off, or another kind of file under this suffix") from None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def has(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    def read(self, name: str) -> bytes:
        """One member. Its stated size is believed, because zipfile unpacks no byte more than that."""
        if not self.has(name):
            raise Unreadable("damaged archive", f"it has no {name}")
        info = self._zip.getinfo(name)
        self._left_bytes -= info.file_size
        if self._left_bytes < 0:
            limit = bytes_text(self._limit_bytes)
            raise Unreadable(
                "zip bomb", f"{name} unpacks to {bytes_text(info.file_size)}, beyond the limit of {limit} for a file"
            )
        try:
            return self._zip.read(info)
        except (*MEMBER_FAULTS, zlib.error, lzma.LZMAError, EOFError) as error:
            raise Unreadable("damaged archive", f"{name}: {error}") from None

    def xml(self, name: str) -> Any:
        """The root element of one member; entities and outside references are refused."""
        return parse_xml(self.read(name), name)


def parse_xml(data: bytes, name: str) -> Any:
    """The root element; Unreadable where it is broken or defines entities."""
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, fromstring
    except ImportError:
        raise missing_extra("defusedxml", "docs", "XML") from None
    try:
        return fromstring(data)
    except DefusedXmlException as error:
        raise Unreadable("unsafe XML", f"{name}: {type(error).__name__}") from None
    except (ParseError, ValueError, LookupError) as error:
        raise Unreadable("bad XML", f"{name}: {error}") from None
