"""How far off predictions are: a robust fit of what corrects them, and the interval that the errors left over give.

Corrections: ridge regression towards the median ratio (Hoerl and Kennard 1970, "Ridge Regression", Technometrics 12) on relative
errors, with Huber's weights (Huber 1964, "Robust Estimation of a Location Parameter", Annals of Mathematical Statistics 35).
Intervals: quantiles of errors on runs that were left out of the fit, as in split conformal prediction (Vovk, Gammerman and Shafer
2005, "Algorithmic Learning in a Random World"; Lei et al. 2018, arXiv:1604.04173), each run left out in turn (Barber et al. 2021,
"Predictive inference with the jackknife+", arXiv:1905.02928). A 95 % interval of both sides takes 39 runs by order alone; until
there are as many, errors measured in this repository stand in for those that are missing, as runs with less weight do in
Tibshirani et al. 2019, arXiv:1904.06019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

Feature = tuple[str, str]
"""A part of a prediction, and what its rate depends on beside (''); both are fitted, the second as a difference."""

TOWARDS, TOWARDS_LIKE = 0.04, 0.16
"""How strongly corrections are held to their common median: the square of noise over spread. Noise 0.1 (the same stage twice on a
quiet machine); parts of a prediction are off by factors 0.5 apart, runs of one sort by 0.25 from others."""
FIRM = 1.0
"""The same of parts that are arithmetic: noise as large as what is not known of them."""
HUBER = 1.5
"""Robust standard deviations from which an error counts less; 1.345 to 2 are usual."""
LEAST_SPREAD = 0.05
"""Relative error that is noise anyway: two runs that agree by chance do not make a third one an outlier."""
ROUNDS = 4
FARTHEST = 8.0
"""Most that parts may differ from the median correction altogether."""
COVER = 0.95
ENOUGH = 40
"""Runs whose least and largest error, by order alone, bound 95 % of those to come: one in 41 lies beyond each."""
LIKE_N = 4
"""Runs that the spread measured in this repository counts as much as, until one's own tell how steady the machine is."""
MAD = 1.4826
"""Median absolute error to standard deviation, of a normal distribution."""


class Prior(NamedTuple):
    """Errors after correction as they were measured where this was written: log(measured / predicted)."""

    errors: tuple[float, ...]
    raw: tuple[float, float]
    """Least and largest measured / predicted where nothing was corrected yet."""

    @property
    def spread(self) -> float:
        return MAD * median(abs(error) for error in self.errors)


class Row(NamedTuple):
    """A measurement, and the parts of its prediction."""

    predicted: Mapping[Feature, float]
    measured: float
    weight: float = 1.0


class Fit(NamedTuple):
    """What corrects a prediction."""

    by: float
    """Median of measured over predicted."""
    parts: Mapping[Feature, float]
    """Factor of each part beside it, and by how much that differs for runs of one sort; unknown parts: 1 and 0."""
    errors: tuple[float, ...]
    """log(measured / predicted) of each run, predicted from the others; of a lone one from nothing."""

    def of(self, predicted: Mapping[Feature, float]) -> float:
        """The correction of a prediction with these parts."""
        return self.by * _share(predicted, self.parts)


def whole(predicted: Mapping[Feature, float]) -> float:
    return sum(size for (_, like), size in predicted.items() if not like)


def _share(predicted: Mapping[Feature, float], parts: Mapping[Feature, float]) -> float:
    total = whole(predicted)
    found = sum(size * parts.get(feature, 0.0 if feature[1] else 1.0) for feature, size in predicted.items())
    return min(FARTHEST, max(1 / FARTHEST, found / total)) if total > 0 else 1.0


def fitted(runs: Sequence[Sequence[Row]], loose: Sequence[str] = ()) -> Fit:
    """`runs`: of each the whole first, then what was measured of its parts. A fit of nothing changes nothing. `loose`: the parts
    that are to be corrected, where the others are arithmetic; (): all, and first by what they have in common."""
    if not runs:
        return Fit(1.0, {}, ())
    ratios = [run[0].measured / whole(run[0].predicted) for run in runs]
    others = [math.exp(median(map(math.log, [*ratios[:i], *ratios[i + 1 :]] or [1.0]))) for i in range(len(ratios))]
    features = list(dict.fromkeys(feature for run in runs for row in run for feature in row.predicted))
    if len(features) == 1:  # one number, one factor: the median is robust enough
        return Fit(median(ratios), {}, tuple(math.log(own / by) for own, by in zip(ratios, others, strict=True)))
    by, others = (1.0, [1.0] * len(runs)) if loose else (median(ratios), others)
    scaled = [[_scaled(row, features) for row in run] for run in runs]
    weights = [1.0] * len(runs)
    start = [0.0 if like else 1.0 for _, like in features]
    held = [FIRM if loose and name not in loose else TOWARDS_LIKE if like else TOWARDS for name, like in features]
    solution = start
    for _ in range(ROUNDS):
        solution = _solved(_held(_sums(scaled, weights), by, held, start))
        off = [by * _dot(solution, run[0][0]) - 1 for run in scaled]
        limit = HUBER * max(LEAST_SPREAD, MAD * median(map(abs, off)))
        weights = [min(1.0, limit / max(abs(error), 1e-12)) for error in off]
    sums = _sums(scaled, weights)
    errors = []
    for run, rows, weight, own in zip(runs, scaled, weights, others, strict=True):
        parts = _factors(features, _solved(_held(_less(sums, rows, weight), own, held, start)))
        errors.append(math.log(run[0].measured / (own * _share(run[0].predicted, parts) * whole(run[0].predicted))))
    return Fit(by, _factors(features, solution), tuple(errors))


def _factors(features: Sequence[Feature], solution: Sequence[float]) -> dict[Feature, float]:
    """What was solved, as factors: none is below zero, which would take away from others."""
    base = {name: max(0.0, value) for (name, like), value in zip(features, solution, strict=True) if not like}
    return {
        (name, like): max(value, -base.get(name, 1.0)) if like else base[name]
        for (name, like), value in zip(features, solution, strict=True)
    }


# --- weighted least squares, small enough for lists ----------------------------------------------------

Scaled = tuple[list[float], float]
"""A row's parts over what was measured, and its weight: the parts, corrected, are to give 1."""
Sums = tuple[list[list[float]], list[float]]


def _scaled(row: Row, features: Sequence[Feature]) -> Scaled:
    return [row.predicted.get(feature, 0.0) / row.measured for feature in features], row.weight


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _sums(runs: Sequence[Sequence[Scaled]], weights: Sequence[float]) -> Sums:
    """The normal equations: matrix and right side."""
    size = len(runs[0][0][0])
    matrix, right = [[0.0] * size for _ in range(size)], [0.0] * size
    for run, weight in zip(runs, weights, strict=True):
        _add(matrix, right, run, weight)
    return matrix, right


def _add(matrix: list[list[float]], right: list[float], run: Sequence[Scaled], weight: float) -> None:
    for values, own in run:
        for i, value in enumerate(values):
            if value:
                by = weight * own * value
                right[i] += by
                matrix[i] = [a + by * b for a, b in zip(matrix[i], values, strict=True)]


def _held(sums: Sums, by: float, held: Sequence[float], start: Sequence[float]) -> Sums:
    """The equations of what stands beside a common factor, and is held to `start` so strongly."""
    matrix = [[by * by * value + (held[i] if i == j else 0.0) for j, value in enumerate(row)] for i, row in enumerate(sums[0])]
    return matrix, [by * value + h * s for value, h, s in zip(sums[1], held, start, strict=True)]


def _less(sums: Sums, run: Sequence[Scaled], weight: float) -> Sums:
    """The same without one run."""
    matrix, right = [list(row) for row in sums[0]], list(sums[1])
    _add(matrix, right, run, -weight)
    return matrix, right


def _solved(sums: Sums) -> list[float]:
    """By elimination; the matrix is positive definite, since every diagonal has its `held`."""
    rows = [[*row, right] for row, right in zip(*sums, strict=True)]
    for i, pivot in enumerate(rows):
        scale = 1 / pivot[i]
        for j in range(i + 1, len(rows)):
            if by := rows[j][i] * scale:
                rows[j] = [a - by * b for a, b in zip(rows[j], pivot, strict=True)]
    found = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        found[i] = (rows[i][-1] - _dot(rows[i][i + 1 : -1], found[i + 1 :])) / rows[i][i]
    return found


# --- intervals ------------------------------------------------------------------------------------------


def interval(errors: Sequence[float], prior: Prior) -> tuple[float, float]:
    """Factors around a corrected prediction between which a run's measurement lies in COVER of cases; without any error, around
    one that nothing corrected."""
    if not errors:
        return prior.raw
    errors = errors if len(errors) > 1 else ()  # a lone run's tells how far off the uncorrected prediction was
    own = MAD * median(map(abs, errors)) if errors else 0.0
    count = len(errors)
    spread = math.sqrt((count * own**2 + LIKE_N * prior.spread**2) / (count + LIKE_N))
    known = [*errors, *(error * spread / prior.spread for error in _evenly(prior.errors, ENOUGH - count))]
    outside = (1 - COVER) / 2 * (len(known) + 1)  # of known errors and the one to come, on each side
    ordered = sorted(known)
    place = max(0, math.floor(outside) - 1)
    return math.exp(min(ordered[place], 0.0)), math.exp(max(ordered[-1 - place], 0.0))


def _evenly(errors: Sequence[float], count: int) -> list[float]:
    """So many of them, from the least to the largest."""
    ordered = sorted(errors)
    if count < 2:
        return ordered[:: len(ordered) - 1] if count == 1 else []
    return [ordered[round(place * (len(ordered) - 1) / (count - 1))] for place in range(count)]
