"""What a look at data found: shares with how many of how many, amounts with their interval, quantiles, and all of it as JSON.

Intervals of shares: Wilson 1927, "Probable inference, the law of succession, and statistical inference",
https://doi.org/10.1080/01621459.1927.10502953; of amounts from a sample of blocks: the ratio estimator, Cochran 1977, "Sampling
Techniques", ISBN 0-471-16240-X, chapter 6.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.methods.tasks import _statistics as statistics

SAMPLES, SAMPLE_CHARS = 3, 100
"""Of the evidence beside a share: enough to see what was meant, on one line each."""
SEARCHED = 50
"""Of these the samples are different ones."""


class Share(NamedTuple):
    """So many of so many."""

    name: str
    count: int  # type: ignore[assignment]  # nobody counts how often a value is in the tuple
    of: int
    """Rows that were looked at for it."""
    samples: tuple[str, ...] = ()
    """The first ones, cut short, without personal data."""
    why: str = ""
    """How it was told."""

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, for all rows that these were drawn from."""
        return tuple(statistics.wilson(self.count, self.of))  # type: ignore[return-value]  # two floats

    def __str__(self) -> str:
        return f"{self.count:,} of {self.of:,} ({self.share:.0%})"


class Amount(NamedTuple):
    """A number that was counted, or is estimated from a sample."""

    value: float
    low: float
    high: float | None
    """None: nothing bounds it."""
    exact: bool
    why: str = ""

    def times(self, factor: float, why: str, exact: bool = False) -> Amount:
        high = None if self.high is None else self.high * factor
        return Amount(self.value * factor, self.low * factor, high, exact and self.exact, why)

    def __str__(self) -> str:
        if self.exact:
            return f"{self.value:,.0f}"
        if self.low == self.value == self.high:
            return f"about {self.value:,.0f}"
        beyond = f"at least {self.low:,.0f}" if self.high is None else f"{self.low:,.0f} to {self.high:,.0f}"
        return f"about {self.value:,.0f} ({beyond})"


def counted(value: float) -> Amount:
    return Amount(value, value, value, True)


def total(amounts: Sequence[Amount]) -> Amount:
    """Their sum; errors of samples are independent of each other."""
    value = sum(amount.value for amount in amounts)
    if all(amount.exact for amount in amounts):
        return counted(value)
    below = math.sqrt(sum((amount.value - amount.low) ** 2 for amount in amounts))
    above = None
    if all(amount.high is not None for amount in amounts):
        above = value + math.sqrt(sum(((amount.high or 0.0) - amount.value) ** 2 for amount in amounts))
    why = "; ".join(dict.fromkeys(amount.why for amount in amounts if amount.why))
    return Amount(value, value - below, above, False, why)


class Quantiles(NamedTuple):
    """How long something is."""

    name: str
    unit: str
    of: int
    mean: float
    least: float
    p10: float
    p50: float
    p90: float
    p99: float
    most: float


def quantiles(name: str, unit: str, values: Sequence[float]) -> Quantiles | None:
    """None of no values."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])

    mean = sum(ordered) / len(ordered)
    return Quantiles(name, unit, len(ordered), mean, float(ordered[0]), at(0.1), at(0.5), at(0.9), at(0.99), float(ordered[-1]))


def shares(found: Iterable[tuple[str, str]], of: int, why: dict[str, str] | None = None) -> tuple[Share, ...]:
    """Of (what was found, the text that it was found in), the commonest first."""
    counts: Counter[str] = Counter()
    samples: dict[str, list[str]] = {}
    for name, text in found:
        counts[name] += 1
        kept = samples.setdefault(name, [])
        if len(kept) < SAMPLES and counts[name] <= SEARCHED and text and (short := clip(text)) not in kept:
            kept.append(short)
    return tuple(Share(name, count, of, tuple(samples[name]), (why or {}).get(name, "")) for name, count in counts.most_common())


def clip(text: str) -> str:
    """A text as evidence may show it: on one line, cut short, personal data replaced."""
    from modelwright.methods.steps import STEPS, Step

    redact = STEPS.load("pii")()
    assert isinstance(redact, Step)
    line = " ".join(redact.shown(text[: 4 * SAMPLE_CHARS]).split())
    return line if len(line) <= SAMPLE_CHARS else line[: SAMPLE_CHARS - 1] + "…"


def open_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a folder with a tokenizer.json, or of that file; UserError where there is none."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise missing_extra("tokenizers", "data", "counting tokens") from None
    try:
        return Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))
    except Exception as error:  # what `tokenizers` raises has no base but this
        raise UserError(f"{path} is no tokenizer", str(error), "name a folder with a tokenizer.json, or that file") from None


def tree(value: Any) -> Any:
    """Named tuples as JSON objects; of a share also the fraction."""
    if isinstance(value, Share):
        return {**value._asdict(), "samples": list(value.samples), "share": value.share, "interval": list(value.interval)}
    if isinstance(value, tuple) and type(value) is not tuple:
        fields = type(value).__annotations__
        return {name: tree(part) for name, part in zip(fields, value, strict=True)}
    if isinstance(value, (tuple, list)):
        return [tree(part) for part in value]
    return value
