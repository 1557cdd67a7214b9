"""Regress: a number for a text, by a small layer on a pretrained model.

Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 4.1 on STS-B, with the squared error of transformers'
`AutoModelForSequenceClassification` (`problem_type: regression`), which opens the result.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.objectives import Asks, Batch, Head, Loss, Needs, Objective, Policy

LARGEST = 3e38
"""What float32 holds."""


class Regress(Objective):
    """Mean over texts of (value - guess)^2; `absolute_error` is the mean of |value - guess|."""

    needs: ClassVar[Needs] = "labels"
    asks: ClassVar[Asks] = "scores"
    head: ClassVar[Head] = "sequence"
    target_frac: ClassVar[float] = 0.0
    advice: ClassVar[Advice] = Advice(
        "texts have a grade on a scale: similarity, quality, a price",
        "the values are a few names: `classify`",
        needs="texts with a grade on a scale",
        least_rows=100,
        cost=1.0,
        memory=1.0,
        quality="grades of several people, averaged",
        deployment="one forward pass a text and no writing",
        source="Devlin et al. 2018, arXiv:1810.04805, section 4.1 (STS-B); rows as for `classify`",
    )

    kind: Literal["regress"] = "regress"
    field: str = Field("label", min_length=1, examples=["score"])
    """Key of a row that holds its number (rows of `{text, label}`; in our own records a key of `meta`)."""
    unit: float = Field(1.0, gt=0, examples=[5.0])
    """What the model's output 1 stands for: values are divided by it, so that a fresh model's outputs are of the right size. 1:
    values are learnt as they are; a value near the largest one is a good choice where they are far from 1."""

    def settings(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression", "id2label": {0: self.field}, "label2id": {self.field: 0}}

    def label(self, record: Record) -> float:
        value = record.meta.get(self.field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:
            raise ValueError(f"no number in `{self.field}`")
        return float(value) / self.unit

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        assert batch.label_S is not None
        gap_S = policy.scores().float().squeeze(1) - batch.label_S.float()
        return Loss(gap_S.square().sum(), gap_S.new_tensor(float(len(gap_S))), {"absolute_error": gap_S.detach().abs().sum()})
