"""Texts and chats as token ids, and back, as vLLM has it.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Any

from anyio.to_thread import run_sync
from pydantic import Field, model_validator

from modelwright.serve.asking import Asker, known, needs
from modelwright.serve.errors import ApiError
from modelwright.serve.requests import ChatRequest, Message
from modelwright.serve.tools import Tool
from modelwright.serve.wire import Wire, fault


class TokenizeRequest(Wire):
    neutral = {"add_special_tokens": (True,), "return_token_strs": (False,), "add_generation_prompt": (True,),
               "continue_final_message": (False,)}  # fmt: skip
    model: str = Field(max_length=500)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    """A chat instead of a prompt."""
    tools: list[Tool] | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise fault("give prompt or messages", "prompt")
        return self


class DetokenizeRequest(Wire):
    model: str = Field(max_length=500)
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


async def tokenize(asker: Asker, body: TokenizeRequest) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        engine = (await asker.take(stack, body.model)).engine
        _own(engine.capabilities)
        if body.messages is not None:
            needs(engine, "chat", "messages", f"{body.model} has no chat template")
            tokens = await asker.render(engine, ChatRequest(model=body.model, messages=body.messages, tools=body.tools))
        else:
            tokens = await run_sync(engine.encode, body.prompt or "")
        return {"count": len(tokens), "max_model_len": engine.context, "tokens": tokens}


async def detokenize(asker: Asker, body: DetokenizeRequest) -> dict[str, str]:
    async with AsyncExitStack() as stack:
        engine = (await asker.take(stack, body.model)).engine
        _own(engine.capabilities)
        known(engine, body.tokens, "tokens")
        return {"prompt": await run_sync(engine.decode, body.tokens)}


def _own(capabilities: frozenset[str]) -> None:
    if "messages" in capabilities:
        raise ApiError(400, "this engine's own server has the tokenizer", param="model", code="unsupported")
