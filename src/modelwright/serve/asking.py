"""From a request's fields to work for an engine: the model is taken, what it cannot do is refused, the prompt becomes tokens."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

from anyio.to_thread import run_sync

from modelwright.methods.engines import Constraint, Engine, Request, Sampling
from modelwright.serve.answers import ChatForm, Choice, Form, Job, TextForm, Told
from modelwright.serve.errors import ApiError
from modelwright.serve.feedback import Feedback
from modelwright.serve.logs import record
from modelwright.serve.models import Lease, Models
from modelwright.serve.requests import Ask, ChatRequest, CompletionRequest
from modelwright.serve.tools import Style, Tool, calls_constraint, parser, style_of
from modelwright.serve.work import Echo, Group, called, likeliest


class Settings(NamedTuple):
    """How the server treats everybody."""

    temperature: float = 0.0
    """Of requests that set none."""
    parallel: int = 4
    """Requests answered at a time."""
    waiting: int = 32
    """Requests that wait for a slot; one more gets 429."""
    patience_s: float = math.inf
    """Longest wait for a slot; then 429."""


class Ready(NamedTuple):
    """A chat that passed every check."""

    lease: Lease
    choices: list[Choice]
    prompt_tokens: int
    """0 where the engine counts them itself."""


MakeForm = Callable[[Ready], Form]


class Asker:
    def __init__(self, models: Models, settings: Settings, feedback: Feedback | None) -> None:
        self.models, self.settings, self._feedback = models, settings, feedback
        self._styles: WeakKeyDictionary[Engine, Style] = WeakKeyDictionary()

    async def take(self, stack: AsyncExitStack, name: str, user: str | None = None) -> Lease:
        """The model that a request names, until its answer has ended; `user`: whom the client asks for."""
        base, seen = self.models.base_of(name), record()
        seen.client.check_model(self.models.adapter_of(name) or base)
        seen.model, seen.user = name, user or ""
        lease = await self.models.take(name)
        stack.callback(lease.release)
        return lease

    async def render(self, engine: Engine, body: ChatRequest) -> list[int]:
        """The chat as token ids."""
        if body.images():
            needs(engine, "images", "messages", f"{body.model} does not look at images")
        messages = [message.plain() for message in body.messages]
        tools = [tool.plain() for tool in body.offered()]
        found: list[int] = await called(engine, "render", messages, tools or None)
        return found

    async def chat(self, stack: AsyncExitStack, body: ChatRequest, make_form: MakeForm | None = None) -> Job:
        lease = await self.take(stack, body.model, body.safety_identifier or body.user)
        engine = lease.engine
        needs(engine, "chat", "messages", f"{body.model} has no chat template; use /v1/completions")
        whole = "messages" in engine.capabilities
        if whole and body.images():
            why = f"{body.model} is not known to look at images: say `images: true` in its engine's settings"
            needs(engine, "images", "messages", why)
        tools, several = body.offered(), body.parallel_tool_calls is not False
        style: Style | None = await self._style(engine) if tools else None
        tokens = [] if whole else await self.render(engine, body)
        sampling = self._sampling(body, engine, tokens, "messages")
        constraint = _calls_form(body, engine, style, tools, several) if style else _form(body, engine)
        request = Request(tokens, sampling, constraint, lease.adapter)
        if whole:
            request = request._replace(messages=tuple(message.plain() for message in body.messages))
        choices = [Choice(True, parser(style, tools, several) if style else None) for _ in range(body.answers())]
        ready = Ready(lease, choices, len(tokens))
        form = make_form(ready) if make_form else ChatForm(_told(body, ready), engine, choices)
        remember = self._feedback and not body.tools and not body.images() and len(choices) == 1
        told = partial(self._feedback.remember, form.id, body) if self._feedback and remember else None
        return Job(Group(engine, _seeded(request, body.answers()), len(tokens)), form, bool(body.stream), told)

    async def _style(self, engine: Engine) -> Style:
        needs(engine, "tools", "tools", have="messages" not in engine.capabilities)
        if engine not in self._styles:
            self._styles[engine] = await run_sync(style_of, engine, abandon_on_cancel=True)
        return self._styles[engine]

    async def completion(self, stack: AsyncExitStack, body: CompletionRequest) -> Job:
        lease = await self.take(stack, body.model, body.user)
        engine, count, scored = lease.engine, body.answers(), body.echo and body.likeliest() is not None
        if scored:
            needs(engine, "score", "logprobs", "this engine cannot score a prompt: logprobs with echo is not supported")
        constraint = _form(body, engine)
        whole = "messages" in engine.capabilities
        echoes, requests, prompt_tokens = list[Echo](), list[Request](), 0
        for prompt in body.prompt:
            if whole and not isinstance(prompt, str):
                raise ApiError(400, "token ids are not supported by this engine", param="prompt", code="unsupported")
            tokens = [] if whole else prompt if isinstance(prompt, list) else await called(engine, "encode", prompt)
            known(engine, tokens, "prompt")
            prompt_tokens += len(tokens)
            sampling = self._sampling(body, engine, tokens, "prompt")
            request = Request(tokens, sampling, constraint, lease.adapter)
            requests += _seeded(request._replace(text=str(prompt)) if whole else request, count)
            if body.echo:
                echoes += [Echo(prompt if isinstance(prompt, str) else await run_sync(engine.decode, prompt), tokens)] * count
        choices = [Choice(False) for _ in requests]
        form = TextForm(_told(body, Ready(lease, choices, prompt_tokens)), engine, choices)
        before = partial(_echoes, engine, echoes, body.likeliest() if scored else None, count) if body.echo else None
        remember = self._feedback and len(choices) == 1 and not body.echo and isinstance(body.prompt[0], str)
        told = partial(self._feedback.remember, form.id, body) if self._feedback and remember else None
        return Job(Group(engine, requests, prompt_tokens, before), form, bool(body.stream), told)

    def _sampling(self, body: Ask, engine: Engine, tokens: Sequence[int], param: str) -> Sampling:
        limit = body.max_completion_tokens or body.max_tokens if isinstance(body, ChatRequest) else body.max_tokens
        room = engine.context - len(tokens)
        whole = "messages" in engine.capabilities
        if not tokens and not whole:
            raise ApiError(400, f"{param} holds no token to begin from", param=param)
        if not whole and room < (1 if limit is None else limit):
            asked = f" and {limit} more were asked for" if limit else ""
            raise ApiError(400, f"the model's context is {engine.context} tokens; the prompt has {len(tokens)}{asked}",
                           param=param, code="context_length_exceeded")  # fmt: skip
        temperature = self.settings.temperature if body.temperature is None else body.temperature
        if body.seed is not None and temperature > 0:
            needs(engine, "seed", "seed")
        told = body.likeliest() if isinstance(body, ChatRequest | CompletionRequest) else None
        if told is not None:
            needs(engine, "logprobs", "logprobs")
        for name, neutral in _RULES.items():
            if (value := getattr(body, name)) is not None and value != neutral:
                needs(engine, "rules", name)
        bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
        known(engine, [token for token, _ in bias], "logit_bias")
        # Engines take seeds of 31 bits; the API allows 64.
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed % 2**31
        default = Sampling()
        given = {name: value for name in _RULES if name != "logit_bias" and (value := getattr(body, name)) is not None}
        # Where the engine's own server has the tokenizer, nobody here knows how long the prompt is.
        most = body.default_tokens or engine.context // 2 if whole else min(body.default_tokens or room, room)
        return default._replace(
            max_tokens=most if limit is None else limit,
            temperature=temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            stop=tuple(body.stop or ()),
            seed=seed,
            logit_bias=bias,
            top_logprobs=told or 0,
            logprobs=told is not None,
            **given,
        )


_RULES = {"min_p": 0, "typical_p": 1, "repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}
"""Fields that need the capability `rules`, with the values that ask for nothing."""


def needs(engine: Engine, capability: str, param: str, why: str = "", have: bool = False) -> None:
    """400 where the engine cannot do what a field asks for."""
    if capability not in engine.capabilities and not have:
        code = "no_chat_template" if capability == "chat" else "unsupported"
        raise ApiError(400, why or f"{param} is not supported by this engine", param=param, code=code)


def known(engine: Engine, tokens: Sequence[int], param: str) -> None:
    """400 where a token is none of the model's."""
    if engine.vocabulary and tokens and max(tokens) >= engine.vocabulary:
        raise ApiError(400, f"{param}: the model's tokens are numbered up to {engine.vocabulary - 1}", param=param)


def _form(body: Ask, engine: Engine) -> Constraint | None:
    """What the request holds its answer to."""
    constraint = body.constraint()
    if constraint is not None:
        fields = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
        needs(engine, "constrain", next((name for name in fields if getattr(body, name) is not None), "response_format"))
    return constraint


def _calls_form(body: ChatRequest, engine: Engine, style: Style, tools: Sequence[Tool], several: bool) -> Constraint | None:
    """What calls of tools are held to: nothing, unless one must come or a tool is `strict`."""
    must = body.choice() == "required"
    if must or any(tool.function.strict for tool in tools):
        needs(engine, "constrain", "tool_choice" if must else "tools")
        if not must and style != "tags":
            raise ApiError(400, "tools: strict is supported with this model's template where a call must come: set tool_choice",
                           param="tools", code="unsupported")  # fmt: skip
        return calls_constraint(style, tools, must, several)
    return None


def _seeded(request: Request, count: int) -> list[Request]:
    """The request `count` times, each with a seed of its own."""
    sampling = request.sampling
    return [request._replace(sampling=sampling._replace(seed=(sampling.seed + at) % 2**31)) for at in range(count)]


def _told(body: ChatRequest | CompletionRequest, ready: Ready) -> Told:
    wants = bool(body.stream_options and body.stream_options.include_usage)
    return Told(ready.lease.name, ready.prompt_tokens, wants, body.likeliest())


def _echoes(engine: Engine, echoes: Sequence[Echo], count: int | None, each: int) -> list[Echo]:
    """Prompts with their scores, where `count` is a number; `each` in a row are the same. In a thread of the queue's."""
    if count is None:
        return list(echoes)
    first = echoes[::each]
    scores = engine.score([echo.tokens for echo in first])
    scored = [
        echo._replace(scores=found, tops=likeliest(engine, echo.tokens, count) if count else [()] * len(found))
        for echo, found in zip(first, scores, strict=True)
    ]
    return [echo for echo in scored for _ in range(each)]
