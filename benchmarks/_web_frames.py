"""Web pages made here: articles of the machine's own texts, set into frames such as pages have. What is the article is known.

A frame brings what surrounds texts: menus, notices on cookies, buttons, side bars, teasers, comments, footers, scripts; with
class names that tell what they are, with names that tell nothing, and with none, in tables or flat in the body.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks._web_text import documents

PARAGRAPH = re.compile(r"[A-Z](?:[\w,;:'\"()\- ]|[.!?](?= )){120,900}[.!?]")
PIECES = re.compile(r"\n\s*\n")


class Article(NamedTuple):
    title: str
    paragraphs: list[str]
    items: list[str]
    code: str

    @property
    def label(self) -> str:
        return "\n".join((self.title, *self.paragraphs, *self.items, self.code))


def prose(count: int) -> list[str]:
    """Paragraphs of documents, no two the same."""
    found: dict[str, None] = {}
    for _, text in documents():
        own = 0
        for piece in PIECES.split(text):
            line = " ".join(piece.strip("# *").split())
            if own < 6 and line not in found and PARAGRAPH.fullmatch(line):  # few of each, so that many have a part
                found[line] = None
                own += 1
        if len(found) >= count:
            break
    return list(found)


def articles(pool: list[str], count: int, draw: random.Random) -> Iterator[Article]:
    """With lists and code here and there; every paragraph stands in one article."""
    left = iter(pool)
    for _ in range(count):
        own = [paragraph for paragraph, _ in zip(left, range(draw.randint(4, 16)), strict=False)]
        if len(own) < 4:
            return
        title = " ".join(own.pop().split()[:7])
        items = [own.pop().split(". ")[0] for _ in range(draw.choice((0, 0, 1, 2)))]
        code = draw.choice(("", "", f"for name in names:\n    if name:\n        show(name, {draw.randint(2, 99)})\n"))
        yield Article(title, own, items, code)


def pages(count: int) -> list[tuple[str, str, str]]:
    """(frame, page, label), as many of each frame."""
    draw = random.Random(0)
    pool = prose(count * 16)
    draw.shuffle(pool)
    around = pool[: len(pool) // 5]  # for teasers and comments
    made = []
    for number, article in enumerate(articles(pool[len(around) :], count, draw)):
        frame = FRAMES[number % len(FRAMES)]
        made.append((frame.__name__, frame(article, Around(around, draw)), article.label))
    return made


class Around(NamedTuple):
    """Draws what stands beside articles."""

    pool: list[str]
    draw: random.Random

    def words(self, least: int = 2, most: int = 6) -> str:
        words = self.draw.choice(self.pool).split()
        return html.escape(" ".join(words[: self.draw.randint(least, most)]).strip(".,;:"))

    def links(self, least: int, most: int) -> list[str]:
        return [f'<a href="/{self.draw.randint(1, 9999)}">{self.words()}</a>' for _ in range(self.draw.randint(least, most))]

    def menu(self, least: int = 5, most: int = 30) -> str:
        return "<ul>" + "".join(f"<li>{link}</li>" for link in self.links(least, most)) + "</ul>"

    def teasers(self, least: int = 3, most: int = 8) -> str:
        found = ((self.words(5, 9), self.words(9, 18)) for _ in range(self.draw.randint(least, most)))
        return "".join(f'<div><a href="/x"><img src="/t.jpg"><h4>{head}</h4></a><p>{lead} …</p></div>' for head, lead in found)

    def comments(self) -> str:
        said = (html.escape(self.draw.choice(self.pool)) for _ in range(self.draw.randint(1, 6)))
        return "".join(box("comment", f"<b>{self.words(1, 2)}</b> <i>3 days ago</i><p>{text}</p>") for text in said)

    def script(self, chars: int) -> str:
        return "<script>" + "window.dataLayer.push({event: 'view', id: 12345});\n" * (chars // 51) + "</script>"

    def legal(self) -> str:
        return f"© 2026 {self.words(1, 2)}. All rights reserved. {' | '.join(self.links(3, 12))}"


COOKIES = (
    "<p>We and our partners use cookies to store information on your device and to show you advertising.</p>"
    "<button>Accept all</button><button>Settings</button>"
)


def body(article: Article, titled: str = "h1") -> str:
    """The article in HTML; the list and the code stand after the first paragraph."""
    lines = [f"<p>{html.escape(paragraph)}</p>" for paragraph in article.paragraphs]
    if article.items:
        lines.append("<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in article.items) + "</ul>")
    if article.code:
        lines.append(f"<pre><code>{html.escape(article.code)}</code></pre>")
    return f"<{titled}>{html.escape(article.title)}</{titled}>\n" + "\n".join(lines)


def whole(article: Article, inside: str, head: str = "") -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(article.title)} - Site</title>{head}'
        f"</head>\n<body>\n{inside}\n</body></html>\n"
    )


def box(name: str, *inside: str, tag: str = "div") -> str:
    return f'<{tag} class="{name}">{"".join(inside)}</{tag}>\n' if name else f"<{tag}>{''.join(inside)}</{tag}>\n"


def news(article: Article, around: Around) -> str:
    share = box("share-buttons", '<a href="#">Facebook</a><a href="#">E-mail</a>')
    main = (
        box("story", body(article), share, tag="article"),
        box("related-articles", "<h3>Read next</h3>", around.teasers(), tag="section"),
        box("comments", "<h3>Comments</h3>", around.comments(), tag="section"),
    )
    side = box("sidebar", "<h3>Most read</h3>", around.menu(5, 10), tag="aside")
    head = box("cookie-consent", COOKIES) + box("site-header", box("main-nav", around.menu(), tag="nav"), tag="header")
    foot = box("site-footer", around.legal(), tag="footer") + around.script(4000)
    return whole(article, box("wrap", head, box("columns", box("", *main, tag="main"), side), foot))


def blog(article: Article, around: Around) -> str:
    posted = f'<p class="postmetadata">Posted in {", ".join(around.links(1, 4))}</p>'
    respond = box("respond", "<h3>Leave a reply</h3><form><textarea></textarea></form>")
    content = (
        box("post", body(article, "h2"), posted),
        box("navigation", '<a href="/a">« Older</a><a href="/b">Newer »</a>'),
        box("commentlist", around.comments()),
        respond,
    )
    side = box("sidebar", "<h3>Archives</h3>", around.menu(12, 40), "<h3>Tags</h3>", " ".join(around.links(10, 40)))
    head = box("header", f'<h2><a href="/">{around.words()}</a></h2>')
    return whole(article, box("page", head, box("content", *content), side, box("footer", f"<p>{around.legal()}</p>")))


def opaque(article: Article, around: Around) -> str:
    """Names made by a compiler of style sheets: they tell nothing."""
    middle = box("css-b7", box("css-c9", body(article)), box("css-d4", "<h3>More stories</h3>", around.teasers()))
    top = box("css-9k1", COOKIES) + box("css-a81", around.menu())
    end = box("css-e2", around.menu(10, 40)) + box("css-f6", around.legal()) + around.script(9000)
    return whole(
        article, box("css-1x2", top, middle, end), "<style>" + ".css-1x2{display:flex;margin:0 auto}\n" * 90 + "</style>"
    )


def tables(article: Article, around: Around) -> str:
    """As pages were laid out before style sheets."""
    head = f'<tr><td colspan="2" bgcolor="#003366">{" | ".join(around.links(5, 12))}</td></tr>'
    side = f'<td width="150" valign="top"><font size="2">{"<br>".join(around.links(8, 30))}</font></td>'
    foot = f'<tr><td colspan="2"><font size="1">{around.legal()}</font></td></tr>'
    main = f"<table><tr><td>{body(article)}</td></tr></table>"
    return whole(article, f'<table width="100%">{head}<tr>{side}<td valign="top">{main}</td></tr>{foot}</table>')


def wiki(article: Article, around: Around) -> str:
    content = (
        box("toc", "<h2>Contents</h2>", around.menu(4, 9)),
        box("mw-content", body(article)),
        box("printfooter", 'Retrieved from <a href="/">here</a>'),
        box("catlinks", "Categories: ", " | ".join(around.links(2, 6))),
    )
    portal = f'<div class="portal" role="navigation">{around.menu(20, 60)}</div>'
    return whole(article, box("mw-body", *content) + box("mw-navigation", portal) + box("footer", around.menu(4, 8)))


def flat(article: Article, around: Around) -> str:
    """Written by hand: all of it in the body, and little around it."""
    return whole(article, f"{body(article)}\n<hr>\n<p>{' | '.join(around.links(2, 5))}</p>")


def shop(article: Article, around: Around) -> str:
    main = (
        box("breadcrumb", " › ".join(around.links(3, 4))),
        box("product", box("description", body(article))),
        box("recommended", "<h2>You may also like</h2>", around.teasers(4, 12)),
    )
    head = box("", box("", around.menu(20, 60), tag="nav"), '<form class="search"><input name="q"></form>', tag="header")
    foot = box("newsletter", "<p>Subscribe to our newsletter</p>") + box("", around.menu(10, 30), around.legal(), tag="footer")
    return whole(article, head + box("", *main, tag="main") + foot + around.script(6000))


def heavy(article: Article, around: Around) -> str:
    """Most of it scripts, as on many pages of today."""
    top = box("navbar", around.menu(10, 40)) + box("ad-slot", around.script(2000))
    end = box("sidebar", around.teasers()) + box("footer", around.legal()) + around.script(30000)
    return whole(article, box("root", top, box("article-body", body(article)), around.script(40000), end), around.script(20000))


FRAMES: tuple[Callable[[Article, Around], str], ...] = (news, blog, opaque, tables, wiki, flat, shop, heavy)
