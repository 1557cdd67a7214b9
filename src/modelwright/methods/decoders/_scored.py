"""Answers that are drawn and scored: the fields and the arithmetic that best-of-n and step-level search share.

The mean log-probability of an answer's tokens as its score: Wu et al. 2016, arXiv:1609.08144, equation 14 with alpha 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PrivateAttr, model_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.methods.decoders import Decoder, chosen, mean_logprob, prompt_text, seed_of
from modelwright.methods.engines import Completion, Engine, Request
from modelwright.methods.tasks import TASKS, Answer, Task
from modelwright.methods.tasks import Sample as Item

Scorer = Callable[[str, str], float]
"""(prompt, answer) -> how good, the higher the better."""


class Scored(Decoder):
    """Draws several, keeps the best. What is best is said by `scorer` or, in Python, by `scored_by`."""

    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    samples: int = Field(8, ge=1, le=1024, examples=[2])
    """Answers (or steps) drawn together. More: a better best one, by this scorer, at as many times the tokens."""
    temperature: float = Field(0.7, gt=0, le=5, examples=[2.0])
    """Of the draws; more: answers differ more. 0.7 as in Cobbe et al. 2021 (arXiv:2110.14168)."""
    top_p: float = Field(1.0, gt=0, le=1, examples=[0.3])
    """Only the likeliest tokens that together have this probability; less: answers differ less. 1: all."""
    seed: int = Field(0, ge=0, lt=2**31, examples=[1])
    """Of the draws."""
    scorer: Annotated[Task, TASKS] | None = Field(None, examples=["python_parses"])
    """A task that scores an answer without knowing the right one, such as `python_parses`. Unset: the answer's mean
    log-probability under the model itself, in nats a token."""
    _score: Scorer | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _needs_no_answer(self) -> Self:
        if self.scorer is not None and self.scorer.reference:
            raise ValueError(f"the task `{self.scorer.name}` knows the right answer: to choose by it would be to cheat")
        return self

    def wants(self) -> frozenset[str]:
        return self.needs if self.scorer is not None or self._score is not None else self.needs | {"logprobs"}

    def scored_by(self, score: Scorer) -> Self:
        """The same with a scorer of your own, in Python only: a recipe could not say which one it was."""
        copy = self.model_copy()
        copy._score = score
        return copy

    def identity(self) -> dict[str, Any]:
        if self._score is not None:
            raise UserError(
                "a scorer given in Python cannot be part of a recipe", "an artifact's key would not tell it", "name a `scorer`"
            )
        return super().identity()

    def drawn(self, request: Request, number: int) -> Request:
        seed = seed_of(self.seed, request, number)
        needed = request.sampling.logprobs or "logprobs" in self.wants()
        return chosen(request, self.name, temperature=self.temperature, top_p=self.top_p, seed=seed, logprobs=needed)

    def scores(self, engine: Engine, request: Request, answers: Sequence[Completion]) -> list[float]:
        """Of each answer to a prompt, the higher the better."""
        if self._score is None and self.scorer is None:
            return [mean_logprob(answer) for answer in answers]
        text = prompt_text(engine, request)
        if self._score is not None:
            return [float(self._score(text, answer.text)) for answer in answers]
        assert self.scorer is not None
        sign = 1 if self.scorer.higher_is_better else -1
        item = Item("", Record("", messages=[{"role": "user", "content": text}]))
        given = [Answer(answer.text, answer.logprobs, len(answer.tokens)) for answer in answers]
        return [sign * self.scorer.score(item, answer).value for answer in given]
