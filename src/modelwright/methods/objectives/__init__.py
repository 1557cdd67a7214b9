"""Objectives: what a gradient step improves. One file a kind. Pure: tensors in, a loss out, no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from modelwright.core.spec import Kinds, Spec

if TYPE_CHECKING:
    from torch import Tensor

OBJECTIVES = Kinds(__name__, f"{__name__}:Objective")

# Shape suffixes: T tokens of the packed micro-batch, N positions that the loss predicts, S segments (documents,
# answers), P pairs.


class Batch(NamedTuple):
    """A packed micro-batch: what the loss may look at."""

    target_N: Tensor
    """Token id that each predicted position must give."""
    weight_N: Tensor
    """Weight of each position in the loss; 1 for plain training."""
    segment_N: Tensor
    """Segment that each position belongs to."""
    segments: int
    chosen_P: Tensor | None = None
    """Segment of each pair's better answer; `rejected_P` likewise."""
    rejected_P: Tensor | None = None
    reference_N: Tensor | None = None
    """Log-probability of each target under the frozen reference, in nats; None where the objective needs none."""


class Policy(Protocol):
    """The model being trained, on one micro-batch. Log-probabilities exist only at the N predicted positions."""

    def nll(self, weight_N: Tensor) -> Tensor:
        """Scalar: sum of weight * -log p(target), in nats. Its gradient is formed in the forward pass, so it enters the loss with
        factor 1: a factor belongs into `weight_N`."""
        ...

    def logps(self) -> Tensor:
        """[N] log p(target) in nats, differentiable."""
        ...


class Loss(NamedTuple):
    """`total` is a sum, not a mean: the loop divides by the summed `weight` of the whole global batch."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]
    """Sums over the micro-batch; divided by `weight` for display."""


class Objective(Spec):
    """A loss and what it needs to see."""

    needs: ClassVar[Literal["text", "answers", "pairs"]]
    """Rows it trains on: every token of a text or chat, the answers of a chat, or preference pairs."""
    reference: ClassVar[bool] = False
    """The frozen start model's log-probabilities are needed; the planner counts them."""

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        raise NotImplementedError


def segment_sums(value_N: Any, segment_N: Any, segments: int) -> Any:
    """[S] sum of each segment's values."""
    return value_N.new_zeros(segments).index_add(0, segment_N, value_N)
