"""Feedback: what people thought of answers while a model was served, as `modelwright serve --feedback FILE` writes it.

Source: our own schema, since none is published that keeps request, answer and edit together; its words are the OpenAI API's
(https://platform.openai.com/docs/api-reference/chat/create). A row is one rating:

    schema    "modelwright.feedback/1"
    id        the answer's id, as the API gave it; a row of it that is rated again replaces the first
    time      when it was rated, UTC, ISO 8601
    model     the name that clients use; `model_key` is the key of the artifact, '' for a model that is none
    request   `messages` of a chat, or the `prompt` of a completion, and the sampling fields that the client set
    answer    what the model wrote, as far as the client got it
    finish    "stop", "length" or "cancelled"
    rating    "up" or "down"
    better    what the answer should have been, as edited by the person; absent where they gave none
    reasons   a list of short texts, such as "wrong" or "too long"; absent where they gave none
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.methods.formats import FEEDBACK_SCHEMA, Format, LeftOut, chat, rest, word

USED = ("schema", "id", "request", "answer", "rating", "better")


class Feedback(Format):
    """Ratings as training data; `meta` has the model, its key, the time and the reasons."""

    kind: Literal["feedback"] = "feedback"
    gives: Literal["judged", "pairs", "good"] = Field("judged", examples=["pairs", "good"])
    """`judged`: each answer with `meta.label` true or false, and each edit with true. `pairs`: the edit against the answer, rows
    without an edit left out. `good`: chats whose answer is the edit, or was rated up; others left out. Default: all serve."""

    def fits(self, row: dict[str, Any]) -> str | None:
        return f"`schema` is {FEEDBACK_SCHEMA}" if row.get("schema") == FEEDBACK_SCHEMA else None

    def record(self, row: dict[str, Any], name: str) -> Record:
        return self.records(row, name)[0]

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        rating, request = row.get("rating"), row.get("request")
        if rating not in ("up", "down"):
            raise ValueError(f"'rating' is {rating!r}, not up or down")
        if not isinstance(request, dict):
            raise ValueError("'request' is missing")
        if "messages" not in request:
            raise LeftOut("a text that was gone on with, not a chat")
        prompt = chat(request["messages"], "role", "content")
        if not word(row, "answer", empty=True).strip():
            raise LeftOut("an empty answer")
        answer = [_answer(row["answer"])]
        edit = [_answer(word(row, "better"))] if row.get("better") else None
        meta = {**rest(row, USED), "answer_id": row.get("id")}
        if self.gives == "pairs":
            if edit is None or edit == answer:
                raise LeftOut("an answer without an edit")
            return [Record(name, messages=prompt, chosen=edit, rejected=answer, meta={**meta, "rating": rating})]
        if self.gives == "good":
            if edit is None and rating == "down":
                raise LeftOut("an answer that was rated down, without an edit")
            return [Record(name, messages=[*prompt, *(edit or answer)], meta={**meta, "rating": rating})]
        found = [Record(name, messages=[*prompt, *answer], meta={**meta, "label": rating == "up"})]
        if edit is not None and edit != answer:
            found.append(Record(f"{name}#edit", messages=[*prompt, *edit], meta={**meta, "label": True}))
        return found


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
