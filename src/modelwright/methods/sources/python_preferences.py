"""python_preferences: pairs of a right and a plausible wrong answer about a package's functions, derived without importing it.

Source: rejected answers made from right ones by known faults, as in Bai et al. 2022, arXiv:2212.08073 (AI-labelled
pairs), here without a model. The questions are those of `python_questions`, the faults are described in `_python_wrong.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.sources._python import locate
from modelwright.methods.sources._python_ask import Question, number
from modelwright.methods.sources._python_asked import PythonAsked
from modelwright.methods.sources._python_objects import Function
from modelwright.methods.sources._python_wrong import FaultName, wrong

_POOL = 12
"""Other functions that a fault may take from: enough that one of them has an exception or a default most times."""


class PythonPreferences(PythonAsked):
    """One pair a question."""

    advice: ClassVar[Advice] = Advice(
        "you align a model tuned on `python_questions`: the pairs show what a copying model gets wrong",
        "you want preferences of tone or helpfulness: these differ in correctness and in knowing when to stop",
    )

    kind: Literal["python_preferences"] = "python_preferences"
    faults: tuple[FaultName, ...] = Field(
        ("swapped", "dropped", "added", "other", "unparsable", "chatter", "repeated"), min_length=1, examples=[("other",)]
    )
    """What may be wrong with the rejected answer: two items swapped, one dropped or added, the answer to another question, code
    cut off, padding, or the answer twice. One that applies is chosen by the question's id; where none does, there
    is no pair. Three of four pairs have a wrong content where one can be made, the rest a wrong style."""

    chars_per_byte: ClassVar[float] = 1.2

    def read(self, log: Log) -> Iterator[Record]:
        place = locate(self.package)
        asked = self.asked(log)
        everyone = list(dict.fromkeys(question.function for question in asked))
        without = 0
        for question in asked:
            pair = wrong(question, self.faults, _others(question, everyone))
            if pair is None:
                without += 1
                continue
            fault, answer = pair
            yield Record(
                question.id,
                messages=[{"role": "user", "content": question.prompt}],
                chosen=[{"role": "assistant", "content": question.answer}],
                rejected=[{"role": "assistant", "content": answer}],
                meta={**self.meta(place, question), "fault": fault},
            )
        if without:
            log.event("no_pair", reason="no fault applies to the question", rows=without, package=self.package)


def _others(question: Question, everyone: list[Function]) -> list[Function]:
    """Functions to take a wrong answer from: the same for the same package, whatever else is asked."""
    start = number(question.id) % len(everyone)
    turned = (everyone[(start + step) % len(everyone)] for step in range(min(_POOL, len(everyone))))
    return [function for function in turned if function is not question.function]
