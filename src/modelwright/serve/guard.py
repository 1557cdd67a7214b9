"""The door: who may ask, and how much. Plain ASGI, so that streams pass through untouched.

A server on loopback is reachable from every web page that the user opens. Two checks stop such pages: the Host header must name
this machine (a page whose own name was rebound to 127.0.0.1 sends that name), and an Origin header must be our own or one that
the operator named (a page posts across sites with its own origin). Sources: the Fetch standard on Origin and on CORS,
https://fetch.spec.whatwg.org/#origin-header; RFC 9110 section 15.5.20 for 421;
https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelwright.serve.errors import ApiError
from modelwright.serve.keys import Keys
from modelwright.serve.limits import Client, Limits
from modelwright.serve.logs import Record, begin, named

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
LOCKED = re.compile(r"/v1(/|$)|/(metrics|tokenize|detokenize)$")
"""What needs a key, where there are keys: all that shows or uses a model."""
SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
SHOWN = b"x-request-id, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, " \
        b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"  # fmt: skip


class Rules(NamedTuple):
    """What the door lets through."""

    api_key: str | None = None
    """Needed for everything under /v1, and for /metrics; None: no key."""
    hosts: frozenset[str] | None = LOOPBACK
    """Names that the Host header may have, without port; None: any, for a server that asks for a key."""
    body_bytes: int = 1_000_000
    """Size of a request at most."""
    body_s: float = 30.0
    """Time for a request's body to arrive."""
    keys: Keys | None = None
    """Several keys, each with its limits."""
    limits: Limits = Limits()
    """Of the one key, or of everybody together where there is none."""
    origins: frozenset[str] = frozenset()
    """Web pages from elsewhere that may ask, such as `https://app.example`."""
    deadline_s: float = math.inf
    """Longest time for a request; one may ask for less with `X-Request-Timeout`."""

    @property
    def guarded(self) -> bool:
        """Strangers are kept out."""
        return self.api_key is not None or self.keys is not None


class Guard:
    def __init__(self, app: ASGIApp, rules: Rules, tell: Sequence[Callable[[Record], None]] = ()) -> None:
        """`tell` get the record of each request that has ended."""
        self.app, self.rules, self._tell = app, rules, tell
        self._anybody = Client("", rules.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        seen = Record(id=named(headers.get(b"x-request-id", "")), method=scope["method"], path=scope["path"],
                      traceparent=headers.get(b"traceparent", ""))  # fmt: skip
        begin(seen)
        extra = [*SAFE, (b"cross-origin-resource-policy", b"same-origin"), (b"x-request-id", seen.id.encode())]

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                retry = [(b"x-should-retry", b"false")] if seen.status == 504 else []  # clients' libraries try a 504 again
                told = seen.client.headers() if LOCKED.match(seen.path) else []
                message = {**message, "headers": [*message.get("headers", ()), *extra, *told, *retry]}
            await send(message)

        try:
            origin = self._origin(headers)
            if origin:
                extra[2] = (b"cross-origin-resource-policy", b"cross-origin")
                extra += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin"),
                          (b"access-control-expose-headers", SHOWN)]  # fmt: skip
            if origin and seen.method == "OPTIONS":
                await _preflight(headers)(scope, receive, send_safely)
                return
            self._enter(seen, headers)
            if seen.method == "POST":
                receive = await self._body(headers, receive)
            await self.app(scope, receive, send_safely)
        except ApiError as error:
            # The rest of the body is unread, so the connection cannot serve another request.
            response = error.response(seen.path)
            response.headers["connection"] = "close"
            await response(scope, receive, send_safely)
        finally:
            seen.ended_s = time.monotonic()
            if not math.isnan(seen.first_s):
                seen.finish = seen.finish or "cancelled"
            seen.endpoint = _endpoint(scope)
            for tell in self._tell:
                tell(seen)

    def _origin(self, headers: dict[bytes, str]) -> str:
        """The page from elsewhere that asks, where it may; ApiError where it may not, or where it is not us who are asked."""
        host = headers.get(b"host", "").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host
        if self.rules.hosts is not None and name not in self.rules.hosts:
            raise ApiError(
                421, f"this server answers to {', '.join(sorted(self.rules.hosts))}, not to the host {host!r}", code="wrong_host"
            )
        origin = headers.get(b"origin", "")
        if b"origin" not in headers or origin.lower() in (f"http://{host}", f"https://{host}"):
            return ""
        if origin.lower() not in self.rules.origins:
            raise ApiError(403, f"requests from pages of another origin ({origin!r}) are refused", code="wrong_origin")
        return origin

    def _enter(self, seen: Record, headers: dict[bytes, str]) -> None:
        """Whose request this is, and until when; ApiError where it may not be made."""
        locked = LOCKED.match(seen.path) is not None
        if locked:
            seen.client = self._client(headers)
        left_s = headers.get(b"x-request-timeout")
        if left_s is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", left_s):
            raise ApiError(400, "X-Request-Timeout must be a number of seconds", param="X-Request-Timeout")
        seen.deadline_s = seen.began_s + min(float(left_s or math.inf), self.rules.deadline_s)
        if locked and seen.method == "POST":
            seen.client.ask()

    def _client(self, headers: dict[bytes, str]) -> Client:
        if not self.rules.guarded:
            return self._anybody
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        if self.rules.api_key is not None and _same(given, self.rules.api_key):
            return self._anybody
        if self.rules.keys is not None and (client := self.rules.keys.find(given)) is not None:
            return client
        raise ApiError(
            401, "a valid API key is needed: send Authorization: Bearer KEY, or x-api-key: KEY", code="invalid_api_key"
        )

    async def _body(self, headers: dict[bytes, str], receive: Receive) -> Receive:
        """Read the whole body, within the limits, and hand it on as one message."""
        kind, *options = (part.strip().lower() for part in headers.get(b"content-type", "").split(";"))
        if kind != "application/json" or any(option.replace('"', "") not in ("", "charset=utf-8") for option in options):
            raise ApiError(415, "the content type must be application/json, in UTF-8", code="wrong_content_type")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "compressed requests are not supported", code="wrong_content_encoding")
        limit = self.rules.body_bytes
        too_long = ApiError(413, f"the request is longer than {limit} bytes", code="request_too_large")
        length = headers.get(b"content-length", "")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_long
        parts, size = [], 0
        with anyio.move_on_after(self.rules.body_s) as clock:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return _replay(message, receive)
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_long
                more = message.get("more_body", False)
        if clock.cancelled_caught:
            raise ApiError(408, f"the request's body took longer than {self.rules.body_s:g} s", code="request_timeout")
        return _replay({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)


def _endpoint(scope: Scope) -> str:
    """Which of ours was asked for, also where the door sent it away before it was looked up."""
    route = scope.get("route")
    if isinstance(route, APIRoute):
        return route.path
    known = any(isinstance(route, APIRoute) and route.path == scope["path"] for route in scope["app"].routes)
    return str(scope["path"]) if known else "other"


def _preflight(headers: dict[bytes, str]) -> Response:
    """What a browser asks before it lets a page of a named origin ask."""
    wanted = headers.get(b"access-control-request-headers", "")
    allowed = wanted if re.fullmatch(r"[A-Za-z0-9, _-]{0,1000}", wanted) else ""
    told = {"access-control-allow-methods": "GET, POST, DELETE", "access-control-allow-headers": allowed}
    return Response(status_code=204, headers={**told, "access-control-max-age": "600"})


def _replay(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _same(given: str, key: str) -> bool:
    """Compared in constant time; digests, so that not even the length shows."""
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(key.encode()).digest())
