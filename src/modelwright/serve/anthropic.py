"""Anthropic's Messages API: content blocks, tools, streams of events, and counts of tokens.

Sources: https://docs.anthropic.com/en/api/messages, .../messages-streaming and .../messages-count-tokens. Marks for their prompt
cache (`cache_control`) change no answer: what prompts have in common is computed once here anyway, where the engine can.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelwright.serve.answers import Choice, Job, Learn, event, new_id
from modelwright.serve.asking import Asker, Ready, needs
from modelwright.serve.errors import ApiError
from modelwright.serve.requests import ChatRequest
from modelwright.serve.wire import Somebody, Wire, fault, text_of
from modelwright.serve.work import Piece


def _text(value: Any) -> Any:
    """A text given as blocks."""
    if not isinstance(value, list):
        return value
    hints = {"cache_control", "citations"}
    return text_of([
        {name: field for name, field in part.items() if name not in hints or (name == "citations" and field)}
        if isinstance(part, dict) else part for part in value
    ])  # fmt: skip


def _blocks(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    for part in value if isinstance(value, list) else ():
        if isinstance(part, dict) and part.get("type") not in ("text", "image", "tool_use", "tool_result"):
            text_of([part])  # which says why not
    return value


class CacheControl(Wire):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Metadata(Wire):
    user_id: Somebody | None = None


class _TextBlock(Wire):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


_Texts = str | list[_TextBlock] | None


class ImageSource(Wire):
    type: Literal["base64"]
    media_type: Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
    data: str = Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")


class Block(Wire):
    """A text, an image, the call of a tool, or what came of one."""

    neutral = {"citations": ([],), "caller": ({"type": "direct"},)}
    type: Literal["text", "image", "tool_use", "tool_result"]
    cache_control: CacheControl | None = None
    text: str | None = None
    source: ImageSource | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Annotated[str | None, BeforeValidator(_text, json_schema_input_type=_Texts)] = None
    is_error: bool | None = None
    """The result says in words what went wrong, so the model is told nothing else."""

    @model_validator(mode="after")
    def _whole(self) -> Block:
        needed = {"text": {"text"}, "image": {"source"}, "tool_use": {"id", "name", "input"}, "tool_result": {"tool_use_id"}}[
            self.type
        ]
        allowed = needed | ({"content", "is_error"} if self.type == "tool_result" else set())
        given = {name for name in self.model_fields_set - {"type", "cache_control"} if getattr(self, name) is not None}
        for name in sorted((needed - given) | (given - allowed)):
            raise fault(
                "a block of type {type} {has} this field", name, type=self.type, has="needs" if name in needed else "has not"
            )
        return self


class Turn(Wire):
    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(_blocks, json_schema_input_type=str | list[Block])]

    @model_validator(mode="after")
    def _blocks_of_its_role(self) -> Turn:
        for wrong in ("image", "tool_result") if self.role == "assistant" else ("tool_use",):
            if any(block.type == wrong for block in self.content):
                raise fault("a turn of {role} has no block of type {wrong}", "content", role=self.role, wrong=wrong)
        return self

    def messages(self) -> list[dict[str, Any]]:
        text = "".join(block.text or "" for block in self.content if block.type == "text")
        if self.role == "assistant":
            calls = [{"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}
                     for block in self.content if block.type == "tool_use"]  # fmt: skip
            return [{"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})]
        results = [{"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content or ""}
                   for block in self.content if block.type == "tool_result"]  # fmt: skip
        said: Any = text
        if any(block.source for block in self.content):
            said = [_part(block) for block in self.content if block.type in ("text", "image")]
        return [*results, *([{"role": "user", "content": said}] if said or not results else [])]


def _part(block: Block) -> dict[str, Any]:
    """As OpenAI's chats have it."""
    if block.source is None:
        return {"type": "text", "text": block.text}
    url = f"data:{block.source.media_type};base64,{block.source.data}"
    return {"type": "image_url", "image_url": {"url": url}}


class AnthropicTool(Wire):
    neutral = {
        "defer_loading": (False,),
        "allowed_callers": (["direct"],),
        "eager_input_streaming": (False,),
        "input_examples": ([],),
    }
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise fault("type: tool, and no other, names one", "name")
        return self

    def plain(self) -> Any:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class CountRequest(Wire):
    """What a prompt is made of."""

    neutral = {
        "container": (), "context_management": (), "diagnostics": (), "inference_geo": (), "mcp_servers": ([],),
        "output_config": ({},), "output_format": (), "service_tier": ("auto", "standard_only"), "speed": ("standard",),
        "thinking": ({"type": "disabled"},), "user_profile_id": (), "workspace_id": (),
    }  # fmt: skip
    model: str = Field(max_length=500)
    messages: list[Turn] = Field(min_length=1)
    system: Annotated[str | None, BeforeValidator(_text, json_schema_input_type=_Texts)] = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    cache_control: CacheControl | None = None
    metadata: Metadata | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> CountRequest:
        if self.messages[-1].role == "assistant":
            raise fault("the last turn must be the user's: beginnings of answers are not supported", "messages")
        return self

    @property
    def user(self) -> str | None:
        return self.metadata.user_id if self.metadata else None

    def chat(self) -> ChatRequest:
        """The same as a chat."""
        messages = [message for turn in self.messages for message in turn.messages()]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        tools = [{"type": "function", "function": {"name": tool.name, "description": tool.description,
                                                   "parameters": tool.input_schema, "strict": tool.strict}}
                 for tool in self.tools or ()]  # fmt: skip
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "tools": tools or None,
            "user": self.user,
            **self._more(),
        }
        if self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice.plain()
            fields["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})

    def _more(self) -> dict[str, Any]:
        return {}


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1000)]] | None = Field(None, max_length=16)
    stream: bool | None = None

    def _more(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
                "stop": self.stop_sequences or None, "stream": self.stream}  # fmt: skip


async def count(asker: Asker, body: CountRequest) -> dict[str, int]:
    async with AsyncExitStack() as stack:
        lease = await asker.take(stack, body.model, body.user)
        needs(lease.engine, "chat", "messages", f"{body.model} has no chat template")
        if "messages" in lease.engine.capabilities:
            raise ApiError(400, "this engine's server counts tokens, and only of answers", param="model", code="unsupported")
        return {"input_tokens": len(await asker.render(lease.engine, body.chat()))}


async def job(asker: Asker, body: MessagesRequest, stack: AsyncExitStack) -> Job:
    return await asker.chat(stack, body.chat(), lambda ready: MessagesForm(body, ready))


class MessagesForm:
    def __init__(self, body: MessagesRequest, ready: Ready) -> None:
        self.id, self._body, self._engine = new_id("msg").replace("-", "_"), body, ready.lease.engine
        self._choice: Choice = ready.choices[0]
        self._prompt_tokens = ready.prompt_tokens
        self._content: list[dict[str, Any]] = []
        self._open = False
        """The last block is a text that goes on."""
        self._met: str | None = None
        """The stop string that ended the answer."""
        self.learn: Learn | None = self._find_stop if body.stop_sequences else None

    def begin(self) -> list[bytes]:
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        return [_event("message_start", message=self._message([], None, None, usage))]

    def push(self, piece: Piece) -> list[bytes]:
        said, events = self._choice.push(piece.delta), list[bytes]()
        if said.text or (said.finish and not said.calls and not self._content):
            if not self._open:
                self._content.append({"type": "text", "text": ""})
                events.append(_event("content_block_start", index=self._at, content_block={"type": "text", "text": ""}))
                self._open = True
            self._content[-1]["text"] += said.text
            if said.text:
                events.append(self._delta({"type": "text_delta", "text": said.text}))
        for call in said.calls:
            events += self._close()
            block = {"type": "tool_use", "id": call.id, "name": call.name}
            self._content.append(block | {"input": json.loads(call.arguments)})
            events += [_event("content_block_start", index=self._at, content_block=block | {"input": {}}),
                       self._delta({"type": "input_json_delta", "partial_json": call.arguments}),
                       _event("content_block_stop", index=self._at)]  # fmt: skip
        return [*events, *(self._close() if said.finish else [])]

    def end(self) -> list[bytes]:
        reason, stop = self._reason()
        return [_event("message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=self._usage()),
                _event("message_stop")]  # fmt: skip

    def fault(self, error: ApiError) -> bytes:
        return event(error.body("/v1/messages"), "error")

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        for piece in pieces:
            self.push(piece)
        return self._message(self._content, *self._reason(), self._usage())

    def said(self) -> tuple[str, str]:
        return self._choice.said(), self._choice.finish or "cancelled"

    @property
    def _at(self) -> int:
        return len(self._content) - 1

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event("content_block_delta", index=self._at, delta=delta)

    def _close(self) -> list[bytes]:
        was, self._open = self._open, False
        return [_event("content_block_stop", index=self._at)] if was else []

    def _find_stop(self, pieces: Sequence[Piece]) -> None:
        """The tokens still hold the stop string that the text was cut before."""
        if pieces[-1].delta.finish == "stop":
            text = self._engine.decode([*self._choice.tokens, *(token for piece in pieces for token in piece.delta.tokens)])
            met = [(place, stop) for stop in self._body.stop_sequences or () if (place := text.find(stop)) >= 0]
            self._met = min(met)[1] if met else None

    def _reason(self) -> tuple[str, str | None]:
        """Why it ended, and by which stop string."""
        finish = self._choice.finish
        if finish in ("tool_calls", "length"):
            return ("tool_use", None) if finish == "tool_calls" else ("max_tokens", None)
        return ("stop_sequence", self._met) if self._met is not None else ("end_turn", None)

    def _usage(self) -> dict[str, int]:
        tokens_in, tokens_out = self._choice.usage(self._prompt_tokens)
        return {"input_tokens": tokens_in, "output_tokens": tokens_out}

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._body.model, "content": content,
                "stop_reason": reason, "stop_sequence": stop, "usage": usage}  # fmt: skip


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
