"""The process that a local engine runs in: `python -m modelwright.methods.engines._child`, spoken to through its standard pipes.

It ends when the pipe does, so it never outlives the command, however that ends. See `_supervised` for the other side.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from pathlib import Path
from typing import Any

from modelwright.core import environment
from modelwright.core.errors import UserError
from modelwright.core.spec import allow_code
from modelwright.methods.engines import ENGINES, Delta, Engine, EngineSpec, Pushed, Request, Stream
from modelwright.methods.engines._opened import Opened
from modelwright.methods.engines._wire import Pipe, read

CALLS = frozenset({"encode", "decode", "render", "score", "embed", "unload_adapter", "spell"})
"""Methods whose arguments and results are plain data (`_wire`)."""


AT_ONCE = frozenset({"encode", "render", "spell", "submit"})
"""What takes no time worth a thread, where little is asked."""
LITTLE_BYTES = 4096
APART_S = 0.05
"""Between two pieces of an answer, more often than eyes follow text: each costs its way through two processes to a client,
half a millisecond of a processor that the model wants, too. On two of them a 135M model gives 3 to 5 % more tokens a second."""
_SLOW = [Request._fields.index(name) for name in ("constraint", "speculate")]
"""Fields whose making ready takes a while."""


class Child:
    """Requests come in from one pipe. Each is done in a thread of its own, so that none waits to be heard; what is quick, by an
    engine of ours that has nothing longer to do, where it is read."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self._threads = 0
        """That are at work; one of them may hold what a quick call would wait for."""
        self._streams: dict[int, Stream] = {}
        self._cancelled: set[int] = set()
        self._engine: Engine
        self._ours = False

    def run(self) -> None:
        while (message := self._pipe.receive()) is not None:
            number, name, argument = message
            if name == "cancel":
                self._cancel(number)
            elif self._quick(name, argument):
                self._answer(number, name, argument)
            else:
                with self._lock:
                    self._threads += 1
                threading.Thread(target=self._apart, args=(number, name, argument), daemon=True).start()
        os._exit(1)  # whoever asked is gone; nothing here is worth keeping

    def _quick(self, name: str, argument: Any) -> bool:
        if name not in AT_ONCE or self._threads or self._pipe.came_bytes > LITTLE_BYTES:
            return False
        return self._ours and (name != "submit" or not any(argument[place] for place in _SLOW))

    def _apart(self, number: int, name: str, argument: Any) -> None:
        try:
            self._answer(number, name, argument)
        finally:
            with self._lock:
                self._threads -= 1

    def _cancel(self, number: int) -> None:
        with self._lock:
            stream = self._streams.get(number)
            if stream is None:
                self._cancelled.add(number)
        if stream is not None:
            stream.cancel()

    def _answer(self, number: int, name: str, argument: Any) -> None:
        try:
            if name == "submit":
                self._stream(number, argument)
            else:
                self._send(number, "result", self._do(name, argument))
        except Exception as error:
            self._fail(number, error)
        if name == "close":
            os._exit(0)

    def _fail(self, number: int, error: BaseException) -> None:
        if isinstance(error, UserError):
            self._send(number, "user error", [error.what, error.why, error.fix, error.where])
        else:
            self._send(number, "error", "".join(traceback.format_exception(error)))

    def _send(self, number: int, kind: str, value: Any) -> None:
        try:
            self._pipe.send(number, kind, value)
        except (OSError, ValueError):
            os._exit(1)

    def _do(self, name: str, argument: Any) -> Any:
        if name == "open":
            return self._open(**argument)
        engine: Any = self._engine  # adapters and embeddings are for those that can: the other side has looked
        if name == "close":
            return engine.close()
        if name == "generate":
            return engine.generate([read(Request, fields) for fields in argument])
        if name == "load_adapter":
            return engine.load_adapter(argument[0], Path(argument[1]))
        assert name in CALLS, name
        return getattr(engine, name)(*argument)

    def _open(self, spec: dict[str, Any], code: str | None, model: str) -> dict[str, Any]:
        if code is not None:
            allow_code(Path(code))  # the command was told to, or it would have no such spec
        made = ENGINES.load(code or spec["kind"]).model_validate(spec)
        assert isinstance(made, EngineSpec)
        if made.of_torch:
            environment.prepare()
        engine = self._engine = made.open(Path(model))
        if isinstance(engine, Opened):
            self._ours = True
            engine.tell_within(self._pipe.gathered, APART_S)
        return {"capabilities": sorted(engine.capabilities), "context": engine.context, "vocabulary": engine.vocabulary}

    def _stream(self, number: int, argument: Any) -> None:
        stream = self._engine.submit(read(Request, argument))
        with self._lock:
            self._streams[number] = stream
            if number in self._cancelled:
                stream.cancel()

        def take(piece: Delta | BaseException) -> None:
            if isinstance(piece, BaseException) or piece.finish is not None:
                with self._lock:
                    self._streams.pop(number, None)  # gone already where its last piece could not be sent
                    self._cancelled.discard(number)
            if isinstance(piece, BaseException):
                self._fail(number, piece)
            else:
                self._send(number, "piece", piece)

        if isinstance(stream, Pushed):
            stream.listen(take)
            return
        try:
            for piece in stream:
                take(piece)
        except Exception as error:
            take(error)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # both may reach the whole group; the command decides when this ends
    with os.fdopen(os.dup(0), "rb") as given, os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not come between messages
        Child(Pipe(given, out)).run()


if __name__ == "__main__":
    main()
