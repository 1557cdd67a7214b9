"""The web application: OpenAI's and Anthropic's endpoints over engines, health for operators, a chat page for people.

Sources: https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api. Differs: a request that sets no
temperature gets the server's (0, greedy, unless told otherwise; theirs is 1), because small models are at their best there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from modelwright.core.errors import UserError
from modelwright.methods.engines import Engine
from modelwright.serve import anthropic, embeddings, responses
from modelwright.serve.anthropic import CountRequest, MessagesRequest
from modelwright.serve.asking import Asker, Settings
from modelwright.serve.embeddings import EmbeddingRequest, RerankRequest
from modelwright.serve.errors import ApiError, json_response
from modelwright.serve.feedback import Feedback, Rating
from modelwright.serve.guard import Guard, Rules
from modelwright.serve.logs import Record, record
from modelwright.serve.metrics import CONTENT_TYPE, Metrics, memory_bytes
from modelwright.serve.models import Models
from modelwright.serve.queue import Queue
from modelwright.serve.reply import Reply, refusal
from modelwright.serve.requests import ChatRequest, CompletionRequest
from modelwright.serve.responses import ResponsesRequest, Store
from modelwright.serve.tokens import DetokenizeRequest, TokenizeRequest, detokenize, tokenize
from modelwright.serve.wire import Wire, explain

__all__ = ["POLICY", "Settings", "create_app"]

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")  # fmt: skip
PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript"),
        "/turn.js": ("turn.js", "text/javascript"), "/markdown.js": ("markdown.js", "text/javascript"),
        "/icon.svg": ("icon.svg", "image/svg+xml")}  # fmt: skip
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
"""What a request that may ask for a stream gets."""


class _Error(Wire):
    message: str
    type: str
    param: str | None
    code: str | None


class _Errors(Wire):
    error: _Error


class _AnthropicError(Wire):
    type: str
    message: str


class _AnthropicErrors(Wire):
    type: str
    error: _AnthropicError


FAULTS: dict[int | str, dict[str, Any]] = {"4XX": {"model": _Errors}, "5XX": {"model": _Errors}}
ANTHROPIC_FAULTS: dict[int | str, dict[str, Any]] = {"4XX": {"model": _AnthropicErrors}, "5XX": {"model": _AnthropicErrors}}


def create_app(
    engine: Engine | Models,
    name: str,
    settings: Settings | None = None,
    rules: Rules | None = None,
    feedback: Feedback | None = None,
    *,
    admin: bool = False,
    tell: Sequence[Callable[[Record], None]] = (),
) -> FastAPI:
    """The application for one open engine, known to clients as `name`, or for several models of which `name` is the first, and
    where ratings go, if anywhere. The caller closes engine and feedback. `admin`: adapters may be loaded over HTTP.
    `tell` get the record of each request that has ended."""
    settings = settings or Settings()
    queue = Queue(settings.parallel, settings.waiting, settings.patience_s)
    models = engine if isinstance(engine, Models) else Models.of(engine, name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(queue.close)
        await models.close()

    # The built-in documentation pages load scripts from a CDN, so there are none; /openapi.json is served.
    app = FastAPI(
        title="Modelwright",
        summary=f"OpenAI-compatible endpoints for {name}",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=FAULTS,
    )
    app.state.queue, app.state.models = queue, models
    metrics = Metrics({
        "slots": (lambda: queue.parallel, "Answers that may be under way at a time."),
        "slots_busy": (lambda: queue.answering, "Answers under way."),
        "queue_length": (lambda: queue.waiting, "Requests that wait for a slot."),
        "memory_bytes": (memory_bytes, "Resident memory of the server's process."),
    })  # fmt: skip
    app.add_middleware(Guard, rules=rules or Rules(), tell=[metrics.tell, *tell])
    asker = Asker(models, settings, feedback)
    _errors(app)
    _pages(app)
    _health(app, queue, metrics)
    _models(app, models, settings, feedback)
    _adapters(app, models, admin)
    _ratings(app, feedback)
    _openai(app, queue, asker)
    _responses(app, queue, asker)
    _anthropic(app, queue, asker)
    return app


def _openai(app: FastAPI, queue: Queue, asker: Asker) -> None:
    @app.post("/v1/chat/completions", responses=STREAM)
    async def chat_completions(body: ChatRequest) -> Response:
        return Reply(queue, lambda stack: asker.chat(stack, body))

    @app.post("/v1/completions", responses=STREAM)
    async def completions(body: CompletionRequest) -> Response:
        return Reply(queue, lambda stack: asker.completion(stack, body))

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest) -> Response:
        return Reply(queue, partial(embeddings.embedding, asker, body))

    @app.post("/v1/rerank")
    async def rerank(body: RerankRequest) -> Response:
        return Reply(queue, partial(embeddings.rerank, asker, body))

    @app.post("/tokenize")
    async def to_tokens(body: TokenizeRequest) -> Response:
        return json_response(await tokenize(asker, body))

    @app.post("/detokenize")
    async def from_tokens(body: DetokenizeRequest) -> Response:
        return json_response(await detokenize(asker, body))


def _responses(app: FastAPI, queue: Queue, asker: Asker) -> None:
    store = Store()

    @app.post("/v1/responses", responses=STREAM)
    async def respond(body: ResponsesRequest) -> Response:
        return Reply(queue, partial(responses.job, asker, store, body))

    @app.get("/v1/responses/{response_id}")
    async def answer(response_id: str) -> Response:
        return json_response(store.get(response_id, "response_id").body)

    @app.delete("/v1/responses/{response_id}")
    async def forget(response_id: str) -> Response:
        store.drop(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})


def _anthropic(app: FastAPI, queue: Queue, asker: Asker) -> None:
    @app.post("/v1/messages", responses=STREAM | ANTHROPIC_FAULTS)
    async def messages(body: MessagesRequest) -> Response:
        return Reply(queue, partial(anthropic.job, asker, body))

    @app.post("/v1/messages/count_tokens", responses=ANTHROPIC_FAULTS)
    async def count_tokens(body: CountRequest) -> Response:
        return json_response(await anthropic.count(asker, body))


def _ratings(app: FastAPI, feedback: Feedback | None) -> None:
    @app.post("/v1/feedback")
    async def rate(body: Rating) -> Response:
        if feedback is None:
            raise ApiError(404, "ratings are not kept: start the server with --feedback FILE", code="feedback_off")
        row = await run_sync(feedback.rate, body)
        return json_response({"object": "feedback", **{key: row[key] for key in ("id", "rating", "time")}})


def _models(app: FastAPI, models: Models, settings: Settings, feedback: Feedback | None) -> None:
    more = {"temperature": settings.temperature, "feedback": feedback.path.name if feedback else None}

    @app.get("/v1/models")
    async def listed() -> Response:
        allowed = [name for name in models.names if record().client.may_use(name)]
        return json_response({"object": "list", "data": [models.about(name) | more for name in allowed]})

    @app.get("/v1/models/{model_name:path}")
    async def one_model(model_name: str) -> Response:
        record().client.check_model(models.adapter_of(model_name) or models.base_of(model_name))
        return json_response(models.about(model_name) | more)


class LoadAdapter(Wire):
    lora_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
    lora_path: str = Field(min_length=1, max_length=4096)
    """A folder, or a GGUF file, where the server runs."""
    base_model_name: str | None = None
    """null: that of the adapter whose place it takes, or the server's only model."""
    load_inplace: bool | None = None
    """true: take the place of the adapter of this name."""


class UnloadAdapter(Wire):
    neutral = {"lora_int_id": ()}
    lora_name: str


def _adapters(app: FastAPI, models: Models, admin: bool) -> None:
    """As vLLM has it: https://docs.vllm.ai/en/latest/features/lora.html."""

    def allowed() -> None:
        if not admin:
            raise ApiError(
                403, "adapters are changed over HTTP only where the server was started with --admin", code="not_allowed"
            )
        if record().client.limits.models is not None:
            raise ApiError(403, "a key that may use some models alone changes no adapters", code="not_allowed")

    @app.post("/v1/load_lora_adapter")
    async def load(body: LoadAdapter) -> Response:
        allowed()
        base = body.base_model_name or models.base_for(body.lora_name)
        if body.lora_name in models.names and not body.load_inplace:
            raise ApiError(400, f"there is an adapter {body.lora_name!r} already; load_inplace: true takes its place",
                           param="lora_name", code="adapter_exists")  # fmt: skip
        await models.swap(body.lora_name, base, Path(body.lora_path))
        return json_response(models.about(body.lora_name))

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: UnloadAdapter) -> Response:
        allowed()
        models.drop(body.lora_name)
        return json_response({"id": body.lora_name, "object": "model", "deleted": True})


def _health(app: FastAPI, queue: Queue, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

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
    """Every fault in the words of the API that was asked."""

    async def known(request: Request, error: Exception) -> Response:
        return (refusal(error) or _bug()).response(request.url.path)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = explain(error.errors())
        return ApiError(400, message, param=param).response(request.url.path)

    async def http(request: Request, error: HTTPException) -> Response:
        response = ApiError(error.status_code, str(error.detail)).response(request.url.path)
        response.headers.update(error.headers or {})
        return response

    handlers: dict[type[Exception], Callable[..., Any]] = {
        ApiError: known,
        UserError: known,
        ValidationError: known,
        RequestValidationError: invalid,
        HTTPException: http,
        Exception: known,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _bug() -> ApiError:
    return ApiError(500, "a fault of the server; its log says why", code="internal_error")
