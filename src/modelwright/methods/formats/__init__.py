"""Formats: the shapes in which people keep chats and preferences. One file a kind; each turns a JSON object into a Record."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.record import Message, Record
from modelwright.core.spec import Kinds, Spec

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


class Format(Spec):
    """One published row layout."""

    def fits(self, row: dict[str, Any]) -> str | None:
        """Why `row` looks like this format (a sentence naming the keys), or None."""
        raise NotImplementedError

    def record(self, row: dict[str, Any], name: str) -> Record:
        """The row as a Record with id `name`; ValueError with the reason where it cannot be read."""
        raise NotImplementedError

    def settle(self, rows: Sequence[dict[str, Any]], name: str) -> tuple[Format, str]:
        """The format for a whole file, given its first rows, and why ('' where the recipe says so)."""
        return self, ""


def looking() -> Format:
    """The format that looks for itself."""
    return _default("auto")


def _default(kind: str) -> Format:
    spec = FORMATS.load(kind).model_validate({"kind": kind})
    assert isinstance(spec, Format)
    return spec


def detect(rows: Sequence[dict[str, Any]], name: str) -> tuple[Format, str]:
    """The one format that every row fits, and why; UserError where none does, or several do."""
    found: list[tuple[Format, str]] = []
    partial: list[str] = []
    for kind in FORMATS.names():
        spec = _default(kind)
        reasons = [spec.fits(row) for row in rows]
        if reasons and all(reasons):
            found.append((spec, str(reasons[0])))
        elif any(reasons):
            first = next(i for i, reason in enumerate(reasons) if reason is None)
            partial.append(f"row {first + 1} is not `{kind}`, though {sum(map(bool, reasons))} of {len(rows)} rows are")
    if len(found) == 1:
        return found[0]
    keys = ", ".join(sorted({key for row in rows for key in row})) or "none"
    if found:
        raise UserError(
            f"{name}: the rows fit several formats",
            "; ".join(f"`{spec.model_dump()['kind']}`, because {reason}" for spec, reason in found),
            f"say which: `format: {found[0][0].model_dump()['kind']}`",
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
    return [_message(item, number, role_key, content_key) for number, item in enumerate(items, 1)]


def _message(item: Any, number: int, role_key: str, content_key: str) -> Message:
    if not isinstance(item, dict) or role_key not in item:
        raise ValueError(f"turn {number} has no {role_key!r}")
    role = ROLES.get(str(item[role_key]).lower())
    if role is None:
        raise ValueError(f"turn {number} has the unknown role {item[role_key]!r}; known: {', '.join(ROLES)}")
    message: Message = {"role": role, "content": flat(item.get(content_key), number)}
    for key in ("tool_calls", "tool_call_id", "name"):
        if item.get(key):
            message[key] = item[key]
    if not message["content"] and role != "system" and "tool_calls" not in message:
        raise ValueError(f"turn {number} ({role}) is empty")
    return message


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


def rest(row: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """Everything else in the row, carried as metadata; a `meta` of our own records is merged in."""
    meta = {key: value for key, value in row.items() if key not in used and key != "meta" and value is not None}
    own = row.get("meta")
    if isinstance(own, dict):
        meta.update(own)
    elif own is not None:
        meta["meta"] = own
    return meta
