"""Ctrl-C and a full disk in every stage kind: nothing half-made counts as made, what was finished stays, the same run goes on."""

import shutil
import time

import pytest

from modelwright.core.errors import StageFailed
from modelwright.core.execute import execute
from modelwright.core.predict import predict
from modelwright.core.recipe import RuntimeFields
from modelwright.core.spec import Kinds
from modelwright.core.stage import STAGES
from modelwright.core.steps import prepare
from modelwright.core.store import Store
from tests import crawl_kit
from tests import law_kit_stages as kit

KINDS = Kinds("modelwright.stages", STAGES.base).names()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupt")
    kit.files(path)
    return path


def recipe(kind, folder):
    return kit.loaded({"kind": kind, **kit.BASES[kind]}, folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["ctrl-c", "full disk"])
def test_every_stage_can_be_stopped_anywhere(kind, fault, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    store, loaded = Store(tmp_path / "store"), recipe(kind, folder)
    (stage,) = loaded.recipe.stages.values()
    total, expected = 0, KeyboardInterrupt if fault == "ctrl-c" else StageFailed

    def count(event, fields):
        nonlocal total
        total += event == "progress"

    with crawl_kit.law():
        *_, done = execute(loaded, store, kit.MACHINE, count, gates=False)
    if total == 0:
        return  # done before there was anything to show
    shutil.rmtree(done.artifact.path)
    with crawl_kit.law():  # a site anew: one of its pages is there at the second try
        for stop_at in sorted({1, max(1, total // 2), max(1, total)}):
            seen = 0

            def stop(event, fields, stop_at=stop_at):
                nonlocal seen
                seen += event == "progress"
                if seen == stop_at and event == "progress":
                    raise KeyboardInterrupt if fault == "ctrl-c" else OSError(28, "No space left on device")

            try:
                *_, again = execute(loaded, store, kit.MACHINE, stop, gates=False)
            except expected:
                assert store.find(done.artifact.manifest["type"], done.artifact.key) is None
            else:  # it went on from where it was stopped before, and less was left than up to the next stop
                assert seen < stop_at and stage.resumes
                break
        else:
            *_, again = execute(loaded, store, kit.MACHINE, count, gates=False)
    assert again.state == "made" and store.verify(again.artifact) == [] and store.unfinished() == []
    before, after = done.artifact.manifest["files"], again.artifact.manifest["files"]
    for name in before:
        if name not in ("metrics.jsonl", "optimizer.json"):
            assert before[name]["sha256"] == after[name]["sha256"], f"{name} differs from that of the undisturbed run"


@pytest.mark.parametrize("at", ["digests", "name"])
def test_a_training_that_is_killed_after_its_last_step_is_not_made_again(at, folder, tmp_path, monkeypatch):
    """Digests of a large model take minutes; what it goes on from is removed only when the manifest is there."""
    monkeypatch.chdir(folder)
    store, loaded = (
        Store(tmp_path / "store"),
        kit.loaded({"kind": "train", **kit.BASES["train"], "checkpoint_every_s": 0}, folder),
    )
    (stage,) = loaded.recipe.stages.values()

    def killed(*args, **more):
        raise KeyboardInterrupt

    steps = []

    def count(event, fields):
        if event == "progress" and fields["label"] == "train":
            steps.append(fields["done"])

    with monkeypatch.context() as patched:
        patched.setattr(*(("modelwright.core.execute.digest_files", killed) if at == "digests" else (Store, "finish", killed)))
        with pytest.raises(KeyboardInterrupt):
            list(execute(loaded, store, kit.MACHINE, count, gates=False))
    (part,) = store.unfinished()
    assert (part / "checkpoint").exists() is (at == "digests")
    made = len(steps)
    *_, done = execute(loaded, store, kit.MACHINE, count, gates=False)
    assert len(steps) - made <= (1 if at == "digests" else 0), "at most the step after the last checkpoint"
    assert store.verify(done.artifact) == [] and store.unfinished() == []
    assert not [name for name in stage.scratch if (done.artifact.path / name).exists()]


def test_time_that_is_up_ends_the_command_and_the_next_one_goes_on(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    store, loaded = Store(tmp_path / "store"), recipe("train", folder)

    def quiet(event, fields):
        pass

    over = loaded._replace(recipe=loaded.recipe.model_copy(update={"runtime": RuntimeFields(until="0s")}))
    with pytest.raises(KeyboardInterrupt, match="time is up before stage"):
        list(execute(over, store, kit.MACHINE, quiet, gates=False))
    moments = iter([time.time() + 60, 0.0])  # the stage may start, and its first step comes too late

    def passed(text, now_s):
        return next(moments)

    monkeypatch.setattr("modelwright.core.execute.moment_s", passed)
    monkeypatch.setattr("modelwright.nn.stopping.Pace.late", lambda self, save_s: self.slowest_s > 0)
    with pytest.raises(KeyboardInterrupt, match="time is up after step 1 of 3"):
        list(execute(over, store, kit.MACHINE, quiet, gates=False))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    *_, done = execute(loaded, store, kit.MACHINE, quiet, gates=False)
    assert done.state == "made" and done.artifact.manifest["actual"]["resumed"] is True


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_expects_what_the_plan_said(kind, folder, tmp_path, monkeypatch):
    """Sizes of files enter both alike."""
    monkeypatch.chdir(folder)
    store, loaded = Store(tmp_path / "store"), recipe(kind, folder)
    planned = predict(prepare(loaded, store), kit.MACHINE, loaded.recipe.seed)["it"]
    told = []

    def listen(event, fields):
        if event == "stage" and fields["state"] == "running":
            told.append(fields["seconds"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(execute(loaded, store, kit.MACHINE, listen, gates=False))
    assert told == [planned.seconds.value]
