"""The interview of `modelwright advise`: one question at a time, why it is asked, and a default that Return takes."""

from __future__ import annotations

from modelwright.cli._terminal import note
from modelwright.plan._advise_ask import MOST, Asked, following
from modelwright.plan.advise import Known


def interview(known: Known, data: bool) -> Known:
    """What is known after it. `data`: the user's data was looked at, so amounts are not asked."""
    asked = 0
    while asked < MOST and (question := following(known, data)) is not None:
        if not asked:
            note("A few questions; Return takes the answer in brackets, Ctrl-C ends it.")
        asked += 1
        value = question.read(_answer(question, asked))
        origins = {**known.origins, question.field: ("asked", "")}
        known = Known(known.situation._replace(**{question.field: value}), origins)
    return known


def _answer(question: Asked, number: int) -> str:
    note(f"\n{number}. {question.text}", "bold")
    note(f"   why: {question.why}")
    for place, (name, meaning) in enumerate(question.choices, 1):
        note(f"   {place} {name:<11}{meaning}", "default")
    while True:
        try:
            text = input(f"   [{question.default}] ").strip() or question.default
            question.read(text)
        except EOFError:  # the input has ended: as if Return had been pressed
            return question.default
        except ValueError as error:
            note(f"   {error}", "yellow")
        else:
            return text
