"""Exact match: the share of answers that equal the right one.

Source: Rajpurkar et al. 2016 (SQuAD, arXiv:1606.05250, section 6.1). Ours differs in what is forgiven: articles and punctuation
inside an answer count, because in code they mean something; each forgiveness is a field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.tasks import Answer, Generate, Sample, Score, Task, expected, no_question, question


class ExactMatch(Task):
    """Asks the question of a chat and compares what comes with its last answer. White space around both is never counted."""

    advice: ClassVar[Advice] = Advice(
        "there is one right answer: a name, a number, a list in order", "several wordings are right: then `rouge`"
    )
    metric: ClassVar[str] = "exact match"

    kind: Literal["exact_match"] = "exact_match"
    max_tokens: int = Field(64, ge=1, examples=[1])
    """Longest answer in tokens; a right answer that is longer cannot be given. 64 hold a line of code."""
    ignore_case: bool = Field(False, examples=[True])
    """Take upper and lower case for equal. Off: `None` and `none` are different things in code."""
    ignore_spaces: bool = Field(True, examples=[False])
    """Take any run of white space for one space. On: line breaks and indentation seldom carry an answer, and tokenizers differ in
    them."""
    ignore_final_stop: bool = Field(True, examples=[False])
    """Leave out one full stop at the end. On: a sentence with and without it says the same."""
    first_line: bool = Field(False, examples=[True])
    """Compare only the first line that was generated, for models that were never taught to stop. Off: an answer that goes on is
    not the right one."""

    def refuses(self, record: Record) -> str | None:
        return no_question(record)

    def ask(self, sample: Sample) -> Generate:
        return Generate(question(sample.record), max_tokens=self.max_tokens)

    def score(self, sample: Sample, answer: Answer) -> Score:
        given = answer.text.strip()
        if self.first_line:
            given = given.partition("\n")[0]
        return Score(float(self.normal(given) == self.normal(expected(sample.record))))

    def normal(self, text: str) -> str:
        """What is compared."""
        text = " ".join(text.split()) if self.ignore_spaces else text.strip()
        if self.ignore_final_stop and text.endswith(".") and not text.endswith(".."):  # an ellipsis is code
            text = text[:-1].rstrip()
        return text.casefold() if self.ignore_case else text

    def baseline(self, samples: Sequence[Sample]) -> float | None:
        """Share of somebody who gives each sort its most common answer, chosen with the answers in hand."""
        common: dict[str, Counter[str]] = {}
        for sample in samples:
            common.setdefault(sample.group, Counter())[self.normal(expected(sample.record))] += 1
        return sum(answers.most_common(1)[0][1] for answers in common.values()) / len(samples)

    def new_tokens(self) -> int:
        return self.max_tokens
