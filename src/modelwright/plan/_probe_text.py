"""What the texts of a sample are: their languages, near copies of one another, personal data.

Each by the step of a curation that would act on it, so that what is told here is what such a step would find: `methods/steps/
language.py`, `minhash.py` and `pii.py`, with their sources.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import STEPS, Drop, Step, content, identity
from modelwright.methods.steps._pii_rules import RULES, found_in
from modelwright.plan._probe_facts import Share, shares

LEAST_LETTERS = 20
"""Of a text whose language can be told: detectors guess on less."""
SURE = 0.5
"""Confidence from which a language is named, the step's default."""
PII_CHARS = 20_000
_LETTERS = re.compile(r"[^\W\d_]")
_LIKE = re.compile(r"like (\d+)")


def _run() -> Run:
    return Run(Path(), {}, 0, Log(None))


def _step(kind: str, **fields: object) -> Step:
    made = STEPS.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(made, Step)
    return made


def _lacks(error: UserError | ImportError, extra: str) -> str:
    if isinstance(error, UserError):
        return f"{error.what}; {error.fix}"
    return f"the package {error.name!r} is not installed; pip install 'modelwright[{extra}]'"


class Languages(NamedTuple):
    each: tuple[Share, ...]
    """By ISO 639 code. Empty where no detector is installed."""
    note: str = ""


def languages(texts: Sequence[str]) -> Languages:
    """In which languages they are."""
    long = [text for text in texts if sum(1 for _ in _LETTERS.finditer(text[:200])) >= LEAST_LETTERS]
    found: list[tuple[str, str]] = []
    try:
        judge = _step("language", keep=[]).ready(_run())
        for record in judge(iter(Record(str(i), text=text) for i, text in enumerate(long))):
            assert isinstance(record, Record)
            if float(record.meta["lang_confidence"]) >= SURE:
                found.append((str(record.meta["lang"]), record.text))
    except (UserError, ImportError) as error:
        return Languages((), f"languages were not told: {_lacks(error, 'language')}")
    short, unsure = len(texts) - len(long), len(long) - len(found)
    told = [f"{count} of {len(texts)} {why}" for count, why in ((short, "are too short"), (unsure, "are uncertain")) if count]
    return Languages(shares(found, len(texts)), f"languages: {', '.join(told)}" if told else "")


class Copies(NamedTuple):
    """Rows of a sample that are like an earlier one."""

    near: Share
    """Near copies, exact ones left out."""
    across: Counter[tuple[int, int]]
    """(file of the earlier one, file of the later) -> near copies, for different files."""
    note: str = ""


def copies(records: Sequence[Record], files: Sequence[int]) -> Copies:
    """Near copies among these; `files`: the number of each one's file."""
    seen: set[str] = set()
    rows: list[Record] = []
    home: list[int] = []
    for record, file in zip(records, files, strict=True):
        if (key := identity(record)) not in seen:
            seen.add(key)
            home.append(file)
            rows.append(Record(str(len(rows)), record.text, record.messages, record.chosen, record.rejected))
    found: list[tuple[str, str]] = []
    across: Counter[tuple[int, int]] = Counter()
    try:
        dropped = [result for result in _step("minhash").apply(iter(rows), _run()) if isinstance(result, Drop)]
    except ImportError as error:
        return Copies(Share("near copies", 0, 0), across, f"near copies were not looked for: {_lacks(error, 'data')}")
    for result in dropped:
        found.append(("near copies", content(result.record)))
        like = _LIKE.match(result.detail)
        if like and home[int(like[1])] != home[int(result.record.id)]:
            across[home[int(like[1])], home[int(result.record.id)]] += 1
    why = "word 5-grams, Jaccard 0.8 and more"
    near = shares(found, len(rows)) or (Share("near copies", 0, len(rows)),)
    return Copies(near[0]._replace(why=why), across)


def personal(texts: Sequence[str]) -> tuple[Share, ...]:
    """Rows with each sort of personal data; no samples, for they would spread it."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({found.rule.name for found in found_in(text[:PII_CHARS], RULES)})
    return tuple(Share(name, count, len(texts), (), "rows that hold one") for name, count in counts.most_common())
