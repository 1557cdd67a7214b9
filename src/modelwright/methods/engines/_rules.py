"""What a request does to its logits before a token is drawn: biases, penalties, a grammar, cuts of the distribution.

Sources: repetition penalty, Keskar et al. 2019, arXiv:1909.05858, section 4.1; frequency and presence penalties and logit bias,
https://platform.openai.com/docs/api-reference/completions; min-p, Nguyen et al. 2024, arXiv:2407.01082; typical sampling,
Meister et al. 2022, arXiv:2202.00666; eta sampling, Hewitt et al. 2022, arXiv:2210.15191. The order is that of transformers
(`generation/utils.py`, `_get_logits_processor`): bias, repetition, other penalties, grammar, temperature, top-k, top-p, min-p,
typical, eta. An engine does temperature, top-k and top-p itself, so where a cut stands behind them they are done here.

Shapes: V vocabulary, M tokens still possible, N tokens that prompt or answer hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from modelwright.core.errors import UserError
from modelwright.methods.engines import Rule, Sampling
from modelwright.methods.engines._grammar import Grammar

_LIMITS = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "top_k": (0, math.inf),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "eta": (0.0, 1.0),
    "repetition_penalty": (0.0, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "presence_penalty": (-math.inf, math.inf),
    "top_logprobs": (0, math.inf),
}
_CANDIDATES = 1024
"""So many tokens are sorted first; to sort a whole vocabulary takes as long as a small model."""
_NOT_ZERO = ("top_p", "typical_p", "repetition_penalty")


def check(sampling: Sampling, vocabulary: int) -> None:
    """UserError for a setting that means nothing. vocabulary: token ids are below it; 0: not known."""
    for name, (low, high) in _LIMITS.items():
        value = getattr(sampling, name)
        if not low <= value <= high or (value == 0 and name in _NOT_ZERO):
            bounds = f"it is a number from {low:g} to {high:g}" + (", and not 0" if name in _NOT_ZERO else "")
            raise UserError(f"{name} is {value}", bounds, f"leave it out: it is {Sampling._field_defaults[name]} then")
    for token, added in sampling.logit_bias:
        if not 0 <= token < (vocabulary or token + 1) or math.isnan(added):
            why = f"the model's tokens are 0 to {vocabulary - 1}, and what is added is a number"
            raise UserError(f"logit_bias adds {added} to the token {token}", why, "name tokens by their ids")


def rule_of(sampling: Sampling, prompt: Sequence[int], grammar: Grammar | None = None) -> Rule | None:
    """None where nothing asks for one: those rows are drawn together."""
    rule = Rules(sampling, prompt, grammar)
    return rule if rule.needed else None


def behind(sampling: Sampling) -> Sampling:
    """What is left for the engine to do behind the rule."""
    if not _cuts(sampling):
        return sampling
    return sampling._replace(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, eta=0.0)


def _cuts(sampling: Sampling) -> bool:
    """Greedy answers are not cut, as in transformers: it cuts where it draws."""
    return sampling.temperature > 0 and (sampling.min_p > 0 or sampling.typical_p < 1 or 0 < sampling.eta < 1)


class Rules:
    """All that one request asks for; see `modelwright.methods.engines.Rule`."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], grammar: Grammar | None) -> None:
        self._sampling, self._grammar = sampling, grammar
        self._penalises = bool(sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1)
        self._counts: dict[int, int] = dict.fromkeys(prompt, 0) if sampling.repetition_penalty != 1 else {}
        """How often the answer holds each token; 0 for one that only the prompt holds."""
        self._bias = _columns(sampling.logit_bias) if sampling.logit_bias else None

    @property
    def needed(self) -> bool:
        return self._penalises or self._bias is not None or self._grammar is not None or _cuts(self._sampling)

    @property
    def trouble(self) -> UserError | None:
        return None if self._grammar is None else self._grammar.trouble

    def __call__(self, logits_V: Any) -> Any:
        if self._bias is not None:
            token_N, added_N = self._bias
            logits_V[token_N] += added_N
        if self._counts:
            self._penalise(logits_V)
        if self._grammar is not None:
            self._grammar.mask(logits_V)
        return cut(logits_V, self._sampling) if _cuts(self._sampling) else logits_V

    def _penalise(self, logits_V: Any) -> None:
        import numpy as np

        token_N, count_N = _columns(self._counts.items())
        logit_N, penalty = logits_V[token_N], self._sampling.repetition_penalty
        if penalty != 1:
            logit_N = np.where(logit_N < 0, logit_N * penalty, logit_N / penalty)
        logit_N -= count_N * self._sampling.frequency_penalty + (count_N > 0) * self._sampling.presence_penalty
        logits_V[token_N] = logit_N

    def accept(self, token: int) -> None:
        if self._penalises:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._grammar is not None:
            self._grammar.accept(token)

    def copy(self) -> Rules:
        other = copy.copy(self)
        other._counts = dict(self._counts)
        other._grammar = None if self._grammar is None else self._grammar.copy()
        return other


def _columns(pairs: Any) -> tuple[Any, Any]:
    """[N] tokens and [N] what belongs to each."""
    import numpy as np

    table_N2 = np.array(list(pairs), dtype=np.float64).reshape(-1, 2)
    return table_N2[:, 0].astype(np.int64), table_N2[:, 1].astype(np.float32)


def cut(logits_V: Any, sampling: Sampling) -> Any:
    """[V] logits divided by the temperature, minus infinity where a cut takes the token away."""
    import numpy as np

    logits_V = logits_V / np.float32(sampling.temperature)
    token_M = np.arange(len(logits_V))
    if 0 < sampling.top_k < len(token_M):
        least = np.partition(logits_V, -sampling.top_k)[-sampling.top_k]
        above_M = np.flatnonzero(logits_V > least)
        token_M = np.concatenate([above_M, np.flatnonzero(logits_V == least)[: sampling.top_k - len(above_M)]])
    if sampling.top_p < 1:
        token_M = token_M[_nucleus(-logits_V[token_M], logits_V[token_M], sampling.top_p)]
    if sampling.min_p > 0:
        logit_M = logits_V[token_M]
        token_M = token_M[logit_M >= logit_M.max() + np.log(sampling.min_p)]
    if sampling.typical_p < 1:
        logp_M = _log_softmax(logits_V[token_M])
        unusual_M = np.abs(-logp_M - _entropy(logp_M))
        token_M = token_M[_nucleus(unusual_M, logp_M, sampling.typical_p)]
    if 0 < sampling.eta < 1:
        logp_M = _log_softmax(logits_V[token_M])
        least = min(sampling.eta, np.sqrt(sampling.eta) * np.exp(-_entropy(logp_M)))
        token_M = token_M[(logp_M >= np.log(least)) | (logp_M == logp_M.max())]
    if len(token_M) == len(logits_V):
        return logits_V
    kept_V = np.full_like(logits_V, -np.inf)
    kept_V[token_M] = logits_V[token_M]
    return kept_V


def _nucleus(rank_M: Any, logit_M: Any, mass: float) -> Any:
    """Places of the fewest tokens, in the order of rank, that hold this share of the probability."""
    import numpy as np

    prob_M = np.exp(_log_softmax(logit_M))
    for count in (_CANDIDATES, len(rank_M)):
        first = np.argpartition(rank_M, count)[:count] if count < len(rank_M) else np.arange(len(rank_M))
        order = first[np.argsort(rank_M[first], kind="stable")]
        total = prob_M[order].cumsum()
        if total[-1] >= mass:
            break
    return order[: 1 + int((total[:-1] < mass).sum())]


def _log_softmax(logit_M: Any) -> Any:
    import numpy as np

    shifted_M = logit_M.astype(np.float64) - logit_M.max()
    return shifted_M - np.log(np.exp(shifted_M).sum())


def _entropy(logp_M: Any) -> float:
    """In nats."""
    import numpy as np

    prob_M = np.exp(logp_M)
    return float(-(prob_M * np.where(prob_M > 0, logp_M, 0.0)).sum())
