"""Multi-token: guess several of the next tokens from each position, which makes the trunk plan further than one.

Source: Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", arXiv:2404.19737, equation 2
(the sum of one cross-entropy a head) and section 2 (heads run one after the other, so no memory is spent on several logits at
once). The paper's heads are transformer layers, taken from the trunk; here the model keeps its layers and its own head for the
next token, and each further head is a small one (`nn/multi.py`). The further heads are left out of the saved model: it is the
plain decoder that was begun with, and the log says how many weights were left out.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice, Spec
from modelwright.methods.objectives import Batch, CrossEntropy, Loss, Needs, Policy


class MultiToken(CrossEntropy):
    """Mean over tokens of -log p(token | those before it), and of as many further ones as there are heads. `loss_2` is the part
    of the token after the next, in nats a position; `loss_1` compares with `next_token`."""

    needs: ClassVar[Needs] = "text"
    advice: ClassVar[Advice] = Advice(
        "pretraining with many tokens, on code or on bytes, at a size where models begin to plan (the paper's gains begin at 3B)",
        "small models on words: the paper's below 1B lose by it, so `next_token`",
    )

    kind: Literal["multi_token"] = "multi_token"
    heads: int = Field(4, ge=1, examples=[2])
    """Tokens guessed from each position, the next one among them; each more costs one more product with the vocabulary. 1 is
    `next_token`; 4 is the paper's best for words (table 1), 8 for bytes."""
    weight: float = Field(1.0, gt=0, examples=[0.3])
    """Weight of each further head's loss beside the next token's; more makes the trunk look further. 1 as in the paper."""

    def unused(self, context: Spec) -> dict[str, str]:
        return {"weight": "with `heads: 1` there is no further head"} if self.heads == 1 else {}

    def attach(self, model: Any) -> None:
        from modelwright.nn.multi import attach

        attach(model, self.heads - 1)

    def detach(self, model: Any) -> str:
        from modelwright.nn.multi import detach

        weights = detach(model)
        return (
            f"left out of the model: {weights:,} weights of heads 2 to {self.heads}, which only training uses" if weights else ""
        )

    def added_params(self, shape: Shape) -> int:
        return (self.heads - 1) * shape.hidden**2

    def added_flops(self, shape: Shape) -> float:
        return 2.0 * self.added_params(shape) + (self.heads - 1) * 2.0 * shape.vocab * shape.hidden

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        near = super().loss(policy, batch)
        total, metrics = near.total, {**near.metrics, "loss_1": near.metrics.get("nll", near.total.detach())}
        for distance in range(2, self.heads + 1):
            step = distance - 1
            # all tokens of a text are targets, in order, so the target of the position `step` further is `step` tokens later
            from_n = (batch.segment_N[step:] == batch.segment_N[:-step]).nonzero()[:, 0]
            further = policy.further(distance, from_n, batch.target_N[from_n + step])
            part = further.cross_entropy(batch.weight_N[from_n + step] * self.weight, self.label_smoothing, self.z_loss)
            total = total + part.total
            metrics[f"loss_{distance}"] = part.nll / self.weight
        return Loss(total, near.weight, metrics)
