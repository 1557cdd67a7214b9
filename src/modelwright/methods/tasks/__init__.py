"""Tasks: questions with a score. Evaluation, RL reward and best-of-n are the same thing. One file a kind.

A task picks rows, asks one thing of the model for each, scores the answers, and says which columns of numbers (measures) the
scores make. Intervals and paired comparisons over these columns are the same for all: see `_statistics.py` for the methods
and their sources.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from modelwright.core.record import Message, Record
from modelwright.core.spec import Kinds, Spec, kind_of
from modelwright.methods.tasks import _statistics as statistics

TASKS = Kinds(__name__, f"{__name__}:Task")

Plain = str | int | float | bool


class Sample(NamedTuple):
    """One item. `group` is the slice that it is reported under (a sort of question), '' for none."""

    id: str
    record: Record
    group: str = ""


class Generate(NamedTuple):
    """Ask for free text, greedily. `messages` as a chat, or `text` to continue where the model has no template."""

    messages: tuple[Message, ...] = ()
    text: str = ""
    max_tokens: int = 64


class Likelihood(NamedTuple):
    """Ask how likely a text is: a document, or the last assistant turn of `messages`."""

    text: str = ""
    messages: tuple[Message, ...] = ()


class Answer(NamedTuple):
    text: str = ""
    """What was generated; for a likelihood, the text whose tokens were scored."""
    logprobs: tuple[float, ...] = ()
    """Of the scored or generated tokens, in nats; empty where the engine gives none."""
    tokens: int = 0


class Score(NamedTuple):
    """What one item got. `weight` for means over tokens or bytes rather than items."""

    value: float
    weight: float = 1.0
    detail: str = ""
    others: Mapping[str, float] = {}
    """Further numbers of the same answer that a measure needs, by name."""


class Measure(NamedTuple):
    """A column of numbers, one an item, and how it becomes one number: `scale(weighted mean)`."""

    name: str
    values: tuple[float, ...]
    weights: tuple[float, ...]
    higher_is_better: bool = True
    exponential: bool = False
    """True: the number is e to the mean."""
    same_weights: bool = False
    """True: two models are only comparable where they weigh each item alike (tokens of the same tokenizer)."""

    @property
    def scale(self) -> Callable[[Any], Any]:
        return _exp if self.exponential else _same


class Metric(NamedTuple):
    """A number with its 95 % interval over items."""

    name: str
    group: str
    value: float
    low: float
    high: float
    n: int
    higher_is_better: bool = True
    clusters: int = 0
    """Independent clusters that the items make; equals `n` where every item stands alone."""
    baseline: float | None = None
    """What the best constant answer would get; None where that has no meaning."""


class Comparison(NamedTuple):
    """Two models on the same items."""

    name: str
    group: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    better: bool | None
    """None where no difference is shown: the interval holds zero, or p is 0.05 or more (few items bear no interval)."""


class Compared(NamedTuple):
    rows: list[Comparison]
    notes: list[str]
    """What was not compared and why."""


class Task(Spec):
    """Turns rows into questions and answers into scores."""

    metric: ClassVar[str] = ""
    """What the main number is called: `exact match`, `perplexity`."""
    higher_is_better: ClassVar[bool] = True
    reference: ClassVar[bool] = True
    """Its score needs the row's right answer. Where it does not, answers can be chosen by it (`best_of_n`)."""
    leaves: ClassVar[Mapping[str, float]] = {}
    """As of a stage (`Estimate.leaves`)."""

    label: str = Field("", examples=["other"])
    """What the numbers are filed under; unset: the kind. Needed where one evaluation has a kind twice."""
    rows: int = Field(400, ge=1, examples=[3])
    """Most items. More make narrower intervals and take longer; 400 independent ones pin a share down to 5 points. Which ones
    is decided by the hash of the row's id, so another file order or another model meets the same."""
    where: dict[str, Plain | tuple[Plain, ...]] = Field({}, examples=[{"from": "prompt"}])
    """Only rows whose `meta` has this value (or one of these values) under each key; unset: all."""
    group: str = Field("sort", examples=["from"])
    """Key of `meta` that tells the sort of a row; each sort has a number of its own. '' or a key that no row has: only the whole.
    The default is what `python_questions` writes."""
    also: tuple[str, ...] = Field(("from",), examples=[()])
    """Further keys of `meta` whose values make groups, called `key=value`. By default where the answer comes from, so that
    questions answered from the prompt have one headline number."""
    cluster: str = Field("object", examples=[""])
    """Key of `meta` that items of the same origin share. They rise and fall together, so intervals are taken over origins, not
    items (Miller 2024, arXiv:2411.00640). Rows without the key, or with '' here, stand alone."""

    @property
    def name(self) -> str:
        """What its numbers are filed under."""
        return self.label or kind_of(self)

    def scoring(self) -> dict[str, Any]:
        """Its identity without the fields that only choose and slice rows: equal ones give an answer the same score."""
        tree = self.identity()
        for field in Task.model_fields:
            del tree[field]
        return tree

    # --- what a kind says -------------------------------------------------------------------------

    def refuses(self, record: Record) -> str | None:
        """Why this row cannot be an item, short and countable; None where it can."""
        raise NotImplementedError

    def ask(self, sample: Sample) -> Generate | Likelihood:
        raise NotImplementedError

    def score(self, sample: Sample, answer: Answer) -> Score:
        raise NotImplementedError

    def measures(self, scores: Sequence[Score]) -> list[Measure]:
        """The columns of these items, the main one first."""
        values, weights = tuple(s.value for s in scores), tuple(s.weight for s in scores)
        return [Measure(self.metric, values, weights, self.higher_is_better)]

    def baseline(self, samples: Sequence[Sample]) -> float | None:
        """The main measure of somebody who gives every item of a group the same answer; None where that has no meaning."""
        return None

    def new_tokens(self) -> int:
        """Most tokens generated for an item, for the planner; 0 where nothing is."""
        return 0

    # --- the same for all -------------------------------------------------------------------------

    def samples(self, rows: Iterator[Record], dropped: Counter[str] | None = None) -> Iterator[Sample]:
        """The items, in the order of the rows; `dropped` counts the rows left out by reason."""
        kept: list[tuple[int, int, Record]] = []  # the largest hash on top
        left_out: Counter[str] = Counter()
        for number, record in enumerate(rows):
            reason = self._outside(record) or self.refuses(record)
            if reason is None:
                mark = -int.from_bytes(hashlib.sha256(record.id.encode()).digest()[:8], "big")
                if len(kept) < self.rows:
                    heapq.heappush(kept, (mark, -number, record))
                    continue
                reason = f"beyond the {self.rows} rows that were asked for"
                if (mark, -number) > kept[0][:2]:
                    heapq.heapreplace(kept, (mark, -number, record))
            left_out[reason] += 1
        if dropped is not None:
            dropped.update(left_out)
        for _, _, record in sorted(kept, key=lambda entry: -entry[1]):
            yield Sample(record.id, record, _text(record.meta.get(self.group)) if self.group else "")

    def _outside(self, record: Record) -> str | None:
        for key, wanted in self.where.items():
            if record.meta.get(key) not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return f"`where`: {key} is another"
        return None

    def groups(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        """Group -> places in `samples`: '' for all, then the groups of `also`, then the sorts."""
        found: dict[str, list[int]] = {}
        sorts: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            for key in self.also:
                if (value := _text(sample.record.meta.get(key))) and key != self.group:
                    found.setdefault(f"{key}={value}", []).append(index)
            if sample.group:
                sorts.setdefault(sample.group, []).append(index)
        return {"": list(range(len(samples))), **dict(sorted(found.items())), **dict(sorted(sorts.items()))}

    def clusters(self, samples: Sequence[Sample]) -> list[str]:
        """What each item stands or falls with. Items alone are named by their place, which no value of `meta` can be."""
        values = [_text(s.record.meta.get(self.cluster)) if self.cluster else "" for s in samples]
        return [f"={value}" if value else f"#{index}" for index, value in enumerate(values)]

    def summary(self, samples: Sequence[Sample], scores: Sequence[Score]) -> list[Metric]:
        """Each measure overall (group '') and by group, with intervals."""
        clusters = self.clusters(samples)
        found = []
        for group, places in self.groups(samples).items():
            own = [clusters[i] for i in places]
            for index, measure in enumerate(self.measures([scores[i] for i in places]) if places else []):
                if not sum(measure.weights):
                    continue  # texts of one token: nothing was scored
                value = float(measure.scale(statistics.mean(measure.values, measure.weights)))
                low, high = _interval(measure, own)
                base = None if index else self.baseline([samples[i] for i in places])
                found.append(
                    Metric(measure.name, group, value, low, high, len(places), measure.higher_is_better, len(set(own)), base)
                )
        return found

    def compare(self, samples: Sequence[Sample], before: Sequence[Score], after: Sequence[Score]) -> Compared:
        """Each measure of two models on the same items."""
        clusters = self.clusters(samples)
        rows, notes = [], []
        for group, places in self.groups(samples).items():
            if not places:
                continue
            pair = [self.measures([scores[i] for i in places]) for scores in (before, after)]
            for first, second in zip(*pair, strict=True):
                if second.same_weights and first.weights != second.weights:
                    if not group:
                        notes.append(f"{first.name} is not compared: the two models cut the same texts into different tokens")
                    continue
                if sum(first.weights) and sum(second.weights):
                    rows.append(_comparison(group, first, second, [clusters[i] for i in places]))
        return Compared(rows, notes)


# --- one measure --------------------------------------------------------------------------------------


def _interval(measure: Measure, clusters: Sequence[str]) -> statistics.Interval:
    if _is_share(measure):
        items = statistics.effective_items(measure.values, clusters)
        return statistics.wilson(items * math.fsum(measure.values) / len(measure.values), items)
    return statistics.bootstrap(statistics.columns(measure.values, measure.weights, clusters), measure.scale)


def _comparison(group: str, before: Measure, after: Measure, clusters: Sequence[str]) -> Comparison:
    sides = [statistics.columns(m.values, m.weights, clusters) for m in (before, after)]
    found = statistics.compare(sides[0], sides[1], after.scale)
    low, high = found.interval
    p = found.p
    if _is_share(before) and _is_share(after) and len(set(clusters)) == len(clusters):
        changes = Counter(b - a for a, b in zip(before.values, after.values, strict=True))
        p = statistics.mcnemar(changes[-1.0], changes[1.0])
    better = None if low <= 0 <= high or p >= 0.05 else (low > 0) == after.higher_is_better
    n = len(after.values)
    return Comparison(after.name, group, found.before, found.after, found.difference, low, high, p, n, better)


def _is_share(measure: Measure) -> bool:
    return not measure.exponential and set(measure.values) <= {0.0, 1.0} and set(measure.weights) <= {1.0}


def _same(value: Any) -> Any:
    return value


def _exp(value: Any) -> Any:
    import numpy as np

    return np.exp(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


# --- chats --------------------------------------------------------------------------------------------


def question(record: Record) -> tuple[Message, ...]:
    """What a chat or a preference asks: the turns before the last answer."""
    return tuple(record.messages) if record.chosen else tuple(record.messages[:-1])


def expected(record: Record) -> str:
    """The right answer: the last assistant turn, or the better one of a preference; '' where there is none."""
    turns = record.chosen or record.messages
    if not turns or turns[-1].get("role") != "assistant" or not isinstance(turns[-1].get("content"), str):
        return ""
    return str(turns[-1]["content"])


def no_question(record: Record) -> str | None:
    """Why a row has no question with a known answer; None where it has."""
    if not record.messages:
        return "a text, not a question"
    if not expected(record).strip():
        return "the last turn is not an answer"
    return None if question(record) else "an answer without a question"
