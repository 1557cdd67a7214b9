"""Jsonl: rows of objects, as JSON Lines, JSON, CSV, TSV or Parquet, in any of the published chat and preference layouts.

Sources: JSON Lines, https://jsonlines.org; RFC 8259 (JSON); RFC 4180 (CSV). The layouts are `methods/formats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Accepts, Input, parse_ref
from modelwright.methods.formats import FORMATS, Format
from modelwright.methods.sources import OnBad, Source, open_records
from modelwright.methods.sources._files import EVERY, ROWS, read


class Jsonl(Source):
    """The rows of a file or folder, or of an earlier stage."""

    kind: Literal["jsonl"] = "jsonl"
    path: Annotated[str, Accepts(("records",))] = Field(examples=["./chats.jsonl"])
    """A file or folder (with a slash, from the recipe's folder), an earlier stage (`pairs:train`), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/*.jsonl"])
    """Glob of the files in a folder; the default takes every file of rows at any depth."""
    format: Annotated[Format, FORMATS] = Field("auto", examples=["messages"])  # type: ignore[assignment]  # validated
    """Row layout. `auto` tells it from the first rows of each file and says in the log what it took and why."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A row that cannot be read: stop with file and line, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def unused(self, context: Spec) -> dict[str, str]:
        if parse_ref(self.path).kind != "stage":
            return {}
        return dict.fromkeys(("match", "format", "on_bad"), "rows of an earlier stage are read as they were written")

    def read(self, log: Log) -> Iterator[Record]:
        return self.rows({}, log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        given = inputs.get(self.path) or Input(self.path, "path", Path(self.path))
        if given.type == "records":
            return open_records(given, log)
        return read(given.path, log, match=self.match, layout=self.format, on_bad=self.on_bad, only=ROWS)
