"""Evaluations along the chain of models: every metric with its interval, and each stage against the one before."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from modelwright.report import RunView
from modelwright.report.read import exact, number, of_kind, percent, rows, significant, stats, text

Name = tuple[str, str]
"""Task and metric."""


class Value(NamedTuple):
    """One measured number with its 95 % interval, and the interval's place on the metric's axis."""

    value: str
    interval: str
    n: str
    low_frac: float
    at_frac: float
    high_frac: float


class Line(NamedTuple):
    """One slice of a metric across the evaluate stages; None where a stage did not measure it."""

    group: str
    baseline: str
    """What the best constant answer would get, where the task knows."""
    values: list[Value | None]


class Metrics(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    higher_is_better: bool
    stages: list[str]
    lines: list[Line]


class Difference(NamedTuple):
    """One comparison on the same items; places are fractions of the plot's width."""

    group: str
    before: str
    after: str
    difference: str
    interval: str
    p: str
    n: str
    word: str
    low_frac: float
    at_frac: float
    high_frac: float


class Forest(NamedTuple):
    """All differences of one metric between two stages."""

    task: str
    metric: str
    stage: str
    against: str
    higher_is_better: bool
    zero_frac: float
    ticks: list[tuple[float, str]]
    """Place and label of each tick of the axis; zero is one of them."""
    lines: list[Difference]


BETTER, SAME, WORSE = "better", "no difference shown", "worse"


def is_share(values: list[float | None], metric: str) -> bool:
    """True where the numbers are fractions, to be written in percent."""
    lowered = metric.lower()
    if any(word in lowered for word in ("perplexity", "loss", "bits", "nats", "length", "tokens", "seconds")):
        return False
    return all(-1.0 <= v <= 1.0 for v in values if v is not None)


def lower_is_better(metric: str) -> bool:
    """For a comparison whose metric does not say."""
    return any(word in metric.lower() for word in ("perplexity", "loss", "bits", "error", "nats"))


def show(value: float, share: bool) -> str:
    return percent(value) if share else digits(value)


def digits(value: float) -> str:
    """Three digits, zeros at the end too: numbers of one column look alike."""
    return f"{value:#.3g}".removesuffix(".") if 0.001 <= abs(value) < 1000 else significant(value)


def signed(value: float, share: bool) -> str:
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return sign + (f"{100 * abs(value):.1f}" if share else digits(abs(value)))


def between(low: float | None, high: float | None, share: bool) -> str:
    """`52.1 to 62.0`: the unit stands with the value."""
    if low is None or high is None:
        return ""
    return f"{100 * low:.1f} to {100 * high:.1f}" if share else f"{digits(low)} to {digits(high)}"


def metrics(run: RunView) -> list[Metrics]:
    """Every metric of every task, in the order in which the stages give them."""
    stages = [s for s in of_kind(run, "evaluate") if rows(stats(s), "metrics")]
    found: dict[Name, dict[str, dict[str, dict[str, Any]]]] = {}
    for stage in stages:
        for row in rows(stats(stage), "metrics"):
            if number(row, "value") is not None:
                found.setdefault((text(row, "task"), text(row, "name")), {}).setdefault(text(row, "group"), {})[stage.name] = row
    return [_metric(name, groups, [s.name for s in stages]) for name, groups in found.items()]


def _metric(name: Name, groups: dict[str, dict[str, dict[str, Any]]], stages: list[str]) -> Metrics:
    used = [s for s in stages if any(s in by_stage for by_stage in groups.values())]
    cells = [row for by_stage in groups.values() for row in by_stage.values()]
    numbers = [number(row, key) for row in cells for key in ("value", "low", "high")]
    share = is_share(numbers, name[1])
    known = [v for v in numbers if v is not None]
    low, high = (0.0, 1.0) if share else (min(known), max(known))
    air = 0.0 if share else 0.15 * (high - low)
    low, span = low - air, (high - low + 2 * air) or 1.0

    def cell(row: dict[str, Any] | None) -> Value | None:
        if row is None:
            return None
        value = number(row, "value")
        assert value is not None
        ends = [v if (v := number(row, key)) is not None else value for key in ("low", "high")]
        at = [min(1.0, max(0.0, (v - low) / span)) for v in (ends[0], value, ends[1])]
        return Value(show(value, share), between(number(row, "low"), number(row, "high"), share), exact(number(row, "n")), *at)

    ordered = sorted(groups, key=lambda g: g != "")  # the whole first, then its slices
    lines = [Line(group, _baseline(groups[group], share), [cell(groups[group].get(s)) for s in used]) for group in ordered]
    return Metrics(*name, _direction(cells, name[1]), used, lines)


def _baseline(by_stage: dict[str, dict[str, Any]], share: bool) -> str:
    """The items are the same for every stage, and so is this."""
    known = [v for row in by_stage.values() if (v := number(row, "baseline")) is not None]
    return show(known[-1], share) if known else ""


def _direction(cells: list[dict[str, Any]], metric: str) -> bool:
    said = [row["higher_is_better"] for row in cells if isinstance(row.get("higher_is_better"), bool)]
    return said[0] if said else not lower_is_better(metric)


def forests(run: RunView) -> list[list[Forest]]:
    """A list for each stage that was compared with one before it; metrics in percent share one axis, so that they compare."""
    higher = {(m.task, m.metric): m.higher_is_better for m in metrics(run)}
    blocks: list[tuple[str, str, Name, list[dict[str, Any]]]] = []
    for stage in of_kind(run, "evaluate"):
        by_name: dict[Name, list[dict[str, Any]]] = {}
        for row in rows(stats(stage), "comparisons"):
            if number(row, "difference") is not None:
                by_name.setdefault((text(row, "task"), text(row, "name")), []).append(row)
        against = text(stats(stage), "against") or "the stage before"
        blocks += [
            (stage.name, against, name, sorted(found, key=lambda r: text(r, "group") != "")) for name, found in by_name.items()
        ]
    shares = [_is_share_difference(found, name[1]) for _, _, name, found in blocks]
    common = _reach([row for (_, _, _, found), share in zip(blocks, shares, strict=True) if share for row in found])
    by_stage: dict[str, list[Forest]] = {}
    for (stage_name, against, name, found), share in zip(blocks, shares, strict=True):
        by_stage.setdefault(stage_name, []).append(
            _forest(
                stage_name,
                against,
                name,
                found,
                share,
                common if share else _reach(found),
                higher.get(name, not lower_is_better(name[1])),
            )
        )
    return [sorted(found, key=lambda f: -len(f.lines)) for found in by_stage.values()]


def _is_share_difference(found: list[dict[str, Any]], metric: str) -> bool:
    return is_share([number(row, key) for row in found for key in ("before", "after", "difference", "low", "high")], metric)


def _reach(found: list[dict[str, Any]]) -> tuple[float, float]:
    """The axis: zero and all intervals are on it, with a little air."""
    ends = [v for row in found for key in ("low", "high", "difference") if (v := number(row, key)) is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    air = 0.06 * ((high - low) or 1.0)
    return low - air, high + air


def _forest(
    stage: str, against: str, name: Name, found: list[dict[str, Any]], share: bool, reach: tuple[float, float], higher: bool
) -> Forest:
    low, high = reach

    def frac(value: float) -> float:
        return min(1.0, max(0.0, (value - low) / (high - low)))

    lines = []
    for row in found:
        value = number(row, "difference")
        assert value is not None
        ends = number(row, "low"), number(row, "high")
        first, last = (e if e is not None else value for e in ends)
        before, after, p = number(row, "before"), number(row, "after"), number(row, "p")
        lines.append(
            Difference(
                text(row, "group") or "all",
                "" if before is None else show(before, share),
                "" if after is None else show(after, share),
                signed(value, share) + (" points" if share else ""),
                f"{signed(first, share)} to {signed(last, share)}" if None not in ends else "",
                "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}",
                exact(number(row, "n")),
                _word(row, higher),
                frac(first),
                frac(value),
                frac(last),
            )
        )
    return Forest(*name, stage, against, higher, frac(0.0), [(frac(v), _tick(v, share)) for v in _ticks(low, high)], lines)


def _ticks(low: float, high: float) -> list[float]:
    """Round values on the axis, zero among them, at most five."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(k * size for k in (1, 2, 5, 10) if k * size >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _word(row: dict[str, Any], higher_is_better: bool) -> str:
    """The evaluation's own finding; the interval's where it has none."""
    if "better" in row:  # the evaluation's own word: None where interval and p-value do not both show a difference
        return SAME if row["better"] is None else BETTER if row["better"] else WORSE
    return verdict(number(row, "low"), number(row, "high"), higher_is_better)


def _tick(value: float, share: bool) -> str:
    return "0" if value == 0 else ("+" if value > 0 else "−") + significant(abs(100 * value if share else value))


def verdict(low: float | None, high: float | None, higher_is_better: bool) -> str:
    """What the interval of a difference says: it must leave zero out before anything is called better or worse."""
    if low is None or high is None or low <= 0 <= high:
        return SAME
    return BETTER if (low > 0) == higher_is_better else WORSE
