"""Jsonl: rows of objects, as JSON Lines, JSON, CSV, TSV or Parquet, packed or not, in any of the published layouts.

Sources: JSON Lines, https://jsonlines.org; RFC 8259 (JSON); RFC 4180 (CSV). The layouts are `methods/formats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Accepts, Input, parse_ref
from modelwright.methods.formats import FORMATS, Format
from modelwright.methods.sources import OnBad, Source, open_records
from modelwright.methods.sources._files import EVERY, ROWS, How, Lines, blocks, find, line_pieces, read

_OF_FILES = ("match", "format", "columns", "csv.delimiter", "csv.quote", "csv.header", "on_bad")


class Csv(Spec):
    """The dialect of CSV files."""

    delimiter: Literal["auto", ",", ";", "\t", "|"] = Field("auto", examples=[";"])
    """What stands between cells. `auto`: a tab in `.tsv`, else the commonest of these in the first line."""
    quote: str = Field('"', min_length=1, max_length=1, examples=["'"])
    """What stands around a cell that holds delimiters or line feeds; doubled, it stands for itself. Default: RFC 4180's."""
    header: tuple[str, ...] = Field((), examples=[["prompt", "completion"]])
    """Names of the columns, for files that do not begin with them. Default: they do."""


class Jsonl(Source):
    """The rows of a file or folder, or of an earlier stage."""

    of_rows: ClassVar[bool] = True

    kind: Literal["jsonl"] = "jsonl"
    path: Annotated[str, Accepts(("records",))] = Field(examples=["./chats.jsonl"])
    """A file or folder (with a slash, from the recipe's folder), an earlier stage (`pairs:train`), `hf:org/name@revision`, or
    a remote address (`s3://bucket/folder/`, `https://host/*.jsonl.zst`)."""
    match: str = Field(EVERY, examples=["**/*.jsonl"])
    """Glob of the files in a folder; the default takes every file of rows at any depth."""
    format: Annotated[Format, FORMATS] = Field("auto", examples=["messages"])  # type: ignore[assignment]  # validated
    """Row layout. `auto` tells it from the first rows of each file and says in the log what it took and why."""
    columns: tuple[str, ...] = Field((), examples=[["text"]])
    """Columns to take (of JSON: keys); of Parquet the others are not read from the disk. Default: all, since a format may need
    any."""
    csv: Csv = Field(Csv(), examples=[{"quote": "'"}])
    """How CSV is written. Default: as RFC 4180 has it, the mark between cells told from the first line and said in the log."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A row that cannot be read: stop with file and line, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def unused(self, context: Spec) -> dict[str, str]:
        if parse_ref(self.path).kind != "stage":
            return {}
        return dict.fromkeys(_OF_FILES, "rows of an earlier stage are read as they were written")

    def read(self, log: Log) -> Iterator[Record]:
        return self.rows({}, log)

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        given = inputs.get(self.path) or Input(self.path, "path", Path(self.path))
        if given.type == "records":
            return open_records(given, log)
        return read(given.path, log, match=self.match, layout=self.format, on_bad=self.on_bad, only=ROWS, how=self._how())

    def found(self, path: Path) -> list[Path]:
        return find(path, self.match, ROWS)

    def _how(self) -> How:
        delimiter = "" if self.csv.delimiter == "auto" else self.csv.delimiter
        return How(self.columns, delimiter, self.csv.quote, self.csv.header)

    def pieces(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Lines] | None:
        given = inputs.get(self.path) or Input(self.path, "path", Path(self.path))
        if given.type != "records":
            return line_pieces(given.path, log, self.match, self.format, self.on_bad, self._how())
        file = given.path / f"{given.part or 'all'}.jsonl"
        return blocks(file, file.name, None) if file.stat().st_size else None

    def of_piece(self, piece: Lines, log: Log) -> Iterator[Record]:
        return piece.records(log, self.on_bad)
