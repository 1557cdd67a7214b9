"""The web application: OpenAI's completion endpoints over an engine, health for operators, a chat page for people.

Source: https://platform.openai.com/docs/api-reference. Differs: a request that sets no temperature gets the server's (0, greedy,
unless told otherwise; OpenAI's own is 1), because small models are at their best there.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from modelwright.core.errors import UserError
from modelwright.methods import engines
from modelwright.methods.engines import Engine, Sampling
from modelwright.serve.answers import Job, new_id
from modelwright.serve.errors import ApiError, json_response
from modelwright.serve.feedback import Feedback, Rating
from modelwright.serve.guard import Guard, Rules
from modelwright.serve.queue import Queue
from modelwright.serve.reply import Reply
from modelwright.serve.requests import ChatRequest, CompletionRequest, explain

log = logging.getLogger("modelwright.serve")

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")  # fmt: skip
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript"),
        "/icon.svg": ("icon.svg", "image/svg+xml")}  # fmt: skip


class Settings(NamedTuple):
    """How the server treats everybody."""

    temperature: float = 0.0
    """Of requests that set none."""
    parallel: int = 4
    """Answers at a time."""
    waiting: int = 32
    """Requests that wait for a slot; one more gets 429."""


def create_app(
    engine: Engine,
    name: str,
    settings: Settings | None = None,
    rules: Rules | None = None,
    feedback: Feedback | None = None,
) -> FastAPI:
    """The application for one open engine, known to clients as `name`, and where ratings go, if anywhere. The caller closes
    both."""
    settings = settings or Settings()
    queue = Queue(engine, settings.parallel, settings.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(queue.close)

    # The built-in documentation pages load scripts from a CDN, so there are none; /openapi.json is served.
    app = FastAPI(
        title="Modelwright", summary=f"OpenAI-compatible endpoints for {name}", docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.queue = queue
    app.add_middleware(Guard, rules=rules or Rules())
    _errors(app)
    _pages(app)
    _health(app, queue)
    _models(app, engine, name, settings, feedback)
    _ratings(app, feedback)
    asker = _Asker(engine, name, settings)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest) -> Response:
        asker.check(body.model)
        if "chat" not in engine.capabilities:
            raise ApiError(400, f"{name} has no chat template; use /v1/completions", param="messages", code="no_chat_template")
        queue.check()
        tokens = await run_sync(engine.render, [message.plain() for message in body.messages])
        job = asker.job(body, tokens, chat=True)
        return Reply(queue, job, partial(feedback.remember, job.id, body) if feedback else None)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest) -> Response:
        asker.check(body.model)
        queue.check()
        tokens = await run_sync(engine.encode, body.prompt)
        job = asker.job(body, tokens, chat=False)
        return Reply(queue, job, partial(feedback.remember, job.id, body) if feedback else None)

    return app


class _Asker(NamedTuple):
    """Turns a request's fields into a job for the engine."""

    engine: Engine
    name: str
    settings: Settings

    def check(self, model: str) -> None:
        if model != self.name:
            raise ApiError(
                404, f"there is no model {model!r}; this server has {self.name!r}", param="model", code="model_not_found"
            )

    def job(self, body: ChatRequest | CompletionRequest, tokens: list[int], *, chat: bool) -> Job:
        room = self.engine.context - len(tokens)
        param = "messages" if chat else "prompt"
        if not tokens:
            raise ApiError(400, f"{param} holds no token to begin from", param=param)
        limit = body.asked_tokens()
        if room < (limit or 1):
            asked = f" and {limit} more were asked for" if limit else ""
            raise ApiError(400, f"the model's context is {self.engine.context} tokens; the prompt has {len(tokens)}{asked}",
                           param=param, code="context_length_exceeded")  # fmt: skip
        temperature = self.settings.temperature if body.temperature is None else body.temperature
        if body.seed is not None and temperature > 0 and "seed" not in self.engine.capabilities:
            raise ApiError(400, "seed is not supported by this engine", param="seed", code="unsupported")
        if body.wants_logprobs() and "logprobs" not in self.engine.capabilities:
            raise ApiError(400, "logprobs is not supported by this engine", param="logprobs", code="unsupported")
        # Engines take seeds of 31 bits; the API allows 64.
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed % 2**31
        sampling = Sampling(max_tokens=limit or min(body.default_tokens or room, room), temperature=temperature,
                            top_p=1.0 if body.top_p is None else body.top_p, stop=tuple(body.stop or ()), seed=seed)  # fmt: skip
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        identity, created = new_id(chat)
        return Job(
            engines.Request(tokens, sampling),
            self.name,
            chat,
            bool(body.stream),
            wants_usage,
            body.wants_logprobs(),
            identity,
            created,
        )


def _ratings(app: FastAPI, feedback: Feedback | None) -> None:
    @app.post("/v1/feedback")
    async def rate(body: Rating) -> Response:
        if feedback is None:
            raise ApiError(404, "ratings are not kept: start the server with --feedback FILE", code="feedback_off")
        row = await run_sync(feedback.rate, body)
        return json_response({"object": "feedback", **{key: row[key] for key in ("id", "rating", "time")}})


def _models(app: FastAPI, engine: Engine, name: str, settings: Settings, feedback: Feedback | None) -> None:
    _, created = new_id(True)
    model = {"id": name, "object": "model", "created": created, "owned_by": "modelwright", "context": engine.context,
             "capabilities": sorted(engine.capabilities), "temperature": settings.temperature,
             "feedback": feedback.path.name if feedback else None}  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [model]})

    @app.get("/v1/models/{model_name:path}")
    async def one_model(model_name: str) -> Response:
        if model_name != name:
            raise ApiError(
                404, f"there is no model {model_name!r}; this server has {name!r}", param="model", code="model_not_found"
            )
        return json_response(model)


def _health(app: FastAPI, queue: Queue) -> None:
    @app.get("/health")
    async def health() -> Response:
        """The process lives."""
        return json_response({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Response:
        """A new request would be taken up."""
        state = {"status": "draining" if queue.draining else "ready", "answering": queue.answering, "waiting": queue.waiting}
        return json_response(state, 503 if queue.draining else 200)


def _pages(app: FastAPI) -> None:
    folder = files("modelwright.serve") / "page"

    async def page(request: Request) -> Response:
        file, kind = PAGE[request.url.path]
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response((folder / file).read_bytes(), media_type=kind, headers=headers)

    for path in PAGE:
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


def _errors(app: FastAPI) -> None:
    """Every fault in OpenAI's shape."""

    async def api(_: Request, error: ApiError) -> Response:
        return error.response()

    async def user(_: Request, error: UserError) -> Response:
        return ApiError(400, str(error)).response()

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors()[0])
        return ApiError(400, message, param=param).response()

    async def http(_: Request, error: HTTPException) -> Response:
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    async def bug(request: Request, error: Exception) -> Response:
        return ApiError(500, "a fault of the server; its log says why", code="internal_error").response()

    handlers: dict[type[Exception], Any] = {
        ApiError: api,
        UserError: user,
        RequestValidationError: invalid,
        HTTPException: http,
        Exception: bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
