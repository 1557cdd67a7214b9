"""The report: complete, self-contained, escaped, and still there when half of the run is missing."""

from __future__ import annotations

import copy
import json
import re
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from modelwright.core.errors import UserError
from modelwright.report import RunView, StageView, curves_svg, model_card, render
from modelwright.report.curves import read
from modelwright.report.evaluations import BETTER, SAME, WORSE, forests, verdict
from modelwright.report.lineage import LANE, WIDE, place
from modelwright.report.samples import side_by_side
from modelwright.report.summary import verdict as said
from tests.report_fixture import make_run

HOSTILE = "<script>alert(1)</script>\"onload=alert(2) '><img src=http://x.test/y></style></svg>{{ 7 * 7 }}]]>&amp;"


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return make_run(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def html(run: RunView) -> str:
    return render(run)


def replaced(tree: Any, value: str) -> Any:
    """The tree with every text in it, keys of open tables too, replaced."""
    if isinstance(tree, dict):
        open_table = bool(tree) and all(isinstance(v, (int, float)) for v in tree.values())
        return {(value + k if open_table else k): replaced(v, value) for k, v in tree.items()}
    if isinstance(tree, list):
        return [replaced(v, value) for v in tree]
    return value if isinstance(tree, str) and tree else tree


def bare(run: RunView, **manifests: dict[str, Any]) -> RunView:
    """The run without event files, and with other manifests."""
    return run._replace(
        stages=tuple(s._replace(folder=Path("nowhere"), manifest=manifests.get(s.name, s.manifest)) for s in run.stages)
    )


# --- the page -----------------------------------------------------------------------------------------


def test_sections_in_order(html: str) -> None:
    places = [
        html.index(f'<section id="{name}"')
        for name in (
            "lineage",
            "cost",
            "training",
            "evaluation",
            "samples",
            "ledger",
            "tokenizer",
            "card",
            "recipe",
            "export",
            "environment",
        )
    ]
    assert places == sorted(places)


def test_what_a_reader_looks_for(html: str) -> None:
    text = " ".join(Page(html).text.split())
    for words in (
        "A model of 4.46M parameters, made in 11 min 18 s. Exact match: 52.5 % on 400 items (95 % interval 47.6 to 57.4).",
        "Exported as GGUF, 4.93 MB.",
        "2.30×",
        "On disk the artifacts take",
        "no difference shown −1.4 points",
        "worse −14.0 points",
        "41,260 rows in",
        "function too long",
        "PSF-2.0 (979 rows)",
        "Both tokenise the test texts alike.",
        "3.47 bytes (gpt2: 2.31)",
        "one constant answer: 7.5 %",
        "corpus 62 %, questions:train 38 %",
        "torch 2.13.0",
    ):
        assert words in text, words


def test_nothing_is_fetched_and_nothing_runs(html: str) -> None:
    page = Page(html)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:"))


def test_every_picture_has_words(html: str) -> None:
    page = Page(html)
    pictures = page.all("svg")
    assert len(pictures) > 40
    for attrs in pictures:
        assert attrs.get("aria-hidden") == "true" or (attrs.get("role") == "img" and attrs.get("aria-label")), attrs
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert html.count("<caption") == html.count("<table")
    assert len(page.all("h1")) == 1


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [attrs["id"] for tag, attrs in page.tags if attrs.get("id") and tag != "path"]
    assert len(ids) == len(set(ids))
    known = {attrs.get("id") for _, attrs in page.tags}
    for attrs in page.all("a") + page.all("use"):
        assert (attrs.get("href") or attrs.get("xlink:href") or "")[1:] in known


def test_small_and_quick(run: RunView, html: str) -> None:
    assert len(html.encode()) < 3_000_000
    start = time.process_time()
    assert render(run) == html, "the same run gives the same bytes"
    assert time.process_time() - start < 5


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark: bool) -> None:
    """Every text colour reaches 4.5 : 1 on page and card (WCAG 2.2, 1.4.3)."""
    style = (Path(sys.modules["modelwright.report"].__file__ or "").parent / "templates" / "style.css").read_text(
        encoding="utf-8"
    )
    block = style.split("@media (prefers-color-scheme: dark)")[1 if dark else 0]
    colours = {name: value for name, value in reversed(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))}

    def luminance(value: str) -> float:
        parts = [int(value[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for name in ("ink", "soft", "better", "worse", "same", *(n for n in colours if n.startswith("c-"))):
        for ground in ("paper", "card", "sunk"):
            high, low = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


# --- hostile and missing data -------------------------------------------------------------------------


def test_hostile_text_stays_text(run: RunView, tmp_path: Path) -> None:
    stages = []
    for k, stage in enumerate(run.stages):
        folder = tmp_path / str(k)
        folder.mkdir()
        for name in ("metrics.jsonl", "items.jsonl"):
            if (stage.folder / name).exists():
                lines = [json.loads(line) for line in (stage.folder / name).read_text().splitlines()]
                kept = lines[:9] if name == "metrics.jsonl" else [replaced(line, HOSTILE) for line in lines]
                (folder / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
        manifest = replaced(stage.manifest, HOSTILE)
        stages.append(
            StageView(f"{HOSTILE}{k}", stage.kind, stage.state, manifest, folder, tuple(f"{HOSTILE}{p}" for p in range(k)))
        )
    for state in ("cached", "failed", HOSTILE):
        stages.append(StageView(HOSTILE + state, HOSTILE, state, {}, tmp_path, (HOSTILE, "hf:" + HOSTILE)))
    hostile = RunView(HOSTILE, HOSTILE, tuple(stages), HOSTILE, HOSTILE, 1.0)
    html = render(hostile)
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert html.count("</style>") == 1
    assert html.count("<svg") == html.count("</svg>")
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(HOSTILE) > 50
    _, front_text, body = model_card(hostile).split("---\n", 2)
    assert "<script" not in body and "<img" not in body
    front = yaml.safe_load(front_text)
    assert front["model-index"][0]["name"] == HOSTILE


def shapes(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every place in a manifest, items of a list taken together."""
    if path:
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else ((("[]", v) for v in tree) if isinstance(tree, list) else ()):
        yield from shapes(value, (*path, key))


def put(tree: Any, path: tuple[str, ...], value: Any) -> None:
    if path[0] == "[]":
        for k, item in enumerate(tree) if isinstance(tree, list) else ():
            if len(path) == 1:
                tree[k] = value
            elif isinstance(item, (dict, list)):
                put(item, path[1:], value)
    elif isinstance(tree, dict) and path[0] in tree:
        if len(path) == 1:
            tree[path[0]] = value
        else:
            put(tree[path[0]], path[1:], value)


def test_anything_may_be_missing_or_wrong(run: RunView) -> None:
    wrong = [None, "text", -1.5, [], [3], {"a": None}, float("nan")]
    places = sorted(
        {path for s in run.stages for path in shapes(s.manifest) if path[0] in ("stats", "estimate", "actual", "spec", "made_by")}
    )
    assert len(places) > 100
    for k in range(4):  # four places that are not neighbours are broken at a time
        for first in range(k, len(places), 16):
            group = [(path, wrong[(first + n) % len(wrong)]) for n, path in enumerate(places[first : first + 16 : 4])]
            manifests = {s.name: copy.deepcopy(s.manifest) for s in run.stages}
            for path, value in group:
                for manifest in manifests.values():
                    put(manifest, path, value)
            broken = bare(run, **manifests)
            try:
                assert render(broken) and model_card(broken)
            except Exception as error:
                raise AssertionError(f"broken by one of {group}") from error


def test_an_empty_run() -> None:
    empty = RunView("empty", "", (), "", "", 0.0)
    assert "empty" in render(empty)
    assert "No evaluation is part of this recipe" in model_card(empty)


def test_a_failed_run_says_so(run: RunView) -> None:
    names = ["made", "made", "made", "failed", *["missing"] * 7]
    stages = tuple(
        s._replace(state=state, manifest=s.manifest if state == "made" else {}, folder=Path("nowhere"))
        for s, state in zip(run.stages, names, strict=True)
    )
    html = render(run._replace(stages=stages))
    text = " ".join(Page(html).text.split())
    assert "base failed" in text and "chat was not made" in text
    assert 'id="training"' not in html and 'id="samples"' not in html and 'id="ledger"' in html


def test_what_sources_leave_out_is_told(run: RunView) -> None:
    found = [s._replace(manifest=copy.deepcopy(dict(s.manifest))) for s in run.stages]
    curated = next(s for s in found if s.kind == "curate")
    curated.manifest["stats"]["ledger"][0]["left_out"] = {"hidden files": 1234}
    text = " ".join(Page(render(run._replace(stages=tuple(found)))).text.split())
    assert "files or entries of them: 1,234 hidden files." in text


# --- the parts ----------------------------------------------------------------------------------------


def test_verdict_needs_an_interval_without_zero() -> None:
    assert verdict(0.01, 0.2, True) == BETTER and verdict(-0.2, -0.01, True) == WORSE
    assert verdict(0.01, 0.2, False) == WORSE and verdict(-0.2, -0.01, False) == BETTER
    assert verdict(-0.1, 0.2, True) == SAME and verdict(None, 0.2, True) == SAME and verdict(0.0, 0.2, True) == SAME


def test_shares_are_compared_on_one_axis(run: RunView) -> None:
    found = [forest for group in forests(run) for forest in group if forest.metric == "exact match"]
    assert len(found) == 2 and found[0].ticks == found[1].ticks and found[0].zero_frac == found[1].zero_frac
    for line in found[0].lines:
        assert 0 <= line.low_frac <= line.at_frac <= line.high_frac <= 1


def test_samples_pair_the_same_items(run: RunView) -> None:
    """Two of eight answers of the earlier stages stand only in their items.jsonl."""
    found = side_by_side(run)
    assert len(found) == 8
    assert [r.stage for r in found[0].replies] == ["base_score", "chat_score", "final_score"]
    assert {f.group for f in found[:5]} == {"parameters", "default", "raises", "calls", "from memory"}
    last = next(f for f in found if f.id.startswith("heapq"))
    assert [r.mark for r in last.replies] == ["wrong", "partly right", "partly right"] and last.prompt.startswith(
        "In one sentence"
    )


def test_an_item_that_was_asked_otherwise_is_left_out(run: RunView, tmp_path: Path) -> None:
    stages = []
    for stage in run.stages:
        if stage.name == "chat_score":
            rows = [json.loads(line) for line in (stage.folder / "items.jsonl").read_text().splitlines()]
            rows[0]["mark"] = "another question"
            (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            stage = stage._replace(folder=tmp_path)
        stages.append(stage)
    assert len(side_by_side(run._replace(stages=tuple(stages)))) == 7


def test_lineage_of_a_larger_run() -> None:
    parents = {
        "a": (),
        "b": ("a",),
        "c": ("a", "b"),
        "d": ("a", "c"),
        "e": ("d", "a"),
        "p": (),
        "f": ("e", "p"),
        "s1": ("d", "a"),
        "s2": ("e", "a", "s1"),
        "s3": ("f", "a", "s2"),
        "q": ("f",),
        "s4": ("q", "a", "s3"),
        "x": ("q",),
        "y": ("f",),
        "z": ("x", "y"),
    }
    placed = place(parents, WIDE)
    assert all(placed.layer[p] < placed.layer[c] for c, above in parents.items() for p in above)
    assert placed.layer["p"] == placed.layer["f"] - 1, "what reads nothing stands right before what reads it"
    for layer in range(placed.layers):
        column = sorted(
            (at, WIDE.across if placed.layer[name] == k else LANE) for (name, k), at in placed.at.items() if k == layer
        )
        for (a, tall), (b, next_tall) in pairwise(column):
            assert b - a >= (tall + next_tall) / 2 + WIDE.gap_across - 1e-6
    assert all(b[1] == a[1] + 1 for a, b in placed.links)


def test_a_reference_from_outside_gets_a_box(run: RunView) -> None:
    stages = (run.stages[3]._replace(parents=("hf:org/name@main",), folder=Path("nowhere")),)
    html = render(run._replace(stages=stages))
    assert "from outside" in html and "hf:org/name@main" in html


def test_cached_stages_are_told(run: RunView, tmp_path: Path) -> None:
    cached = make_run(tmp_path, state="cached")
    assert "3 of 11 cached" in " ".join(Page(render(bare(cached))).text.split())


def test_card_front_matter(run: RunView) -> None:
    card = model_card(run)
    _, front, body = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["license"] == "unknown" and found["library_name"] == "transformers"
    metrics = found["model-index"][0]["results"][0]["metrics"]
    assert {m["type"] for m in metrics} == {"perplexity", "exact_match"}
    for heading in (
        "# stdlib-assistant",
        "## Facts",
        "## Data and licences",
        "## Intended use",
        "## Limits",
        "## Training",
        "## Evaluation",
    ):
        assert f"\n{heading}\n" in body
    assert "| Parameters | 4,458,752 |" in body and "Weakest slice of answers (exact match): from memory" in body


def test_verdict_line_of_parts(run: RunView) -> None:
    assert said(run._replace(stages=run.stages[:2])).startswith("Made in")
    assert said(run._replace(stages=())) == ""


# --- curves -------------------------------------------------------------------------------------------


def test_curves_as_a_standalone_picture(run: RunView) -> None:
    folder = next(s.folder for s in run.stages if s.name == "aligned")
    root = ElementTree.fromstring(curves_svg(folder))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "Reward margin" in (root.get("aria-label") or "")
    assert [p.title for p in read(folder).panels] == [
        "Loss",
        "Reward margin",
        "Pairs ranked right",
        "Learning rate",
        "Gradient norm",
        "Speed",
    ]


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    steps = [1, 2, 3, 2, 3, 4]
    lines = [{"event": "step", "step": s, "loss": float(k), "tokens": 100 * s, "seconds": 0.5 * s} for k, s in enumerate(steps)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "step", "st')
    found = {p.title: p for p in read(tmp_path).panels}
    assert found["Loss"].line == [(1, 0.0), (2, 3.0), (3, 4.0), (4, 5.0)]
    assert [v for _, v in found["Speed"].line] == [200.0] * 3


def test_routers_of_a_mixture_are_watched(tmp_path: Path) -> None:
    lines = [{"event": "step", "step": step, "loss": 2.0, "expert_most": 1.5, "experts_idle": 0.25} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {panel.title: panel for panel in read(tmp_path).panels}
    assert found["Busiest expert"].line == [(1, 1.5), (2, 1.5)] and found["Busiest expert"].level == 1.0
    assert found["Experts without tokens"].line == [(1, 25.0), (2, 25.0)]


def test_no_curves_without_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training steps"):
        curves_svg(tmp_path)


def test_matplotlib_missing(run: RunView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="matplotlib"):
        render(run)
    assert render(bare(run)), "a run without curves needs no matplotlib"


@pytest.mark.parametrize(("points", "marker"), [([(5.0, 1.0)], "o"), ([(1.0, 2.0), (5.0, 1.0)], "")])
def test_a_line_of_one_point_can_be_seen(points: list[tuple[float, float]], marker: str) -> None:
    from matplotlib.figure import Figure

    from modelwright.report.curves import Panel, _draw

    axes = Figure().add_subplot()
    _draw(axes, Panel("Loss", "", points, [], "", False), 5)
    assert axes.lines[0].get_marker() == marker
