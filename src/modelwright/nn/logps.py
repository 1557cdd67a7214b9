"""Log-probabilities only where a loss needs them, in chunks: the full [tokens, vocabulary] matrix never exists.

The gradient of a weighted cross-entropy is formed in the forward pass, chunk by chunk, so that the logits are made once and never
kept (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2). Label smoothing is Szegedy et al. 2015, arXiv:1512.00567,
section 7, as torch's `cross_entropy` has it; the z-loss is PaLM's (Chowdhery et al. 2022, arXiv:2204.02311, section 5), the
soft cap of logits Gemma 2's (arXiv:2408.00118, section 2). Other losses ask for log-probabilities and entropies: the chunks are
made again in the backward pass, or, under a frozen head, the gradient's direction is formed in the forward pass too. Softmax is
float32 whatever the matrix products run in, float64 where they do.
"""

# Shape suffixes: T packed tokens, N predicted positions, n positions of one chunk, K tokens asked for at a position, D model
# width, V vocabulary, R rank of an adapter.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from modelwright.core.memory.kernels import CHUNK_BYTES, CHUNK_POSITIONS, PIECE_BYTES
from modelwright.nn.device import on_processor
from modelwright.nn.gradients import add, add_product


def chunk_bytes_of(vocab: int) -> int:
    return max(CHUNK_BYTES, 4 * vocab * CHUNK_POSITIONS)


def chunks(positions: int, vocab: int, chunk_bytes: int) -> Iterator[slice]:
    """Slices of the N positions whose logits take about `chunk_bytes`, all of nearly the same length."""
    most = max(1, chunk_bytes // (4 * vocab))
    count = -(-positions // most)
    step = -(-positions // max(count, 1))
    for begin in range(0, positions, max(step, 1)):
        yield slice(begin, min(begin + step, positions))


def cap_of(config: Any) -> float | None:
    """Size that the logits of a model with this configuration stay under; None: nothing holds them."""
    cap: float | None = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return cap


class LowRank(NamedTuple):
    """LoRA's two matrices beside a head: hidden states become R numbers, these become an update of the logits."""

    down_RD: Tensor
    up_VR: Tensor
    scale: float
    dropout: Callable[[Tensor], Tensor]


class Head(NamedTuple):
    """How hidden states become logits: cap * tanh((W h + update + bias) / cap) / temperature."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None = None
    low_rank: LowRank | None = None
    cap: float | None = None
    """Size that logits stay under; None: they are as the product gives them."""
    temperature: float = 1.0
    loss_factor: float = 1.0
    """What the loss is multiplied with before its gradient is taken (`nn/scaling.py`)."""

    @property
    def frozen(self) -> bool:
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return not trained and self.low_rank is None

    def low(self, hidden_ND: Tensor, dtype: torch.dtype) -> Tensor | None:
        """[N, R] what the adapter makes of hidden states before its second matrix; None without an adapter."""
        if self.low_rank is None:
            return None
        return linear(self.low_rank.dropout(hidden_ND).to(dtype), self.low_rank.down_RD.to(dtype)) * self.low_rank.scale

    def logits(self, hidden_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, V] all at once: for checks."""
        walk = _Walk(hidden_TD, self.low(hidden_TD, dtype), self, dtype, 4 * len(hidden_TD) * len(self.weight), False)
        return torch.cat([logits_nV.clone() for _, logits_nV in walk])


class _Walk:
    """The logits piece by piece, in chunks whose products with the head are made at once. A piece's gradient takes the place of
    its logits; when a chunk's are all there, they go back through the head before the next chunk is made."""

    def __init__(
        self, hidden_ND: Tensor, low_NR: Tensor | None, head: Head, dtype: torch.dtype, chunk_bytes: int, backward: bool
    ) -> None:
        self.hidden_ND, self.low_NR, self.head, self.dtype = hidden_ND, low_NR, head, dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.weight_VD = head.weight.to(dtype)
        self.up_VR = head.low_rank.up_VR.to(dtype) if head.low_rank is not None else None
        self.backward = backward
        self.grad_ND = torch.empty_like(hidden_ND) if backward else None
        self.grad_NR = torch.empty_like(low_NR) if backward and low_NR is not None else None
        self.parts = list(chunks(len(hidden_ND), len(self.weight_VD), chunk_bytes * self.wide.itemsize // dtype.itemsize))
        self._place_nV = self._slope_nV = hidden_ND

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """(positions, their logits): the logits may be overwritten."""
        if not self.parts:
            return
        vocab = len(self.weight_VD)
        room_nV = self.hidden_ND.new_empty(self.parts[0].stop, vocab, dtype=self.dtype)
        # on a card a piece is a chunk: there is no cache to stay in, and every kernel costs a start
        most = PIECE_BYTES if on_processor(self.hidden_ND) else self.wide.itemsize * room_nV.numel()
        for part in self.parts:
            hidden_nD = self.hidden_ND[part].to(self.dtype)
            product_nV = room_nV[: len(hidden_nD)]
            torch.mm(hidden_nD, self.weight_VD.t(), out=product_nV)
            if self.low_NR is not None and self.up_VR is not None:
                product_nV.addmm_(self.low_NR[part], self.up_VR.t())
            for piece in chunks(len(hidden_nD), vocab, most):
                self._place_nV = product_nV[piece]
                yield slice(part.start + piece.start, part.start + piece.stop), self._logits()
            if self.backward:
                self._back(part, hidden_nD, product_nV)

    def _logits(self) -> Tensor:
        logits_nV = self._place_nV.to(self.wide)
        if self.head.bias is not None:
            logits_nV += self.head.bias
        if self.head.cap is not None:
            logits_nV.div_(self.head.cap).tanh_()
            if self.backward:
                self._slope_nV = 1 - logits_nV.square()
            logits_nV.mul_(self.head.cap)
        return logits_nV if self.head.temperature == 1 else logits_nV.div_(self.head.temperature)

    def push(self, grad_nV: Tensor) -> None:
        """Take the gradient of the newest piece's logits."""
        if self.head.cap is not None:
            grad_nV = grad_nV.mul_(self._slope_nV)
        if self.head.temperature != 1:
            grad_nV = grad_nV.div_(self.head.temperature)
        if self.head.bias is not None:
            add(self.head.bias, grad_nV.sum(0))
        if grad_nV is not self._place_nV:  # where it was computed there, it is in its place
            self._place_nV.copy_(grad_nV)

    def _back(self, part: slice, hidden_nD: Tensor, grad_nV: Tensor) -> None:
        """A chunk's gradients: to the weights' own, and to that of the hidden states."""
        assert self.grad_ND is not None
        self.grad_ND[part] = grad_nV @ self.weight_VD
        add_product(self.head.weight, grad_nV, hidden_nD)
        if self.grad_NR is not None and self.low_NR is not None and self.up_VR is not None and self.head.low_rank is not None:
            self.grad_NR[part] = grad_nV @ self.up_VR
            add_product(self.head.low_rank.up_VR, grad_nV, self.low_NR[part])


def _softmax(logits_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [n, V], in the place of the logits, and the log of what they were divided by [n, 1]."""
    top_n1 = logits_nV.amax(1, keepdim=True)
    prob_nV = logits_nV.sub_(top_n1).exp_()
    sum_n1 = prob_nV.sum(1, keepdim=True)
    return prob_nV.div_(sum_n1), top_n1 + sum_n1.log()


class Sums(NamedTuple):
    """Sums over the positions, each times its weight."""

    total: Tensor
    """The loss, with everything that was asked for."""
    nll: Tensor
    """-log p(target) in nats, and nothing else."""
    z: Tensor
    """The part of the loss that the z-loss is."""


class _CrossEntropy(torch.autograd.Function):
    """Its gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        low_NR: Tensor | None,
        head: Head,
        target_N: Tensor,
        weight_N: Tensor,
        smoothing: float,
        z_loss: float,
        dtype: torch.dtype,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        walk = _Walk(hidden_ND, low_NR, head, dtype, chunk_bytes, any(ctx.needs_input_grad[:2]))
        total, nll, z = (torch.zeros((), dtype=walk.wide, device=hidden_ND.device) for _ in range(3))
        for part, logits_nV in walk:
            target_n1, weight_n = target_N[part, None], weight_N[part].to(walk.wide)
            picked_n1 = logits_nV.gather(1, target_n1)
            mean_n1 = logits_nV.mean(1, keepdim=True) if smoothing else picked_n1
            prob_nV, log_z_n1 = _softmax(logits_nV)
            nll += weight_n @ (log_z_n1 - picked_n1).squeeze(1)
            z += z_loss * (weight_n @ log_z_n1.square().squeeze(1))
            smoothed_n1 = log_z_n1 - (1 - smoothing) * picked_n1 - smoothing * mean_n1
            total += weight_n @ smoothed_n1.squeeze(1)
            if walk.backward:
                grad_nV = prob_nV if not z_loss else prob_nV.mul_(1 + 2 * z_loss * log_z_n1)
                if smoothing:
                    grad_nV.sub_(smoothing / prob_nV.shape[1])
                grad_nV.scatter_add_(1, target_n1, torch.full_like(picked_n1, smoothing - 1))
                walk.push(grad_nV.mul_((weight_n if head.loss_factor == 1 else weight_n * head.loss_factor)[:, None]))
        ctx.grads, ctx.factor = (walk.grad_ND, walk.grad_NR), head.loss_factor
        ctx.mark_non_differentiable(nll, z)
        return total + z, nll, z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        assert grad.item() == ctx.factor, "nll enters the loss as it is: a factor belongs into its weights"
        return *ctx.grads, *[None] * 7


class _Frozen(torch.autograd.Function):
    """log p(target) under a head without gradient: its slope by the hidden states is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: Head, target_N: Tensor, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
        walk = _Walk(hidden_ND, None, head, dtype, chunk_bytes, ctx.needs_input_grad[0])
        logp_N = torch.empty(len(hidden_ND), dtype=walk.wide, device=hidden_ND.device)
        for part, logits_nV in walk:
            picked_n1 = logits_nV.gather(1, target_N[part, None])
            prob_nV, log_z_n1 = _softmax(logits_nV)
            logp_N[part] = (picked_n1 - log_z_n1).squeeze(1)
            if walk.backward:
                walk.push(prob_nV.neg_().scatter_add_(1, target_N[part, None], torch.ones_like(picked_n1)))
        ctx.save_for_backward(walk.grad_ND)
        return logp_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> Any:
        (slope_ND,) = ctx.saved_tensors
        return slope_ND * grad_N[:, None].to(slope_ND.dtype), None, None, None, None


class _At(torch.autograd.Function):
    """log p of K tokens a position; the chunks are made again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, low_NR: Tensor | None, head: Head, ids_NK: Tensor, dtype: torch.dtype, chunk_bytes: int
    ) -> Tensor:
        walk = _Walk(hidden_ND, low_NR, head, dtype, chunk_bytes, False)
        logp_NK = torch.empty(ids_NK.shape, dtype=walk.wide, device=hidden_ND.device)
        for part, logits_nV in walk:
            picked_nK = logits_nV.gather(1, ids_NK[part])
            logp_NK[part] = picked_nK - _softmax(logits_nV)[1]
        ctx.save_for_backward(hidden_ND, low_NR, ids_NK)
        ctx.how = head, dtype, chunk_bytes
        return logp_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> Any:
        hidden_ND, low_NR, ids_NK = ctx.saved_tensors
        head, dtype, chunk_bytes = ctx.how
        walk = _Walk(hidden_ND, low_NR, head, dtype, chunk_bytes, True)
        for part, logits_nV in walk:
            grad_nK = grad_NK[part]
            prob_nV, _ = _softmax(logits_nV)
            walk.push(prob_nV.mul_(-grad_nK.sum(1, keepdim=True)).scatter_add_(1, ids_NK[part], grad_nK))
        return walk.grad_ND, walk.grad_NR, None, None, None, None


class _Entropies(torch.autograd.Function):
    """-sum p log p of each position; the chunks are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, low_NR: Tensor | None, head: Head, dtype: torch.dtype, chunk_bytes: int) -> Tensor:
        walk = _Walk(hidden_ND, low_NR, head, dtype, chunk_bytes, False)
        entropy_N = torch.empty(len(hidden_ND), dtype=walk.wide, device=hidden_ND.device)
        for part, logits_nV in walk:
            logp_nV = logits_nV.sub_(logits_nV.logsumexp(1, keepdim=True))
            entropy_N[part] = -torch.linalg.vecdot(logp_nV.exp(), logp_nV)
        ctx.save_for_backward(hidden_ND, low_NR, entropy_N)
        ctx.how = head, dtype, chunk_bytes
        return entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> Any:
        hidden_ND, low_NR, entropy_N = ctx.saved_tensors
        head, dtype, chunk_bytes = ctx.how
        walk = _Walk(hidden_ND, low_NR, head, dtype, chunk_bytes, True)
        for part, logits_nV in walk:
            logp_nV = logits_nV.sub_(logits_nV.logsumexp(1, keepdim=True))
            slope_nV = logp_nV.exp().mul_(logp_nV.add_(entropy_N[part, None]))
            walk.push(slope_nV.mul_(-grad_N[part, None]))
        return walk.grad_ND, walk.grad_NR, None, None, None


class Top(NamedTuple):
    """The likeliest tokens of each position, the likeliest first."""

    logp_NK: Tensor
    """In nats."""
    id_NK: Tensor


class Policy:
    """The model on one micro-batch, as objectives see it: hidden states at the predicted positions and the head."""

    def __init__(
        self,
        hidden_TD: Tensor,
        position_N: Tensor,
        target_N: Tensor,
        head: Head,
        dtype: torch.dtype,
        chunk_bytes: int = 0,
    ) -> None:
        """`chunk_bytes`: of logits at once; 0: as `chunk_bytes_of` finds best."""
        self.hidden_ND = hidden_TD.index_select(0, position_N)
        self.target_N, self.head, self.dtype = target_N, head, dtype
        self.chunk_bytes = chunk_bytes or chunk_bytes_of(len(head.weight))
        self.low_NR = head.low(self.hidden_ND, dtype)

    def _asked(self, temperature: float) -> Head:
        return self.head._replace(temperature=self.head.temperature * temperature)

    def cross_entropy(self, weight_N: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Sums:
        """Sum of weight * ((1 - smoothing) * -log p(target) + smoothing * mean of -log p over the vocabulary + z_loss * log^2 Z),
        where Z is what the softmax divides by. Its gradient is formed in the forward pass, so it must enter the loss with factor
        1: factors belong into `weight_N`."""
        apply: Any = _CrossEntropy.apply
        more = (weight_N.detach(), label_smoothing, z_loss, self.dtype, self.chunk_bytes)
        return Sums(*apply(self.hidden_ND, self.low_NR, self.head, self.target_N, *more))

    def nll(self, weight_N: Tensor) -> Tensor:
        """Scalar: sum of weight * -log p(target), in nats; it enters the loss with factor 1, as `cross_entropy` does."""
        return self.cross_entropy(weight_N).total

    def logps(self, temperature: float = 1.0) -> Tensor:
        """[N] log p(target) in nats, differentiable; of the softmax of logits / temperature."""
        if not self.head.frozen:
            return self.at(self.target_N[:, None], temperature).squeeze(1)
        apply: Any = _Frozen.apply
        logp_N: Tensor = apply(self.hidden_ND, self._asked(temperature), self.target_N, self.dtype, self.chunk_bytes)
        return logp_N

    def at(self, ids_NK: Tensor, temperature: float = 1.0) -> Tensor:
        """[N, K] log p of these tokens in nats, differentiable."""
        apply: Any = _At.apply
        logp_NK: Tensor = apply(self.hidden_ND, self.low_NR, self._asked(temperature), ids_NK, self.dtype, self.chunk_bytes)
        return logp_NK

    def entropies(self, temperature: float = 1.0) -> Tensor:
        """[N] entropy of the next token in nats, differentiable."""
        apply: Any = _Entropies.apply
        entropy_N: Tensor = apply(self.hidden_ND, self.low_NR, self._asked(temperature), self.dtype, self.chunk_bytes)
        return entropy_N

    @torch.no_grad()
    def top(self, count: int, temperature: float = 1.0) -> Top:
        """The likeliest tokens of each position; what a student learns from (`at`). Not differentiable."""
        walk = _Walk(self.hidden_ND, self.low_NR, self._asked(temperature), self.dtype, self.chunk_bytes, False)
        id_NK = self.target_N.new_empty(len(self.target_N), count)
        logp_NK = self.hidden_ND.new_empty(id_NK.shape, dtype=walk.wide)
        for part, logits_nV in walk:
            best_nK, id_NK[part] = logits_nV.topk(count, 1)
            logp_NK[part] = best_nK - logits_nV.logsumexp(1, keepdim=True)
        return Top(logp_NK, id_NK)

    def scores(self) -> Tensor:
        """[S, C] of each document; only a classifier has them (`sequence.Scores`)."""
        raise AssertionError("a language model scores no documents")

    def vectors(self) -> Tensor:
        """[S, D] of each document; only a whole step has them (`gradcache.Vectors`)."""
        raise AssertionError("a micro-batch alone has no vectors")

    def further(self, distance: int, wanted_n: Tensor, target_n: Tensor) -> Policy:
        """What the head for a later token says; only a model with such heads has them (`multi.Far`)."""
        raise AssertionError("this model guesses the next token alone")
