"""The same questions to every model of the run, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.events import read_events
from modelwright.report import RunView, StageView
from modelwright.report.read import clipped, number, of_kind, rows, significant, stats, table, text

SHOWN = 8
TEXT_CHARS = 2400

Key = tuple[str, str]
"""Task and item id: two tasks may number their items alike."""


class Reply(NamedTuple):
    """One model's answer."""

    stage: str
    answer: str
    mark: str
    """`right`, `wrong`, `partly right`, or '' where nothing was scored."""
    score: str


class Shown(NamedTuple):
    """One item and every answer to it."""

    id: str
    group: str
    prompt: str
    expected: str
    replies: list[Reply]


def side_by_side(run: RunView) -> list[Shown]:
    """Up to eight items that every evaluate stage answered, taken from each group in turn.

    Which ones, the last evaluate stage decided when it put some into its manifest (right and wrong by turns); the answers
    of the others come from their `items.jsonl`. An item whose question differs between stages is left out.
    """
    stages = [s for s in of_kind(run, "evaluate") if rows(stats(s), "samples")]
    if not stages:
        return []
    wanted = [_key(row) for row in rows(stats(stages[-1]), "samples") if _has_answer(row)]
    answers = {s.name: _answers(s, set(wanted)) for s in stages}
    asked = [s for s in stages if any(key in answers[s.name] for key in wanted)]
    last = answers[stages[-1].name]
    first_task: dict[str, Key] = {}
    for key in wanted:  # several tasks may score one answer; one of them is enough to look at
        if all(key in answers[s.name] and _same(answers[s.name][key], last[key]) for s in asked):
            first_task.setdefault(key[1], key)
    return [_shown(key, asked, answers) for key in _in_turn(list(first_task.values()), last)[:SHOWN]]


def _key(row: dict[str, Any]) -> Key:
    return text(row, "task"), text(row, "id")


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal marks say that question and right answer are the same; older files have none."""
    return not a.get("mark") or not b.get("mark") or a["mark"] == b["mark"]


def _has_answer(row: dict[str, Any]) -> bool:
    """A likelihood item has nothing to show."""
    return bool(text(row, "id")) and bool(text(row, "answer") or text(row, "expected"))


def _answers(stage: StageView, wanted: set[Key]) -> dict[Key, dict[str, Any]]:
    found = {_key(row): row for row in rows(stats(stage), "samples") if _key(row) in wanted}
    left = set(wanted)
    for row in _items(stage.folder / "items.jsonl"):
        if (key := _key(row)) in left:
            left.remove(key)
            found[key] = {**row, **found.get(key, {})}
        if not left:
            break
    return found


def _items(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_events(path):
        if isinstance(row, dict):
            yield row


def _in_turn(keys: list[Key], rows_by_key: dict[Key, dict[str, Any]]) -> list[Key]:
    """One of each group, then the next of each, so that a long group does not fill the page."""
    groups: dict[str, list[Key]] = {}
    for key in keys:
        groups.setdefault(text(rows_by_key[key], "group"), []).append(key)
    turns = max((len(g) for g in groups.values()), default=0)
    return [group[k] for k in range(turns) for group in groups.values() if k < len(group)]


def _shown(key: Key, stages: list[StageView], answers: dict[str, dict[Key, dict[str, Any]]]) -> Shown:
    row = answers[stages[-1].name][key]
    return Shown(
        key[1],
        text(row, "group"),
        _prompt(row),
        clipped(text(row, "expected"), TEXT_CHARS),
        [_reply(s.name, answers[s.name][key]) for s in stages],
    )


def _prompt(row: dict[str, Any]) -> str:
    """Text, or a chat as its turns."""
    turns = [f"{text(m, 'role')}: {text(m, 'content')}" for m in rows(row, "prompt")]
    return clipped(text(row, "prompt") or "\n".join(turns), TEXT_CHARS)


def _reply(stage: str, row: dict[str, Any]) -> Reply:
    score = number(row, "score")
    if score is None:
        score = number(table(row, "score"), "value")
    mark = "" if score is None else "right" if score >= 1 else "wrong" if score <= 0 else "partly right"
    return Reply(
        stage,
        clipped(text(row, "answer"), TEXT_CHARS),
        mark,
        significant(score) if mark == "partly right" and score is not None else "",
    )
