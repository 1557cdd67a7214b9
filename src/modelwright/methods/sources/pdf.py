"""PDF: the text of each page, joined.

Source: ISO 32000-2:2020, section 9.10 (extraction of text), as pypdf reads it (https://pypdf.readthedocs.io). Running headers and
footers: lines that stand at the edges of many pages nearby, with their numbers taken as equal, after Lin 2003,
"Header and footer extraction by page association", doi:10.1117/12.472833, without its use of positions.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.errors import missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.sources._doc_files import Documents, Unreadable

EDGE_LINES = 2
"""Lines at the top and at the bottom of a page that may be a running header or footer: title and page number.

Never more than half of a page."""
END_BYTES = 1 << 16
"""Where the mark of the end must stand; other readers look through the last 1024 bytes."""
NEAR_PAGES = 4
"""Pages before and after one that it is compared with: a chapter has its own header, and left and right pages differ."""
_BROKEN_WORD = re.compile(r"(?<=[^\W\d_])[-\u00ad\u2010][ \t]*\n\s*(?=[^\W\d_])")
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b", re.IGNORECASE)


class Pdf(Documents):
    """One document a file. A page that is only a picture has no text; nothing is recognised in it."""

    advice: ClassVar[Advice] = Advice(
        "a text exists as PDF only: papers, reports, manuals",
        "its source is at hand (HTML, Markdown, TeX): a PDF keeps no paragraphs, and tables and formulas come out broken",
    )
    bytes_per_s: ClassVar[float] = 0.5e6
    """Measured on pages of text without compression on a 2-core machine; pictures make a file faster, compression slower."""
    suffixes: ClassVar[tuple[str, ...]] = (".pdf",)

    kind: Literal["pdf"] = "pdf"
    join_words: bool = Field(True)
    """Put words together that a hyphen divides at the end of a line. A hyphen that belongs there (`well-known`) is lost, too,
    where the next letter is small. Default: on, because halves of words spoil a vocabulary."""
    running_frac: float = Field(0.4, ge=0, le=1, examples=[1.0])
    """A line at the edge of more than this share of the eight nearest pages is a running header or footer and is taken away
    (counted in `meta.running_lines`); 1 keeps all. Default: a little less than half, because left and right pages alternate."""
    max_pages: int = Field(5000, ge=1, examples=[2])
    """A file with more pages is left out as unreadable. Raise it for longer ones. Default: no book has more."""

    def records(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        found = _read(file, self.max_pages)
        if not any(page.strip() for page in found.pages):
            raise Unreadable(
                "no text", f"{len(found.pages)} pages without any, probably scanned; recognise their text first (OCR)"
            )
        pages = [[line.rstrip() for line in page.splitlines()] for page in found.pages]
        full = [lines for lines in pages if any(lines)]
        bodies = without_running(full, self.running_frac)
        text = "\n\n".join("\n".join(lines).strip("\n") for lines in bodies)
        if self.join_words:
            text = _BROKEN_WORD.sub(_joined, text)
        removed = sum(map(len, full)) - sum(map(len, bodies))
        empty = len(pages) - len(full)
        meta = {"path": name, "pages": len(pages), "pages_without_text": empty, "running_lines": removed, "title": found.title}
        yield Record(name, text=text.strip() + "\n", meta=meta)


def _joined(found: re.Match[str]) -> str:
    return "" if found.string[found.end()].islower() else found[0]


class _Read(NamedTuple):
    pages: list[str]
    title: str


def _read(file: Path, max_pages: int) -> _Read:
    try:
        import pypdf
    except ImportError:
        raise missing_extra("pypdf", "docs", f"{file.name} (PDF)") from None
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of every oddity that it could mend
    size_bytes = file.stat().st_size
    if not size_bytes:
        raise Unreadable("empty file", "it has no byte")
    try:
        with file.open("rb") as stream:
            stream.seek(-min(size_bytes, END_BYTES), 2)
            if b"%%EOF" not in stream.read():  # pypdf would look for it line by line through all of the file
                raise Unreadable(
                    "damaged PDF", "its end is missing (no %%EOF): cut off, or another kind of file under this suffix"
                )
            reader = pypdf.PdfReader(stream)
            if reader.is_encrypted and not _opens(reader):
                raise Unreadable("encrypted", "it opens with a password only; save it without one")
            if len(reader.pages) > max_pages:
                raise Unreadable("too many pages", f"{len(reader.pages)}, and `max_pages` is {max_pages}")
            pages = [_clean(page.extract_text()) for page in reader.pages]
            title = reader.metadata.title if reader.metadata else None
            return _Read(pages, _clean(str(title or "")).strip())
    except (Unreadable, OSError):
        raise
    except Exception as error:  # of a damaged file pypdf raises whatever its parts do; there is no common base
        raise Unreadable("damaged PDF", f"{type(error).__name__}: {error}".splitlines()[0]) from None


def _opens(reader: Any) -> bool:
    """Whether the empty password opens it: such files only forbid printing or copying in some programs."""
    from pypdf.errors import DependencyError

    try:
        return bool(reader.decrypt(""))
    except DependencyError:  # AES, for which pypdf wants a package of its own
        return False


def _clean(text: str) -> str:
    """Fonts may name halves of surrogate pairs, which no file can store, and NUL."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


# --- running headers and footers ------------------------------------------------------------------------


def without_running(pages: list[list[str]], share: float) -> list[list[str]]:
    """The pages without lines that stand at the edges of more than `share` of the pages near them, and of two at least."""
    edges = [_edges(lines) for lines in pages]
    out: list[list[str]] = []
    for page, lines in enumerate(pages):
        near = edges[max(page - NEAR_PAGES, 0) : page] + edges[page + 1 : page + 1 + NEAR_PAGES]
        counts = Counter(pattern for other in near for pattern in set(other.values()))
        running = {pattern for pattern, count in counts.items() if count >= 2 and count > share * len(near)}
        first = len(lines) // 2 if page == 0 else 0  # what runs above the others is the title of the first
        out.append([line for number, line in enumerate(lines) if number < first or edges[page].get(number) not in running])
    return out


def _edges(lines: list[str]) -> dict[int, str]:
    """The number and pattern of each line at the top and the bottom of a page."""
    filled = [number for number, line in enumerate(lines) if line.strip()]
    count = min(EDGE_LINES, len(filled) // 4)
    edges = filled[:count] + filled[len(filled) - count :]
    return {number: _NUMBER.sub("0", " ".join(lines[number].split())) for number in edges}
