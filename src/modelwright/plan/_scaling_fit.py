"""The law of one's own runs: fitted to a ladder of small ones, with intervals, and no word beyond what they can tell.

Least Huber distance between the logarithms of predicted and measured loss, from a grid of starts: Hoffmann et al. 2022,
arXiv:2203.15556, section 3.3. Intervals by a bootstrap of the residuals (Efron and Tibshirani 1993, "An Introduction to the
Bootstrap", section 9.5), which a handful of runs can still feed where drawing whole runs again would leave sizes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.plan.scaling import REFITTED, Law

DELTA = 1e-3
"""Where Huber's distance becomes linear; the paper's."""
FREE_RUNS, LEAST_RUNS = 8, 4
"""With fewer runs than the first the two powers are those of the published law; with fewer than the second nothing is fitted."""
SPAN = 2.0
"""Sizes, and tokens, must differ by so much: a slope is not seen in less."""
BEYOND = 10.0
"""Times the largest size and the most tokens of the ladder that a prediction may go. Ours: two orders of magnitude in compute,
about as far as the cited paper went from its runs."""
DRAWS = 200


class Run(NamedTuple):
    """A finished training."""

    name: str
    params: float
    tokens: float
    loss: float
    """In nats a token, on rows that were not trained on where there are some."""


class Prediction(NamedTuple):
    params: float
    tokens: float
    loss: float
    low: float
    high: float
    """95 % of the losses that such a run may have."""


class Fitted(NamedTuple):
    law: Law
    runs: tuple[Run, ...]
    draws: tuple[Law, ...]
    """The law again, of losses that might have been."""
    residuals: tuple[float, ...]
    """log(measured) - log(predicted), widened for the freedom that the fit took."""
    free: int
    """Numbers that were fitted."""

    def check(self, params: float, tokens: float) -> None:
        """UserError beyond what the ladder tells."""
        far = _too_far("weights", params, [run.params for run in self.runs]) or _too_far(
            "tokens", tokens, [run.tokens for run in self.runs]
        )
        if far:
            raise UserError(
                f"the ladder says nothing of {far}",
                f"a law fitted to small runs is trusted to {BEYOND:g} times their largest, and not below their smallest by more",
                "add a run nearer to it",
            )

    def predict(self, params: float, tokens: float) -> Prediction:
        """UserError beyond what the ladder tells."""
        self.check(params, tokens)
        found = sorted(
            law.loss(params, tokens) * math.exp(self.residuals[index % len(self.residuals)])
            for index, law in enumerate(self.draws)
        )
        return Prediction(params, tokens, self.law.loss(params, tokens), *interval(found))


def interval(found: Sequence[float]) -> tuple[float, float]:
    """What 95 % of these sorted values lie in."""
    cut = int(0.025 * len(found))
    return found[cut], found[-1 - cut]


def _too_far(what: str, value: float, known: Sequence[float]) -> str:
    if value > BEYOND * max(known):
        return f"{value:.3g} {what}: {value / max(known):.0f} times its largest"
    if value < min(known) / BEYOND:
        return f"{value:.3g} {what}: its smallest is {min(known) / value:.0f} times that"
    return ""


def fit(runs: Sequence[Run], seed: int = 0) -> Fitted:
    """The law of these runs; UserError where they are too few, too alike, or no losses."""
    try:
        import numpy as np
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise missing_extra("scipy", "plan", "fitting a scaling law") from None
    runs = tuple(sorted(runs, key=lambda run: (run.params, run.tokens)))
    _check(runs)
    values = np.array([[run.params, run.tokens, run.loss] for run in runs])
    free = len(runs) >= FREE_RUNS
    theta = min((_settled(values, np.array(start), free) for start in _starts(values, free)), key=lambda found: found[1])[0]
    count = 5 if free else 3
    predicted = _log_losses(theta, values)
    residuals = (np.log(values[:, 2]) - predicted) * math.sqrt(len(runs) / max(1, len(runs) - count))
    draw = np.random.default_rng(seed)
    laws = []
    for _ in range(DRAWS):
        again = values.copy()
        again[:, 2] = np.exp(predicted + draw.choice(residuals, len(runs)))
        laws.append(_law(_settled(again, theta, free)[0], ""))
    said = f"fitted to {len(runs)} runs" + ("" if free else f", powers of {REFITTED.source}")
    return Fitted(_law(theta, said), runs, tuple(laws), tuple(float(one) for one in residuals), count)


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if not (run.params > 0 and run.tokens > 0 and 0 < run.loss < math.inf):
            raise UserError(f"run {run.name}: weights, tokens and loss are finite and more than 0")
    if len({(run.params, run.tokens) for run in runs}) < LEAST_RUNS:
        raise UserError(
            f"a law needs at least {LEAST_RUNS} runs of different size or length, and there are {len(runs)}",
            "three numbers are fitted at the least",
            "train some more small models: sizes and tokens each at least doubled once",
        )
    for what, sizes in (("size", [run.params for run in runs]), ("length", [run.tokens for run in runs])):
        if max(sizes) < SPAN * min(sizes):
            raise UserError(
                f"the runs are all about of one {what} ({min(sizes):.3g} to {max(sizes):.3g})",
                f"how the loss falls with it is not seen in less than a factor of {SPAN:g}",
                "add runs that differ more",
            )


def _starts(values: Any, free: bool) -> list[list[float]]:
    """[log A, log B, log E, alpha, beta] to begin at."""
    lowest = math.log(float(values[:, 2].min()))
    powers = product((0.2, 0.35, 0.6), (0.2, 0.35, 0.6)) if free else [(REFITTED.params_power, REFITTED.tokens_power)]
    starts = []
    for alpha, beta in powers:
        for share in (0.4, 0.7, 0.9):  # of the lowest loss that is irreducible
            rest = math.log((1 - share) / 2) + lowest
            by_params = rest + alpha * math.log(float(values[:, 0].max()))
            by_tokens = rest + beta * math.log(float(values[:, 1].max()))
            starts.append([by_params, by_tokens, lowest + math.log(share), alpha, beta])
    return starts


def _settled(values: Any, start: Any, free: bool) -> tuple[Any, float]:
    """The nearest minimum and its distance."""
    import numpy as np
    from scipy.optimize import minimize

    *sizes, wanted = np.log(values).T
    logs = np.stack(sizes)
    fixed = start[3:].copy()

    def distance(theta: Any) -> tuple[float, Any]:
        theta = theta if free else np.concatenate([theta, fixed])
        parts = _parts(theta, logs)
        total = np.logaddexp.reduce(parts, axis=0)
        gap = total - wanted
        slope = np.clip(gap, -DELTA, DELTA)
        near = np.abs(gap) <= DELTA
        lost = np.where(near, 0.5 * gap**2, DELTA * (np.abs(gap) - 0.5 * DELTA)).sum()
        share = np.exp(parts - total) * slope
        gradient = np.concatenate([share.sum(axis=1), -(share[:2] * logs).sum(axis=1)])
        return float(lost) / DELTA, (gradient if free else gradient[:3]) / DELTA

    bounds = [(None, None)] * 3 + ([(0.01, 2.0)] * 2 if free else [])
    found = minimize(distance, start if free else start[:3], jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    theta = found.x if free else np.concatenate([found.x, fixed])
    return theta, float(found.fun)


def _parts(theta: Any, logs: Any) -> Any:
    """[3, runs] logarithms of the three terms. `logs`: of weights and tokens."""
    import numpy as np

    a, b, e, alpha, beta = theta
    return np.stack([a - alpha * logs[0], b - beta * logs[1], np.full(logs.shape[1], e)])


def _log_losses(theta: Any, values: Any) -> Any:
    import numpy as np

    return np.logaddexp.reduce(_parts(theta, np.log(values[:, :2]).T), axis=0)


def _law(theta: Any, source: str) -> Law:
    a, b, e, alpha, beta = (float(one) for one in theta)
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta, source)
