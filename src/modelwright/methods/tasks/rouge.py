"""ROUGE: how much of the right answer's wording the answer has, and the other way round.

Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (ACL W04-1013): F1 of ROUGE-L, ROUGE-1 and ROUGE-2,
counted by Google's rouge_score, which keeps only Latin letters and digits and takes upper and lower case for equal: do not use
it for other scripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import missing_extra
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.tasks import Answer, Generate, Measure, Sample, Score, Task, expected, no_question, question

NAMES = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2"}


class Rouge(Task):
    """Asks the question of a chat and measures the overlap of what comes with its last answer, from 0 to 1."""

    advice: ClassVar[Advice] = Advice(
        "the right answer has several wordings: a summary", "there is one right answer, or the wording tells nothing about truth"
    )
    metric: ClassVar[str] = "ROUGE-L"
    leaves: ClassVar[Mapping[str, float]] = {"nltk": 0.1e9}  # which brings pandas and scikit-learn; measured

    kind: Literal["rouge"] = "rouge"
    max_tokens: int = Field(64, ge=1, examples=[1])
    """Longest answer in tokens. As `exact_match`, so that both score the same answers and each is generated once."""
    stem: bool = Field(False, examples=[True])
    """Cut English endings (Porter) before counting: `returns` equals `return`. Off, as rouge_score has it."""

    def refuses(self, record: Record) -> str | None:
        return no_question(record)

    def ask(self, sample: Sample) -> Generate:
        return Generate(question(sample.record), max_tokens=self.max_tokens)

    def score(self, sample: Sample, answer: Answer) -> Score:
        found = _scorer(self.stem).score(expected(sample.record), answer.text)
        values = {name: float(found[name].fmeasure) for name in NAMES}
        return Score(values["rougeL"], others=values)

    def measures(self, scores: Sequence[Score]) -> list[Measure]:
        weights = tuple(s.weight for s in scores)
        return [Measure(shown, tuple(s.others[name] for s in scores), weights) for name, shown in NAMES.items()]

    def new_tokens(self) -> int:
        return self.max_tokens


@cache
def _scorer(stem: bool) -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise missing_extra("rouge_score", "eval", "the task `rouge`") from None
    return RougeScorer(list(NAMES), use_stemmer=stem)
