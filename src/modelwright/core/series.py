"""Series: what a training stage told, step by step, put together from its events; for the report, the live page and trackers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from modelwright.core.flops import mfu

Points = list[tuple[float, float]]
"""(step, value)."""
Fields = dict[str, Any]

UNUSED = ("overflow", "bad_step")
"""Events of steps whose gradient was not used: it left float16's range, or it or the loss was no number or a spike."""
PACE_EVENTS = 20
"""Newest `step` events that the time left is reckoned from."""


class Series:
    """Give it events in their order. A resumed run repeats steps: the later line counts."""

    def __init__(self) -> None:
        self._steps: dict[float, Fields] = {}
        self._checks: dict[float, dict[str, Fields]] = {}
        self._loads: list[Fields] = []
        self._rates: Fields = {}
        self._unused: dict[str, set[float]] = {name: set() for name in UNUSED}
        self._names: dict[str, None] = {}
        self._sorted: list[Fields] | None = None

    def add(self, event: Fields) -> None:
        name, step = event.get("event"), number(event, "step")
        if name == "step" and step is not None:
            self._steps.pop(step, None)  # a repeated step is the newest again
            self._steps[step], self._sorted = event, None
            self._names.update(dict.fromkeys(key for key in event if key not in self._names and number(event, key) is not None))
        elif name == "validation" and step is not None:
            self._checks.setdefault(step, {})[str(event.get("set", ""))] = event
        elif name == "load":
            self._loads.append(event)
        elif name == "rates":
            self._rates = event
        elif name in UNUSED and step is not None:
            self._unused[name].add(step)
        elif name in ("resumed", "rollback") and step is not None:  # what was done after it is lost and is done again
            self._steps, self._sorted = {at: fields for at, fields in self._steps.items() if at <= step}, None
            self._checks = {at: fields for at, fields in self._checks.items() if at <= step}
            self._unused["overflow"] = {at for at in self._unused["overflow"] if at <= step}  # bad steps stay left out

    # --- now ------------------------------------------------------------------------------------------

    @property
    def last(self) -> Fields:
        """The newest `step` event; empty before the first."""
        return next(reversed(self._steps.values()), {})

    @property
    def load(self) -> Fields:
        """The newest `load` event."""
        return self._loads[-1] if self._loads else {}

    @property
    def whole(self) -> int:
        """The last step told."""
        return int(max(self._steps, default=0))

    def unused(self, name: str) -> int:
        """Steps whose gradient was not used, by the event that says why."""
        return len(self._unused[name])

    def left_s(self) -> float | None:
        """Training time left, at the pace of the newest steps; None where that is not known."""
        newest = list(self._steps.values())[-PACE_EVENTS:]
        if not newest:
            return None
        first, last = newest[0], newest[-1]
        step, steps, seconds = (number(last, key) for key in ("step", "steps", "seconds"))
        if step is None or steps is None or seconds is None or step <= 0:
            return None
        before, then = number(first, "step"), number(first, "seconds")
        pace = seconds / step
        if before is not None and then is not None and step > before and seconds > then:
            pace = (seconds - then) / (step - before)
        return max(0.0, steps - step) * pace

    # --- over time ------------------------------------------------------------------------------------

    def rows(self) -> list[Fields]:
        """The `step` events by step."""
        if self._sorted is None:
            self._sorted = [self._steps[step] for step in sorted(self._steps)]
        return self._sorted

    def metrics(self) -> list[str]:
        """Names of the numbers that `step` events carry, in the order of their first telling."""
        return [name for name in self._names if name not in ("step", "steps", "time_s", "tokens", "seconds")]

    def points(self, key: str) -> Points:
        return _points(self.rows(), key)

    def validation(self, key: str = "loss") -> Points:
        """The mean over the sets, which is what decides what is best."""
        found: Points = []
        for step in sorted(self._checks):
            values = [value for event in self._checks[step].values() if (value := number(event, key)) is not None]
            found += [(step, sum(values) / len(values))] if values else []
        return found

    def speed(self) -> Points:
        """Tokens a second between two events, which tell the tokens and seconds since the start."""
        found = ((float(after["step"]), tokens_per_s(before, after)) for before, after in pairwise(self.rows()))
        return [(step, speed) for step, speed in found if speed is not None]

    def mfu(self) -> Points:
        """Share of the machine's matrix rate that useful work reaches; none where the rate was not measured."""
        share = self.mfu_of
        return [(step, found) for step, speed in self.speed() if (found := share(speed)) is not None]

    def mfu_of(self, speed: float) -> float | None:
        """The share that so many tokens a second are."""
        per_token, rate = number(self._rates, "flops_per_token"), number(self._rates, "matrix_flops_per_s")
        return mfu(speed, per_token, rate) if per_token and rate else None

    def gpus(self) -> list[int]:
        """Indices of the cards that were seen."""
        return sorted({int(card["index"]) for fields in self._loads for card in fields.get("gpus", ())})

    def load_points(self, key: str, gpu: int | None = None) -> Points:
        """A number of the `load` events over the steps. They carry times; between two `step` events time becomes step."""
        marks = [(t, s) for f in self._steps.values() if (t := number(f, "time_s")) is not None and (s := number(f, "step"))]
        found: dict[float, list[float]] = {}
        for fields in self._loads:
            card = fields if gpu is None else next((c for c in fields.get("gpus", ()) if c.get("index") == gpu), {})
            value, time_s = number(card, key), number(fields, "time_s")
            if value is not None and time_s is not None:
                found.setdefault(_step_at(time_s, marks), []).append(value)
        return [(step, sum(values) / len(values)) for step, values in sorted(found.items())]


def number(fields: Fields, key: str) -> float | None:
    """A finite number or None."""
    return finite(fields.get(key))


def finite(value: Any) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def tokens_per_s(before: Fields, after: Fields) -> float | None:
    """Speed between two `step` events."""
    fewer, then, tokens, now = (
        number(before, "tokens"),
        number(before, "seconds"),
        number(after, "tokens"),
        number(after, "seconds"),
    )
    if fewer is None or then is None or tokens is None or now is None or now <= then or tokens < fewer:
        return None
    return (tokens - fewer) / (now - then)


def thinned(points: Points, most: int, fold: Callable[[list[float]], float] = lambda v: sum(v) / len(v)) -> Points:
    """At most so many points: neighbours are put together, at the step of the last of them."""
    group = max(1, math.ceil(len(points) / most))
    parts = [points[k : k + group] for k in range(0, len(points), group)]
    return [(part[-1][0], fold([value for _, value in part])) for part in parts]


def spread(points: Points) -> bool:
    """Whether a logarithmic axis tells more: all values are above zero, the largest far above the median."""
    values = sorted(value for _, value in points)
    return bool(values) and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]


def _points(rows: list[Fields], key: str) -> Points:
    return [(float(fields["step"]), value) for fields in rows if (value := number(fields, key)) is not None]


def _step_at(time_s: float, marks: list[tuple[float, float]]) -> float:
    """The step that was under way at a time; `marks`: (time, step) in the order of time."""
    at = bisect_right(marks, (time_s, math.inf))
    if at == 0:
        return 0.0
    if at == len(marks):
        return marks[-1][1]
    (t0, s0), (t1, s1) = marks[at - 1], marks[at]
    return round(s0 + max(0.0, s1 - s0) * (time_s - t0) / max(t1 - t0, 1e-9), 2)
