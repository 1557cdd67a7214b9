"""Choosing tokens from rows of logits with numpy, for engines that come without PyTorch.

The same rules as `modelwright.nn.generate`: temperature, then top-k, then the nucleus (Holtzman et al. 2019,
arXiv:1904.09751), then the inverse of the cumulative distribution at the request's own uniform number.

Shapes: R rows, V vocabulary, M candidates kept of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modelwright.methods.engines import Rule, Top


class Dial(NamedTuple):
    """One row's settings and its draw from [0, 1)."""

    temperature: float
    top_p: float
    top_k: int
    uniform: float
    rule: Rule | None = None
    top: int = 0


class Drawn(NamedTuple):
    token: int
    logprob: float
    """In nats, before temperature and rule."""
    top: Top


def choose(logits_RV: Any, dials: Sequence[Dial]) -> list[Drawn]:
    """A token of each row."""
    import numpy as np

    logits_RV = np.asarray(logits_RV, dtype=np.float32)
    tokens = []
    for logits_V, dial in zip(logits_RV, dials, strict=True):
        ruled_V = logits_V if dial.rule is None else dial.rule(logits_V.copy())
        tokens.append(_draw(ruled_V, dial) if dial.temperature > 0 else int(ruled_V.argmax()))
        if dial.rule is not None:
            dial.rule.accept(tokens[-1])
    tops = [_top(logits_V, dial.top) for logits_V, dial in zip(logits_RV, dials, strict=True)]
    return [Drawn(*found) for found in zip(tokens, logps(logits_RV, tokens), tops, strict=True)]


def _top(logits_V: Any, count: int) -> Top:
    import numpy as np

    if not count:
        return ()
    count = min(count, len(logits_V))
    likely = np.argpartition(-logits_V, count - 1)[:count]
    tokens = likely[np.argsort(-logits_V[likely], kind="stable")].tolist()
    return tuple(zip(tokens, logps(np.repeat(logits_V[None], count, 0), tokens), strict=True))


def logps(logits_RV: Any, tokens: Sequence[int]) -> list[float]:
    """log p(token) of each row, in nats."""
    import numpy as np

    top_R = logits_RV.max(-1)
    total_R = np.log(np.exp(logits_RV - top_R[:, None]).sum(-1, dtype=np.float64))
    chosen_R = logits_RV[np.arange(len(tokens)), tokens]
    found: list[float] = (chosen_R - top_R - total_R).tolist()
    return found


def _draw(logits_V: Any, dial: Dial) -> int:
    import numpy as np

    scaled_V = logits_V.astype(np.float64) / dial.temperature
    vocab = len(scaled_V)
    whole = 0 < dial.top_k < vocab or dial.top_p < 1
    order_M = (
        np.argsort(-scaled_V, kind="stable")[: dial.top_k if 0 < dial.top_k < vocab else vocab] if whole else np.arange(vocab)
    )
    prob_M = np.exp(scaled_V[order_M] - scaled_V.max())
    prob_M /= prob_M.sum()
    total_M = prob_M.cumsum()
    if dial.top_p < 1:
        kept = max(1, int(((total_M - prob_M) < dial.top_p).sum()))
        order_M, total_M = order_M[:kept], total_M[:kept]
    place = int(np.searchsorted(total_M, dial.uniform * total_M[-1], side="right"))
    return int(order_M[min(place, len(order_M) - 1)])
