"""One thread owns the model; requests and scores from any thread go through its queue.

Source of the scheduling: Yu et al. 2022, "Orca", OSDI (requests join and leave between two tokens). Tensors and
llama.cpp contexts are not thread-safe, so nothing but this thread touches them.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from modelwright.core.errors import UserError
from modelwright.methods.engines import Completion, Delta, Pushed, Request, Rule, Top
from modelwright.methods.engines._text import Pieces, Stops


class Decoder(Protocol):
    """The model as the worker drives it, one token of every row at a time."""

    @property
    def busy(self) -> bool: ...
    def add(self, key: int, request: Request, max_tokens: int, rule: Rule | None) -> None: ...
    def cancel(self, key: int) -> None: ...
    def step(self) -> Sequence[tuple[Any, ...]]:
        """(key, token, log-probability, `stop` or `length` or None, likeliest tokens) of rows under way, of one row in order; and
        how many tokens were proposed and accepted, where some were."""
        ...

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]: ...
    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]: ...
    def close(self) -> None: ...


class Answer(Pushed):
    """A request under way; what `Engine.submit` returns."""

    def __init__(self, worker: Worker, key: int, request: Request, pieces: Pieces, rule: Rule | None, quiet: bool) -> None:
        self.key, self.request, self.rule, self._worker = key, request, rule, worker
        self._pieces, self._stops = pieces, Stops(request.sampling.stop)
        self._quiet = quiet
        """Nobody reads before the end: one delta with everything in it."""
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._top: list[Top] = []
        self._text = ""
        self._sent_s = -math.inf
        self._proposed = self._accepted = 0
        self._out: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()
        self._put: Callable[[Delta | BaseException], None] = self._out.put
        self._ended = threading.Event()
        self._read = False

    def __iter__(self) -> Iterator[Delta]:
        try:
            while not self._read:
                piece = self._out.get()
                self._read = isinstance(piece, BaseException) or piece.finish is not None
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.cancel()

    def listen(self, take: Callable[[Delta | BaseException], None]) -> None:
        def begin() -> None:
            while not self._out.empty():
                take(self._out.get())
            self._put = take

        self._worker.post(begin)

    def cancel(self) -> None:
        if not self._ended.is_set():
            self._worker.post(lambda: self._worker.cancelled(self))

    def completion(self) -> Completion:
        """Wait for the end and put the pieces together."""
        text, tokens, logprobs, top, finish = [], list[int](), list[float](), list[Top](), ""
        proposed = accepted = 0
        for piece in self:
            text.append(piece.text)
            tokens += piece.tokens
            logprobs += piece.logprobs
            top += piece.top
            finish = piece.finish or ""
            proposed, accepted = proposed + piece.proposed, accepted + piece.accepted
        prompt = len(self.request.tokens)
        return Completion(
            "".join(text), tuple(tokens), tuple(logprobs), finish, prompt, tuple(top), proposed=proposed, accepted=accepted
        )

    # below: called by the worker's thread

    def push(self, token: int, logprob: float, finish: str | None, top: Top, proposed: int = 0, accepted: int = 0) -> str | None:
        """Take a token; returns how the answer ended, None while it goes on."""
        self._proposed, self._accepted = self._proposed + proposed, self._accepted + accepted
        self._tokens.append(token)
        if self.request.sampling.logprobs:
            self._logprobs.append(logprob)
        if self.request.sampling.top_logprobs:
            self._top.append(top)
        if self._quiet and not self.request.sampling.stop:
            if finish is not None:
                self._text = self._pieces.whole(self._tokens[:-1] if finish == "stop" else self._tokens)
                self._send(finish)
            return finish
        text = "" if finish == "stop" else self._pieces.push(token)
        if finish is not None:
            text += self._pieces.rest()
        text, met = self._stops.push(text)
        if met:
            finish = "stop"
        elif finish is not None:
            text += self._stops.rest()
        self._text += text
        due = bool(text) and not self._quiet and time.monotonic() - self._sent_s >= self._worker.apart_s
        if finish is not None or due:
            self._send(finish)
        return finish

    def end(self, finish: str) -> None:
        """End without a token: cancelled."""
        if self._quiet and not self.request.sampling.stop:
            self._text = self._pieces.whole(self._tokens)
        self._text += self._stops.push(self._pieces.rest())[0] + self._stops.rest()
        self._send(finish)

    def fail(self, error: BaseException) -> None:
        self._ended.set()
        self._put(error)

    def _send(self, finish: str | None) -> None:
        if finish is not None:
            self._ended.set()
        self._sent_s = time.monotonic()
        told = (self._text, tuple(self._tokens), tuple(self._logprobs), finish, tuple(self._top))
        self._put(Delta(*told, proposed=self._proposed, accepted=self._accepted))
        self._text, self._tokens, self._logprobs, self._top = "", [], [], []
        self._proposed = self._accepted = 0


class Worker:
    """Runs a decoder in its own thread. `make` is called there."""

    def __init__(self, make: Callable[[], Decoder], name: str) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[int, Answer] = {}
        self._keys = 0
        self._lock = threading.Lock()
        self._closed = False
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        """What is done around the telling of a step's tokens."""
        self.apart_s = 0.0
        """Pieces of an answer are told so far apart at least; tokens that come sooner go with the next one."""
        self._decoder: Decoder
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, ready), name=name, daemon=True)
        self._thread.start()
        ready.result()  # an error of `make` is raised here

    def submit(self, request: Request, max_tokens: int, pieces: Pieces, rule: Rule | None = None, quiet: bool = False) -> Answer:
        with self._lock:
            self._keys += 1
            answer = Answer(self, self._keys, request, pieces, rule, quiet)
        self.post(lambda: self._start(answer, max_tokens))
        return answer

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        found: list[list[float]] = self.call(lambda: self._decoder.score(tokens))
        return found

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        found: list[list[float]] = self.call(lambda: self._decoder.embed(tokens))
        return found

    def call(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the thread, between two tokens, and wait for it."""
        done: Future[Any] = Future()

        def task() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self.post(task)
        return done.result()

    def post(self, task: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise UserError("the engine is closed", "its model was put away", "open it again")
            self._inbox.put(task)

    def close(self) -> None:
        """End what is under way as cancelled and put the model away."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._inbox.put(None)
        self._thread.join()

    # below: the thread

    def _run(self, make: Callable[[], Decoder], ready: Future[None]) -> None:
        try:
            self._decoder = make()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while self._tasks():
            if self._live:
                try:
                    self._step()
                except Exception as error:  # the requests fail, each in its caller's thread; the engine lives on
                    for key, answer in self._live.items():
                        self._decoder.cancel(key)
                        answer.fail(error)
                    self._live.clear()
        for answer in self._live.values():
            answer.end("cancelled")
        self._decoder.close()

    def _tasks(self) -> bool:
        """Do what is in the inbox; waits for something where no answer is under way. False: close."""
        while True:
            try:
                task = self._inbox.get(block=not self._live)
            except queue.Empty:
                return True
            if task is None:
                return False
            task()

    def _step(self) -> None:
        steps = self._decoder.step()
        with self.around():
            self._tell(steps)

    def _tell(self, steps: Sequence[tuple[Any, ...]]) -> None:
        for key, token, logprob, finish, top, *counts in steps:
            answer = self._live.get(key)
            if answer is None:
                continue
            try:
                if answer.rule is not None and answer.rule.trouble is not None:
                    raise answer.rule.trouble
                ended = answer.push(token, logprob, finish, top, *counts)
            except Exception as error:  # only this answer fails
                del self._live[key]
                self._decoder.cancel(key)
                answer.fail(error)
                continue
            if ended is not None:
                del self._live[key]
                if finish is None:  # a stop string: the decoder does not know
                    self._decoder.cancel(key)

    def _start(self, answer: Answer, max_tokens: int) -> None:
        try:
            self._decoder.add(answer.key, answer.request, max_tokens, answer.rule)
        except Exception as error:
            answer.fail(error)
        else:
            self._live[answer.key] = answer

    def cancelled(self, answer: Answer) -> None:
        if self._live.pop(answer.key, None) is not None:
            self._decoder.cancel(answer.key)
            answer.end("cancelled")


def room(tokens: Sequence[int], max_tokens: int, context: int) -> int:
    """How many tokens the answer may have; UserError where the prompt leaves room for none."""
    if not len(tokens):
        raise UserError("the prompt is empty", "a model continues at least one token", "give a text or a message")
    if len(tokens) >= context:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, the model's context holds {context}",
            "nothing would be left for an answer",
            "shorten the prompt, or use a model with a longer context",
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}", "an answer has at least one token", "give a positive number")
    return min(max_tokens, context - len(tokens))
