"""The first lines of the report: what was made, how good it is, how big, how long it took."""

from __future__ import annotations

from typing import Any, NamedTuple

from modelwright.report import RunView, StageView
from modelwright.report.evaluations import between, is_share, show
from modelwright.report.read import count, exact, number, of_kind, rows, seconds, size, stats, text


class Tile(NamedTuple):
    """One large number."""

    label: str
    value: str
    note: str


class Headline(NamedTuple):
    """The measure that the report leads with: exact match where it was taken, else the first that should be high."""

    stage: str
    metric: str
    value: str
    interval: str
    n: str


def trained(run: RunView) -> StageView | None:
    """The last model that was trained: what the report is about."""
    found = [s for s in of_kind(run, "train") if number(stats(s), "params")]
    return found[-1] if found else None


def exported(run: RunView) -> StageView | None:
    found = of_kind(run, "export")
    return found[-1] if found else None


def shape(stage: StageView) -> dict[str, Any]:
    """The sizes of a model, from the facts of its artifact."""
    facts = stats(stage).get("facts")
    whole = facts.get("") if isinstance(facts, dict) else None
    found = whole.get("shape") if isinstance(whole, dict) else None
    return found if isinstance(found, dict) else {}


def headline(run: RunView) -> Headline | None:
    """From the last evaluate stage that has such a measure; over all its items where that number is given."""
    for stage in reversed(of_kind(run, "evaluate")):
        found = [row for row in rows(stats(stage), "metrics") if number(row, "value") is not None]
        match = [row for row in found if "exact" in text(row, "name").lower()] or [
            r for r in found if r.get("higher_is_better") is True
        ]
        if match:
            row = next((r for r in match if not text(r, "group")), match[0])
            low, high, value = number(row, "low"), number(row, "high"), number(row, "value")
            assert value is not None
            share = is_share([low, value, high], text(row, "name"))
            name = " · ".join(part for part in (text(row, "name"), text(row, "group")) if part)
            return Headline(stage.name, name, show(value, share), between(low, high, share), exact(number(row, "n")))
    return None


def verdict(run: RunView) -> str:
    """A few sentences, from what was measured."""
    model, score, export = trained(run), headline(run), exported(run)
    made = made_seconds(run)
    said = []
    if model is not None:
        said.append(
            f"A model of {count(number(stats(model), 'params'))} parameters" + (f", made in {seconds(made)}." if made else ".")
        )
    elif made:
        said.append(f"Made in {seconds(made)}.")
    if score is not None:
        more = [
            f"on {score.n} items" if number_like(score.n) else "",
            f"(95 % interval {score.interval})" if score.interval else "",
        ]
        said.append(" ".join([f"{score.metric[:1].upper()}{score.metric[1:]}: {score.value}", *(m for m in more if m)]) + ".")
    if export is not None and number(stats(export), "bytes"):
        said.append(f"Exported as {text(stats(export), 'format').upper() or 'a file'}, {size(number(stats(export), 'bytes'))}.")
    return " ".join(said)


def number_like(value: str) -> bool:
    return value[:1].isdigit()


def made_seconds(run: RunView) -> float:
    """Seconds that making every artifact took, whenever that was."""
    return sum(number(s.manifest, "actual", "seconds") or 0.0 for s in run.stages)


def unfinished(run: RunView) -> list[StageView]:
    return [s for s in run.stages if s.state not in ("made", "cached")]


def tiles(run: RunView) -> list[Tile]:
    """Only what was measured."""
    found = []
    model, score, export = trained(run), headline(run), exported(run)
    if model is not None:
        sizes = shape(model)
        note = (
            f"{sizes['layers']} layers, {sizes['hidden']} wide"
            if number(sizes, "layers") and number(sizes, "hidden")
            else "parameters"
        )
        found.append(Tile("Model", count(number(stats(model), "params")), note))
    tokens = sum(number(stats(s), "tokens") or 0.0 for s in of_kind(run, "train"))
    if tokens:
        stages = len(of_kind(run, "train"))
        found.append(Tile("Trained on", count(tokens), f"tokens in {stages} stages" if stages > 1 else "tokens"))
    if score is not None:
        found.append(
            Tile(
                score.metric[:1].upper() + score.metric[1:],
                score.value,
                ", ".join(p for p in (score.interval, f"{score.n} items" if number_like(score.n) else "") if p),
            )
        )
    if export is not None and number(stats(export), "bytes"):
        found.append(Tile("Export", size(number(stats(export), "bytes")), text(stats(export), "format").upper()))
    if made := made_seconds(run):
        cached = sum(s.state == "cached" for s in run.stages)
        note = (
            f"this run {seconds(run.seconds)}, {cached} of {len(run.stages)} cached"
            if cached
            else f"for {len(run.stages)} stages"
        )
        found.append(Tile("Time", seconds(made), note))
    return found
