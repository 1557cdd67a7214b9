"""The chat page in a real browser, against the real server over an engine without a model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from modelwright.methods.engines import Engine
from modelwright.serve.app import Settings, create_app
from modelwright.serve.feedback import Feedback
from modelwright.serve.models import Models, Source
from modelwright.serve.run import Address, Server, bind
from tests import browser_kit
from tests.browser_kit import Page
from tests.fake_engine import FakeEngine, wait_until

pytestmark = pytest.mark.skipif(browser_kit.PROGRAM is None, reason="no chromium")
ANSWERS = "document.querySelectorAll('.assistant .foot').length"
LAST = "[...document.querySelectorAll('.assistant .text')].at(-1).innerText"


class Base(FakeEngine):
    capabilities = FakeEngine.capabilities - {"chat", "rules", "seed"}


@contextmanager
def served(engine: Engine | Models, feedback: Feedback | None = None) -> Iterator[str]:
    app = create_app(engine, "tiny", Settings(), None, feedback)
    server = Server(uvicorn.Config(app, log_level="critical", ws="none"), app.state.queue, drain_s=5)
    socket = bind(Address(port=0), None)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket])))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_kit.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine: FakeEngine) -> Iterator[str]:
    with served(engine) as url:
        yield url


@pytest.fixture
def chat(tab: Page, address: str) -> Iterator[Page]:
    yield opened(tab, address)
    assert tab.faults == [], "no exception, and nothing that the content policy refuses"


def opened(tab: Page, address: str) -> Page:
    tab.faults.clear()
    tab.open(address)
    tab.wait("document.title === 'tiny · chat'")
    return tab


def say(page: Page, text: str) -> None:
    count = page.run(ANSWERS)
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.enter()
    page.wait(f"{ANSWERS} > {count} && !document.getElementById('log').classList.contains('busy')")


def press(page: Page, label: str, within: str = "body") -> None:
    """The last button with this label."""
    page.run(f"[...document.querySelectorAll('{within} button')].filter((one) => one.textContent === '{label}').at(-1).click()")


def put(page: Page, field: str, value: Any) -> None:
    page.run(f"document.getElementById('{field}').value = {json.dumps(value)}")


MARKDOWN = [
    ("a *b* **c** ~~d~~ `e`", "<p>a <em>b</em> <strong>c</strong> <del>d</del> <code>e</code></p>"),
    ("***both*** snake_case_x 2 * 3 * 4", "<p><strong><em>both</em></strong> snake_case_x 2 * 3 * 4</p>"),
    ("**a *b*** and ** c ** __d__", "<p><strong>a <em>b</em></strong> and ** c ** <strong>d</strong></p>"),
    ("## Two\ntext\nmore", "<h3>Two</h3><p>text\nmore</p>"),
    ("1. one\n   - in\n2. two", "<ol><li>one<ul><li>in</li></ul></li><li>two</li></ol>"),
    ("- a\n- b\n\nafter", "<ul><li>a</li><li>b</li></ul><p>after</p>"),
    ("3) three", '<ol start="3"><li>three</li></ol>'),
    ("> q\n> r\n\n---", "<blockquote><p>q\nr</p></blockquote><hr>"),
    ("[x](https://a.example/b)", '<p><a href="https://a.example/b" target="_blank" rel="noopener noreferrer nofollow">x</a></p>'),
    ("[x](javascript:alert(1)) [y](data:text/html,z)", "<p>[x](javascript:alert(1)) [y](data:text/html,z)</p>"),
    ("<img src=x onerror=alert(1)> <b>&amp;", "<p>&lt;img src=x onerror=alert(1)&gt; &lt;b&gt;&amp;amp;</p>"),
    ("\\*no\\* ``a ` b`` and `open", "<p>*no* <code>a ` b</code> and `open</p>"),
    ("```not a fence``` here", "<p><code>not a fence</code> here</p>"),
    ("in 1984.\n1984. was", "<p>in 1984.\n1984. was</p>"),
]


def test_markdown(chat: Page) -> None:
    chat.run("""import('/markdown.js').then((m) => {
        window.md = (text) => { const node = document.createElement('div'); m.show(node, text); return node; } })""")
    for text, wanted in MARKDOWN:
        assert chat.run(f"md({json.dumps(text)}).innerHTML") == wanted, text
    table = chat.run("md('| a | b |\\n|--|--:|\\n| 1 |').querySelector('table').innerHTML")
    assert table == '<tr><th>a</th><th class="right">b</th></tr><tr><td>1</td><td class="right"></td></tr>'
    for fence in ("```py\nif x:\n    <b>\n```\nafter", "~~~py\nif x:\n    <b>\n~~~\nafter"):
        assert chat.run(f"md({json.dumps(fence)}).querySelector('pre').textContent") == "if x:\n    <b>"
        assert chat.run(f"md({json.dumps(fence)}).querySelector('.bar span').textContent") == "py"
    inside = "1. so:\n   ```py\n   if x:\n       y\n\n   z\n   ```\n2. done"
    assert chat.run(f"md({json.dumps(inside)}).querySelector('pre').textContent") == "if x:\n    y\n\nz"
    assert chat.run(f"md({json.dumps(inside)}).querySelectorAll('ol > li').length") == 2
    assert chat.run("md('```\\nstill open').querySelector('pre').textContent") == "still open"
    for hostile in (
        "> " * 5000 + "x",
        "`" * 3000 + "a",
        "*a " * 5000,
        "[" * 5000,
        "- " * 3000 + "x",
        "|" * 5000 + "\n" + "-|" * 5000,
        "**" * 9000,
    ):
        assert (
            chat.run(f"(() => {{ const t = performance.now(); md({json.dumps(hostile)}); return performance.now() - t; }})()")
            < 3000
        )


def test_only_what_changes_is_made_anew(chat: Page) -> None:
    script = """import('/markdown.js').then((m) => { const n = document.createElement('div'); m.show(n, 'one\\n\\ntwo');
        const first = n.firstChild, second = n.lastChild; m.show(n, 'one\\n\\ntwo and more\\n\\nthree');
        return [n.firstChild === first, n.children[1] === second, n.children.length]; })"""
    assert chat.run(script) == [True, False, 3]


def test_a_conversation(chat: Page, engine: FakeEngine) -> None:
    assert chat.run("document.getElementById('facts').innerText") == "context 2,000 tokens"
    say(chat, "first")
    assert chat.run(LAST) == "you said: first" and "tokens" in chat.run("document.querySelector('.assistant .foot').innerText")
    put(chat, "system", "be kind")
    for name, value in {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "max_tokens": 30, "seed": 3}.items():
        put(chat, name, value)
    say(chat, "second")
    assert engine.last is not None and engine.last.sampling._replace(stop=()) == engine.last.sampling
    sampling = engine.last.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0.5, 0.9, 7, 0.1, 3)
    asked = engine.decode(engine.last.tokens)
    assert asked == "<system>be kind<user>first<assistant>you said: first<user>second<assistant>"
    before = chat.run(LAST)
    put(chat, "seed", 4)
    press(chat, "Regenerate")
    chat.wait(f"{ANSWERS} === 2 && {LAST} !== {json.dumps(before)}")
    assert engine.decode(engine.last.tokens) == asked, "the answer that is replaced is not asked about"
    press(chat, "Edit", ".user:first-of-type")
    press(chat, "Cancel")
    chat.key("ArrowUp", 38)  # the last question
    chat.run("document.querySelector('.edit textarea').value = 'other'")
    press(chat, "Ask again")
    chat.wait(f"{ANSWERS} === 2 && {LAST}.startsWith('you said: other')")
    assert engine.decode(engine.last.tokens).endswith("<user>first<assistant>you said: first<user>other<assistant>")
    chat.run("document.querySelector('.user .foot button').click()")
    chat.run("document.querySelector('.edit textarea').value = 'anew'")
    press(chat, "Ask again")
    chat.wait(f"{ANSWERS} === 1 && {LAST}.startsWith('you said: anew')")
    chat.click("#new")
    assert chat.run("document.querySelectorAll('.turn').length") == 0 and not chat.run("document.getElementById('empty').hidden")


def test_files(chat: Page, tmp_path: Path) -> None:
    say(chat, "a **b**")
    put(chat, "system", "s")
    chat.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    found = []
    for button, ending in (("#export-jsonl", "jsonl"), ("#export-md", "md")):
        chat.click(button)
        wait_until(lambda ending=ending: [*tmp_path.glob(f"tiny-*.{ending}")])
        found.append(next(tmp_path.glob(f"*.{ending}")).read_text(encoding="utf-8"))
    assert json.loads(found[0]) == {"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a **b**"},
        {"role": "assistant", "content": "you said: a **b**"},
    ]}  # fmt: skip
    assert found[1] == "# Chat with tiny\n\n## System\n\ns\n\n## You\n\na **b**\n\n## tiny\n\nyou said: a **b**\n"


def test_stop_and_errors(chat: Page, engine: FakeEngine) -> None:
    chat.run("document.getElementById('prompt').focus()")
    chat.type("SLOW")
    chat.enter()
    chat.wait(f"document.querySelector('.assistant') && {LAST}.includes('tick tick')")  # it streams
    chat.key("Escape", 27)
    chat.wait(f"{ANSWERS} === 1")
    assert "stopped" in chat.run("document.querySelector('.assistant .foot').innerText")
    wait_until(lambda: engine.active == 0)
    chat.type("BOOM")
    chat.enter()
    assert "engine failed" in chat.wait("document.querySelector('.error')?.innerText")
    assert chat.run("document.getElementById('prompt').value") == "BOOM", "the question goes back to the box"
    put(chat, "prompt", "")
    chat.type("BOOM LATER")
    chat.enter()
    chat.wait(f"{ANSWERS} === 2 && document.querySelectorAll('.error').length === 1")
    assert chat.run(LAST) == "you"


def test_a_busy_server_is_asked_again(chat: Page) -> None:
    full = "new Response('{\"error\": {\"message\": \"full\"}}', { status: 429, headers: { 'retry-after': '%s' } })"
    chat.run(
        "const real = window.fetch; let busy = 1; window.fetch = (...all) => busy-- > 0 ? Promise.resolve("
        + full % 1
        + ") : real(...all)"
    )
    chat.type("hello")
    chat.enter()
    chat.wait("document.getElementById('status').textContent === 'The server is busy, trying again in 1 s'")
    chat.wait(f"{ANSWERS} === 1 && {LAST} === 'you said: hello'")
    chat.run("window.fetch = () => Promise.resolve(" + full % 900 + ")")
    chat.type("later")
    chat.enter()
    assert chat.wait("document.querySelector('.error')?.innerText") == "full (try again in 900 s)"


def test_how_likely_tokens_were(chat: Page, engine: FakeEngine) -> None:
    chat.click("#logprobs")
    say(chat, "日x")
    assert engine.last is not None and engine.last.sampling.top_logprobs == 5
    assert chat.run("document.querySelector('.tokens').innerText") == "you said: 日x", "bytes of a character go together"
    chat.hover(".token")
    tip = chat.run("document.getElementById('tip').innerText").split("\n")
    assert tip[:4] == ["y", "50.0 %", "z", "25.0 %"] and chat.run("document.querySelector('.token.now').innerText") == "y"
    chat.run("const all = document.querySelectorAll('.token'); all[all.length - 2].id = 'half'")
    chat.hover("#half")
    parts = chat.run("document.getElementById('tip').innerText").split("\n")[::2]
    assert parts[:3] == ["‹e6›", "‹e7›", "‹e8›"] and "‹a5›" in parts, "halves of characters by their bytes"
    chat.hover(".token")
    chat.run("document.querySelector('.tokens').focus()")
    chat.key("ArrowRight", 39)
    chat.key("ArrowRight", 39)
    assert chat.run("document.querySelector('.token.now').innerText") in ("o", "u")
    chat.click("#logprobs")
    assert chat.run("document.querySelector('.assistant .text').innerHTML") == "<p>you said: 日x</p>"


def test_ratings(tab: Page, tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "rated.jsonl", "tiny", "key")
    with served(FakeEngine(), feedback) as url:
        page = opened(tab, url)
        assert "rated.jsonl" in page.run("document.getElementById('kept').innerText")
        say(page, "good?")
        page.click(".thumbs button:last-of-type")
        page.wait("document.querySelector('.thumbs').innerText.includes('saved to rated.jsonl')")
        page.run("document.querySelector('.rating textarea').value = 'better'")
        page.click(".rating input")
        press(page, "Save")
        wait_until(lambda: "better" in (tmp_path / "rated.jsonl").read_text(encoding="utf-8"))


def test_several_models_and_one_without_a_template(tab: Page) -> None:
    tiny, plain = FakeEngine(), Base()
    models = Models([Source("tiny", lambda: tiny), Source("plain", lambda: plain)])
    with served(models) as url:
        page = opened(tab, url)
        assert page.run("[...document.getElementById('choice').options].map((one) => one.value)") == ["tiny", "plain"]
        say(page, "one")
        assert tiny.last is not None and plain.last is None
        assert "tiny" in page.run("document.querySelector('.assistant .foot').innerText")
        page.run("const c = document.getElementById('choice'); c.value = 'plain'; c.dispatchEvent(new Event('change'))")
        assert page.run("document.title") == "plain · chat"
        assert tab.faults == []
        press(page, "New chat")
        say(page, "Once upon")  # only when it is open does it tell that it has no template
        assert "you said: Once upon" in page.run("document.querySelector('.assistant .text').innerText")
        assert "no chat template" in page.run("document.getElementById('facts').innerText")
        assert (
            plain.last is not None
            and plain.last.tokens == list(b"Once upon")
            and not page.run("!!document.querySelector('.error')")
        )
    with served(Base()) as url:
        page = opened(tab, url)
        assert page.run("document.getElementById('system').closest('label').hidden")
        assert page.run("document.getElementById('min_p').closest('label').hidden"), "what it cannot do is not offered"
        page.click("#logprobs")
        say(page, "Once upon")
        assert page.run("document.querySelector('.tokens').innerText").startswith("you said: Once upon")
        assert tab.faults == []


def test_nothing_is_fetched_from_elsewhere() -> None:
    folder = files("modelwright.serve") / "page"
    for name in ("page.html", "page.css", "page.js", "turn.js", "markdown.js"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "innerHTML" not in text and "eval(" not in text and "import(" not in text and len(text.split("\n")) < 400
        for address in text.split("http")[1:]:
            assert address.startswith(("://www.w3.org/2000/svg", "s?:", "s://spec.commonmark.org")), address[:40]
