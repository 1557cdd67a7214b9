"""What the user's own runs say of methods, beside what was published.

Gains are the paired differences of evaluations with `against`. Of LoRA and all weights the published difference is a prior, and
own runs update it (normal prior and likelihood: Gelman et al., "Bayesian Data Analysis", third edition, section 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelwright.core.store import Store
from modelwright.plan._advise_facts import data

FEW_RUNS = 2
"""Evaluations of each method on one measure, below which they are too few to change an answer: one may be luck of the seed."""
BETWEEN_TASKS = 0.05
"""Standard deviation of a difference between methods from one task to another, in shares: about what the methods of PEFT's
comparison differ by among themselves."""


class Gain(NamedTuple):
    """What a training gained on one measure, as its evaluation told."""

    method: str
    way: str
    """`lora`, `full`, …"""
    measure: str
    """Task and metric."""
    difference: float
    low: float
    high: float
    rows: int
    stage: str


class Update(NamedTuple):
    """The difference between training all weights and LoRA: published, and with the user's runs."""

    prior: float
    value: float
    low: float
    high: float
    runs: int
    """Of the user's, on measures that both were measured on; 0: the prior stands."""
    said: str

    @property
    def full_gain(self) -> float | None:
        """For the tree: None where runs are too few, 0 where the interval holds zero."""
        if not self.runs:
            return None
        return self.value if self.low > 0 or self.high < 0 else 0.0


def gains(store: Store) -> list[Gain]:
    """Of every evaluation of a trained model against another one."""
    trained: dict[str, dict[str, Any]] = {}
    judged = []
    for artifact in store.all():
        manifest = artifact.manifest
        if manifest["kind"] == "train":
            trained[manifest["key"]] = manifest
        elif manifest["kind"] == "evaluate" and manifest["stats"].get("comparisons"):
            judged.append(manifest)
    found = []
    for manifest in judged:
        model = next((parent for ref, parent in manifest["parents"].items() if ref == manifest["spec"].get("model")), None)
        made = trained.get((model or {}).get("key", ""))
        if made is None:
            continue
        adapter = (made["spec"].get("adapter") or {}).get("kind", "full")
        for row in manifest["stats"]["comparisons"]:
            if not row["group"]:
                measure = f"{row['task']} {row['name']}"
                objective = made["spec"]["objective"]["kind"]
                numbers = (row["difference"], row["low"], row["high"], row["n"])
                found.append(Gain(objective, adapter, measure, *numbers, manifest["stage"]))
    return found


def update(found: Sequence[Gain]) -> Update:
    """All weights against LoRA, on the measures that both have."""
    published = data()
    full, lora = (published.published[name].value for name in ("full", "lora"))
    rows = published.published_rows
    prior = full - lora
    variance = sum(value * (1 - value) / rows for value in (full, lora)) + 2 * BETWEEN_TASKS**2
    told = f"published: {prior:+.3f} ({published.published_what}; {published.published_source})"
    sides = {
        way: [gain for gain in found if gain.way == way and not gain.measure.startswith("perplexity")] for way in ("full", "lora")
    }
    shared = [m for m in {g.measure for g in sides["full"]} if sum(g.measure == m for g in sides["full"]) >= FEW_RUNS]
    shared = sorted(m for m in shared if sum(g.measure == m for g in sides["lora"]) >= FEW_RUNS)
    if not shared:
        count = sum(map(len, sides.values()))
        said = (
            f"{count} evaluations of yours are too few to change that ({FEW_RUNS} of each on one measure)"
            if count
            else "none of yours yet"
        )
        spread = 1.96 * math.sqrt(variance)
        return Update(prior, prior, prior - spread, prior + spread, 0, f"{told}; {said}")
    differences = []
    for measure in shared:
        means = [_mean([gain for gain in sides[way] if gain.measure == measure]) for way in ("full", "lora")]
        differences.append((means[0][0] - means[1][0], means[0][1] + means[1][1]))
    own, own_variance = _weighted(differences)
    value, new = _weighted([(prior, variance), (own, own_variance)])
    runs = sum(gain.measure in shared for side in sides.values() for gain in side)
    spread = 1.96 * math.sqrt(new)
    return Update(
        prior, value, value - spread, value + spread, runs, f"{told}; your {runs} evaluations: {own:+.3f}; together {value:+.3f}"
    )


def _mean(found: Sequence[Gain]) -> tuple[float, float]:
    """Mean of the differences and its variance: of the items, and of one run to another."""
    values = [gain.difference for gain in found]
    mean = sum(values) / len(values)
    items = sum(((gain.high - gain.low) / 3.92) ** 2 for gain in found) / len(found) ** 2
    runs = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)
    return mean, max(items, runs, 1e-12)


def _weighted(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean weighted by 1 / variance, and its variance."""
    total = sum(1 / variance for _, variance in found)
    return sum(value / variance for value, variance in found) / total, 1 / total
