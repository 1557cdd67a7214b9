"""The curate stage: ledger, parts without leaks, limits, estimates, and the same bytes twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine
from modelwright.core.events import Log, read_events
from modelwright.core.record import Record, read_records, write_records
from modelwright.core.stage import STAGES, Input, Run
from modelwright.stages._curate_split import assign, find_leaks
from modelwright.stages.curate import Curate, Split

from .test_data_steps import CODE, prose, vary

SOURCE = {"kind": "jsonl", "path": "./in.jsonl"}


def stage(**fields: Any) -> Curate:
    spec = STAGES.load("curate").model_validate({"kind": "curate", "source": SOURCE, **fields})
    assert isinstance(spec, Curate)
    return spec


def setup(tmp_path: Path, rows: list[Record], name: str = "out", seed: int = 0) -> Run:
    tmp_path.mkdir(exist_ok=True)
    write_records(tmp_path / "in.jsonl", rows)
    out = tmp_path / name
    out.mkdir()
    return Run(out, {"./in.jsonl": Input("./in.jsonl", "path", tmp_path / "in.jsonl")}, seed, Log(out / "metrics.jsonl"))


def questions(objects: int = 60, each: int = 5) -> list[Record]:
    """Rows about objects whose sources come in near-identical pairs; each third object shares a name with another."""
    rows = []
    for number in range(objects):
        source = prose(number // 2, 60) if number % 2 == 0 else vary(prose(number // 2, 60), 1, number)
        for turn in range(each):
            text = f"Question {turn} about thing {number}?"
            meta = {"object": f"o{number // 3}", "source": source}
            rows.append(Record(f"q{number}.{turn}", messages=[{"role": "user", "content": text}], meta=meta))
    return rows


def test_ledger_and_files(tmp_path: Path) -> None:
    texts = [prose(1), prose(2), prose(1), "short", vary(prose(2), 1, 0), prose(3), prose(4)]
    run = setup(tmp_path, [Record("x", text=text) for text in texts])
    stats = stage(steps=["exact_dedup", {"kind": "length", "min_chars": 100}, "minhash"]).run(run)
    run.log.close()
    entries = {entry["step"]: entry for entry in stats["ledger"]}
    assert list(entries) == ["read", "exact_dedup", "length", "minhash"]
    assert [(e["rows_in"], e["rows_out"]) for e in entries.values()] == [(7, 7), (7, 6), (6, 5), (5, 4)]
    assert entries["exact_dedup"]["reasons"] == {"exact duplicate": 1} and entries["minhash"]["reasons"] == {"near duplicate": 1}
    assert entries["length"]["bytes_in"] - entries["length"]["bytes_out"] == len("short")
    assert entries["minhash"]["samples"][0]["id"] == "in.jsonl:5" and entries["minhash"]["samples"][0]["text"]
    for entry in entries.values():
        assert entry["rows_in"] - entry["rows_out"] == sum(entry["reasons"].values())
    kept = list(read_records(run.out / "all.jsonl"))
    assert [r.id for r in kept] == [f"in.jsonl:{n}" for n in (1, 2, 6, 7)]
    assert stats["parts"] == {"all": 4} and stats["rows_in"] == 7 and stats["rows_out"] == 4
    assert stats["bytes_out"] == sum(len(r.text) for r in kept)
    assert (
        stats["facts"][""]["rows"] == 4 and stats["facts"][""]["chars"] == stats["bytes_out"] and stats["facts"][""]["measured"]
    )
    assert sum(stats["lengths"]["all"]["counts"]) == 4 and stats["lengths"]["all"]["max"] == max(len(r.text) for r in kept)
    dropped = [json.loads(line) for line in (run.out / "dropped.jsonl").read_text().splitlines()]
    assert [(d["step"], d["id"]) for d in dropped] == [
        ("exact_dedup", "in.jsonl:3"),
        ("length", "in.jsonl:4"),
        ("minhash", "in.jsonl:5"),
    ]
    assert [e["step"] for e in read_events(run.out / "metrics.jsonl", "ledger")] == list(entries)
    json.dumps(stats)


def test_histogram_bins_hold_what_they_say(tmp_path: Path) -> None:
    stats = stage().run(setup(tmp_path, [Record("x", text="a" * n) for n in (1, 2, 3, 4, 7, 8, 100)]))
    found = stats["lengths"]["all"]
    for low, high, count in zip(found["edges"], found["edges"][1:], found["counts"], strict=False):
        assert count == sum(low <= n < high for n in (1, 2, 3, 4, 7, 8, 100))
    assert sum(found["counts"]) == 7 and found["median"] == 4


@pytest.mark.parametrize("fields", [{"test": 0.2}, {"test": 40, "validation": 20}, {"test": 0.2, "group": "object"}])
def test_split_does_not_leak(tmp_path: Path, fields: dict[str, Any]) -> None:
    rows = questions()
    run = setup(tmp_path, rows)
    spec = stage(split=fields)
    stats = spec.run(run)
    assert (
        spec.parts()
        == tuple(stats["parts"])
        == (("train", "validation", "test") if "validation" in fields else ("train", "test"))
    )
    parts = {name: list(read_records(run.out / f"{name}.jsonl")) for name in stats["parts"]}
    assert sum(map(len, parts.values())) == len(rows)
    assert Counter(r.id for part in parts.values() for r in part).most_common(1)[0][1] == 1
    wanted = fields["test"] * len(rows) if fields["test"] < 1 else fields["test"]
    assert 0.7 * wanted <= len(parts["test"]) <= wanted
    # Near-identical sources and, where asked for, rows of one object are in one part.
    pair = {r.meta["source"]: r.messages[0]["content"].split("thing ")[1][:-1] for part in parts.values() for r in part}
    home = {int(number): name for name, part in parts.items() for r in part for number in [pair[r.meta["source"]]]}
    assert all(home[n] == home[n + 1] for n in range(0, 60, 2))
    if "group" in fields:
        objects = {name: {r.meta["object"] for r in part} for name, part in parts.items()}
        assert not objects["train"] & objects["test"]
    assert stats["facts"]["test"]["rows"] == len(parts["test"]) and stats["facts"][""]["rows"] == len(rows)


def test_split_keeps_equal_rows_together_and_is_seeded() -> None:
    rows = [Record(f"r{i}", text=prose(i % 30, 40)) for i in range(90)]
    found = assign(rows, Split(test=0.3), 0)
    assert all(found.part[i] == found.part[i + 30] == found.part[i + 60] for i in range(30))
    assert found.part != assign(rows, Split(test=0.3), 1).part and found == assign(rows, Split(test=0.3), 0)


def test_leaks_are_found_and_left_out(tmp_path: Path) -> None:
    text = prose(1, 100)
    rows = [Record("a", text=text), Record("b", text=vary(text, 1, 0)), Record("c", text=prose(2, 100)), Record("d", text=text)]
    assert set(find_leaks(rows, ["train", "test", "train", "train"], Split())) == {0, 3}
    assert find_leaks(rows, ["train", "test", "train", "train"], Split(near=None)) == {}
    assert set(find_leaks(rows, ["train", "train", "train", "test"], Split(near=None))) == {0}
    assert set(find_leaks(rows, ["test", "validation", "train", "train"], Split(validation=1))) == {1, 3}


def test_split_faults(tmp_path: Path) -> None:
    one = [Record(f"r{i}", text=prose(i), meta={"g": 1}) for i in range(10)]
    with pytest.raises(UserError, match="part 'test' stays empty") as error:
        assign(one, Split(test=0.5, group="g"), 0)
    assert "the largest has 10 of 10 rows" in error.value.why
    with pytest.raises(ValueError, match="needs a size"):
        Split(test=0)
    with pytest.raises(ValueError, match="leave nothing"):
        Split(test=0.6, validation=0.5)
    with pytest.raises(UserError, match="nothing to split"):
        stage(split={"test": 1}).run(setup(tmp_path, one[:1]))


def test_limits_stop_the_run(tmp_path: Path) -> None:
    rows = [Record("x", text=prose(i)) for i in range(10)]
    with pytest.raises(UserError, match="the steps drop 10 of 10 rows") as error:
        stage(steps=[{"kind": "length", "min_chars": 10**6}]).run(setup(tmp_path / "a", rows))
    assert "loosen `length`, which drops 10 rows for 'length: too short'" in error.value.fix
    with pytest.raises(UserError, match="too few rows are left: 10 in 'all'"):
        stage(limits={"min_rows": 11}).run(setup(tmp_path / "b", rows))
    run = setup(tmp_path / "c", [])
    with pytest.raises(UserError, match=r"in\.jsonl: empty file"):
        stage().run(run)
    run = setup(tmp_path / "d", rows)
    with (run.inputs["./in.jsonl"].path).open("a") as file:
        file.write('{"text": "torn')
    with pytest.raises(UserError, match="torn last line"):
        stage().run(run)
    drop = {**SOURCE, "on_bad": "drop"}
    with pytest.raises(UserError, match="1 of 11 rows cannot be read"):
        stage(source=drop).run(run)
    stats = stage(source=drop, limits={"max_unreadable_frac": 0.5}).run(run)
    assert stats["ledger"][0]["reasons"] == {"unreadable: torn last line": 1} and stats["rows_in"] == 11
    assert (
        stage(steps=[{"kind": "sample", "rows": 1}], limits={"max_dropped_frac": 0.1}).run(setup(tmp_path / "e", rows))[
            "rows_out"
        ]
        == 1
    )


def test_a_limit_that_nothing_can_reach_is_unused() -> None:
    strict, lenient = stage(), stage(source=[SOURCE, {**SOURCE, "on_bad": "drop"}])
    assert set(strict.unused(strict)) == {"limits.max_unreadable_frac"} and not lenient.unused(lenient)


def test_checks_read_a_slice_once(tmp_path: Path) -> None:
    run = setup(tmp_path, questions(20))
    spec = stage(steps=["exact_dedup"], split={"test": 0.2})
    checks = list(spec.checks(run))
    assert [check.name for check in checks] == ["data ledger", "parts do not leak"] and all(check.ok for check in checks)
    assert spec.run(run)["rows_in"] == 100  # goes on from what the checks have opened
    bad = stage(steps=[{"kind": "length", "min_chars": 10**6}])
    (check,) = bad.checks(setup(tmp_path / "b", questions(3)))
    assert not check.ok and "length: too short 15" in check.detail and check.fix


def test_same_bytes_twice(tmp_path: Path) -> None:
    texts = [*(prose(i) for i in range(20)), *(vary(prose(i), 2, i) for i in range(10)), *CODE]
    rows = [Record("x", text=text) for text in texts]
    steps = ["exact_dedup", "minhash", "gopher", {"kind": "sample", "share": 0.8}]
    outs = []
    for name in ("one", "two"):
        run = setup(tmp_path, rows, name)
        stage(steps=steps, split={"test": 0.3}).run(run)
        outs.append({path.name: path.read_bytes() for path in run.out.iterdir() if path.name != "metrics.jsonl"})
    assert outs[0] == outs[1] and set(outs[0]) == {"train.jsonl", "test.jsonl", "dropped.jsonl"}


def test_estimate_and_facts() -> None:
    machine = Machine("m", 2, 8e9)
    given = Given(machine, {"./in.jsonl": Facts(type="path", bytes=10e6)})
    plain = stage(steps=["exact_dedup"]).estimate(given)
    assert plain.seconds.value > 0.5 and "10 MB" in plain.seconds.why and plain.facts[""].chars == 10e6
    heavier = stage(steps=["exact_dedup", "minhash"]).estimate(given)
    assert heavier.seconds.value > plain.seconds.value and heavier.memory.value > plain.memory.value
    halved = stage(steps=[{"kind": "sample", "share": 0.5}], split={"test": 100, "validation": 0.1}).estimate(given)
    assert halved.facts["test"].rows == 100 and halved.facts["validation"].chars == pytest.approx(0.5e6)
    assert set(halved.facts) == {"", "train", "validation", "test"}
    assert "not known yet" in stage().estimate(Given(machine, {})).seconds.why


def test_seed_enters_the_key_only_where_something_is_drawn() -> None:
    assert not stage(steps=["exact_dedup"]).random
    assert stage(steps=["sample"]).random and stage(split={"test": 0.1}).random
    assert stage(split={"test": 0.1}).parts() == ("train", "test") and stage().parts() == ()


def test_references_of_sources_and_steps() -> None:
    spec = stage(source=[SOURCE, {"kind": "text", "path": "./t/"}], steps=[{"kind": "held_out", "against": "pairs:test"}])
    assert {path: ref for path, (ref, _) in spec.refs().items()} == {
        "source.0.path": "./in.jsonl",
        "source.1.path": "./t/",
        "steps.0.against": "pairs:test",
    }
    assert type(spec).model_validate(spec.model_dump(mode="json")) == spec


def test_rows_of_two_sources_keep_their_own_names(tmp_path: Path) -> None:
    run = setup(tmp_path, [Record("x", text=prose(i)) for i in range(2)])
    stage(source=[SOURCE, SOURCE]).run(run)
    ids = [record.id for record in read_records(run.out / "all.jsonl")]
    assert ids == ["in.jsonl:1", "in.jsonl:2", "1:in.jsonl:1", "1:in.jsonl:2"]


def test_what_a_source_cannot_read_or_leaves_out_is_in_the_ledger(tmp_path: Path) -> None:
    spec = STAGES.load("curate").model_validate({"kind": "curate", "source": {"kind": "python_package", "package": "json"}})
    assert isinstance(spec, Curate)
    stats = spec.run(Run(tmp_path, {}, 0, Log(None)))
    read = stats["ledger"][0]
    assert read["rows_out"] == stats["parts"]["all"] > 2 and read["rows_in"] - read["rows_out"] == sum(read["reasons"].values())
    assert spec.external() and all(len(digest) == 64 for digest in spec.external().values())


def test_rows_that_a_field_of_the_format_leaves_out_are_no_fault(tmp_path: Path) -> None:
    run = setup(tmp_path, [])
    row = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 4, "score_B": 2, "score_ratio": 2.0}
    rows = [{**row, "history": f"question {n}", "score_ratio": 1.0 + n % 2} for n in range(20)]
    run.inputs["./in.jsonl"].path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for on_bad in ("error", "drop"):
        [read] = stage(source={**SOURCE, "format": "shp", "on_bad": on_bad}).run(run)["ledger"]
        assert (read["rows_in"], read["rows_out"], read["reasons"]) == (10, 10, {})
        assert read["left_out"] == {"rows: the scores' ratio is below min_ratio 2": 10}
