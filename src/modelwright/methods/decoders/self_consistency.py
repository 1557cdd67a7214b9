"""self_consistency: many reasonings are drawn; the answer that most of them end in is given.

Wang et al. 2022, arXiv:2203.11171 (unweighted majority, table 1). Numbers are compared by value: 3, 3.0 and `$3` are one answer.
"""

import re
from collections import Counter
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelwright.core.spec import Advice, Spec
from modelwright.methods.decoders import Asking, Decoded, Decoder, chosen, seed_of, spent
from modelwright.methods.engines import Engine, Request

_NUMBER = re.compile(r"((?<![\w)])[-\u2212])?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.(\d+))?")
"""Sign, whole part with or without commas, fraction. A minus behind a word or a bracket is a subtraction."""


class SelfConsistency(Decoder):
    """Every reasoning, those of the majority first; none is weighed by its probability."""

    advice: ClassVar[Advice] = Advice(
        "a short answer stands at the end of a reasoning: arithmetic, multiple choice", "answers are texts: then `best_of_n`"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    kind: Literal["self_consistency"] = "self_consistency"
    samples: int = Field(10, ge=1, le=1024, examples=[2])
    """Reasonings drawn. More: a surer majority, at as many times the tokens. The paper's curves flatten at 10 of 40."""
    temperature: float = Field(0.7, gt=0, le=5, examples=[2.0])
    """Of the draws; more: reasonings differ more. 0.7 as in the paper."""
    top_k: int = Field(40, ge=0, examples=[2])
    """Only so many of the likeliest tokens; 0: all. 40 as in the paper."""
    seed: int = Field(0, ge=0, lt=2**31, examples=[1])
    """Of the draws."""
    answer: Literal["last_number", "last_line", "regex", "choice"] = "last_number"
    """What of a reasoning is its answer: the last number in it, its last line that is not empty, what `pattern` finds last, or
    the one of `choices` that stands last in it. A reasoning without an answer does not vote."""
    pattern: str = Field("", examples=[r"answer is (\w+)"])
    """For `regex`: Python's regular expression; its first group, or all of it where there is none, is the answer."""
    choices: tuple[str, ...] = Field((), examples=[("A", "B")])
    """For `choice`: the answers there are, as whole words."""
    show: Literal["answer", "all"] = "answer"
    """What the completion's text is: the answer alone, as a task compares it, or the whole reasoning."""

    @model_validator(mode="after")
    def _has_what_it_looks_for(self) -> Self:
        if self.answer == "regex":
            if not self.pattern:
                raise ValueError("`answer: regex` needs a `pattern`")
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"`pattern` is no regular expression: {error}") from None
        if self.answer == "choice" and not self.choices:
            raise ValueError("`answer: choice` needs `choices`")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        found = {}
        if self.answer != "regex":
            found["pattern"] = "the answer is not looked for by a pattern (`answer: regex`)"
        if self.answer != "choice":
            found["choices"] = "the answer is not one of several (`answer: choice`)"
        return found

    def budget(self, max_tokens: float) -> float:
        return self.samples * max_tokens

    def search(self, engine: Engine, request: Request) -> Asking:
        seeds = [seed_of(self.seed, request, number) for number in range(self.samples)]
        completions = yield [
            chosen(request, self.name, temperature=self.temperature, top_k=self.top_k, seed=seed) for seed in seeds
        ]
        answers = [self.extract(completion.text) for completion in completions]
        votes = Counter(answer for answer in answers if answer is not None)
        first = {answer: answers.index(answer) for answer in votes}  # of equally many votes, the answer that came first
        key = [(-votes[a], first[a], i) if a is not None else (0, len(answers), i) for i, a in enumerate(answers)]
        order = sorted(range(len(answers)), key=lambda place: key[place])
        if self.show == "answer":
            completions = [c._replace(text=c.text if a is None else a) for c, a in zip(completions, answers, strict=True)]
        return Decoded([completions[i] for i in order], spent(completions), tuple(-key[i][0] / len(answers) for i in order))

    def extract(self, text: str) -> str | None:
        """The answer in a reasoning, in the one form that equal answers have; None where there is none."""
        if self.answer == "last_line":
            return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
        if self.answer == "last_number":
            found = [parts for parts in _NUMBER.findall(text) if parts[1] or parts[2]]
            return _number(*found[-1]) if found else None
        if self.answer == "choice":
            ends = {c: [m.end() for m in re.finditer(rf"(?<!\w){re.escape(c)}(?!\w)", text)] for c in self.choices}
            last = [(places[-1], len(choice), choice) for choice, places in ends.items() if places]
            return max(last)[2] if last else None
        matches = list(re.finditer(self.pattern, text))
        return (matches[-1].group(min(1, matches[-1].re.groups)) or "").strip() or None if matches else None


def _number(sign: str, whole: str, fraction: str) -> str:
    """Equal numbers are equal texts, however many digits they have."""
    value = (whole.replace(",", "").lstrip("0") or "0") + f".{fraction}".rstrip("0").rstrip(".")
    return f"-{value}" if sign and value != "0" else value
