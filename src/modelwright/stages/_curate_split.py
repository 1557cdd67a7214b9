"""Parts of a curated set: rows that belong together stay together, so that nothing in one part is, or nearly is, in another."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.methods.steps import content, identity, near_clusters

SEED_OF_CHECK = 1
"""Hash functions of the second look for near-duplicates; others than the first, so both miss the same pair only by chance."""


class Split(Spec):
    """Which part each row goes to. Groups and clusters of near-duplicates are never divided."""

    test: float = Field(0.05, ge=0, examples=[3])
    """Size of part `test`: a share below 1, else rows; 0: no such part. Default: a twentieth, as much as small sets can spare."""
    validation: float = Field(0, ge=0, examples=[3])
    """Size of part `validation`, likewise."""
    group: str = Field("", examples=["object"])
    """Key of `meta` whose equal values stay in one part: the object a question is about, a user, a page. Default '': none."""
    near: float | None = Field(0.8, gt=0, le=1, examples=[0.3])
    """Jaccard similarity (0 to 1) from which texts stay in one part; lowering it makes larger clusters. null: do not look.
    Default: as in near-duplicate removal."""
    origin: str = Field("source", min_length=1, examples=["path"])
    """Key of `meta` with the text that a row was made from; that is compared where it is there, else the row itself."""

    @model_validator(mode="after")
    def _some(self) -> Split:
        if not self.test and not self.validation:
            raise ValueError("a split needs a size for `test` or `validation`")
        if sum(size for size in (self.test, self.validation) if size < 1) >= 1:
            raise ValueError("`test` and `validation` leave nothing for `train`")
        return self

    def sizes(self) -> dict[str, float]:
        """Held-out parts and their sizes as declared."""
        return {name: size for name, size in (("validation", self.validation), ("test", self.test)) if size}

    def names(self) -> tuple[str, ...]:
        return ("train", *self.sizes())


class Assigned(NamedTuple):
    """The part of each row; None for a row that is left out because it would leak."""

    part: list[str | None]
    leaks: dict[int, str]
    """Row -> what it would have leaked."""


def assign(rows: Sequence[Record], split: Split, seed: int) -> Assigned:
    """Whole groups go to the held-out parts in random order until those are full; the rest is `train`."""
    group_of = _groups(rows, split)
    members: dict[int, list[int]] = {}
    for row, group in enumerate(group_of):
        members.setdefault(group, []).append(row)
    order = sorted(members, key=lambda group: (_draw(seed, rows[group].id), group))
    part: list[str | None] = ["train"] * len(rows)
    space = {name: round(size * len(rows)) if size < 1 else round(size) for name, size in split.sizes().items()}
    filled = dict.fromkeys(space, 0)
    for group in order:
        size = len(members[group])
        name = next((name for name in space if filled[name] + size <= space[name]), None)
        if name is not None:
            filled[name] += size
            for row in members[group]:
                part[row] = name
    for name, count in filled.items():
        if not count:
            largest = max(len(rows) for rows in members.values())
            raise UserError(
                f"part {name!r} stays empty",
                f"it may hold {space[name]} rows, but rows that belong together are not divided: "
                f"{len(members)} groups, the largest has {largest} of {len(rows)} rows",
                f"give `{name}` more rows, group by a finer key, or raise `near`",
            )
    leaks = find_leaks(rows, part, split)
    for row in leaks:
        part[row] = None
    return Assigned(part, leaks)


def _groups(rows: Sequence[Record], split: Split) -> list[int]:
    """For each row the first row of its group: equal values of the key, equal or nearly equal texts, and chains of both."""
    root = list(range(len(rows)))

    def find(x: int) -> int:
        while root[x] != x:
            root[x] = root[root[x]]
            x = root[x]
        return x

    def join(a: int, b: int) -> None:
        low, high = sorted((find(a), find(b)))
        root[high] = low

    first: dict[tuple[str, str], int] = {}
    for row, record in enumerate(rows):
        for key in (("row", identity(record)), ("origin", _origin(record, split)), ("group", _group(record, split, row))):
            join(row, first.setdefault(key, row))
    if split.near is not None:
        texts, owner = _unique(rows, split)
        for number, home in enumerate(near_clusters(texts, split.near)):
            join(owner[number], owner[home])
    return [find(row) for row in range(len(rows))]


def _group(record: Record, split: Split, row: int) -> str:
    value = record.meta.get(split.group) if split.group else None
    return f"={value}" if value is not None else f"#{row}"


def _origin(record: Record, split: Split) -> str:
    return str(record.meta.get(split.origin) or content(record))


def _unique(rows: Sequence[Record], split: Split) -> tuple[list[str], list[int]]:
    """Each text once, and the first row that has it."""
    owner: dict[str, int] = {}
    for row, record in enumerate(rows):
        owner.setdefault(_origin(record, split), row)
    return list(owner), list(owner.values())


def find_leaks(rows: Sequence[Record], part: Sequence[str | None], split: Split) -> dict[int, str]:
    """Rows of a less held-out part whose text is, or nearly is, in a more held-out one; looked for with other hash functions."""
    rank = {name: index for index, name in enumerate(split.names())}
    leaks: dict[int, str] = {}
    home: dict[str, int] = {}
    texts, _ = _unique(rows, split)
    if split.near is not None:
        clusters = near_clusters(texts, split.near, SEED_OF_CHECK)
        home = {text: clusters[number] for number, text in enumerate(texts)}
    else:
        home = {text: number for number, text in enumerate(texts)}
    for keys, word in (
        ([home[_origin(record, split)] for record in rows], "text" if split.near is None else "near-duplicate text"),
        ([identity(record) for record in rows], "row"),
    ):
        highest: dict[object, int] = {}
        for row, key in enumerate(keys):
            name = part[row]
            if name is not None and (key not in highest or rank[name] > rank[str(part[highest[key]])]):
                highest[key] = row
        for row, key in enumerate(keys):
            name = part[row]
            if name is not None and key in highest and rank[str(part[highest[key]])] > rank[name]:
                leaks.setdefault(row, f"its {word} is in part {part[highest[key]]!r}: {rows[highest[key]].id}")
    return leaks


def _draw(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
