"""Objectives: what a gradient step improves. One file a kind. Pure: tensors in, a loss out, no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.memory import Asks as Asks
from modelwright.core.memory.own import Texts
from modelwright.core.record import Record
from modelwright.core.spec import Kinds, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from modelwright.nn.logps import Sums, Top
    from modelwright.nn.rows import Packed

OBJECTIVES = Kinds(__name__, f"{__name__}:Objective")

# Shape suffixes: T tokens of the packed micro-batch, N positions that the loss predicts, S segments (documents,
# answers), P pairs.

Needs = Literal["text", "documents", "answers", "pairs", "labels", "groups", "tags"]
"""Rows to train on: every token of a text or chat, texts alone, the answers of a chat, preference pairs, texts with a label,
texts with others that are near or far, texts with a label for each word."""
MESSAGES: Mapping[Needs, float] = {"answers": 2.0, "pairs": 3.0}
"""Of a row, where rows are chats; for estimates."""
MESSAGE_TOKENS = 5.0
"""What a template writes around one: ChatML's marks, role and line feeds."""
Head = Literal["causal", "masked", "sequence", "vectors", "seq2seq", "tokens"]
"""What hidden states become: log-probabilities of the next token, looking back alone; of the token itself, looking both ways;
scores of a whole text; a vector of it, whatever the model's own head is; log-probabilities of a second text, written after the
first was read; scores of each token."""


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
    label_S: Tensor | None = None
    """What each document should get; None where the rows have no labels."""
    group_S: Tensor | None = None
    """Row that each document belongs to, ascending; None where a row is one document."""


class Policy(Protocol):
    """The model being trained, on one micro-batch. Log-probabilities exist only at the N predicted positions."""

    def nll(self, weight_N: Tensor) -> Tensor:
        """Scalar: sum of weight * -log p(target), in nats. Its gradient is formed in the forward pass, so it enters the loss with
        factor 1: a factor belongs into `weight_N`."""
        ...

    def cross_entropy(self, weight_N: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
        """The same with labels smoothed and PaLM's z-loss added, and its plain parts beside it."""
        ...

    def logps(self, temperature: float = 1.0) -> Tensor:
        """[N] log p(target) in nats, differentiable; of the softmax of logits / temperature."""
        ...

    def at(self, ids_NK: Tensor, temperature: float = 1.0) -> Tensor:
        """[N, K] log p of these tokens in nats, differentiable."""
        ...

    def entropies(self, temperature: float = 1.0) -> Tensor:
        """[N] entropy of each prediction in nats, differentiable."""
        ...

    def top(self, count: int, temperature: float = 1.0) -> Top:
        """The likeliest tokens of each position and their log-probabilities; not differentiable."""
        ...

    def scores(self) -> Tensor:
        """[S, C] what a `sequence` head makes of each document, differentiable; other heads have none."""
        ...

    def vectors(self) -> Tensor:
        """[S, D] a vector of each document, differentiable; only where the objective looks at the whole step."""
        ...

    def further(self, distance: int, wanted_n: Tensor, target_n: Tensor) -> Policy:
        """What the head for the token `distance` steps ahead says of these targets, at the predictions `wanted_n` of the N; only
        where the objective put such heads into the model (`attach`)."""
        ...


class Loss(NamedTuple):
    """`total` is a sum, not a mean: the loop divides by the summed `weight` of the whole global batch."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor]
    """Sums over the micro-batch; divided by `weight` for display."""


class Mark(str):
    """A token of the vocabulary, put into a row whole; other strings are text to encode."""


class Arranged(NamedTuple):
    """A text in another order."""

    parts: list[str]
    """Texts and `Mark`s."""
    how: str
    """What was done, in a word or two; counted for the report."""


class Tagged(NamedTuple):
    """A word of a text and what it should get."""

    begin: int
    """Its first character; `end` is the one behind it."""
    end: int
    label: int


ANSWER_FRAC, BRANCH_FRAC = 0.4, 0.25
"""Assumed share of a chat that is its answer, and of a pair's better side that it does not share: of 100 tokens of either, 40 are
in the loss (`Objective.target_frac`)."""


class Objective(Spec):
    """A loss and what it needs to see: which rows, in which order, changed how, and which head of the model."""

    needs: ClassVar[Needs]
    head: ClassVar[Head] = "causal"
    reference: ClassVar[bool] = False
    """The frozen start model's log-probabilities are needed; the planner counts them."""
    target_frac: ClassVar[float] = 1.0
    """Share of a row's tokens whose log-probabilities are computed, for estimates."""
    whole_step: ClassVar[bool] = False
    """The loss of a row depends on the other rows of its step: it is computed over all micro-batches together."""
    asks: ClassVar[Asks] = "cross_entropy"
    """What the loss asks of the model, for the planner."""
    rate_factor: ClassVar[float] = 1.0
    """By how much its best learning rate is above that of SFT on the same model, as published; for the pitfall rules."""
    kl: ClassVar[str] = ""
    """Field that says how closely the model is held to its start; '' where nothing is to hold it."""
    arranges: ClassVar[bool] = False
    """Texts pass through `arranged` before they become tokens."""

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        raise NotImplementedError

    def marks(self) -> tuple[str, ...]:
        """Tokens that the vocabulary must hold whole."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Entries of the model's configuration that this objective decides, in transformers' names."""
        return {}

    def label(self, record: Record) -> float:
        """What a row with this objective's `labels` should get; ValueError with a short, countable reason where it has none."""
        raise NotImplementedError

    def parts(self, record: Record) -> list[str]:
        """The texts of a row of `groups`, the row's own first, its partner second; ValueError with a short, countable reason."""
        raise NotImplementedError

    def tagged(self, record: Record) -> list[Tagged]:
        """The words of a row with `tags`, in order; ValueError with a short, countable reason where it has no labels."""
        raise NotImplementedError

    def figures(self, values: dict[str, float]) -> dict[str, float]:
        """Means as they are shown: what is no mean of single rows is made of those that are."""
        return values

    def beside(self, width: int) -> dict[str, Any]:
        """Files saved beside a model of this width, as JSON: how it is to be used."""
        return {}

    def arranged(self, text: str, draw: Random) -> Arranged | None:
        """The text as this objective wants to read it; None: as it is."""
        return None

    def change(self, tokenizer: Any, seed: int) -> Callable[[Packed], Packed] | None:
        """What is done to each micro-batch before the model sees it, drawn from the seed, the step (`Packed.visit`) and the row,
        so that neither packing nor a resumed run changes it. None: nothing."""
        return None

    def row_tokens(self, length: int) -> int:
        """Most tokens of a text that fit into a row of this `length` once they are changed."""
        return length

    def marks_tokens(self) -> float:
        """What a template writes around the messages of a row."""
        return MESSAGES.get(self.needs, 0.0) * MESSAGE_TOKENS

    def texts(self, tokens: int) -> tuple[Texts, ...]:
        """What a row of a text of so many tokens becomes, for the planner."""
        if self.needs == "answers":
            answer = max(1, round(ANSWER_FRAC * tokens))
            return (Texts(tokens, answer, answer),)
        if self.needs == "pairs":
            branch = max(1, round(BRANCH_FRAC * tokens))
            shared = tokens - branch
            return Texts(shared, 1, 0), Texts(branch, branch - 1, branch, before=shared, number=2)
        if self.needs == "groups":
            return (Texts(tokens, tokens, tokens, number=2),)
        return (Texts(tokens, tokens - 1, tokens - 1),)

    def attach(self, model: Any) -> None:
        """Put modules into the transformers model that only training needs: they are trained with it and kept in checkpoints."""

    def detach(self, model: Any) -> str:
        """Take them out again before it is saved; says what was left out, '' where nothing was."""
        return ""

    def added_params(self, shape: Shape) -> int:
        """Number of weights of these modules, for estimates."""
        return 0

    def added_flops(self, shape: Shape) -> float:
        """FLOPs of a target on its way through these modules, for estimates."""
        return 0.0


class CrossEntropy(Objective):
    """-log p of each target, and what may be added to it.

    Label smoothing: Szegedy et al. 2015, arXiv:1512.00567, section 7. z-loss: Chowdhery et al. 2022, "PaLM", arXiv:2204.02311,
    section 5. Where either is on, the metric `nll` is the plain -log p and `z_loss` the part that the z-loss adds.
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1, examples=[0.1])
    """Share of each target that is spread evenly over the vocabulary, as torch's `cross_entropy` has it; more makes the model
    less sure. 0: probabilities are what a language model is for; the paper takes 0.1 for classes."""
    z_loss: float = Field(0.0, ge=0, examples=[0.01])
    """Weight of log^2 Z (nats squared, per token), where Z is what the softmax divides by; more holds log Z nearer zero,
    which keeps long trainings in bf16 steady. 0: short ones need none; PaLM takes 1e-4."""

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        found = policy.cross_entropy(batch.weight_N, self.label_smoothing, self.z_loss)
        metrics = {"nll": found.nll} if self.label_smoothing or self.z_loss else {}
        if self.z_loss:
            metrics["z_loss"] = found.z
        return Loss(found.total, batch.weight_N.sum(), metrics)


def segment_sums(value_N: Any, segment_N: Any, segments: int) -> Any:
    """[S] sum of each segment's values."""
    return value_N.new_zeros(segments).index_add(0, segment_N, value_N)
