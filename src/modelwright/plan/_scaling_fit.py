"""The law of one's own runs: fitted to a ladder of small ones, with intervals, and no word beyond what they can tell.

A handful of runs hardly tells the law's two powers, and a fit of all five numbers to them finds powers that no one ever saw: of
eight runs with 1 % noise, the 95 % intervals of such a fit held 53 % of the larger runs to come (tests/test_scaling.py has the
laws). So powers begin as likely as they are near the published ones, and every pair of them weighs as much as that and the
squares left over beside the three other numbers' least squares say (profile likelihood of a normal error of unknown size: Gelman
et al. 2013, "Bayesian Data Analysis", sections 3.2 and 14.2). Many runs outweigh the beginning. Intervals draw powers by these
weights, the size of the error by its own distribution, and losses by a bootstrap of the residuals (Efron and Tibshirani 1993, "An
Introduction to the Bootstrap", section 9.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.plan.scaling import REFITTED, Law, best_params

LEAST_RUNS = 4
"""With fewer runs nothing is fitted."""
POWERS_SD = 0.5
"""Standard deviation of the logarithm of each power about the published one's before a run is seen. Ours: 95 % lie within a
factor of 2.7, as do the published ones (0.28 to 0.37 for tokens, 0.34 to 0.35 for weights)."""
SPAN = 2.0
"""Sizes, and tokens, must differ by so much: a slope is not seen in less."""
BEYOND = 10.0
"""Times the largest size and the most tokens of the ladder that a prediction may go. Ours: two orders of magnitude in compute,
about as far as the cited paper went from its runs."""
DRAWS = 400
CELLS, FARTHEST, NARROWER = 15, 3.0, 3.5
"""Of the grid of powers: cells a side, standard deviations that the first one reaches, and those of its weights that the next
one does."""
ROUNDS = 10
LEAST_SQUARES = 1e-12
"""Of relative losses: below it is rounding."""
LEAST, MOST, MOST_OFF = 1e-9, 1e30, 50.0
"""Of sizes, tokens and losses, and of a logarithm of losses' ratio: beyond, powers of them overflow."""


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


class Drawn(NamedTuple):
    """What might be so instead."""

    law: Law
    noise: float
    """log(measured) - log(the law's) of a run to come."""


class Fitted(NamedTuple):
    law: Law
    runs: tuple[Run, ...]
    draws: tuple[Drawn, ...]

    def far(self, params: float, tokens: float) -> str:
        """What is beyond the ladder, in words; '' where nothing is."""
        return _too_far("weights", params, [run.params for run in self.runs]) or _too_far(
            "tokens", tokens, [run.tokens for run in self.runs]
        )

    def check(self, params: float, tokens: float) -> None:
        """UserError beyond what the ladder tells."""
        if far := self.far(params, tokens):
            raise UserError(
                f"the ladder says nothing of {far}",
                f"a law fitted to small runs is trusted to {BEYOND:g} times their largest, and not below their smallest by more",
                "add a run nearer to it",
            )

    def predict(self, params: float, tokens: float) -> Prediction:
        """UserError beyond what the ladder tells."""
        self.check(params, tokens)
        found = sorted(drawn.law.loss(params, tokens) * math.exp(drawn.noise) for drawn in self.draws)
        return Prediction(params, tokens, self.law.loss(params, tokens), *interval(found))

    def between(self, name: str) -> tuple[float, float]:
        """What 95 % of the laws that might be have for one of the law's numbers."""
        return interval(sorted(getattr(drawn.law, name) for drawn in self.draws))

    def best_between(self, flops: float, inference_tokens: float = 0.0) -> tuple[float, float]:
        """What 95 % of the laws that might be call the best size."""
        return interval(sorted(best_params(drawn.law, flops, inference_tokens) for drawn in self.draws))


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
    grid = _grid(values)
    best = grid.cells[int(np.argmax(grid.weights))]
    law = _law(best, f"fitted to {len(runs)} runs, its powers held near those of {REFITTED.source}")
    draw = np.random.default_rng(seed)
    return Fitted(law, runs, tuple(_drawn(grid, values, draw) for _ in range(DRAWS)))


def _check(runs: Sequence[Run]) -> None:
    for run in runs:
        if not all(LEAST <= value <= MOST for value in run[1:]):
            raise UserError(
                f"run {run.name}: weights, tokens and loss are numbers from {LEAST:g} to {MOST:g}",
                f"it has {run.params:g}, {run.tokens:g} and {run.loss:g}",
                "mend it or leave it out",
            )
    if (differing := len({(run.params, run.tokens) for run in runs})) < LEAST_RUNS:
        raise UserError(
            f"a law needs at least {LEAST_RUNS} runs of different size or length, and there are {differing}"
            + (f" among these {len(runs)}" if len(runs) > differing else ""),
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


class _Cell(NamedTuple):
    """The best law with these powers."""

    powers: tuple[float, float]
    scales: Any
    """[3] A, B, E."""
    residuals: Any
    """[runs] log(measured) - log(the law's)."""


class _Grid(NamedTuple):
    cells: list[_Cell]
    weights: Any
    """Of each, in all 1."""
    side: tuple[float, float]
    """Of a cell, in standard deviations of what was taken for likely."""


def _grid(values: Any) -> _Grid:
    """Pairs of powers around the likeliest: grid after grid, each as wide as what the one before it found likely."""
    import numpy as np

    middle, reach = np.zeros(2), np.full(2, FARTHEST)
    for _ in range(ROUNDS):
        axes = [np.linspace(m - r, m + r, CELLS) for m, r in zip(middle, reach, strict=True)]
        places = np.array(list(product(*axes)))
        cells = [_best(values, _powers(place)) for place in places]
        freedom = len(values) - 3
        squares = np.array([float((cell.residuals**2).sum()) for cell in cells])
        score = -0.5 * (places**2).sum(1) - 0.5 * freedom * np.log(squares + LEAST_SQUARES)
        weights = np.exp(score - score.max())
        weights /= weights.sum()
        side = 2 * reach / (CELLS - 1)
        middle = weights @ places
        deviation = np.sqrt(weights @ (places - middle) ** 2)
        wanted = np.minimum(FARTHEST, NARROWER * np.maximum(deviation, side / 2))
        if (wanted > 0.8 * reach).all():
            break
        reach = np.minimum(wanted, reach)
    return _Grid(cells, weights, (float(side[0]), float(side[1])))


def _powers(place: Any) -> tuple[float, float]:
    """Of a place in standard deviations from the published ones."""
    alpha, beta = (
        known * math.exp(POWERS_SD * float(away))
        for known, away in zip((REFITTED.params_power, REFITTED.tokens_power), place, strict=True)
    )
    return alpha, beta


def _best(values: Any, powers: tuple[float, float]) -> _Cell:
    """Least squares of relative losses, no number below 0 (Lawson and Hanson 1974, "Solving Least Squares Problems")."""
    import numpy as np
    from scipy.optimize import nnls

    terms = _terms(values, powers)
    share = terms / values[:, 2:]
    size = share.max(0)  # columns of like size: tokens to a power are small
    scales = nnls(share / size, np.ones(len(values)))[0] / size
    return _Cell(powers, scales, np.log(values[:, 2]) - np.log(terms @ scales))


def _terms(values: Any, powers: tuple[float, float]) -> Any:
    """[runs, 3] what A, B and E are multiplied with."""
    import numpy as np

    return np.stack([values[:, 0] ** -powers[0], values[:, 1] ** -powers[1], np.ones(len(values))], 1)


def _drawn(grid: _Grid, values: Any, draw: Any) -> Drawn:
    """A law that might have given such losses, and how far from it a run to come might lie."""
    import numpy as np

    number = len(values)
    cell = grid.cells[draw.choice(len(grid.cells), p=grid.weights)]
    within = [
        power * math.exp(POWERS_SD * side * draw.uniform(-0.5, 0.5)) for power, side in zip(cell.powers, grid.side, strict=True)
    ]
    # the size of the error is as uncertain as few runs leave it
    wider = math.sqrt(number / max(draw.chisquare(number - 3), 1e-3))
    off = wider * draw.choice(cell.residuals, number + 1) * draw.choice((-1.0, 1.0), number + 1)
    *others, own = np.clip(off, -MOST_OFF, MOST_OFF)
    again = values.copy()
    again[:, 2] = _terms(values, cell.powers) @ cell.scales * np.exp(others)
    return Drawn(_law(_best(again, (within[0], within[1])), ""), float(own))


def _law(cell: _Cell, source: str) -> Law:
    params_scale, tokens_scale, irreducible = (float(one) for one in cell.scales)
    return Law(irreducible, params_scale, tokens_scale, *cell.powers, source)
