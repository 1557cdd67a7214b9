"""Learning paths: every recipe of every path loads, plans within its promise, and goes on from what those before it made."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

import modelwright as mw
from modelwright.cli.learn import DEVICES, planned
from modelwright.cli.main import COMMANDS, main
from modelwright.core.predict import predict
from modelwright.plan import learning
from modelwright.plan.machine import this_machine

NAMES = learning.names()
TINY = {
    "questions.source.package": "json",
    "corpus.source.package": "json",
    "corpus.steps": [],
    "corpus.split": {"test": 0.4},
    "lessons.source.package": "json",
    "preferences.source.package": "json",
    "vocab.method.size": 400,
    "small_vocab.method.size": 300,
    "base.steps": 3,
    "chat.steps": 3,
    "chat_lora.steps": 2,
    "continued.steps": 2,
    **{f"rung{n}.steps": 2 if n % 2 else 6 for n in range(1, 7)},
}


def test_the_five_paths() -> None:
    assert NAMES == ["alignment", "balanced", "complete", "fast-track", "inference"]
    for name in NAMES:
        path = learning.read(name)
        files = {file.stem for file in (learning.folder() / name).glob("*.yaml")} - {"path"}
        assert {step.recipe for step in path.steps} == files, "no recipe lies there unused"
        assert 0 <= path.budget_usd <= 50


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reuses_what_those_before_it_made(name: str, tmp_path: Path) -> None:
    path = learning.read(name)
    for full in (False, True):
        keys: dict[str, str] = {}
        named: set[str] = set()
        for step in path.steps:
            small = mw.load(learning.recipe(name, step), store=tmp_path)
            stages = list(small.recipe.stages)
            project = mw.load(learning.recipe(name, step), *path.overrides(stages), store=tmp_path) if full else small
            named |= {key for key in path.full if key.partition(".")[0] in stages}
            for one in project.steps():
                assert keys.setdefault(one.name, one.key) == one.key, f"{step.recipe}: {one.name} is another one than before"
        assert not full or named == set(path.full), "every change is of some stage"


@pytest.mark.parametrize("name", NAMES)
def test_full_size_stays_within_its_promise(name: str, tmp_path: Path) -> None:
    path = learning.read(name)
    costs = planned(name, path, tmp_path)
    for where in DEVICES:
        assert 0 < sum(cost[where].usd for cost in costs) <= path.budget_usd
    assert sum(cost["here"].seconds for cost in costs) < 3600, "small is for a laptop"


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_no_pitfall(name: str, tmp_path: Path) -> None:
    for step in learning.read(name).steps:
        project = mw.load(learning.recipe(name, step), store=tmp_path)
        assert [(found.rule, found.where, found.what) for found in project.pitfalls(data=False)] == [], step.recipe


@pytest.mark.parametrize("name", NAMES)
def test_nor_has_their_full_size_where_it_is_planned(name: str, tmp_path: Path) -> None:
    """Answers were trained five and eleven times on each row, and nothing would have ended it early."""
    path = learning.read(name)
    for step in path.steps:
        file = learning.recipe(name, step)
        full = path.overrides(list(mw.load(file, store=tmp_path).recipe.stages))
        for device in DEVICES:
            plan = mw.load(file, *full, store=tmp_path).plan(device)
            assert [(found.rule, found.where, found.what) for found in plan.pitfalls] == [], (step.recipe, device)
            assert not plan.misfits()


def test_how_much_larger_the_full_size_is_told_to_be(tmp_path: Path) -> None:
    """Nine times the weights were told, and there were nearly thirteen; the packages are told by name."""
    path = learning.read("fast-track")
    small, full = (mw.load(learning.recipe("fast-track", path.steps[0]), *more, store=tmp_path) for more in ((), _full(path)))
    sizes = [predict(one.steps(), this_machine(), 0)["base"].facts[""].shape for one in (small, full)]
    assert "over twelve times the weights" in path.about
    assert sizes[0] is not None and sizes[1] is not None and 12 < sizes[1].params / sizes[0].params < 13
    packages = {source["package"] for source in path.full["corpus.source"]}
    assert all(package in path.about for package in packages - {"stdlib"})


def _full(path: learning.LearningPath) -> list[str]:
    return path.overrides(["corpus", "vocab", "base"])


def test_they_are_written_whole_or_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for full in ([], ["--full"]):
        out = tmp_path / f"out{len(full)}"
        assert main(["learn", "balanced", "--out", str(out), *full]) == 0
        path = learning.read("balanced")
        for step in path.steps:
            tree = yaml.safe_load((out / f"{step.recipe}.yaml").read_text())
            assert mw.load(out / f"{step.recipe}.yaml", store=tmp_path / "store").recipe.name == tree["name"]
            if full and "base" in tree["stages"]:
                assert tree["stages"]["base"]["steps"] == path.full["base.steps"]
        (out / "1-text.yaml").unlink()
        assert main(["learn", "balanced", "--out", str(out)]) == 2
        assert not (out / "1-text.yaml").exists(), "nothing is written beside what is there"
    assert "already has" in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["learn"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES)
    assert main(["learn", "fast-track", "--store", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "modelwright run 1-base.yaml" in text and "full size, t4" in text
    assert main(["learn", "fast-track", "--json", "--store", str(tmp_path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["costs"]) == 2
    assert main(["learn", "fast"]) == 2
    assert "fast-track" in capsys.readouterr().err
    for wrong in (["--full"], ["balanced", "--full"], ["balanced", "--out", str(tmp_path / "new"), "--json"]):
        with pytest.raises(SystemExit):
            main(["learn", *wrong])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_and_what_is_told_to_look_at_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a size that shows that the parts fit; the small size itself takes minutes."""
    monkeypatch.chdir(tmp_path)
    for step in learning.read(name).steps:
        file = tmp_path / f"{step.recipe}.yaml"
        file.write_text(tiny(learning.recipe(name, step)), encoding="utf-8")
        outcomes = mw.load(file, store=tmp_path / "store").run(gates=False).outcomes
        assert all(outcome.artifact is not None for outcome in outcomes), step.recipe
        capsys.readouterr()
        for command in step.then:
            program, *args = shlex.split(command)
            assert program == "modelwright"
            if args[0] not in STAYING:
                code, (out, err) = main(args), capsys.readouterr()
                assert (code == 0 and out.strip()) or TOO_FAR in err, f"{command}: {err}"


TOO_FAR = "says nothing of"
"""What `scale --fit` says of a ladder as short as these."""
STAYING = ("chat", "serve", "watch")
"""Commands that end when they are told to."""


def tiny(file: Path) -> str:
    """The recipe with little data and few steps."""
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key, value in TINY.items():
        stage, *fields = key.split(".")
        if (node := tree["stages"].get(stage)) is not None:
            for field in fields[:-1]:
                node = node[field]
            node[fields[-1]] = value
    for stage in tree["stages"].values():
        if stage["kind"] == "evaluate":
            stage["tasks"] = [{"kind": "exact_match", "rows": 3, "max_tokens": 8, "also": []}, {"kind": "perplexity", "rows": 3}]
    return str(yaml.safe_dump(tree, sort_keys=False))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_told_to_type_can_be_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made a command may say that it is not there yet; its options and recipes are."""
    assert main(["learn", name, "--out", str(tmp_path)]) == 0
    monkeypatch.chdir(tmp_path)
    for step in learning.read(name).steps:
        for command in step.then:
            program, called, *args = shlex.split(command)
            assert program == "modelwright" and called in COMMANDS, command
            recipes = [arg for arg in args if arg.endswith(".yaml")]
            assert all((tmp_path / recipe).is_file() for recipe in recipes), command
            if called != "watch":  # which waits for a run
                main([called, *args])
    assert "Traceback" not in capsys.readouterr().err
