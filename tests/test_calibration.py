"""Predictions held against measurements: corrections, intervals, the command and its page, and stages tried for real."""

import json
import math
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelwright.cli.main import main
from modelwright.core import predict
from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Machine, Part, Quantity, Span
from modelwright.core.execute import execute
from modelwright.core.recipe import load, loads
from modelwright.core.steps import prepare
from modelwright.core.store import Store
from modelwright.plan._errors import Prior, Row, fitted, interval
from modelwright.plan.calibrate import SECONDS, VERIFIED, accounts, calibrated

HERE = socket.gethostname()


def estimate(**spans):
    """An estimate of so many seconds in each part, and a gigabyte."""
    found = tuple(Span(name, seconds, "") for name, seconds in spans.items())
    total = Quantity(sum(spans.values()), "s", "said")
    parts = (Part("imports", 4e8, ""), Part("weights", 6e8, ""))
    return Estimate(total, Quantity(1e9, "bytes", "said"), Quantity(0, "bytes", ""), {}, spans=found, parts=parts)


def keep(store, number, spans, seconds, peak=1e9, *, kind="train", host=HERE, measured=None, like="", card=None, **actual):
    """A manifest as `execute` writes it."""
    folder = store.root / "model" / f"run{number}-{number:012d}"
    folder.mkdir(parents=True)
    total = sum(spans.values())
    tree = {
        "schema": 1,
        "key": f"{number:064d}",
        "kind": kind,
        "stage": f"run{number}",
        "stats": {} if card is None else {"device_peak_bytes": card[1]},
        "estimate": {
            "device_memory": None if card is None else {"value": card[0]},
            "seconds": {"value": total},
            "memory": {"value": 1e9},
            "scale": [1.0, 1.0],
            "spans": [{"name": n, "seconds": s, "like": like if n == "steps" else ""} for n, s in spans.items()],
            "parts": [{"name": "imports", "bytes": 4e8}, {"name": "weights", "bytes": 6e8}],
        },
        "actual": {"seconds": seconds, "peak_bytes": peak, "held_bytes": 0, "resumed": False, "spans": measured or {}, **actual},
        "made_by": {"host": host, "time": f"2026-01-01T00:00:00.{number:03d}"},
    }
    (folder / "manifest.json").write_text(json.dumps(tree))


def runs(store, count, rng, noise, start=6.0, each=2.0, **more):
    """Stages whose start takes `start` where 3 s were predicted, and whose steps take `each` times what was."""
    for number in range(count):
        steps = rng.uniform(2, 40)
        keep(store, number, {"start": 3.0, "steps": steps}, (start + each * steps) * math.exp(rng.gauss(0, noise)), **more)


def test_nothing_known_changes_nothing_and_says_how_far_off_it_may_be(tmp_path):
    found = calibrated(Store(tmp_path))("train", estimate(start=3, steps=7))
    assert found.seconds.value == 10 and found.scale == (1.0, 1.0) and found.seconds.why == "said"
    assert (found.seconds.low, found.seconds.high) == (10 * SECONDS.raw[0], 10 * SECONDS.raw[1])


def test_parts_are_told_apart_by_runs_of_several_sizes(tmp_path):
    store, rng = Store(tmp_path), random.Random(1)
    runs(store, 16, rng, 0.03, start=9.0, each=1.0)
    adjust = calibrated(store)
    for steps in (2.0, 10.0, 40.0):
        found = adjust("train", estimate(start=3.0, steps=steps))
        assert found.seconds.value == pytest.approx(9 + steps, rel=0.08), "one factor for both would be off by half"
        assert found.seconds.low < found.seconds.value < found.seconds.high
    assert "fitted to what was measured in 16 runs here" in found.seconds.why


def test_parts_that_were_measured_by_themselves_need_no_other_runs(tmp_path):
    store = Store(tmp_path)
    keep(store, 0, {"start": 3.0, "steps": 10.0}, 16.0, measured={"start": 6.0, "steps": 10.0})
    keep(store, 1, {"start": 3.0, "steps": 10.0}, 16.0, measured={"start": 6.0, "steps": 10.0})
    found = calibrated(store)("train", estimate(start=3.0, steps=100.0))
    assert found.seconds.value == pytest.approx(106, rel=0.12), "the median of the totals would say 127"


def test_runs_of_one_sort_correct_one_another_further(tmp_path):
    store, rng = Store(tmp_path), random.Random(2)
    for number in range(12):
        sort = ("sft fp32", "dpo lora fp32")[number % 2]
        steps = rng.uniform(5, 40)
        keep(store, number, {"start": 3.0, "steps": steps}, 3 + steps * (1.0, 1.6)[number % 2], like=sort)
    adjust = calibrated(store)

    def predicted(like):
        return adjust(
            "train", estimate(start=3.0, steps=20.0)._replace(spans=(Span("start", 3, ""), Span("steps", 20, "", like)))
        )

    assert predicted("sft fp32").seconds.value == pytest.approx(23, rel=0.06)
    assert predicted("dpo lora fp32").seconds.value == pytest.approx(35, rel=0.06)
    assert 23 < predicted("kto fp32").seconds.value < 35, "of an unknown sort: what all have in common"


def test_no_part_takes_less_than_nothing(tmp_path):
    """Runs whose steps took longer than all of them did told of imports of -0.02 times their time."""
    store = Store(tmp_path)
    for number, steps in enumerate((10.0, 11.0)):
        keep(store, number, {"start": 3.0, "steps": steps}, 2 * steps, measured={"steps": 3 * steps}, like="sft")
    (found,) = [one for one in accounts(store) if one.unit == "s"]
    base = {name: factor for (name, like), factor in found.fit.parts.items() if not like}
    assert min(base.values()) >= 0 and base["steps"] > 1
    assert all(base[name] + more >= 0 for (name, like), more in found.fit.parts.items() if like)


def test_one_slow_run_moves_little(tmp_path):
    store, rng = Store(tmp_path), random.Random(3)
    runs(store, 9, rng, 0.03)
    before = calibrated(store)("train", estimate(start=3.0, steps=20.0)).seconds.value
    keep(store, 99, {"start": 3.0, "steps": 20.0}, 46 * 12)
    after = calibrated(store)("train", estimate(start=3.0, steps=20.0)).seconds.value
    assert after == pytest.approx(before, rel=0.05)


def test_other_hosts_kills_and_full_processes_are_left_out(tmp_path):
    store = Store(tmp_path)
    keep(store, 0, {"start": 3.0, "steps": 7.0}, 50.0, host="elsewhere")
    keep(store, 1, {"start": 3.0, "steps": 7.0}, 50.0, peak=1.3e9, resumed=True)
    keep(store, 2, {"start": 3.0, "steps": 7.0}, 20.0, peak=9e9, held_bytes=5e9)
    found = calibrated(store)("train", estimate(start=3.0, steps=7.0))
    assert found.scale == (pytest.approx(2.0), pytest.approx(1.25, rel=0.05)), "seconds of the last, bytes of the second"
    assert calibrated(store)("evaluate", estimate(start=3.0, steps=7.0)).scale == (1.0, 1.0)
    assert [account.host for account in accounts(store) if account.unit == "s"] == ["elsewhere", HERE] or HERE < "elsewhere"


@pytest.mark.parametrize("noise", [0.03, 0.15, 0.4])
@pytest.mark.parametrize("count", [2, 5, 20, 60])
def test_the_interval_holds_what_it_is_to_hold(noise, count):
    """95 % over many stores; with few runs more than that, because what is not known widens it."""
    rng = random.Random(count)
    inside = total = 0
    for _ in range(60):
        rows = [[Row({("", ""): 1.0}, math.exp(0.5 + rng.gauss(0, noise)))] for _ in range(count)]
        fit = fitted(rows)
        low, high = interval(fit.errors, SECONDS)
        for _ in range(20):
            ratio = math.exp(0.5 + rng.gauss(0, noise)) / fit.by
            inside, total = inside + (low <= ratio <= high), total + 1
    share = inside / total
    assert share > (0.9 if noise < 0.4 or count > 5 else 0.75), f"{share:.1%} of {total}"
    if count == 60:
        assert share < 0.999, "it is no wider than it must be"


def test_the_interval_follows_heavy_tails_once_they_were_seen():
    errors = [0.01] * 38 + [1.0, -1.0] * 3
    low, high = interval(errors, Prior(tuple([-0.1, 0.1] * 20), (0.5, 2.0)))
    assert low == pytest.approx(math.exp(-1)) and high == pytest.approx(math.e)


def test_what_libraries_take_corrects_large_models_little(tmp_path):
    store, rng = Store(tmp_path), random.Random(7)
    for number in range(8):
        keep(store, number, {"steps": 7.0}, 7.0, peak=1.2e9 * math.exp(rng.gauss(0, 0.01)))
    adjust, large = calibrated(store), estimate(steps=7.0)
    large = large._replace(memory=Quantity(2e10, "bytes", ""), parts=(Part("imports", 4e8, ""), Part("weights", 1.96e10, "")))
    small, large = adjust("train", estimate(steps=7.0)).memory, adjust("train", large).memory
    assert small.value == pytest.approx(1.2e9, rel=0.03)
    assert large.value == pytest.approx(2.02e10, rel=0.06), "not a fifth more"
    assert (large.high - large.low) / large.value < (small.high - small.low) / small.value / 2


@pytest.mark.parametrize("spans", [{"": 10.0}, {"start": 3.0, "steps": 7.0}], ids=["whole", "parts"])
def test_no_run_is_predicted_from_itself(spans):
    def predicted(*seconds):
        """Measured over predicted, of each."""
        features = {(name, ""): size for name, size in spans.items()}
        return [math.exp(error) for error in fitted([[Row(features, each)] for each in seconds]).errors]

    assert predicted(20.0) == [pytest.approx(2.0)], "a lone run tells of the uncorrected prediction"
    assert predicted(10.0, 20.0) == [pytest.approx(0.5, rel=0.05), pytest.approx(2.0, rel=0.05)]
    assert predicted(10.0, 10.0, 10.0, 40.0)[-1] == pytest.approx(4.0, rel=0.05)


def test_a_line_of_another_version_is_named(tmp_path):
    (tmp_path / VERIFIED).write_text('{"kind": "train", "sta')
    with pytest.raises(UserError, match=f"line 1 of .*{VERIFIED}"):
        calibrated(Store(tmp_path))


def test_an_account_holds_every_run_against_the_others(tmp_path):
    store, rng = Store(tmp_path), random.Random(5)
    runs(store, 12, rng, 0.05)
    account = next(account for account in accounts(store) if account.unit == "s")
    assert len(account.points) == 12 and account.kind == "train" and account.host == HERE
    assert all(point.low < point.predicted < point.high for point in account.points)
    off = sorted(abs(point.error) for point in account.points)
    assert off[6] < 0.1 and sum(point.inside for point in account.points) >= 11


# --- the command ------------------------------------------------------------------------------------------


def test_the_command_tells_and_draws(tmp_path, capsys):
    store, rng = Store(tmp_path / "store"), random.Random(6)
    runs(store, 6, rng, 0.05)
    page = tmp_path / "page.html"
    assert main(["calibration", "--store", str(store.root), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "train" in said and "of 6 runs inside the interval" in said and "start" in said and str(page) in said
    text = page.read_text()
    assert text.count("<svg") == 4 and "<script" not in text and "style=" not in text and "run3" in text
    assert main(["calibration", "--store", str(store.root), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [entry["what"] for entry in tree] == ["time", "memory"] and len(tree[0]["points"]) == 6
    assert set(tree[0]["corrections"]) == {"start", "steps"}


def test_what_cards_held_is_told_beside_what_was_predicted(tmp_path, capsys):
    store, page = Store(tmp_path / "store"), tmp_path / "page.html"
    for number, took in enumerate((4e9, 4.1e9, 4.6e9)):
        keep(store, number, {"start": 3.0}, 3.0, card=(4e9, took))
    keep(store, 9, {"start": 3.0}, 3.0, card=(4e9, None))
    (found,) = [one for one in accounts(store) if one.unit == "card"]
    assert [point.inside for point in found.points] == [True, True, False] and found.factors == (0.9, 1.1)
    assert main(["calibration", "--store", str(store.root), "--html", str(page)]) == 0
    assert "memory of the card: 2 of 3 runs inside" in capsys.readouterr().out
    assert "memory of the card" in page.read_text()
    assert main(["calibration", "--store", str(store.root), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree[-1]["what"] == "memory of the card" and tree[-1]["corrections"] == {}


def test_the_page_escapes_what_the_store_says(tmp_path):
    store = Store(tmp_path / "store")
    evil = "<script>alert(1)</script>"
    keep(store, 0, {evil: 3.0, "steps": 4.0}, 8.0, kind=evil, host=evil)
    keep(store, 1, {evil: 3.0, "steps": 9.0}, 15.0, kind=evil, host=evil)
    page = tmp_path / "page.html"
    assert main(["calibration", "--store", str(store.root), "--html", str(page)]) == 0
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert re.search(r"default-src 'none'; style-src 'sha256-", text)


def test_an_empty_store_is_told(tmp_path, capsys):
    assert main(["calibration", "--store", str(tmp_path / "none")]) == 2
    assert "holds no run yet" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_told(tmp_path, capsys):
    keep(store := Store(tmp_path / "store"), 0, {"steps": 4.0}, 8.0)
    assert main(["calibration", "--store", str(store.root), "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "page.html cannot be written" in capsys.readouterr().err


# --- stages tried for real ------------------------------------------------------------------------------------

RECIPE = """
name: tiny
stages:
  rows: {kind: curate, source: {kind: text, path: ./notes/}}
  vocab: {kind: tokenizer, data: rows, method: {kind: bpe, size: 300}}
  base:
    kind: train
    data: rows
    vocab: vocab
    model: {kind: llama, depth: 2, hidden: 32, heads: 2}
    objective: next_token
    length: 64
    batch_tokens: 256
    steps: 500
  score: {kind: evaluate, model: base, data: rows, tasks: [perplexity]}
"""


@pytest.fixture
def project(tmp_path, capsys):
    notes = tmp_path / "notes"
    notes.mkdir()
    rng = random.Random(0)
    words = "red green blue fox dog cat jumps runs sleeps over under near lazy quick small house tree river".split()
    for number in range(60):
        (notes / f"{number}.txt").write_text(" ".join(rng.choice(words) for _ in range(80)) + "\n")
    recipe, store = tmp_path / "tiny.yaml", tmp_path / "store"
    recipe.write_text(RECIPE)
    assert main(["run", str(recipe), "--store", str(store), "--only", "vocab"]) == 0
    capsys.readouterr()
    return recipe, store


def test_two_real_steps_are_held_against_the_plan(project, capsys):
    recipe, store = project
    before = sorted(path.relative_to(store) for path in store.rglob("*"))
    assert main(["plan", str(recipe), "--store", str(store), "--verify", "--stage", "base", "--json"]) == 0
    (tree,) = json.loads(capsys.readouterr().out)
    assert tree["steps"] == 3 and tree["step_s"]["measured"] > 0 and tree["memory"]["measured"] > 1e7
    assert tree["seconds"]["low"] < tree["seconds"]["predicted"] < tree["seconds"]["high"]
    assert tree["whole_s"] > tree["seconds"]["measured"], "500 steps take longer than three"
    after = sorted(path.relative_to(store) for path in store.rglob("*"))
    assert {str(path) for path in set(after) - set(before)} <= {VERIFIED, ".digests.json"}, (
        "nothing but the pair enters the store"
    )
    (line,) = (store / VERIFIED).read_text().splitlines()
    assert json.loads(line)["kind"] == "train" and json.loads(line)["measured"]["steps"] > 0
    adjusted = calibrated(Store(store))("train", estimate(steps=10.0))
    assert adjusted.scale[0] != 1.0, "the next plan knows it"


def test_a_manifest_keeps_what_a_card_was_to_hold(project):
    recipe, store = project
    recipe.write_text(RECIPE.replace("steps: 500", "steps: 1"))
    machine = Machine("with a card", 1, 8e9, device_memory_bytes=8e9)
    *_, done = execute(load(recipe), Store(store), machine, lambda event, fields: None, only="base")
    kept = done.artifact.manifest["estimate"]
    assert kept["device_memory"]["value"] == pytest.approx(sum(part["bytes"] for part in kept["device_parts"]))
    assert {part["name"] for part in kept["parts"]} == {"imports", "rows", "opening"}, "the rest is on the card"


def test_a_stage_that_fails_fails_the_command(project, capsys, monkeypatch):
    recipe, store = project
    monkeypatch.setattr(subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 2, ""))
    assert main(["plan", str(recipe), "--store", str(store), "--verify"]) == 1
    assert "vocab (tokenizer) was not tried: it failed" in capsys.readouterr().out


def test_what_cannot_be_tried_is_named(project, capsys):
    recipe, store = project
    arguments = ["plan", str(recipe), "--store", str(store), "--verify", "--stage"]
    assert main([*arguments, "score"]) == 2
    assert "base is not made yet" in capsys.readouterr().err
    assert main([*arguments, "rows"]) == 2
    assert "a slice tells little" in capsys.readouterr().err
    assert main([*arguments, "nothing"]) == 2
    assert "its stages: rows, vocab, base, score" in capsys.readouterr().err


# --- how light `plan` is ----------------------------------------------------------------------------------------


def test_a_plan_of_ten_stages_imports_little(tmp_path):
    """What makes it slow is counted: modules, of which none that is large, and kinds that are not used."""
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
    code = (
        "import sys, io, contextlib\n"
        "from modelwright.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        f"    assert main(['plan', {str(recipe)!r}, '--store', {str(tmp_path)!r}]) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'numba', 'jinja2', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "kinds = sorted(m for m in sys.modules if m.startswith('modelwright.methods.') and m.count('.') == 3 and '._' not in m)\n"
        "print(sorted(heavy), len(sys.modules), *kinds, said.getvalue().count('to do'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy, modules, kinds, states = done[0], int(done[1]), done[2:-1], int(done[-1])
    assert heavy == "[]" and states >= 13
    assert modules < 520, f"{modules} modules"
    named = recipe.read_text()
    unnamed = [kind for kind in kinds if kind.rsplit(".", 1)[1] not in named]
    assert len(unnamed) <= 6, f"kinds that the recipe does not name, beside its defaults: {unnamed}"


def test_a_stage_is_planned_in_the_process_that_earlier_ones_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "sys", SimpleNamespace(modules={}))
    recipe = """
name: left
stages:
  rows: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}, steps: [gopher]}
  plain: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}, steps: [gopher]}
  words: {kind: tokenizer, data: rows, method: {kind: bpe, size: 300}}
  model: {kind: train, data: rows, vocab: words, model: {kind: llama, depth: 1}, objective: next_token, steps: 1}
  other: {kind: tokenizer, data: rows, method: {kind: bpe, size: 320}}
"""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    found = predict.predict(prepare(loads(recipe), Store(tmp_path)), Machine("test", 1, 8e9), 0)
    left = {name: round(expected.left_bytes / 1e6) for name, expected in found.items()}
    assert left == {"rows": 0, "plain": 0, "words": 120, "model": 0, "other": 460}
    words, other = found["words"].memory, found["other"].memory
    assert other.value - words.value == pytest.approx(340e6, rel=0.01) and "earlier stages leave" in words.why
