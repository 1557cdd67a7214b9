"""OpenAI's Responses API: items in, items out, events in their documented order, and answers kept for a while.

Source: https://platform.openai.com/docs/api-reference/responses and .../responses-streaming. Answers are kept as OpenAI's are
(`store` is true unless a request says false), so that `previous_response_id` works with clients as they come; here that is in
memory, so many of them, the oldest forgotten first, for the key that asked alone, and gone with the server.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from modelwright.serve.answers import Choice, Job, Learn, Words, event, new_id, token_bodies
from modelwright.serve.asking import Asker, Ready
from modelwright.serve.errors import ApiError
from modelwright.serve.logs import record
from modelwright.serve.requests import ChatRequest
from modelwright.serve.tools import Called
from modelwright.serve.wire import IMAGE, Somebody, Wire, content_of, fault
from modelwright.serve.work import Piece

KEPT, KEPT_CHARS = 1000, 16_000_000
"""Answers that are kept, and characters of them with their chats."""


def _parts(value: Any) -> Any:
    """The text of an item's content, given as parts."""
    if not isinstance(value, list):
        return value
    plain = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        known = {"input_text": {"type", "text"}, "output_text": {"type", "text", "annotations", "logprobs"}}.get(str(kind))
        if kind == "input_image" and set(part) <= {"type", "image_url", "detail"}:
            address = {"url": part.get("image_url")} | ({"detail": part["detail"]} if part.get("detail") else {})
            plain.append({"type": "image_url", "image_url": address})
        else:
            plain.append({"type": "text", "text": part.get("text")} if known and set(part) <= known else part)
    return content_of(plain)


class _Image(Wire):
    type: Literal["input_image"]
    image_url: str = Field(pattern=f"^{IMAGE}$")
    detail: Literal["auto", "low", "high"] | None = None


class _Part(Wire):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


_Texts = str | list[_Part] | None
_Content = str | list[_Part | _Image] | None


class Item(Wire):
    """A message, a call of a tool, or what came of one."""

    neutral = {"status": ("completed", "incomplete", "in_progress"), "phase": ("final_answer",)}
    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Annotated[str | list[dict[str, Any]] | None, BeforeValidator(_parts, json_schema_input_type=_Content)] = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Annotated[str | None, BeforeValidator(_parts, json_schema_input_type=_Texts)] = None

    @model_validator(mode="after")
    def _whole(self) -> Item:
        needed = {"message": {"role", "content"}, "function_call": {"call_id", "name", "arguments"},
                  "function_call_output": {"call_id", "output"}}[self.type]  # fmt: skip
        given = {name for name in self.model_fields_set - {"type", "id"} if getattr(self, name) is not None}
        for name in sorted(needed ^ given):
            raise fault(
                "an item of type {type} {has} this field", name, type=self.type, has="needs" if name in needed else "has not"
            )
        return self


class FunctionTool(Wire):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Wire):
    type: Literal["function"]
    name: str


class TextFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Text(Wire):
    neutral = {"verbosity": ("medium",)}
    format: TextFormat | None = None


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsesRequest(Wire):
    neutral = {
        "access_programs": (), "background": (False,), "context_management": (), "conversation": (), "image": (),
        "max_tool_calls": (), "moderation": (), "prompt": (), "prompt_cache_key": (), "prompt_cache_options": (),
        "prompt_cache_retention": (), "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}),
        "service_tier": ("auto", "default"),
        "stream_options": ({}, {"include_obfuscation": False}), "truncation": ("disabled",),
    }  # fmt: skip
    model: str = Field(max_length=500)
    input: Annotated[list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item])] = Field(min_length=1)
    instructions: str | None = None
    """A system message for this answer alone."""
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    """Given back with the answer."""
    user: Somebody | None = None
    safety_identifier: Somebody | None = None
    """The newer name of user."""
    store: bool | None = None
    stream: bool | None = None
    text: Text | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    def chat(self, before: Sequence[dict[str, Any]]) -> ChatRequest:
        """The same as a chat."""
        messages = [*before, *chat_of(self.input)]
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        named = self.tool_choice if isinstance(self.tool_choice, NamedTool) else None
        fields: dict[str, Any] = {
            "model": self.model, "messages": messages, "max_tokens": self.max_output_tokens, "temperature": self.temperature,
            "top_p": self.top_p, "stream": self.stream, "parallel_tool_calls": self.parallel_tool_calls,
            "user": self.user, "safety_identifier": self.safety_identifier,
            "logprobs": bool(self.include) or None, "top_logprobs": self.top_logprobs,
            "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools or ()] or None,
            "tool_choice": {"type": "function", "function": {"name": named.name}} if named else self.tool_choice,
        }  # fmt: skip
        if (form := self.text.format if self.text else None) is not None:
            schema = {"name": form.name or "answer", "schema": form.schema_, "strict": form.strict}
            fields["response_format"] = {"type": form.type} | ({"json_schema": schema} if form.type == "json_schema" else {})
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})


def chat_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Items as messages: calls join the assistant's turn before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if item.type == "message":
            messages.append({"role": item.role, "content": item.content})
        elif item.type == "function_call_output":
            messages.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": None})
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            messages[-1].setdefault("tool_calls", []).append(call)
    return messages


class _Kept(NamedTuple):
    owner: str
    body: dict[str, Any]
    chat: list[dict[str, Any]]
    chars: int


class Store:
    """Answers of this server's memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._chars = 0

    def put(self, owner: str, body: dict[str, Any], chat: list[dict[str, Any]]) -> None:
        chars = len(str(chat)) + len(str(body))
        self._kept[body["id"]] = _Kept(owner, body, chat, chars)
        self._chars += chars
        while self._chars > KEPT_CHARS or len(self._kept) > KEPT:
            self._chars -= self._kept.popitem(last=False)[1].chars

    def get(self, identity: str, param: str) -> _Kept:
        """404 where there is none, or another key's."""
        found = self._kept.get(identity)
        if found is None or found.owner != record().client.name:
            raise ApiError(404, f"there is no answer {identity!r}, or it is too long ago", param=param, code="response_not_found")
        return found

    def drop(self, identity: str) -> None:
        self._chars -= self.get(identity, "response_id").chars
        del self._kept[identity]


async def job(asker: Asker, store: Store, body: ResponsesRequest, stack: AsyncExitStack) -> Job:
    before = store.get(body.previous_response_id, "previous_response_id").chat if body.previous_response_id else []
    if body.top_logprobs and not body.include:
        raise ApiError(400, 'top_logprobs needs include: ["message.output_text.logprobs"]', param="top_logprobs")
    return await asker.chat(stack, body.chat(before), lambda ready: ResponsesForm(body, ready, store, before))


class ResponsesForm:
    def __init__(self, body: ResponsesRequest, ready: Ready, store: Store, before: Sequence[dict[str, Any]]) -> None:
        self.id, self._body, self._store, self._before = new_id("resp").replace("-", "_"), body, store, before
        self._owner = record().client.name
        self._choice: Choice = ready.choices[0]
        self._prompt_tokens, self._words = ready.prompt_tokens, Words(ready.lease.engine)
        self._created, self._number = int(time.time()), 0
        self.learn: Learn | None = self._words.learn if body.include else None
        self._output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        """The message that is being written."""

    def begin(self) -> list[bytes]:
        response = self._response("in_progress")
        return [self._event("response.created", response=response), self._event("response.in_progress", response=response)]

    def push(self, piece: Piece) -> list[bytes]:
        delta, events = piece.delta, list[bytes]()
        said = self._choice.push(delta)
        probs = token_bodies(self._words, [delta]) if self._body.include else []
        if said.text or (probs and not said.calls):
            events += self._text(said.text, probs)
        for call in said.calls:
            events += [*self._close(), *self._call(call)]
        if said.finish:
            if not self._output:
                events += self._text("", [])
            events += self._close()
        return events

    def end(self) -> list[bytes]:
        response = self._finished()
        return [self._event(f"response.{response['status']}", response=response)]

    def fault(self, error: ApiError) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        for piece in pieces:
            self.push(piece)
        return self._finished()

    def said(self) -> tuple[str, str]:
        return self._choice.said(), self._choice.finish or "cancelled"

    def _text(self, text: str, probs: list[dict[str, Any]]) -> list[bytes]:
        events = []
        if self._open is None:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"id": new_id("msg").replace("-", "_"), "type": "message", "status": "in_progress", "role": "assistant"}
            self._output.append(item | {"content": []})
            events = [self._event("response.output_item.added", output_index=self._at, item=self._output[-1]),
                      self._event("response.content_part.added", item_id=item["id"], **self._place, part=part)]  # fmt: skip
            self._open = self._output[-1] = item | {"content": [part]}
        part = self._open["content"][0]
        part["text"] += text
        part["logprobs"] += probs
        more = {"item_id": self._open["id"], **self._place, "delta": text, "logprobs": probs}
        return [*events, *([self._event("response.output_text.delta", **more)] if text or probs else [])]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        item, self._open = self._open, None
        item["status"] = "incomplete" if self._choice.finish == "length" else "completed"
        part, at = item["content"][0], {"item_id": item["id"], **self._place}
        return [self._event("response.output_text.done", **at, text=part["text"], logprobs=part["logprobs"]),
                self._event("response.content_part.done", **at, part=part),
                self._event("response.output_item.done", output_index=self._at, item=item)]  # fmt: skip

    def _call(self, call: Called) -> list[bytes]:
        item = {"id": new_id("fc").replace("-", "_"), "type": "function_call", "call_id": call.id, "name": call.name}
        self._output.append(item | {"arguments": call.arguments, "status": "completed"})
        at = {"item_id": item["id"], "output_index": self._at}
        begun = item | {"arguments": "", "status": "in_progress"}
        return [self._event("response.output_item.added", output_index=self._at, item=begun),
                self._event("response.function_call_arguments.delta", **at, delta=call.arguments),
                self._event("response.function_call_arguments.done", **at, name=call.name, arguments=call.arguments),
                self._event("response.output_item.done", output_index=self._at, item=self._output[-1])]  # fmt: skip

    @property
    def _at(self) -> int:
        return len(self._output) - 1

    @property
    def _place(self) -> dict[str, int]:
        return {"output_index": self._at, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)

    def _finished(self) -> dict[str, Any]:
        body = self._response("incomplete" if self._choice.finish == "length" else "completed")
        if self._body.store is not False:
            turn = {"role": "assistant", "content": self._choice.said() or None}
            calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                     for call in self._choice.calls]  # fmt: skip
            said = turn | {"tool_calls": calls} if calls else turn | {"content": turn["content"] or ""}
            self._store.put(self._owner, body, [*self._before, *chat_of(self._body.input), said])
        return body

    def _response(self, status: str) -> dict[str, Any]:
        body, choice = self._body, self._choice
        usage = None
        if status != "in_progress":
            tokens_in, tokens_out = choice.usage(self._prompt_tokens)
            usage = {"input_tokens": tokens_in, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": tokens_out,
                     "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": tokens_in + tokens_out}  # fmt: skip
        tool_choice = body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedTool) else body.tool_choice
        form = body.text.format if body.text and body.text.format else TextFormat(type="text")
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": body.model,
            "output": list(self._output), "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id, "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False, "temperature": body.temperature,
            "text": {"format": form.model_dump(exclude_none=True, by_alias=True)}, "tool_choice": tool_choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()], "top_p": body.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "truncation": "disabled", "usage": usage, "metadata": body.metadata or {},
        }  # fmt: skip
