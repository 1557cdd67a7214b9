"""Preference: a better and a worse answer to the same prompt.

Sources: TRL's "preference" types with explicit and implicit prompt, https://huggingface.co/docs/trl/dataset_formats;
transcripts in one string, "\\n\\nHuman: … \\n\\nAssistant: …", as in Anthropic's HH-RLHF (Bai et al. 2022, arXiv:2204.05862);
`conversations` with `chosen` and `rejected` as in LLaMA-Factory's data/README.md.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, chat, rest, word

PROMPTS = ("prompt", "messages", "conversations", "instruction", "question", "input")
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Preference(Format):
    """Two answers, ranked. Where the prompt is not given apart, it is what both chats begin with."""

    kind: Literal["preference"] = "preference"
    chosen: str = Field("chosen", min_length=1, examples=["better"])
    """Key of the better answer. Default: TRL's."""
    rejected: str = Field("rejected", min_length=1, examples=["worse"])
    """Key of the worse answer."""

    def fits(self, row: dict[str, Any]) -> str | None:
        if row.get(self.chosen) is None or row.get(self.rejected) is None:
            return None
        prompt = next((key for key in PROMPTS if row.get(key)), None)
        return f"it has `{self.chosen}` and `{self.rejected}`" + (f" after `{prompt}`" if prompt else " that hold their prompt")

    def record(self, row: dict[str, Any], name: str) -> Record:
        for key in (self.chosen, self.rejected):
            if row.get(key) is None:
                raise ValueError(f"{key!r} is missing")
        prompt, used = _prompt(row)
        better, worse = _answer(row, self.chosen), _answer(row, self.rejected)
        shared = 0
        while shared < min(len(better), len(worse)) and better[shared] == worse[shared]:
            shared += 1
        if shared == len(better) == len(worse):
            raise ValueError("the better and the worse answer are the same")
        if prompt and shared and better[: len(prompt)] == prompt == worse[: len(prompt)]:
            prompt = []  # both answers repeat the prompt that is also given apart
        prompt, better, worse = prompt + better[:shared], better[shared:], worse[shared:]
        if not prompt:
            raise ValueError("there is no prompt: neither a key for it nor turns that both answers begin with")
        if not better or not worse:
            raise ValueError("one answer is only the start of the other")
        meta = rest(row, (*used, self.chosen, self.rejected))
        return Record(name, messages=prompt, chosen=better, rejected=worse, meta=meta)


def _turns(items: list[Any]) -> list[Message]:
    ours = not (items and isinstance(items[0], dict) and "from" in items[0])
    return chat(items, *(("role", "content") if ours else ("from", "value")))


def _prompt(row: dict[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    system: list[Message] = [{"role": "system", "content": text}] if (text := word(row, "system", empty=True)) else []
    key = next((key for key in PROMPTS if row.get(key)), None)
    if key is None:
        return system, ("system",)
    if isinstance(row[key], list):
        return system + _turns(row[key]), (key, "system")
    text = word(row, key)
    if _TURN.match(text):
        return system + _transcript(text, key), (key, "system")
    used: tuple[str, ...] = (key, "system")
    if key == "instruction" and (given := word(row, "input", empty=True)):
        text += "\n\n" + given
        used = (key, "input", "system")
    return [*system, {"role": "user", "content": text}], used


def _answer(row: dict[str, Any], key: str) -> list[Message]:
    value = row[key]
    if isinstance(value, dict):
        return _turns([value])
    if isinstance(value, list):
        return _turns(value)
    text = word(row, key)
    return _transcript(text, key) if _TURN.match(text) else [{"role": "assistant", "content": text}]


def _transcript(text: str, key: str) -> list[Message]:
    """`\\n\\nHuman: … \\n\\nAssistant: …` as turns."""
    pieces = _TURN.split(text)[1:]
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    if turns and not turns[-1]["content"] and key not in ("chosen", "rejected"):
        turns.pop()  # a prompt that ends in an empty `Assistant:`
    if not all(turn["content"] for turn in turns):
        raise ValueError(f"{key!r} has a turn without text")
    return turns
