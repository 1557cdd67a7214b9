"""Numbers of rows are kept and thresholds come after: the same bytes with and without what the store knows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record, write_records
from modelwright.core.stage import STAGES, Input, Run
from modelwright.methods.steps import STEPS, Bound, Measuring, Numbers
from modelwright.report import RunView, StageView, render
from modelwright.report.ledger import ledger
from modelwright.stages import _curate_flow, _curate_known, _curate_shelf
from modelwright.stages._curate_known import Known, Segment, Stored, keys_of
from modelwright.stages._curate_seen import Seen, histogram
from modelwright.stages._curate_shelf import Shelf
from tests import content_kit
from tests.test_data_steps import CODE, PROSE, docs, prose, vary

TEXTS = [*PROSE, *(prose(seed, 20 + 2 * seed) for seed in range(60)), "ü été", *(vary(prose(7), 2, s) for s in range(9))]
STRICT: list[Any] = [
    {"kind": "length", "max_chars": 1500},
    {"kind": "gopher", "min_words": 30, "min_stop_words": 0},
    {"kind": "language", "min_confidence": 0.3},
    {"kind": "fineweb", "max_short_lines_frac": 1},
    {"kind": "code_quality", "max_line_chars": 50},
    {"kind": "toxicity", "words": ["river", "ü"], "max_count": 2},
    {"kind": "quality", "good": "./good.jsonl", "bad": "./bad.jsonl", "threshold": 0.1},
    {"kind": "minhash", "threshold": 0.9},
]
LOOSE: list[Any] = [
    {"kind": "quality", "good": "./good.jsonl", "bad": "./bad.jsonl", "keep": 0.9},
    {"kind": "gopher", "min_words": 1, "min_stop_words": 0, "max_dup_5gram_frac": 1},
    {"kind": "code_quality", "max_line_chars": 30},
    {"kind": "toxicity", "words": ["river", "ü"], "max_count": 20},
    {"kind": "language", "keep": ["en", "de", "la"], "min_confidence": 0},
    {"kind": "length", "max_chars": 5000},
    {"kind": "minhash", "threshold": 0.6},
]


class Notes(Log):
    def __init__(self) -> None:
        super().__init__(None)
        self.texts: list[str] = []
        self.counts: dict[str, tuple[int, int]] = {}

    def event(self, name: str, **fields: Any) -> None:
        if name == "columns":
            self.counts[fields["set"].rpartition("-")[0]] = (fields["known"], fields["rows"])
        if name == "note":
            self.texts.append(fields["text"])


def examples(folder: Path) -> dict[str, Input]:
    write_records(folder / "good.jsonl", content_kit.examples(content_kit.WANTED, 0))
    write_records(folder / "bad.jsonl", content_kit.examples(content_kit.UNWANTED, 200))
    return {ref: Input(ref, "path", folder / Path(ref).name, key=f"key of {ref}") for ref in ("./good.jsonl", "./bad.jsonl")}


def curated(
    folder: Path, name: str, steps: list[Any], columns: Path | None, workers: int | None = None
) -> tuple[dict[str, Any], Notes]:
    """Every byte that a curation leaves, and what it told."""
    code = [Record(f"code {n}", text=text, meta={"language": "python"}) for n, text in enumerate(CODE)]
    write_records(folder / "rows.jsonl", [*docs(TEXTS), *code])
    (folder / name).mkdir()
    source = {"kind": "jsonl", "path": str(folder / "rows.jsonl")}
    stage: Any = STAGES.build({"kind": "curate", "source": source, "steps": steps})
    inputs = {**examples(folder), source["path"]: Input(source["path"], "path", folder / "rows.jsonl")}
    log = Notes()
    stats = stage.run(Run(folder / name, inputs, 0, log, workers=workers, columns=columns))
    for entry in stats["ledger"]:
        entry.pop("seconds")
    files = {path.name: path.read_bytes() for path in sorted((folder / name).iterdir())}
    return {**files, "stats": json.dumps(stats)}, log


def test_what_the_store_knows_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: curated(tmp_path, name, steps, None)[0] for name, steps in (("strict", STRICT), ("loose", LOOSE))}
    store = tmp_path / "store"
    first, told = curated(tmp_path, "first", STRICT, store)
    assert first == without["strict"]
    assert all(known == 0 for known, _ in told.counts.values()) and not any("known" in text for text in told.texts)
    again, told = curated(tmp_path, "again", STRICT, store, workers=2)
    assert again == first and all(known == rows > 0 for known, rows in told.counts.values())
    assert set(told.counts) == {"prose", "language", "code_quality", "toxicity", "quality", "minhash"}, (
        "a length costs less than its key"
    )
    monkeypatch.setattr(_curate_flow, "CHUNK_ROWS", 11)
    for name in ("other", "others"):
        other, told = curated(tmp_path, name, LOOSE, store, workers=1)
        assert other == without["loose"], "other thresholds in another order, in other chunks"
    assert any("statistics were known of" in text and "(prose)" in text for text in told.texts)
    assert all(known == rows for known, rows in told.counts.values()), "the run before left what was new to it"


def test_a_run_that_stops_leaves_what_it_worked_out(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", docs(PROSE))
    ref = str(tmp_path / "rows.jsonl")
    tree = {"kind": "curate", "source": {"kind": "jsonl", "path": ref}, "steps": ["gopher"]}

    def run(name: str, **fields: Any) -> dict[str, tuple[int, int]]:
        (tmp_path / name).mkdir()
        log, stage = Notes(), STAGES.build({**tree, **fields})
        with contextlib.suppress(UserError):
            stage.run(Run(tmp_path / name, {ref: Input(ref, "path", Path(ref))}, 0, log, columns=tmp_path / "store"))  # type: ignore[attr-defined]
        return log.counts

    assert run("stopped", limits={"min_rows": 10**6}) == {"prose": (0, len(PROSE))}
    assert run("again") == {"prose": (len(PROSE), len(PROSE))}


def test_steps_of_one_set_share_its_numbers(tmp_path: Path) -> None:
    """Without a store, too: FineWeb's numbers are Gopher's."""
    asked: list[int] = []

    def measure(rows: Sequence[Record]) -> Numbers:
        asked.append(len(rows))
        return {"n": np.array([len(row.text) for row in rows])}

    known = Known(None, Stored({"a": "set-1", "b": "set-1"}, {}))
    rows = docs(["a", "bb", "a", "ccc"])
    assert known.of("a", measure)(rows)["n"].tolist() == [1, 2, 1, 3] == known.of("b", measure)(rows)["n"].tolist()
    assert known.of("a", measure)([rows[3], *docs(["dddd"])])["n"].tolist() == [3, 4] and asked == [4, 1]
    assert known.of("c", measure)(rows)["n"].tolist() == [1, 2, 1, 3] and asked == [4, 1, 4]
    assert known.taken() == {}, "nothing is kept where there is no store"


def test_a_set_is_what_its_numbers_depend_on(tmp_path: Path) -> None:
    keyed = examples(tmp_path)
    inputs = {ref: given._replace(key="") for ref, given in keyed.items()}

    def name(kind: str, given: dict[str, Input] = keyed, /, **fields: Any) -> str | None:
        return _curate_known.set_of(STEPS.build({"kind": kind, **fields}), Run(tmp_path, given, 0, Log(None)))  # type: ignore[arg-type]

    learnt = {"good": "./good.jsonl", "bad": "./bad.jsonl"}
    assert (
        name("gopher") == name("fineweb") == name("gopher", min_words=7) != name("language") != name("language", mode="accurate")
    )
    assert name("language") == name("language", keep=["de"]) and name("length") is None
    assert name("quality", **learnt) == name("quality", **learnt, threshold=0.9) is not None
    assert name("quality", **learnt) != name("quality", good="./bad.jsonl", bad="./good.jsonl")
    assert name("quality", inputs, **learnt) is None, "what has no key may change unseen"
    assert name("toxicity", words=["a"]) != name("toxicity", words=["b"])
    assert name("minhash") == name("minhash", threshold=0.5) != name("minhash", words="datatrove") is not None


def test_numbers_that_depend_on_company_are_known_in_the_same_alone() -> None:
    rows = docs(["a", "b", "c"])
    assert (keys_of(rows)[:2] == keys_of(rows[:2])).all()
    together, fewer = keys_of(rows, in_company=True), keys_of(rows[:2], in_company=True)
    assert (together == keys_of(rows, in_company=True)).all() and not (together[:2] == fewer).any()


# --- files ------------------------------------------------------------------------------------------------------


def segment(texts: list[str], value: float = 0.5) -> Segment:
    numbers = {
        "whole": np.array([len(text) * 300 for text in texts]),
        "less": np.arange(len(texts)) - 1,
        "real": np.full(len(texts), value),
        "code": np.array([text[:8].encode() for text in texts], "S8"),
    }
    return Segment.of(keys_of(docs(texts)), numbers)


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    made = segment(["a", "bb", "ccc", "bb", "d" * 500], value=0.1 + 0.2)
    assert len(made.key_N2) == 4 and made.columns["whole"].dtype == np.uint32
    read = Segment.read(made.write(tmp_path), check=True)
    assert read is not None
    found, place = read.find(keys_of(docs(["ccc", "new", "a"])))
    assert found.tolist() == [0, 2]
    back = {name: column[place].astype(read.dtypes[name]) for name, column in read.columns.items()}
    assert back["whole"].tolist() == [900, 300] and back["whole"].dtype == np.int64 and back["less"].tolist() == [1, -1]
    assert back["real"].tolist() == [0.1 + 0.2] * 2 and back["code"].tolist() == [b"ccc", b"a"]


def test_damaged_files_are_told_and_left_out(tmp_path: Path) -> None:
    log = Notes()
    good, bad, torn, empty = (segment([f"{i}"]).write(tmp_path / "set-1") for i in range(4))
    data = bytearray(bad.read_bytes())
    data[-70] ^= 1
    bad.write_bytes(data)
    torn.write_bytes(torn.read_bytes()[:20])
    empty.write_bytes(b"")
    assert Shelf(tmp_path, {"a": "set-1"}, log).stored.files == {"set-1": [good.name]}
    assert len(log.texts) == 3 and all("damaged" in text for text in log.texts) and os.listdir(tmp_path / "set-1") == [good.name]
    good.unlink()
    known = Known(tmp_path, Stored({"a": "set-1"}, {"set-1": [good.name]}))
    assert known.of("a", lambda rows: {"n": np.ones(len(rows))})(docs(["a"]))["n"] == 1, "another run has joined it to others"


def test_files_stay_few_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Notes()
    monkeypatch.setattr(_curate_shelf, "FLUSH_ROWS", 1)
    for run in range(3):
        shelf = Shelf(tmp_path, {"a": "set-1"}, log)
        for i in range(4):
            shelf.take({"set-1": _curate_known.Fresh(segment([f"{run} {i}", "same"]), 0, 2)})
        assert len(list(tmp_path.glob("set-1/*.columns"))) in (4, 8, 12)
        shelf.close()
    (joined,) = tmp_path.glob("set-1/*.columns")
    whole = Segment.read(joined, check=True)
    assert whole is not None and len(whole.key_N2) == 13
    monkeypatch.setattr(_curate_shelf, "LIMIT_BYTES", 1000)
    shelf = Shelf(tmp_path, {"a": "set-2"}, log)
    shelf.take({"set-2": _curate_known.Fresh(segment(["x"]), 0, 1)})
    shelf.close()
    assert [path.parent.name for path in tmp_path.glob("*/*.columns")] == ["set-2"]
    assert log.texts[-1] == "the statistics of 13 rows, used least lately, were removed: the store keeps 1 kB of them"


# --- histograms --------------------------------------------------------------------------------------------------


class Given(Measuring):
    """Bounds on what a test hands over."""

    bytes_per_s = 1.0
    published = "a paper"
    kind: str = "given"
    most: float = 10.0


def seen(value_D: Any, most: float = 10.0, step: Measuring | None = None) -> Seen:
    found = Seen()
    gone = bytes(bool(value > most) for value in value_D)
    found.see(step or Given(), {"too much": Bound("n", np.asarray(value_D), -np.inf, most, "most")}, gone)
    return found


def test_a_histogram_holds_every_row_once() -> None:
    random = np.random.default_rng(0)
    for value_D, most, scale in (
        (random.integers(0, 9, 500), 5.0, "whole"),
        (random.random(500), 0.9, "linear"),
        (random.lognormal(5, 2, 5000), 900.0, "log"),
        (np.zeros(7), 10.0, "whole"),
        (np.full(3, 0.25), 0.25, "linear"),
        (np.append(np.full(999, 0.5), 1e9), 1.0, "linear"),
        (np.array([-3.5, 0.0, np.nan, np.inf, 2.5]), 1.0, "linear"),
    ):
        (tree,) = seen(value_D, most).stats("given")
        real = np.asarray(value_D, float)[np.isfinite(value_D)]
        assert tree["scale"] == scale and tree["rows"] == len(real)
        assert sum(tree["kept"]) + tree["beyond"][0] == (real <= most).sum()
        assert sum(tree["dropped"]) + tree["beyond"][1] == (real > most).sum()
        assert len(tree["edges"]) == len(tree["kept"]) + 1 <= 42 and tree["edges"] == sorted(tree["edges"])
        for edge, after, rows in zip(
            tree["edges"][:-1], tree["edges"][1:], map(sum, zip(tree["kept"], tree["dropped"], strict=True)), strict=True
        ):
            exact = ((real >= edge) & (real < after)).sum()
            assert abs(rows - exact) <= 0.03 * len(real) + 2 * (rows > 0)
        threshold = {
            "field": "most",
            "side": "most",
            "value": most,
            "default": 10.0,
            "rows": int((np.asarray(value_D) > most).sum()),
        }
        assert tree["thresholds"] == [threshold] and tree["source"] == "a paper"
        assert tree["median"] == pytest.approx(np.sort(real)[(len(real) - 1) // 2], rel=2e-3)


def test_histograms_add_up_however_rows_are_divided() -> None:
    value_D = np.random.default_rng(1).lognormal(3, 2, 300)
    whole, parts = seen(value_D), Seen()
    for piece in np.split(value_D, [7, 7, 150]):
        parts.add(seen(piece))
    assert parts.stats("given") == whole.stats("given")
    assert len(whole.of["n"].fine) <= 300
    assert histogram(whole.of["n"])["rows"] == 300


# --- what is shown -----------------------------------------------------------------------------------------------


def test_samples_hold_no_private_text(tmp_path: Path) -> None:
    """Neither of rows that `pii` drops nor of those that other steps drop or keep."""
    key = f"-----BEGIN PRIVATE KEY-----\n{'aB3+' * 400}\n-----END PRIVATE KEY-----"
    rows = [
        Record("short", text="ann@example.org"),
        Record("long", text=f"Call +44 20 7946 0958. {'no ' * 40}", meta={"by": "bob@example.org"}),
        Record("key", text=f"{'so ' * 60}{key}"),
        Record("mail", text=f"write to ann@example.org, or to 93.184.216.34, or {prose(9, 80)}"),
        *docs([prose(seed, 60) for seed in range(4)]),
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    ref = str(tmp_path / "rows.jsonl")
    steps = [{"kind": "length", "min_chars": 50}, {"kind": "gopher", "min_words": 50}, {"kind": "pii", "action": "drop"}]
    stage: Any = STAGES.build({"kind": "curate", "source": {"kind": "jsonl", "path": ref}, "steps": steps})
    (tmp_path / "out").mkdir()
    stats = stage.run(Run(tmp_path / "out", {ref: Input(ref, "path", Path(ref))}, 0, Log(None)))
    left = (tmp_path / "out" / "dropped.jsonl").read_text() + json.dumps(stats)
    assert not any(secret in left for secret in ("example.org", "7946", "93.184", "aB3+"))
    assert [line["reason"] for line in map(json.loads, (tmp_path / "out" / "dropped.jsonl").read_text().splitlines())].count(
        "pii: email"
    ) == 1
    assert "write to [EMAIL], or to [IP]" in left and "[PHONE]" in left


def test_some_rows_that_stayed_are_shown(tmp_path: Path) -> None:
    made, _ = curated(tmp_path, "out", STRICT, None)
    for entry in json.loads(made["stats"])["ledger"]:
        assert bool(entry["kept"]) == bool(entry["reasons"]), entry["step"]
        assert len(entry["kept"]) <= 3 and all(set(one) == {"id", "text"} and len(one["text"]) <= 300 for one in entry["kept"])


def test_the_report_shows_where_rows_went_and_why(tmp_path: Path) -> None:
    steps = [*STRICT, {"kind": "c4", "terminal_punctuation": False, "min_sentences": 1}, {"kind": "chunk", "max_chars": 100}]
    made, _ = curated(tmp_path, "out", steps, None)
    stage = StageView("docs", "curate", "made", {"stats": json.loads(made["stats"])}, tmp_path, ())
    html = render(RunView("r", "", (stage,), "m", "now", 1.0))
    found = ledger(stage)
    assert [step.step for step in found.steps][-2:] == ["c4", "chunk"] and found.steps[-1].made != "–" and not found.kept
    assert {one.step for one in found.judged} >= {
        "length",
        "gopher",
        "language",
        "fineweb",
        "code_quality",
        "toxicity",
        "quality",
        "c4",
    }
    gopher = next(one for one in found.judged if one.step == "gopher")
    assert "arXiv:2112.11446" in gopher.source and gopher.first[0].title == "words" and gopher.more
    assert [limit.words for limit in gopher.first[0].limits] == ["min_words ≥ 30 (default 50)", "max_words ≤ 100,000"]
    assert gopher.first[0].limits[0].took.startswith("7 rows fail") and 0 < gopher.first[0].limits[0].at < 1
    assert all(0 <= bar.x < 1 and bar.kept + bar.dropped <= 62.1 for bar in gopher.first[0].bars)
    assert "generated: false" in html and "min_words ≥ 30 (default 50)" in html and "<script" not in html
    assert "3 that it kept, " in html and html.count('class="statistic"') > 20
    assert ledger(stage._replace(manifest={"stats": {"statistics": [{"step": "x", "edges": [1], "kept": "?"}]}})).judged == []


def test_show_and_gc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path / "rows.jsonl", docs(TEXTS))
    recipe = "name: r\nstages:\n  docs: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}, steps: [exact_dedup, gopher]}\n"
    Path("r.yaml").write_text(recipe)
    assert main(["run", "r.yaml"]) == 0
    assert "were known" not in capsys.readouterr().out, "nor of those that checks look at"
    assert main(["show", "r.yaml", "--stage", "docs"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "█" * 32 in lines["read"] and "█" in lines["gopher"] and "too few words" in lines["gopher"]
    assert main(["run", "r.yaml", "stages.docs.steps.1.min_words=20"]) == 0
    assert "statistics were known of 83 of 83 rows (prose)" in capsys.readouterr().out
    assert main(["gc", "r.yaml", "--yes"]) == 0
    assert "a later curation would work it out again" in capsys.readouterr().out and not Path("store/columns").exists()
    assert main(["verify"]) == 0
