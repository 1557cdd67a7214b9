"""ShareGPT: `{"conversations": [{"from": "human" | "gpt", "value"}]}`.

Source: the ShareGPT dumps as FastChat reads them, https://github.com/lm-sys/FastChat/blob/main/docs/training.md; `system` and
`tools` beside the chat and the roles `function_call` and `observation` as in LLaMA-Factory's data/README.md. A
`function_call` becomes an assistant turn whose text is the call's JSON.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.methods.formats import Format, chat, rest, word


class ShareGPT(Format):
    """A chat as a list of `from` and `value`."""

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
        keys = ("from", "value") if "from" in items[0] else ("role", "content")
        messages = chat(items, *keys)
        if (system := word(row, "system", empty=True)) and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return Record(name, messages=messages, meta=rest(row, (self.key, "system")))
