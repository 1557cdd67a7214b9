"""Several answers in order, as pairs or chats. Sources: see `ranked`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modelwright.core.record import Message, Record


class Judged(NamedTuple):
    """An answer and how good it is."""

    turns: list[Message]
    place: float
    """Where it stands; lower is better, and equal is as good."""
    score: float
    meta: dict[str, Any] = {}
    """What is known of this answer alone."""


def by_rank(
    name: str, prompt: list[Message], answers: Sequence[Judged], meta: dict[str, Any], gives: str, scored: bool = True
) -> list[Record]:
    """`pairs`: the best answer against each worse one; `chats`: every answer as a chat, best first. ValueError where no pair is
    found. `scored`: numbers are scores, which go into `meta`, not ranks."""
    order = sorted(answers, key=lambda answer: answer.place)
    rank = {answer.place: 1 + sum(other.place < answer.place for other in answers) for answer in answers}
    if gives == "chats":
        return [
            Record(
                f"{name}#{number}",
                messages=[*prompt, *answer.turns],
                meta={**meta, **answer.meta, "rank": rank[answer.place]} | ({"score": answer.score} if scored else {}),
            )
            for number, answer in enumerate(order, 1)
        ]
    best = order[0]
    pairs = [
        Record(
            f"{name}#{number}",
            messages=prompt,
            chosen=best.turns,
            rejected=answer.turns,
            meta={**meta, **{f"{key}_chosen": value for key, value in best.meta.items()}}
            | {f"{key}_rejected": value for key, value in answer.meta.items()}
            | {"rank_rejected": rank[answer.place]}
            | ({"score_chosen": best.score, "score_rejected": answer.score} if scored else {}),
        )
        for number, answer in enumerate(order[1:], 2)
        if rank[answer.place] > 1 and answer.turns != best.turns  # equals of the best are no worse
    ]
    if not pairs:
        raise ValueError("no answer is worse than the best")
    return pairs
