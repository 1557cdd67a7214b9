"""Numbers for operators, in Prometheus' text.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4), names by
https://prometheus.io/docs/practices/naming/. Written here and not with `prometheus-client`: the format is four kinds of line, and
everything is counted in one thread.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

from modelwright.core.measure import resident_bytes
from modelwright.serve.logs import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper ends of the histograms' buckets."""
MOST_SERIES = 1000
"""Label values beyond these count as `other`: a name that clients choose must not fill the memory."""

Labels = tuple[tuple[str, str], ...]


class Counter:
    kind = "counter"

    def __init__(self) -> None:
        self.values: dict[Labels, float] = {}

    def add(self, count: float, **labels: str) -> None:
        key = tuple(labels.items())
        if key not in self.values and len(self.values) >= MOST_SERIES:
            key = tuple((name, "other") for name in labels)
        self.values[key] = self.values.get(key, 0) + count

    def lines(self, name: str) -> list[str]:
        return [f"{name}{_labels(labels)} {value:g}" for labels, value in self.values.items()]


class Histogram:
    kind = "histogram"

    def __init__(self) -> None:
        self.counts, self.total = [0] * (len(SECONDS) + 1), 0.0

    def add(self, value: float) -> None:
        if not math.isnan(value):
            self.counts[bisect_left(SECONDS, value)] += 1
            self.total += value

    def lines(self, name: str) -> list[str]:
        made, under = [], 0
        for end, count in zip([*map(str, SECONDS), "+Inf"], self.counts, strict=True):
            under += count
            made.append(f'{name}_bucket{{le="{end}"}} {under}')
        return [*made, f"{name}_sum {self.total:g}", f"{name}_count {under}"]


class Gauge:
    """A number that is looked up when it is asked for."""

    kind = "gauge"

    def __init__(self, look: Callable[[], float]) -> None:
        self._look = look

    def lines(self, name: str) -> list[str]:
        return [f"{name} {self._look():g}"]


class Metrics:
    """All of a server's numbers."""

    def __init__(self, gauges: dict[str, tuple[Callable[[], float], str]]) -> None:
        """`gauges`: name -> (value now, help)."""
        self.requests, self.prompt, self.answer = Counter(), Counter(), Counter()
        self.queue, self.first, self.token, self.whole = Histogram(), Histogram(), Histogram(), Histogram()
        self._all: list[tuple[str, Counter | Histogram | Gauge, str]] = [
            ("requests_total", self.requests, "Requests by endpoint and status."),
            ("prompt_tokens_total", self.prompt, "Tokens of prompts by model."),
            ("answer_tokens_total", self.answer, "Tokens of answers by model."),
            ("queue_seconds", self.queue, "Wait for a slot."),
            ("time_to_first_token_seconds", self.first, "From a request's arrival to its answer's first token."),
            ("time_per_token_seconds", self.token, "Between an answer's tokens."),
            ("request_seconds", self.whole, "From a request's arrival to its end."),
            *((name, Gauge(look), about) for name, (look, about) in gauges.items()),
        ]

    def tell(self, seen: Record) -> None:
        """Count a request that has ended."""
        self.requests.add(1, endpoint=seen.endpoint, status=str(seen.status or "none"))
        if seen.tokens_in:
            self.prompt.add(seen.tokens_in, model=seen.model)
            self.answer.add(seen.tokens_out, model=seen.model)
        self.queue.add(seen.queued_s)
        self.first.add(seen.first_s - seen.began_s)
        self.whole.add(seen.ended_s - seen.began_s)
        for gap_s in seen.gaps_s:
            self.token.add(gap_s)

    def text(self) -> str:
        lines = []
        for short, one, about in self._all:
            name = f"modelwright_{short}"
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {one.kind}", *one.lines(name)]
        return "\n".join(lines) + "\n"


def memory_bytes() -> float:
    """Resident memory of this process; NaN where the system does not tell."""
    return float(resident_bytes()) or math.nan


def _labels(labels: Labels) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
