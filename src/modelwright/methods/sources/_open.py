"""Opening files that others wrote: unpacked as they are read, no line longer than it may be, no file changed meanwhile.

Sources: RFC 1952 (gzip), RFC 8878 (Zstandard), https://tukaani.org/xz/xz-file-format.txt, APPNOTE.TXT 6.3.10 (zip). Deflate packs
no more than 1032:1 (https://zlib.net/zlib_tech.html), and texts pack to a hundredth at best, so that more is a bomb.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.units import bytes_text

T = TypeVar("T")

PACKED = (".gz", ".bz2", ".xz", ".zst")
LINE_BYTES = 64 << 20
"""A longer line is not read into memory: no row is so long, and a file without line feeds is none of lines."""
BOMB_FROM_BYTES, BOMB_RATIO = 64 << 20, 250
"""What unpacks to more than the first and to more than so many times its size is a bomb."""
_BUFFER_BYTES = 1 << 18
_FRAME_BYTES = 1 << 10
"""Unpacked at once, to 32 MB at most: a block of 128 KB takes four bytes."""
_WINDOW_BYTES = 1 << 27
"""Memory that Zstandard may ask for: what its own program grants without being told."""

MEMBER_FAULTS = (zipfile.BadZipFile, struct.error, RuntimeError, ValueError)
"""What zipfile raises of a member that is damaged, packed with a password or in a way that it does not know."""

File = Path | zipfile.Path
"""A file, or a member of a zip archive, which is opened and named in the same way."""


class Bad(NamedTuple):
    """What cannot be read."""

    reason: str
    """Short and countable."""
    detail: str


class Unpacking(OSError):
    """A packed file is torn, or a bomb."""

    def __init__(self, bad: Bad) -> None:
        super().__init__(f"{bad.reason}: {bad.detail}")
        self.bad = bad


def cannot_read(error: OSError) -> Bad:
    if isinstance(error, Unpacking):
        return error.bad
    return Bad("cannot be read", f"{type(error).__name__}: {error.strerror or error}")


# --- packed files -------------------------------------------------------------------------------------


@contextmanager
def opened(file: File) -> Iterator[BinaryIO]:
    """Its bytes, unpacked; a fault of the packing is an `Unpacking`."""
    try:
        raw = file.open("rb")
    except MEMBER_FAULTS as error:
        raise Unpacking(Bad("cannot be unpacked", str(error))) from None
    with raw as stream:
        inner = _unpacked(file.name, stream)
        if inner is stream and isinstance(file, Path):
            yield stream
        else:
            packed_bytes = file.stat().st_size if isinstance(file, Path) else file.root.getinfo(file.at).compress_size
            yield io.BufferedReader(_Bounded(inner, packed_bytes), _BUFFER_BYTES)


def plain_name(name: str) -> str:
    """A name without the ending of its packing."""
    return name[: name.rindex(".")] if name.endswith(PACKED) else name


def with_packed(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return (*suffixes, *(suffix + packing for suffix in suffixes for packing in PACKED))


def _unpacked(name: str, stream: Any) -> Any:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=stream)
    if name.endswith(".bz2"):
        return bz2.BZ2File(stream)
    if name.endswith(".xz"):
        return lzma.LZMAFile(stream)
    if name.endswith(".zst"):
        try:
            import zstandard
        except ImportError:
            raise missing_extra("zstandard", "data", f"{name} (Zstandard)") from None
        return _Zstandard(stream, zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES))
    return stream


class _Zstandard:
    """A stream of frames, of which the package's own reader would not say that it is torn."""

    def __init__(self, stream: BinaryIO, maker: Any) -> None:
        self._stream, self._maker = stream, maker
        self._frame: Any = None
        self._packed = self._plain = b""

    def read(self, size: int) -> bytes:
        while not self._plain:
            self._packed = self._packed or self._stream.read(_FRAME_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return b""
            self._frame = self._frame or self._maker.decompressobj()
            self._plain = self._frame.decompress(self._packed)
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        data, self._plain = self._plain[:size], self._plain[size:]
        return data


class _Bounded(io.RawIOBase):
    """An unpacked stream that says what is wrong with it."""

    def __init__(self, inner: Any, packed_bytes: int) -> None:
        self._inner, self._taken_bytes = inner, 0
        self._limit_bytes = max(BOMB_FROM_BYTES, BOMB_RATIO * packed_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile) as error:
            raise Unpacking(Bad("torn archive", f"{error}; nothing after is read")) from None
        except (RuntimeError, NotImplementedError) as error:  # zipfile: a password, a packing that it does not know
            raise Unpacking(Bad("cannot be unpacked", str(error))) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise Unpacking(Bad("torn archive", f"{error}; nothing after is read")) from None
        except Exception as error:  # zstandard's own, which has no base but this
            if type(error).__name__ != "ZstdError":
                raise
            raise Unpacking(Bad("torn archive", f"{error}; nothing after is read")) from None
        self._taken_bytes += len(data)
        if self._taken_bytes > self._limit_bytes:
            raise Unpacking(Bad("zip bomb", f"it unpacks to more than {bytes_text(self._limit_bytes)}; nothing after is read"))
        buffer[: len(data)] = data
        return len(data)


def unpacked_per_byte(path: Path, look_bytes: int = 8 << 20) -> float:
    """How many bytes one byte of the file becomes, measured on its beginning, which must be sound; 1 where it is not packed."""
    if not path.name.endswith(PACKED):
        return 1.0
    with path.open("rb") as packed:
        stream, done = _unpacked(path.name, packed), 0
        while done < look_bytes and (piece := stream.read(1 << 20)):
            done += len(piece)
        return done / max(packed.tell(), 1)


def members(file: Path, suffixes: tuple[str, ...]) -> list[zipfile.Path]:
    """The members of a zip archive that end in one of `suffixes`, sorted; OSError where it cannot be opened."""
    try:
        root = zipfile.Path(zipfile.ZipFile(file))
    except MEMBER_FAULTS as error:
        raise Unpacking(Bad("not a zip archive", f"{error}; cut off, or another kind of file under this suffix")) from None
    return [zipfile.Path(root.root, name) for name in sorted(root.root.namelist()) if name.endswith(suffixes)]


# --- lines --------------------------------------------------------------------------------------------


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Line by line; of one that is longer than `LINE_BYTES`, that many and one: see `too_long`."""
    while line := stream.readline(LINE_BYTES + 1):
        if too_long(line) and not line.endswith(b"\n"):
            skip_line(stream)
        yield line


def too_long(line: bytes) -> bool:
    return len(line) > LINE_BYTES


def skip_line(stream: BinaryIO) -> None:
    """Over the rest of a line."""
    while (more := stream.readline(_BUFFER_BYTES)) and not more.endswith(b"\n"):
        pass


# --- what is no file, and what changes ----------------------------------------------------------------


def obstacles(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Bad]]:
    """What a glob passes over in silence: folders that may not be listed, pipes, devices, links to nowhere."""
    errors: list[OSError] = []
    if not path.is_dir():
        return
    for folder, folders, files in os.walk(path, onerror=errors.append):
        folders.sort()
        for name in sorted((*files, *folders)):
            place = Path(folder) / name
            if name.endswith(suffixes) and not name.startswith(".") and (what := _no_file(place)):
                yield os.path.relpath(place, path), Bad("not a file", what)
    for error in errors:
        yield os.path.relpath(error.filename, path), cannot_read(error)


_NO_FILES = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def _no_file(place: Path) -> str:
    try:
        return _NO_FILES.get(stat.S_IFMT(place.stat().st_mode), "")
    except OSError as error:
        return f"a link to nowhere ({error.strerror})" if place.is_symlink() else ""


def steady(file: Path, items: Iterator[T]) -> Iterator[T]:
    """`items`, which come from this file; UserError where it was changed meanwhile."""
    before = state(file)
    yield from items
    unchanged(file, before)


State = tuple[int, int, int] | None
"""None where nobody may look; reading says why."""


def unchanged(file: Path, before: State) -> None:
    """UserError where a file is not what it was."""
    if before and state(file) != before:
        raise UserError(
            f"{file.name} changed while it was read",
            "size or time of change is another than at the beginning, so that the rows are of neither version",
            "wait until nothing writes to it any more, or read a copy",
            str(file),
        )


def state(file: Path) -> State:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
