"""Tools: what a request offers, how a model's template writes a call, and how calls are read out of an answer as it comes.

Sources: https://platform.openai.com/docs/guides/function-calling; the forms of Hermes and Qwen
(https://huggingface.co/Qwen/Qwen2.5-7B-Instruct), Llama 3.1 (https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1)
and Mistral (https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.3). The form is found by letting the template write a call:
what it writes for an assistant is what the model was taught to write. An answer that must be a call is held to tags, or else to a
JSON list of calls, as vLLM does.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.engines import Constraint, Engine
from modelwright.serve.wire import Wire

Style = Literal["tags", "list", "bare"]
"""`tags`: `<tool_call>{…}</tool_call>`; `list`: a JSON list of calls; `bare`: JSON objects alone."""


class CallFunction(Wire):
    name: str = Field(max_length=200)
    arguments: str
    """JSON text, as OpenAI has it."""


class MessageCall(Wire):
    neutral = {"index": tuple(range(128))}
    id: str = Field(max_length=200)
    type: Literal["function"] = "function"
    function: CallFunction

    def plain(self) -> dict[str, Any]:
        """As templates know it: arguments as an object, where they are one."""
        try:
            arguments = json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class Function(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments; null: any object."""
    strict: bool | None = None
    """true: arguments keep to the schema, which takes an answer that must be a call."""


class Tool(Wire):
    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class NamedFunction(Wire):
    name: str


class Named(Wire):
    """One tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class Called(NamedTuple):
    """A call that the model made."""

    id: str
    name: str
    arguments: str
    """JSON text."""


def style_of(engine: Engine) -> Style:
    """How the model's template writes the call of a tool. UserError where it has no place for one."""
    name = "look_up_weather"
    tools = [Tool.model_validate({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}).plain()]
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": name, "arguments": {"place": "Oslo"}}}
    asked: list[Message] = [{"role": "user", "content": "?"}]
    answered = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "rain"}]  # fmt: skip
    if engine.render(asked, tools) == engine.render(asked):
        raise UserError("the model's chat template leaves tools out", fix="ask without tools, or take a model that was taught to")
    text = engine.decode(engine.render(answered, tools))
    if re.search(r"<tool_call>\s*\{\"name\": ?\"" + name, text):
        return "tags"
    if re.search(r"\[\s*\{\"name\": ?\"" + name, text):
        return "list"
    if re.search(r"\{\"name\": ?\"" + name + r"\", ?\"(arguments|parameters)\": ?\{\"place", text):
        return "bare"
    raise UserError(
        "the model's chat template writes calls of tools in a form that this server does not read",
        "it reads <tool_call> tags, a JSON list of calls, and a call as a JSON object",
        "ask without tools",
    )


def calls_constraint(style: Style, tools: Sequence[Tool], must: bool, several: bool) -> Constraint:
    """Calls in the template's form, with arguments that keep to their tools' schemas; `must`: calls and nothing else. For other
    forms than `tags` only where they must come: a JSON list of calls."""
    schema = _call_schema(tools)
    if style == "tags":
        body = f"body: %json {json.dumps(schema | _AS_WRITTEN)}\n"
        if must:
            start = 'start: one ("\\n" one)*' if several else "start: one"
            return Constraint("grammar", f"{start}\n" + 'one: "<tool_call>\\n" body "\\n</tool_call>"\n' + body)
        start = f"start: (open line body line close){'*' if several else '?'} rest\n"
        parts = 'open[suffix="<tool_call>"]: /(\\n|.)*/\nline: /\\n?/\nclose: "</tool_call>"\nrest: /(\\n|.)*/\n'
        return Constraint("grammar", start + parts + body)
    defs = {"$defs": schema.pop("$defs")}
    listed = defs | {"type": "array", "minItems": 1, "items": schema} | ({} if several else {"maxItems": 1})
    return Constraint("json_schema", json.dumps(listed))


_AS_WRITTEN = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""llguidance's words for JSON as templates write it: blanks after commas and colons, and no others."""


def _call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    defs: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(tools):
        place = f"tool{number}"
        defs[place] = _moved(tool.function.parameters or {"type": "object"}, f"#/$defs/{place}")
        calls.append({
            "type": "object", "required": ["name", "arguments"], "additionalProperties": False,
            "properties": {"name": {"const": tool.function.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
        })  # fmt: skip
    return {"$defs": defs, **(calls[0] if len(calls) == 1 else {"anyOf": calls})}


def _moved(schema: Any, place: str) -> Any:
    """The schema with its references to itself set right for its new place."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(part, place) for name, part in schema.items()}
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        moved["$ref"] = place + ref[1:]
    return moved


class Parser(Protocol):
    """Reads an answer as it comes: text for people, calls for the client."""

    def push(self, text: str) -> tuple[str, list[Called]]: ...
    def rest(self) -> tuple[str, list[Called]]:
        """What was held back. A call that is none (no JSON, no such tool) comes as the text that it is."""
        ...


def parser(style: Style, tools: Iterable[Tool], several: bool) -> Parser:
    names = frozenset(tool.function.name for tool in tools)
    return _Tags(names, several) if style == "tags" else _Whole(names, several)


class _Tags:
    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, names: frozenset[str], several: bool) -> None:
        self._names, self._several = names, several
        self._held = ""
        self._inside = self._called = False

    def push(self, text: str) -> tuple[str, list[Called]]:
        self._held += text
        shown, calls = "", list[Called]()
        while True:
            mark = self.CLOSE if self._inside else self.OPEN
            before, met, behind = self._held.partition(mark)
            if not met:
                break
            self._held = behind
            if self._inside:
                found = _calls(before, self._names)
                if found:
                    calls += self._allowed(found)
                else:
                    shown += self.OPEN + before + mark
            else:
                shown += "" if self._called and not before.strip() else before.rstrip()
            self._inside = not self._inside
        if not self._inside and not (self._called and not self._held.strip()):
            keep = _held_back(self._held, self.OPEN)
            shown, self._held = shown + self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, calls

    def rest(self) -> tuple[str, list[Called]]:
        held, self._held = self._held, ""
        if not self._inside:
            return ("" if self._called and not held.strip() else held), []
        found = _calls(held, self._names)  # a model may end its turn instead of closing the tag
        return ("", self._allowed(found)) if found else (self.OPEN + held, [])

    def _allowed(self, calls: list[Called]) -> list[Called]:
        kept = calls if self._several else [] if self._called else calls[:1]
        self._called = True
        return kept


class _Whole:
    """A call is the whole answer, after a mark that may not show because it is a special token."""

    MARKS = ("[TOOL_CALLS]", "<|python_tag|>")

    def __init__(self, names: frozenset[str], several: bool) -> None:
        self._names, self._several = names, several
        self._held = ""
        self._plain = False

    def push(self, text: str) -> tuple[str, list[Called]]:
        if self._plain:
            return text, []
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun[0] in "[{" or any(mark.startswith(begun) or begun.startswith(mark) for mark in self.MARKS):
            return "", []
        self._plain, held, self._held = True, self._held, ""
        return held, []

    def rest(self) -> tuple[str, list[Called]]:
        held, self._held = self._held, ""
        begun = held.strip()
        for mark in self.MARKS:
            begun = begun.removeprefix(mark)
        found = _calls(begun, self._names)
        return ("", found if self._several else found[:1]) if found else (held, [])


def _held_back(text: str, mark: str) -> int:
    """Characters at the end of `text` that may turn out to belong to a call: white space, and how `mark` begins."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return len(text) - len(text[: len(text) - length].rstrip())
    return len(text) - len(text.rstrip())


def _calls(text: str, names: frozenset[str]) -> list[Called]:
    """The calls that a text is, one JSON value after another; none where anything in it is no call."""
    found: list[Called] = []
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        if text[at] in " \n\r\t;,":
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        for call in value if isinstance(value, list) else [value]:
            call = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in names:
                return []
            arguments = call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):
                try:
                    arguments = json.loads(arguments)
                except (ValueError, RecursionError):
                    return []
            if not isinstance(arguments, dict):
                return []
            found.append(Called(new_call(), call["name"], json.dumps(arguments, ensure_ascii=False)))
    return found


def new_call() -> str:
    """Nine letters and digits: Mistral's templates take no other, and the others take any."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
