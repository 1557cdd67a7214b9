"""Ladders of one's own: finished trainings of a store, or rows of a file, and predictions kept until a run can judge them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.events import read_events
from modelwright.core.store import Artifact, Store
from modelwright.core.units import count_of
from modelwright.methods.sources import _open, _rows
from modelwright.plan._scaling_fit import Prediction, Run

SAME = 0.01
"""A run is the one that was predicted where size and tokens are so near."""


class Ladder(NamedTuple):
    """Runs whose losses can be compared: one vocabulary, the same rows, the loss measured alike."""

    key: str
    runs: tuple[Run, ...]
    measured: str
    """How the losses were measured."""


class Judged(NamedTuple):
    """A prediction and what came."""

    said: Prediction
    run: Run

    @property
    def inside(self) -> bool:
        return self.said.low <= self.run.loss <= self.said.high


def ladders(store: Store) -> list[Ladder]:
    """Those of a store, the one with the most runs first. Counted are models trained from scratch on the next token."""
    found: dict[tuple[str, str], list[Run]] = {}
    for artifact in store.all():
        spec = artifact.manifest["spec"]
        if artifact.manifest["kind"] == "train" and spec.get("start") is None and spec["objective"]["kind"] == "next_token":
            run, how = _run(artifact)
            if run is not None:
                found.setdefault((_of(artifact), how), []).append(run)
    made = [Ladder(key, tuple(runs), how) for (key, how), runs in found.items()]
    return sorted(made, key=lambda ladder: (-len(ladder.runs), ladder.key))


def _of(artifact: Artifact) -> str:
    """What must be the same of two runs."""
    parents: Mapping[str, str] = artifact.manifest["identity"]["parents"]
    return " ".join(f"{field}={key[:12]}" for field, key in sorted(parents.items()))


def _run(artifact: Artifact) -> tuple[Run | None, str]:
    stats = artifact.manifest["stats"]
    held: dict[str, float] = {}
    for event in read_events(artifact.path / "metrics.jsonl", "validation"):
        held[event["set"]] = event["loss"]  # the last one of each set stays
    loss = sum(held.values()) / len(held) if held else stats["loss_last"]
    how = f"on {', '.join(sorted(held))}" if held else "the last training loss, which is noisy: give `validation`"
    if not isinstance(loss, (int, float)) or not math.isfinite(loss):
        return None, how
    return Run(artifact.path.name, float(stats["params"]), float(stats["tokens"]), float(loss)), how


def read_runs(path: Path) -> tuple[Run, ...]:
    """Rows with `params`, `tokens` and `loss`, and `name` where they have one; UserError with the line of a fault."""
    if not path.is_file():
        raise UserError(f"there is no file {path}", fix="give a .csv, .jsonl or .json file with params, tokens and loss")
    return tuple(_run_of(path, line, value) for line, value in _rows.objects(path))


def _run_of(path: Path, line: int, value: Mapping[str, Any] | _open.Bad) -> Run:
    if isinstance(value, _open.Bad):
        raise UserError(f"{path} line {line}: {value.reason}", value.detail, "mend the line")
    row = {name.strip().lower(): cell for name, cell in value.items()}
    numbers = []
    for name in ("params", "tokens", "loss"):
        if name not in row:
            raise UserError(f"{path} line {line}: no {name}", f"it has {', '.join(row)}", "params, tokens and loss are needed")
        if (number := _number(row[name])) is None:
            raise UserError(f"{path} line {line}: {name} is {row[name]!r:.40}", "a number is needed", "as 30000000, 3e7 or 30M")
        numbers.append(number)
    return Run(str(row.get("name") or f"line {line}"), *numbers)


def _number(cell: Any) -> float | None:
    """Of JSON, or as programs and people write it; None where it is none, or too large."""
    for read in (float, count_of):
        try:
            number = read(cell)
        except (AttributeError, TypeError, ValueError, OverflowError):
            continue
        return number if math.isfinite(number) and not isinstance(cell, bool) else None
    return None


def judged(kept: Iterable[Mapping[str, Any]], ladder: Ladder) -> list[Judged]:
    """Predictions made for this ladder before the run that they speak of was there."""
    found = []
    for one in kept:
        if one["ladder"] != ladder.key:
            continue
        said = Prediction(*(one[name] for name in Prediction._fields))
        for run in ladder.runs:
            near = all(abs(a / b - 1) < SAME for a, b in ((run.params, said.params), (run.tokens, said.tokens)))
            if near and run.name not in one["runs"]:
                found.append(Judged(said, run))
    return found
