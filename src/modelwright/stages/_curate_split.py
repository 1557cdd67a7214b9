"""Parts of a curated set: rows that belong together stay together, so that nothing in one part is, or nearly is, in another."""

# Shape suffixes: R rows, G groups, T different origins, N bands, S rows in another order.

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Run
from modelwright.methods.steps import HELD_NUMBERS, Numbers, content, identity

if TYPE_CHECKING:
    from modelwright.text import Array

SEED_OF_CHECK = 1
"""Hash functions of the second look for near-duplicates; others than the first, so both miss the same pair only by chance."""


NGRAM, BANDS, BAND_ROWS = 5, 14, 8
"""As near-duplicate removal: word 5-grams, FineWeb's 14 bands of 8 hashes (arXiv:2406.17557)."""
HELD_SETS = 4096
"""Origins whose shingles are remembered while pairs are compared."""


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

    def memory_bytes(self, rows: float) -> float:
        """Of what `Kinship` keeps of rows, and of groups and leaks while they are looked for; measured."""
        numbers = 56 + (2 * (8 * BANDS + 8) if self.near is not None else 0)
        return min(numbers * rows, HELD_NUMBERS) + 150 * rows

    def sizes(self) -> dict[str, float]:
        """Held-out parts and their sizes as declared."""
        return {name: size for name, size in (("validation", self.validation), ("test", self.test)) if size}

    def names(self) -> tuple[str, ...]:
        return ("train", *self.sizes())


class Kinship(NamedTuple):
    """What a split asks of each row, so that no row has to be in memory when it is drawn: some 56 bytes, and with `near` 112 for
    each of the two looks at its origin."""

    split: Split
    seed: int

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        from modelwright.text import Texts, near

        split = self.split
        draws = b"".join(_digest(f"{self.seed}\x00{record.id}", 8) for record in rows)
        origins = [_origin(record, split) for record in rows]
        found: dict[str, Any] = {
            "draw": np.frombuffer(draws, ">u8").astype(np.uint64),
            "row": _digests(map(identity, rows)),
            "origin": _digests(origins),
        }
        if split.group:
            values = [record.meta.get(split.group) for record in rows]
            found["grouped"] = np.array([value is not None for value in values])
            found["group"] = _digests("" if value is None else f"={value}" for value in values)
        if split.near is not None:
            each: dict[str, int] = {}
            which = [each.setdefault(text, len(each)) for text in origins]
            texts = Texts.of(each)
            for name, seed in (("near", 0), ("check", SEED_OF_CHECK)):
                columns = near.signatures(texts, NGRAM, BANDS, BAND_ROWS, seed).columns(f"{name} ")
                found.update({key: column[which] for key, column in columns.items()})
        return found


class Assigned(NamedTuple):
    """The part of each row; None for a row that is left out because it would leak."""

    part: list[str | None]
    leaks: dict[int, str]
    """Row -> what it would have leaked."""


def assign(rows: Sequence[Record], split: Split, seed: int, numbers: Numbers | None = None) -> Assigned:
    """Whole groups go to the held-out parts in random order until those are full; the rest is `train`. `numbers`: as `Kinship`
    gave them for the rows, which are then hardly looked at."""
    import numpy as np

    found = numbers if numbers is not None else Kinship(split, seed).numbers(rows, _ALONE)
    group_R = _groups(rows, split, found)
    size_R = np.bincount(group_R, minlength=len(rows))  # of each group, in the place of its first row
    first_G = np.flatnonzero(size_R)
    names = ["train", *split.sizes()]
    space = {name: round(size * len(rows)) if size < 1 else round(size) for name, size in split.sizes().items()}
    filled = dict.fromkeys(space, 0)
    part_R = np.zeros(len(rows), np.int8)
    for group in first_G[np.lexsort((first_G, found["draw"][first_G]))]:
        size = int(size_R[group])
        name = next((name for name in space if filled[name] + size <= space[name]), None)
        if name is not None:
            filled[name] += size
            part_R[group] = names.index(name)
    for name, count in filled.items():
        if not count:
            raise UserError(
                f"part {name!r} stays empty",
                f"it may hold {space[name]} rows, but rows that belong together are not divided: "
                f"{len(first_G)} groups, the largest has {size_R.max()} of {len(rows)} rows",
                f"give `{name}` more rows, group by a finer key, or raise `near`",
            )
    part: list[str | None] = [names[number] for number in part_R[group_R].tolist()]
    leaks = find_leaks(rows, part, split, found)
    for row in leaks:
        part[row] = None
    return Assigned(part, leaks)


def _groups(rows: Sequence[Record], split: Split, found: Numbers) -> Array:
    """For each row the first row of its group: equal values of the key, equal or nearly equal texts, and chains of both."""
    import numpy as np

    from modelwright.text.forest import Forest

    forest = Forest(len(rows))

    def join(rows_R: Array, others_R: Array) -> None:
        for a, b in zip(rows_R.tolist(), others_R.tolist(), strict=True):
            forest.join(a, b)

    for name in ("row", "origin", *(["group"] if split.group else [])):
        first_R = _firsts(found[name])
        joins_R = first_R != np.arange(len(rows))
        if name == "group":
            joins_R &= found["grouped"]
        (late_R,) = np.nonzero(joins_R)
        join(late_R, first_R[late_R])
    if split.near is not None:
        owner_T, home_T = _near(rows, split, found, "near")
        (late_T,) = np.nonzero(home_T != np.arange(len(home_T)))
        join(owner_T[late_T], owner_T[home_T[late_T]])
    return forest.homes()


def _near(rows: Sequence[Record], split: Split, found: Numbers, look: str) -> tuple[Array, Array]:
    """The first row of each origin, and for each of them the number of the first one nearly like it."""
    import numpy as np

    from modelwright.text import Texts, near

    assert split.near is not None
    owner_T = np.unique(_firsts(found["origin"]))

    @lru_cache(maxsize=HELD_SETS)
    def set_of(text: int) -> Any:
        return near.shingle_set(Texts.of([_origin(rows[int(owner_T[text])], split)]), 0, NGRAM)

    bands = (band_R[owner_T] for band_R in near.bands_of(found, BANDS, f"{look} "))
    return owner_T, near.clusters(bands, found[f"{look} shingles"][owner_T], split.near, set_of).home_D


def find_leaks(
    rows: Sequence[Record], part: Sequence[str | None], split: Split, numbers: Numbers | None = None
) -> dict[int, str]:
    """Rows of a less held-out part whose text is, or nearly is, in a more held-out one; looked for with other hash functions."""
    import numpy as np

    found = numbers if numbers is not None else Kinship(split, 0).numbers(rows, _ALONE)
    rank = {name: index for index, name in enumerate(split.names())}
    rank_R = np.fromiter((-1 if name is None else rank[name] for name in part), np.int8, len(part))
    home_R = _firsts(found["origin"])
    if split.near is not None:
        owner_T, home_T = _near(rows, split, found, "check")
        home_R = owner_T[home_T][np.searchsorted(owner_T, home_R)]
    leaks: dict[int, str] = {}
    for key_R, word in ((home_R, "text" if split.near is None else "near-duplicate text"), (_firsts(found["row"]), "row")):
        highest_R = np.full(len(rows), -1, np.int8)  # rank among the rows of a key, in the place of its first row
        np.maximum.at(highest_R, key_R, rank_R)
        (less_R,) = np.nonzero((rank_R >= 0) & (highest_R[key_R] > rank_R))
        (most_R,) = np.nonzero(np.isin(key_R, key_R[less_R]) & (highest_R[key_R] == rank_R)) if len(less_R) else (less_R,)
        held_out = dict(zip(reversed(key_R[most_R].tolist()), reversed(most_R.tolist()), strict=True))  # the first of a key
        for row in less_R.tolist():
            other = held_out[int(key_R[row])]
            leaks.setdefault(row, f"its {word} is in part {part[other]!r}: {rows[other].id}")
    return leaks


_ALONE = Run(Path(), {}, 0, Log(None))
"""Kinship of rows depends on no run."""


def _origin(record: Record, split: Split) -> str:
    return str(record.meta.get(split.origin) or content(record))


def _digest(text: str, bytes_: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=bytes_).digest()


def _digests(texts: Iterable[str]) -> Array:
    """[R, 2] uint64: equal where texts are."""
    import numpy as np

    return np.frombuffer(b"".join(_digest(text, 16) for text in texts), np.uint64).reshape(-1, 2)


def _firsts(digest_R2: Array) -> Array:
    """For each row the first one with an equal digest."""
    import numpy as np

    order_R = np.lexsort((digest_R2[:, 1], digest_R2[:, 0]))  # stable
    begins_R = np.zeros(len(order_R), bool)
    begins_R[:1] = True
    for column in (0, 1):
        sorted_R = digest_R2[:, column][order_R]
        begins_R[1:] |= sorted_R[1:] != sorted_R[:-1]
    begins_S = np.flatnonzero(begins_R)
    first_R = np.empty(len(order_R), np.int64)
    first_R[order_R] = np.repeat(order_R[begins_S], np.diff(begins_S, append=len(order_R)))
    return first_R
