"""What fits: bisection is maximal, every change lowers the estimate and loads as it is typed, and what cannot fit is refused."""

import json
import re

import pytest
import yaml

import modelwright as mw
from modelwright.cli.main import main
from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Part, Quantity, Shape
from modelwright.core.parallel import Parallel
from modelwright.core.predict import as_told
from modelwright.core.recipe import loads
from modelwright.core.spec import kind_of
from modelwright.core.stage import STAGES
from modelwright.plan import _fit_models as models
from modelwright.plan import _fit_serve as serve
from modelwright.plan import fit as fitting
from modelwright.plan._advise_facts import data
from modelwright.plan.models import bases, named, of_folder, of_params
from modelwright.plan.needs import Need, needs

SMALL = Shape(layers=12, hidden=768, intermediate=2048, heads=12, kv_heads=12, vocab=32000)
ROWS = {"./rows.jsonl": Facts(type="records", rows=10_000, tokens=2e6)}
CARD = Machine("a card", 8, 64e9, "cuda", 8e12, fp16_flops_per_s=60e12, device_memory_bytes=16e9)


def train(**fields):
    return STAGES.build({"kind": "train", "data": "./rows.jsonl", "objective": "sft", "start": "hf:a/b", "steps": 100, **fields})


def given(machine, shape=SMALL):
    return Given(machine, {**ROWS, "hf:a/b": Facts(type="model", shape=shape, head="causal")})


def of(memory_bytes, **fields):
    return fitting.tried(train(**fields), given(Machine("here", 2, memory_bytes)))


# --- bisection --------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [0, 1, 5, 63, 64, 99, 100])
def test_the_largest_is_maximal(edge):
    asked = []
    found = fitting.largest(lambda value: asked.append(value) or value <= edge, 1, 100)
    assert found == (edge or None) and len(asked) < 12


def test_one_more_does_not_fit():
    now = of(4.2e9, batch_tokens=65536, length=1024)
    step = fitting.STEP
    found = {one.field: one.value for one in fitting.most(now)}
    assert found["micro_tokens"] and found["length"]
    for values, more in (
        ({"micro_tokens": found["micro_tokens"]}, {"micro_tokens": found["micro_tokens"] + step}),
        (fitting.longer(now, found["length"]), fitting.longer(now, found["length"] + step)),
    ):
        assert fitting.attempt(now, values).fits and not fitting.attempt(now, more).fits


def test_the_largest_rank():
    now = of(2.2e9, adapter={"kind": "lora", "rank": 8}, micro_tokens=256)
    rank = next(one.value for one in fitting.most(now) if one.field == "adapter.rank")
    assert 8 < rank < 768
    assert fitting.attempt(now, {"adapter.rank": rank}).fits and not fitting.attempt(now, {"adapter.rank": rank + 1}).fits


def test_what_another_limit_holds_is_told():
    found = {one.field: one for one in fitting.most(of(1e12), longest=4096)}
    assert found["micro_tokens"].limit == "all of a step at once" and found["micro_tokens"].value == 4096
    assert found["length"].value == 4096 and "made for" in found["length"].limit


# --- intervals --------------------------------------------------------------------------------------


def test_the_high_end_counts():
    need = Need("memory", Quantity(10e9, "bytes", "", 9e9, 12e9), 11e9)
    assert need.verdict == "may not fit" and not need.fits and need.free_bytes == -1e9
    assert need._replace(has_bytes=12e9).verdict == "fits"
    assert need._replace(has_bytes=8e9).verdict == "does not fit"
    bare = Need("memory", Quantity(10e9, "bytes", ""), 11e9)
    assert bare.fits and not bare._replace(has_bytes=10.9e9).fits, "a tenth to both sides where nothing is known"


def test_the_sum_is_told_largest_first():
    parts = (Part("weights", 1e9, ""), Part("activations", 3e9, ""), Part("nothing", 0.0, ""))
    need = Need("memory", Quantity(4e9, "bytes", ""), 1e9, parts)
    assert need.sum_text() == "activations 3 GB + weights 1 GB = 4 GB"


# --- changes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_bytes", "fields"),
    [
        (2.6e9, {"batch_tokens": 8192, "micro_tokens": 8192}),
        (1.9e9, {"batch_tokens": 8192, "micro_tokens": 8192}),
        (1.2e9, {"batch_tokens": 4096}),
        (1.45e9, {"batch_tokens": 4096, "length": 4096, "adapter": {"kind": "lora", "rank": 256}}),
    ],
)
def test_every_change_gives_memory_and_loads_as_typed(memory_bytes, fields):
    stage, known = train(**fields), given(Machine("here", 2, memory_bytes))
    found = fitting.fit(stage, known, "chat")
    assert found.changes, found.needs
    takes = found.need.high_bytes
    for change in [change for change in found.changes if change.here]:
        assert change.gives_bytes > 0 and change.takes_bytes == pytest.approx(takes - change.gives_bytes)
        takes = change.takes_bytes
        assert change.costs and change.sets
    assert not any(change.enough for change in found.changes[:-1] if change.here)
    assert [change for change in found.changes if change.here][-1].enough == bool(found.needed)
    _loads(stage, typed := [text for change in found.changes for text in change.sets])
    assert all(re.search("@[0-9a-f]{40}$", text) for text in typed if "=hf:" in text), "a plan asks no network for a commit"
    if found.needed:
        again = _loads(stage, found.needed)
        assert fitting.tried(again, _with_start(known, again.start)).fits


def _loads(stage, overrides):
    """The stage of a recipe with this one and the overrides, as the command line reads them."""
    tree = stage.model_dump(mode="json", exclude_unset=True)
    text = json.dumps({"name": "r", "stages": {"chat": {**tree, "kind": kind_of(stage)}}})
    return loads(text, overrides).recipe.stages["chat"]


def _with_start(known, start):
    shape = SMALL if start == "hf:a/b" else named(start.removeprefix("hf:").partition("@")[0]).shape
    return known._replace(parents={**known.parents, start: Facts(type="model", shape=shape)})


def evaluation(**fields):
    tasks = [{"kind": "exact_match", "rows": 400}, {"kind": "perplexity"}]
    return STAGES.build({"kind": "evaluate", "model": "hf:a/b", "data": "./rows.jsonl", "tasks": tasks, **fields})


@pytest.mark.parametrize(
    ("stage", "machine", "said"),
    [
        (evaluation(), Machine("here", 2, 2.6e9), ["answers at once"]),
        (evaluation(), Machine("here", 2, 1.3e9), ["answers at once", "in bf16"]),
        (evaluation(engine={"kind": "native", "threads": 1}), Machine("here", 2, 0.9e9), ["in bf16", "a model of"]),
        (evaluation(), CARD._replace(device_memory_bytes=1.6e9), ["answers at once"]),
        (STAGES.build({"kind": "export", "model": "hf:a/b", "format": {"kind": "gguf", "type": "bf16"}}),
         Machine("here", 2, 1.6e9), ["the file's weights in", "a model of"]),
    ],
)  # fmt: skip
def test_what_asks_or_writes_a_model_is_told_what_to_change_too(stage, machine, said):
    known = given(machine, SMALL.model_copy(update={"layers": 24}))
    found = fitting.fit(stage, known, "chat")
    assert not found.need.fits and all(any(part in change.name for change in found.changes) for part in said), found.changes
    assert all(change.gives_bytes > 0 and change.costs and change.sets for change in found.changes)
    _loads(stage, [text for change in found.changes for text in change.sets])
    if found.needed:
        again = _loads(stage, found.needed)
        assert fitting.tried(again, _with_start(known, again.model)).fits


def test_an_evaluation_is_where_its_engine_computes():
    """It was planned on the card in seconds and beside it in bytes."""
    known = given(CARD)
    there, here = (evaluation(engine={"kind": "native", "device": on}).estimate(known) for on in ("auto", "cpu"))
    assert there.device_memory.value > 4.0 * SMALL.params > 0 and here.device_memory is None
    assert there.seconds.value < here.seconds.value and there.memory.value < here.memory.value
    assert {part.name for part in there.parts} == {"imports", "opening"}, "the model comes through the process's memory"
    half = evaluation(engine={"kind": "native", "precision": "bf16"}).estimate(known)
    assert half.device_memory.value < there.device_memory.value and half.memory.value < there.memory.value


def test_a_training_on_a_card_opens_its_model_beside_it():
    """A model of 8 billion weights does not come through 16 GB, whatever the card holds."""
    found = train(adapter="lora").estimate(given(CARD))
    assert found.memory.value > 4.0 * SMALL.params > found.memory.value - 1e9
    assert needs(found, CARD._replace(memory_bytes=4.0 * SMALL.params))[0].what == "memory"


def test_more_cards_are_offered_where_one_is_not_enough():
    """A card's memory is then that of each card."""
    big = SMALL.model_copy(update={"layers": 40, "hidden": 2048, "intermediate": 8192})
    known = given(CARD._replace(device_memory_bytes=4e9), big)._replace(
        parents={**ROWS, "base": Facts(type="model", shape=big, head="causal")}
    )
    found = fitting.fit(train(start="base", length=256), known, "chat")
    assert any(change.name.startswith("shard over") for change in found.changes), found.changes


def test_on_one_memory_a_process_and_its_gpu_are_added_and_nothing_is_moved():
    chip = Machine("a chip", 8, 8e9, "mps", 2e12, device_memory_bytes=8e9)
    now = fitting.tried(train(micro_tokens=2048), given(chip))
    (need,) = now.needs
    found = now.estimate
    rest = sum(part.bytes for part in found.parts if part.name != "opening")
    assert need.takes.value == pytest.approx(found.device_memory.value + rest) == pytest.approx(sum(p.bytes for p in need.parts))
    assert (
        0.9 * need.takes.value <= need.low_bytes < need.high_bytes <= 1.1 * need.takes.value * (1 + 1e-9)
        and need.has_bytes == 8e9
    )
    told = fitting.fit(train(batch_tokens=16384, length=2048, micro_tokens=16384), given(chip), "chat")
    sets = " ".join(text for change in told.changes for text in change.sets)
    assert told.changes and "offload" not in sets and "parallel" not in sets, sets
    assert not any(change.on_card for change in told.changes)


def test_copies_of_a_model_are_divided_before_anything_is_computed_twice():
    """Eight copies of 7 billion weights were told to recompute, to offload and to change their optimizer."""
    big = SMALL.model_copy(update={"layers": 32, "hidden": 2048, "intermediate": 5504})
    for machine in (CARD._replace(devices=8), Machine("here", 64, 100e9)):
        known = given(machine, big)._replace(parallel=Parallel(data=8))
        found = fitting.fit(train(), known, "chat")
        assert found.changes[0].sets == ("runtime.parallel.data=1", "runtime.parallel.shard=8"), found.changes
        assert {"runtime.parallel.data=1", "runtime.parallel.shard=8"} <= set(found.needed)


def test_what_is_enough_names_each_field_once_and_no_more_than_is_needed():
    """All were kept where more cards were the last, and `offload` was told three times."""
    big = SMALL.model_copy(update={"layers": 40, "hidden": 2048, "intermediate": 8192})
    known = Given(CARD._replace(device_memory_bytes=7.5e9, memory_bytes=16e9), {**ROWS, "base": Facts(type="model", shape=big)})
    stage = train(start="base")
    found = fitting.fit(stage, known, "chat")
    paths = [text.partition("=")[0] for text in found.needed]
    assert "runtime.parallel.shard" in paths and len(paths) == len(set(paths)), found.needed
    assert len(paths) < len({text.partition("=")[0] for change in found.changes for text in change.sets})
    count = int(found.needed[paths.index("runtime.parallel.shard")].partition("=")[2])
    machine = known.machine._replace(devices=count, memory_bytes=count * known.machine.memory_bytes)
    own = dict(text.removeprefix("stages.chat.").split("=") for text in found.needed if not text.startswith("runtime"))
    values = {path: yaml.safe_load(value) for path, value in own.items()}
    now = fitting.tried(stage, known._replace(machine=machine, parallel=Parallel(shard=count)))
    assert fitting.attempt(now, values).fits
    for left in values:
        then = fitting.attempt(now, {path: value for path, value in values.items() if path != left})
        assert then is None or not then.fits, f"{left} was not needed"


def test_which_memory_a_change_gives_is_told_where_both_are_short():
    """States in 8 bits were told to leave 28.1 GB, of main memory, while the card still wanted 39.5 GB."""
    big = SMALL.model_copy(update={"layers": 36, "hidden": 2560, "intermediate": 9728, "heads": 32, "kv_heads": 8})
    tight = CARD._replace(memory_bytes=16e9)
    found = fitting.fit(train(), given(tight, big), "chat")
    assert {change.on_card for change in found.changes} == {True, False}, found.changes
    lines = [line for line in fitting.lines_of(found) if line[0].isdigit()]
    for change, line in zip(found.changes, lines, strict=True):
        assert (" less on the card," if change.on_card else " less of main memory,") in line
    now = fitting.tried(train(), given(tight, big))
    for change in (change for change in found.changes if change.here):
        values = [text.removeprefix("stages.chat.").partition("=") for text in change.sets]
        then = fitting.attempt(now, {path: yaml.safe_load(value) for path, _, value in values}, _now_with(now, values))
        assert then.alike(now.need).high_bytes == pytest.approx(change.takes_bytes) and now.need.what == change.memory
        now = then
    alone = fitting.fit(train(), given(Machine("here", 2, 1.9e9)), "chat")
    assert not any("of main memory" in line for line in fitting.lines_of(alone)), "one memory needs no name"


def _now_with(now, values):
    """What is known with another start or more cards."""
    typed = {path: value for path, _, value in values}
    known = _with_start(now.given, typed["start"]) if "start" in typed else now.given
    if (count := int(typed.get("runtime.parallel.shard", 1))) > 1:
        machine = known.machine._replace(devices=count, memory_bytes=count * known.machine.memory_bytes)
        known = known._replace(machine=machine, parallel=Parallel(shard=count))
    return known


def test_processes_share_the_memory_of_their_machine(tmp_path, monkeypatch):
    """Eight of 1 GB were taken to fit 2 GB, and the kernel killed them."""
    one, eight = (train().estimate(given(Machine("here", 8, 6e9))._replace(parallel=Parallel(data=n))) for n in (1, 8))
    (alone,), (together,) = (needs(found, Machine("here", 8, 6e9)) for found in (one, eight))
    assert alone.what == "memory" and together.what == "memory for 8 processes" and alone.fits and not together.fits
    assert together.takes.value == pytest.approx(8 * eight.memory.value)
    assert sum(part.bytes for part in together.parts) == pytest.approx(together.takes.value)
    apart = train().estimate(given(Machine("here", 8, 6e9, apart=True))._replace(parallel=Parallel(data=8)))
    assert apart.processes == 1, "each is on a machine of its own"

    monkeypatch.chdir(tmp_path)
    for name in ("model", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words " * 1000)
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 50}))
    base = "{kind: train, data: ./texts/, start: ./model/, objective: next_token, steps: 5}"
    for launch, cell in (("local", "2 x "), ("slurm", "")):
        (tmp_path / "r.yaml").write_text(
            f"name: r\nruntime: {{parallel: {{data: 2}}, launch: {launch}}}\nstages:\n  base: {base}\n"
        )
        plan = mw.load("r.yaml").plan()
        (row,) = plan.rows
        assert plan.table()[0]["memory"].startswith(cell) and ("x" in plan.table()[0]["memory"]) is bool(cell)
        assert plan.peak_bytes == pytest.approx(row.estimate.memory.value * (2 if cell else 1))


def test_four_bits_over_several_cards_are_a_share_on_each_and_all_in_their_host():
    """65 billion weights were said to fit four cards of 16 GB, of whose host's memory alone it was told."""
    cards = CARD._replace(devices=4, device_memory_bytes=16e9, memory_bytes=64e9)
    big = models.training(of_params("65B"), models.Asked("qlora", 2048, full=True), cards)
    assert not big.fits and not big.need.fits and not models.cell(of_params("65B"), "qlora", cards, 2048).need.fits
    one, four = (
        models.training(of_params("8B"), models.Asked("qlora", 2048), CARD._replace(devices=n, memory_bytes=n * 8e9))
        for n in (1, 4)
    )
    assert four.given.parallel.shard == 4
    parts = [{part.name: part.bytes for need in now.needs for part in need.parts} for now in (one, four)]
    for name in ("base in 4 bits", "adapter"):
        assert parts[1][name] == pytest.approx(parts[0][name] / 4) and parts[1][name] > 0
    assert parts[1]["opening"] == pytest.approx(4 * parts[0]["opening"])
    for now in (one, four, big):
        shares = [need.high_bytes / need.has_bytes for need in now.needs]
        assert shares == sorted(shares, reverse=True), "the scarcest first"


def test_where_nothing_helps_it_is_said():
    stage = STAGES.build({"kind": "export", "model": "base", "format": {"kind": "gguf", "type": "q4_k_m"}})
    known = Given(Machine("here", 2, 0.5e9), {"base": Facts(type="model", shape=SMALL, head="causal")})
    found = fitting.fit(stage, known, "small")
    assert not found.changes and "nothing in this stage gives memory" in str(fitting.refusal(found))


def test_changes_come_cheapest_first():
    """The same result, then rounding, another method, less data, a smaller model, more cards."""
    tight = CARD._replace(device_memory_bytes=0.9e9)
    big = SMALL.model_copy(update={"layers": 24})
    found = fitting.fit(train(batch_tokens=8192, micro_tokens=8192, length=2048), given(tight, big), "chat")
    order = ["micro-batches", "again", "keep", "8 bits", "fp16", "inside", "LoRA", "rows", "start", "shard"]
    places = [next(order.index(part) for part in order if part in change.name) for change in found.changes if change.here]
    assert places == sorted(places) and len(places) >= 5, [change.name for change in found.changes]


def test_only_what_is_needed_is_typed():
    found = fitting.fit(train(batch_tokens=8192, micro_tokens=8192), given(Machine("here", 2, 1.9e9)), "chat")
    assert found.needed
    now = fitting.tried(train(batch_tokens=8192, micro_tokens=8192), given(Machine("here", 2, 1.9e9)))
    for left in found.needed:
        stage = _loads(now.stage, [text for text in found.needed if text != left])
        assert not fitting.tried(stage, _with_start(now.given, stage.start)).fits, f"{left} was not needed"


def test_rows_that_a_shorter_length_cuts_are_counted():
    from modelwright.plan._fit_changes import OFFERS, _length

    assert _length in OFFERS
    histogram = {"edges": [0, 1024, 2048, 4096, 8192], "counts": [10, 10, 20, 60]}
    now = of(2.4e9, length=2048, batch_tokens=2048)
    assert "of 100 rows are longer" in _length(now, {"./rows.jsonl": histogram}).costs
    assert "not known" in _length(now, {}).costs


def test_a_change_that_would_be_ignored_is_not_offered():
    now = of(2.4e9, device="cpu")
    assert fitting.attempt(now, {"offload": ("activations",)}) is None
    assert fitting.attempt(now, {"step_in_backward": True}) is None, "the gradient is clipped"
    assert fitting.attempt(now, {"nothing": 1}) is None
    assert fitting.attempt(now, {"step_in_backward": True, "clip": 0.0}) is not None


def test_what_is_done_already_is_told():
    from modelwright.plan._fit_changes import already

    found = already(of(2.4e9, batch_tokens=8192, micro_tokens=8192))
    assert any("the loss in chunks" in text for text in found) and any("a fused step" in text for text in found)


def test_what_fits_has_no_changes():
    found = fitting.fit(train(), given(Machine("here", 2, 64e9)), "chat")
    assert found.need.verdict == "fits" and not found.changes and not found.needed


# --- refusals ---------------------------------------------------------------------------------------


def test_a_run_that_surely_does_not_fit_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    from modelwright.plan.machine import this_machine

    here = this_machine()._replace(memory_bytes=1.5e9)
    monkeypatch.setattr("modelwright.api.this_machine", lambda: here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a b c"}\n' * 4)
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n  corpus: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}}\n"
        "  vocab: {kind: tokenizer, data: corpus, method: {kind: bpe, size: 300}}\n"
        "  base: {kind: train, data: corpus, vocab: vocab, model: {kind: llama, depth: 12}, objective: next_token, steps: 2}\n"
    )
    assert main(["run", "r.yaml"]) == 2
    error = capsys.readouterr().err
    assert "stage 'base' takes about" in error and "there are 1.5 GB" in error and "weights" in error
    assert "stages.base.optimizer.kind=adamw8bit" in error and "--no-gates" in error
    assert not list(tmp_path.glob("store/*/*/manifest.json")), "nothing was made"


@pytest.fixture
def words(tmp_path, monkeypatch, fakes):
    monkeypatch.chdir(tmp_path)
    text = "name: demo\nstages:\n  corpus: {kind: words, count: 4}\n  base: {kind: learn, data: corpus}\n"
    (tmp_path / "r.yaml").write_text(text)
    monkeypatch.setattr("modelwright.api.Project.write_report", lambda self, *a: None)
    return "r.yaml"


def test_without_gates_it_is_tried_all_the_same(words, monkeypatch, capsys):
    def refuse(adjust, step, given, estimate):
        raise UserError(f"{step.name} does not fit")

    monkeypatch.setattr("modelwright.api.judge", refuse)
    assert main(["run", words]) == 2
    error = capsys.readouterr().err
    assert "corpus does not fit" in error and "base does not fit" in error, "all of them at once"
    assert main(["run", words, "--no-gates"]) == 0


def test_what_is_told_of_a_stage_is_shown(words, monkeypatch, capsys):
    monkeypatch.setattr("modelwright.api.judge", lambda adjust, step, given, estimate: f"{step.name} is tight")
    assert main(["run", words]) == 0
    out = capsys.readouterr().out
    assert out.count("corpus is tight") == 1 and out.count("base is tight") == 1


def test_a_plan_that_surely_does_not_fit_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a b c"}\n' * 4)
    (tmp_path / "r.yaml").write_text(RECIPE)
    large = ["stages.base.model.depth=60", "--device", "t4"]
    assert main(["plan", "r.yaml", *large]) == 2
    shown = capsys.readouterr()
    assert "base does not fit: up to" in shown.out and "enough to change: " in shown.out
    assert "stage 'base' takes about" in shown.err and "1. " in shown.err
    assert main(["plan", "r.yaml", "--device", "t4"]) == 0


def test_several_cards_share_what_one_cannot_hold():
    """As a run divides by `shard` what is too large for one card."""
    big = SMALL.model_copy(update={"layers": 60, "hidden": 1536, "intermediate": 4096})
    step = type("Step", (), {"stage": train(), "name": "chat"})()
    for devices, refused in ((1, True), (4, False)):
        known = given(CARD._replace(device_memory_bytes=24e9, devices=devices), big)
        estimate = step.stage.estimate(known)
        if refused:
            with pytest.raises(UserError, match="memory of the card"):
                fitting.judge(as_told, step, known, estimate)
        else:
            assert fitting.judge(as_told, step, known, estimate) == ""


def test_what_may_not_fit_is_told_and_tried():
    step = type("Step", (), {"stage": train(), "name": "chat"})()
    known = given(Machine("here", 2, 3e9))
    estimate = step.stage.estimate(known)
    near = known._replace(machine=known.machine._replace(memory_bytes=estimate.memory.value))
    low, high = 0.9 * estimate.memory.value, 1.2 * estimate.memory.value
    said = fitting.judge(as_told, step, near, estimate._replace(memory=estimate.memory._replace(low=low, high=high)))
    assert "may take more memory than there is" in said


def test_a_model_that_no_card_holds_is_refused_with_the_sum():
    """65 billion weights do not lie in 24 GB at 4 bits, whatever is said of it."""
    card = CARD._replace(device_memory_bytes=24e9)
    base = of_params("65B")
    assert base.name == "LLaMA-65B"
    now = models.training(base, models.Asked("qlora", 512), card)
    assert now.need.surely_not
    error = str(fitting.refusal(models.fits_of(now, "qlora")))
    assert "base in 4 bits 34." in error and "24 GB" in error


# --- models and methods -----------------------------------------------------------------------------


def test_public_models_have_the_weights_that_they_are_named_for():
    counts = {base.name: base.params for base in bases()}
    assert counts["SmolLM2-135M"] == 134_515_008 and counts["Qwen3-0.6B"] == 596_049_920
    assert counts["Llama-3.2-1B"] == 1_235_814_400 and counts["Llama-3.1-8B"] == 8_030_261_248
    assert counts["Gemma-3-1B"] == 999_885_952 and counts["Mistral-7B"] == 7_248_023_552
    assert list(counts.values()) == sorted(counts.values())
    for base in bases():
        assert base.hub and base.context and (base.read.startswith("https://") or not base.read)


def test_a_number_of_weights_is_the_nearest_model_with_other_layers():
    base = of_params("3B")
    assert abs(base.params / 3e9 - 1) < 0.03 and "Llama-3.2-3B with 26 layers" in base.read
    for wrong in ("3X", "0B", "", "-1B"):
        with pytest.raises(UserError, match="no number of weights"):
            of_params(wrong)


def test_a_tuned_model_has_the_sizes_of_its_base():
    """Those that `advise` starts from were planned as a small model's of unknown sizes."""
    for hub, like in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M"), ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("google/gemma-3-4b-it", "Gemma-3-4B"), ("mistralai/Mistral-7B-Instruct-v0.3", "Mistral-7B"),
    ):  # fmt: skip
        assert named(hub).name == like
    assert all(named(start.start.removeprefix("hf:").partition("@")[0]).name == start.like for start in data().starts)
    for other in ("me/Qwen3-4B-Instruct-2507-mine", "me/Qwen3-4B"):
        with pytest.raises(UserError):
            named(other)


def test_a_folder_is_read_as_transformers_reads_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    from modelwright.methods.architectures import shape_of

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "num_attention_heads": 4, "vocab_size": 300}
    for kind in ("Llama", "Qwen3", "Mistral", "Gemma3Text", "Qwen3Moe", "Mixtral"):
        config = getattr(transformers, f"{kind}Config")(**sizes)
        config.save_pretrained(tmp_path / kind)
        assert of_folder(tmp_path / kind).shape == shape_of(config), kind
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 64}')
    with pytest.raises(UserError, match="does not say num_hidden_layers"):
        of_folder(tmp_path)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="SmolLM2-135M"):
        named("smollm2-136m")
    with pytest.raises(UserError, match="no method 'lorra'"):
        models.training(bases()[0], models.Asked("lorra"), CARD)


def test_a_method_of_this_project_is_its_own_stage():
    base = named("SmolLM2-135M")
    now = models.training(base, models.Asked("lora", 512, rows=2, rank=8), CARD)
    stage = train(
        start=models.START,
        adapter={"kind": "lora", "rank": 8},
        length=512,
        batch_tokens=1024,
        micro_tokens=1024,
        precision="fp16",
    )
    known = Given(
        CARD, {models.START: Facts(type="model", shape=base.shape, head="causal"), models.DATA: now.given.parents[models.DATA]}
    )
    assert now.estimate.device_memory.value == stage.estimate(known).device_memory.value


def test_methods_are_ordered_by_what_they_take():
    base = named("Llama-3.2-1B")
    takes = {name: models.training(base, models.Asked(name, 1024), CARD).need.takes.value for name in models.METHODS}
    assert takes["qlora"] < takes["lora"] < takes["full"] and takes["lora"] < takes["grpo"]


def test_the_most_of_a_model_is_maximal():
    base, asked = named("SmolLM2-360M"), models.Asked("lora", 1024)
    found = {one.field: one.value for one in models.most_of(base, asked, CARD)}
    rows = found["rows of 1,024 tokens at once"]
    assert models.fits(base, asked._replace(rows=rows), CARD) and not models.fits(base, asked._replace(rows=rows + 1), CARD)
    larger = models.largest_base(asked, CARD)
    above = [one for one in bases() if one.params > larger.params]
    assert larger.params >= base.params and not any(models.fits(one, asked, CARD) for one in above)


# --- serving ----------------------------------------------------------------------------------------


def test_serving_is_maximal_and_smaller_types_hold_more():
    base = named("Llama-3.2-3B")
    found = {(one.weights, one.cache): one for one in serve.serving(base, CARD)}
    for (weights, cache), one in found.items():
        if one.longest is not None and one.longest < base.context:
            assert serve.need(base, weights, cache, one.longest, 1, CARD).fits
            assert not serve.need(base, weights, cache, one.longest + 1, 1, CARD).fits
    assert found["q4_k_m", "f16"].sequences[0] > found["bf16", "f16"].sequences[0] > (found["f32", "f16"].sequences[0] or 0)
    assert found["bf16", "q8_0"].longest >= found["bf16", "f16"].longest
    assert not found["bf16", "q8_0"].here and found["bf16", "f16"].here


def test_a_window_keeps_no_more_than_itself():
    base = named("Gemma-3-1B")
    whole = base._replace(shape=base.shape.model_copy(update={"windowed_layers": 0}))
    windowed, full = (serve.need(one, "bf16", "f16", 32768, 1, CARD).parts[1].bytes for one in (base, whole))
    assert windowed < 0.2 * full


# --- the command ------------------------------------------------------------------------------------


RECIPE = """name: r
stages:
  corpus: {kind: curate, source: {kind: jsonl, path: ./rows.jsonl}}
  vocab: {kind: tokenizer, data: corpus, method: {kind: bpe, size: 300}}
  base: {kind: train, data: corpus, vocab: vocab, model: {kind: llama, depth: 2}, objective: next_token, steps: 2}
"""


def test_the_command_on_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a b c"}\n' * 4)
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert main(["fit", "r.yaml", "--device", "t4", "--stage", "base"]) == 0
    out = capsys.readouterr().out
    assert "fits" in out and "micro_tokens up to" in out and "corpus" not in out.split("base", 1)[1]
    assert main(["fit", "r.yaml", "--device", "t4", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["stages"]["base"]["verdict"] == "fits" and tree["stages"]["base"]["most"]["micro_tokens"] >= 64
    assert main(["fit", "r.yaml", "--device", "t4", "stages.base.model.depth=40", "stages.base.length=4096", "--stage", "base",
                 "stages.base.batch_tokens=65536", "stages.base.micro_tokens=65536"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "does not fit" in out and "what gives memory, cheapest first" in out and "stages.base." in out


def test_the_command_without_a_recipe(capsys):
    assert main(["fit", "--device", "t4", "--params", "1B", "--method", "lora"]) == 0
    out = capsys.readouterr().out
    assert "LoRA, rows of 2,048 tokens" in out and "sum:" in out and "rank up to" in out
    assert main(["fit", "--device", "t4", "--params", "65B", "--method", "qlora", "--length", "512"]) == 0
    out = capsys.readouterr().out
    assert "does not fit" in out and "base in 4 bits 34." in out and "stages." not in out
    assert main(["fit", "--device", "t4", "--length", "512"]) == 0
    out = capsys.readouterr().out
    assert "qlora*" in out and all(base.name in out for base in bases())
    assert main(["fit", "--device", "t4", "--serve", "Qwen3-4B"]) == 0
    assert "q4_k_m" in capsys.readouterr().out


def test_the_command_on_the_model_that_a_recipe_makes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a b c"}\n' * 4)
    (tmp_path / "r.yaml").write_text(RECIPE + "  small: {kind: export, model: base, format: {kind: gguf, type: q8_0}}\n")
    for option, said in (("--serve", "1024+"), ("--model", "rank up to")):
        assert main(["fit", option, "r.yaml", "--device", "t4"]) == 0
        shown = capsys.readouterr().out
        assert said in shown and "small of r.yaml" in shown
        assert main(["fit", option, "r.yaml", "--device", "t4", "--stage", "base"]) == 0
        assert "base of r.yaml" in capsys.readouterr().out
        for wrong, told in (("r.yaml --stage vocab", "it has: base, small"), ("Qwen3-4B --stage base", "goes with a recipe")):
            assert main(["fit", option, *wrong.split()]) == 2
            assert told in capsys.readouterr().err
    (tmp_path / "n.yaml").write_text(RECIPE[: RECIPE.index("  vocab")])
    assert main(["fit", "--serve", "n.yaml"]) == 2
    assert "no stage of n.yaml makes a model" in capsys.readouterr().err


def test_mistakes_on_the_command_line(capsys):
    assert main(["fit", "--device", "t5"]) == 2
    assert "t4" in capsys.readouterr().err
    assert main(["fit", "--device", "t4", "--params", "3B", "--method", "lorra"]) == 2
    assert "one of: full, lora" in capsys.readouterr().err
    assert main(["fit", "--device", "t4", "--model", "Qwen4-4B"]) == 2
    assert "did you mean" in capsys.readouterr().err
    for wrong in (
        "--params 3B --serve Qwen3-4B", "--length 2", "--stage base", "--rank 4", "--method full",
        "r.yaml --length 512", "--serve Qwen3-4B --rank 4",
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main(["fit", "--device", "t4", *wrong.split()])
    for wrong in ("--devices 2", "--devices-file none.yaml"):
        with pytest.raises(SystemExit):
            main(["fit", *wrong.split()])
    assert main(["fit", "--device", "t4", "--devices", "0"]) == 2
    assert main(["fit", "--device", "tpu-v5e"]) == 2
    assert "does not train on TPUs" in capsys.readouterr().err


def test_a_start_in_a_folder_is_planned_at_its_own_size(tmp_path):
    """Its files may hold two bytes a weight or four."""
    import torch

    from tests import engine_kit

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        folder = engine_kit.folder(tmp_path / str(dtype))
        model = engine_kit.model("Llama", len(engine_kit.tokenizer()))
        model.to(dtype).save_pretrained(folder)
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"name: r\nstages:\n  chat: {{kind: train, start: ./{folder.name}/, data: ./rows.jsonl, objective: sft, steps: 2}}\n"
        )
        (row,) = mw.load(recipe, store=tmp_path / "store").plan().rows
        found[dtype] = row.estimate.facts[""].shape
        assert found[dtype].params == sum(weight.numel() for weight in model.parameters())
    assert len(set(found.values())) == 1
