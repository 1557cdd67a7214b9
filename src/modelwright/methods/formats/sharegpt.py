"""ShareGPT: `{"conversations": [{"from": "human" | "gpt", "value"}]}`.

Source: the ShareGPT dumps as FastChat reads them, https://github.com/lm-sys/FastChat/blob/main/docs/training.md; `system` and
`tools` beside the chat and the roles `function_call` and `observation` as in LLaMA-Factory's data/README.md. A
`function_call` (the JSON of a call, or of a list of them) becomes an assistant turn with `tool_calls`, whose ids are made up.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, dialogue, rest, said, with_meta, word


class ShareGPT(Format):
    """A chat as a list of `from` and `value`."""

    version: ClassVar[int] = 2

    kind: Literal["sharegpt"] = "sharegpt"
    key: str = Field("conversations", min_length=1, examples=["conversation"])
    """Key that holds the chat. Default: ShareGPT's."""

    def fits(self, row: dict[str, Any]) -> str | None:
        items = row.get(self.key)
        if not isinstance(items, list) or not items or "chosen" in row or "rejected" in row:
            return None
        for role in ("from", "role"):
            if all(isinstance(item, dict) and role in item for item in items):
                return f"`{self.key}` is a list of turns with `{role}`"
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        items = row.get(self.key)
        if not isinstance(items, list) or not items or not isinstance(items[0], dict):
            raise ValueError(f"{self.key!r} is not a list of turns")
        messages = dialogue(items)
        if (system := word(row, "system", empty=True)) and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return Record(name, messages=messages, meta=rest(row, (self.key, "system")))

    def row(self, record: Record) -> dict[str, Any]:
        return with_meta({self.key: [_named(message) for message in said(record)]}, record.meta, ("tools",))


WHO = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _named(message: Message) -> dict[str, Any]:
    if calls := message.get("tool_calls"):
        functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
        value = functions[0] if len(functions) == 1 else functions
        return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}
    other = {key: value for key, value in message.items() if key not in ("role", "content", "tool_call_id")}
    return {"from": WHO[message["role"]], "value": message["content"], **other}
