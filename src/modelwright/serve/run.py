"""Run the application on a port, and end well: not ready, finish what was begun, exit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import uvicorn

from modelwright.core.errors import UserError
from modelwright.serve import logs
from modelwright.serve.app import create_app
from modelwright.serve.asking import Settings
from modelwright.serve.feedback import Feedback
from modelwright.serve.guard import Rules
from modelwright.serve.keys import Keys
from modelwright.serve.models import Models
from modelwright.serve.queue import Queue
from modelwright.serve.tracing import Traces

MIN_KEY_CHARS = 16
CANCEL_S = 2.0


class Address(NamedTuple):
    host: str = "127.0.0.1"
    port: int = 8080
    """0: a free one."""


class Settled(NamedTuple):
    """How a server is run; what it does for whom is in `Settings` and `Rules`."""

    drain_s: float = 30.0
    """After a signal, time to finish answers."""
    stall_s: float = 30.0
    """A client that takes nothing of what waits for it for so long is hung up on; so is one that says nothing."""
    log: logs.Form | None = None
    """A line on standard error for each request."""
    admin: bool = False
    """Adapters may be loaded over HTTP."""


class Server(uvicorn.Server):
    """The first signal drains: /ready says 503, new work is refused, what is under way or waiting is finished, within
    `drain_s`. A second signal, or the end of that time, cancels it. (uvicorn alone closes the port at once, so that a load
    balancer sees connections refused, and raises the signal again when it is done.)"""

    def __init__(self, config: uvicorn.Config, queue: Queue, drain_s: float, on_ready: Callable[[], None] | None = None,
                 stall_s: float = 30.0, keys: Keys | None = None) -> None:  # fmt: skip
        super().__init__(config)
        self._queue, self._left_s, self._on_ready, self._stall_s, self._keys = queue, drain_s, on_ready, stall_s, keys
        self._unread: dict[Any, tuple[int, float]] = {}
        """Connections with bytes that their client does not take: how many, and since when."""
        self._quiet: dict[Any, tuple[Any, float]] = {}
        """Connections that wait for the head of a request: the one before it, and since when."""
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
        handlers = {signal.SIGINT: self.handle_exit, signal.SIGTERM: self.handle_exit}
        if self._keys is not None and sys.platform != "win32":
            handlers[signal.SIGHUP] = lambda *_: None  # nothing more to do: the file is looked at every second
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
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
        if counter % 10 == 0 and self._keys is not None:
            self._keys.refresh()
        self._hang_up(time.monotonic())
        if self._queue.draining:
            self._left_s -= 0.1
            if self._left_s <= 0 and self._queue.busy and not self.cut:
                self.cut = True
                self._queue.cancel()
            # An engine that does not listen to `cancel` gets this long.
            if not self._queue.busy or self._left_s <= -CANCEL_S:
                self.should_exit = True
        return await super().on_tick(counter)

    def _hang_up(self, now_s: float) -> None:
        """End connections whose clients read nothing: an answer that waits for one of them would wait for ever. And those that
        never say what they want: each holds a file of which a process has only so many."""
        unread: dict[Any, tuple[int, float]] = {}
        quiet: dict[Any, tuple[Any, float]] = {}
        connections: set[Any] = self.server_state.connections
        for connection in list(connections):
            transport, before = connection.transport, connection.cycle
            if waits := transport.get_write_buffer_size():
                size, since_s = self._unread.get(transport, (0, now_s))
                unread[transport] = (waits, since_s if waits == size else now_s)
                if now_s - unread[transport][1] > self._stall_s:
                    transport.abort()
            elif connection.timeout_keep_alive_task is None and (before is None or before.response_complete):
                known = self._quiet.get(connection)
                quiet[connection] = known if known and known[0] is before else (before, now_s)
                if now_s - quiet[connection][1] > self._stall_s:
                    transport.close()
        self._unread, self._quiet = unread, quiet


def serve(models: Models, name: str, address: Address, *, settings: Settings | None = None, rules: Rules | None = None,
          settled: Settled | None = None, traces: Traces | None = None, feedback: Feedback | None = None,
          on_ready: Callable[[str], None] | None = None) -> bool:  # fmt: skip
    """Serve until a signal comes; `on_ready` gets the address once requests are answered. True: all answers were finished."""
    rules, settled = rules or Rules(), settled or Settled()
    listener = bind(address, rules.guarded)
    logs.start(settled.log)
    with listener:
        if not _is_loopback(listener.getsockname()[0]):
            rules = rules._replace(hosts=None)
        tell = ([logs.tell] if settled.log else []) + ([traces.tell] if traces else [])
        app = create_app(models, name, settings, rules, feedback, admin=settled.admin, tell=tell)
        queue: Queue = app.state.queue
        # uvicorn's own wait, for clients that read their answers slowly: they cannot hold the exit.
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            ws="none",
            lifespan="on",
            http="h11",  # also where httptools is installed, which has no limit on the size of headers
            h11_max_incomplete_event_size=64 * 1024,
        )
        told = partial(on_ready, url(listener)) if on_ready else None
        server = Server(config, queue, settled.drain_s, told, settled.stall_s, rules.keys)
        try:
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            queue.close()
            if traces is not None:
                traces.close()
        return not server.cut


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind(address: Address, keys: object) -> socket.socket:
    """An open port; the machine's own only, unless keys guard it: anything true."""
    host, port = address
    if not 0 <= port < 2**16:
        raise UserError(f"there is no port {port}", fix="take one from 1 to 65535, or 0 for a free one")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"there is no address {host!r}", str(error), "use --host 127.0.0.1") from None
    if not keys and not _is_loopback(str(where[0])):
        raise UserError(
            f"{host} lets other machines in, and no API key is set",
            "anybody who reaches the port could use the model",
            "give --keys FILE or --api-key-file FILE, or stay on 127.0.0.1",
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
