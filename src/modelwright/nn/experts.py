"""Mixture of experts: the two losses that keep a router sound, and the numbers that show whether it is.

Source: the balance loss is Fedus et al. 2021, "Switch Transformers", arXiv:2101.03961, equations 4 to 6, with the k choices of a
token counted as 1 / k each, so that it is 1 where tokens are spread evenly whatever k is, layer by layer as there. (transformers'
`load_balancing_loss_func` counts each choice as 1 and pools the layers before it multiplies: k times as much for one layer.) The
z-loss is Zoph et al. 2022, "ST-MoE", arXiv:2202.08906, equation 5. Both are means over the tokens of a step and the layers.

Choices are counted over the whole global batch, as Qiu et al. 2025, arXiv:2501.11873, do for Qwen3: over a micro-batch, the loss
spreads the tokens of each text evenly, and experts cannot become good at something. What differs: they are those of the step
before (even ones in the first), which are known in the forward pass of every micro-batch; theirs are those of the micro-batches
so far. So what is learned depends neither on the size of micro-batches nor on the number of processes.
"""

# Shape suffixes: L layers with experts, T packed tokens, E experts.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FAMILIES = {"qwen3_moe", "mixtral", "olmoe"}
"""Values of `model_type` whose base model gives `router_logits` and whose configuration has the names read here."""


class Counted(NamedTuple):
    """What routers did with some tokens, in sums over them; plain numbers for other processes."""

    choice_LE: Tensor
    """Choices that fell on each expert."""
    probability_LE: Tensor
    """Of each expert."""
    square: float
    """Of the log-partition: the mean over the layers."""
    tokens: int

    def plus(self, other: Counted) -> Counted:
        return Counted(
            self.choice_LE + other.choice_LE,
            self.probability_LE + other.probability_LE,
            self.square + other.square,
            self.tokens + other.tokens,
        )

    @property
    def share_LE(self) -> Tensor:
        """[L, E] of a layer's choices; each row sums to 1."""
        return self.choice_LE / self.choice_LE.sum(-1, keepdim=True)

    def metrics(self) -> dict[str, float]:
        """`balance`: 1 where tokens are spread evenly, the number of experts where one has them all. `router_z`: mean square of
        the router's log-partition. `expert_most`: tokens of the busiest expert over those of an even spread. `experts_idle`:
        share of experts that no token chose."""
        share_LE, experts = self.share_LE, self.choice_LE.shape[-1]
        return {
            "balance": float((share_LE * self.probability_LE).sum(-1).mean()) * experts / self.tokens,
            "router_z": self.square / self.tokens,
            "expert_most": float(share_LE.max()) * experts,
            "experts_idle": float((share_LE == 0).float().mean()),
        }


class Choices:
    """What routers do in the steps of a training."""

    before_LE: Tensor | None = None
    """Shares of the step before; None: there was none."""
    targets_per_token: float | None = None
    """Of the whole step; None: that of a micro-batch counts."""
    counted: Counted | None = None
    """In this step so far, here."""

    tokens = 0
    """Of the whole step."""
    weight = 0.0
    """Of the loss of a whole step, where it is one of all micro-batches together."""

    def begin(self, targets: int, tokens: int) -> None:
        """A step over so many."""
        self.targets_per_token, self.tokens, self.counted = targets / max(tokens, 1), tokens, None

    def loss(self, routed: Routed, weight: Tensor, targets: int) -> Tensor:
        """What a micro-batch adds to the sum of losses, which the weight of the step will divide: the mean over the step's
        tokens. `weight`: of its own loss."""
        self._add(routed)
        share = 1.0 if self.targets_per_token is None else routed.counted.tokens * self.targets_per_token / max(targets, 1)
        return routed.loss * (float(weight) * share)

    def loss_of_step(self, routed: Routed) -> Tensor:
        """As `loss`, where the weight of the whole step is known."""
        self._add(routed)
        return routed.loss * (self.weight * routed.counted.tokens / self.tokens)

    def _add(self, routed: Routed) -> None:
        self.counted = routed.counted if self.counted is None else self.counted.plus(routed.counted)

    def made(self, counted: Counted | None) -> None:
        """A step was made in which all processes together did this."""
        self.before_LE = None if counted is None else counted.share_LE


class Routed(NamedTuple):
    """What a forward pass says of its routers."""

    loss: Tensor
    """Scalar to add to the mean loss of a token."""
    counted: Counted


class Router(NamedTuple):
    """The numbers of a model's configuration that its routers' losses need."""

    experts: int
    experts_per_token: int
    balance: float
    """Weight of the balance loss."""
    z: float
    """Weight of the z-loss."""

    @staticmethod
    def of(model: Any) -> Router | None:
        """None for a model without routers."""
        config = model.config
        if config.model_type not in FAMILIES:
            return None
        z = getattr(config, "router_z_loss_coef", 0.0)  # no field of transformers' configurations: one of ours
        return Router(config.num_experts, config.num_experts_per_tok, config.router_aux_loss_coef, z)

    def routed(self, logits_LTE: Sequence[Tensor], share_LE: Tensor | None) -> Routed:
        """`logits_LTE`: `router_logits` of the base model's output, one [T, E] for each layer with experts. `share_LE`: of the
        choices that tokens are to be kept from; None: even ones."""
        counted = count(logits_LTE, self.experts_per_token)
        share_LE = counted.choice_LE.new_full((1, self.experts), 1 / self.experts) if share_LE is None else share_LE
        balance, z = balance_loss(logits_LTE, share_LE), z_loss(logits_LTE)
        return Routed(self.balance * balance + self.z * z, counted)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def count(logits_LTE: Sequence[Tensor], experts_per_token: int) -> Counted:
    """What routers with these logits do."""
    choices, probabilities = [], []
    for logits_TE in logits_LTE:
        chosen = logits_TE.topk(experts_per_token, dim=-1).indices.flatten()
        choices.append(torch.bincount(chosen, minlength=logits_TE.shape[-1]))
        probabilities.append(_wide(logits_TE).softmax(-1).sum(0))
    choice_LE, probability_LE = (torch.stack(sums).cpu().double() for sums in (choices, probabilities))
    tokens = len(logits_LTE[0])
    return Counted(choice_LE, probability_LE, float(z_loss(logits_LTE)) * tokens, tokens)


def balance_loss(logits_LTE: Sequence[Tensor], share_LE: Tensor) -> Tensor:
    """Scalar: E * sum of (share of choices x mean probability) over the experts, mean over the layers. Its gradient goes through
    the probabilities: a choice has none."""
    mean_LE = torch.stack([_wide(logits_TE).softmax(-1).mean(0) for logits_TE in logits_LTE])
    return (share_LE.to(mean_LE.dtype).to(mean_LE.device) * mean_LE).sum(-1).mean() * mean_LE.shape[-1]


def z_loss(logits_LTE: Sequence[Tensor]) -> Tensor:
    """Scalar: mean square of log sum exp of the logits."""
    return torch.stack([_wide(logits_TE).logsumexp(-1).square().mean() for logits_TE in logits_LTE]).mean()
