"""The numbers that rows were judged by, as histograms: of all rows, in bounded memory, the same however rows are divided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelwright.methods.steps import Bound, ByNumbers

BINS = 40
SHIFT = 42
"""Bits of a double that are left out: a fine bin is 1/1024 of the power of two that it lies in, and whole numbers up to 2048 have
one each."""


class Threshold(NamedTuple):
    field: str
    """Of the step; with its value where that is no number."""
    side: str
    """`least` or `most`."""
    value: float
    default: float | None
    """The published one."""


@dataclass
class Statistic:
    """One number of a step's rows."""

    fine: Counter[int] = field(default_factory=Counter)
    """Rows by twice their fine bin, and one more where they were dropped."""
    thresholds: dict[Threshold, int] = field(default_factory=dict)
    """How many rows fail each, whichever of all they went for."""


@dataclass
class Seen:
    """The statistics of one step."""

    source: str = ""
    of: dict[str, Statistic] = field(default_factory=dict)

    def see(self, step: ByNumbers, bounds: Mapping[str, Bound], gone_D: bytes) -> None:
        """Take in some rows; `gone_D` is 1 for those that the step dropped."""
        import numpy as np

        self.source = step.published
        is_gone_D = np.frombuffer(gone_D, bool)
        counted: set[str] = set()
        for of, given_D, least, most, name in bounds.values():
            found = self.of.setdefault(of, Statistic())
            value_D = np.asarray(given_D, np.float64)
            for side, limit in (("least", least), ("most", most)):
                if math.isfinite(limit):
                    threshold = Threshold(_told(step, name), side, float(limit), _default(step, name))
                    failed = int((value_D < limit).sum() if side == "least" else (value_D > limit).sum())
                    found.thresholds[threshold] = found.thresholds.get(threshold, 0) + failed
            if of not in counted:
                counted.add(of)
                is_real_D = np.isfinite(value_D)
                bin_D = (value_D[is_real_D].view(np.int64) >> SHIFT) * 2 + is_gone_D[is_real_D]
                bins, rows = np.unique(bin_D, return_counts=True)
                found.fine.update(dict(zip(bins.tolist(), rows.tolist(), strict=True)))

    def add(self, other: Seen) -> None:
        self.source = other.source or self.source
        for of, new in other.of.items():
            found = self.of.setdefault(of, Statistic())
            fine, known = found.fine, found.fine.get
            for code, rows in new.fine.items():  # `update` takes three times as long
                fine[code] = known(code, 0) + rows
            for threshold, failed in new.thresholds.items():
                found.thresholds[threshold] = found.thresholds.get(threshold, 0) + failed

    def stats(self, step: str) -> list[dict[str, Any]]:
        """For the manifest; a number that no row has is left out."""
        return [
            {
                "step": step,
                "statistic": of,
                **histogram(one),
                "thresholds": [{**limit._asdict(), "rows": failed} for limit, failed in one.thresholds.items()],
                "source": self.source,
            }
            for of, one in self.of.items()
            if one.fine
        ]


def _told(step: ByNumbers, name: str) -> str:
    """A switch is no number: it is told as it stands."""
    setting = getattr(step, name)
    return f"{name}: {str(setting).lower()}" if isinstance(setting, bool) else name


def _default(step: ByNumbers, name: str) -> float | None:
    default = type(step).model_fields[name].default
    return float(default) if isinstance(default, (int, float)) and not isinstance(default, bool) else None


def histogram(one: Statistic) -> dict[str, Any]:
    """`BINS` bins of all rows that are judged, and what lies beyond the last edge, kept and dropped apart."""
    import numpy as np

    bins = sorted({code >> 1 for code in one.fine})
    value_N = (np.array(bins, np.int64) << SHIFT).view(np.float64)
    order = np.argsort(value_N, kind="stable")
    value_N = value_N[order]
    rows_2N = np.array([[one.fine[2 * bins[i] + gone] for i in order] for gone in (0, 1)])
    upto_N = rows_2N.sum(axis=0).cumsum()

    def quantile(share: float) -> float:
        return float(value_N[min(np.searchsorted(upto_N, share * upto_N[-1]), len(value_N) - 1)])

    limits = [threshold.value for threshold in one.thresholds]
    median, low, high = quantile(0.5), float(value_N[0]), quantile(0.995)
    scale, edges = _edges(value_N, low, high, median, limits)
    counts_2B = np.array(
        [np.histogram(np.minimum(value_N, edges[-1]), [*edges[:-1], math.inf], weights=rows)[0] for rows in rows_2N]
    )
    beyond_2 = rows_2N[:, value_N >= edges[-1]].sum(axis=1)
    counts_2B[:, -1] -= beyond_2
    return {
        "rows": int(upto_N[-1]),
        "median": float(f"{median:.6g}"),
        "scale": scale,
        "edges": [float(f"{edge:.6g}") for edge in edges],
        "kept": counts_2B[0].astype(int).tolist(),
        "dropped": counts_2B[1].astype(int).tolist(),
        "beyond": beyond_2.astype(int).tolist(),
        "max": float(f"{value_N[-1]:.6g}"),
    }


def _edges(value_N: Any, low: float, high: float, median: float, limits: list[float]) -> tuple[str, list[float]]:
    """Equal steps, whole numbers where these are few, or equal ratios where the values lie over decades."""
    import numpy as np

    low, high, least, most = min([low, *limits]), max([high, *limits]), low, high
    if (value_N == np.floor(value_N)).all() and high - low < BINS and value_N[-1] - low < 4 * BINS:
        return "whole", [float(edge) for edge in range(math.floor(low), math.floor(high) + 2)]
    if low >= 0 and median > 0 and high > 10 * median and high > 2:
        first = max(float(value_N[value_N > 0].min()), median / 1000)
        return "log", [0.0, *np.geomspace(first, high * 1.2, BINS).tolist()]
    span = (high - low) or abs(high) or 1.0
    begin = 0.0 if 0 <= low < max(high / 2, span / 20) else low - (span / 20 if low < least else 0)
    end = high + span * (1 / 20 if high > most else 1e-4)  # room beside a threshold at the edge
    return "linear", np.linspace(begin, end, BINS + 1).tolist()
