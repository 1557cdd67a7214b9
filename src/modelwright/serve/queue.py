"""The waiting room: so many answers at a time, so many waiting, the rest told to come back; and the way out when we close."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from modelwright.methods.engines import Delta, Engine, Request, Stream
from modelwright.serve.errors import ApiError


class Queue:
    """Admission in order of arrival. Used from one event loop."""

    def __init__(self, engine: Engine, parallel: int, waiting: int) -> None:
        self.engine, self.parallel, self.limit = engine, parallel, waiting
        self.answering = self.waiting = 0
        self.draining = False
        """New requests are refused; those that are here are served."""
        self._cancelled = False
        self._seconds = 1.0
        """Moving mean of an answer's time; what Retry-After is computed from."""
        self._slots = asyncio.Semaphore(parallel)
        self._pool = ThreadPoolExecutor(parallel, "answer")
        self._live: set[Answer] = set()

    @property
    def busy(self) -> int:
        return self.answering + self.waiting

    def check(self) -> None:
        """Raise where a new request has no place."""
        if self.draining:
            raise shutting_down()
        if self.waiting >= self.limit and self._slots.locked():
            retry_s = max(1, math.ceil(self._seconds * (self.waiting + 1) / self.parallel))
            raise ApiError(429, f"{self.answering} answers under way and {self.waiting} waiting: try again later",
                           code="queue_full", retry_s=min(retry_s, 600))  # fmt: skip

    async def enter(self) -> None:
        """Wait for a slot. After this, `answer` must be called: it frees the slot."""
        self.check()
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        if self._cancelled:
            self._slots.release()
            raise shutting_down()
        self.answering += 1

    def answer(self, request: Request) -> Answer:
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        def leave() -> None:
            self._live.discard(answer)
            self.answering -= 1
            self._seconds = 0.8 * self._seconds + 0.2 * (loop.time() - began_s)
            self._slots.release()

        answer = Answer(self.engine, request, loop)
        self._live.add(answer)
        future = self._pool.submit(answer.work)
        future.add_done_callback(lambda _: answer.call(leave))
        return answer

    def cancel(self) -> None:
        """Stop what is under way and send away what waits."""
        self.draining = self._cancelled = True
        for answer in list(self._live):
            answer.cancel()

    def close(self) -> None:
        """Cancel what is still under way and wait for the engine's threads."""
        self.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_s=5)


class Answer:
    """One answer made in a thread of the pool and read from the event loop. The slot is free when the thread ends, not before."""

    def __init__(self, engine: Engine, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._request, self._loop = engine, request, loop
        self._pieces: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        self._lock = Lock()
        self._stream: Stream | None = None
        self._cancelled = self._ended = False

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Run in the event loop; a loop that is gone (a second Ctrl-C) has no reader to tell."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def work(self) -> None:
        try:
            stream = self._engine.submit(self._request)
            with self._lock:
                self._stream = stream
                if self._cancelled:
                    stream.cancel()
            for delta in stream:
                self.call(self._pieces.put_nowait, delta)
            self.call(self._pieces.put_nowait, None)
        except Exception as error:  # any fault of an engine goes to the request that met it
            self.call(self._pieces.put_nowait, error)
        finally:
            with self._lock:
                self._ended = True

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._stream is not None and not self._ended:
                self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece
