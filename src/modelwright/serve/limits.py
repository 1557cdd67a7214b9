"""How much one key may ask for: requests and tokens a minute as token buckets, answers at once, models.

Source: token bucket, RFC 2697 section 3 (a bucket of a minute's worth, refilled evenly: a minute's worth may be spent at once);
headers as OpenAI sends them, https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers. Differs: how long an
answer will be is not known when it begins, so its tokens are taken as they come and the bucket may go below zero; the key's next
request is refused until it is above again. Over time the limit holds to the token, and nobody pays for tokens that were not made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from modelwright.serve.errors import ApiError

Clock = Callable[[], float]


class Limits(NamedTuple):
    """What one key may do; None: as much as the server can."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    concurrent: int | None = None
    """Answers under way at a time; more of its requests wait, and others go before them."""
    models: tuple[str, ...] | None = None
    """Names of models and adapters."""


class Bucket:
    """So many a minute."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at_s = float(per_minute), clock()

    @property
    def level(self) -> float:
        """What may be taken now; below zero after more was taken than there was."""
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._at_s) * self.per_minute / 60)
        self._at_s = now_s
        return self._level

    def take(self, count: float) -> None:
        self._level = self.level - count

    def wait_s(self, count: float) -> float:
        """Seconds until `count` may be taken."""
        return max(0.0, (count - self.level) * 60 / self.per_minute)


class Client:
    """One key: its name, its limits and what it has used of them. Used from one event loop."""

    def __init__(self, name: str = "", limits: Limits | None = None, clock: Clock = time.monotonic) -> None:
        self.name, self._clock = name, clock
        self.answering = 0
        self.limit(limits or Limits())

    def limit(self, limits: Limits) -> None:
        """Set its limits; the buckets begin full."""
        self.limits = limits
        self._buckets = {
            what: Bucket(per_minute, self._clock)
            for what, per_minute in (("requests", limits.requests_per_minute), ("tokens", limits.tokens_per_minute))
            if per_minute
        }

    @property
    def full(self) -> bool:
        """As many answers as it may have are under way."""
        return self.limits.concurrent is not None and self.answering >= self.limits.concurrent

    def ask(self) -> None:
        """Take one request; 429 where none is left, or its tokens are spent."""
        for what, bucket in self._buckets.items():
            if (wait_s := bucket.wait_s(1)) > 0:
                raise ApiError(429, f"{bucket.per_minute} {what} a minute are allowed with this key: try again in {wait_s:.1f} s",
                               code="rate_limit_exceeded", retry_s=math.ceil(wait_s))  # fmt: skip
        if "requests" in self._buckets:
            self._buckets["requests"].take(1)

    def spend(self, tokens: int) -> None:
        if "tokens" in self._buckets:
            self._buckets["tokens"].take(tokens)

    def check_model(self, name: str) -> None:
        if not self.may_use(name):
            raise ApiError(403, f"this key may not use the model {name!r}", param="model", code="model_not_allowed")

    def may_use(self, name: str) -> bool:
        return self.limits.models is None or name in self.limits.models

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, for the client."""
        told = []
        for what, bucket in self._buckets.items():
            left = max(0, math.floor(bucket.level))
            reset = f"{bucket.wait_s(bucket.per_minute):.3f}s"
            told += [("limit", bucket.per_minute, what), ("remaining", left, what), ("reset", reset, what)]
        return [(f"x-ratelimit-{kind}-{what}".encode(), str(value).encode()) for kind, value, what in told]
