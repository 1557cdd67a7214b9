"""A token of each row of logits, and how likely it was.

Nucleus sampling after Holtzman et al. 2019, arXiv:1904.09751. A row picks by the inverse of its cumulative distribution at a
uniform number of its own, so what it gets does not depend on the other rows. Tokens that another model proposed are taken, or
others in their place, so that the distribution stays: Leviathan et al. 2023, arXiv:2211.17192, algorithm 1; Chen et al. 2023,
arXiv:2302.01318, algorithm 2.

Shapes: R rows, V vocabulary, M candidates kept of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_CANDIDATES = 1024
"""Nucleus sampling looks at this many of the likeliest tokens first; to sort a whole vocabulary costs more than the model."""
Top = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, the likeliest first."""


class Rule(Protocol):
    """What one request does to its logits before a token is drawn: penalties, biases, other cuts, a grammar."""

    def __call__(self, logits_V: Any) -> Any:
        """[V] float32 numpy array, its own to change, to logits that temperature, top-k and top-p are then applied to."""
        ...

    def accept(self, token: int) -> None:
        """The token that was drawn."""
        ...


class Draw(NamedTuple):
    """How a request chooses its tokens."""

    temperature: float = 0.0
    """0: the likeliest."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int = 0
    rule: Rule | None = None
    top: int = 0
    """Likeliest tokens to tell beside the one that was drawn."""


GREEDY = Draw()


class Drawn(NamedTuple):
    token: int
    logprob: float
    """Natural logarithm of the model's own probability: before temperature and rule."""
    top: Top


def sample(logits_RV: Tensor, draws: Sequence[Draw], uniforms: Sequence[float]) -> list[Drawn]:
    """One token a row. `uniforms`: each row's number from [0, 1); rows of temperature 0 do not use theirs."""
    ruled = [row for row, draw in enumerate(draws) if draw.rule is not None]
    told_RV = logits_RV
    if ruled:
        logits_RV = logits_RV.clone()
        for row in ruled:
            rule = draws[row].rule
            assert rule is not None
            given = logits_RV[row].cpu().numpy()
            ruled_V = rule(given)
            if ruled_V is not given or logits_RV.device.type != "cpu":  # else it was changed where it is
                logits_RV[row] = torch.from_numpy(ruled_V).to(logits_RV.device)
    token_R = logits_RV.argmax(-1)
    warm = [row for row, draw in enumerate(draws) if draw.temperature > 0]
    plain = [row for row in warm if draws[row].top_k <= 0 and draws[row].top_p >= 1]
    cut = [row for row in warm if draws[row].top_k > 0 or draws[row].top_p < 1]
    for chosen, pick in ((plain, _draw), (cut, _draw_cut)):
        if chosen:
            temperature_R1 = torch.tensor([[draws[row].temperature] for row in chosen], device=logits_RV.device)
            uniform_R1 = torch.tensor([[uniforms[row]] for row in chosen], dtype=torch.float64, device=logits_RV.device)
            token_R[chosen] = pick(logits_RV[chosen] / temperature_R1, uniform_R1, [draws[row] for row in chosen])
    total_R = told_RV.logsumexp(-1)
    logp_R = told_RV.gather(1, token_R[:, None])[:, 0] - total_R
    tokens = token_R.tolist()
    for row in ruled:
        rule = draws[row].rule
        assert rule is not None
        rule.accept(tokens[row])
    tops = [_top(told_RV[row] - total_R[row], draw.top) for row, draw in enumerate(draws)]
    return [Drawn(*found) for found in zip(tokens, logp_R.tolist(), tops, strict=True)]


def distribution(logits_V: Tensor, draw: Draw) -> Tensor:
    """[V] float64 probabilities that a warm row draws its next token with: behind rule, temperature, top-k and nucleus."""
    if draw.rule is not None:
        logits_V = torch.from_numpy(draw.rule(logits_V.cpu().numpy().copy())).to(logits_V.device)
    prob_V = (logits_V / draw.temperature).double().softmax(-1)
    if 0 < draw.top_k < len(prob_V) or draw.top_p < 1:
        prob_M, id_M = prob_V.sort(descending=True)
        prob_M[draw.top_k or len(prob_M) :] = 0
        prob_M /= prob_M.sum()
        prob_M[1:].masked_fill_((prob_M.cumsum(0) - prob_M)[1:] >= draw.top_p, 0.0)
        prob_V = torch.zeros_like(prob_V).scatter_(0, id_M, prob_M / prob_M.sum())
    return prob_V


def drawn_from(prob_V: Tensor, uniform: float) -> int:
    return int(_inverse(prob_V[None], torch.tensor([[uniform]], dtype=prob_V.dtype, device=prob_V.device)))


def verified(logits_V: Tensor, draw: Draw, proposed: int, from_V: Tensor, uniforms: tuple[float, float]) -> Drawn:
    """The token that was proposed, drawn from `from_V`, or one in its place: together they follow the row's own distribution."""
    prob_V = distribution(logits_V, draw)
    token = proposed
    if uniforms[0] * float(from_V[proposed]) >= float(prob_V[proposed]):
        rest_V = (prob_V - from_V).clamp_(min=0)
        token = drawn_from(rest_V if float(rest_V.sum()) > 0 else prob_V, uniforms[1])
    if draw.rule is not None:
        draw.rule.accept(token)
    logp_V = logits_V.log_softmax(-1)
    return Drawn(token, float(logp_V[token]), _top(logp_V, draw.top))


def _top(logp_V: Tensor, count: int) -> Top:
    if not count:
        return ()
    found = logp_V.topk(min(count, len(logp_V)))
    return tuple(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _draw(logits_RV: Tensor, uniform_R1: Tensor, draws: list[Draw]) -> Tensor:
    return _inverse(logits_RV.double().softmax(-1), uniform_R1)[:, 0]


def _draw_cut(logits_RV: Tensor, uniform_R1: Tensor, draws: list[Draw]) -> Tensor:
    """Top-k first, then the nucleus of what is left, as transformers does."""
    vocab = logits_RV.shape[1]
    most = min(vocab, max([_CANDIDATES, *(draw.top_k for draw in draws)]))
    top_RM, id_RM = logits_RV.topk(most, -1)
    keep = torch.tensor([[draw.top_k if 0 < draw.top_k < vocab else vocab] for draw in draws], device=logits_RV.device)
    limit = torch.tensor([[draw.top_p] for draw in draws], dtype=torch.float64, device=logits_RV.device)
    # what a row without top-k divides by is the whole vocabulary's sum, also when only the candidates are sorted
    whole_R1 = torch.where(
        keep < vocab,
        top_RM.double().masked_fill(torch.arange(most, device=keep.device) >= keep, float("-inf")).logsumexp(-1, True),
        logits_RV.double().logsumexp(-1, True),
    )
    prob_RM = (top_RM.double() - whole_R1).exp()
    if most < vocab and bool(((prob_RM.sum(-1, keepdim=True) < limit) & (keep > most)).any()):
        top_RM, id_RM = logits_RV.sort(-1, descending=True)
        prob_RM = (top_RM.double() - whole_R1).exp()
    place_M = torch.arange(prob_RM.shape[1], device=keep.device)
    before_RM = prob_RM.cumsum(-1) - prob_RM
    prob_RM = prob_RM.masked_fill((place_M >= keep) | ((before_RM >= limit) & (place_M > 0)), 0.0)
    # laid out by their ids: two that are equally likely but for rounding would change places with the batch
    id_RM, order_RM = id_RM.sort(-1)
    prob_RM = prob_RM.gather(1, order_RM)
    return id_RM.gather(1, _inverse(prob_RM / prob_RM.sum(-1, keepdim=True), uniform_R1))[:, 0]


def _inverse(prob_RM: Tensor, uniform_R1: Tensor) -> Tensor:
    """[R, 1] the first place whose cumulative probability exceeds the draw."""
    total_RM = prob_RM.cumsum(-1)
    place_R1 = torch.searchsorted(total_RM, uniform_R1 * total_RM[:, -1:], right=True)
    return place_R1.clamp_(max=prob_RM.shape[1] - 1)
