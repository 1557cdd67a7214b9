"""DPO: make the better of two answers likelier than the worse one, measured against the frozen start.

Source: Rafailov et al. 2023, "Direct Preference Optimization", arXiv:2305.18290, equation 7; label smoothing from Mitchell 2023,
"A note on DPO with noisy preferences", equation 3; the added answer likelihood from Pang et al. 2024, "Iterative Reasoning
Preference Optimization", arXiv:2404.19733, equation 1 (per token, as there).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.objectives import Asks, Batch, Loss, Needs, Objective, Policy, segment_sums


class DPO(Objective):
    """-log sigmoid of beta times how much further apart the two answers are than under the reference."""

    needs: ClassVar[Needs] = "pairs"
    asks: ClassVar[Asks] = "logps"
    reference: ClassVar[bool] = True
    target_frac: ClassVar[float] = 0.4
    advice: ClassVar[Advice] = Advice(
        "you have pairs of a better and a worse answer, and a start that can already answer",
        "the start cannot answer yet: `sft` first",
        needs="prompts with a better and a worse answer each",
        cost=2.7,
        memory=1.0,
        quality="pairs close to what the start itself would write; orders that people agree on, or `label_smoothing`",
        deployment="a model as before, or an adapter beside it",
        source=(
            "Rafailov et al. 2023, arXiv:2305.18290; cost: two answers of three passes and one of the reference "
            "each; memory: the reference's log-probabilities are stored, so no second model is held"
        ),
    )

    rate_factor: ClassVar[float] = 1 / 40  # Zephyr-7B in the alignment-handbook: 5e-7 after SFT with 2e-5; 5e-6 with QLoRA
    kl: ClassVar[str] = "beta"

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, examples=[0.3])
    """How closely to stay with the reference; higher keeps closer. 0.1 as in the paper's experiments (appendix B)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, examples=[0.1])
    """Share of pairs whose order is taken to be wrong; higher trusts the labels less. 0 is the paper."""
    sft_weight: float = Field(0.0, ge=0, examples=[1.0])
    """Weight of -log p per token of the better answer, added to the loss; higher keeps good answers likely. 0 is the paper."""

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        import torch
        from torch.nn.functional import logsigmoid

        assert batch.chosen_P is not None and batch.rejected_P is not None and batch.reference_N is not None
        logp_N = policy.logps()
        logp_S = segment_sums(logp_N, batch.segment_N, batch.segments)
        ratio_S = logp_S - segment_sums(batch.reference_N, batch.segment_N, batch.segments)
        reward_chosen_P = self.beta * ratio_S[batch.chosen_P]
        reward_rejected_P = self.beta * ratio_S[batch.rejected_P]
        margin_P = reward_chosen_P - reward_rejected_P
        loss_P = -(1 - self.label_smoothing) * logsigmoid(margin_P) - self.label_smoothing * logsigmoid(-margin_P)
        if self.sft_weight:
            tokens_S = segment_sums(torch.ones_like(logp_N), batch.segment_N, batch.segments)
            loss_P = loss_P - self.sft_weight * logp_S[batch.chosen_P] / tokens_S[batch.chosen_P].clamp(min=1)
        sums = {
            "margin": margin_P,
            "accuracy": (margin_P > 0).float(),
            "reward_chosen": reward_chosen_P,
            "reward_rejected": reward_rejected_P,
            "logp_chosen": logp_S[batch.chosen_P],
        }
        weight = torch.tensor(float(len(margin_P)))
        return Loss(loss_P.sum(), weight, {name: value.detach().sum() for name, value in sums.items()})
