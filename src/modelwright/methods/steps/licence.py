"""Licence: keeps rows whose licence is on a list.

Sources: SPDX licence identifiers, https://spdx.org/licenses/; the rule of The Stack, Kocetkov et al. 2022, arXiv:2211.15533,
section 3 (permissively licensed files only). The default list is the permissive ones that The Stack's appendix names first,
and the PSF's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.core.stage import Run
from modelwright.methods.steps import Drop, Step

PERMISSIVE = (
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unlicense",
    "CC0-1.0",
    "PSF-2.0",
    "Python-2.0",
    "Python-2.0.1",
)


class Licence(Step):
    """Looks at `meta.licence`, as a source gives it."""

    bytes_per_s: ClassVar[float] = 5e9

    kind: Literal["licence"] = "licence"
    keep: tuple[str, ...] = Field(PERMISSIVE, min_length=1, examples=[("MIT",)])
    """Licences that may stay, as SPDX identifiers, in any case. A longer list keeps more. Default: permissive ones."""
    unknown: Literal["drop", "keep"] = Field("drop", examples=["keep"])
    """What happens to a row that names no licence. Default: it goes, because no licence means no permission."""
    key: str = Field("licence", min_length=1, examples=["license"])
    """Key of `meta` that holds the licence. Default: our own sources'."""

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Drop]:
        allowed = {name.casefold() for name in self.keep}
        for record in rows:
            name = str(record.meta.get(self.key) or "").strip()
            if not name:
                yield record if self.unknown == "keep" else Drop(record, "licence: unknown", f"no {self.key!r} in its metadata")
            elif name.casefold() in allowed:
                yield record
            else:
                yield Drop(record, "licence: not on the list", name)
