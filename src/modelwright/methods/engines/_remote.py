"""An engine that asks a server over OpenAI's API: what all such kinds share. Chats go as messages, the template is the server's.

Source: https://platform.openai.com/docs/api-reference (chat, completions, models, streaming).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.core.spec import Runtime
from modelwright.methods.engines import ENGINES, Completion, Delta, EngineSpec, Request, Top, Unavailable, Usage
from modelwright.methods.engines._cache import Cache
from modelwright.methods.engines._http import Call, Cancelled, Client, Server
from modelwright.methods.engines._pace import Pace
from modelwright.methods.engines._providers import Provider, constrained, fields

log = logging.getLogger("modelwright.engines")
CONTEXT = 8192
"""Where neither the user nor the server says: half of it is the longest answer of the oldest models on offer."""
CHARS_A_TOKEN = 4
"""Of English text, for what a request will count against a limit; the answer corrects it."""
_ROOM_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window")
"""Under which servers tell a model's context in their list of models: vLLM and SGLang, OpenRouter, Mistral, Groq."""


class RemoteSpec(EngineSpec):
    """Settings of every engine that asks a server."""

    extra: ClassVar[str] = "remote"
    local: ClassVar[bool] = False
    lacks: ClassVar[Mapping[str, str]] = {
        "score": "OpenAI's API tells no probabilities of a text that is given: take `engine: native` or `llamacpp`",
        "branch": "the server keeps its memory to itself: take `engine: native`",
        "rules": "the server chooses the tokens: take `engine: native` or `llamacpp`",
    }

    context: int = Field(0, ge=0, examples=[4096])
    """Tokens that prompt and answer may have together; 0: what the server says, else 8192. Half of it is the longest answer where
    nobody asks for another."""
    logprobs: bool = False
    """Ask for the log-probability of every token of an answer; the answer takes longer to send."""
    timeout_s: Annotated[float, Runtime] = Field(120.0, gt=0, examples=[5.0])
    """Longest silence of the server, in seconds. Default: a fifth of OpenAI's own client's, more than the first token of a long
    prompt takes."""
    parallel: Annotated[int, Runtime] = Field(8, ge=1, le=1024, examples=[2])
    """Requests under way at once. More: faster until the server's limits answer 429."""


class NamedSpec(RemoteSpec):
    """Of engines whose server somebody else runs, so that a model is a name there."""

    model: str = Field("", examples=["small-chat"])
    """The model's name on the server; unset: the only one that it has."""
    images: bool = Field(False, examples=[True])
    """The model looks at images: those of a chat are sent to its server as they come. Else a chat with one is refused here."""
    retries: Annotated[int, Runtime] = Field(5, ge=0, examples=[1])
    """Times that a request is sent again after 408, 409, 425, 429, 5xx or a broken connection, each after a longer wait."""

    def accepts(self, model: Path) -> str | None:
        if not model.exists() or (is_card(model) and read_card(model) == self):
            return None
        return "it asks a server and opens no files; name a .json file with its settings, or the model as `provider:model`"


def is_card(path: Path) -> bool:
    return path.suffix == ".json" and path.is_file()


def read_card(path: Path) -> EngineSpec:
    """The engine that a .json file describes (`{"kind": "openai", "model": …}`), for where a model is named by a path."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        kind = tree["kind"]
        spec = ENGINES.load(kind).model_validate(tree)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path.name} describes no engine", str(error), 'it holds {"kind": "openai", "model": …}') from None
    if not isinstance(spec, EngineSpec) or spec.local:
        raise UserError(f"{path.name} describes the engine {kind}, which opens files", fix="name the model's folder instead")
    return spec


class Prices(NamedTuple):
    """In dollars for a million tokens."""

    prompt: float = 0.0
    answer: float = 0.0


class Spent(NamedTuple):
    """What an engine has asked for since it was opened."""

    requests: int = 0
    cached: int = 0
    """Answers that the disk had; they cost nothing and are in no other number."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    usd: float = 0.0
    uncounted: int = 0
    """Answers whose tokens the server did not tell."""
    filtered: int = 0
    """Answers that the server's filter ended; they count as whole."""

    def __str__(self) -> str:
        text = f"{self.requests} requests, {self.prompt_tokens} tokens of prompts and {self.answer_tokens} of answers"
        text += f", {self.usd:.4f} dollars" if self.usd else ""
        text += f", {self.cached} more from the cache" if self.cached else ""
        text += f"; {self.uncounted} answers came without a count" if self.uncounted else ""
        return text + (f"; the server's filter cut {self.filtered} answers" if self.filtered else "")


class Remote:
    """See `modelwright.methods.engines.Engine`. Nothing is loaded, so there is little to close."""

    vocabulary = 0

    def __init__(
        self,
        spec: RemoteSpec,
        provider: Provider,
        server: Server,
        model: str,
        pace: Pace | None = None,
        prices: Prices | None = None,
        cache: Cache | None = None,
        chat: bool = True,
        images: bool = False,
    ) -> None:
        self._spec, self._provider, self._server, self._cache = spec, provider, server, cache
        self._prices = prices or Prices()
        if spec.logprobs and "logprobs" not in provider.takes:
            raise UserError(f"{provider.name} gives no log-probabilities", fix="leave `logprobs` out, or take another engine")
        self._client = Client(server, pace)
        self._lock = threading.Lock()
        self._spent = Spent()
        self._ids: dict[tuple[str, bytes], int] = {}
        self._tokens: list[tuple[str, bytes]] = []
        """As the server tells them: a text, and bytes, which half a character alone has."""
        self._calls: set[Call] = set()
        self._closed = False
        try:
            self.model, self.context = self._found(model, spec.context)
        except BaseException:
            self._client.close()
            raise
        able = {"messages", *(["chat"] if chat else []), *(["seed"] if "seed" in provider.takes else [])}
        able |= {"images"} if images else set()
        able |= ({"logprobs"} if spec.logprobs else set()) | ({"constrain"} if provider.constraints else set())
        self.capabilities: frozenset[str] = frozenset(able)

    @property
    def usage(self) -> Spent:
        """So far."""
        return self._spent

    def encode(self, text: str) -> list[int]:
        raise self._no_tokens()

    def decode(self, tokens: Sequence[int]) -> str:
        """Of tokens that came with answers; their numbers are this engine's own."""
        return b"".join(self.spell(tokens)).decode("utf-8", "replace")

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """As the server told them; of half a character, where it told none, those of the text in its place."""
        return [self._tokens[token][1] for token in tokens]

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        raise self._no_tokens()

    def submit(self, request: Request) -> RemoteStream:
        """The server is asked when the stream is first read, in the reader's thread."""
        return RemoteStream(self, *self._body(request))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return list(self.answers(requests))

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        asked = [self._body(request) for request in requests]  # all are looked at before the first costs anything
        calls = [Call() for _ in asked]
        with ThreadPoolExecutor(self._spec.parallel, "remote-engine") as pool:
            try:
                done = [pool.submit(self._whole, *one, call) for one, call in zip(asked, calls, strict=True)]
                for future in done:
                    yield future.result()
            except BaseException:
                for call in calls:
                    call.cancel()
                raise

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        raise UserError(f"{self._provider.name} tells no probabilities of a text", fix=RemoteSpec.lacks["score"])

    def close(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, set()
            again, self._closed = self._closed, True
        for call in calls:
            call.cancel()
        self._client.close()
        if not again and (self._spent.requests or self._spent.cached):
            log.warning("%s %s: %s", self._provider.name, self.model, self._spent)

    # below: the request

    def _found(self, name: str, context: int) -> tuple[str, int]:
        """Both, asked of the server where they are not given; one of our own also says whether it is there."""
        if name and (context or self._server.key_env):
            return name, context or CONTEXT
        models = {str(entry["id"]): entry for entry in self._client.models()}
        if name not in models and f"{name}:latest" in models:
            name = f"{name}:latest"  # Ollama's own rule
        if not name and len(models) == 1:
            name = next(iter(models))
        if not name or (models and name not in models):
            raise self._client.unknown(name)
        told = next((models[name][key] for key in _ROOM_KEYS if models.get(name, {}).get(key)), CONTEXT)
        return name, context or int(told)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Where it goes, and what is sent."""
        if request.adapter:
            raise UserError(f"{self._provider.name} takes no adapters from here", fix="name the adapted model in `model`")
        if request.speculate is not None:
            raise UserError(
                f"{self._provider.name} is told no way to guess ahead", fix="leave `speculate` out; servers have their own"
            )
        if bool(request.messages) == bool(request.text) or len(request.tokens):
            raise UserError("a server is asked with messages or with a text", "it has its own tokens", "see `request_of`")
        if request.messages and "chat" not in self.capabilities:
            raise UserError(f"{self.model} has no chat template", fix="ask it to continue a text")
        if "images" not in self.capabilities and any(isinstance(message["content"], list) for message in request.messages):
            raise UserError(f"{self.model} is not known to look at images", fix="say `images: true` in the engine's settings")
        path = "/chat/completions" if request.messages else "/completions"
        body = {"model": self.model, **fields(self._provider, request.sampling, self._spec.logprobs)}
        body |= {"messages": list(request.messages)} if request.messages else {"prompt": request.text}
        if request.constraint is not None:
            body |= constrained(self._provider, request.constraint)
        if request.text and "logprobs" in body:
            body["logprobs"] = max(1, body.pop("top_logprobs", 0))  # the older endpoint takes a number
        return path, {**body, **self._provider.more}

    def expected(self, body: Mapping[str, Any]) -> int:
        """Tokens that a request may cost."""
        chars = len(json.dumps(body.get("messages") or body["prompt"], ensure_ascii=False))
        return chars // CHARS_A_TOKEN + int(body[self._provider.takes["max_tokens"]])

    def stream(self, path: str, body: dict[str, Any], call: Call) -> Iterator[Delta]:
        """Pieces as they come; the last one says how it ended."""
        if (kept := self.kept(path, body)) is not None:
            yield kept
            return
        with self._lock:
            self._calls.add(call)
        expected = self.expected(body)
        pieces, usage, finish, asked = list[Delta](), None, "", False
        try:
            for event in self._client.stream(path, {**body, "stream": True, **self._provider.streamed}, call, expected):
                asked = True
                usage = _usage(event) or usage
                for choice in event.get("choices") or ():
                    piece = self._piece(choice, choice.get("delta") or {})
                    finish = choice.get("finish_reason") or finish
                    if piece.text or piece.tokens:
                        pieces.append(piece)
                        yield piece
        except BaseException:
            if asked:
                self._count("", usage, expected)  # what was begun is paid for
            raise
        finally:
            with self._lock:
                self._calls.discard(call)
        self._count(finish, usage, expected)
        if not finish:
            raise Unavailable(
                f"the answer of {self._provider.name} broke off", "its stream ended before it said how", "ask again"
            )
        last = Delta("", finish=_FINISH.get(finish, "stop"), usage=usage)
        self.keep(path, body, [*pieces, last])
        yield last

    def _whole(self, path: str, body: dict[str, Any], call: Call) -> Completion:
        if (kept := self.kept(path, body)) is not None:
            return _completion(kept)
        expected = self.expected(body)
        with self._lock:
            self._calls.add(call)
        try:
            tree = self._client.post(path, body, call, expected)
        except Cancelled:
            return Completion("", (), (), "cancelled", 0)
        finally:
            with self._lock:
                self._calls.discard(call)
        choices = tree.get("choices")
        if not choices:
            raise Unavailable(f"{self._provider.name} gave no answer", str(tree)[:200], "ask again")
        finish, usage = choices[0].get("finish_reason") or "stop", _usage(tree)
        self._count(finish, usage, expected)
        piece = self._piece(choices[0], choices[0].get("message") or {})
        piece = piece._replace(finish=_FINISH.get(finish, "stop"), usage=usage)
        self.keep(path, body, [piece])
        return _completion(piece)

    def _piece(self, choice: Mapping[str, Any], said: Mapping[str, Any]) -> Delta:
        text = str(said.get("content") or choice.get("text") or "")
        told = choice.get("logprobs") or {}
        if entries := told.get("content"):
            top = tuple(tuple((self._of(t), t["logprob"]) for t in e.get("top_logprobs") or ()) for e in entries)
            tokens = tuple(self._of(entry) for entry in entries)
            return Delta(text, tokens, tuple(float(entry["logprob"]) for entry in entries), None, top if any(top) else ())
        if tokens := tuple(self._id(token) for token in told.get("tokens") or ()):
            places = told.get("top_logprobs") or ()
            likeliest: tuple[Top, ...] = tuple(tuple((self._id(t), value) for t, value in (p or {}).items()) for p in places)
            return Delta(text, tokens, tuple(map(float, told["token_logprobs"])), None, likeliest)
        return Delta(text)

    def _of(self, entry: Mapping[str, Any]) -> int:
        return self._id(entry["token"], entry.get("bytes"))

    def _id(self, text: str, spelt: Sequence[int] | None = None) -> int:
        token = text, bytes(spelt) if spelt else text.encode("utf-8", "replace")
        with self._lock:
            if token not in self._ids:
                self._ids[token] = len(self._tokens)
                self._tokens.append(token)
            return self._ids[token]

    def _told(self, token: int) -> str | list[Any]:
        """As the cache keeps it."""
        text, spelt = self._tokens[token]
        return text if spelt == text.encode("utf-8", "replace") else [text, list(spelt)]

    def _id_of(self, token: str | list[Any]) -> int:
        return self._id(token) if isinstance(token, str) else self._id(*token)

    def _count(self, finish: str, usage: Usage | None, expected: int) -> None:
        prompt, answer = usage or (0, 0)
        if usage is not None:
            self._client.settle(expected, prompt + answer)
        usd = (prompt * self._prices.prompt + answer * self._prices.answer) / 1e6
        with self._lock:
            was = self._spent
            self._spent = Spent(
                was.requests + 1,
                was.cached,
                was.prompt_tokens + prompt,
                was.answer_tokens + answer,
                was.usd + usd,
                was.uncounted + (usage is None),
                was.filtered + (finish == "content_filter"),
            )

    # below: the cache

    def kept(self, path: str, body: Mapping[str, Any]) -> Delta | None:
        """The answer from the disk, where the same question has only one."""
        if self._cache is None or not self._repeats(body):
            return None
        found = self._cache.get([self._server.url, path, body])
        if found is None:
            return None
        with self._lock:
            self._spent = self._spent._replace(cached=self._spent.cached + 1)
        tokens = tuple(self._id_of(token) for token in found["tokens"])
        top = tuple(tuple((self._id_of(token), value) for token, value in place) for place in found["top"])
        return Delta(found["text"], tokens, tuple(found["logprobs"]), found["finish"], top, Usage(*found["usage"]))

    def keep(self, path: str, body: Mapping[str, Any], pieces: Sequence[Delta]) -> None:
        usage = pieces[-1].usage
        if self._cache is None or not self._repeats(body) or usage is None:
            return
        answer = {
            "text": "".join(piece.text for piece in pieces),
            "tokens": [self._told(token) for piece in pieces for token in piece.tokens],
            "logprobs": [value for piece in pieces for value in piece.logprobs],
            "top": [[(self._told(token), value) for token, value in place] for piece in pieces for place in piece.top],
            "finish": pieces[-1].finish,
            "usage": usage,
        }
        self._cache.put([self._server.url, path, body], answer)

    def _repeats(self, body: Mapping[str, Any]) -> bool:
        return body["temperature"] == 0 or self._provider.takes.get("seed") in body

    def _no_tokens(self) -> UserError:
        return UserError(f"{self._provider.name} keeps its tokens to itself", "it takes messages or a text", "see `request_of`")


class RemoteStream:
    """See `modelwright.methods.engines.Stream`."""

    def __init__(self, engine: Remote, path: str, body: dict[str, Any]) -> None:
        self._pieces, self._call = engine.stream(path, body, call := Call()), call

    def __iter__(self) -> Iterator[Delta]:
        try:
            yield from self._pieces
        except Cancelled:
            yield Delta("", finish="cancelled")
        finally:
            self._pieces.close()  # type: ignore[attr-defined]
            self.cancel()

    def cancel(self) -> None:
        self._call.cancel()


_FINISH = {"length": "length", "max_tokens": "length"}
"""All else ends a turn: `stop`, `content_filter` (counted), `tool_calls`, `eos`."""


def _usage(tree: Mapping[str, Any]) -> Usage | None:
    told = tree.get("usage")
    return Usage(int(told.get("prompt_tokens") or 0), int(told.get("completion_tokens") or 0)) if told else None


def _completion(piece: Delta) -> Completion:
    prompt_tokens = piece.usage.prompt_tokens if piece.usage else 0
    return Completion(piece.text, piece.tokens, piece.logprobs, piece.finish or "", prompt_tokens, piece.top, piece.usage)
