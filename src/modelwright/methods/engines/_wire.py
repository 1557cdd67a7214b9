"""Messages between an engine's process and ours: a length of four bytes, then JSON. Data only: neither makes the other run code.

Source of the framing: ONC RPC's record marking, RFC 5531 section 11, less its fragments; of what a pipe takes at once:
PIPE_BUF in pipe(7). JSON as Python writes it: infinities keep their names, half surrogates are escaped, a NamedTuple is a list in
the order of its fields, and bytes are the characters of their numbers.
"""

from __future__ import annotations

import json
import select
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock, get_ident
from types import NoneType, UnionType
from typing import IO, Any, get_args, get_origin, get_type_hints

from modelwright.methods.engines import Request

_LENGTH = struct.Struct(">I")


class Pipe:
    """Both ends. Any thread may send; one receives."""

    def __init__(self, given: IO[bytes], out: IO[bytes]) -> None:
        self._given, self._out, self._lock = given, out, Lock()
        self._gatherer, self._gathered = 0, list[bytes]()
        self.came_bytes = 0
        """Size of the message that was received last."""

    def send(self, *message: Any) -> None:
        """OSError or ValueError where the other side is gone."""
        data = _framed(message)
        if self._gatherer == get_ident():
            self._gathered.append(data)
            return
        with self._lock:
            self._write(data)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """What this thread sends meanwhile goes out at the end, at once: the other side wakes up once. For one thread alone."""
        self._gatherer = get_ident()
        try:
            yield
        finally:
            self._gatherer, data = 0, b"".join(self._gathered)
            self._gathered.clear()
            with self._lock:
                self._write(data)

    def send_now(self, *message: Any) -> bool:
        """The same where it cannot wait for the other side to read; False: it might, and nothing was sent."""
        if sys.platform == "win32":  # its pipes do not tell
            return False
        if _left(message[1:], select.PIPE_BUF) < 0:  # long ones are not even written down
            return False
        data = _framed(message)
        if len(data) > select.PIPE_BUF or not self._lock.acquire(blocking=False):
            return False
        try:
            room = select.poll()
            room.register(self._out.fileno(), select.POLLOUT)
            if not room.poll(0):
                return False
            self._write(data)
            return True
        finally:
            self._lock.release()

    def _write(self, data: bytes) -> None:
        """By whoever holds the lock."""
        self._out.write(data)
        self._out.flush()

    def receive(self) -> Any:
        """None when the pipe has ended, in the middle of a message too."""
        head = self._given.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (self.came_bytes,) = _LENGTH.unpack(head)
        data = self._given.read(self.came_bytes)
        return json.loads(data) if len(data) == self.came_bytes else None

    def close(self) -> None:
        self._given.close()


def _framed(message: Any) -> bytes:
    data = json.dumps(message, separators=(",", ":"), default=_text).encode()
    return _LENGTH.pack(len(data)) + data


def _left(value: Any, room: int) -> int:
    """At most so many of `room` bytes are left after this; soon below zero for much."""
    if isinstance(value, str):
        return room - len(value)
    if not isinstance(value, dict | list | tuple) or not value:
        return room - 1
    room -= 2 * len(value)
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict) and isinstance(value[0], int):  # tokens
        return room
    for part in parts:
        if room < 0:
            break
        room = _left(part, room)
    return room


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(f"{type(value).__name__} is no plain data")


def plain(request: Request) -> Request:
    """With tokens that JSON knows: a caller may hold them in an array."""
    return request._replace(tokens=[int(token) for token in request.tokens])


def read(kind: Any, value: Any) -> Any:
    """What JSON made a list or a text, as its type says: NamedTuples, tuples, paths."""
    if value is None:
        return None
    if isinstance(kind, type) and issubclass(kind, tuple):
        return kind(*(read(hint, inner) for hint, inner in zip(_hints(kind), value, strict=True)))
    if get_origin(kind) is UnionType:
        return read(next(part for part in get_args(kind) if part is not NoneType), value)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if parts[-1] is not Ellipsis:
            return tuple(read(part, inner) for part, inner in zip(parts, value, strict=True))
        return tuple(value) if parts[0] in _PLAIN else tuple(read(parts[0], inner) for inner in value)
    return Path(value) if kind is Path else value


_PLAIN = (int, float, str)


@cache
def _hints(kind: type) -> tuple[Any, ...]:
    return tuple(get_type_hints(kind).values())
