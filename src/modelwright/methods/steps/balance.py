"""Balance: evens out how much of the text each language, domain or source has, by leaving rows out.

Sources: shares by temperature, n ** (1 / temperature): Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning
at Scale", arXiv:1911.02116, section 3.1, and Xue et al. 2021, "mT5", arXiv:2010.11934, section 3.2 (exponent 0.3 both). They
repeat small groups; here large ones lose rows, and `data` of a training, with `epochs` for each source, repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Numbers, Why, size_of
from modelwright.methods.steps._rows import draw, group_of


class Balance(Choosing):
    """Groups are the values of a key of `meta`; rows without it are a group, too. No group gains a row, and one at least keeps
    all; which rows of another go is drawn, the same ones whatever their order."""

    random: ClassVar[bool] = True
    judges: ClassVar[bool] = False
    bytes_per_s: ClassVar[float] = 1e9
    advice: ClassVar[Advice] = Advice(
        "one language, site or sort of question outweighs the others", "the groups are as frequent as they will be in use"
    )

    kind: Literal["balance"] = "balance"
    by: str = Field("lang", min_length=1, examples=["licence"])
    """Key of `meta` that names a row's group. Default: what the step `language` writes."""
    temperature: float = Field(3.0, ge=1, le=100, examples=[1.5])
    """1 leaves the groups as they are; raising it makes them more equal. A group's share is its size to the power of
    1 / temperature. Default: an exponent of a third, near the 0.3 of XLM-R and mT5."""
    shares: dict[str, float] = Field({}, examples=[{"MIT": 1.0, "PSF-2.0": 2.0}])
    """Wanted parts of the text by group, in any unit (they are divided by their sum); groups that are not named go. Default: by
    `temperature`."""
    count: Literal["bytes", "rows"] = Field("bytes", examples=["rows"])
    """What a group's size and share are counted in. Default: bytes, near to what will be trained on."""

    @model_validator(mode="after")
    def _positive(self) -> Balance:
        if any(share <= 0 for share in self.shares.values()):
            raise ValueError("`shares` are positive numbers; leave a group out to drop it")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        return {"temperature": "`shares` already say how much of each group stays"} if self.shares else {}

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        return {
            "group": np.array([group_of(record, self.by) for record in rows], object),
            "size": np.array([size_of(record) if self.count == "bytes" else 1 for record in rows]),
            "draw": np.array([draw(run.seed, record.id) for record in rows]),
        }

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return 100 * rows  # the names of groups are Python's

    def chooser(self, run: Run) -> Choice:
        import numpy as np

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            group_R, size_R, draw_R = numbers["group"], numbers["size"], numbers["draw"]
            names, of_R = np.unique(group_R, return_inverse=True)
            total = dict(zip(names.tolist(), np.bincount(of_R, size_R).tolist(), strict=True))
            stays = self._stays(total)
            told = ", ".join(f"{name or 'none'} {stays.get(name, 0.0):.0%} of {n:,.0f}" for name, n in sorted(total.items()))
            run.log.note(f"balance by {self.by}: of the {self.count} of each group stay {told}")
            gone = {}
            for number, name in enumerate(names.tolist()):
                (place,) = np.nonzero(of_R == number)
                place = place[np.argsort(draw_R[place], kind="stable")]
                room = stays.get(name, 0.0) * total[name] * (1 + 1e-9)
                why = Why(f"balance: {name or 'none'} has more than its share" if name in stays else "balance: not in `shares`")
                gone.update(dict.fromkeys(place[np.cumsum(size_R[place]) > room].tolist(), why))
            return gone

        return choose

    def _stays(self, total: Mapping[str, float]) -> dict[str, float]:
        """Of each group the part that stays (0 to 1); the one that is shortest of its share keeps all."""
        wanted = self.shares or {name: size ** (1 / self.temperature) for name, size in total.items() if size}
        if missing := set(wanted) - set(total):
            raise UserError(
                f"no row has {', '.join(sorted(map(repr, missing)))} as its `meta.{self.by}`",
                f"there are {', '.join(sorted(name or '(none)' for name in total)) or 'no rows'}",
                "correct `shares`, or take the group out",
            )
        most = min((total[name] / share for name, share in wanted.items()), default=0.0)
        return {name: most * share / total[name] if total[name] else 0.0 for name, share in wanted.items()}
