"""`modelwright compare-decoding`: what it prints and refuses, its page, its tree; the report's accuracy against tokens."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from modelwright.cli import compare_decoding
from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.record import write_records
from modelwright.methods.engines import ENGINES, Completion, open_engine
from modelwright.report import RunView, StageView, render
from modelwright.report.decoding import Comparison, Strategy, level, page
from modelwright.report.spending import spending
from modelwright.report.token_tree import Token, drawing, percent, shown, tree
from tests import engine_kit, train_kit

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert(1)</script>"><style>*{color:red}</style>\x1b[31m'


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_kit.folder(tmp_path_factory.mktemp("model"))


def run(model: Path, *more: str) -> int:
    return main(["compare-decoding", str(model), "def first(items", "--engine", "native", "--tokens", "6", *more])


def test_strategies_side_by_side_and_a_page(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tree.html"
    assert run(model, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    for kind in compare_decoding.USUAL:
        assert re.search(rf"^{kind}: \d+ tokens spent, \d in the answer.* nats a token", printed, re.MULTILINE)
    assert "\x1b" not in printed and f"page: {out}" in printed
    made = out.read_text(encoding="utf-8")
    picture = ElementTree.fromstring(re.search(r'<svg class="tree".*?</svg>', made, re.DOTALL)[0])  # type: ignore[index]
    ways = [path.get("class") for path in picture.iter(f"{SVG}path") if path.get("class", "").startswith("way")]
    assert {f"way s{number}" for number in range(5)} == set(ways)
    assert "greedy, " in "".join(title.text or "" for title in picture.iter(f"{SVG}title"))


def test_characters_of_several_tokens(model: Path) -> None:
    """The answer is not littered with signs for what was not whole yet; the tree shows the bytes of each part."""
    with open_engine(model, ENGINES.load("native")(threads=1, device="cpu")) as engine:
        ids = engine.encode("日x𝄞")
        parts = engine.spell(ids)
        assert max(map(len, parts)) < 4, "some characters are several tokens"
        for tokens, text in ((ids, "日x𝄞"), (ids[:-1], "日x\ufffd")):
            best = Completion(text, tuple(tokens), (), "length", 1, tuple(((token, -1.0),) for token in tokens))
            found = compare_decoding._tokens(engine, best, [])
            assert "".join(token.text for token in found) == text
            halves = [token for token in found[:-1] if not token.text]
            assert halves and all(re.fullmatch("‹([0-9a-f]{2} ?)+›", token.name) for token in halves)
            assert all(token.others[0][1] == token.name for token in found)
        assert tree([found], 3, 1).below[ids[0]].text.startswith("‹e6")


def test_fields_and_a_server_like_choice(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--decoders", "beam,greedy", "--set", "beam.beams=2", "--set", "beam.length_penalty=0.5", "--plain") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("beam (beams 2, length_penalty 0.5): ") and "the best of 2" in printed
    assert printed.index("beam") < printed.index("greedy")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--decoders", "beem"], "did you mean 'beam'"),
        (["--set", "beam=2"], "not KIND.FIELD=VALUE"),
        (["--set", "beam.beams=["], "no value"),
        (["--set", "draft.tokens=2"], "not KIND.FIELD=VALUE of one of greedy"),
        (["--set", "beam.beems=2"], "beems"),
        (["--set", "beam.groups=3"], "groups of equal size"),
        (["--decoders", "draft"], "model: Field required"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    model: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, *more) == 2
    err = capsys.readouterr().err
    assert says.lower() in err.lower()


def test_an_engine_that_cannot_says_why() -> None:
    from tests.decoder_kit import Scripted

    given = compare_decoding.options().parse_args(["model", "question"])
    decoders = [compare_decoding._decoders(given)[2]]
    with pytest.raises(UserError, match="the decoder `beam` needs branch"):
        compare_decoding.strategies_of(Scripted(str), given, decoders)  # type: ignore[arg-type]


def test_colours_in_a_terminal(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run(model, "--decoders", "greedy") == 0
    assert "probability of a token" in capsys.readouterr().out


# --- the page ------------------------------------------------------------------------------------------------------


def strategy(name: str, *tokens: Token, **more: Any) -> Strategy:
    return Strategy(
        name,
        **{"settings": "", "given": "", "finish": "stop", "tokens_spent": 9, "logprob": -0.5, "answers": 1},
        tokens=tokens,
        **more,
    )  # type: ignore[arg-type]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_escapes_everything_and_fetches_nothing() -> None:
    token = Token(1, HOSTILE, 0.3, ((2, HOSTILE, 0.2), (3, "", 0.1)))
    found = Comparison(HOSTILE, HOSTILE, (strategy(HOSTILE[:-5], token), strategy("greedy", Token(4, "", None))))
    made = page(found, 8, 2)
    tags = Tags()
    tags.feed(made)
    assert {tag for tag, _ in tags.found} <= set(
        "html head meta title style body header main section article p h1 h2 h3 span b div svg path g rect text tspan".split()
    )
    assert not any(
        name.startswith("on") or name in ("style", "src", "href") for _, attributes in tags.found for name in attributes
    )
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', made)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    style = re.search(r"<style>(.*?)</style>", made, re.DOTALL)
    assert style and base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy[1]
    assert "\x1b" not in made


def test_the_tree_shares_what_strategies_share() -> None:
    a, b, c = (
        Token(1, "a", 0.6),
        Token(2, "b", 0.5, ((2, "b", 0.5), (3, "c", 0.3), (4, "d", 0.1), (5, "e", 0.05))),
        Token(3, "c", 0.3),
    )
    root = tree([(a, b), (a, c), (b,)], 2, 1)
    assert [(n.text, n.taken) for n in root.below.values()] == [("a", [0, 1]), ("b", [2]), ("c", [])]
    assert [(n.text, n.taken) for n in root.below[1].below.values()] == [("b", [0]), ("c", [1]), ("d", [])]
    assert not tree([(a, b)], 1, 0).below[1].below
    picture = ElementTree.fromstring(drawing(root, "why", ["x", "y", "z"]))
    boxes = [(float(r.get("x") or 0), float(r.get("y") or 0)) for r in picture.iter(f"{SVG}rect")]
    assert len(boxes) == len(set(boxes)) == 5 and min(y for _, y in boxes) >= 0
    for x in {x for x, _ in boxes}:
        rows = sorted(y for other, y in boxes if other == x)
        assert all(two - one >= 34 for one, two in pairwise(rows)), "boxes overlap"
    widths = [float(p.get("stroke-width") or 0) for p in picture.iter(f"{SVG}path") if "edge" in (p.get("class") or "")]
    assert max(widths) == pytest.approx(1 + 15 * 0.6) and len(widths) == 6


def test_signs_and_shades() -> None:
    assert [shown(text) for text in (" a", "\n", "\t", "", "abcdefghijkl", "\x07")] == ["␣a", "↵", "⇥", "∎", "abcdefgh…", "␇"]
    assert [percent(p) for p in (1.0, 0.996, 0.0994, 0.0996, 0.0009)] == ["100 %", "100 %", "9.9 %", "10 %", "<0.1 %"]
    assert [level(Token(1, "", p)) for p in (1.0, 0.9, 0.89, 0.06, 0.0, None)] == [0, 0, 1, 3, 4, None]


# --- the report ----------------------------------------------------------------------------------------------------


def evaluated(decoder: str, tokens: int, value: float) -> StageView:
    metric = {
        "task": "answers",
        "name": "exact match",
        "group": "",
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 40,
    }
    other = {"task": "perplexity", "name": "perplexity", "group": "", "value": 9.0, "low": 8.0, "high": 10.0, "n": 40}
    stats = {
        "metrics": [other, metric, {**metric, "group": "name"}],
        "samples": [{"task": "answers"}],
        "decoder": decoder,
        "asked": {"answers": 40, "tokens_spent": 40 * tokens},
    }
    return StageView(f"by-{decoder}", "evaluate", "made", {"stats": stats}, Path("nowhere"), ())


def test_the_report_shows_accuracy_against_tokens() -> None:
    stages = (evaluated("best_of_n", 80, 0.5), evaluated("greedy", 10, 0.4), evaluated("<beam>", 40, 0.45))
    run = RunView("r", "", stages, "a machine", "today", 1.0)
    (found,) = spending(run)
    assert [line[:4] for line in found.lines] == [
        ("by-greedy", "greedy", "10.0", "40.0\u00a0%"),
        ("by-<beam>", "<beam>", "40.0", "45.0\u00a0%"),
        ("by-best_of_n", "best_of_n", "80.0", "50.0\u00a0%"),
    ]
    picture = ElementTree.fromstring(found.picture)
    spots = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in picture.iter("circle")]
    assert spots == sorted(spots) and [y for _, y in spots] == sorted((y for _, y in spots), reverse=True)
    assert "What decoders gain by spending more" in render(run) and "<beam>" not in render(run)
    assert not spending(run._replace(stages=stages[:1] * 2)), "one decoder alone is no comparison"


def test_an_evaluation_counts_what_its_decoder_spent(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelwright import api

    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "chats.jsonl", train_kit.chats(4))
    stage = f"{{kind: evaluate, model: {model}, data: ./chats.jsonl, tasks: [{{kind: rouge, max_tokens: 4}}], engine: native"
    (tmp_path / "r.yaml").write_text(
        f"name: spent\nstages:\n  plain: {stage}}}\n  many: {stage}, decoder: {{kind: best_of_n, samples: 3}}, against: plain}}\n"
        f"  quick: {stage}, decoder: {{kind: draft, model: {model}}}}}\n"
    )
    project = api.load(tmp_path / "r.yaml")
    project.run()
    found = {name: project.artifact(name).manifest["stats"] for name in ("plain", "many", "quick")}
    assert [found[name]["decoder"] for name in found] == ["greedy", "best_of_n", "draft"]
    assert found["plain"]["asked"]["tokens_spent"] == found["plain"]["asked"]["answer_tokens"]
    assert found["many"]["asked"]["tokens_spent"] > 2 * found["many"]["asked"]["answer_tokens"]
    assert found["quick"]["metrics"] == found["plain"]["metrics"] and found["many"]["comparisons"]


def test_an_engine_without_branches_is_refused_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelwright import api

    monkeypatch.chdir(tmp_path)
    engine_kit.folder(tmp_path / "model")
    write_records(tmp_path / "chats.jsonl", train_kit.chats(4))
    (tmp_path / "r.yaml").write_text(
        "name: plan\nstages:\n  it: {kind: evaluate, model: ./model/, data: ./chats.jsonl, tasks: [rouge], decoder: beam, "
        "engine: {kind: llamacpp}}\n"
    )
    with pytest.raises(UserError, match="the decoder `beam` needs branch"):
        api.load(tmp_path / "r.yaml").plan()
    for engine, why in (("llamacpp", "no single"), ("{kind: openai, base_url: 'http://127.0.0.1:1/v1'}", "opens no files")):
        (tmp_path / "r.yaml").write_text(
            "name: plan\nstages:\n  it: {kind: evaluate, model: ./model/, data: ./chats.jsonl, tasks: [rouge], "
            f"engine: {engine}}}\n"
        )
        with pytest.raises(UserError, match=r"cannot open \./model/") as caught:
            api.load(tmp_path / "r.yaml").plan()
        assert why in caught.value.why
    monkeypatch.setenv("PATH", "")
    (tmp_path / "r.yaml").write_text((tmp_path / "r.yaml").read_text().partition("engine")[0] + "engine: vllm}\n")
    assert api.load(tmp_path / "r.yaml").plan(), "a program that is not here may be where the work is done"
