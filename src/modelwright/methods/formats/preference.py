"""Preference: a better and a worse answer to the same prompt.

Sources: TRL's "preference" types with explicit and implicit prompt, https://huggingface.co/docs/trl/dataset_formats;
`conversations` with `chosen` and `rejected`, and `chosen_messages` with `rejected_messages`, as in LLaMA-Factory's data folder,
https://github.com/hiyouga/LLaMA-Factory/tree/main/data; `chosen_response` with `rejected_response` as in
https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences. Transcripts in one string are `hh`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, dialogue, pair, plainly, rest, with_meta, word
from modelwright.methods.formats._pairs import preference
from modelwright.methods.formats._transcript import is_transcript

PROMPTS = ("prompt", "messages", "conversations", "instruction", "question", "input")
PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"), ("chosen_response", "rejected_response"))


class Preference(Format):
    """Two answers, ranked. Where the prompt is not given apart, it is what both chats begin with."""

    version: ClassVar[int] = 2

    kind: Literal["preference"] = "preference"
    chosen: str = Field("", examples=["better"])
    """Key of the better answer. Default '': `chosen` as in TRL, `chosen_messages` as in LLaMA-Factory's second layout, or
    `chosen_response` as in Argilla's UltraFeedback."""
    rejected: str = Field("", examples=["worse"])
    """Key of the worse answer; set both or neither."""

    @model_validator(mode="after")
    def _both(self) -> Preference:
        if bool(self.chosen) != bool(self.rejected):
            raise ValueError("`chosen` and `rejected` name the two keys together: set both or neither")
        return self

    def _keys(self, row: dict[str, Any]) -> tuple[str, str]:
        if self.chosen:
            return self.chosen, self.rejected
        return next((keys for keys in PAIRS if keys[0] in row), PAIRS[0])

    def fits(self, row: dict[str, Any]) -> str | None:
        chosen, rejected = self._keys(row)
        if row.get(chosen) is None or row.get(rejected) is None:
            return None
        if any(is_transcript(row.get(key)) for key in ("prompt", chosen, rejected)):
            return None
        prompt = next((key for key in PROMPTS if row.get(key)), None)
        return f"it has `{chosen}` and `{rejected}`" + (f" after `{prompt}`" if prompt else " that hold their prompt")

    def record(self, row: dict[str, Any], name: str) -> Record:
        keys = self._keys(row)
        for key in keys:
            if row.get(key) is None:
                raise ValueError(f"{key!r} is missing")
        prompt, used = _prompt(row)
        return preference(name, prompt, [_answer(row, key) for key in keys], rest(row, (*used, *keys)))

    def row(self, record: Record) -> dict[str, Any]:
        prompt, better, worse = pair(record)
        chosen, rejected = self._keys({})
        sides = [plainly(prompt, "user"), plainly(better, "assistant"), plainly(worse, "assistant")]
        if not all(isinstance(side, str) and not is_transcript(side) for side in sides):
            sides = [prompt, better, worse]
        return with_meta(dict(zip(("prompt", chosen, rejected), sides, strict=True)), record.meta, ("tools",))


def _prompt(row: dict[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    system: list[Message] = [{"role": "system", "content": text}] if (text := word(row, "system", empty=True)) else []
    key = next((key for key in PROMPTS if row.get(key)), None)
    if key is None:
        return system, ("system",)
    if isinstance(row[key], list):
        return system + dialogue(row[key]), (key, "system")
    text = _plain(row, key)
    used: tuple[str, ...] = (key, "system")
    if key == "instruction" and (given := word(row, "input", empty=True)):
        text += "\n\n" + given
        used = (key, "input", "system")
    return [*system, {"role": "user", "content": text}], used


def _answer(row: dict[str, Any], key: str) -> list[Message]:
    value = row[key]
    if isinstance(value, dict):
        return dialogue([value])
    if isinstance(value, list):
        return dialogue(value)
    return [{"role": "assistant", "content": _plain(row, key)}]


def _plain(row: dict[str, Any], key: str) -> str:
    text = word(row, key)
    if is_transcript(text):
        raise ValueError(f"{key!r} is a transcript of several turns; `format: hh` reads those")
    return text
