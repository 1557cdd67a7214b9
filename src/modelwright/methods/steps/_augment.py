"""What steps share that make changed copies of rows, without a model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.spec import kind_of
from modelwright.core.stage import Run
from modelwright.methods.steps import Cut, Made, Step, is_python
from modelwright.methods.steps._rows import draw


class Augment(Step):
    """Changes documents, and of chats and preferences what the user says; answers stay. Python documents pass. A copy is called
    `id~kind1` and has in `meta` its `document`, the id of the row that it was made from, which has it too (so a split can keep
    them together by `group: document`), and `augmented`, the kind. Where nothing in a row can be changed, no copy is made."""

    random: ClassVar[bool] = True
    judges: ClassVar[bool] = False
    bytes_per_s: ClassVar[float] = 5e6
    first_alone: ClassVar[bool] = False
    """Whether only the first thing that a user says is changed, and no document."""

    share: float = Field(0.3, gt=0, le=1, examples=[1.0])
    """Part of the rows (0 to 1) that is changed; raising it changes more. Default: enough to be met in each batch, and most of
    what is learned from is as people wrote it."""
    how: Literal["add", "replace"] = Field("add", examples=["replace"])
    """add: the row stays, and copies are made; replace: the changed row takes its place. Default: nothing is lost."""
    copies: int = Field(1, ge=1, le=20, examples=[3])
    """Copies of a row, each changed in its own way; more of them say the same again. Default: one."""

    def keeps(self, rows: float | None) -> float:
        return 1 + self.share * self.copies if self.how == "add" else 1.0

    def unused(self, context: object) -> dict[str, str]:
        return {"copies": "with `how: replace` a row becomes one row"} if self.how == "replace" else {}

    def change(self, text: str, drawn: Callable[[], float]) -> str:
        """The text changed, or as it is. `drawn` gives numbers from 0 up to 1."""
        raise NotImplementedError

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Made]:
        kind = kind_of(self)
        for record in rows:
            if is_python(record) or draw(run.seed, f"{kind}\x00{record.id}") >= self.share:
                yield record
                continue
            copies = self.copies if self.how == "add" else 1
            made = [copy for number in range(copies) if (copy := self._copy(record, kind, number + 1, run.seed))]
            if self.how == "replace":
                yield Cut(replace(made[0], id=record.id), f"{kind}: changed", 1, 0) if made else record
                continue
            yield replace(record, meta={"document": record.id, **record.meta}) if made else record
            yield from map(Made, made)

    def _copy(self, record: Record, kind: str, number: int, seed: int) -> Record | None:
        name = f"{record.id}~{kind}{number}"
        digest = hashlib.blake2b(f"{seed}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        drawn = random.Random(int.from_bytes(digest, "big")).random
        text = self.change(record.text, drawn) if not self.first_alone else record.text
        said = list(record.messages)
        asked = [at for at, turn in enumerate(said) if turn.get("role") == "user" and isinstance(turn.get("content"), str)]
        for at in asked[:1] if self.first_alone else asked:
            said[at] = {**said[at], "content": self.change(said[at]["content"], drawn)}
        if text == record.text and said == record.messages:
            return None
        meta = {"document": record.id, **record.meta, "augmented": kind}
        return replace(record, id=name, text=text, messages=said, meta=meta)
