"""Choosing tokens from rows of logits with numpy, for engines that come without PyTorch.

The same rules as `modelwright.nn.sample`: temperature, then top-k, then the nucleus (Holtzman et al. 2019, arXiv:1904.09751),
then the inverse of the cumulative distribution, tokens in the order of their ids, at the request's own uniform number.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelwright.methods.engines import Rule, Sampling, Top
from modelwright.methods.engines._rules import cut


class Dial(NamedTuple):
    """One row's settings and its draw from [0, 1)."""

    temperature: float
    top_p: float
    top_k: int
    uniform: float
    rule: Rule | None = None
    top: int = 0
    logprob: bool = True
    """Whether it is wanted."""


class Drawn(NamedTuple):
    token: int
    logprob: float
    """In nats, before temperature and rule; NaN where it is not wanted."""
    top: Top


def choose(logits_RV: Sequence[Any], dials: Sequence[Dial]) -> list[Drawn]:
    """A token of each row; rows are float32 and not changed."""
    drawn = []
    for logits_V, dial in zip(logits_RV, dials, strict=True):
        ruled_V = logits_V if dial.rule is None else dial.rule(logits_V.copy())
        token = _draw(ruled_V, dial) if dial.temperature > 0 else int(ruled_V.argmax())
        if dial.rule is not None:
            dial.rule.accept(token)
        logprob = logps(logits_V[None], [token])[0] if dial.logprob else math.nan
        drawn.append(Drawn(token, logprob, _top(logits_V, dial.top)))
    return drawn


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

    kept_V = cut(logits_V, Sampling(temperature=dial.temperature, top_p=dial.top_p, top_k=dial.top_k))
    total_V = np.exp(kept_V - kept_V.max()).cumsum(dtype=np.float64)
    place = int(np.searchsorted(total_V, dial.uniform * total_V[-1], side="right"))
    return min(place, int(np.searchsorted(total_V, total_V[-1])))  # the last that is possible, where rounding leads beyond
