"""The life of one answer: make ready what is asked for, wait for a slot, generate, send; whatever happens, the slot and the model
are free again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
from anyio.to_thread import run_sync
from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelwright.core.errors import UserError
from modelwright.methods.engines import EngineDied, Unavailable
from modelwright.serve.answers import Cancelled, Job
from modelwright.serve.errors import ApiError, json_response
from modelwright.serve.logs import record
from modelwright.serve.queue import Queue, shutting_down
from modelwright.serve.wire import explain
from modelwright.serve.work import Piece

log = logging.getLogger("modelwright.serve")

Make = Callable[[AsyncExitStack], Awaitable[Job]]
"""Opens the model and makes the job; what it puts on the stack is given back when the answer has ended."""


class Reply(Response):
    """An HTTP response that is made while it is sent. A client that hangs up, waiting or served, gives its place back."""

    def __init__(self, queue: Queue, make: Make) -> None:
        super().__init__()
        self._queue, self._make = queue, make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def cancel_on_disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(cancel_on_disconnect)
            async with AsyncExitStack() as stack:
                await self._serve(stack, scope, receive, send)
            group.cancel_scope.cancel()

    async def _serve(self, stack: AsyncExitStack, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        try:
            self._queue.check()
            with self._queue.coming():
                job = await self._make(stack)
            await self._queue.enter()
            answer = self._queue.answer(job.work)
            stack.callback(answer.cancel)
            if job.told is not None:
                stack.callback(lambda: _tell(job))
            # The first piece before the status line: a fault at the start still gets its own status.
            pieces = aiter(answer)
            first = await anext(pieces)
            if not job.stream:
                made = [first, *[piece async for piece in pieces]]
                await _learn(job, made)
                response = json_response(job.form.whole(made))
        except Exception as error:  # any fault becomes a body that the client can read
            await self._fault(error).response(path)(scope, receive, send)
            return
        if job.stream:
            await self._stream(job, first, pieces, send)
        else:
            await response(scope, receive, send)

    async def _stream(self, job: Job, first: Piece, rest: AsyncIterator[Piece], send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(events: list[bytes]) -> None:
            if events:
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})

        try:
            await _learn(job, [first])
            await write([*job.form.begin(), *job.form.push(first)])
            async for piece in rest:
                await _learn(job, [piece])
                await write(job.form.push(piece))
            await write(job.form.end())
        except Exception as error:  # the status is sent, so the fault travels as an event; clients raise it
            await write([job.form.fault(self._fault(error))])
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _fault(self, error: Exception) -> ApiError:
        if (known := refusal(error)) is not None:
            return known
        if isinstance(error, Cancelled) and self._queue.draining:
            return shutting_down()
        log.error("request %s failed", record().id, exc_info=error)
        return ApiError(500, "the engine failed; the server's log says why", code="engine_error")


def refusal(error: Any) -> ApiError | None:
    """What a client did wrong; None where the fault is ours."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineDied):
        return ApiError(503, str(error), code="engine_died", retry_s=1)
    if isinstance(error, Unavailable):
        return ApiError(503, str(error), code="engine_unavailable", retry_s=5)
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, ValidationError):
        message, param = explain(error.errors())
        return ApiError(400, message, param=param)
    return None


async def _learn(job: Job, pieces: Sequence[Piece]) -> None:
    if job.form.learn is not None:
        await run_sync(job.form.learn, pieces)


def _tell(job: Job) -> None:
    text, finish = job.form.said()
    if job.told is not None and (text or finish != "cancelled"):
        job.told(text, finish)
