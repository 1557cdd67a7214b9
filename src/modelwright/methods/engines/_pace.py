"""How fast we ask: requests and tokens a minute, and how long to wait before the same thing is asked again.

Sources: the token bucket of Turner 1986 (IEEE Communications 24(10)); exponential back-off with full jitter,
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/; Retry-After, RFC 9110 section 10.2.3.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

FIRST_S, LONGEST_S = 0.5, 60.0
"""Before the first repetition, and the longest that is waited for one."""


class Pace:
    """Holds requests back so that no minute sees more than the limits; 0: no limit."""

    def __init__(self, requests: float, tokens: float, now: Callable[[], float] = time.monotonic) -> None:
        self._buckets = [_Bucket(requests, now()), _Bucket(tokens, now())]
        self._lock, self._now = threading.Lock(), now

    def wait_s(self, tokens: int) -> float:
        """Take one request with so many tokens; how long it has to wait for its turn."""
        with self._lock:
            return max(bucket.take(amount, self._now()) for bucket, amount in zip(self._buckets, (1, tokens), strict=True))

    def settle(self, expected: int, used: int) -> None:
        """An answer had `used` tokens where `expected` were taken."""
        with self._lock:
            self._buckets[1].take(used - expected, self._now())


class _Bucket:
    def __init__(self, per_minute: float, now_s: float) -> None:
        self._size, self._left, self._at_s = per_minute, per_minute, now_s

    def take(self, amount: float, now_s: float) -> float:
        if not self._size:
            return 0.0
        self._left = min(self._size, self._left + (now_s - self._at_s) * self._size / 60)
        self._at_s = now_s
        self._left -= min(amount, self._size)  # one that is larger than the limit takes a whole minute, and then goes
        return max(0.0, -self._left * 60 / self._size)


def delay_s(tried: int, headers: Mapping[str, str]) -> float:
    """What the server asks for, else up to twice as long each time."""
    asked = headers.get("retry-after", "")
    if asked:
        try:
            return max(0.0, float(asked))
        except ValueError:
            try:
                return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
            except ValueError:
                pass  # neither seconds nor a date
    return random.uniform(0, min(LONGEST_S, FIRST_S * 2**tried))
