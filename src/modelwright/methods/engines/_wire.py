"""Messages between an engine's process and ours: a length of four bytes, then JSON. Data only: neither makes the other run code.

Source of the framing: ONC RPC's record marking, RFC 5531 section 11, less its fragments. JSON as Python writes it: infinities
keep their names, half surrogates are escaped, a NamedTuple is a list in the order of its fields.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from threading import Lock
from types import NoneType, UnionType
from typing import IO, Any, get_args, get_origin, get_type_hints

from modelwright.methods.engines import Request

_LENGTH = struct.Struct(">I")


class Pipe:
    """Both ends. Any thread may send; one receives."""

    def __init__(self, given: IO[bytes], out: IO[bytes]) -> None:
        self._given, self._out, self._lock = given, out, Lock()

    def send(self, *message: Any) -> None:
        """OSError or ValueError where the other side is gone."""
        data = json.dumps(message, separators=(",", ":"), default=_text).encode()
        with self._lock:
            self._out.write(_LENGTH.pack(len(data)) + data)
            self._out.flush()

    def receive(self) -> Any:
        """None when the pipe has ended, in the middle of a message too."""
        head = self._given.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        data = self._given.read(length)
        return json.loads(data) if len(data) == length else None

    def close(self) -> None:
        self._given.close()


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
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
