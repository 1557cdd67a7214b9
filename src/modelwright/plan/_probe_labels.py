"""What rows are marked with: classes and their balance, scores, and pairs of a better and a worse answer.

Sources: ties and identical sides as in `methods/formats`; length bias of preferences, Singhal et al. 2023, "A Long Way to Go",
arXiv:2310.03716; contradictions and other noise of preference labels, Wang et al. 2024, arXiv:2401.06080.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from modelwright.core.record import Record
from modelwright.plan._probe_facts import Quantiles, Share, clip, quantiles
from modelwright.plan._probe_read import Looked

MOST_CLASSES, LEAST_EACH, LABEL_CHARS = 50, 5, 40
"""A column is one of labels with at most so many values, each in so many rows on average, of at most so many characters."""
SHOWN_CLASSES, SHOWN_COLUMNS = 20, 6
_NAMES = re.compile(
    r"(?:^|[._])(?:labels?|class|category|topic|sentiment|intent|tag|type|score|rating|stars|grade|toxicity|kto_tag|is_\w+)\d*$",
    re.I,
)
_NO_LABELS = re.compile(r"(?:^|[._])(?:id|idx|index|name|path|url|date|time|source|model|split|lang|seed|role)$", re.I)
NEAR = 0.9
"""Share of words in common from which two answers are nearly the same."""
WORDS = re.compile(r"\w+")


class Labels(NamedTuple):
    """A column that marks rows."""

    key: str
    sort: str
    """`classes` or `numbers`."""
    classes: tuple[Share, ...]
    """The commonest first; of numbers none."""
    distinct: int
    imbalance: float
    """How many times as many rows the commonest class has as the rarest; of numbers 0."""
    numbers: Quantiles | None
    why: str
    names: tuple[str, ...] = ()
    """Every class as `objectives/classify.py` names it; of numbers none."""
    buried: bool = False
    """It lies within an object of the row, where no objective reads it."""


def labels(rows: Sequence[Looked]) -> tuple[Labels, ...]:
    """The columns that look like labels, those with such a name first."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        if row.record is not None and isinstance(row.record.meta.get("label"), bool):
            columns.setdefault("label", []).append(row.record.meta["label"])
        for key, value in _flat(row.raw):
            if key != "label" or row.record is None or not isinstance(row.record.meta.get("label"), bool):
                columns.setdefault(key, []).append(value)
    top = {"label"} | {key for row in rows for key in row.raw}
    found = [label._replace(buried=label.key not in top) for key, values in columns.items() if (label := _column(key, values))]
    named = sorted(found, key=lambda label: (not _NAMES.search(label.key), label.distinct))
    return tuple(named[:SHOWN_COLUMNS])


def _flat(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values with their keys, those of objects one level down too."""
    for key, value in raw.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{key}.")
        elif isinstance(value, (str, int, float, bool)):
            yield prefix + str(key), value


def _column(key: str, values: Sequence[Any]) -> Labels | None:
    counts = Counter(str(value).strip() for value in values)
    named = bool(_NAMES.search(key))
    if len(counts) < 2 or _NO_LABELS.search(key) or any(len(text) > LABEL_CHARS for text in counts):
        return None
    numbers = _numbers(values)
    few = len(counts) <= MOST_CLASSES and len(values) >= LEAST_EACH * len(counts)
    if not few and not (named and numbers):
        return None
    why = "its name says so" if named else f"{len(counts)} different short values in {len(values):,} rows"
    if not few:
        return Labels(key, "numbers", (), len(counts), 0.0, quantiles(key, "", numbers), why)
    classes = tuple(Share(clip(text) or "''", count, len(values)) for text, count in counts.most_common(SHOWN_CLASSES))
    names = tuple(sorted({_name(value) for value in values}))
    return Labels(key, "classes", classes, len(counts), max(counts.values()) / min(counts.values()), None, why, names)


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, (bool, float)) and value == value // 1 else str(value)


def _numbers(values: Sequence[Any]) -> list[float]:
    """As numbers; none where one is no number."""
    try:
        return [float(value) for value in values if not isinstance(value, bool)]
    except ValueError:
        return []


# --- pairs --------------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Preferences, and what is wrong with their labels."""

    of: int
    identical: Share
    """Both sides are the same text; layouts leave such rows out."""
    near: Share
    """Both sides are nearly the same words."""
    ties: Share
    """Both sides have the same score."""
    contradicted: Share
    """The same two answers stand the other way round in another row."""
    longer: Share
    """The better answer is the longer one, of those whose lengths differ."""
    length_ratio: float
    """Characters of better answers over those of worse ones."""


def pairs(records: Sequence[Record], same: int = 0) -> Pairs | None:
    """None without any. `same`: rows that were left out since their sides are the same."""
    found = [record for record in records if record.chosen and record.rejected]
    if not found and not same:
        return None
    sides = [(_said(record.messages), _said(record.chosen), _said(record.rejected)) for record in found]
    near = [better for _, better, worse in sides if _alike(better, worse) >= NEAR]
    order = {(prompt, better, worse) for prompt, better, worse in sides}
    contradicted = [better for prompt, better, worse in sides if (prompt, worse, better) in order]
    scored = [record.meta for record in found if {"score_chosen", "score_rejected"} <= set(record.meta)]
    unequal = [(len(better), len(worse)) for _, better, worse in sides if len(better) != len(worse)]
    lengths = [sum(len(side[at]) for side in sides) for at in (1, 2)]
    of = len(found) + same
    return Pairs(
        of,
        Share("identical sides", same, of, (), "the better and the worse answer are the same text"),
        _evidence("near-identical sides", near, len(found), f"{NEAR:.0%} of their words in common"),
        Share("ties", sum(meta["score_chosen"] == meta["score_rejected"] for meta in scored), len(scored), (), "equal scores"),
        _evidence("contradictions", contradicted, len(found), "another row has the same answers the other way round"),
        Share("better is longer", sum(better > worse for better, worse in unequal), len(unequal), (), "in characters"),
        lengths[0] / max(lengths[1], 1),
    )


def _evidence(name: str, texts: Sequence[str], of: int, why: str) -> Share:
    return Share(name, len(texts), of, tuple(clip(text) for text in texts[:3]), why)


def _said(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{turn.get('content') or ''}{turn.get('tool_calls') or ''}" for turn in turns)


def _alike(left: str, right: str) -> float:
    """Share of words that both have, each as often as it stands there."""
    one, other = (Counter(WORDS.findall(text.lower())) for text in (left, right))
    return (one & other).total() / max((one | other).total(), 1)


def same_sides(raw: Mapping[str, Any]) -> bool:
    """Whether a row says that one and the same answer is better and worse."""
    return any("chosen" in key and raw[key] and raw.get(key.replace("chosen", "rejected")) == raw[key] for key in raw)
