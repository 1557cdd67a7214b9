"""Items of an evaluation: scored, stored, read again for a comparison, and a few chosen to look at."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.events import read_events
from modelwright.core.record import Message, Record
from modelwright.core.spec import fingerprint
from modelwright.core.stage import Input
from modelwright.methods.tasks import Answer, Compared, Generate, Sample, Score, Task, expected
from modelwright.stages._evaluate_ask import Ask, key

FILE = "items.jsonl"
SHOWN = 24
"""Samples kept in the manifest."""
SHOWN_CHARS = 4000


class Item(NamedTuple):
    """What one model got for one item."""

    score: Score
    answer: str
    mark: str
    """Digest of question and right answer: only equal ones are compared."""


class Job(NamedTuple):
    """One task with its items."""

    task: Task
    samples: list[Sample]
    asks: list[Ask]
    keys: list[str]
    dropped: Counter[str]

    def marks(self) -> list[str]:
        pairs = zip(self.keys, self.samples, strict=True)
        return [hashlib.sha256(f"{k}\0{expected(s.record)}".encode()).hexdigest()[:16] for k, s in pairs]

    def items(self, answers: Mapping[str, Answer]) -> list[Item]:
        found = []
        for sample, ask, name, mark in zip(self.samples, self.asks, self.keys, self.marks(), strict=True):
            answer = answers[name]
            found.append(Item(self.task.score(sample, answer), answer.text if isinstance(ask, Generate) else "", mark))
        return found


def job(task: Task, rows: Sequence[Record]) -> Job:
    """The items of a task; UserError where no row fits."""
    dropped: Counter[str] = Counter()
    samples = list(task.samples(iter(rows), dropped))
    if not samples:
        raise UserError(
            f"the task {task.name!r} has no item",
            "all rows are left out: " + ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()),
            _hint(task, rows),
        )
    asks = [task.ask(sample) for sample in samples]
    return Job(task, samples, asks, [key(ask) for ask in asks], dropped)


def _hint(task: Task, rows: Sequence[Record]) -> str:
    for name in task.where:
        seen = Counter(str(row.meta.get(name)) for row in rows)
        if len(seen) <= 12 or "None" in seen:
            return f"values of {name} in the data: {', '.join(value for value, _ in seen.most_common(12))}"
    return "give data that this task can ask about, or remove the task"


def unique(records: Iterable[Record]) -> list[Record]:
    """The rows with ids that differ: several sources may number theirs alike."""
    seen: Counter[str] = Counter()
    found = []
    for record in records:
        seen[record.id] += 1
        if seen[record.id] > 1:
            record.id = f"{record.id}#{seen[record.id]}"
        found.append(record)
    return found


def scoring(task: Task) -> str:
    return fingerprint(task.scoring())[:16]


# --- stored -------------------------------------------------------------------------------------------


def write(path: Path, jobs: Sequence[Job], items: Sequence[Sequence[Item]]) -> int:
    """One line an item; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for one, found in zip(jobs, items, strict=True):
            for sample, item in zip(one.samples, found, strict=True):
                score = item.score
                row = {"id": sample.id, "task": one.task.name, "group": sample.group, "score": score.value}
                row |= {"weight": score.weight, "others": dict(score.others), "detail": score.detail}
                file.write(json.dumps(row | {"answer": item.answer, "mark": item.mark}, ensure_ascii=False) + "\n")
                count += 1
    return count


def stored(before: Input, jobs: Sequence[Job]) -> list[dict[str, Item]]:
    """By job, the items of an earlier evaluation by id; UserError where a task is missing there or scores otherwise."""
    known = before.stats.get("tasks", {})
    for one in jobs:
        name = one.task.name
        if name not in known:
            raise UserError(
                f"{before.ref!r} has no task {name!r} to compare with",
                f"its tasks: {', '.join(known) or 'none'}",
                f"add the task to {before.ref!r}, or compare with its model instead (`against:` the model's stage)",
            )
        if known[name] != scoring(one.task):
            raise UserError(
                f"the task {name!r} is set otherwise in {before.ref!r}",
                "its scores there do not mean the same",
                f"give it the same fields in both, or compare with the model of {before.ref!r} instead",
            )
    found: list[dict[str, Item]] = [{} for _ in jobs]
    place = {one.task.name: index for index, one in enumerate(jobs)}
    for row in read_events(before.path / FILE):
        if row["task"] in place:
            score = Score(row["score"], row["weight"], row["detail"], row["others"])
            found[place[row["task"]]][row["id"]] = Item(score, row["answer"], row["mark"])
    return found


class Paired(NamedTuple):
    """A comparison and what it rests on."""

    compared: Compared
    common: int


def pair(one: Job, now: Sequence[Item], before: Mapping[str, Item]) -> Paired:
    """The comparison over the items that both models were asked in the same words."""
    same = [
        (sample, before[sample.id].score, item.score)
        for sample, item in zip(one.samples, now, strict=True)
        if sample.id in before and before[sample.id].mark == item.mark
    ]
    if not same:
        return Paired(Compared([], []), 0)
    samples, first, second = zip(*same, strict=True)
    return Paired(one.task.compare(samples, first, second), len(same))


# --- to look at ---------------------------------------------------------------------------------------


def shown(jobs: Sequence[Job], items: Sequence[Sequence[Item]], before: Sequence[Mapping[str, Item]]) -> list[dict[str, Any]]:
    """Some items of every task that generates: from each group in turn, the best and the worst by turns, nobody's choice."""
    places = [index for index, one in enumerate(jobs) if isinstance(one.asks[0], Generate)]
    rows = []
    for number, index in enumerate(places):
        quota = SHOWN // len(places) + (number < SHOWN % len(places))
        earlier = before[index] if before else {}
        for at in _mixed(jobs[index].samples, items[index])[:quota]:
            rows.append(_row(jobs[index].task, jobs[index].samples[at], items[index][at], earlier))
    return rows


def _mixed(samples: Sequence[Sample], items: Sequence[Item]) -> list[int]:
    """Places in the order to show them: one of each group, then the next; in a group good and bad by turns."""
    groups: dict[str, list[int]] = {}
    for at, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(at)
    queues = []
    for _, places in sorted(groups.items()):
        ranked = sorted(places, key=lambda at: (-items[at].score.value, at))
        good = [at for at in ranked if items[at].score.value >= 0.5]
        bad = [at for at in reversed(ranked) if items[at].score.value < 0.5]
        turns = [at for two in zip(good, bad, strict=False) for at in two]
        queues.append(turns + [at for at in (*good, *bad) if at not in set(turns)])
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _row(task: Task, sample: Sample, item: Item, before: Mapping[str, Item]) -> dict[str, Any]:
    row = {"task": task.name, "id": sample.id, "group": sample.group, "prompt": _prompt(task.ask(sample))}
    row |= {"expected": _short(expected(sample.record)), "answer": _short(item.answer), "score": item.score.value}
    if item.score.detail:
        row["detail"] = item.score.detail
    if sample.id in before and before[sample.id].mark == item.mark:
        row |= {"answer_before": _short(before[sample.id].answer), "score_before": before[sample.id].score.value}
    return row


def _prompt(ask: Ask) -> Any:
    """The text of a lone question, else the turns."""
    if not ask.messages:
        return _short(ask.text)
    if len(ask.messages) == 1:
        return _short(str(ask.messages[0].get("content")))
    turns: list[Message] = [{"role": m.get("role"), "content": _short(str(m.get("content")))} for m in ask.messages]
    return turns


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}… ({len(text) - SHOWN_CHARS} more characters)"
