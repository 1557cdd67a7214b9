"""Main content of web pages: what is text, what is not, which pages take the slow way. All inputs are made here."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelwright.core.record import Record
from modelwright.methods.steps import Cut, Drop
from tests.test_web import judge

pytest.importorskip("resiliparse")
pytest.importorskip("trafilatura")


def article(paragraphs: int = 12, links: int = 30) -> str:
    said = "".join(
        f"<p>Paragraph {n} says at length where a river begins and why it ends in the sea.</p>" for n in range(paragraphs)
    )
    nav = "".join(f"<li><a href='/s{n}'>Section number {n}</a></li>" for n in range(links))
    return (
        f"<!doctype html><html><head><title>T</title><script>var x = 1;</script></head><body><nav><ul>{nav}</ul></nav>"
        f"<main><article><h1>Rivers</h1>{said}</article></main><footer>All rights reserved</footer></body></html>"
    )


def index(links: int = 40) -> str:
    lines = "".join(f"<p><a href='/s{n}'>Where the river number {n} begins and ends</a></p>" for n in range(links))
    return f"<html><body><main><h1>Index</h1>{lines}</main></body></html>"


def short() -> str:
    """A page whose text is not where main text stands."""
    lines = "".join(f"<li>Line {n} of the long list that this page is about, with many words in it.</li>" for n in range(60))
    return f"<html><body><main><h1>News</h1><p>See below.</p></main><footer><ul>{lines}</ul></footer></body></html>"


def test_main_content(tmp_path: Path) -> None:
    rows = [
        Record("a", text=article(), meta={"media": "text/html", "url": "u"}),
        Record("b", text=index()),
        Record("c", text=short()),
        Record("d", text="<html><body><script>1</script></body></html>"),
        Record("e", text="Plain <p> text"),
        Record("f", text="<p>a fragment that says of itself what it is</p>", meta={"media": "text/html"}),
    ]
    a, b, c, d, e, f = judge(rows, "main_content", doubt="keep")
    assert isinstance(a, Cut) and a.reason == "main content: resiliparse" and a.chars == len(rows[0].text) - len(a.record.text)
    assert a.record.text.startswith("Rivers") and "Paragraph 11" in a.record.text
    assert not any(word in a.record.text for word in ("Section", "rights", "var x"))
    assert a.record.meta == {"media": "text/plain", "url": "u", "extractor": "resiliparse"}
    assert isinstance(d, Drop) and d.reason == "main content: none"
    assert e is rows[4] and isinstance(f, Cut) and f.record.text.startswith("a fragment")
    assert isinstance(b, Cut) and isinstance(c, Cut) and "Line 59" not in c.record.text
    strict = judge(rows, "main_content", doubt="drop")
    assert [result.reason for result in strict if isinstance(result, Drop)] == ["main content: doubtful"] * 2 + [
        "main content: none"
    ]
    assert "are links" in strict[1].detail and "of the visible text" in strict[2].detail
    decided = judge(rows, "main_content")
    assert [result.reason.removeprefix("main content: ") for result in decided if not isinstance(result, Record)] == [
        "resiliparse", "index", "resiliparse, trafilatura found no more", "none", "resiliparse",
    ]  # fmt: skip
    assert "river number 39" in decided[1].record.text  # an index is all that the page is


def in_body(text: str) -> Record:
    return Record("x", text=f"<!doctype html><html><head><title>T</title></head><body>{text}</body></html>")


def main_text(text: str) -> str:
    result = judge([in_body(text)], "main_content")[0]
    assert isinstance(result, Cut), result
    return result.record.text


def test_trafilatura_looks_where_the_text_is_lost() -> None:
    said = "".join(
        f"<p>Paragraph {n} says at length where river {n * 7} begins and why it ends in the sea.</p>" for n in range(9)
    )
    lost = in_body(f'<div><nav><a href="/">Home</a></nav><div class="modal"><h1>Rivers</h1>{said}</div></div>')
    result = judge([lost], "main_content")[0]
    assert isinstance(result, Cut) and result.reason == "main content: trafilatura" and "visible text" in result.detail
    assert "Paragraph 8 says" in result.record.text and result.record.meta["extractor"] == "trafilatura"
    nowhere = judge([in_body(f'<div><div class="comment-body">{said}</div></div>')], "main_content")[0]
    assert isinstance(nowhere, Drop) and nowhere.reason == "main content: none, nor by trafilatura"
    frames = judge([Record("f", text="<html><frameset><frame src=a></frameset>")], "main_content")[0]
    assert isinstance(frames, Drop) and frames.reason == "main content: none"


def test_what_is_beside_the_text() -> None:
    found = main_text(
        '<div><div><h1>Rivers</h1><p class="byline">By A. Nobody</p><p>They begin in hills. <img alt="Hill" src="h"></p></div>'
        '<div class="comments"><h3>Comments</h3><div class="comment"><p>I saw one.</p></div></div></div>'
    )
    assert found == "Rivers\n\nThey begin in hills."


def test_lists_of_a_flat_page_are_text() -> None:
    menu = "<ul><li><a href='/'>Home</a></li></ul>"
    found = main_text(f"{menu}<h1>Rivers</h1><p>Some are:</p><ul><li>the long one<ul><li>its arm</li></ul></li></ul><p>End.</p>")
    assert found == "Rivers\n\nSome are:\n\n  • the long one\n    • its arm\n\nEnd."


def test_code_and_tables_keep_their_lines() -> None:
    code = "<pre><code><span>def</span> f():\n    if x &lt; 1:\n\n        return <b>1</b>\n</code></pre>"
    assert "def f():\n    if x < 1:\n\n        return 1" in main_text(f"<div><div><p>Write:</p>{code}<p>Done.</p></div></div>")
    nested = "<table><tr><td>outer<table><tr><td>in</td><td>ner</td></tr></table></td><td>next</td></tr></table>"
    assert main_text(f"<div><div>{nested}</div></div>").split() == ["outer", "in", "ner", "next"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<div><p>One<p>Two <b>bold <i>both</b> it</i>", "One\n\nTwo bold both it"),
        ("<<p>a < b && c<div class=>End", "<\n\na < b && c\n\nEnd"),
        ("<p>x</p></body></html><p>after", "x\n\nafter"),
        ("<p>a<!-- never closed <p>gone", "a"),
        ("<p>&amp;lt; &#x1F600; &bogus;", "&lt; 😀 &bogus;"),
        ("<script>if (a<b) write('<p>no</p>')</script><p>yes<template><p>no</template>", "yes"),
        ("<p hidden>no</p><p style='display:none'>no</p><p>yes", "yes"),
    ],
)
def test_malformed_pages(text: str, found: str) -> None:
    assert main_text(text) == found


def test_other_scripts() -> None:
    for said, menu in (
        ("黄河是中国北部的一条大河，全长约五千四百六十四公里。它发源于青藏高原，最后流入渤海。", "导航菜单"),
        ("نهر النيل هو أطول أنهار الكرة الأرضية، ويقع في قارة أفريقيا وينساب إلى جهة الشمال.", "القائمة"),
    ):
        nav = f"<nav><ul><li><a href='/'>{menu}</a></li></ul></nav>"
        found = main_text(f"<div>{nav}<main><article>{f'<p>{said}</p>' * 5}</article></main><footer>© {menu}</footer></div>")
        assert found == "\n\n".join([said] * 5)
        links = "".join(f"<p><a href='/{n}'>{said[:12]} {n}</a></p>" for n in range(30))
        assert (
            judge([in_body(f"<div><main><h1>{menu}</h1>{links}</main></div>")], "main_content")[0].reason == "main content: index"
        )


def test_pages_made_to_hold_an_extractor() -> None:
    begin = time.process_time()
    pages = [
        "<div>" * 50_000 + "x",
        "<p " + " ".join(f"a{n}=1" for n in range(50_000)) + ">x",
        "<p " + "a/" * 50_000 + ">x",
        "<a " * 90_000,
    ]
    for result in judge([Record(str(n), text="<html>" + text) for n, text in enumerate(pages)], "main_content"):
        assert isinstance(result, Drop), result
    assert time.process_time() - begin < 5
    begin = time.process_time()
    many = "<p>z</p><ul><li>q</li></ul>" * 10_000, "<a x>" + "<i>y</i><br>\n" * 20_000, "<a x>t\n" * 20_000
    data = '<script type="application/json"><![CDATA[' + "1 / 2, " * 4000 + "]]></script><p>A text that stays.</p>"
    for text in (*many, data):
        assert isinstance(judge([in_body(text)], "main_content")[0], Cut), text[:20]
    assert time.process_time() - begin < 5
    half = judge([Record("half", text="<html>\ud800")], "main_content")[0]
    assert isinstance(half, Drop) and half.reason == "main content: broken character"
    svg = (
        "<html><body><svg>"
        + "<path d='M0 0'/>" * 5000
        + "</svg><p>A text that stays.</p>"
        + "<img src='data:x,"
        + "A" * 50_000
        + "'>"
    )
    assert isinstance(judge([Record("svg", text=svg)], "main_content", doubt="keep")[0], Cut)


# --- the benchmark --------------------------------------------------------------------------------------


def test_scores_are_of_words_in_order() -> None:
    from benchmarks.extract_vs_trafilatura import common, score

    assert common("a b c d".split(), "a x c d e".split()) == 3 and common(["a", "b"], ["b", "a"]) == 1 and common([], ["a"]) == 0
    assert score("The river, ends", "the river ends in seas") == pytest.approx((1.0, 0.6, 0.75))
    assert score("", "") == (1.0, 1.0, 1.0) and score("a", "") == (0.0, 0.0, 0.0)
    assert score("黄河很长", "黄河").precision == 0.5


def test_frames_hold_their_articles() -> None:
    from benchmarks import _web_frames as frames

    pool = [f"Paragraph {n} says at length where river {n} begins and why it ends in a sea. It is long." for n in range(300)]
    draw = frames.random.Random(0)
    for frame, article in zip(frames.FRAMES, frames.articles(pool, 8, draw), strict=True):
        page = frame(article, frames.Around(pool[200:], draw))
        assert len(page) > len(article.label) and all(f"<p>{said}</p>" in page for said in article.paragraphs), frame
        text = judge([Record("x", text=page)], "main_content")[0].record.text
        assert all(said in text for said in article.paragraphs), frame
