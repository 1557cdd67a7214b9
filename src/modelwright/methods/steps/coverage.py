"""Coverage: how much of the text each language, site, licence or source has; stops where too little of one is there.

Sources: the composition table of Gao et al. 2020, "The Pile", arXiv:2101.00027, table 1; Gebru et al. 2021, "Datasheets for
Datasets", arXiv:1803.09010, section 3.2 (composition).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.core.stage import Run
from modelwright.methods.steps import Choice, Choosing, Numbers, Why, size_of
from modelwright.methods.steps._rows import Names, group_of

SHOWN = 50
"""Groups of a key that are told one by one, the largest ones; the rest are one line."""


class Coverage(Choosing):
    """Drops nothing. What is counted, of the rows that come to it, is told and stands in the run's events as `coverage`."""

    bytes_per_s: ClassVar[float] = 1e9
    advice: ClassVar[Advice] = Advice("a model for several languages, fields or sorts of question", "rows carry no such key")

    kind: Literal["coverage"] = "coverage"
    by: Names = Field(("lang",), min_length=1, examples=[["licence"]])
    """Keys of `meta`, each counted for itself; `site` is the host of `meta.url`. Default: what the step `language` writes."""
    least: dict[str, float] = Field({}, examples=[{"licence=MIT": 0.9}])
    """Least part of the bytes (0 to 1) by `key=value`; with less the run stops. Default: none."""

    @field_validator("least")
    @classmethod
    def _parts(cls, value: dict[str, float]) -> dict[str, float]:
        for name, share in value.items():
            if "=" not in name or not 0 < share <= 1:
                raise ValueError(f"{name!r}: {share:g} is not `key=value: part`, with a part above 0 and up to 1")
        return value

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        keys = dict.fromkeys((*self.by, *(name.partition("=")[0] for name in self.least)))
        groups: Numbers = {f"={key}": np.array([group_of(record, key) for record in rows], object) for key in keys}
        return {**groups, "bytes": np.array([size_of(record) for record in rows])}

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return 90 * len(self.by) * rows  # the names of groups are Python's

    def chooser(self, run: Run) -> Choice:
        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            share: dict[str, float] = {}
            for name, group_R in numbers.items():
                if name != "bytes":
                    found = list(_composition(group_R, numbers["bytes"]))
                    share.update((f"{name[1:]}={one['value']}", one["share"]) for one in found)
                    _tell(run, name[1:], found)
            for name, least in self.least.items():
                if share.get(name, 0.0) < least:
                    raise UserError(
                        f"{share.get(name, 0.0):.2%} of the text has {name}",
                        f"the share that `coverage` lets pass is {least:.2%}",
                        "add a source that has more of it, loosen the steps before, or lower `least`",
                    )
            return {}

        return choose


def _composition(group_R: Any, bytes_R: Any) -> Iterator[dict[str, Any]]:
    """Groups, the largest first."""
    import numpy as np

    names, of_R = np.unique(group_R, return_inverse=True)
    rows, total = np.bincount(of_R), np.bincount(of_R, bytes_R)
    for number in np.argsort(-total, kind="stable").tolist():
        share = float(total[number] / max(total.sum(), 1))
        yield {"value": names[number], "rows": int(rows[number]), "bytes": int(total[number]), "share": round(share, 6)}


def _tell(run: Run, key: str, found: Sequence[dict[str, Any]]) -> None:
    rest = found[SHOWN:]
    more = {"groups": len(rest), "rows": sum(one["rows"] for one in rest), "bytes": sum(one["bytes"] for one in rest)}
    run.log.event("coverage", by=key, groups=list(found[:SHOWN]), rest=more)
    largest = ", ".join(f"{one['value'] or '(none)'} {one['share']:.1%}" for one in found[:8])
    run.log.note(f"coverage by {key}: {largest}" + (f", and {len(found) - 8} more" if len(found) > 8 else ""))
