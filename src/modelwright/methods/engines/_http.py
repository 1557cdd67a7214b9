"""OpenAI's API as a client sees it: questions that are repeated where that helps, streams, and errors in words.

Sources: https://platform.openai.com/docs/api-reference; server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from modelwright.core.errors import UserError, missing_extra
from modelwright.methods.engines import Unavailable
from modelwright.methods.engines._pace import LONGEST_S, Pace, delay_s

if TYPE_CHECKING:
    import httpx

AGAIN = frozenset({408, 409, 425, 429})
"""With 5xx: what the same request may be spared a moment later. All else would fail again."""
SHOWN = 20
CONNECT_S = 10.0


class Server(NamedTuple):
    """Where and how to ask."""

    name: str
    url: str
    key: str = ""
    key_env: str = ""
    """Where the key came from, for errors."""
    timeout_s: float = 120.0
    retries: int = 5
    parallel: int = 8
    start: str = ""
    """What to do where nobody answers."""


class Lost(Unavailable):
    """The server is not there, or went away."""


class Cancelled(Exception):
    """The one who asked does not want the answer any more."""


class Call:
    """One question under way; `cancel` from any thread ends it at once, and its connection with it."""

    def __init__(self) -> None:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    def cancel(self) -> None:
        with self._lock:
            self._stop.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closing alone would not wake a thread that reads from it
                    self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Cancelled

    def reads(self, response: httpx.Response) -> None:
        with self._lock:
            if self._stop.is_set():
                raise Cancelled
            stream = response.extensions.get("network_stream")
            self._socket = stream.get_extra_info("socket") if stream is not None else None

    def done(self) -> None:
        """The connection may go to another question now."""
        with self._lock:
            self._socket = None


class Client:
    """A pool of connections to one server. Thread-safe."""

    def __init__(self, server: Server, pace: Pace | None = None) -> None:
        try:
            import httpx
        except ImportError:
            raise missing_extra("httpx", "remote", f"the engine {server.name}") from None
        self._server, self._pace = server, pace or Pace(0, 0)
        self._slots = threading.BoundedSemaphore(server.parallel)
        headers = {"authorization": f"Bearer {server.key}"} if server.key else {}
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(server.timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=server.parallel + 1),  # one more lists the models
            trust_env=not _is_loopback(server.url),  # no proxy stands between us and this machine
        )

    def models(self) -> list[dict[str, Any]]:
        """What the server has, as it describes it."""
        with self._asked("GET", "/models", None, Call(), 0) as response:
            data = _json(response).get("data")
        return [entry for entry in data if isinstance(entry, dict) and "id" in entry] if isinstance(data, list) else []

    def post(self, path: str, body: Mapping[str, Any], call: Call, tokens: int) -> dict[str, Any]:
        """The answer in one piece. `tokens`: what it may cost."""
        with self._asked("POST", path, body, call, tokens) as response:
            return _json(response)

    def stream(self, path: str, body: Mapping[str, Any], call: Call, tokens: int) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer; UserError where it breaks off."""
        import httpx

        with self._asked("POST", path, body, call, tokens, whole=False) as response:
            try:
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        if (data := line[5:].strip()) == "[DONE]":
                            return
                        event = _parsed(data)
                        if "error" in event:
                            raise self._refused(response.status_code, event, body)
                        yield event
            except httpx.TransportError as error:
                if call.cancelled:
                    raise Cancelled from None
                raise self._broken(error) from None
        if call.cancelled:
            raise Cancelled

    def settle(self, expected: int, used: int) -> None:
        self._pace.settle(expected, used)

    def close(self) -> None:
        self._http.close()

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: Mapping[str, Any] | None, call: Call, tokens: int, whole: bool = True
    ) -> Iterator[httpx.Response]:
        """An answer with a good status, asked for as often as may be. Not `whole`: its body is still to be read."""
        import httpx

        for tried in range(self._server.retries + 1):
            headers: Mapping[str, str] = {}
            last = tried == self._server.retries
            with contextlib.nullcontext() if body is None else self._slot(call):  # one that is refused may list the models
                if body is not None:
                    call.wait(self._pace.wait_s(tokens))
                try:
                    request = self._http.build_request(method, self._server.url + path, json=body)
                    response = self._http.send(request, stream=True)
                    call.reads(response)
                    if whole or not response.is_success:
                        response.read()
                        call.done()
                except (httpx.TransportError, httpx.InvalidURL) as error:
                    if call.cancelled:
                        raise Cancelled from None
                    fault = self._broken(error)
                    last |= not isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout)
                else:
                    with contextlib.closing(response):
                        if response.is_success:
                            try:
                                yield response
                            finally:
                                call.done()
                            return
                        headers, status = response.headers, response.status_code
                        fault = self._refused(status, _error(response), body)
                        last |= not (status in AGAIN or status >= 500) or "insufficient_quota" in fault.why
            wait_s = delay_s(tried, headers)
            if last or wait_s > LONGEST_S:
                raise fault
            call.wait(wait_s)

    @contextlib.contextmanager
    def _slot(self, call: Call) -> Iterator[None]:
        while not self._slots.acquire(timeout=0.2):
            call.wait(0)
        try:
            yield
        finally:
            self._slots.release()

    # below: faults in words

    def _broken(self, error: Exception) -> UserError:
        import httpx

        server = self._server
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL | httpx.UnsupportedProtocol):
            return Lost(f"nobody answers at {server.url}", self._safe(error), server.start)
        if isinstance(error, httpx.TimeoutException):
            fix = "raise `timeout_s`, or ask for less"
            return Unavailable(f"{server.name} said nothing for {server.timeout_s:g} s", "it is busy, or hangs", fix)
        return Lost(f"the connection to {server.name} broke", self._safe(error), "ask again; see the server's own log")

    def _refused(self, status: int, body: Mapping[str, Any], asked: Mapping[str, Any] | None) -> UserError:
        found = body.get("error", body)
        tree = found if isinstance(found, Mapping) else {"message": found}
        told = self._safe(tree.get("message") or body.get("detail") or body.get("message") or "")
        code = str(tree.get("code") or tree.get("type") or "")
        why = f"{status}{f' {code}' if code else ''}: {told}"
        name = self._server.name
        if status in (401, 403):
            env = self._server.key_env
            fix = f"set the environment variable {env}" if env else "name an environment variable in `key_env`"
            return Unavailable(f"{name} does not accept the key", why, fix)
        no_model = code in ("model_not_found", "invalid_model") or (status == 404 and "model" in told.lower())
        if asked is not None and no_model:
            return self.unknown(str(asked.get("model", "")), why)
        if status == 429:
            fix = "wait, ask less often (`requests_per_minute`), or raise your limits"
            return Unavailable(f"{name} takes no more for now", why, fix)
        if "context" in code or "context length" in told.lower() or "too long" in told.lower():
            return UserError(f"the prompt is longer than the context of {name}'s model", why, "shorten the prompt")
        if status >= 500:
            return Unavailable(f"{name} failed", why, "ask again later; see the server's own log")
        return UserError(f"{name} refuses the request", why, "the server's own words above say what to change")

    def unknown(self, model: str, why: str = "") -> UserError:
        """That there is no such model, with those that there are."""
        try:
            has = [str(entry["id"]) for entry in self.models()]
        except UserError:
            has = []
        near = get_close_matches(model, has, 1) if model else []
        more = f" and {len(has) - SHOWN} more" if len(has) > SHOWN else ""
        listed = f"it has: {', '.join(has[:SHOWN])}{more}" if has else "it does not say which ones it has"
        what = f"{self._server.name} has no model {model!r}" if model else f"which model of {self._server.name}?"
        fix = f"did you mean {near[0]!r}?" if near else "name one in `model`"
        return UserError(what, "; ".join(filter(None, [why, listed])), fix)

    def _safe(self, text: Any) -> str:
        """One short line, without the key, whoever repeats it."""
        line = " ".join(str(text).split())
        return (line.replace(self._server.key, "***") if self._server.key else line)[:500]


def _error(response: httpx.Response) -> Mapping[str, Any]:
    text = response.content.decode("utf-8", errors="replace")
    try:
        tree = json.loads(text)
    except ValueError:
        return {"message": text}
    tree = tree[0] if isinstance(tree, list) and tree else tree  # Google wraps it
    return tree if isinstance(tree, Mapping) else {"message": text}


def _json(response: httpx.Response) -> dict[str, Any]:
    return _parsed(response.content.decode("utf-8", errors="replace"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise Unavailable("the server's answer is no JSON object", text.strip()[:200], "is `base_url` the one that ends in /v1?")
    return tree


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
