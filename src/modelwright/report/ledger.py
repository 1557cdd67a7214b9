"""The data ledger: where every row of a curate stage went, the numbers it was judged by, and some rows to look at."""

from __future__ import annotations

from typing import NamedTuple

from modelwright.report import RunView, StageView
from modelwright.report.read import NONE, clipped, count, dig, exact, number, of_kind, percent, rows, size, stats, table, text
from modelwright.report.statistics import Judged, judged


class Sample(NamedTuple):
    """One row as it came to a step."""

    id: str
    reason: str
    """Why it went no further; empty for a row that did."""
    detail: str
    text: str


class Reason(NamedTuple):
    step: str
    name: str
    rows: str
    share: str
    """Of the rows that the step was given."""
    pieces: str = ""
    """What was cut from rows that went on."""


class Passage(NamedTuple):
    """One step: what came in and what went on."""

    step: str
    rows_out: str
    bytes_out: str
    dropped: str
    cut: str
    """Characters."""
    made: str
    kept_frac: float
    """Of the widest bar."""
    bytes_frac: float
    lost: list[tuple[float, float]]
    """Start and width of each reason's piece of the bar, largest first."""
    reasons: list[Reason]
    cuts: list[Reason]
    kept_samples: list[Sample]
    dropped_samples: list[Sample]


class Ledger(NamedTuple):
    stage: str
    rows_in: str
    rows_out: str
    kept: str
    """Share of the rows; empty where steps made new ones."""
    bytes_in: str
    bytes_out: str
    parts: list[tuple[str, str]]
    passed_over: list[tuple[str, str]]
    """What the settings of sources leave out, which is no row yet."""
    steps: list[Passage]
    reasons: list[Reason]
    cuts: list[Reason]
    judged: list[Judged]


SAMPLE_CHARS = 600


def ledgers(run: RunView) -> list[Ledger]:
    """One ledger for each curate stage that counted its rows."""
    return [ledger(s) for s in of_kind(run, "curate") if number(stats(s), "rows_in") is not None or rows(stats(s), "ledger")]


def ledger(stage: StageView) -> Ledger:
    tree = stats(stage)
    steps = rows(tree, "ledger")
    came, left = number(tree, "rows_in"), number(tree, "rows_out")
    widest = max([v for v in (came, left, *(number(s, k) for s in steps for k in ("rows_in", "rows_out"))) if v], default=1.0)
    heaviest = max([v for v in (number(tree, "bytes_in"), *(number(s, "bytes_out") for s in steps)) if v], default=1.0)
    passages = [_passage(step, widest, heaviest) for step in steps]
    parts = [(str(name), exact(number(tree, "parts", name))) for name in table(tree, "parts")]
    return Ledger(
        stage.name,
        exact(came),
        exact(left),
        percent(left / came) if came and left is not None and not any(number(s, "rows_made") for s in steps) else "",
        size(number(tree, "bytes_in")),
        size(number(tree, "bytes_out")),
        parts if len(parts) > 1 else [],
        [(str(name), exact(number(step, "left_out", name))) for step in steps for name in table(step, "left_out")],
        passages,
        [r for p in passages for r in p.reasons],
        [r for p in passages for r in p.cuts],
        judged(stage),
    )


def _passage(step: dict[str, object], widest: float, heaviest: float) -> Passage:
    came, left = number(step, "rows_in") or 0.0, number(step, "rows_out") or 0.0
    counted = {str(name): number(step, "reasons", name) or 0.0 for name in table(step, "reasons")}
    ordered = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    lost, edge = [], left / widest
    for _, n in ordered:
        lost.append((min(1.0, edge), max(0.0, min(1.0 - edge, n / widest))))
        edge += n / widest
    gone, made = sum(counted.values()), number(step, "rows_made") or 0.0
    cuts = _cuts(step, came)
    chars = sum(number(step, "cuts", reason.name, "chars") or 0.0 for reason in cuts)
    return Passage(
        _step_name(step),
        exact(left),
        size(number(step, "bytes_out")),
        exact(gone) if gone else NONE,
        count(chars) if chars else NONE,
        exact(made) if made else NONE,
        left / widest,
        (number(step, "bytes_out") or 0.0) / heaviest,
        lost,
        [Reason(_step_name(step), name, exact(n), percent(n / came) if came else "") for name, n in ordered],
        cuts,
        _samples(step, "kept"),
        _samples(step, "samples"),
    )


def _cuts(step: dict[str, object], came: float) -> list[Reason]:
    found = []
    for name, tree in table(step, "cuts").items():
        n, pieces, chars = (number(tree, key) or 0.0 for key in ("rows", "pieces", "chars"))
        said = f"{exact(pieces)} pieces, {count(chars)} characters"
        found.append((n, Reason(_step_name(step), str(name), exact(n), percent(n / came) if came else "", said)))
    return [reason for _, reason in sorted(found, key=lambda pair: -pair[0])]


def _samples(step: dict[str, object], key: str) -> list[Sample]:
    return [
        Sample(text(s, "id"), text(s, "reason"), text(s, "detail"), clipped(text(s, "text"), SAMPLE_CHARS))
        for s in rows(step, key)
    ]


def _step_name(step: dict[str, object]) -> str:
    """A step is named by its kind; a ledger that holds the whole spec still gives a word."""
    return text(step, "step") or str(dig(step, "step", "kind") or "step")
