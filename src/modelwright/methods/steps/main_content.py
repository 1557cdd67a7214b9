"""Main content: the text of a web page without its navigation, side bars and footers.

Sources: Resiliparse, Bevendorff et al. 2018, doi:10.1007/978-3-319-76941-7_83, its extractor after the comparison of Bevendorff
et al. 2023, doi:10.1145/3539618.3591920; Trafilatura, Barbaresi 2021, doi:10.18653/v1/2021.acl-demo.15, set for precision and
without comments as FineWeb does (Penedo et al. 2024, arXiv:2406.17557, section 3.2). That the slow one looks only at what the
fast one has lost is ours, and so are both bounds: on labelled pages nothing else told where the slow one is the better.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.errors import missing_extra
from modelwright.core.record import Record
from modelwright.core.spec import Spec
from modelwright.core.stage import Run
from modelwright.methods.steps import Cut, Drop, Judge, Step

_PAGE = re.compile(
    r"\s*(?:<\?xml[^>]{0,200}>\s*)?(?:<!--.{0,2000}?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_LINK = re.compile(r"<a\s[^<>]*>([^<]*(?:<(?!/?a\b)[^<]*)*)</a>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
MAX_DEPTH, MAX_ATTRIBUTES = 512, 2000
"""Beyond, an extractor's time grows with the square: seconds to hours for one page. Browsers, too, stop at 512 elements."""
_DEEP = ">".join(["*"] * MAX_DEPTH) + ":first-child"
LONG_TAG = 8000
"""Characters of a tag whose attributes are counted."""
_BETWEEN = re.compile(r"[\s/]+")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_BESIDE = "body>p+ul,body>*>p+ul,body>*>*>p+ul"
"""Lists that resiliparse takes for menus, for being so near to the body, and that the paragraph before them shows to be text."""
LINE_CHARS = 50
"""Lines of an index are shorter on average; paragraphs, with the empty lines between them, are longer."""
PARAGRAPH_CHARS = 200
"""Less text outside links is no article that could have been lost. From mC4's least paragraph, arXiv:2010.11934, section 3.1."""


class _Main(NamedTuple):
    text: str
    lost: str = ""
    """Why it may not be the main text."""
    links: str = ""
    """Why it is no text but an index of other pages."""


class MainContent(Step):
    """Rows that are web pages (`meta.media` is text/html, or the text begins as HTML) become their main text, without comments
    and alternative texts of pictures; others pass.

    A page is in doubt where its main text is shorter than `min_share` of all text that it shows outside links, or is links by
    more than `max_link_share`, an index of other pages.
    """

    bytes_per_s: ClassVar[float] = 15e6

    version: ClassVar[int] = 2
    kind: Literal["main_content"] = "main_content"
    doubt: Literal["trafilatura", "keep", "drop"] = Field("trafilatura", examples=["drop"])
    """What becomes of a page in doubt: trafilatura looks for a longer text (10 times slower; an index stays as it is, since it
    holds no other text), the first text stays, or the page goes. Default: trafilatura, which FineWeb takes for every page."""
    min_share: float = Field(0.03, ge=0, le=1, examples=[0.9])
    """Characters of the main text beside those of all visible text outside links; raising it doubts more. Default: ours; of 662
    labelled pages the one below it was lost, and on those above it trafilatura was on average no better."""
    max_link_share: float = Field(0.5, ge=0, le=1, examples=[0.0])
    """Share of the main text in lines that are links, where lines are short; lowering it calls more pages an index. Default:
    ours, a page that is mostly links."""

    def unused(self, context: Spec) -> dict[str, str]:
        return dict.fromkeys(("min_share", "max_link_share"), "a page in doubt is kept") if self.doubt == "keep" else {}

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        return self.ready(run)(rows)

    def ready(self, run: Run) -> Judge:
        try:
            import resiliparse.extract.html2text  # noqa: F401
        except ImportError:
            raise missing_extra("resiliparse", "web", "main_content") from None
        if self.doubt == "trafilatura":
            try:
                import trafilatura  # noqa: F401
            except ImportError:
                raise missing_extra("trafilatura", "web", "main_content") from None
            logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # the ledger counts what it would say of each page
        return lambda rows: (self._row(record) if is_page(record) else record for record in rows)

    def _row(self, record: Record) -> Cut | Drop:
        from resiliparse.parse.html import HTMLTree

        page = record.text
        if why := _crowded(page):
            return Drop(record, "main content: too many attributes", why)
        try:
            tree = HTMLTree.parse(page)
        except UnicodeEncodeError as error:
            return Drop(record, "main content: broken character", str(error))
        if len(page) >= 3 * MAX_DEPTH and tree.body and tree.body.query_selector(_DEEP):
            return Drop(record, "main content: too deep", f"{MAX_DEPTH} elements one in the other")
        text, lost, links = self._main(tree, page)
        if (lost or links) and self.doubt == "drop" and text:
            return Drop(record, "main content: doubtful", lost or links)
        asked = bool(lost) and self.doubt == "trafilatura"
        again = _precise(page) if asked else ""
        by = "trafilatura" if len(again) > len(text) else "resiliparse"
        text = again if by == "trafilatura" else text
        if not text.strip():
            return Drop(record, f"main content: none{', nor by trafilatura' if asked else ''}", lost)
        kept = Record(record.id, text=text, meta={**record.meta, "media": "text/plain", "extractor": by})
        how = "index" if links else f"{by}{', trafilatura found no more' if asked and by == 'resiliparse' else ''}"
        return Cut(kept, f"main content: {how}", 1, max(len(page) - len(text), 0), lost or links)

    def _main(self, tree: Any, page: str) -> _Main:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree

        def extract(**options: Any) -> str:
            found: str = extract_plain_text(tree, comments=False, post_meta=False, alt_texts=False, **options)
            return found

        if tree.body and tree.body.query_selector(_BESIDE):
            tree = HTMLTree.parse(f"<body><div><div><div>{tree.body.inner_html}")
        text = extract(main_content=True)
        if self.doubt == "keep" or tree.body is None:
            return _Main(text)
        own_chars, links = len(text), ""
        if text and len(text) < LINE_CHARS * (text.count("\n") + 1):
            own_chars -= _link_chars(page, text)
            share = 1 - own_chars / len(text)
            links = f"{share:.2f} of it are links, more than {self.max_link_share:g}" if share > self.max_link_share else ""
        if own_chars < self.min_share * len(page) and own_chars < self.min_share * len(tree.body.text or ""):  # both hold it
            seen_chars = len(extract(skip_elements=["a"]))
            if own_chars < self.min_share * seen_chars and seen_chars - own_chars >= PARAGRAPH_CHARS:
                return _Main(text, f"{own_chars / seen_chars:.2f} of the visible text, less than {self.min_share:g}")
        return _Main(text, "", links)


def is_page(record: Record) -> bool:
    """Whether a row is a web page."""
    return bool(record.text) and (record.meta.get("media") == "text/html" or _PAGE.match(record.text) is not None)


def _crowded(page: str) -> str:
    """What would hold the parser for minutes: an element of thousands of attributes."""
    half, end = LONG_TAG // 2, 0  # a long tag holds a whole stretch of this length without a bracket
    for at in range(0, len(page), half):
        if at < end or page.find("<", at, at + half) >= 0 or page.find(">", at, at + half) >= 0:
            continue
        begin, end = page.rfind("<", 0, at), page.find(">", at)
        end = end if end >= 0 else len(page)
        if begin > page.rfind(">", 0, at) and page[begin + 1 : begin + 2].isalpha():
            attributes = len(_BETWEEN.findall(_QUOTED.sub("", page[begin:end])))
            if attributes > MAX_ATTRIBUTES:
                return f"an element of {attributes} attributes, more than {MAX_ATTRIBUTES}"
    return ""


def _link_chars(page: str, text: str) -> int:
    """Characters of the lines and cells of a text that are links of the page."""
    links = {" ".join(html.unescape(_TAG.sub("", link)).split()) for link in _LINK.findall(page)}
    lines = (line.lstrip(" •") for row in text.split("\n") for line in row.split("\t\t"))
    return sum(len(line) for line in lines if line in links)


def _precise(page: str) -> str:
    import trafilatura

    return trafilatura.extract(page, favor_precision=True, include_comments=False) or ""
