"""What a request may say: the fields of OpenAI's API that we honour, and those that we know and refuse.

Sources: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create. Nothing is ignored in
silence: a known field that we do not honour may only be absent, null or hold its neutral value, an unknown one may not come.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Neutral = dict[str, tuple[Any, ...]]
"""Known fields that we do not honour, each with the values that ask for nothing."""


def _as_text(value: Any) -> Any:
    """The text of a message given as parts; other sorts of part (images, sound, files) are refused."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        if (
            not isinstance(part, dict)
            or set(part) != {"type", "text"}
            or part["type"] != "text"
            or not isinstance(part["text"], str)
        ):
            raise PydanticCustomError("unsupported", 'only parts of the form {{"type": "text", "text": "…"}} are supported')
        texts.append(part["text"])
    return "".join(texts)


def _as_prompt(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str):
            return value[0]
        raise PydanticCustomError(
            "unsupported", "one prompt a request, as a string: several prompts and token ids are not supported"
        )
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Wire(BaseModel):
    """A part of a request: strict types, no unknown fields, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_we_do_not_honour(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        for name, neutral in cls.neutral.items():
            value = tree.get(name)
            if value is None or any(type(value) is type(good) and value == good for good in neutral):
                continue
            allowed = f" (only {' or '.join(map(repr, neutral))})" if neutral else ""
            raise PydanticCustomError(
                "unsupported", "{param} is not supported by this server{allowed}", {"param": name, "allowed": allowed}
            )
        return {name: value for name, value in tree.items() if name not in cls.neutral}


class StreamOptions(Wire):
    neutral = {"include_obfuscation": (False,)}
    include_usage: bool = False
    """Send the token counts in one more chunk before `[DONE]`."""


class Message(Wire):
    neutral = {"name": (), "refusal": (), "audio": (), "function_call": (), "tool_calls": ([],), "annotations": ([],)}
    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is OpenAI's newer word for `system` and means the same here."""
    content: Annotated[str, BeforeValidator(_as_text)]

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class Ask(Wire):
    """The fields that both endpoints share."""

    default_tokens: ClassVar[int | None] = None
    """Of an answer for which no limit is asked; None: what the context has room for."""
    model: str
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of the answer at most; null: as many as the context has room for."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is greedy; null: the server's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]] | None, BeforeValidator(_as_list)] = Field(None, max_length=4)
    """Up to four strings that end the answer and are not part of it."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Same request and seed, same answer; null: a new one each time."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Ask:
        if self.stream_options and not self.stream:
            raise PydanticCustomError("unsupported", "stream_options needs stream: true", {"param": "stream_options"})
        return self


_SHARED: Neutral = {"frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "n": (1,), "user": ()}


class ChatRequest(Ask):
    neutral = _SHARED | {
        "audio": (), "function_call": ("none",), "functions": ([],), "metadata": ({},), "modalities": (["text"],),
        "moderation": (), "parallel_tool_calls": (True,), "prediction": (), "prompt_cache_key": (), "prompt_cache_options": (),
        "prompt_cache_retention": (), "reasoning_effort": (), "response_format": ({"type": "text"},), "safety_identifier": (),
        "service_tier": ("auto", "default"), "store": (False,), "tool_choice": ("none",), "tools": ([],), "top_logprobs": (0,),
        "verbosity": ("medium",), "web_search_options": (),
    }  # fmt: skip
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    logprobs: bool | None = None
    """The log-probability of each token of the answer."""

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens:
            raise PydanticCustomError(
                "unsupported", "give max_tokens or max_completion_tokens, not both", {"param": "max_tokens"}
            )
        return self

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)


class CompletionRequest(Ask):
    default_tokens = 16  # OpenAI's for this endpoint
    neutral = _SHARED | {"best_of": (1,), "echo": (False,), "suffix": ("",)}
    prompt: Annotated[str, BeforeValidator(_as_prompt)]
    logprobs: int | None = Field(None, ge=0, le=0)
    """0: the log-probability of each token of the answer; the likeliest others are not to be had."""

    def asked_tokens(self) -> int | None:
        return self.max_tokens

    def wants_logprobs(self) -> bool:
        return self.logprobs is not None


def explain(error: dict[str, Any]) -> tuple[str, str | None]:
    """One of pydantic's errors as a message and the field's name, such as `messages[0].content`."""
    place = list(error["loc"])
    if place and place[0] == "body":
        place = place[1:]
    named = (error.get("ctx") or {}).get("param")
    if named is not None:
        place.append(named)
    param = ""
    for part in place:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    if error["type"] == "json_invalid":
        return "the request's body is not valid JSON", None
    if error["type"] == "extra_forbidden":
        return f"unknown field: {param}", param
    if error["type"] == "missing":
        return f"missing field: {param or 'a JSON body'}", param or None
    return f"{param}: {error['msg']}" if param else str(error["msg"]), param or None
