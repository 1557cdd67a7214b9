"""How large a model and how many tokens: the loss as a law of both, and the best split of a budget under it.

`loss(N, D) = E + A / N^alpha + B / D^beta` in nats a token, N weights and D training tokens: Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models", arXiv:2203.15556, equation 2, as refitted by Besiroglu et al. 2024, "Chinchilla Scaling:
A replication attempt", arXiv:2404.10102, who found the first fit to be off. Training takes 6 N D floating-point operations and a
generated token 2 N (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). What is used much after training should be smaller and
trained for longer: Sardana et al. 2024, "Beyond Chinchilla-Optimal", arXiv:2401.00448. Tokens seen again count for less:
Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", arXiv:2305.16264, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.units import count_text

REPEATS_WORTH = 15.39
"""However often the same tokens are seen again, they are never worth more fresh copies than this, R_D* of arXiv:2305.16264,
section 6."""
SMALLEST, LARGEST = 1e3, 1e14
"""Weights between which a best size is looked for."""
AT_END = 1.01
"""A best size so near to one of them lies beyond."""


class Law(NamedTuple):
    """Loss in nats a token, of a model of `params` weights after `tokens` tokens."""

    irreducible: float
    params_scale: float
    tokens_scale: float
    params_power: float
    tokens_power: float
    source: str

    def loss(self, params: float, tokens: float) -> float:
        by_params = self.params_scale / math.pow(params, self.params_power)
        return self.irreducible + by_params + self.tokens_scale / math.pow(tokens, self.tokens_power)


REFITTED = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, arXiv:2404.10102, table 1")
FIRST = Law(1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022, arXiv:2203.15556, section D.3")
LAWS = {"refitted": REFITTED, "chinchilla": FIRST}


class Split(NamedTuple):
    """What to do with so many floating-point operations."""

    params: float
    tokens: float
    loss: float
    training_flops: float
    inference_flops: float

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


def training_flops(params: float, tokens: float) -> float:
    return 6.0 * params * tokens


def best_split(law: Law, flops: float, inference_tokens: float = 0.0) -> Split:
    """The least loss for so many operations in all, of which answers of so many tokens take theirs.

    Without answers it has a closed form (arXiv:2203.15556, equation 4); with them the tokens that are left for training at each
    size are put into the law, whose loss has one minimum over the size.
    """
    if flops <= 0 or inference_tokens < 0:
        raise UserError("a budget of operations is more than 0, and no fewer than 0 tokens are generated")
    for scale, what in ((law.params_scale, "size"), (law.tokens_scale, "length")):
        if not scale:
            raise UserError(
                f"no split of a budget is best: by this law the loss does not fall with a run's {what}",
                f"the law is {law.source}: its losses are told as well without the {what} of runs",
                f"add runs that differ in {what} alone, and leave out what went wrong",
            )
    if inference_tokens and flops / (2 * inference_tokens) <= SMALLEST:
        raise UserError(
            f"{flops:.3g} operations do not pay for {inference_tokens:.3g} tokens of answers",
            f"the smallest model looked at has {SMALLEST:.0f} weights, and each token takes two operations a weight",
            "ask for fewer `--inference-tokens`, or a larger budget",
        )
    params = best_params(law, flops, inference_tokens)
    tokens = _left(flops, params, inference_tokens)
    if not (SMALLEST * AT_END < params < LARGEST / AT_END and tokens > 1):
        raise UserError(
            f"no model between {count_text(SMALLEST)} and {count_text(LARGEST)} weights is the best for {flops:.3g} operations",
            "by the law the best one is smaller or larger still, and no run was ever held against it there",
            "another budget" + (", or fewer `--inference-tokens`" if inference_tokens else ""),
        )
    return Split(params, tokens, law.loss(params, tokens), 6 * params * tokens, 2 * params * inference_tokens)


def best_params(law: Law, flops: float, inference_tokens: float = 0.0) -> float:
    """Weights of the best size among those that are looked at: the first or last one where the loss falls on beyond it."""

    def loss(log_params: float) -> float:
        params = math.exp(log_params)
        tokens = _left(flops, params, inference_tokens)
        return law.loss(params, tokens) if tokens > 0 else math.inf

    most = flops / max(2 * inference_tokens, 1e-9)  # a model so large is only used, never trained
    return math.exp(_lowest(loss, math.log(SMALLEST), math.log(min(LARGEST, most))))


def _left(flops: float, params: float, inference_tokens: float) -> float:
    """Training tokens that can be paid."""
    return flops / (6 * params) - inference_tokens / 3


def given_size(law: Law, flops: float, params: float, inference_tokens: float = 0.0) -> Split:
    """The same where the size is decided: over-trained or under-trained."""
    tokens = _left(flops, params, inference_tokens)
    if tokens <= 0:
        raise UserError(f"{flops:.3g} operations leave nothing to train a model of {params:.3g} weights with")
    return Split(params, tokens, law.loss(params, tokens), 6 * params * tokens, 2 * params * inference_tokens)


def worth_tokens(unique: float, seen: float) -> float:
    """Fresh tokens that `seen` tokens of a text of `unique` ones are worth."""
    if seen <= unique:
        return seen
    repeats = seen / unique - 1
    return unique + unique * REPEATS_WORTH * (1 - math.exp(-repeats / REPEATS_WORTH))


def _lowest(value: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search for the minimum of a function with one; infinite values lie at one end."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = value(a), value(b)
    for _ in range(120):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = value(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = value(b)
    return (low + high) / 2


class Known(NamedTuple):
    """A published training run."""

    name: str
    params: float
    tokens: float
    source: str


KNOWN = (
    Known("GPT-3 175B", 175e9, 300e9, "Brown et al. 2020, arXiv:2005.14165, table D.1"),
    Known("Gopher 280B", 280e9, 300e9, "Rae et al. 2021, arXiv:2112.11446, section 3"),
    Known("Chinchilla 70B", 70e9, 1.4e12, "Hoffmann et al. 2022, arXiv:2203.15556, table 1"),
    Known("LLaMA 7B", 6.7e9, 1.0e12, "Touvron et al. 2023, arXiv:2302.13971, table 2"),
    Known("LLaMA 65B", 65.2e9, 1.4e12, "Touvron et al. 2023, arXiv:2302.13971, table 2"),
    Known("Llama 2 7B", 7e9, 2.0e12, "Touvron et al. 2023, arXiv:2307.09288, table 1"),
    Known("Llama 3.1 405B", 405e9, 15.6e12, "Llama team 2024, arXiv:2407.21783, section 1"),
    Known("SmolLM2 1.7B", 1.7e9, 11e12, "Allal et al. 2025, arXiv:2502.02737, abstract"),
)
"""Worked cases: what was done, and what the law says of it."""
