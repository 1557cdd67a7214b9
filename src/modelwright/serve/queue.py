"""The waiting room: so many answers at a time, so many waiting, the rest told to come back; and the way out when we close.

Keys take turns: a free slot goes to the key that has waited longest for one, not to the request that has, so that a key with a
hundred requests does not hold up a key with one (round robin, as in Nagle 1985, RFC 970). Where the room is full and another key
fills most of it, that key's newest request gives its place to one of a key that has less.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import anyio

from modelwright.methods.engines import Delta
from modelwright.serve.errors import ApiError
from modelwright.serve.limits import Client
from modelwright.serve.logs import Record, record
from modelwright.serve.work import Piece, Pieces, Work

Came = Piece | BaseException | None
"""A piece, the fault that ended the work, or its end."""
MOST_PIECES = 1024
"""Pieces that wait for a client that does not read, beyond what the connection's buffers hold; then its answer ends."""


class Queue:
    """Admission, fair between keys. Used from one event loop."""

    def __init__(self, parallel: int, waiting: int, patience_s: float = math.inf) -> None:
        """`parallel` slots, `waiting` places, `patience_s` the longest wait for a slot."""
        self.parallel, self.limit, self.patience_s = parallel, waiting, patience_s
        self.answering = 0
        self.draining = False
        """New requests are refused; those that are here are served."""
        self._cancelled = False
        self._seconds = 1.0
        """Moving mean of an answer's time; what Retry-After is computed from."""
        self._lines: dict[Client, deque[asyncio.Future[None]]] = {}
        """Who waits, the key whose turn is next first."""
        self._coming: set[anyio.CancelScope] = set()
        """Of requests that passed `check` and are made ready."""
        self._pool = ThreadPoolExecutor(parallel, "answer")
        self._live: set[Answer] = set()
        self._arrived: deque[tuple[Answer, Came]] = deque()
        self._called = False
        """The event loop knows that something has arrived."""

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def busy(self) -> int:
        return self.answering + self.waiting + len(self._coming)

    def check(self) -> None:
        """Raise where a new request has no place."""
        if self.draining:
            raise shutting_down()
        self._check_room()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around what is done between `check` and `enter`: it may take as long as a model takes to open. ApiError where the
        request's time is over before, or the server cannot wait for it."""
        left_s = record().deadline_s - time.monotonic()
        with anyio.move_on_after(left_s if left_s < math.inf else None) as scope:
            self._coming.add(scope)
            try:
                yield
            finally:
                self._coming.discard(scope)
        if scope.cancelled_caught:
            raise shutting_down() if self._cancelled else too_late()

    def _check_room(self) -> None:
        client = record().client
        at_once = self.answering < self.parallel and not client.full
        if not at_once and self.waiting >= self.limit and self._greedier(client) is None:
            raise self._full()

    async def enter(self) -> None:
        """Wait for a slot. After this, `answer` must be called: it frees the slot. Whoever was here before a drain began is
        let in."""
        if self._cancelled:
            raise shutting_down()
        self._check_room()
        seen, loop = record(), asyncio.get_running_loop()
        client, began_s, place = seen.client, time.monotonic(), loop.create_future()
        victim = self._greedier(client) if self.waiting >= self.limit else None
        self._lines.setdefault(client, deque()).append(place)
        self._admit()
        if not place.done():
            if victim is not None:
                self._refuse(victim, self._lines[victim][-1], self._full())
            timers = [loop.call_later(seconds, self._refuse, client, place, error)
                      for seconds, error in ((self.patience_s, self._waited()), (seen.deadline_s - began_s, too_late()))
                      if seconds < math.inf]  # fmt: skip
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled() and place.exception() is None:
                    self._leave(client)  # it was its turn just now
                raise
            finally:
                for timer in timers:
                    timer.cancel()
                self._forget(client, place)
        if self._cancelled:
            self._leave(client)
            raise shutting_down()
        seen.queued_s = time.monotonic() - began_s

    def answer(self, work: Work) -> Answer:
        """Begin. It has one slot, however many answers the work makes."""
        seen, loop, began_s = record(), asyncio.get_running_loop(), time.monotonic()

        def ended() -> None:
            self._live.discard(answer)
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began_s)
            self._leave(seen.client)

        answer = Answer(work, seen, ended, lambda came: self._post(loop, answer, came))
        self._live.add(answer)
        if not answer.begin():
            self._pool.submit(answer.work)
        return answer

    def cancel(self) -> None:
        """Stop what is under way and send away what waits."""
        self._stop()
        for scope in self._coming:
            scope.cancel()
        for client, line in list(self._lines.items()):
            for place in list(line):
                self._refuse(client, place, shutting_down())

    def close(self) -> None:
        """Cancel what is still under way and wait for the engine's threads."""
        self._stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _stop(self) -> None:
        self.draining = self._cancelled = True
        for answer in list(self._live):
            answer.cancel()

    def _admit(self) -> None:
        """Give free slots to those whose turn it is."""
        while self.answering < self.parallel:
            client = next((client for client in self._lines if not client.full), None)
            if client is None:
                return
            line = self._lines.pop(client)
            place = line.popleft()
            if line:
                self._lines[client] = line  # and now it is the last
            if not place.done():
                place.set_result(None)
                self.answering += 1
                client.answering += 1

    def _leave(self, client: Client) -> None:
        self.answering -= 1
        client.answering -= 1
        self._admit()

    def _refuse(self, client: Client, place: asyncio.Future[None], error: ApiError) -> None:
        if not place.done():
            place.set_exception(error)
        self._forget(client, place)

    def _forget(self, client: Client, place: asyncio.Future[None]) -> None:
        line = self._lines.get(client, ())
        if place in line:
            self._lines[client].remove(place)
            if not self._lines[client]:
                del self._lines[client]

    def _greedier(self, client: Client) -> Client | None:
        """The key with the most places, where it has two more than this one."""
        most = max(self._lines, key=lambda other: len(self._lines[other]), default=client)
        return most if len(self._lines.get(most, ())) > len(self._lines.get(client, ())) + 1 else None

    def _retry_s(self) -> int:
        return min(max(1, math.ceil(self._seconds * (self.waiting + 1) / self.parallel)), 600)

    def _full(self) -> ApiError:
        return ApiError(429, f"{self.answering} answers under way and {self.waiting} waiting: try again later",
                        code="queue_full", retry_s=self._retry_s())  # fmt: skip

    def _waited(self) -> ApiError:
        return ApiError(429, f"no slot came free in {self.patience_s:g} s: try again later",
                        code="queue_timeout", retry_s=self._retry_s())  # fmt: skip

    def _post(self, loop: asyncio.AbstractEventLoop, answer: Answer, came: Came) -> None:
        """From any thread. One call wakes the loop for all pieces of a step; a loop that is gone (a second Ctrl-C) has no
        reader to tell."""
        self._arrived.append((answer, came))
        if not self._called and not loop.is_closed():
            self._called = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # before the look, so that what comes during it is not left lying
        now_s = time.monotonic()
        while self._arrived:
            answer, came = self._arrived.popleft()
            answer.take(came, now_s)


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_s=5)


def too_late() -> ApiError:
    """Not worth a new try: the time was the client's own, or the server's for every request."""
    return ApiError(504, "the request's time was over before its answer began", code="deadline_exceeded")


def too_slow() -> ApiError:
    return ApiError(408, f"the answer was given up: more than {MOST_PIECES} pieces of it waited to be read", code="slow_reader")


class Answer:
    """What one request asked for, made by the engine's thread and read from the event loop. The slot is free when the engine is
    done with it, not before. Pieces that are there together are read as one, so a server that has fallen behind sends fewer and
    larger chunks."""

    def __init__(self, work: Work, seen: Record, ended: Callable[[], None], post: Callable[[Came], None]) -> None:
        self._work, self._seen, self._ended, self._post = work, seen, ended, post
        self._lock = Lock()
        self._made: Pieces | None = None
        self._cancelled = self._over = False
        self._pieces: list[Piece] = []
        self._fault: BaseException | None = None
        self._shut = self._away = False
        """The reader gets no more pieces than those which wait; it has some and has not come back for others."""
        self._waiter: asyncio.Future[None] | None = None
        self._last_s: dict[int, float] = {}
        """When each of the answers got its newest token."""
        self._spent: dict[int, int] = {}
        """Tokens of each of the answers that were counted against the key's limit."""
        self._finished: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        seen.asked_s = time.monotonic()
        seen.spend(work.prompt_tokens, 0)
        if seen.deadline_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, seen.deadline_s - seen.asked_s), self._expire)

    def begin(self) -> bool:
        """Without a thread, where the engine can be asked without a wait."""
        try:
            made = self._work.begin()
        except Exception as error:  # as in `work`
            self._post(error)
            return True
        if made is not None:
            self._made = made
            made.listen(self._post)
        return made is not None

    def work(self) -> None:
        """In a thread of the pool, until the engine has it, or to the end where the engine cannot call us."""
        try:
            made = self._work.submit()
            with self._lock:
                self._made = made
                if self._cancelled:
                    made.cancel()
            if not made.listen(self._post):
                for piece in made:
                    self._post(piece)
                self._post(None)
        except BaseException as error:  # any fault of an engine goes to the request that met it
            self._post(error)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._made is not None and not self._over:
                self._made.cancel()

    # below: in the event loop

    def take(self, came: Came, now_s: float) -> None:
        if isinstance(came, Piece):
            self._count(came, now_s)
            if not self._shut:
                self._pieces.append(came)
                if self._away and len(self._pieces) > MOST_PIECES:
                    self._close(too_slow())
        elif not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            if not self._shut:
                self._close(came)
            self._ended()
        self._wake()

    def _count(self, piece: Piece, now_s: float) -> None:
        seen, count, index, usage = self._seen, piece.tokens, piece.index, piece.delta.usage
        elsewhere = not self._work.prompt_tokens
        if elsewhere and piece.delta.text:  # the engine's own server counts, at the end: until then a piece is about a token
            count = count or 1
        if count:
            if index in self._last_s:
                seen.gaps_s += [(now_s - self._last_s[index]) / count] * count
            elif math.isnan(seen.first_s):
                seen.first_s = now_s
            self._last_s[index] = seen.last_s = now_s
            seen.spend(0, count)
            self._spent[index] = self._spent.get(index, 0) + count
        if usage is not None and elsewhere:
            seen.spend(usage.prompt_tokens, usage.answer_tokens - self._spent.get(index, 0))
        if piece.delta.finish is not None and not self._shut:
            seen.finish = piece.delta.finish
            self._finished.add(index)

    def _close(self, fault: BaseException | None) -> None:
        self._shut, self._fault = True, fault
        self.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _expire(self) -> None:
        """The request's time is over: what there is of the answers is the answer, cut as by a limit on its length."""
        if self._shut:
            return
        self._pieces += [Piece(index, Delta("", finish="length")) for index in self._last_s if index not in self._finished]
        self._seen.finish = "length" if self._last_s else ""
        self._close(None if self._last_s else too_late())
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while self._pieces or not self._shut:
            if self._pieces:
                pieces, self._pieces, self._away = self._pieces, [], True
                for piece in pieces if len(pieces) == 1 or pieces[0].found is not None else _joined(pieces):
                    yield piece
                self._away = False
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        if self._fault is not None:
            raise self._fault


def _joined(pieces: list[Piece]) -> list[Piece]:
    """What was found, then one piece of each answer."""
    parts: dict[int, list[Delta]] = {}
    for piece in pieces:
        if piece.found is None:
            parts.setdefault(piece.index, []).append(piece.delta)
    found = [piece for piece in pieces if piece.found is not None]
    return found + [Piece(index, _one(deltas)) for index, deltas in parts.items()]


def _one(deltas: list[Delta]) -> Delta:
    return deltas[-1]._replace(
        text="".join(delta.text for delta in deltas),
        tokens=tuple(token for delta in deltas for token in delta.tokens),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        top=tuple(top for delta in deltas for top in delta.top),
    )
