"""The data ledger: where every row of a curate stage went."""

from __future__ import annotations

from typing import NamedTuple

from modelwright.report import RunView, StageView
from modelwright.report.read import clipped, dig, exact, number, of_kind, percent, rows, size, stats, table, text


class Dropped(NamedTuple):
    """One example of a row that went no further."""

    step: str
    id: str
    reason: str
    detail: str
    text: str


class Reason(NamedTuple):
    step: str
    name: str
    rows: str
    share: str
    """Of the rows that the step was given."""


class Passage(NamedTuple):
    """One step: what came in and what went on."""

    step: str
    rows_out: str
    dropped: str
    dropped_share: str
    kept_frac: float
    """Of the widest bar."""
    lost: list[tuple[float, float]]
    """Start and width of each reason's piece of the bar, largest first."""
    reasons: list[Reason]
    samples: list[Dropped]


class Ledger(NamedTuple):
    stage: str
    rows_in: str
    rows_out: str
    kept: str
    in_frac: float
    bytes_in: str
    bytes_out: str
    parts: list[tuple[str, str]]
    steps: list[Passage]
    reasons: list[Reason]
    samples: list[Dropped]


SAMPLE_CHARS = 600


def ledgers(run: RunView) -> list[Ledger]:
    """One ledger for each curate stage that counted its rows."""
    return [_ledger(s) for s in of_kind(run, "curate") if number(stats(s), "rows_in") is not None or rows(stats(s), "ledger")]


def _ledger(stage: StageView) -> Ledger:
    tree = stats(stage)
    steps = rows(tree, "ledger")
    came, left = number(tree, "rows_in"), number(tree, "rows_out")
    widest = max([v for v in (came, left, *(number(s, k) for s in steps for k in ("rows_in", "rows_out"))) if v], default=1.0)
    passages = [_passage(step, widest) for step in steps]
    parts = [(str(name), exact(number(tree, "parts", name))) for name in table(tree, "parts")]
    return Ledger(
        stage.name,
        exact(came),
        exact(left),
        percent(left / came) if came and left is not None else "",
        (came or 0.0) / widest,
        size(number(tree, "bytes_in")),
        size(number(tree, "bytes_out")),
        parts if len(parts) > 1 else [],
        passages,
        [r for p in passages for r in p.reasons],
        [d for p in passages for d in p.samples],
    )


def _passage(step: dict[str, object], widest: float) -> Passage:
    came, left = number(step, "rows_in") or 0.0, number(step, "rows_out") or 0.0
    counted = {str(name): number(step, "reasons", name) or 0.0 for name in table(step, "reasons")}
    ordered = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    lost, edge = [], left / widest
    for _, n in ordered:
        lost.append((min(1.0, edge), max(0.0, min(1.0 - edge, n / widest))))
        edge += n / widest
    gone = sum(counted.values())
    reasons = [Reason(_step_name(step), name, exact(n), percent(n / came) if came else "") for name, n in ordered]
    samples = [
        Dropped(_step_name(step), text(s, "id"), text(s, "reason"), text(s, "detail"), clipped(text(s, "text"), SAMPLE_CHARS))
        for s in rows(step, "samples")
    ]
    return Passage(
        _step_name(step),
        exact(left),
        exact(gone),
        percent(gone / came) if came and gone else "",
        left / widest,
        lost,
        reasons,
        samples,
    )


def _step_name(step: dict[str, object]) -> str:
    """A step is named by its kind; a ledger that holds the whole spec still gives a word."""
    return text(step, "step") or str(dig(step, "step", "kind") or "step")
