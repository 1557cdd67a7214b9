"""Rows through steps in chunks: the same bytes and the same ledger, whatever the number of processes and wherever rows wait."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from modelwright.core import workers
from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log
from modelwright.core.recipe import loads
from modelwright.core.record import Record, write_records
from modelwright.core.stage import STAGES, Input, Run
from modelwright.core.workers import Workers
from modelwright.methods.sources import SOURCES, _files
from modelwright.methods.steps import Step
from modelwright.stages import _curate_cost, _curate_flow, _curate_rows
from tests import document_kit
from tests.test_data_steps import CODE, PROSE, docs, prose, vary

# --- workers ------------------------------------------------------------------------------------------------


def squares(payload: int) -> Callable[[int], tuple[int, int]]:
    print("this is not a result")
    if payload < 0:
        raise UserError("a bad payload", "it is negative", "give another")

    def work(item: int) -> tuple[int, int]:
        time.sleep(0.005)  # or another thread would not come to send anything
        if item == 13:
            raise UserError("a bad item", "it is 13", "leave it out")
        if item == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 15:
            raise ValueError("a bug")
        return item * item + payload, os.getpid()

    return work


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order(count: int) -> None:
    pool = Workers("tests.test_workers:squares", 1, count)
    try:
        found = list(pool.map(range(12)))
        assert [value for value, _ in found] == [item * item + 1 for item in range(12)]
        assert len({pid for _, pid in found}) == count and os.getpid() not in {pid for _, pid in found}
        assert [value for value, _ in pool.map(range(2))] == [1, 2], "a pool may be used again"
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [(13, UserError, "a bad item"), (14, UserError, "a worker process ended"), (15, RuntimeError, "ValueError: a bug")],
)
def test_an_error_in_a_worker_is_raised_here(item: int, error: type[Exception], says: str) -> None:
    pool = Workers("tests.test_workers:squares", 0, 2)
    try:
        with pytest.raises(error, match=says):
            list(pool.map([1, item, 2, 3, 4, 5]))
    finally:
        pool.close()


@pytest.fixture
def all_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time items take."""
    monkeypatch.setattr(workers, "QUICK_S", 0.0)


@pytest.mark.usefixtures("all_travel")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_this_process_may_be_one_of_them(count: int) -> None:
    here = squares(1)
    pool = Workers("tests.test_workers:squares", 1, count, here)
    try:
        found = list(pool.map(range(12)))
        assert [value for value, _ in found] == [item * item + 1 for item in range(12)]
        assert len({pid for _, pid in found}) == count and os.getpid() in {pid for _, pid in found}, "it works while it waits"
        again = pool.map(value for value, _ in pool.map(range(9)))
        assert [value for value, _ in again] == [(n * n + 1) ** 2 + 1 for n in range(9)], "items of one from results of another"
        assert not list(pool.map([]))
    finally:
        pool.close()


def test_what_takes_no_time_stays_here() -> None:
    pool = Workers("tests.test_workers:squares", 1, 3, squares(1))
    try:
        assert [pid for _, pid in pool.map(range(12))] == [os.getpid()] * 12
    finally:
        pool.close()


def dozing(payload: float) -> Callable[[float], tuple[float, int]]:
    def work(item: float) -> tuple[float, int]:
        time.sleep(item * payload)
        return item, os.getpid()

    return work


def test_what_takes_long_is_shared_and_taken_back() -> None:
    """A worker that is slow to begin keeps the two items that were sent to it; the others come back when nothing else is left."""
    pool = Workers("tests.test_workers:dozing", 5.0, 2, dozing(0.05))
    try:
        found = list(pool.map([0.0, 1.0, 1.01, 1.02, 1.03, 1.04]))
        assert [item for item, _ in found] == [0.0, 1.0, 1.01, 1.02, 1.03, 1.04]
        assert 1 <= sum(pid != os.getpid() for _, pid in found) <= 2
    finally:
        pool.close()


@pytest.mark.usefixtures("all_travel")
@pytest.mark.parametrize(("item", "error"), [(13, UserError), (15, Exception)])
@pytest.mark.parametrize("at", range(8))
def test_the_first_error_in_order_is_told_whoever_met_it(at: int, item: int, error: type[Exception]) -> None:
    pool = Workers("tests.test_workers:squares", 0, 2, squares(0))
    items = [*range(at), item, 13, 13, 15]
    found = []
    try:
        with pytest.raises(error, match="a bad item" if item == 13 else "a bug"):
            for value, _ in pool.map(items):
                found.append(value)
        assert found == [n * n for n in range(at)]
    finally:
        pool.close()


def large(folder: str) -> Callable[[int], bytes]:
    def work(item: int) -> bytes:
        (Path(folder) / str(item)).touch()
        return bytes(8 << 20)

    return work


def test_a_result_that_nobody_takes_yet_does_not_stop_a_worker(tmp_path: Path) -> None:
    """Else two workers take turns: one holds its result while the other one's is waited for."""
    pool = Workers("tests.test_workers:large", str(tmp_path), 1)
    try:
        found = pool.map(range(20))
        assert len(next(found)) == 8 << 20, "four more are under way"
        deadline = time.monotonic() + 60
        while not (tmp_path / "4").exists():
            assert time.monotonic() < deadline, "it stopped at the first result"
            time.sleep(0.01)
    finally:
        pool.close()


def test_a_worker_that_cannot_begin_says_why() -> None:
    pool = Workers("tests.test_workers:squares", -1, 1)
    try:
        with pytest.raises(UserError, match="a bad payload") as found:
            list(pool.map([1]))
        assert (found.value.why, found.value.fix) == ("it is negative", "give another")
    finally:
        pool.close()


# --- a curation ---------------------------------------------------------------------------------------------

STEPS = [
    "exact_dedup",
    {"kind": "gopher", "min_words": 20, "min_stop_words": 0},
    {"kind": "held_out", "against": "./held.jsonl"},
    {"kind": "minhash", "threshold": 0.7},
    {"kind": "length", "max_chars": 1500},
    {"kind": "sample", "rows": 60},
]


def curated(tmp_path: Path, name: str, workers: int | None) -> dict[str, bytes]:
    texts = [*PROSE, *CODE, *(prose(seed, 60 + seed) for seed in range(60)), *(vary(prose(seed), 2, seed) for seed in range(20))]
    write_records(tmp_path / "rows.jsonl", docs(texts * 2))
    write_records(tmp_path / "held.jsonl", [Record("held", text=prose(3))])
    out = tmp_path / name
    out.mkdir()
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    stage: Any = STAGES.build({"kind": "curate", "source": source, "steps": STEPS})
    inputs = {ref: Input(ref, "path", tmp_path / Path(ref).name) for ref in ("./held.jsonl", str(tmp_path / "rows.jsonl"))}
    stats = stage.run(Run(out, inputs, 0, Log(None), workers=workers))
    for entry in stats["ledger"]:
        entry.pop("seconds")
    assert all(sum(entry["reasons"].values()) == entry["rows_in"] - entry["rows_out"] for entry in stats["ledger"])
    assert [entry["step"] for entry in stats["ledger"]][1:] == [s if isinstance(s, str) else s["kind"] for s in STEPS]
    assert all(entry["rows_in"] > entry["rows_out"] > 0 for entry in stats["ledger"][1:])
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())} | {"stats": json.dumps(stats).encode()}


def test_the_number_of_workers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = curated(tmp_path, "alone", None)
    monkeypatch.setattr(_curate_flow, "CHUNK_ROWS", 7)
    assert curated(tmp_path, "small", 1) == alone, "nor where chunks end"
    assert curated(tmp_path, "three", 3) == alone
    monkeypatch.setattr(_curate_cost, "HELD_BYTES", 10_000)
    monkeypatch.setattr(_curate_flow, "HELD_NUMBERS", 10_000)
    assert curated(tmp_path, "disk", 2) == alone, "nor whether rows wait on the disk"


@pytest.mark.usefixtures("all_travel")
def test_what_comes_back_from_a_worker_leaves_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command works on it behind later rows, of whose drops it may have kept enough."""
    monkeypatch.setattr(_curate_flow, "CHUNK_ROWS", 5)
    write_records(tmp_path / "rows.jsonl", docs([f"{'long' * (number % 2)} {number}" for number in range(45)]))
    ref = str(tmp_path / "rows.jsonl")
    # two sources are read here, in chunks
    source = [{"kind": "jsonl", "path": ref}, {"kind": "jsonl", "path": ref, "on_bad": "drop"}]
    stage: Any = STAGES.build({"kind": "curate", "source": source, "steps": [{"kind": "length", "min_chars": 5}]})
    found = []
    for count in (1, 2):
        out = tmp_path / f"out-{count}"
        out.mkdir()
        stage.run(Run(out, {ref: Input(ref, "path", Path(ref))}, 0, Log(None), workers=count))
        found.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert found[0] == found[1] and len(found[0]["dropped.jsonl"].splitlines()) == 20


def test_rows_that_wait_are_read_again(tmp_path: Path) -> None:
    rows = [*docs(["a", "", "b\n", "ü \ud800"]), Record("c", messages=[{"role": "user", "content": "é"}], meta={"n": 1})]
    chars = [1, 0, 2, 3, 1]
    journal = tmp_path / "journal"
    journal.write_bytes(b"head" + b"".join(row.to_json() + b"\n" for row in rows[3:]))
    for most in (1 << 20, 2):
        held = _curate_rows.Held(tmp_path / "waiting", most)
        for row in rows[:3]:
            held.add(_curate_rows.Rows([row], [len(row.text)]))
        held.add(_curate_rows.Rows(rows[3:], [5, 2]), _curate_rows.Place(journal, 4))
        assert len(held) == 5 and list(held) == rows and [held[i] for i in (4, 0, 3)] == [rows[4], rows[0], rows[3]]
        assert held[1:3] == rows[1:3] and (tmp_path / "waiting").exists() is (most == 2)
        for row, again in zip(held, rows, strict=True):
            assert row == again and held[0] == rows[0], "looking at single rows does not lose the place"
        assert [(first, list(some.chars), sum(some.sizes)) for first, some in held.chunks()] == [
            (0, chars[:1], 1),
            (1, chars[1:2], 0),
            (2, chars[2:3], 2),
            (3, chars[3:], 7),
        ]
        held.close()
        assert not (tmp_path / "waiting").exists() and journal.exists()


def test_rows_change_alike_as_objects_and_as_lines() -> None:
    rows = docs(["a", "bé", "", "d" * 50, "e"])
    became = {0: None, 1: Record("n", text="ü"), 3: None}
    left = [became[1], rows[2], rows[4]]
    for read in (False, True):
        some = _curate_rows.Rows(rows, [1, 3, 0, 50, 1])
        if read:
            some = pickle.loads(pickle.dumps(some))
        assert some.changed({}) is some and list(some) == rows and some[1:3] == rows[1:3]
        found = some.changed(became)
        assert list(found) == left and [found[i] for i in range(3)] == left and list(found.sizes) == [2, 0, 1]
        assert list(found.chars) == [1, 0, 1] and found.lines() == b"".join(row.to_json() + b"\n" for row in left)


@pytest.mark.parametrize("most", [10**9, 100, 0])
def test_columns_lie_in_memory_or_on_the_disk(tmp_path: Path, most: int) -> None:
    columns = _curate_rows.Columns(tmp_path / "waiting", most)
    objects = np.empty(2, object)
    objects[:] = ["x", [1]]
    for _ in range(3):
        columns.add({"band": np.arange(6).reshape(2, 3), "yes": np.array([True, False]), "object": objects})
    assert len(list(tmp_path.iterdir())) == (0 if most > 1000 else 2)
    for _ in range(2):
        assert columns["band"].tolist() == [[0, 1, 2], [3, 4, 5]] * 3 and columns["yes"].tolist() == [True, False] * 3
        assert columns["object"].tolist() == ["x", [1]] * 3 and set(columns) == {"band", "yes", "object"}
    columns.close()
    assert not list(tmp_path.iterdir()) and not columns


@pytest.mark.parametrize("kind", ["jsonl", "markdown", "html", "pdf", "docx", "epub"])
def test_a_source_in_pieces_gives_what_it_gives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(_files, "FILES", 2)
    monkeypatch.setattr(_files, "LINES_BYTES", 60)
    document_kit.files(tmp_path)
    here = tmp_path / "documents"
    for number in range(5):
        (here / f"{number}.html").write_text(f"<html><body><p>Page {number}.</p></body></html>" * (number != 3))
        (here / f"{number}.jsonl").write_text(
            "".join(f'{{"text": "é {n}"}}\n' for n in range(9)) + '{"text": "torn'[: 7 * number]
        )
        for suffix in ("md", "pdf", "docx", "epub"):
            (here / f"{number}.{suffix}").write_bytes((here / f"{'ab'[number % 2]}.{suffix}").read_bytes())
            (here / f"bad.{suffix}").write_bytes(b"\xff\xfe\x00 neither this nor that")
    for name in ("a", "b"):
        (here / f"{name}.jsonl").unlink()
    source: Any = SOURCES.build({"kind": kind, "path": "./documents/", "on_bad": "drop"})
    inputs = {"./documents/": Input("./documents/", "path", here)}
    told: dict[bool, list[Any]] = {False: [], True: []}
    whole = list(source.rows(inputs, Log(None, lambda event, fields: told[False].append((event, fields)))))
    log = Log(None, lambda event, fields: told[True].append((event, fields)))
    pieces = pickle.loads(pickle.dumps(list(source.pieces(inputs, log))))
    assert len(pieces) > 2 and [row for piece in pieces for row in source.of_piece(piece, log)] == whole and len(whole) > 3
    assert sorted(map(str, told[True])) == sorted(map(str, told[False])) and told[True]


class Shout(Step):
    """A step of the user's own: worker processes could not find it."""

    bytes_per_s: ClassVar[float] = 1e9
    kind: Literal["shout"] = "shout"

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record]:
        return (Record(row.id, text=row.text.upper()) for row in rows)


def test_steps_of_ones_own_stay_in_one_process(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", docs(["a", "b"]))
    ref = str(tmp_path / "rows.jsonl")
    stage: Any = STAGES.build({"kind": "curate", "source": {"kind": "jsonl", "path": ref}})
    notes: list[str] = []
    log = Log(None, lambda event, fields: notes.append(fields.get("text", "")))
    run = Run(tmp_path, {ref: Input(ref, "path", Path(ref))}, 0, log, workers=2)
    assert stage.model_copy(update={"steps": (Shout(),)}).run(run)["rows_out"] == 2
    assert '"text":"A"' in (tmp_path / "all.jsonl").read_text()
    assert any("one process works through the rows: shout" in note for note in notes)


def test_workers_of_a_recipe_without_curation_would_be_ignored() -> None:
    with pytest.raises(UserError, match="'workers' would be ignored"):
        loads("name: x\nruntime: {workers: 2}\nstages:\n  v: {kind: tokenizer, data: ./rows.jsonl}\n")


# --- what it takes ------------------------------------------------------------------------------------------


def spec(**fields: Any) -> Any:
    return STAGES.build({"kind": "curate", "source": {"kind": "jsonl", "path": "./rows.jsonl"}, **fields})


def planned(bytes_in: float, machine: Machine, **fields: Any) -> Any:
    return spec(**fields).estimate(Given(machine, {"./rows.jsonl": Facts(type="path", bytes=bytes_in)}))


def test_the_estimate_knows_workers() -> None:
    one, two, four = (planned(10e9, Machine("m", cores, 64e9), steps=["gopher"]) for cores in (1, 2, 4))
    begin_s = _curate_cost.BEGIN_S
    work_s = [found.seconds.value - begin_s for found in (one, two)]
    assert work_s[0] / (work_s[1] - _curate_cost.START_S) == pytest.approx(2 * _curate_cost.EFFICIENCY)
    assert two.seconds.value > four.seconds.value and "4 processes" in four.seconds.why
    each = [found.memory.value for found in (one, two, four)]
    assert each[2] - each[1] == 2 * _curate_cost.WORKER_BYTES and "for each of 4 workers" in four.memory.why
    small = planned(1e6, Machine("m", 4, 64e9), steps=["gopher"])
    assert "processes" not in small.seconds.why and small.memory.value < each[0] + 1
    tight = planned(10e9, Machine("m", 16, 1e9), steps=["gopher"])
    assert tight.memory.value < 1e9, "no more workers than the memory holds"


def test_the_estimate_counts_what_choices_remember() -> None:
    machine = Machine("m", 1, 8e9)

    def memory(bytes_in: float, **fields: Any) -> float:
        value: float = planned(bytes_in, machine, **fields).memory.value
        return value

    assert memory(12e9, steps=["substrings"]) - memory(6e9, steps=["substrings"]) > 40e9
    assert "MORE THAN THE 8 GB THERE ARE" in planned(12e9, machine, steps=["substrings"]).memory.why
    grows = memory(20e9, steps=["minhash"], split={"test": 10}) - memory(10e9, steps=["minhash"], split={"test": 10})
    assert 10e9 / 1000 * 240 < grows < 10e9 / 1000 * 350, "what is made of numbers, which lie on the disk, and no rows"
    assert memory(20e9, steps=["gopher"]) == memory(10e9, steps=["gopher"]), "rows flow through"
    assert "nobody has counted them" in planned(1e9, machine, steps=["minhash"]).memory.why


def test_a_curation_that_will_not_fit_is_refused_before_the_work(tmp_path: Path) -> None:
    write_records(tmp_path / "rows.jsonl", docs([prose(seed, 60) for seed in range(400)]))
    given = {"./rows.jsonl": Input("./rows.jsonl", "path", tmp_path / "rows.jsonl")}
    run = Run(tmp_path, given, 0, Log(None), memory_bytes=300e6)
    assert all(check.ok for check in spec(steps=["substrings"]).checks(run))
    failed = [check for check in spec(steps=["substrings"]).checks(run._replace(memory_bytes=150e6)) if not check.ok]
    assert [check.name for check in failed] == ["memory"] and "`runtime.memory`" in failed[0].fix
    assert "MORE THAN THE 150 MB" in failed[0].detail


def test_less_memory_sends_rows_to_the_disk_sooner() -> None:
    assert _curate_cost.held_bytes(2e9) == 250_000_000 and _curate_cost.held_bytes(2e9, 2) == 125_000_000
    assert _curate_cost.held_bytes(1e12) == _curate_cost.HELD_BYTES
    loaded = loads(
        "name: x\nruntime: {memory: 500MB}\nstages:\n  v: {kind: curate, source: {kind: text, path: ./t/}, steps: [minhash]}\n"
    )
    assert loaded.recipe.runtime.memory == "500MB"
    with pytest.raises(UserError, match="write bytes with their unit"):
        loads("name: x\nruntime: {memory: 2 gigs}\nstages:\n  v: {kind: curate, source: {kind: text, path: ./t/}}\n")
