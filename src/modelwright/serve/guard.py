"""The door: who may ask, and how much. Plain ASGI, so that streams pass through untouched.

A server on loopback is reachable from every web page that the user opens. Two checks stop such pages: the Host header must name
this machine (a page whose own name was rebound to 127.0.0.1 sends that name), and an Origin header must be our own (a page posts
across sites with its own origin). Sources: the Fetch standard on Origin, https://fetch.spec.whatwg.org/#origin-header; RFC 9110
section 15.5.20 for 421; https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelwright.serve.errors import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Rules(NamedTuple):
    """What the door lets through."""

    api_key: str | None = None
    """Needed for everything under /v1; None: no key."""
    hosts: frozenset[str] | None = LOOPBACK
    """Names that the Host header may have, without port; None: any, for a server that asks for a key."""
    body_bytes: int = 1_000_000
    """Size of a request at most."""
    body_s: float = 30.0
    """Time for a request's body to arrive."""


class Guard:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"),
                         (b"referrer-policy", b"no-referrer")]  # fmt: skip
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope["path"], headers)
            if scope["method"] == "POST":
                receive = await self._body(headers, receive)
        except ApiError as error:
            # The rest of the body is unread, so the connection cannot serve another request.
            response = error.response()
            response.headers["connection"] = "close"
            await response(scope, receive, send_safely)
            return
        await self.app(scope, receive, send_safely)

    def _check(self, path: str, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host
        if self.rules.hosts is not None and name not in self.rules.hosts:
            raise ApiError(
                421, f"this server answers to {', '.join(sorted(self.rules.hosts))}, not to the host {host!r}", code="wrong_host"
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise ApiError(403, f"requests from pages of another origin ({origin!r}) are refused", code="wrong_origin")
        if self.rules.api_key is not None and path.startswith("/v1"):
            scheme, _, given = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not _same(given.strip(), self.rules.api_key):
                raise ApiError(401, "a valid API key is needed: send Authorization: Bearer KEY", code="invalid_api_key")

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


def _replay(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _same(given: str, key: str) -> bool:
    """Compared in constant time; digests, so that not even the length shows."""
    return hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(key.encode()).digest())
