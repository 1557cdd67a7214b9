"""The store and the run: keys, caching, kill and resume, locks, verification, why and gc."""

import json
import multiprocessing
import os

import pytest

from modelwright.core.errors import StageFailed, UserError
from modelwright.core.estimate import Machine
from modelwright.core.execute import execute
from modelwright.core.gc import garbage
from modelwright.core.recipe import loads
from modelwright.core.steps import prepare
from modelwright.core.store import Store, read_manifest, write_whole
from modelwright.core.why import why

TEXT = """
name: demo
stages:
  corpus: {kind: words, count: 4}
  base: {kind: learn, data: corpus}
  other: {kind: words, count: 2}
"""
MACHINE = Machine("test", 1, 8e9)

pytestmark = pytest.mark.usefixtures("fakes")


def silent(event, fields):
    pass


def run(text, store, *overrides, machine=MACHINE):
    return {o.name: o for o in execute(loads(text, overrides), store, machine, silent)}


def keys(text, store, *overrides):
    return {s.name: s.key for s in prepare(loads(text, overrides), store)}


def test_second_run_is_cached_and_a_change_remakes_only_what_depends_on_it(tmp_path):
    store = Store(tmp_path / "store")
    assert {n: o.state for n, o in run(TEXT, store).items()} == {"corpus": "made", "base": "made", "other": "made"}
    assert {n: o.state for n, o in run(TEXT, store).items()} == {"corpus": "cached", "base": "cached", "other": "cached"}
    changed = run(TEXT, store, "stages.corpus.count=5")
    assert {n: o.state for n, o in changed.items()} == {"corpus": "made", "base": "made", "other": "cached"}


def test_manifest_tells_how_it_was_made(tmp_path):
    manifest = run(TEXT, Store(tmp_path))["base"].artifact.manifest
    assert manifest["spec"]["rate"] == 0.1 and manifest["parents"]["corpus"]["stage"] == "corpus"
    assert (
        manifest["actual"]["seconds"] >= 0 and manifest["actual"]["peak_bytes"] > 1e6 and manifest["estimate"]["seconds"]["why"]
    )
    assert set(manifest["files"]) == {"weights.bin", "metrics.jsonl"}


def test_what_enters_a_key(tmp_path):
    store = Store(tmp_path)
    base = keys(TEXT, store)
    assert keys(TEXT.replace("name: demo", "name: renamed"), store) == base, "the recipe's name is a label"
    assert keys(TEXT, store, "stages.corpus.threads=8") == base, "Runtime fields stay out"
    assert keys(TEXT.replace("count: 4}", "count: 4, fail: ''}"), store) == base, "a default that is written out is the same"
    renamed = keys(TEXT.replace("corpus", "texts"), store)
    assert renamed["base"] == base["base"] and renamed["texts"] == base["corpus"], "a stage's name is a label"
    seeded = keys(TEXT, store, "seed=1")
    assert seeded["base"] != base["base"] and seeded["corpus"] == base["corpus"], "the seed enters only where the kind is random"
    assert keys(TEXT, store, "stages.base.rate=0.2")["base"] != base["base"]


def test_another_machine_leaves_every_key(tmp_path):
    store = Store(tmp_path)
    run(TEXT, store, machine=Machine("small", 1, 1e9))
    assert all(o.state == "cached" for o in run(TEXT, store, machine=Machine("large", 64, 1e12, "cuda", 1e15, 3.0)).values())


def test_local_files_enter_by_content(tmp_path):
    store, data = Store(tmp_path / "store"), tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n')
    text = f"name: a\nstages:\n  base: {{kind: learn, data: {data}}}\n"
    before = keys(text, store)
    assert keys(text, store) == before
    data.write_text('{"text": "b"}\n')
    assert keys(text, store) != before
    with pytest.raises(UserError, match="there is no file or folder"):
        keys(text.replace("rows.jsonl", "rws.jsonl"), store)


def test_interrupt_resumes_where_it_stopped(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(TEXT, store, "stages.base.stop_at=3")
    assert len(store.unfinished()) == 1 and store.find("model", keys(TEXT, store)["base"]) is None
    outcome = run(TEXT, store)["base"]
    assert outcome.state == "made" and outcome.artifact.manifest["stats"]["began"] == 3
    assert store.unfinished() == []


@pytest.mark.parametrize(("fault", "words"), [("disk", "the disk is full"), ("gate", "is not sound: sound: looked at it")])
def test_a_failed_stage_leaves_nothing_half_made_and_keeps_the_finished(tmp_path, fault, words):
    store = Store(tmp_path)
    with pytest.raises(StageFailed, match=words) as caught:
        run(TEXT, store, f"stages.other.fail={fault}")
    assert caught.value.where == "stages.other"
    assert store.unfinished() == [] and len(list(store.all())) == 2


def test_a_bug_keeps_its_own_type(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(TEXT, Store(tmp_path), "stages.other.fail=bug")


def test_not_enough_disk_is_known_before(tmp_path):
    with pytest.raises(UserError, match=r"needs about .* of disk"):
        run(TEXT, Store(tmp_path), "stages.corpus.count=1000000000000000")


def test_torn_manifest_is_not_an_artifact(tmp_path):
    store = Store(tmp_path)
    path = run(TEXT, store)["other"].artifact.path
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])
    assert read_manifest(path) is None
    assert run(TEXT, store)["other"].state == "made"
    assert store.verify(next(a for a in store.all() if a.manifest["stage"] == "other")) == []


def test_verify_finds_every_sort_of_change(tmp_path):
    store = Store(tmp_path)
    artifact = run(TEXT, store)["base"].artifact
    assert store.verify(artifact) == []
    (artifact.path / "weights.bin").write_bytes(b"\x07")
    (artifact.path / "extra.txt").write_text("x")
    (artifact.path / "metrics.jsonl").unlink()
    faults = " ".join(store.verify(artifact))
    assert (
        "weights.bin: its content changed" in faults
        and "extra.txt: not in the manifest" in faults
        and "metrics.jsonl: missing" in faults
    )


def _make(root):
    from modelwright.core.stage import STAGES

    STAGES.package = "tests.fakes"
    os._exit(0 if run(TEXT, Store(root), "stages.corpus.sleep_s=0.3")["corpus"].artifact else 1)


def test_two_processes_make_one_artifact(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert len(list(Store(tmp_path).all())) == 3 and Store(tmp_path).unfinished() == []


def test_why_names_the_field_and_the_parent(tmp_path):
    store = Store(tmp_path)
    run(TEXT, store)
    reasons = {
        r.stage: r for r in why(prepare(loads(TEXT, ["stages.corpus.count=9", "stages.base.rate=0.5", "seed=3"]), store), store)
    }
    assert reasons["other"].state == "cached"
    assert reasons["corpus"].changes == ("count: 4 -> 9",)
    assert "data.0.ref: corpus is another artifact now (see corpus)" in reasons["base"].changes
    assert "rate: 0.1 -> 0.5" in reasons["base"].changes and "seed: 0 -> 3" in reasons["base"].changes
    fresh = why(prepare(loads(TEXT), Store(tmp_path / "empty")), Store(tmp_path / "empty"))
    assert all("never made" in r.text for r in fresh)


def test_gc_keeps_what_a_recipe_needs(tmp_path):
    store = Store(tmp_path)
    run(TEXT, store)
    run(TEXT, store, "stages.corpus.count=5")
    found = garbage(store, [loads(TEXT)])
    assert sorted(i.path.name.rsplit("-", 1)[0] for i in found) == ["base", "corpus"]
    assert garbage(store, [loads(TEXT), loads(TEXT, ["stages.corpus.count=5"])]) == []


def test_estimates_follow_predicted_and_measured_facts(tmp_path):
    from modelwright.core.predict import predict

    store = Store(tmp_path)
    assert predict(prepare(loads(TEXT), store), MACHINE, 0)["base"].seconds.value == 4
    run(TEXT, store)
    assert predict(prepare(loads(TEXT), store), MACHINE, 0)["base"].seconds.value == 4


def test_calibration_uses_what_was_measured_here(tmp_path):
    from modelwright.plan.calibrate import calibrated

    store = Store(tmp_path)
    artifact = run(TEXT, store)["base"].artifact
    tree = json.loads((artifact.path / "manifest.json").read_text())
    tree["actual"]["seconds"] = tree["estimate"]["seconds"]["value"] * 3
    (artifact.path / "manifest.json").write_text(json.dumps(tree))
    from modelwright.core.predict import predict

    predicted = predict(prepare(loads(TEXT), store), MACHINE, 0, calibrated(store))["base"]
    assert predicted.seconds.value == pytest.approx(12) and "median of measured over estimated" in predicted.seconds.why
    assert predicted.scale[0] == pytest.approx(3)
    assert predicted.scale[1] == 1.0, "the test's own libraries filled the process before the stage came"
    planned, left = tree["estimate"]["memory"]["value"], tree["estimate"]["left_bytes"]
    tree["actual"].update(held_bytes=10, peak_bytes=left + 2 * (planned - left))
    (artifact.path / "manifest.json").write_text(json.dumps(tree))
    assert predict(prepare(loads(TEXT), store), MACHINE, 0, calibrated(store))["base"].scale[1] == pytest.approx(2)


def test_calibration_leaves_out_runs_that_went_on_after_a_kill(tmp_path):
    from modelwright.core.predict import predict
    from modelwright.plan.calibrate import calibrated

    store = Store(tmp_path)
    artifact = run(TEXT, store)["base"].artifact
    tree = json.loads((artifact.path / "manifest.json").read_text())
    assert tree["actual"]["resumed"] is False
    tree["actual"].update(seconds=tree["estimate"]["seconds"]["value"] / 10, resumed=True)
    (artifact.path / "manifest.json").write_text(json.dumps(tree))
    assert predict(prepare(loads(TEXT), store), MACHINE, 0, calibrated(store))["base"].scale[0] == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError):
        write_whole(tmp_path, "text")
    assert list(tmp_path.parent.glob(f"{tmp_path.name}.tmp")) == []
