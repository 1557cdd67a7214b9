"""What we answer: one answer as it comes in, and the bodies and stream chunks of OpenAI's two completion endpoints.

Sources: https://platform.openai.com/docs/api-reference/chat/object, .../chat/streaming and .../completions/object.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from modelwright.methods.engines import Delta, Engine, Top, Usage
from modelwright.serve.errors import ApiError
from modelwright.serve.tools import Called, Parser
from modelwright.serve.work import Echo, Piece, Work

Learn = Callable[[Sequence[Piece]], None]
"""Looks up in the engine what a form will tell of these pieces. In a thread: the engine may be busy, or in another process."""


class Form(Protocol):
    """How an answer looks on the wire. It takes the pieces in the order in which they came."""

    id: str
    learn: Learn | None
    """None: there is nothing to look up."""

    def begin(self) -> list[bytes]:
        """Of a stream, before the first piece."""
        ...

    def push(self, piece: Piece) -> list[bytes]: ...
    def end(self) -> list[bytes]: ...
    def fault(self, error: ApiError) -> bytes:
        """When the stream is under way."""
        ...

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def said(self) -> tuple[str, str]:
        """The first answer's text so far, and how it ended, `cancelled` where it has not."""
        ...


class Job(NamedTuple):
    """A request that passed every check, ready for the engine."""

    work: Work
    form: Form
    stream: bool
    told: Callable[[str, str], None] | None = None
    """Gets the answer's text, as far as the client got it, and how it ended."""


class Cancelled(RuntimeError):
    """The engine gave an answer up."""


class Said(NamedTuple):
    """What a piece of an answer says."""

    text: str
    calls: list[Called]
    finish: str | None


class Choice:
    """One answer as it comes: its text, the calls of tools in it, its counts."""

    def __init__(self, chat: bool, parser: Parser | None = None) -> None:
        self._lead, self._parser = chat, parser
        self.text: list[str] = []
        self.calls: list[Called] = []
        self.tokens: list[int] = []
        self.finish: str | None = None
        """`stop`, `length` or `tool_calls`; None while it goes on, and where the request's time ended it before it began."""
        self._counted: Usage | None = None

    def push(self, delta: Delta) -> Said:
        text, calls = delta.text, list[Called]()
        if self._lead and text:  # a chat's answer loses the one space that some templates set before it
            text, self._lead = text.removeprefix(" "), False
        self.tokens += delta.tokens
        self._counted = delta.usage or self._counted
        if self._parser is not None:
            text, calls = self._parser.push(text)
            if delta.finish is not None:
                more, late = self._parser.rest()
                text, calls = text + more, calls + late
        self.text.append(text)
        self.calls += calls
        if delta.finish is not None:
            reason = _finish(delta)
            self.finish = "tool_calls" if self.calls and reason == "stop" else reason
        return Said(text, calls, self.finish)

    def said(self) -> str:
        return "".join(self.text)

    def usage(self, prompt_tokens: int) -> Usage:
        """What was counted, by us or by the engine's own server."""
        return self._counted or Usage(prompt_tokens, len(self.tokens))


def _finish(delta: Delta) -> str:
    if delta.finish == "cancelled":
        raise Cancelled("the engine cancelled the answer")
    if delta.finish not in ("stop", "length"):
        raise RuntimeError(f"the engine ended an answer with {delta.finish!r}")
    return delta.finish


class Words:
    """Tokens as bytes and as text, each looked up once."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._known = engine, dict[int, bytes]()

    def learn(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            tokens = [*piece.delta.tokens, *(token for top in piece.delta.top for token, _ in top)]
            if isinstance(piece.found, Echo):
                tokens += [*piece.found.tokens, *(token for top in piece.found.tops for token, _ in top)]
            if new := sorted(set(tokens) - self._known.keys()):
                self._known |= zip(new, self._engine.spell(new), strict=True)

    def __call__(self, token: int) -> str:
        """Text; a token that is part of a character has none of its own."""
        return self._known[token].decode("utf-8", "replace")

    def spelt(self, token: int) -> list[int]:
        return list(self._known[token])


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


class Told(NamedTuple):
    """What an answer of OpenAI's two endpoints tells beside its text."""

    model: str
    prompt_tokens: int
    usage: bool
    """Send the token counts at the end of a stream."""
    likeliest: int | None
    """Tokens to tell in each place beside the drawn one; None: no log-probabilities at all."""


class Openai:
    """What chats and completions have in common."""

    kind = chunk_kind = prefix = ""

    def __init__(self, told: Told, engine: Engine, choices: Sequence[Choice]) -> None:
        self.told, self.choices, self._words = told, choices, Words(engine)
        self.id, self._created = new_id(self.prefix), int(time.time())
        self.learn: Learn | None = None if told.likeliest is None else self._words.learn

    def begin(self) -> list[bytes]:
        return []

    def end(self) -> list[bytes]:
        return [*([self._event([], {"usage": self._usage()})] if self.told.usage else []), DONE]

    def fault(self, error: ApiError) -> bytes:
        return event(error.body())

    def said(self) -> tuple[str, str]:
        return self.choices[0].said(), self.choices[0].finish or "cancelled"

    def _usage(self) -> dict[str, int]:
        counts = [choice.usage(0) for choice in self.choices]
        prompt = self.told.prompt_tokens or sum(count.prompt_tokens for count in counts)
        completion = sum(count.answer_tokens for count in counts)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self.told.model}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        more = more or ({"usage": None} if self.told.usage else {})
        return event(self._base(self.chunk_kind) | {"choices": choices} | more)

    def _answer(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._base(self.kind) | {"choices": choices, "usage": self._usage()}


class ChatForm(Openai):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def begin(self) -> list[bytes]:
        head = {"role": "assistant", "content": ""}
        return [self._event([_choice(index, {"delta": head}, None, None)]) for index in range(len(self.choices))]

    def push(self, piece: Piece) -> list[bytes]:
        choice, delta = self.choices[piece.index], piece.delta
        begun = len(choice.calls)
        said = choice.push(delta)
        probs = self._logprobs([delta]) if delta.tokens else None
        events = []
        if said.calls:
            calls = [{"index": begun + at, **call_body(call)} for at, call in enumerate(said.calls)]
            events.append(self._event([_choice(piece.index, {"delta": {"tool_calls": calls}}, None, None)]))
        if said.text or said.finish or probs:
            body = {"content": said.text} if said.text or not said.finish else {}
            events.append(self._event([_choice(piece.index, {"delta": body}, said.finish, probs)]))
        return events

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        for piece in pieces:
            self.choices[piece.index].push(piece.delta)
        found = []
        for index, choice in enumerate(self.choices):
            message: dict[str, Any] = {"role": "assistant", "content": choice.said(), "refusal": None}
            if choice.calls:
                message["content"] = message["content"] or None
                message["tool_calls"] = [call_body(call) for call in choice.calls]
            probs = self._logprobs([piece.delta for piece in pieces if piece.index == index])
            found.append(_choice(index, {"message": message}, choice.finish or "length", probs))
        return self._answer(found)

    def _logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any] | None:
        if self.told.likeliest is None:
            return None
        return {"content": token_bodies(self._words, deltas), "refusal": None}


def token_bodies(words: Words, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """Each token with its log-probability and the likeliest in its place."""
    return [
        _token(words, token, value) | {"top_logprobs": [_token(words, other, found) for other, found in top]}
        for delta in deltas
        for token, value, top in _places(delta)
    ]


def _token(words: Words, token: int, value: float) -> dict[str, Any]:
    return {"token": words(token), "logprob": _sound(value), "bytes": words.spelt(token)}


def _sound(value: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what has no probability."""
    return max(value, -9999.0)


def _places(delta: Delta) -> list[tuple[int, float, Top]]:
    tops: Sequence[Top] = delta.top or [()] * len(delta.tokens)
    return list(zip(delta.tokens, delta.logprobs, tops, strict=True))


def call_body(call: Called) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class TextForm(Openai):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, told: Told, engine: Engine, choices: Sequence[Choice]) -> None:
        super().__init__(told, engine, choices)
        self._offsets = [0] * len(choices)

    def push(self, piece: Piece) -> list[bytes]:
        if isinstance(piece.found, Echo):
            return [self._event([self._echo(piece)])]
        said = self.choices[piece.index].push(piece.delta)
        probs = self._logprobs(piece.index, [piece.delta]) if piece.delta.tokens else None
        if not (said.text or said.finish or probs):
            return []
        return [self._event([_choice(piece.index, {"text": said.text}, said.finish, probs)])]

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        found = []
        for index, choice in enumerate(self.choices):
            own = [piece for piece in pieces if piece.index == index]
            head = self._echo(own.pop(0)) if own and isinstance(own[0].found, Echo) else None
            for piece in own:
                choice.push(piece.delta)
            probs = self._logprobs(index, [piece.delta for piece in own])
            if head is not None and head["logprobs"] is not None and probs is not None:
                probs = {name: None if values is None else [*head["logprobs"][name], *values] for name, values in probs.items()}
            text = (head["text"] if head else "") + choice.said()
            found.append(_choice(index, {"text": text}, choice.finish or "length", probs))
        return self._answer(found)

    def _echo(self, piece: Piece) -> dict[str, Any]:
        """The prompt as the first piece of an answer. Its first token has no log-probability: null."""
        echo: Echo = piece.found
        probs = None
        if self.told.likeliest is not None:
            rest = self._logprobs(piece.index, [Delta("", tuple(echo.tokens[1:]), tuple(echo.scores), None, tuple(echo.tops))],
                                  len(first := self._words(echo.tokens[0])))  # fmt: skip
            assert rest is not None
            head = {"tokens": [first], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
            probs = {name: None if values is None else head[name] + values for name, values in rest.items()}
        self._offsets[piece.index] = len(echo.text)
        return _choice(piece.index, {"text": echo.text}, None, probs)

    def _logprobs(self, index: int, deltas: Sequence[Delta], start: int | None = None) -> dict[str, Any] | None:
        if self.told.likeliest is None:
            return None
        offset = self._offsets[index] if start is None else start
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for delta in deltas:
            for token, value, top in _places(delta):
                text = self._words(token)
                likely: dict[str, float] = {}
                for other, logprob in top:  # of tokens that look the same, the likeliest
                    likely.setdefault(self._words(other), value if other == token else _sound(logprob))
                found["tokens"].append(text)
                found["token_logprobs"].append(_sound(value))
                found["top_logprobs"].append(likely)
                found["text_offset"].append(offset)
                offset += len(text)
        self._offsets[index] = offset
        return found if self.told.likeliest else found | {"top_logprobs": None}


def _choice(index: int, body: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": index, "finish_reason": finish, "logprobs": logprobs, **body}


def event(body: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    data = b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
    return f"event: {name}\n".encode() + data if name else data


DONE = b"data: [DONE]\n\n"
