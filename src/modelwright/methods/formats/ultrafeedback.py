"""UltraFeedback: an instruction and the answers of several models, each judged on four sides.

Source: Cui et al. 2023, "UltraFeedback", arXiv:2310.01377; rows as in https://huggingface.co/datasets/openbmb/UltraFeedback. Its
binarized forms are `preference`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import Format, rest, word
from modelwright.methods.formats._ranks import Judged, by_rank

SIDES = ("instruction_following", "helpfulness", "honesty", "truthfulness")


class UltraFeedback(Format):
    """Answers with ratings. One row gives several records, with the scores and `meta.model` of each answer; critiques and the
    principles that the models were given are not kept."""

    kind: Literal["ultrafeedback"] = "ultrafeedback"
    gives: Literal["pairs", "chats"] = Field("pairs", examples=["chats"])
    """`pairs`: the best answer against each worse one, for preference objectives. `chats`: every answer as a chat, best first.
    Default: what the set was made for."""
    score: Literal["mean", "overall", "instruction_following", "helpfulness", "honesty", "truthfulness"] = Field(
        "mean", examples=["overall"]
    )
    """Which judgement ranks the answers: the mean of the four sides, the judge's overall score, or one side. Default: as in
    https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences, whose card shows overall scores that are
    wrong by a factor of ten."""

    def fits(self, row: dict[str, Any]) -> str | None:
        found = row.get("completions")
        if not isinstance(row.get("instruction"), str) or not isinstance(found, list) or not found:
            return None
        if all(isinstance(one, dict) and "response" in one and "annotations" in one for one in found):
            return "it has `instruction` and `completions` with `response` and `annotations`"
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        return self.records(row, name)[0]

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        found = row.get("completions")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found) or len(found) < 2:
            raise ValueError("'completions' is no list of two answers or more")
        judged = []
        for one in found:
            score = self._score(one)
            answer: list[Message] = [{"role": "assistant", "content": word(one, "response")}]
            judged.append(Judged(answer, -score, score, {"model": one["model"]} if one.get("model") else {}))
        prompt: list[Message] = [{"role": "user", "content": word(row, "instruction")}]
        return by_rank(name, prompt, judged, rest(row, ("instruction", "completions", "models")), self.gives)

    def _score(self, answer: dict[str, Any]) -> float:
        if self.score == "overall":
            return _number(answer.get("overall_score"), "overall_score")
        notes = answer.get("annotations")
        wanted = SIDES if self.score == "mean" else (self.score,)
        found = [notes[side] for side in wanted if isinstance(notes, dict) and isinstance(notes.get(side), dict)]
        rated = [_number(side["Rating"], "Rating") for side in found if side.get("Rating") not in (None, "N/A")]
        if not rated:
            raise ValueError(f"an answer has no rating of its {self.score.replace('_', ' ')}")
        return math.fsum(rated) / len(rated)


def _number(value: Any, key: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError(f"{key!r} is no number")
    return number
