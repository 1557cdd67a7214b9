"""An engine without a model, for tests of what stands over engines: a token is a byte, an answer repeats the question."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.engines import Completion, Delta, Request


class FakeStream:
    def __init__(self, engine: FakeEngine, request: Request) -> None:
        self.engine, self.request = engine, request
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def __iter__(self) -> Iterator[Delta]:
        with self.engine.lock:
            self.engine.active += 1
            self.engine.most_active = max(self.engine.most_active, self.engine.active)
        try:
            yield from self._pieces()
        finally:
            with self.engine.lock:
                self.engine.active -= 1

    def _pieces(self) -> Iterator[Delta]:
        sampling, asked = self.request.sampling, self.engine.asked(self.request.tokens)
        if "BOOM" in asked and "LATER" not in asked:
            raise RuntimeError("boom")
        answer = f"you said: {asked}"
        if sampling.temperature > 0:
            answer += f" {random.Random(sampling.seed).randrange(10**6)}"
        if "SLOW" in asked:
            answer = "tick " * 1000
        for stop in sampling.stop:
            answer = answer.partition(stop)[0]
        finish = "length" if len(answer.encode()) > sampling.max_tokens else "stop"
        data = answer.encode()[: sampling.max_tokens]
        pause_s = 0.01 if "SLOW" in asked else 0.0
        held = b""
        for index, byte in enumerate(data):
            if pause_s and self.cancelled.wait(pause_s):
                yield Delta("", finish="cancelled")
                return
            if "BOOM" in asked and index == 3:
                raise RuntimeError("boom, later")
            held += bytes([byte])
            text = held.decode(errors="ignore")  # a character of several bytes comes when it is whole
            held = b"" if text else held
            yield Delta(text, (byte,), (math.log(0.5),))
        yield Delta(held.decode(errors="replace") if held else "", finish=finish)


class FakeEngine:
    capabilities = frozenset({"score", "logprobs", "chat", "seed"})
    context = 2000

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.active = self.most_active = 0
        self.closed = False
        self.last: Request | None = None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def render(self, messages: Sequence[Message]) -> list[int]:
        if any("REFUSE" in message["content"] for message in messages):
            raise UserError("the template refuses this chat", fix="ask something else")
        return self.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")

    def asked(self, tokens: Sequence[int]) -> str:
        text = self.decode(tokens)
        return text.removesuffix("<assistant>").rpartition("<user>")[2] if text.endswith("<assistant>") else text

    def submit(self, request: Request) -> FakeStream:
        self.last = request
        return FakeStream(self, request)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise NotImplementedError

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError

    @contextmanager
    def opened(self) -> Iterator[FakeEngine]:
        """As `open_engine` gives it."""
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        self.closed = True


def wait_until(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
