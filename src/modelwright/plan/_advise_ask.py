"""The interview: the next question that a path turns on and that nothing has answered yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from modelwright.core.units import count_of
from modelwright.plan._advise_tree import ADAPTED, HEADS, Known, Question
from modelwright.plan._advise_trees import trees

MOST = 9
"""Questions of an interview: more than these nobody answers with care; the rest is assumed and said to be."""


def _yes(text: str) -> bool:
    if text.lower() in ("y", "yes", "n", "no"):
        return text.lower().startswith("y")
    raise ValueError("answer y or n")


def _share(text: str) -> float:
    """Of yes and no, as a share."""
    return 1.0 if _yes(text) else 0.0


class Asked(NamedTuple):
    """A question to a person."""

    field: str
    text: str
    why: str
    default: str
    choices: tuple[tuple[str, str], ...]
    """(answer, what it means); empty for a number or yes and no."""
    read: Callable[[str], Any]
    """The value of an answer; ValueError for one that is none."""


class _Form(NamedTuple):
    text: str
    default: str
    read: Callable[[str], Any]


_FORMS: dict[str, _Form] = {
    "fresh": _Form("Do the facts change, or must answers name their source? (y/n)", "n", _yes),
    "cited": _Form("Do the facts change, or must answers name their source? (y/n)", "n", _yes),
    "reading_tokens": _Form("How many tokens of documents are there to read? (a page has about 400)", "1M", count_of),
    "text_tokens": _Form("How many tokens of plain text of the field are there? (a page has about 400)", "0", count_of),
    "rows": _Form("How many questions with good answers do you have?", "0", count_of),
    "labelled": _Form("How many texts with labels do you have?", "0", count_of),
    "near": _Form("How many pairs of texts that belong together do you have?", "0", count_of),
    "pairs": _Form("How many prompts with a better and a worse answer do you have?", "0", count_of),
    "verifiable": _Form("Can a program check whether an answer is right? (y/n)", "n", _share),
    "reasoning": _Form("Do answers get better when the model thinks first? (y/n)", "n", _yes),
    "traces": _Form("Do your rows show how the answer was found, not the result alone? (y/n)", "n", _share),
    "passes": _Form("Does the model get it right at least sometimes now? (y/n)", "y", _share),
    "teacher": _Form("Is there a stronger model whose answers you may train on? (y/n)", "n", _yes),
    "chats": _Form("Does the model that you start from answer as an assistant already? (y/n)", "y", _yes),
    "base": _Form("Is there a public model that knows this language and kind of data? (y/n)", "y", _yes),
    "quality_first": _Form("Are the last points of quality worth ten times the work? (y/n)", "n", _yes),
    "tasks": _Form("How many tasks are to be served from one model?", "1", count_of),
}
_CHOICES = {"goal": "behaviour", "prompting": "untried", "target": "same", "label_kind": "texts"}
"""Fields whose answer is a branch of their question, and the default."""


def following(known: Known, data: bool) -> Asked | None:
    """The next question to ask; None where nothing is open. `data`: the user's data was looked at, so amounts are known."""
    tree = trees()["method"]
    name = tree.root
    while name in tree.questions:
        question = tree.questions[name]
        found = question.answer(known.situation)
        by_name = name == "goal" or (name == "reasoning" and known.situation.goal != "reasoning")
        field = name if by_name else found.field
        counted = data and field in _FORMS and _FORMS[field].read is count_of
        if getattr(known.situation, field) is None and not counted and (asked := _asked(field, question)) is not None:
            return asked
        name = question.branches[found.branch].to
    makes = name == "smaller" or {*ADAPTED, *HEADS} & {*tree.leaves[name].methods}
    return _asked("target", trees()["deploy"].questions["target"]) if makes and known.situation.target is None else None


def _asked(field: str, question: Question) -> Asked | None:
    if field in _CHOICES:
        own = next(tree.questions[field] for tree in trees().values() if field in tree.questions)
        choices = tuple((branch, to.when) for branch, to in own.branches.items())
        names = [branch for branch, _ in choices]

        def read(text: str) -> str:
            if text in names:
                return text
            if text.isdigit() and 1 <= int(text) <= len(names):
                return names[int(text) - 1]
            raise ValueError(f"answer one of: {', '.join(names)}, or its number")

        return Asked(field, own.asks, own.why, _CHOICES[field], choices, read)
    if field in _FORMS:
        form = _FORMS[field]
        return Asked(field, form.text, question.why, form.default, (), form.read)
    return None
