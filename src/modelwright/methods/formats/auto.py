"""Auto: looks at the rows and takes the one format that all of them fit.

Source: the layouts in this folder, each citing its own, most of them the types of https://huggingface.co/docs/trl/dataset_formats;
their keys tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.methods.formats import Format, detect


class Auto(Format):
    """Tells a file's layout from its first rows."""

    version: ClassVar[int] = 2

    kind: Literal["auto"] = "auto"
    rows: int = Field(50, ge=1, le=50, examples=[1])
    """Rows to look at; more meet optional keys that come late. Default: all that are held back before reading goes on."""

    def fits(self, row: dict[str, Any]) -> str | None:
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        return detect([row], name)[0].record(row, name)

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        return detect([row], name)[0].records(row, name)

    def settle(self, rows: Sequence[dict[str, Any]], name: str, odd: float = 0) -> tuple[Format, str]:
        return detect(rows[: self.rows], name, odd)
