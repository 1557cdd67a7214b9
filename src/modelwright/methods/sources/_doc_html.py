"""HTML to text, for chapters of books and mails: everything that a reader would see, nothing judged.

Pages of the web have a source of their own, which finds the main content.

Source: https://html.spec.whatwg.org/multipage/rendering.html (which elements are blocks), read by Python's html.parser.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

_UNSEEN = frozenset(("script", "style", "head", "template", "title", "noscript"))
_BLOCKS = frozenset(
    "address article aside blockquote body dd details dialog div dl dt fieldset figcaption figure footer form header hr legend li"
    " main nav ol p pre section summary table tbody tfoot thead tr ul h1 h2 h3 h4 h5 h6".split()
)
_APART = frozenset("blockquote dl figure ol p pre section table ul h1 h2 h3 h4 h5 h6".split())
"""Blocks with an empty line around them."""


class _Reader(HTMLParser):
    def __init__(self, quote: str) -> None:
        super().__init__(convert_charrefs=True)
        self.quote = quote
        self.lines: list[str] = [""]
        self.unseen = ""
        self.quoted = self.kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.unseen:
            return
        if tag in _UNSEEN:
            self.unseen = tag
        elif tag == "br":
            self._end()
        elif tag in _BLOCKS:
            self._block(tag)
            self.lines[-1] += "- " if tag == "li" else ""
        elif tag in ("td", "th") and self.lines[-1].strip():
            self.lines[-1] += "\t"
        self.quoted += tag == "blockquote"
        self.kept += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:  # `<title/>` of XHTML hides nothing
            self.handle_starttag(tag, attrs)
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in (self.unseen, "head", "body" if self.unseen else ""):
            self.unseen = ""
        elif tag in _BLOCKS and not self.unseen:
            self._block(tag)
            self.quoted = max(self.quoted - (tag == "blockquote"), 0)
            self.kept = max(self.kept - (tag == "pre"), 0)

    def handle_data(self, data: str) -> None:
        if self.unseen:
            return
        if self.kept:
            first, *rest = data.splitlines() or [""]
            self.lines[-1] += first
            for line in rest:
                self._end()
                self.lines[-1] += line
            return
        text = re.sub(r"[ \t\r\n\f]+", " ", data)
        before = self.lines[-1]
        self.lines[-1] += text.lstrip(" ") if not before or before[-1] in " \t" else text

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # a name that it does not know: what browsers take for a comment
            return self.parse_bogus_comment(i)

    def _end(self) -> None:
        if self.quoted and self.quote:
            self.lines[-1] = self.quote * self.quoted + self.lines[-1]
        self.lines[-1] = self.lines[-1].rstrip()
        self.lines.append("")

    def _block(self, tag: str) -> None:
        if self.lines[-1].strip(" -"):
            self._end()
        if tag in _APART and len(self.lines) > 1 and self.lines[-2]:
            self.lines.append("")


def html_text(text: str, quote: str = "") -> str:
    """The text of a page or of a piece of one. `quote` stands before each line of a quotation, once for each depth."""
    reader = _Reader(quote)
    reader.feed(text)
    reader.close()
    reader._end()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(reader.lines)).strip()
