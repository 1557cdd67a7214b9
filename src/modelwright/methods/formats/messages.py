"""Messages: `{"messages": [{"role", "content"}]}`, as in the OpenAI API.

Source: OpenAI, fine-tuning and chat completions, https://platform.openai.com/docs/api-reference/chat/create; the same as TRL's
"conversational" type, https://huggingface.co/docs/trl/dataset_formats. Lists of text parts are joined.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.methods.formats import Format, chat, rest, said, with_meta


class Messages(Format):
    """A chat as a list of roles and contents. A row's `tools` are kept in `meta` for the template."""

    version: ClassVar[int] = 2

    kind: Literal["messages"] = "messages"
    key: str = Field("messages", min_length=1, examples=["dialogue"])
    """Key that holds the chat. Default: OpenAI's."""

    def fits(self, row: dict[str, Any]) -> str | None:
        items = row.get(self.key)
        if not isinstance(items, list) or not items or "chosen" in row or "rejected" in row:
            return None
        if all(isinstance(item, dict) and "role" in item for item in items):
            return f"`{self.key}` is a list of turns with `role`"
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        if self.key not in row:
            raise ValueError(f"{self.key!r} is missing")
        return Record(name, messages=chat(row[self.key], "role", "content"), meta=rest(row, (self.key,)))

    def row(self, record: Record) -> dict[str, Any]:
        return with_meta({self.key: said(record)}, record.meta, ("tools",))
