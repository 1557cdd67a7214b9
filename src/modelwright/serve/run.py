"""Run the application on a port, and end well: not ready, finish what was begun, exit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import uvicorn

from modelwright.core.errors import UserError
from modelwright.methods.engines import Engine
from modelwright.serve.app import Settings, create_app
from modelwright.serve.feedback import Feedback
from modelwright.serve.guard import LOOPBACK, Rules
from modelwright.serve.queue import Queue

MIN_KEY_CHARS = 16
CANCEL_S = 2.0


class Address(NamedTuple):
    host: str = "127.0.0.1"
    port: int = 8080
    """0: a free one."""


class Server(uvicorn.Server):
    """The first signal drains: /ready says 503, new work is refused, what is under way or waiting is finished, within
    `drain_s`. A second signal, or the end of that time, cancels it. (uvicorn alone closes the port at once, so that a load
    balancer sees connections refused, and raises the signal again when it is done.)"""

    def __init__(self, config: uvicorn.Config, queue: Queue, drain_s: float, on_ready: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._queue, self._left_s, self._on_ready = queue, drain_s, on_ready
        self.cut = False
        """Answers were cancelled to end in time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal may come while the queue's locks are held, so only `on_tick` touches them.
        if self._queue.draining:
            self._left_s = 0.0
        self._queue.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn."""
        if self._queue.draining:
            self._left_s -= 0.1
            if self._left_s <= 0 and self._queue.busy and not self.cut:
                self.cut = True
                self._queue.cancel()
            # An engine that does not listen to `cancel` gets this long.
            if not self._queue.busy or self._left_s <= -CANCEL_S:
                self.should_exit = True
        return await super().on_tick(counter)


def serve(engine: Engine, name: str, address: Address, *, settings: Settings | None = None, api_key: str | None = None,
          body_bytes: int = 1_000_000, drain_s: float = 30.0, log_requests: bool = False,
          on_ready: Callable[[str], None] | None = None, feedback: Feedback | None = None) -> bool:  # fmt: skip
    """Serve until a signal comes; `on_ready` gets the address once requests are answered. True: all answers were finished."""
    listener = bind(address, api_key)
    with listener:
        local = _is_loopback(listener.getsockname()[0])
        rules = Rules(api_key, LOOPBACK if local else None, body_bytes)
        app = create_app(engine, name, settings, rules, feedback)
        queue: Queue = app.state.queue
        # uvicorn's own wait, for clients that read their answers slowly: they cannot hold the exit.
        config = uvicorn.Config(
            app,
            log_level="info" if log_requests else "error",
            access_log=log_requests,
            server_header=False,
            timeout_graceful_shutdown=2,
            ws="none",
            lifespan="on",
            h11_max_incomplete_event_size=64 * 1024,
        )
        server = Server(config, queue, drain_s, lambda: on_ready(url(listener)) if on_ready else None)
        try:
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            queue.close()
        return not server.cut


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind(address: Address, api_key: str | None) -> socket.socket:
    """An open port; the machine's own only, unless a key guards it."""
    host, port = address
    if not 0 <= port < 2**16:
        raise UserError(f"there is no port {port}", fix="take one from 1 to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"there is no address {host!r}", str(error), "use --host 127.0.0.1") from None
    if api_key is None and not _is_loopback(str(where[0])):
        raise UserError(
            f"{host} lets other machines in, and no API key is set",
            "anybody who reaches the port could use the model",
            "give --api-key-file FILE, or stay on 127.0.0.1",
        )
    # With the protocol named, asyncio turns off the wait for more data (TCP_NODELAY); without, each answer is 40 ms late.
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart may take the port over from closed connections; on Windows the option would let two servers share it.
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(f"port {port} of {host} cannot be opened", error.strerror or str(error),
                        "use --port 0 for a free one, or end the program that has it") from None  # fmt: skip
    return listener


def read_api_key(path: Path) -> str:
    """The key: the file's one line."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API key file {path} cannot be read", str(error)) from None
    if len(key) < MIN_KEY_CHARS or not key.isascii() or len(key.split()) != 1:
        raise UserError(
            f"{path} does not hold a usable API key",
            f"it takes one line of at least {MIN_KEY_CHARS} ASCII characters without spaces",
            f"python -c 'import secrets; print(secrets.token_urlsafe(32))' > {path}",
        )
    return key


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
