"""Text: plain text files as documents.

Source: none to cite, files as they are; UTF-8 as in RFC 3629, an empty line between paragraphs as in CommonMark 0.31 section 4.8
(https://spec.commonmark.org/0.31.2/#paragraphs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Accepts
from modelwright.methods.sources import OnBad, files_only
from modelwright.methods.sources._files import EVERY, TEXTS, ZIP, Files, parts_of, read_text

_BLANK = re.compile(r"\n[ \t]*\n\s*")


class Text(Files):
    """`.txt`, `.md` and `.rst` files, packed or in zip archives, too."""

    suffixes: ClassVar[tuple[str, ...]] = TEXTS + ZIP

    kind: Literal["text"] = "text"
    path: Annotated[str, Accepts(("records",)), AfterValidator(files_only)] = Field(examples=["./notes/"])
    """A file or folder (with a slash; it starts at the recipe's folder), or `hf:org/name@revision`."""
    match: str = Field(EVERY, examples=["**/*.md"])
    """Glob of the files in a folder; the default takes every text file at any depth."""
    per: Literal["file", "paragraph", "line"] = Field("file", examples=["paragraph"])
    """What one document is; smaller pieces make more and shorter rows. Default: a file, the unit its author chose."""
    on_bad: OnBad = Field("error", examples=["drop"])
    """A file that is not UTF-8 text: stop and name it, or leave it out and count it. Default: stop, to lose nothing unseen."""

    def of_file(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        for part, called in parts_of(file, name, TEXTS, log, self.on_bad):
            for record in read_text(part, called, log, self.on_bad):
                yield from self._pieces(record)

    def _pieces(self, record: Record) -> Iterator[Record]:
        if self.per == "file":
            yield record
            return
        pieces = _BLANK.split(record.text) if self.per == "paragraph" else record.text.splitlines()
        for number, piece in enumerate(pieces, 1):
            if piece.strip():
                yield Record(f"{record.id}:{number}", text=piece.strip("\n"), meta=record.meta)
