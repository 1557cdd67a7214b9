"""The life of one answer: wait for a slot, generate, send; whatever happens, the slot is free again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelwright.core.errors import UserError
from modelwright.methods.engines import Delta
from modelwright.serve import answers
from modelwright.serve.answers import Job
from modelwright.serve.errors import ApiError, json_response
from modelwright.serve.queue import Queue, shutting_down

log = logging.getLogger("modelwright.serve")


class Reply(Response):
    """An HTTP response that is made while it is sent. A client that hangs up, waiting or served, gives its place back."""

    def __init__(self, queue: Queue, job: Job, told: Callable[[str, str], None] | None = None) -> None:
        """`told` gets the answer's text, as far as the client got it, and how it ended."""
        super().__init__()
        self._queue, self._job, self._told = queue, job, told
        self._sent: list[str] = []
        self._finish = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def cancel_on_disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(cancel_on_disconnect)
            await self._serve(scope, receive, send)
            group.cancel_scope.cancel()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._queue.enter()
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        answer = self._queue.answer(self._job.request)
        try:
            pieces = aiter(answer)
            try:
                # The first piece before the status line: a fault at the start still gets its own status.
                deltas = [await anext(pieces)]
                if not self._job.stream:
                    deltas += [delta async for delta in pieces]
                    response = json_response(answers.whole(self._job, self._queue.engine, deltas))
                    self._sent = [answers.text(self._job, deltas)]
                    self._finish = answers.finish(deltas)
            except Exception as error:  # any fault of an engine becomes a body that the client can read
                await self._fault(error).response()(scope, receive, send)
                return
            if self._job.stream:
                await self._stream(deltas[0], pieces, send)
            else:
                await response(scope, receive, send)
        finally:
            answer.cancel()
            if self._told is not None and (self._sent or self._finish):
                self._told("".join(self._sent), self._finish or "cancelled")

    async def _stream(self, first: Delta, rest: AsyncIterator[Delta], send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for data in self._events(first, rest):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:  # the status is sent, so the fault travels as an event; openai's client raises it
            await send({"type": "http.response.body", "body": answers.event(self._fault(error).body()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, first: Delta, rest: AsyncIterator[Delta]) -> AsyncIterator[bytes]:
        job, engine = self._job, self._queue.engine
        if job.chat:
            yield answers.chunk(job, engine, None, first=True)
        delta, tokens, offset = first, 0, 0
        begun = not job.chat  # a chat's answer loses the one space that some templates set before it, as in `without_lead`
        while True:
            shown = delta if begun or not delta.text else delta._replace(text=delta.text.removeprefix(" "))
            begun = begun or bool(delta.text)
            yield answers.chunk(job, engine, shown, offset=offset)
            tokens += len(delta.tokens)
            offset += len(delta.text)
            self._sent.append(shown.text)
            if delta.finish:
                self._finish = delta.finish
                break
            delta = await anext(rest)
        if job.usage:
            yield answers.usage_chunk(job, tokens)
        yield answers.DONE

    def _fault(self, error: Exception) -> ApiError:
        if isinstance(error, UserError):
            return ApiError(400, str(error))
        if isinstance(error, answers.Cancelled) and self._queue.draining:
            return shutting_down()
        log.error("request %s failed", self._job.id, exc_info=error)
        return ApiError(500, "the engine failed; the server's log says why", code="engine_error")
