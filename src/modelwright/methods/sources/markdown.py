"""Markdown: `.md` files as documents, their front matter as facts about them.

Sources: CommonMark 0.31.2 (https://spec.commonmark.org/0.31.2/) for headings, fences, links and emphasis; front matter as in
Jekyll (https://jekyllrb.com/docs/front-matter/): YAML 1.1 between two lines of `---`, read by PyYAML's safe loader.
"""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import yaml
from pydantic import Field

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.sources._doc_files import Documents, Unreadable
from modelwright.methods.sources._files import read_text

_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_NO_TITLE = re.compile(r"[ \t]*$|[ \t]*(?:[>|#]|[-+*][ \t]|\d+[.)][ \t])| {4}")
"""Lines that `---` makes no heading of: it is a rule below them."""


class Markdown(Documents):
    """One document a file or a section."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown")

    kind: Literal["markdown"] = "markdown"
    per: Literal["file", "section"] = Field("file", examples=["section"])
    """What one document is; a section is a heading with what stands below it up to the next one, and `meta.headings` holds the
    titles above it. Sections make more and shorter rows. Default: a file, the unit its author chose."""
    plain: bool = Field(False, examples=[True])
    """Take the marks away: emphasis, links' addresses, fences, tags, tables' lines; list marks stay. Default: leave them, because
    a model that is to answer in Markdown must have read some."""

    @property
    def bytes_per_s(self) -> float:  # type: ignore[override]
        """Measured on a 2-core machine."""
        return 2.7e6 if self.plain else 14e6 if self.per == "section" else 100e6

    def records(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        front: dict[str, Any] = {}
        pieces = rows = 0
        for pieces, record in enumerate(read_text(file, name, log, self.on_bad), 1):
            text = record.text
            if pieces == 1:
                front, text = front_matter(text)
            for part, section in enumerate(sections(text), 1) if self.per == "section" else [(0, whole(text))]:
                body = to_plain(section.text) if self.plain else section.text
                if body.strip():
                    rows += 1
                    meta = {**front, "path": name, "headings": section.headings}
                    yield Record(f"{record.id}:{part}" if part else record.id, text=body.strip("\r\n") + "\n", meta=meta)
        if pieces and not rows:
            raise Unreadable("no text", "it is front matter or marks alone")


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    """(facts, the rest); no facts where the first block between rules is no mapping. Unreadable where it is broken YAML."""
    found = _FRONT.match(text)
    if not found:
        return {}, text
    try:
        for token in yaml.scan(found[1], yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):  # a few lines of them stand for gigabytes
                raise Unreadable("broken front matter", f"aliases (`*{token.value}`) are not read")
        tree = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 40th of May
        raise Unreadable("broken front matter", " ".join(str(error).split())) from None
    return (_jsonable(tree), text[found.end() :]) if isinstance(tree, dict) else ({}, text)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    return value if isinstance(value, (str, bool, int, float, type(None))) else str(value)


# --- sections -----------------------------------------------------------------------------------------


class Section(NamedTuple):
    """A heading with what stands below it."""

    headings: list[str]
    """Titles from the outermost to its own; empty before the first heading."""
    text: str


class Line(NamedTuple):
    """A line and what it is."""

    text: str
    sort: Literal["text", "code", "fence", "heading", "underline"]
    level: int = 0
    """Of a heading, 1 to 6."""
    title: str = ""


def lines(text: str) -> Iterator[Line]:
    """Every line; nothing in a fence is a heading."""
    fence = ""
    raw = text.splitlines()
    underlined = False
    for number, line in enumerate(raw):
        mark = _FENCE.match(line)
        if underlined:
            underlined = False
            yield Line(line, "underline")
        elif fence:
            closes = mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line[mark.end() :].strip()
            fence = "" if closes else fence
            yield Line(line, "fence" if closes else "code")
        elif mark:
            fence = mark[1]
            yield Line(line, "fence")
        elif found := _ATX.match(line):
            yield Line(line, "heading", len(found[1]), (found[2] or "").strip())
        elif not _NO_TITLE.match(line) and (below := _SETEXT.match(raw[number + 1] if number + 1 < len(raw) else "")):
            underlined = True
            yield Line(line, "heading", 1 if below[1][0] == "=" else 2, line.strip())
        else:
            yield Line(line, "text")


def whole(text: str) -> Section:
    """The text as one; its headings are those of the first heading."""
    title = next((line.title for line in lines(text) if line.sort == "heading"), "")
    return Section([inline(title)] if title else [], text)


def sections(text: str) -> Iterator[Section]:
    above: list[tuple[int, str]] = []
    body: list[str] = []
    for line in lines(text):
        if line.sort == "heading":
            yield Section([title for _, title in above], "\n".join(body))
            above = [pair for pair in above if pair[0] < line.level] + [(line.level, inline(line.title))]
            body = []
        body.append(line.text)
    yield Section([title for _, title in above], "\n".join(body))


# --- plain text ---------------------------------------------------------------------------------------

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CODE = re.compile(r"(?<!`)(`{1,8})(?!`)(.{1,2000}?)(?<!`)\1(?!`)")
_LINK = re.compile(r"!?\[([^\[\]]{0,1000})\](?:\([^()]{0,500}(?:\([^()]{0,500}\)[^()]{0,500})?\)|\[[^\[\]]{0,500}\])")
_AUTOLINK = re.compile(r"<((?:https?|ftp|mailto):[^<>\s]{1,1000})>")
_TAG = re.compile(r"</?[A-Za-z][\w-]{0,50}(?:\s[^<>]{0,1000})?/?>")
_DEFINITION = re.compile(r" {0,3}\[[^\]]{1,500}\]:\s*\S")
_MARKS = (
    re.compile(r"(\*{1,3})(?=[^\s*])(.{1,1000}?)(?<=[^\s*])\1"),
    re.compile(r"(?<!\w)(_{1,3})(?=[^\s_])(.{1,1000}?)(?<=[^\s_])\1(?!\w)"),
    re.compile(r"(~~)(?=\S)(.{1,1000}?)(?<=\S)\1"),
)
"""Their spans are bounded: without that, a long line of lone asterisks would take the square of its length."""
_ESCAPE = re.compile(r"\\([!-/:-@\[-`{-~])")
_QUOTE = re.compile(r"\A {0,3}(?:> ?)+")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_HELD = "\ue000{}\ue001"
"""Stands for a piece that no mark may change; private characters of Unicode, which text does not hold."""
_HELD_FOUND = re.compile("\ue000(\\d+)\ue001")


def inline(text: str) -> str:
    """One line without marks."""
    held: list[str] = []

    def hold(piece: str) -> str:
        held.append(piece)
        return _HELD.format(len(held) - 1)

    text = _CODE.sub(lambda m: hold(m[2].strip() or m[2]), text)
    text = _ESCAPE.sub(lambda m: hold(m[1]), text)
    text = _AUTOLINK.sub(lambda m: hold(m[1]), text)
    text = _TAG.sub("", _LINK.sub(r"\1", _LINK.sub(r"\1", text)))  # twice: a picture may stand in a link
    for mark in _MARKS:
        text = mark.sub(r"\2", text)
    text = html.unescape(text)
    return _HELD_FOUND.sub(lambda m: held[int(m[1])] if int(m[1]) < len(held) else m[0], text)


def to_plain(text: str) -> str:
    """Text without Markdown's marks. Code in fences stays as it is."""
    out: list[str] = []
    for line in lines(_COMMENT.sub("", text)):
        if line.sort == "code":
            out.append(line.text)
        elif line.sort == "heading":
            out.append(inline(line.title))
        elif line.sort in ("fence", "underline") or _RULE.match(line.text) or _DEFINITION.match(line.text):
            continue
        elif "|" in line.text and _TABLE_RULE.match(line.text):
            continue
        else:
            body = _QUOTE.sub("", line.text).removesuffix("\\").rstrip()
            if body.lstrip().startswith("|"):
                body = "\t".join(cell.strip() for cell in body.strip().strip("|").split("|"))
            out.append(inline(body))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))
