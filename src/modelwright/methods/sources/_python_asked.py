"""The fields and the row facts that the two sources of questions share: `python_questions` and `python_preferences`."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.estimate import Facts
from modelwright.core.events import Log
from modelwright.core.spec import Spec
from modelwright.methods.sources._python import Place, PythonTree, module_name, unreadable
from modelwright.methods.sources._python_ask import SORTS, Limits, Question, number, questions
from modelwright.methods.sources._python_objects import Function, functions

SortName = Literal[
    "parameters",
    "default",
    "raises",
    "returns",
    "name",
    "calls",
    "attributes",
    "signature",
    "decorator",
    "count",
    "summary",
    "describe",
    "complete",
    "where",
    "signature_of",
    "purpose",
]
PROMPT_SORTS: tuple[SortName, ...] = (
    "parameters",
    "default",
    "raises",
    "returns",
    "name",
    "calls",
    "attributes",
    "signature",
    "summary",
)
"""Answered from what the prompt shows. `decorator` and `count` are not among them: few functions have a decorator, and counting
is not copying, which is what a model of a few million weights learns in minutes."""


class PythonAsked(PythonTree):
    """Questions about the functions of one installed package."""

    sorts: tuple[SortName, ...] = Field(
        (*PROMPT_SORTS, "describe", "complete", "where", "signature_of", "purpose"), min_length=1, examples=[("name", "raises")]
    )
    """Which questions are asked. From the prompt: parameters, default, raises, returns, name, calls, attributes, signature,
    decorator, count, summary (the docstring is shown). Written: describe (the docstring is taken out), complete (code). From
    memory: where, signature_of, purpose."""
    min_chars: int = Field(60, ge=1, examples=[150])
    """Shortest source asked about, in characters; memory questions take any. Default: shorter ones say little."""
    max_chars: int = Field(600, ge=1, examples=[200])
    """Longest source asked about, in characters; raising it makes prompts longer and copying harder. Default: as `min_chars`."""
    answer_chars: int = Field(120, ge=1, examples=[12])
    """Longest answer in characters; a longer one is not asked for. About 40 tokens, a line of code."""
    code_chars: int = Field(400, ge=1, examples=[90])
    """Longest code that `complete` asks for, in characters."""
    phrasings: int = Field(3, ge=1, le=3, examples=[1])
    """Wordings of each question; more make a model that bears other wordings and learns slower."""
    common: float = Field(0.1, gt=0, le=1, examples=[0.02])
    """Largest share of a sort that one answer may have; rows above it are not made. 1: as they come (88 % of functions raise
    nothing), which rewards guessing; lower: an honest exact match and fewer rows."""
    ask_first: float = Field(0.0, ge=0, le=1, examples=[0.5])
    """Share of the questions that stand before the source they are about; a model answers in the order that it was taught. 0: all
    behind it, the easier order, since what is looked for is known last."""
    per_object: int = Field(4, ge=1, examples=[1])
    """Most questions about one function; sorts that are rare in the package are preferred. More: longer, less varied data."""

    bytes_per_s: ClassVar[float] = 1.5e6
    rows_per_byte: ClassVar[float] = 4.7e-3
    """Questions for each byte of source with the default fields, and `chars_per_byte` characters in them; for estimates.
    Measured on the standard library of CPython 3.11."""
    chars_per_byte: ClassVar[float] = 1.1

    def facts(self, bytes_in: float) -> Facts:
        share = min(self.per_object / 4, 1.0)  # most functions are good for four
        chars = bytes_in * self.chars_per_byte * share
        return Facts(type="records", rows=bytes_in * self.rows_per_byte * share, chars=chars, bytes=chars)

    @model_validator(mode="after")
    def _ordered(self) -> PythonAsked:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars {self.min_chars} is above max_chars {self.max_chars}: no function can be asked about")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        found = {}
        origins = {SORTS[name].origin for name in self.sorts}
        if "complete" not in self.sorts:
            found["code_chars"] = "`sorts` has no `complete`, the only one that asks for code"
        elif len(self.sorts) == 1:
            found["answer_chars"] = "`complete` is the only sort, and `code_chars` bounds its answers"
        if origins == {"memory"}:
            found |= dict.fromkeys(("min_chars", "max_chars", "ask_first"), "questions from memory show no source")
        return found

    def asked(self, log: Log) -> list[Question]:
        """Every question, those about one function side by side, in the order of the files."""
        found: list[Function] = []
        for relative, text in self.sources(log):
            try:
                found += functions(text, relative, module_name(relative), self.max_chars)
            except (SyntaxError, ValueError, RecursionError) as error:
                unreadable(log, relative, error)
        limits = Limits(
            self.sorts,
            self.min_chars,
            self.max_chars,
            self.answer_chars,
            self.code_chars,
            self.phrasings,
            self.common,
            self.ask_first,
        )
        made = questions(found, limits)
        rows = Counter(question.sort for question in made)
        chosen: list[Question] = []
        for _, of_one in groupby(made, key=lambda q: q.function):
            chosen += sorted(of_one, key=lambda q: _turn(q, rows[q.sort]))[: self.per_object]
        return chosen

    def meta(self, place: Place, *of_one: Question) -> dict[str, Any]:
        """Facts of a row about one function: what splits, held-out sets, reports and model cards read."""
        function = of_one[0].function
        return {
            "object": function.object,
            "path": function.path,
            "sort": "+".join(question.sort for question in of_one),
            "from": of_one[0].origin,
            "asked": "before" if of_one[0].before else "behind",
            "source": function.source,
            "package": self.package,
            "version": place.version,
            "licence": place.licence,
        }


def _turn(question: Question, rows: int) -> float:
    """Sampling without replacement with weight 1 / rows (Efraimidis and Spirakis 2006), the randomness from the id."""
    uniform = (number(question.id) + 1) / 2**64
    return -math.log(uniform) * rows
