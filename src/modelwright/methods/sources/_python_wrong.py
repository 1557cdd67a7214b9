"""Plausible wrong answers, derived by introspection: the faults that small models make when they copy.

Method: preference pairs by corrupting a right answer, as in hard-negative construction for contrastive learning; the loss they
serve is DPO (Rafailov et al. 2023, arXiv 2305.18290). Every fault here was checked to differ from the right answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from modelwright.methods.sources._python_ask import NONE, Question, number
from modelwright.methods.sources._python_objects import Function, parses

FaultName = Literal["swapped", "dropped", "added", "other", "unparsable", "chatter", "repeated"]

_LISTS = ("parameters", "raises", "calls", "attributes", "signature", "signature_of")
_PADDING = (
    "Sure! The answer is {answer}.",
    "{answer}. Let me know if you need anything else!",
    "I think that it is {answer}, but I am not sure.",
)


def _split(question: Question) -> tuple[str, list[str], str] | None:
    """What comes before the list, its items, what comes after; a signature's list is in its parentheses. None: no plain list."""
    answer = question.answer
    if question.sort not in _LISTS:
        return None
    if question.sort not in ("signature", "signature_of"):
        return "", [] if answer == NONE else answer.split(", "), ""
    start, end = answer.find("("), answer.rfind(")")
    inside = answer[start + 1 : end]
    if re.search(r"[\[({'\"]", inside):  # a comma inside a default splits nothing
        return None
    return answer[: start + 1], inside.split(", ") if inside else [], answer[end:]


def _swapped(question: Question, pool: Sequence[Function]) -> str | None:
    """Two neighbours of a list change places."""
    before, items, after = _split(question) or ("", [], "")
    if len(items) < 2:
        return None
    at = number(f"{question.id} swapped") % (len(items) - 1)
    return before + ", ".join([*items[:at], items[at + 1], items[at], *items[at + 2 :]]) + after


def _dropped(question: Question, pool: Sequence[Function]) -> str | None:
    """One item of a list is missing, or the second half of a sentence."""
    if question.sort in ("summary", "describe", "purpose"):
        words = question.answer.split(" ")
        return " ".join(words[: (len(words) + 1) // 2])
    before, items, after = _split(question) or ("", [], "")
    if len(items) < 2:
        return None
    at = number(f"{question.id} dropped") % len(items)
    return before + ", ".join(items[:at] + items[at + 1 :]) + after


def _added(question: Question, pool: Sequence[Function]) -> str | None:
    """One item too many, from another function."""
    parts = _split(question)
    if parts is None:
        return None
    before, items, after = parts
    new = (item for other in pool for item in _same_kind(question, other) if item not in question.answer)
    return next((before + ", ".join([*items, item]) + after for item in new), None)


def _same_kind(question: Question, other: Function) -> list[str]:
    """What the other function would have in this list."""
    if question.sort == "raises":
        return other.body.raises or []
    if question.sort == "calls":
        return other.body.calls or []
    if question.sort == "attributes":
        return other.body.attributes or []
    return [name for name in other.parameters if name not in ("self", "cls") and not name.startswith("*")]


def _other(question: Question, pool: Sequence[Function]) -> str | None:
    """The answer to another question of the sort: first from the same function, then from others."""
    function, answer = question.function, question.answer
    own: dict[str, Sequence[str | None]] = {
        "default": [*function.defaults.values(), *(name for name in function.parameters if name != question.about)],
        "returns": [*function.body.expressions, *function.parameters],
        "name": [call.rsplit(".", 1)[-1] for call in function.body.calls or ()],
    }
    rest: dict[str, Callable[[Function], Sequence[str | None]]] = {
        "parameters": lambda f: [", ".join(f.parameters) or NONE],
        "default": lambda f: list(f.defaults.values()),
        "raises": lambda f: f.body.raises or (),
        "returns": lambda f: [f.body.returned],
        "name": lambda f: [f.name],
        "calls": lambda f: [", ".join(f.body.calls or ())],
        "attributes": lambda f: [", ".join(f.body.attributes or ())],
        "decorator": lambda f: f.decorators,
        "count": lambda f: [str(len(f.parameters))],
        "where": lambda f: [f.module],
        "signature": lambda f: [f.signature],
        "signature_of": lambda f: [f.signature],
        "complete": lambda f: [_body_of(question, f)],
        "summary": lambda f: [f.summary],
        "describe": lambda f: [f.summary],
        "purpose": lambda f: [f.summary],
    }
    candidates = list(own.get(question.sort, ()))
    for other in pool:
        candidates += rest[question.sort](other)
    lines = question.sort == "complete"
    return next((c for c in candidates if c and c != answer and (lines or "\n" not in c)), None)


def _body_of(question: Question, other: Function) -> str | None:
    """The asked header over another function's body."""
    header, _, _ = question.answer.partition("\n")
    _, _, body = (other.without_doc or other.source).partition("\n")
    text = f"{header}\n{body}"
    fits = header.startswith("def ") and header.endswith(":") and other.source.startswith("def ") and len(body) <= 400
    return text if fits and body and text != question.answer and parses(text) else None


def _unparsable(question: Question, pool: Sequence[Function]) -> str | None:
    """Code that breaks off in the middle of a line."""
    if question.sort != "complete":
        return None
    for at in range(len(question.answer) * 3 // 4, len(question.answer) // 4, -1):
        if not parses(question.answer[:at]) and question.answer[at - 1] in "(,=":
            return question.answer[:at]
    return None


def _chatter(question: Question, pool: Sequence[Function]) -> str | None:
    """The right answer, padded: it is not exact, and it does not stop."""
    return _PADDING[number(question.id) % len(_PADDING)].format(answer=question.answer.rstrip("."))


def _repeated(question: Question, pool: Sequence[Function]) -> str | None:
    """The right answer, then again: a model that does not stop."""
    return f"{question.answer}\n{question.answer}" if question.sort == "complete" else f"{question.answer}, {question.answer}"


FAULTS: dict[FaultName, Callable[[Question, Sequence[Function]], str | None]] = {
    "swapped": _swapped,
    "dropped": _dropped,
    "added": _added,
    "other": _other,
    "unparsable": _unparsable,
    "chatter": _chatter,
    "repeated": _repeated,
}
"""Every fault; each gives None where it does not apply."""


_STYLE: tuple[FaultName, ...] = ("chatter", "repeated")
_STYLE_FRAC = 0.25
"""Share of pairs that differ in style alone: they are learnt from few pairs, and every question allows them."""


def wrong(question: Question, faults: Sequence[FaultName], pool: Sequence[Function]) -> tuple[FaultName, str] | None:
    """One wrong answer and its fault, chosen by the question's id among the faults that apply; None where none does."""
    style_first = number(f"{question.id} style") / 2**64 < _STYLE_FRAC
    for name in sorted(faults, key=lambda fault: ((fault in _STYLE) != style_first, number(f"{question.id} {fault}"))):
        answer = FAULTS[name](question, pool)
        if answer and answer != question.answer:
            return name, answer
    return None
