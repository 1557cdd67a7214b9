"""Classify: one of several labels for a text, by a small layer on a pretrained model.

Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 4.1 (cross-entropy, all weights trained); for decoders Radford
et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2 (the last token's state). The layer, where
it looks and its names are those of transformers' `AutoModelForSequenceClassification`, which opens the result.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.objectives import Asks, Batch, Head, Loss, Needs, Objective, Policy


class Classify(Objective):
    """Mean over texts of -log p(label | text); `accuracy` is the share of texts whose likeliest label is right."""

    needs: ClassVar[Needs] = "labels"
    asks: ClassVar[Asks] = "scores"
    head: ClassVar[Head] = "sequence"
    target_frac: ClassVar[float] = 0.0
    advice: ClassVar[Advice] = Advice(
        "texts are to be sorted into a few known labels, and some hundred of them have theirs",
        "the labels are not fixed, or the answer is a sentence: `sft`",
        needs="texts with one of a few fixed labels",
        least_rows=100,
        cost=1.0,
        memory=1.0,
        quality="labels that two people would both give; every label often enough",
        deployment="one forward pass a text and no writing: the cheapest to serve",
        source=(
            "Devlin et al. 2018, arXiv:1810.04805, section 4.1; rows: with 64 a label, fine-tuning has come near to methods made "
            "for few rows (Tunstall et al. 2022, arXiv:2209.11055, table 2)"
        ),
    )

    kind: Literal["classify"] = "classify"
    field: str = Field("label", min_length=1, examples=["sentiment"])
    """Key of a row that holds its label (rows of `{text, label}`; in our own records a key of `meta`)."""
    labels: tuple[str, ...] = Field(("0", "1"), min_length=2, examples=[("negative", "positive", "neutral")])
    """Every label, in the order of the model's outputs; they become the model's `id2label`. Rows with another one are left
    out and counted. Default: the numbers of a set of two, as SST-2 and IMDB have them."""

    @field_validator("labels")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each label once")
        return value

    def settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def label(self, record: Record) -> float:
        value = record.meta.get(self.field)
        if value is None:
            raise ValueError(f"no `{self.field}`")
        name = str(int(value)) if isinstance(value, (bool, float)) and float(value).is_integer() else str(value)
        if name not in self.labels:
            raise ValueError("a label that is not among `labels`")
        return float(self.labels.index(name))

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        from torch.nn.functional import cross_entropy

        assert batch.label_S is not None
        score_SC, label_S = policy.scores().float(), batch.label_S.long()
        right_S = score_SC.detach().argmax(1) == label_S
        weight = score_SC.new_tensor(float(len(label_S)))
        return Loss(cross_entropy(score_SC, label_S, reduction="sum"), weight, {"accuracy": right_S.float().sum()})
