"""Perplexity: how well the model predicts held-out text, or the right answer to a question.

Source: Jelinek et al. 1977, "Perplexity, a measure of the difficulty of speech recognition tasks": e to the mean negative
log-likelihood of a token, in nats, weighted by tokens over all items. Bits per byte, which models with different tokenizers
share: Gao et al. 2020 (The Pile, arXiv:2101.00027, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.tasks import Answer, Likelihood, Measure, Sample, Score, Task, expected, no_question, question

LN_2 = math.log(2)


class Perplexity(Task):
    """Of a chat, only the last answer counts, given what comes before; of a text, every token after the first."""

    advice: ClassVar[Advice] = Advice(
        "you train or quantise: it moves long before answers change",
        "you compare models on what they say, not on how likely it is",
    )
    metric: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False

    kind: Literal["perplexity"] = "perplexity"
    of: Literal["both", "texts", "answers"] = Field("both", examples=["texts"])
    """Which rows count in a mixture: documents, the answers of chats, or both in one number."""

    def refuses(self, record: Record) -> str | None:
        if self.of == ("texts" if record.messages else "answers"):
            return f"`of` is {self.of}"
        if record.messages:
            return no_question(record)
        return None if record.text.strip() else "no text"

    def ask(self, sample: Sample) -> Likelihood:
        record = sample.record
        if record.messages:
            return Likelihood(messages=(*question(record), {"role": "assistant", "content": expected(record)}))
        return Likelihood(text=record.text)

    def score(self, sample: Sample, answer: Answer) -> Score:
        """The mean nats of a token; weighs as many as it has tokens."""
        nats = -math.fsum(answer.logprobs)
        if not math.isfinite(nats):
            raise UserError(
                f"the model gives no finite probability to {sample.id!r}",
                "its weights hold NaN or infinite values, or a precision too small for them",
                "look at the training loss of the model's stage; train it with a smaller rate or in bf16 rather than fp16",
            )
        tokens = len(answer.logprobs)
        others = {"bytes": float(len(answer.text.encode())), "nats": nats}
        return Score(nats / tokens if tokens else 0.0, float(tokens), f"{tokens} tokens", others)

    def measures(self, scores: Sequence[Score]) -> list[Measure]:
        values, tokens = tuple(s.value for s in scores), tuple(s.weight for s in scores)
        sizes = tuple(s.others["bytes"] for s in scores)
        bits = tuple(s.others["nats"] / LN_2 / size if size else 0.0 for s, size in zip(scores, sizes, strict=True))
        return [
            Measure("perplexity", values, tokens, False, exponential=True, same_weights=True),
            Measure("bits per byte", bits, sizes, False),
        ]
