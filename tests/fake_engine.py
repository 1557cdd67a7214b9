"""An engine without a model, for tests of what stands over engines: a token is a byte, an answer repeats the question."""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.engines import Completion, Constraint, Delta, Request

HALF = math.log(0.5)


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
        answer = self._answer(asked)
        if sampling.temperature > 0:
            answer += f" {random.Random(sampling.seed).randrange(10**6)}"
        if "SLOW" in asked or "HELD" in asked:
            answer = "tick " * 1000
        met = min((place for stop in sampling.stop if (place := answer.find(stop)) >= 0), default=len(answer))
        behind = answer[met:][:1]  # the first byte of a stop string is a token, but no text
        answer = answer[:met]
        finish = "length" if len(answer.encode()) > sampling.max_tokens else "stop"
        data = answer.encode()[: sampling.max_tokens]
        pause_s = 0.01 if "SLOW" in asked else 0.0
        held = b""
        for index, byte in enumerate(data):
            if (pause_s and self.cancelled.wait(pause_s)) or ("HELD" in asked and index == 3 and not self._let_go()):
                yield Delta("", finish="cancelled")
                return
            if "BOOM" in asked and index == 3:
                raise RuntimeError("boom, later")
            held += bytes([byte])
            text = held.decode(errors="ignore")  # a character of several bytes comes when it is whole
            held = b"" if text else held
            yield Delta(text, (byte,), (HALF,), top=self._top(byte))
        end = tuple(behind.encode()[:1]) if finish == "stop" and len(behind.encode()) == 1 else ()
        top = self._top(end[0]) if end else ()
        yield Delta(held.decode(errors="replace") if held else "", end, (HALF,) * len(end), finish, top)

    def _let_go(self) -> bool:
        """Waits for the engine's gate; False: it was cancelled before."""
        while not self.engine.gate.exists():
            if self.cancelled.wait(0.01):
                return False
        return True

    def _answer(self, asked: str) -> str:
        if self.request.constraint is not None:
            return held_to(self.request.constraint)
        if "<tool>" in asked:
            return f"it says {asked.rpartition('<tool>')[2]}"
        if asked.startswith("CALL "):  # names of tools to call
            calls = [json.dumps({"name": name, "arguments": {"place": "Oslo"}}) for name in asked.split()[1:]]
            return "Let me look.\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        return f"as {self.request.adapter}: {asked}" if self.request.adapter else f"you said: {asked}"

    def _top(self, byte: int) -> Any:
        count = self.request.sampling.top_logprobs
        return (tuple(((byte + at) % 256, HALF * (at + 1)) for at in range(count)),) if count else ()


def held_to(constraint: Constraint) -> str:
    """An answer that keeps to it; of patterns and grammars, that there is one."""
    if constraint.kind == "choices":
        return str(json.loads(constraint.text)[0])
    if (call := re.search(r"body: %json (.*)", constraint.text)) is not None:
        return f"<tool_call>\n{json.dumps(instance(root := json.loads(call[1]), root))}\n</tool_call>"
    return json.dumps(instance(root := json.loads(constraint.text), root)) if constraint.kind == "json_schema" else "held"


def instance(schema: Any, root: Any) -> Any:
    """The shortest value that a simple JSON schema allows."""
    if not isinstance(schema, dict):
        return None
    if isinstance(ref := schema.get("$ref"), str):
        found = root
        for part in ref.split("/")[1:]:
            found = found[part]
        return instance(found, root)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return instance(schema[name][0], root)
    if "const" in schema or schema.get("enum"):
        return schema["const"] if "const" in schema else schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: instance(part, root) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        return [instance(schema.get("items"), root)] * schema.get("minItems", 0)
    return {"string": "", "integer": 0, "number": 0.5, "boolean": True}.get(str(kind))


class FakeEngine:
    capabilities = frozenset({"score", "logprobs", "chat", "seed", "rules", "constrain", "embed", "adapters"})
    context = 2000
    vocabulary = 256

    def __init__(self, gate: Path = Path("never")) -> None:
        self.gate = gate
        """Answers to HELD go on after their third byte when this file is there."""
        self.lock = threading.Lock()
        self.active = self.most_active = 0
        self.closed = False
        self.last: Request | None = None
        self.adapters: dict[str, Path] = {}

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return [bytes([token]) for token in tokens]

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        if any("REFUSE" in message["content"] for message in messages):
            raise UserError("the template refuses this chat", fix="ask something else")
        offered = f"<tools>{json.dumps(list(tools))}" if tools else ""
        return self.encode(offered + "".join(self._turn(message) for message in messages) + "<assistant>")

    def _turn(self, message: Message) -> str:
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls") or ()]
        return f"<{message['role']}>{message['content']}" + "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)

    def asked(self, tokens: Sequence[int]) -> str:
        text = self.decode(tokens)
        return text.removesuffix("<assistant>").rpartition("<user>")[2] if text.endswith("<assistant>") else text

    def submit(self, request: Request) -> FakeStream:
        self.last = request
        assert not request.adapter or request.adapter in self.adapters
        return FakeStream(self, request)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        found = []
        for request in requests:
            pieces = list(self.submit(request))
            tokens, logprobs, top = (
                tuple(one for piece in pieces for one in part(piece))
                for part in (lambda piece: piece.tokens, lambda piece: piece.logprobs, lambda piece: piece.top)
            )
            text = "".join(piece.text for piece in pieces)
            found.append(Completion(text, tokens, logprobs, pieces[-1].finish or "", len(request.tokens), top))
        return found

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from self.generate(requests)

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[HALF] * (len(sequence) - 1) for sequence in tokens]

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """How often each of eight kinds of byte comes."""
        return [[float(sum(token % 8 == kind for token in sequence)) for kind in range(8)] for sequence in tokens]

    def load_adapter(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"there is no adapter at {folder}", fix="name a folder")
        self.adapters[name] = folder

    def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

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
