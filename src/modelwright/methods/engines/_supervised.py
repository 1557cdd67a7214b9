"""A local engine in a process of its own: when that dies, requests fail in words and the next one starts it again.

Source of the idea: Armstrong 2003, "Making reliable distributed systems in the presence of software errors", chapter 5 (a
supervisor restarts what crashes, less and less often). The other side is `_child`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from modelwright.core import environment
from modelwright.core.errors import UserError
from modelwright.core.measure import Meter, share_bytes
from modelwright.core.record import Message
from modelwright.core.spec import source_file
from modelwright.methods.engines import Completion, Delta, Engine, EngineDied, EngineSpec, Posting, Pushed, Request
from modelwright.methods.engines._wire import Pipe, plain, read
from modelwright.methods.engines._worker import room

log = logging.getLogger("modelwright.engines")
AWAY = frozenset({"branch"})
"""What stays with an engine in one's own process: its searches hold live objects."""
CALM_S = 60.0
"""A process that lived so long starts again at once; others wait, each time twice as long."""
LONGEST_WAIT_S = 30.0
_FINISH = Delta._fields.index("finish")
END_S = 5.0
"""A process that was asked to end has so long."""


class Supervised(Posting):
    """See `modelwright.methods.engines.Engine`."""

    def __init__(self, spec: EngineSpec, model: Path) -> None:
        code = source_file(type(spec))
        path = str(code) if code else None
        self._spec: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "code": path, "model": str(model.absolute())}
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._adapters: dict[str, Path] = {}
        self._wait_s = 0.0
        self.restarts = 0
        """How often the process was started again."""
        self._life = _Life(self._spec)
        self.capabilities: frozenset[str] = frozenset(self._life.opened["capabilities"]) - AWAY
        self.context: int = self._life.opened["context"]
        self.vocabulary: int = self._life.opened["vocabulary"]

    @property
    def process(self) -> int:
        """The number of the engine's process."""
        return self._life.process.pid

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._call("encode", text)
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._call("decode", [int(token) for token in tokens]))

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return [text.encode("latin-1") for text in self._call("spell", [int(token) for token in tokens])]

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        found: list[int] = self._call("render", list(messages), list(tools) if tools else None)
        return found

    def submit(self, request: Request) -> _Stream:
        room(request.tokens, request.sampling.max_tokens, self.context)  # told here, as by an engine in one's own process
        life = self._alive()
        return _Stream(life, life.ask("submit", plain(request)))

    def begin(self, request: Request) -> _Stream | None:
        room(request.tokens, request.sampling.max_tokens, self.context)
        life = self._ready()
        pending = life.ask_now("submit", plain(request)) if life else None
        return _Stream(life, pending) if life and pending else None

    def post(self, name: Literal["encode", "render"], arguments: Sequence[Any], take: Callable[[Any], None]) -> bool:
        life = self._ready()
        pending = life.ask_now(name, arguments) if life else None
        if pending is not None:
            pending.listen(take)
        return pending is not None

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        found = self._alive().ask("generate", [plain(request) for request in requests]).result()
        return [read(Completion, fields) for fields in found]

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from self.generate(requests)

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        found: list[list[float]] = self._call("score", [[int(token) for token in row] for row in tokens])
        return found

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        self._need("embed")
        found: list[list[float]] = self._call("embed", [[int(token) for token in row] for row in tokens])
        return found

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may give."""
        return tuple(self._adapters)

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """As the engine does it; a process that is started again loads it anew."""
        self._need("adapters")
        self._call("load_adapter", name, str(Path(folder).absolute()))
        self._adapters[name] = Path(folder).absolute()

    def unload_adapter(self, name: str) -> None:
        self._need("adapters")
        self._call("unload_adapter", name)
        self._adapters.pop(name, None)

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            self._life.close()

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._alive().ask(name, arguments).result()

    def _need(self, capability: str) -> None:
        if capability not in self.capabilities:
            kind = self._spec["spec"]["kind"]
            raise UserError(f"the engine {kind} cannot do `{capability}`", f"it can: {', '.join(sorted(self.capabilities))}")

    def _ready(self) -> _Life | None:
        """The process where it is there; None where it has to be started first, or that is being done."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return None if self._closing.is_set() or self._life.died is not None else self._life
        finally:
            self._lock.release()

    def _alive(self) -> _Life:
        """The process, started again where it has died."""
        with self._lock:
            if self._closing.is_set():
                raise UserError("the engine is closed", "its model was put away", "open it again")
            if self._life.died is None:
                return self._life
            lived_s = time.monotonic() - self._life.began_s
            self._wait_s = 0.0 if lived_s > CALM_S else self._wait_s
            log.warning("%s; it is started again%s", self._life.died.what, f" in {self._wait_s:g} s" if self._wait_s else "")
            if self._closing.wait(self._wait_s):
                raise UserError("the engine is closed", "its model was put away", "open it again")
            self._wait_s = min(LONGEST_WAIT_S, max(1.0, 2 * self._wait_s))
            self._life.close()
            self._life = _Life(self._spec)
            self.restarts += 1
            for name, folder in list(self._adapters.items()):
                try:
                    self._life.ask("load_adapter", (name, folder)).result()
                except EngineDied:
                    raise
                except UserError as error:  # its files have gone or changed: requests for it are refused, others go on
                    del self._adapters[name]
                    log.warning("the adapter %r is no longer there: %s", name, error)
            return self._life


def taken_bytes(engine: Engine) -> int:
    """Memory that the engine's process takes now; 0 where it has none, or the system does not tell."""
    return share_bytes(engine.process) if isinstance(engine, Supervised) else 0


class _Life:
    """One process, from its start to its end. UserError where the model cannot be opened."""

    def __init__(self, spec: dict[str, Any]) -> None:
        env = {**environment.given(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "modelwright.methods.engines._child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self.began_s = time.monotonic()
        self.died: EngineDied | None = None
        assert self.process.stdin is not None and self.process.stdout is not None
        self._pipe = Pipe(self.process.stdout, self.process.stdin)
        self._numbers = itertools.count()
        self._lock, self._pending = threading.Lock(), dict[int, _Pending]()
        self._thread = threading.Thread(target=self._read, name="engine-process", daemon=True)
        self._thread.start()
        try:
            self.opened: dict[str, Any] = self.ask("open", spec).result()
        except BaseException:
            self.close()
            raise

    def ask(self, name: str, argument: Any) -> _Pending:
        pending = _Pending(next(self._numbers))
        with self._lock:
            if self.died is not None:
                raise self.died
            self._pending[pending.number] = pending
        self.post(pending.number, name, argument)
        return pending

    def ask_now(self, name: str, argument: Any) -> _Pending | None:
        """The same where that cannot wait; None: it might, and nothing was asked."""
        pending = _Pending(next(self._numbers))
        with self._lock:
            if self.died is not None:
                return None
            self._pending[pending.number] = pending
        with contextlib.suppress(OSError, ValueError):  # it is gone: the reader tells everybody
            if not self._pipe.send_now(pending.number, name, argument):
                with self._lock:
                    return pending if self._pending.pop(pending.number, None) is None else None
        return pending

    def cancel(self, number: int) -> None:
        """Without a wait: a process that does not read must not hold up who cancels."""
        with contextlib.suppress(OSError, ValueError):
            if not self._pipe.send_now(number, "cancel", None):
                threading.Thread(target=self.post, args=(number, "cancel"), daemon=True).start()

    def post(self, number: int, name: str, argument: Any = None) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone: the reader tells everybody
            self._pipe.send(number, name, argument)

    def close(self) -> None:
        if self.died is None and self.process.poll() is None:
            Meter.count_worker(self.process.pid)
            with contextlib.suppress(UserError, RuntimeError, queue.Empty):
                self.ask("close", None).result(END_S)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.kill()
        self._thread.join()

    def _read(self) -> None:
        while (message := self._pipe.receive()) is not None:
            number, kind, value = message
            with self._lock:
                more = kind == "piece" and value[_FINISH] is None
                pending = self._pending[number] if more else self._pending.pop(number)
            try:
                pending.put(kind, value)
            except Exception:  # a listener's own fault; the others wait for their answers
                log.exception("who listens to an answer failed")
        self._pipe.close()
        code = self.process.wait()
        with self._lock:
            self.died = death(code)
            left, self._pending = self._pending, {}
        for pending in left.values():
            pending.put("died", self.died)


class _Pending:
    """What one request waits for: its messages, put by the reader of the pipe."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock, self._came = threading.Lock(), queue.SimpleQueue[Any]()
        self._put: Callable[[Any], None] = self._came.put

    def put(self, kind: str, value: Any) -> None:
        if kind == "user error":
            value = UserError(*value)
        elif kind == "error":
            value = RuntimeError(f"in the engine's process:\n{value}")
        elif kind == "piece":
            value = read(Delta, value)
        with self._lock:
            self._put(value)

    def listen(self, take: Callable[[Any], None]) -> None:
        with self._lock:
            while not self._came.empty():
                take(self._came.get())
            self._put = take

    def result(self, wait_s: float | None = None) -> Any:
        """The next value, or the error raised here."""
        value = self._came.get(timeout=wait_s)
        if isinstance(value, BaseException):
            raise value
        return value


class _Stream(Pushed):
    """See `modelwright.methods.engines.Stream`."""

    def __init__(self, life: _Life, pending: _Pending) -> None:
        self._life, self._pending, self._ended = life, pending, False

    def __iter__(self) -> Iterator[Delta]:
        try:
            while not self._ended:
                piece: Delta = self._pending.result()
                self._ended = piece.finish is not None
                yield piece
        finally:
            self.cancel()
            self._ended = True

    def listen(self, take: Callable[[Delta | BaseException], None]) -> None:
        self._pending.listen(take)

    def cancel(self) -> None:
        if not self._ended:
            self._life.cancel(self._pending.number)


_SIGNALS = {
    signal.SIGKILL: "most likely because memory ran out",
    signal.SIGSEGV: "a fault in its native code",
    signal.SIGILL: "its native code was built for another processor",
    signal.SIGABRT: "its native code gave up",
}


def death(code: int) -> EngineDied:
    """Why a process that ended with this code did, and what to do."""
    if code < 0:
        name = signal.Signals(-code).name
        why = ": ".join(filter(None, [f"it was ended by {name}", _SIGNALS.get(signal.Signals(-code), "")]))
    else:
        why = f"it ended by itself with code {code}; what it printed is on standard error"
    return EngineDied(
        "the engine's process died",
        why,
        "ask again: the next request starts it anew. If it dies again: fewer answers at once (`max_batch`), a shorter `context`, "
        "a smaller model, or another engine",
    )
