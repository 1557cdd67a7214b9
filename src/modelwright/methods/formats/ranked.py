"""Ranked: a prompt and several answers with ranks or scores.

Sources: Ouyang et al. 2022, "InstructGPT", arXiv:2203.02155, section 3.5 (lists of ranked answers); Nakano et al. 2021,
arXiv:2112.09332 (scores). The best against each other is one of the ways to make pairs of them; a list of the responses as in
https://github.com/GanjinZero/RRHF.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, chat, rest, word
from modelwright.methods.formats._ranks import Judged, by_rank

ANSWERS = ("responses", "completions", "answers")
ORDERS = {"ranks": 1, "rank": 1, "scores": -1, "score": -1, "rewards": -1}
"""Key -> 1 where the smallest number is the best answer, -1 where the largest is."""


class Ranked(Format):
    """Answers in order. One row gives several records, with `meta.rank` from 1, or `meta.rank_rejected`, and the scores."""

    kind: Literal["ranked"] = "ranked"
    gives: Literal["pairs", "chats"] = Field("pairs", examples=["chats"])
    """`pairs`: the best answer against each worse one, for preference objectives. `chats`: every answer as a chat, best first.
    Default: what most objectives for ranks take."""

    def fits(self, row: dict[str, Any]) -> str | None:
        keys = _keys(row)
        if keys is None or "prompt" not in row:
            return None
        return f"it has `prompt`, the list `{keys[0]}` and as many numbers in `{keys[1]}`"

    def record(self, row: dict[str, Any], name: str) -> Record:
        return self.records(row, name)[0]

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        keys = _keys(row)
        if keys is None:
            raise ValueError(f"no list of answers ({', '.join(ANSWERS)}) with as many numbers ({', '.join(ORDERS)})")
        prompt = _turns(row, "prompt", row.get("prompt"), "user")
        answers = [_turns(row, keys[0], answer, "assistant") for answer in row[keys[0]]]
        values: list[float] = row[keys[1]]
        judged = [Judged(answer, ORDERS[keys[1]] * value, value) for answer, value in zip(answers, values, strict=True)]
        return by_rank(name, prompt, judged, rest(row, ("prompt", *keys)), self.gives, scored=keys[1] not in ("ranks", "rank"))


def _keys(row: dict[str, Any]) -> tuple[str, str] | None:
    for key in ANSWERS:
        for order in ORDERS:
            answers, values = row.get(key), row.get(order)
            if not isinstance(answers, list) or not isinstance(values, list) or not 1 < len(answers) == len(values):
                continue
            if all(isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values):
                return key, order
    return None


def _turns(row: dict[str, Any], key: str, value: Any, role: str) -> list[Message]:
    return chat(value, "role", "content") if isinstance(value, list) else [{"role": role, "content": word({key: value}, key)}]
