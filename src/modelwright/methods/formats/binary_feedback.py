"""Binary feedback: one answer, and whether it was good. A chat with `meta.label`.

Sources: Ethayarajh et al. 2024, "KTO", arXiv:2402.01306; TRL's "unpaired preference" type (`prompt`, `completion`, `label`),
https://huggingface.co/docs/trl/dataset_formats; a chat with `label` or `kto_tag` as in LLaMA-Factory's data folder,
https://github.com/hiyouga/LLaMA-Factory/tree/main/data.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, dialogue, plainly, rest, said, with_meta, word

LABELS = ("label", "kto_tag")
CHATS = ("messages", "conversations")
WORDS = {"true": True, "false": False, "1": True, "0": False}


class BinaryFeedback(Format):
    """A chat whose last answer was found good (true) or bad (false)."""

    over: ClassVar[tuple[str, ...]] = ("prompt_completion", "completion", "messages", "sharegpt")
    version: ClassVar[int] = 2

    kind: Literal["binary_feedback"] = "binary_feedback"
    label: str = Field("", examples=["good"])
    """Key of the verdict, true or false (or 1 or 0, or these as words). Default '': `label` as in TRL, or `kto_tag` as in
    LLaMA-Factory. The record has it as `meta.label`."""

    def _key(self, row: dict[str, Any]) -> str | None:
        return next((key for key in ((self.label,) if self.label else LABELS) if verdict(row.get(key)) is not None), None)

    def fits(self, row: dict[str, Any]) -> str | None:
        key = self._key(row)
        if key is None or "chosen" in row or "rejected" in row:
            return None
        if row.get("prompt") and row.get("completion"):
            return f"it has `prompt`, `completion` and a true or false `{key}`"
        found = next((name for name in CHATS if isinstance(row.get(name), list) and row[name]), None)
        return f"it has `{found}` and a true or false `{key}`" if found else None

    def record(self, row: dict[str, Any], name: str) -> Record:
        key = self._key(row)
        if key is None:
            raise ValueError(f"no verdict: {' or '.join((self.label,) if self.label else LABELS)} is neither true nor false")
        found = next((key for key in CHATS if row.get(key)), None)
        if found:
            turns = dialogue(row[found])
        else:
            turns = _side(row, "prompt", "user") + _side(row, "completion", "assistant")
        if turns[-1]["role"] != "assistant":
            raise ValueError(f"the last turn is the {turns[-1]['role']}'s: there is no answer to judge")
        if (system := word(row, "system", empty=True)) and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
        meta = rest(row, ((found,) if found else ("prompt", "completion")) + ("system", key))
        return Record(name, messages=turns, meta={**meta, "label": verdict(row[key])})

    def row(self, record: Record) -> dict[str, Any]:
        turns = said(record)
        if not isinstance(record.meta.get("label"), bool):
            raise ValueError("`meta.label` is not true or false")
        meta = {key: value for key, value in record.meta.items() if key != "label"}
        sides = {"prompt": plainly(turns[:-1], "user"), "completion": plainly(turns[-1:], "assistant")}
        row = {**sides, self.label or LABELS[0]: record.meta["label"]}
        return with_meta(row, meta, ("tools",))


def verdict(value: Any) -> bool | None:
    """True, false, or None for what is neither."""
    return WORDS.get(str(value).lower()) if isinstance(value, (bool, int, str)) else None


def _side(row: dict[str, Any], key: str, role: str) -> list[Message]:
    return dialogue(row[key]) if isinstance(row.get(key), list) else [{"role": role, "content": word(row, key)}]
