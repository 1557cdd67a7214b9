"""One request and its answer: to a checked address, within limits of size and time, kept byte by byte.

Sources: RFC 9110 and 9112 (HTTP); IANA's registries of special addresses as `ipaddress` has them (RFC 6890); RFC 6052 for IPv4
inside IPv6. The name is resolved once and the connection goes to the address that was checked, so that a name that changes its
address in between (DNS rebinding) reaches nothing else. No proxy is used, no cookie is kept.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from modelwright.stages._crawl_urls import Place

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA = {ipaddress.ip_address("168.63.129.16"), ipaddress.ip_address("192.0.0.192")}
"""Clouds' own addresses in ranges that pass for public: Azure's wire server and Oracle's metadata."""


class Refused(Exception):
    """The address is one that a crawler must not ask."""


class Failed(Exception):
    """There was no whole answer; the reason is short and countable."""


class Limits(NamedTuple):
    """What one answer may take."""

    bytes: int
    seconds: float
    private: bool
    """Whether addresses of this machine and its network may be asked."""


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Any
    body: bytes
    """As it was sent, without the marks of chunks."""
    raw: bytes
    """All that came over the wire; of an answer that is not whole the head."""
    whole: bool
    """False: the body was not wanted or is longer than the limit."""
    received_bytes: int = 0
    """Without what a hung-up connection had under way."""
    request: bytes = b""
    address: str = ""

    def header(self, name: str) -> str:
        return str(self.headers.get(name, ""))

    def type(self) -> str:
        return self.header("Content-Type").partition(";")[0].strip().lower()


def ask(place: Place, agent: str, limits: Limits, wanted: Callable[[int, str], bool]) -> Answer:
    """GET. `wanted` sees status and type and says whether the body is to be read."""
    ends_s = time.monotonic() + limits.seconds
    request = (
        f"GET {place.path} HTTP/1.1\r\nHost: {place.authority}\r\nUser-Agent: {agent}\r\nAccept: */*\r\n"
        "Accept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    ).encode("ascii")
    wire, address = _connected(place, limits, ends_s)
    try:
        with wire:
            wire.sendall(request)
            answer = read(_Tape(wire, ends_s), limits.bytes, wanted)
    except ssl.SSLError as error:
        raise Failed(f"TLS: {error.reason or type(error).__name__}") from None
    except TimeoutError:
        raise Failed("no whole answer in time") from None
    except OSError as error:
        raise Failed(f"connection: {type(error).__name__}") from None
    return answer._replace(request=request, address=address)


# --- addresses ----------------------------------------------------------------------------------------


def private(address: str) -> bool:
    """Whether an address is of no public machine: this one, its network, a cloud's metadata, many at once; IPv4 in IPv6 too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return private(str(inner))
    return not found.is_global or found.is_multicast or found in _METADATA


def resolve(place: Place, allow_private: bool) -> list[tuple[socket.AddressFamily, Any]]:
    """(family, address) of a host. One that is also at a private address is refused: it is not what it says."""
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed(f"name: {type(error).__name__}") from None
    addresses: list[tuple[socket.AddressFamily, Any]] = [(family, address) for family, _, _, _, address in found]
    if not allow_private and any(private(str(address[0])) for _, address in addresses):
        raise Refused
    return addresses


def _connected(place: Place, limits: Limits, ends_s: float) -> tuple[socket.socket, str]:
    fault = Failed("connection: no address")
    for family, address in resolve(place, limits.private):
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(_left_s(ends_s))
            plain.connect(address)
            if place.scheme == "http":
                return plain, str(address[0])
            return _tls().wrap_socket(plain, server_hostname=place.host), str(address[0])
        except ssl.SSLError as error:
            fault = Failed(f"TLS: {error.reason or type(error).__name__}")
        except OSError as error:
            fault = Failed(f"connection: {type(error).__name__}")
        plain.close()
    raise fault


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


# --- the answer ---------------------------------------------------------------------------------------


def _left_s(ends_s: float) -> float:
    if (left_s := ends_s - time.monotonic()) <= 0:
        raise TimeoutError
    return left_s


class _Tape(io.RawIOBase):
    """What a connection sends, kept; a server that sends a byte a minute does not outlast the time."""

    def __init__(self, wire: socket.socket, ends_s: float) -> None:
        self._wire, self._ends_s = wire, ends_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wire.settimeout(_left_s(self._ends_s))
        return self._wire.recv_into(buffer)


class _Kept:
    """Stands for a socket, for http.client: a file to read from, of which every byte is kept."""

    def __init__(self, stream: io.RawIOBase | io.BytesIO, limit_bytes: int) -> None:
        self.data = bytearray()
        self._stream, self._limit_bytes = stream, limit_bytes

    def makefile(self, _mode: str) -> io.BufferedReader:
        outer = self

        class Teed(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                taken = outer._stream.readinto(buffer) or 0
                outer.data += buffer[:taken]
                if len(outer.data) > outer._limit_bytes:  # chunks of a byte, trailers without end
                    raise Failed("not HTTP: more frame than body")
                return taken

        return io.BufferedReader(Teed())


def read(stream: io.RawIOBase | io.BytesIO, limit_bytes: int, wanted: Callable[[int, str], bool]) -> Answer:
    """The answer on a connection or in an archive; http.client limits lines and headers."""
    kept = _Kept(stream, 2 * limit_bytes + (1 << 20))
    try:
        response = http.client.HTTPResponse(kept, method="GET")  # type: ignore[arg-type]  # all it asks of a socket
        response.begin()
        head = bytes(kept.data).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        answer = Answer(response.status, response.headers, b"", head, False, len(head))
        if not wanted(answer.status, answer.type()) or (response.length or 0) > limit_bytes:
            return answer
        body = response.read(limit_bytes + 1)
        if response.length:  # the server hung up
            raise Failed("the answer ends before its stated length")
    except http.client.HTTPException as error:
        raise Failed(f"not HTTP: {type(error).__name__}") from None
    except ValueError:
        raise Failed("not HTTP: nonsense in its head") from None
    if len(body) > limit_bytes:
        return answer._replace(received_bytes=len(head) + len(body))
    return answer._replace(body=body, raw=bytes(kept.data), whole=True, received_bytes=len(kept.data))


def unpacked(answer: Answer, limit_bytes: int) -> bytes | None:
    """The body without gzip; None where it is packed otherwise, broken, or longer than the limit: a bomb."""
    coding = answer.header("Content-Encoding").strip().lower()
    if coding in ("", "identity"):
        return answer.body
    if coding not in ("gzip", "x-gzip"):
        return None
    return gunzip(answer.body, limit_bytes)


def gunzip(data: bytes, limit_bytes: int) -> bytes | None:
    """The first member of gzip, where it is sound and no longer than the limit."""
    reader = zlib.decompressobj(31)
    try:
        plain = reader.decompress(data, limit_bytes + 1)
    except zlib.error:
        return None
    return plain if reader.eof and len(plain) <= limit_bytes else None
