"""Formats: the shapes in which people keep chats and preferences. One file a kind; each turns a JSON object into a Record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from modelwright.core.errors import UserError
from modelwright.core.record import Message, Record
from modelwright.core.spec import Kinds, Spec, kind_of

FORMATS = Kinds(__name__, f"{__name__}:Format")

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""What people call a speaker -> the role in the OpenAI API."""


FEEDBACK_SCHEMA = "modelwright.feedback/1"
"""What rows say that our own server wrote of people's ratings; see `feedback`."""


class LeftOut(ValueError):
    """A row that can be read and that a field of the format leaves out; counted, never a fault."""


class Format(Spec):
    """One published row layout."""

    over: ClassVar[tuple[str, ...]] = ()
    """Layouts that rows of this one fit too, because they ask for less: this one is taken, and the other told."""

    def fits(self, row: dict[str, Any]) -> str | None:
        """Why `row` looks like this format (a sentence naming the keys), or None."""
        raise NotImplementedError

    def record(self, row: dict[str, Any], name: str) -> Record:
        """The row as a Record with id `name`; ValueError with the reason where it cannot be read."""
        raise NotImplementedError

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        """Every record of the row: one, unless the layout holds several in a row."""
        return [self.record(row, name)]

    def row(self, record: Record) -> dict[str, Any]:
        """The record in this layout, as well as it can; ValueError with the reason where it cannot. See `write`."""
        raise ValueError("this layout can only be read")

    def write(self, record: Record) -> dict[str, Any]:
        """The row that reads as `record`; UserError where this layout cannot hold all of it."""
        kind = kind_of(self)
        record = replace(record, messages=_with_ids([dict(turn) for turn in record.messages]))  # as it would be read
        try:
            row = self.row(record)
            back = self.records(row, record.id)
        except ValueError as error:
            raise _cannot(kind, record, str(error)) from None
        if len(back) != 1:
            raise _cannot(kind, record, f"the row would be read as {len(back)} records")
        parts = ("text", "messages", "chosen", "rejected", "meta")
        if lost := [part for part in parts if getattr(record, part) != getattr(back[0], part)]:
            raise _cannot(kind, record, f"{', '.join(lost)} would be read back otherwise")
        return row

    def settle(self, rows: Sequence[dict[str, Any]], name: str, odd: float = 0) -> tuple[Format, str]:
        """The format for a whole file, given its first rows, and why ('' where the recipe says so); `odd` as in `detect`."""
        return self, ""


def _cannot(kind: str, record: Record, why: str) -> UserError:
    return UserError(
        f"`{kind}` cannot hold the record {record.id}",
        why,
        "`messages` holds every chat, `preference` every pair and `text` every document",
    )


def looking() -> Format:
    """The format that looks for itself."""
    return _default("auto")


def _default(kind: str) -> Format:
    spec = FORMATS.load(kind).model_validate({"kind": kind})
    assert isinstance(spec, Format)
    return spec


def detect(rows: Sequence[dict[str, Any]], name: str, odd: float = 0) -> tuple[Format, str]:
    """The one format that every row fits, but for a share of at most `odd`, and why; UserError where none does, or several do."""
    found: list[tuple[Format, str]] = []
    partial: list[str] = []
    for kind in FORMATS.names():
        spec = _default(kind)
        reasons = [spec.fits(row) for row in rows]
        fitting = list(filter(None, reasons))
        if not fitting:
            continue
        first = next((number for number, reason in enumerate(reasons, 1) if reason is None), 0)
        if len(rows) - len(fitting) <= odd * len(rows):
            some = f", as {len(fitting)} of its first {len(rows)} rows; row {first} is the first that is not" if first else ""
            found.append((spec, fitting[0] + some))
        else:
            partial.append(f"row {first} is not `{kind}`, though {len(fitting)} of {len(rows)} rows are")
    wider = {kind for spec, _ in found for kind in spec.over}
    others = [(spec, reason) for spec, reason in found if kind_of(spec) in wider]
    found = [(spec, reason) for spec, reason in found if kind_of(spec) not in wider]
    if len(found) == 1:
        could = "".join(f"; it could also be `{kind_of(spec)}`, because {reason}" for spec, reason in others)
        return found[0][0], found[0][1] + could
    keys = ", ".join(sorted({key for row in rows for key in row})) or "none"
    if found:
        raise UserError(
            f"{name}: the rows fit several formats",
            "; ".join(f"`{kind_of(spec)}`, because {reason}" for spec, reason in found),
            f"say which: {' or '.join(f'`format: {kind_of(spec)}`' for spec, _ in found)}",
        )
    raise UserError(
        f"{name}: no known format fits the first {len(rows)} rows",
        "; ".join([f"keys: {keys}", *partial]),
        f"rename the keys, or say the format and its keys: {', '.join(k for k in FORMATS.names() if k != 'auto')}",
    )


# --- pieces that several formats share ------------------------------------------------------------------


def chat(items: Any, role_key: str, content_key: str) -> list[Message]:
    """A list of turns with the roles and plain text of the OpenAI API; ValueError with the turn that is wrong."""
    if not isinstance(items, list) or not items:
        raise ValueError("the chat is empty" if items == [] else f"the chat is {type(items).__name__}, not a list")
    return _with_ids([_message(item, number, role_key, content_key) for number, item in enumerate(items, 1)])


def dialogue(items: Any) -> list[Message]:
    """A list of turns in ShareGPT's spelling, `from` and `value`, or in OpenAI's."""
    named = isinstance(items, list) and items and isinstance(items[0], dict) and "from" in items[0]
    return chat(items, *(("from", "value") if named else ("role", "content")))


CARRIED = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Keys of a turn that stay in it: tool calls and thoughts as OpenAI, DeepSeek and gpt-oss spell them."""


_READ = {"role", "from", "content", "value", "weight", "loss_weight", *CARRIED}


def not_kept(row: Mapping[str, Any], record: Record) -> set[str]:
    """Keys of the row's turns that hold something and have no place in the record."""
    lists = (value for key, value in row.items() if type(value) is list and key not in record.meta)
    turns = (turn for turns in lists for turn in turns if isinstance(turn, dict) and ("role" in turn or "from" in turn))
    return {key for turn in turns for key in turn.keys() - _READ if turn[key] not in (None, "", [], {})}


def _message(item: Any, number: int, role_key: str, content_key: str) -> Message:
    if not isinstance(item, dict) or role_key not in item:
        raise ValueError(f"turn {number} has no {role_key!r}")
    who = str(item[role_key]).lower()
    role = ROLES.get(who)
    if role is None:
        raise ValueError(f"turn {number} has the unknown role {item[role_key]!r}; known: {', '.join(ROLES)}")
    message: Message = {"role": role, "content": flat(item.get(content_key), number)}
    for key in CARRIED:
        if item.get(key) not in (None, "", []):
            message[key] = item[key]
    if (weight := item.get("weight", item.get("loss_weight"))) is not None:
        if weight not in (0, 1):
            raise ValueError(f"turn {number} has the weight {weight!r}; known: 0 (context) and 1 (trained on)")
        message["weight"] = int(weight)
    if who == "function_call":
        message |= {"content": "", "tool_calls": _calls(message["content"], number)}
    if isinstance(item.get("function_call"), dict):
        raise ValueError(f"turn {number} has a `function_call`, as the OpenAI API had before `tool_calls`: write it as those")
    if not message["content"] and role != "system" and "tool_calls" not in message:
        raise ValueError(f"turn {number} ({role}) is empty")
    return message


def _calls(text: str, number: int) -> list[dict[str, Any]]:
    """The JSON of one call, or of a list of them, as the OpenAI API has it."""
    try:
        tree = json.loads(text)
    except ValueError:
        tree = None
    calls = tree if isinstance(tree, list) else [tree]
    if not calls or not all(isinstance(call, dict) and {"name", "arguments"} == set(call) for call in calls):
        raise ValueError(f"turn {number} (function_call) is not the JSON of calls with `name` and `arguments`")
    return [{"type": "function", "function": call} for call in calls]


def _with_ids(turns: list[Message]) -> list[Message]:
    """Calls of tools and their results get the ids that they lack, where as many results follow as calls were made: the first is
    then the first one's. Nine letters and digits, as Mistral's templates ask for."""
    count = itertools.count(1)
    for place, turn in enumerate(turns):
        calls = turn.get("tool_calls")
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            continue
        results = list(itertools.takewhile(lambda other: other.get("role") == "tool", turns[place + 1 :]))
        if len(results) != len(calls) or any("tool_call_id" in result for result in results):
            continue
        turn["tool_calls"] = [call if call.get("id") else {**call, "id": f"call{next(count):05}"} for call in calls]
        for result, call in zip(results, turn["tool_calls"], strict=True):
            result["tool_call_id"] = call["id"]
    return turns


def flat(content: Any, number: int) -> str:
    """Text of a message's content, which may come as a list of typed parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = []
        for part in content:
            text = part if isinstance(part, str) else part.get("text", part.get("value")) if isinstance(part, dict) else None
            if not isinstance(text, str):
                raise ValueError(f"turn {number} holds a part that is not text")
            parts.append(text)
        return "".join(parts)
    raise ValueError(f"turn {number} has content of type {type(content).__name__}, not text")


def word(row: Mapping[str, Any], key: str, empty: bool = False) -> str:
    """The text under `key`; ValueError where it is not text, or has none."""
    value = row.get(key)
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {type(value).__name__}, not text" if key in row else f"{key!r} is missing")
    if not value.strip() and not empty:
        raise ValueError(f"{key!r} is empty")
    return value


def said(record: Record, *, chat_only: bool = True) -> list[Message]:
    """The turns of a chat that is to be written; ValueError where the record is something else."""
    if not record.messages or record.text or (chat_only and (record.chosen or record.rejected)):
        raise ValueError("it holds chats alone" if chat_only else "it holds no documents")
    return record.messages


def pair(record: Record) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, better and worse answer of a preference that is to be written; ValueError where it is none."""
    if not (record.messages and record.chosen and record.rejected):
        raise ValueError("it holds preferences alone: a prompt, a better and a worse answer")
    return record.messages, record.chosen, record.rejected


def content(turns: Sequence[Message], *roles: str) -> list[str]:
    """The texts of turns that are exactly these roles with nothing but text; ValueError where they are others."""
    if other := sorted({key for message in turns for key in message} - {"role", "content"}):
        raise ValueError(f"it holds plain text, and no {' or '.join(f'`{key}`' for key in other)} of a turn")
    if [message["role"] for message in turns] != list(roles):
        spare = sorted({str(message["role"]) for message in turns} - set(roles))
        found = f"not what a {' or '.join(spare)} says" if spare else "not turns in another order or number"
        raise ValueError(f"it holds {' and '.join(dict.fromkeys(roles))} in turn, {found}")
    return [str(message["content"]) for message in turns]


def plainly(turns: Sequence[Message], role: str) -> str | list[Message]:
    """One turn of this role as text, where it is nothing but text; others as they are."""
    alone = len(turns) == 1 and turns[0]["role"] == role and set(turns[0]) == {"role", "content"}
    return str(turns[0]["content"]) if alone and str(turns[0]["content"]).strip() else list(turns)


def with_meta(row: dict[str, Any], meta: Mapping[str, Any], own: Collection[str] = ()) -> dict[str, Any]:
    """The row with metadata: keys of `own` beside the rest of the row, as the layout has them, all others under `meta`."""
    row |= {key: meta[key] for key in own if key in meta}
    other = {key: value for key, value in meta.items() if key not in own}
    return row | {"meta": other} if other else row


def rest(row: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Everything else in the row, carried as metadata; a `meta` of our own records is merged in."""
    meta = {key: value for key, value in row.items() if key not in used and key != "meta" and value is not None}
    own = row.get("meta")
    if isinstance(own, dict):
        meta.update(own)
    elif own is not None:
        meta["meta"] = own
    return meta
