"""Leaks between files that a user declared, a train.jsonl and a test.jsonl: rows of one that are, or nearly are, in the other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import modelwright as mw
from modelwright.core.events import Log
from modelwright.core.stage import Input, Run
from modelwright.stages._train_apart import apart

WORDS = "the red fox jumps over a lazy dog near river house tree while seven quick birds sleep under green hills today".split()


def sentence(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=60))


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TEST = [chat(sentence(n), f"It is {n}.") for n in range(3)]
CLEAN = [chat(sentence(n), f"It is {n}.") for n in range(50, 58)]
SAME = TEST[0]
NEAR = chat(" ".join([*sentence(1).split()[:30], "changed", *sentence(1).split()[31:]]), "It is 1.")
INSIDE = {"text": f"{sentence(90)}\n\n{sentence(2)}\n\n{sentence(91)}"}


@pytest.mark.parametrize("step", ["held_out", "decontaminate"])
def test_a_leak_between_declared_files_is_found_and_counted(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", [*CLEAN, SAME, NEAR]), ("test", TEST), ("pages", [INSIDE])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = f"steps: [{{kind: {step}, against: ./test.jsonl}}]"
    (tmp_path / "r.yaml").write_text(
        "name: leaks\nstages:\n"
        f"  clean: {{kind: curate, source: {{kind: jsonl, path: ./train.jsonl}}, {steps}}}\n"
        f"  pages: {{kind: curate, source: {{kind: jsonl, path: ./pages.jsonl}}, {steps}}}\n"
    )
    project = mw.load("r.yaml")
    if step == "decontaminate":  # a page with a test item goes as a whole, and nothing would be left
        project.run(only="clean")
    else:
        project.run()
        stats = project.artifact("pages").stats
        cuts = stats["ledger"][-1]["cuts"]
        assert stats["rows_out"] == 1 and cuts["held out: paragraphs"]["pieces"] == 1, "the paragraph goes, the page stays"
    stats = project.artifact("clean").stats
    assert (stats["rows_in"], stats["rows_out"]) == (10, 8)
    entry = next(entry for entry in stats["ledger"] if step in str(entry["step"]))
    assert sum(entry["reasons"].values()) == 2
    assert {sample["id"] for sample in entry["samples"]} >= {"train.jsonl:9", "train.jsonl:10"}
    kept = (project.artifact("clean").path / "all.jsonl").read_text()
    assert all(row["messages"][0]["content"] in kept for row in CLEAN)
    assert SAME["messages"][0]["content"] not in kept and NEAR["messages"][0]["content"] not in kept


@pytest.mark.parametrize(
    ("shared", "found"), [([], 0), ([SAME], 1), ([NEAR], 1), ([SAME, NEAR, SAME], 2), ([{**SAME, "meta": {"source": "same"}}], 1)]
)
def test_a_training_and_its_validation_from_other_files_share_nothing(
    shared: list[dict[str, Any]], found: int, tmp_path: Path
) -> None:
    stage = SimpleNamespace(data=[SimpleNamespace(ref="./a.jsonl")], validation=[SimpleNamespace(ref="./test.jsonl")])
    test = [{**row, "meta": {"source": "same"}} for row in TEST]
    run = Run(tmp_path, {}, 0, Log(None))
    for name, rows in (("a", [*CLEAN, *shared]), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run.inputs[f"./{name}.jsonl"] = Input(f"./{name}.jsonl", "path", tmp_path / f"{name}.jsonl")
    (check,) = apart(stage, run)  # type: ignore[arg-type]
    assert check.detail.startswith(f"{found} of 3 rows of ./test.jsonl are also, or nearly, in ./a.jsonl")
    assert check.ok is (found == 0) and ("held_out" in check.fix) is not check.ok
    assert not list(apart(SimpleNamespace(data=stage.validation, validation=stage.validation), run)), "the rule `leak` says so"  # type: ignore[arg-type]
    parts = [SimpleNamespace(ref=f"rows:{name}") for name in ("train", "test")]
    assert not list(apart(SimpleNamespace(data=parts[:1], validation=parts[1:]), run)), "apart by the split"  # type: ignore[arg-type]
