"""What a chat or a completion may ask for: the fields of OpenAI's API that we honour, and those that we know and refuse.

Sources: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create. `top_k`, `min_p`, `typical_p`,
`repetition_penalty`, `structured_outputs` and `guided_*` are what vLLM and llama-server add to them,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelwright.methods.engines import Constraint
from modelwright.serve.tools import MessageCall, Named, Tool
from modelwright.serve.wire import ImagePart, Somebody, TextPart, Wire, as_list, content_of, fault

MOST_ANSWERS = 256
"""To one request: prompts times `n`."""


class StreamOptions(Wire):
    neutral = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}
    include_usage: bool = False
    """Send the token counts in one more chunk before `[DONE]`."""


class Message(Wire):
    neutral = {"name": (), "refusal": (), "audio": (), "function_call": (), "annotations": ([],)}
    role: Literal["system", "developer", "user", "assistant", "tool"]
    """`developer` is OpenAI's newer word for `system` and means the same here."""
    content: Annotated[
        str | list[dict[str, Any]] | None,
        BeforeValidator(content_of, json_schema_input_type=str | list[TextPart | ImagePart] | None),
    ] = None
    """A text, as one or in parts; parts with images stay a list."""
    tool_calls: list[MessageCall] | None = Field(None, max_length=128)
    """Calls that the assistant made in this turn."""
    tool_call_id: str | None = Field(None, max_length=200)
    """Of a tool's message: the call that it answers."""

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise fault("only the assistant calls tools", "tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise fault("a tool's message, and no other, names the call that it answers", "tool_call_id")
        if isinstance(self.content, list) and self.role != "user":
            raise fault("only a user's message holds images", "content")
        if self.content is None and not self.tool_calls:
            raise fault("a text is needed", "content")
        return self

    def plain(self) -> dict[str, Any]:
        """As templates know it."""
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}
        if self.tool_calls:
            found["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found


class JsonSchema(Wire):
    name: str = Field(max_length=200)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    """The answer always keeps to the schema, so this changes nothing."""


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None and self.json_schema.schema_ is not None):
            raise fault("type: json_schema, and no other, comes with a schema", "json_schema")
        return self

    def constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else {"type": "object"}
        return Constraint("json_schema", json.dumps(schema))


class Structure(Wire):
    """vLLM's `structured_outputs`: one of these."""

    neutral = {"json_object": (False,), "structural_tag": (), "disable_fallback": (False, True),
               "disable_any_whitespace": (False,), "disable_additional_properties": (False,), "whitespace_pattern": (),
               "backend": ()}  # fmt: skip
    json_: dict[str, Any] | None = Field(None, alias="json")
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1, max_length=1000)
    grammar: Annotated[str, Field(min_length=1)] | None = None
    """In Lark's form."""

    @model_validator(mode="after")
    def _one(self) -> Structure:
        if sum(value is not None for value in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise fault("give one of json, regex, choice and grammar")
        return self

    def constraint(self) -> Constraint:
        if self.json_ is not None:
            return Constraint("json_schema", json.dumps(self.json_))
        if self.choice is not None:
            return Constraint("choices", json.dumps(self.choice))
        return Constraint("regex", self.regex) if self.regex is not None else Constraint("grammar", self.grammar or "")


_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


class Ask(Wire):
    """The fields that both endpoints share."""

    default_tokens: ClassVar[int | None] = None
    """Of an answer for which no limit is asked; None: what the context has room for."""
    model: str = Field(max_length=500)
    """`base`, or `base:adapter`, or an adapter's own name."""
    max_tokens: int | None = Field(None, ge=1)
    """Tokens of the answer at most; null: as many as the context has room for."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 is greedy; null: the server's own."""
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    """Likeliest tokens to draw from; 0, -1 and null: all."""
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = Field(None, max_length=1024)  # fmt: skip
    """From token ids to what is added to their logits."""
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]] | None, BeforeValidator(as_list)] = Field(
        None, max_length=16
    )
    """Up to sixteen strings that end the answer and are not part of it."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """Same request and seed, same answer; null: a new one each time."""
    n: int | None = Field(None, ge=1, le=16)
    """Answers to each prompt; the one numbered i draws from seed + i."""
    user: Somebody | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structure | None = None
    guided_json: dict[str, Any] | None = None
    """vLLM's earlier names for the fields of `structured_outputs`."""
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Ask:
        if self.stream_options and not self.stream:
            raise fault("stream_options needs stream: true", "stream_options")
        asked = [name for name in ("response_format", "structured_outputs", *_GUIDED) if getattr(self, name) is not None]
        if len(asked) > 1 and not (asked[0] == "response_format" and self.response_format == ResponseFormat(type="text")):
            raise fault("{others} cannot be together: an answer has one form", asked[-1], others=" and ".join(asked))
        self.constraint()  # a fault of `guided_*` is told now
        return self

    def constraint(self) -> Constraint | None:
        """The form that the answer must have."""
        if self.structured_outputs is not None:
            return self.structured_outputs.constraint()
        given = {name.removeprefix("guided_"): getattr(self, name) for name in _GUIDED if getattr(self, name) is not None}
        if given:
            return Structure.model_validate(given).constraint()
        return self.response_format.constraint() if self.response_format else None

    def answers(self) -> int:
        return self.n or 1


class ChatRequest(Ask):
    neutral = {
        "audio": (), "function_call": ("none",), "functions": ([],), "metadata": ({},), "modalities": (["text"],),
        "moderation": (), "prediction": (), "prompt_cache_key": (), "prompt_cache_options": (),
        "prompt_cache_retention": (), "reasoning_effort": (),
        "service_tier": ("auto", "default"), "store": (False,),
        "verbosity": ("medium",), "web_search_options": (),
    }  # fmt: skip
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    safety_identifier: Somebody | None = None
    """The newer name of user."""
    logprobs: bool | None = None
    """The log-probability of each token of the answer."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """Likeliest tokens to tell in each place."""
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | Named | None = None
    """null: `auto` where there are tools."""
    parallel_tool_calls: bool | None = None
    """false: one call at most; null: any number."""

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens:
            raise fault("give max_tokens or max_completion_tokens, not both", "max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise fault("top_logprobs needs logprobs: true", "top_logprobs")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise fault("two tools have the same name", "tools")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise fault("there are no tools to choose from", "tool_choice")
        if isinstance(self.tool_choice, Named) and self.tool_choice.function.name not in names:
            raise fault("there is no tool {name}", "tool_choice", name=repr(self.tool_choice.function.name))
        if self.constraint() is not None and self.choice() != "none":
            raise fault("an answer that may call tools cannot have a form of its own: set tool_choice: none", "response_format")
        return self

    def choice(self) -> Literal["none", "auto", "required"]:
        """A named tool is required."""
        if not self.tools:
            return "none"
        return "required" if isinstance(self.tool_choice, Named) else self.tool_choice or "auto"

    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        if self.choice() == "none":
            return []
        named = self.tool_choice.function.name if isinstance(self.tool_choice, Named) else None
        return [tool for tool in self.tools or () if named in (None, tool.function.name)]

    def images(self) -> bool:
        """Whether there is one to look at."""
        return any(isinstance(message.content, list) for message in self.messages)

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def likeliest(self) -> int | None:
        """Tokens to tell in each place; 0: the log-probability of the drawn one alone; None: nothing."""
        return self.top_logprobs or 0 if self.logprobs else None


Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
"""A text as token ids."""


def as_texts(value: Any) -> Any:
    """One text or several, as a list."""
    one = isinstance(value, str) or (isinstance(value, list) and value and all(type(part) is int for part in value))
    return [value] if one else value


class CompletionRequest(Ask):
    default_tokens = 16  # OpenAI's for this endpoint
    neutral = {"best_of": (1,), "suffix": ("",)}
    prompt: Annotated[
        list[str | Ids], BeforeValidator(as_texts, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ] = Field(min_length=1, max_length=MOST_ANSWERS)
    """A text or token ids, or several of either."""
    max_tokens: int | None = Field(None, ge=0)
    """0 with `echo` alone."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Likeliest tokens to tell in each place; 0: the log-probability of the drawn one alone."""
    echo: bool | None = None
    """Give the prompt back before the answer; with `logprobs` scored, too."""

    @model_validator(mode="after")
    def _completion_fields_agree(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise fault("0 tokens are asked for, which only echo: true allows", "max_tokens")
        if len(self.prompt) * self.answers() > MOST_ANSWERS:
            raise fault("{most} answers to one request at most", "n", most=str(MOST_ANSWERS))
        return self

    def asked_tokens(self) -> int | None:
        return self.max_tokens

    def likeliest(self) -> int | None:
        return self.logprobs
