"""Estimates, corrected by what earlier runs on this machine measured, with the interval that their errors give; see `_errors`.

Every finished artifact's manifest holds its estimate beside what was measured, and `plan --verify` adds pairs of its own. Only
runs on this host correct. What a manifest keeps as its estimate was itself corrected, so its own correction is divided out. A
peak that was mostly what earlier stages had left in the process tells nothing of the stage and is left out, and so is a run that
went on after a kill: its seconds are those of its last sitting.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Quantity
from modelwright.core.predict import Adjust
from modelwright.core.store import Store
from modelwright.plan._errors import Feature, Fit, Prior, Row, fitted, interval, whole

KEPT = 40
"""Newest runs of a kind that correct: enough for the interval (`_errors.ENOUGH`), few enough to follow a change."""
VERIFIED = "verified.jsonl"
"""File of the store with what `plan --verify` predicted and measured, a line a stage."""
LOOSE, ARITHMETIC = ("imports",), 0.25
"""Parts of memory that installations differ in, and how far the others are off beside them: 5 % at worst (`plan_closed_form`)
of 20 %."""
MARGIN_FRAC = 0.1
"""Of tensors on a card, to both sides: twice the worst of `plan_closed_form`."""
LEAST_S = 0.02
"""Parts that took less are noise of the clock."""

# Absolute errors, log(measured / predicted), of 33 runs of benchmarks/plan_time.yaml with fewer steps and of 19 peaks among them,
# each predicted from the others of its kind; as many of those in order as fit here. Processor seconds of one thread on a Xeon at
# 2.5 GHz, shared with other work, 2026-11-22. Either sign was met. Uncorrected, seconds were 0.35 to 2.1 times the prediction and
# peaks 0.6 to 1.8 times; the rates of another processor are guessed, which may add half as much again.
_SECONDS = (0.01, 0.01, 0.02, 0.03, 0.03, 0.08, 0.08, 0.1, 0.11, 0.13, 0.14, 0.17, 0.18, 0.2, 0.22, 0.25, 0.28, 0.31, 0.49, 0.8)
_MEMORY = (0.0, 0.02, 0.02, 0.02, 0.03, 0.03, 0.08, 0.08, 0.08, 0.12, 0.18, 0.18, 0.2, 0.23, 0.25, 0.31, 0.34, 0.39, 0.56, 0.69)
SECONDS = Prior(tuple(sign * error for error in _SECONDS for sign in (-1, 1)), raw=(0.35, 3.0))
MEMORY = Prior(tuple(sign * error for error in _MEMORY for sign in (-1, 1)), raw=(0.6, 1.8))


class Observed(NamedTuple):
    """One run: what was predicted before any correction, and what was measured."""

    kind: str
    stage: str
    host: str
    time: str
    where: str
    """The artifact's folder in the store, or that it was `plan --verify`."""
    spans: Mapping[Feature, float]
    """Predicted seconds of each part."""
    seconds: float | None
    """Measured; None where a run went on after a kill."""
    measured: Mapping[str, float]
    """Measured seconds of parts; see `covers`."""
    parts: Mapping[Feature, float]
    """Predicted bytes of each part."""
    peak_bytes: float | None
    """None where it was mostly another stage's."""
    card_bytes: float = 0.0
    """Predicted of the tensors on a card; 0 where there is none."""
    card_peak_bytes: float | None = None
    """The most that they took; None where nothing was measured."""


def observed(store: Store) -> list[Observed]:
    """Every run that the store knows of, on any host, oldest first."""
    found = [_of_manifest(artifact.manifest, artifact.path.name) for artifact in store.all() if artifact.manifest.get("estimate")]
    return sorted([*found, *_verified(store.root / VERIFIED)], key=lambda run: run.time)


def _of_manifest(manifest: Mapping[str, Any], where: str) -> Observed:
    expected, actual = manifest["estimate"], manifest["actual"]
    by_s, by_bytes = expected.get("scale", (1.0, 1.0))
    told, left_bytes = actual.get("held_bytes", 0) <= actual["peak_bytes"] / 2, expected.get("left_bytes", 0.0)
    checks_s = actual.get("checks_s")
    names = [span["name"] for span in expected.get("spans", ())]
    measured = with_checks(actual.get("spans", {}), names, checks_s)
    return Observed(
        manifest["kind"],
        manifest["stage"],
        manifest["made_by"]["host"],
        manifest["made_by"]["time"],
        where,
        _features(expected["seconds"]["value"] / by_s, expected.get("spans", ()), "seconds"),
        None if actual.get("resumed") else actual["seconds"],
        {} if actual.get("resumed") else measured,
        _features((expected["memory"]["value"] - left_bytes) / by_bytes, expected.get("parts", ()), "bytes"),
        actual["peak_bytes"] - left_bytes if told else None,
        (expected.get("device_memory") or {}).get("value", 0.0),
        manifest["stats"].get("device_peak_bytes"),
    )


def with_checks(measured: Mapping[str, float], predicted: Iterable[str], checks_s: float | None) -> dict[str, float]:
    """What a stage measured and, where they are a part of what was predicted, its checks; elsewhere they read ahead what other
    parts hold."""
    return {**measured, **({"imports+checks": checks_s} if checks_s is not None and "checks" in predicted else {})}


def _features(total: float, parts: Sequence[Mapping[str, Any]], unit: str) -> dict[Feature, float]:
    """The parts of a prediction; the whole as one where it has none."""
    found: dict[Feature, float] = {}
    for part in parts:
        for like in dict.fromkeys(("", part.get("like", ""))):
            feature = (part["name"], like)
            found[feature] = found.get(feature, 0.0) + part[unit]
    return found or {("", ""): total}


def _verified(path: Path) -> Iterator[Observed]:
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                yield _of_line(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                what = f"line {number} of {path} is no pair of `plan --verify`: {type(error).__name__}: {error}"
                raise UserError(what, "it was cut off, or another version wrote it", "delete the line, or the file") from None


def _of_line(tree: Mapping[str, Any]) -> Observed:
    spans, parts = (_features(0.0, tree[name], unit) for name, unit in (("spans", "seconds"), ("parts", "bytes")))
    head = (tree["kind"], tree["stage"], tree["host"], tree["time"], "plan --verify")
    return Observed(*head, spans, tree["seconds"], tree["measured"], parts, tree["peak_bytes"])


# --- corrections ----------------------------------------------------------------------------------------


class Learned(NamedTuple):
    """What runs of a kind on a host give for one of seconds and bytes."""

    fit: Fit
    runs: tuple[Observed, ...]
    """Those that have an error in `fit.errors`, in that order."""
    prior: Prior
    doubts: tuple[float, ...]
    """Of each run; see `doubt`."""

    def factors(self, doubted: float = 1.0, without: int | None = None) -> tuple[float, float]:
        """Of the interval around a corrected prediction that is doubted so much; `without` one of the runs."""
        errors = [error / own for error, own in zip(self.fit.errors, self.doubts, strict=True)]
        low, high = interval(errors if without is None else [*errors[:without], *errors[without + 1 :]], self.prior)
        return low**doubted, high**doubted


def learned_seconds(runs: Sequence[Observed], plain: bool = False) -> Learned:
    """`plain`: of runs whose estimate was one number; such and others tell nothing of one another."""
    rows = [(run, _rows(run)) for run in runs if _plain(run.spans) == plain]
    newest = _newest(rows)
    fit = fitted([found for _, found in newest])
    return Learned(fit, tuple(run for run, _ in newest), SECONDS, (1.0,) * len(newest))


def learned_bytes(runs: Sequence[Observed], plain: bool = False) -> Learned:
    own = [run for run in runs if _plain(run.parts) == plain and run.peak_bytes and whole(run.parts) > 0]
    newest = _newest([(run, [Row(run.parts, run.peak_bytes or 0.0)]) for run in own])
    fit = fitted([found for _, found in newest], LOOSE)
    return Learned(fit, tuple(run for run, _ in newest), MEMORY, tuple(doubt(run.parts) for run, _ in newest))


def doubt(parts: Mapping[Feature, float]) -> float:
    """How far a prediction of memory may be off beside one of imports alone: what libraries take differs between installations,
    the rest is arithmetic."""
    loose = sum(size for (name, _), size in parts.items() if name in LOOSE)
    return 1.0 if _plain(parts) else ARITHMETIC + (1 - ARITHMETIC) * min(1.0, loose / whole(parts))


def _newest(rows: Sequence[tuple[Observed, list[Row]]]) -> list[tuple[Observed, list[Row]]]:
    return [(run, found) for run, found in rows if found][-KEPT:]


def _plain(parts: Mapping[Feature, float]) -> bool:
    return set(parts) == {("", "")}


def _rows(run: Observed) -> list[Row]:
    """The whole first, then parts that were measured by themselves, each as much as its share; of a run that tells nothing,
    none."""
    if not run.seconds or whole(run.spans) <= 0:
        return []
    found = [Row(run.spans, run.seconds)]
    for name, seconds in run.measured.items():
        own = {feature: size for feature, size in run.spans.items() if covers(name, feature[0])}
        if seconds >= LEAST_S and whole(own) > 0:
            found.append(Row(own, seconds, min(1.0, seconds / run.seconds)))
    return found


def covers(measured: str, predicted: str) -> bool:
    """Whether what was measured under one name is, or holds, what was predicted under the other: `steps` holds `steps products`,
    `imports+checks` both."""
    return any(predicted == name or predicted.startswith(f"{name} ") for name in measured.split("+"))


def calibrated(store: Store) -> Adjust:
    """Corrects each kind's seconds and bytes by its newest runs on this host, and tells between what they will lie."""
    by_kind: dict[str, list[Observed]] = {}
    for run in observed(store):
        if run.host == socket.gethostname():
            by_kind.setdefault(run.kind, []).append(run)
    known: dict[tuple[str, str, bool], Learned] = {}

    def learned(what: str, find: Callable[[Sequence[Observed], bool], Learned], kind: str, plain: bool) -> Learned:
        key = (what, kind, plain)
        if key not in known:
            known[key] = find(by_kind.get(kind, ()), plain)
        return known[key]

    def adjust(kind: str, estimate: Estimate) -> Estimate:
        spans = _features(estimate.seconds.value, [span._asdict() for span in estimate.spans], "seconds")
        parts = _features(estimate.memory.value, [part._asdict() for part in estimate.parts], "bytes")
        of_seconds = learned("seconds", learned_seconds, kind, _plain(spans))
        of_bytes = learned("bytes", learned_bytes, kind, _plain(parts))
        by_s, by_bytes = of_seconds.fit.of(spans), of_bytes.fit.of(parts)
        return estimate._replace(
            seconds=_corrected(estimate.seconds, by_s, of_seconds, 1.0),
            memory=_corrected(estimate.memory, by_bytes, of_bytes, doubt(parts)),
            scale=(by_s, by_bytes),
        )

    return adjust


def _corrected(quantity: Quantity, by: float, learned: Learned, doubted: float) -> Quantity:
    low, high = learned.factors(doubted)
    value = quantity.value * by
    count = len(learned.runs)
    why = quantity.why
    if count:
        runs = f"{count} run{'s' if count > 1 else ''}"
        how = "the median of measured over estimated in" if not learned.fit.parts else "fitted to what was measured in"
        why += f"; times {by:.2f}, {how} {runs} here"
    return quantity._replace(value=value, why=why, low=value * low, high=value * high)


# --- how right they are -----------------------------------------------------------------------------------


class Point(NamedTuple):
    """A run, predicted from the others of its kind and host."""

    run: Observed
    predicted: float
    measured: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """log(measured / predicted)."""
        return math.log(self.measured / self.predicted)

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


class Account(NamedTuple):
    """One of seconds and bytes of a kind on a host."""

    kind: str
    host: str
    unit: str
    """`s`, `bytes`, or `card`: bytes of a card, which runs do not correct."""
    points: tuple[Point, ...]
    fit: Fit
    factors: tuple[float, float]
    """Of the interval for the next run."""


def accounts(store: Store) -> list[Account]:
    """Predicted against measured, of every kind and host that the store knows."""
    groups: dict[tuple[str, str], list[Observed]] = {}
    for run in observed(store):
        groups.setdefault((run.kind, run.host), []).append(run)
    found = []
    for (kind, host), runs in sorted(groups.items()):
        for unit, find in (("s", learned_seconds), ("bytes", learned_bytes)):
            for plain in (False, True):
                learned = find(runs, plain)
                if learned.runs:
                    factors = learned.factors(median(learned.doubts))
                    found.append(Account(kind, host, unit, tuple(_points(learned, unit)), learned.fit, factors))
        found += _of_cards(kind, host, runs)
    return found


def _of_cards(kind: str, host: str, runs: Sequence[Observed]) -> Iterator[Account]:
    """What tensors took of a card beside the account of them, which is arithmetic: as wide as where nothing is known."""
    low, high = 1 - MARGIN_FRAC, 1 + MARGIN_FRAC
    points = tuple(
        Point(run, run.card_bytes, float(run.card_peak_bytes), low * run.card_bytes, high * run.card_bytes)
        for run in runs[-KEPT:]
        if run.card_bytes and run.card_peak_bytes
    )
    if points:
        yield Account(kind, host, "card", points, Fit(1.0, {}, tuple(point.error for point in points)), (low, high))


def _points(learned: Learned, unit: str) -> Iterator[Point]:
    errors = learned.fit.errors
    for place, run in enumerate(learned.runs):
        measured = run.peak_bytes if unit == "bytes" else run.seconds
        assert measured, "else it had no error"
        low, high = learned.factors(learned.doubts[place], place)
        predicted = measured / math.exp(errors[place])
        yield Point(run, predicted, measured, predicted * low, predicted * high)
