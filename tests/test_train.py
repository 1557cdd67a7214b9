"""The training stage from end to end at tiny size: what it leaves, what it refuses, and that a kill changes no bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Shape
from modelwright.core.record import Record
from modelwright.core.stage import Input, Run
from modelwright.nn import loop
from modelwright.nn import model as models
from modelwright.stages import _train_run
from tests import train_kit as kit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def vocab(folder: Path) -> Input:
    return Input("vocab", "tokenizer", kit.tokenizer(folder / "vocab"))


@pytest.fixture(scope="module")
def texts(folder: Path) -> Input:
    return kit.records(folder / "texts", kit.texts(40))


@pytest.fixture(scope="module")
def chats(folder: Path) -> Input:
    return kit.records(folder / "chats", kit.chats(30))


@pytest.fixture(scope="module")
def base(folder: Path, vocab: Input, texts: Input) -> Input:
    run = kit.run_of(folder / "base", {"data": texts, "vocab": vocab})
    kit.stage(template="chatml", steps=4).run(run)
    return Input("base", "model", run.out)


def digest(out: Path) -> str:
    """Of the weights alone: all else follows from them."""
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


# --- what it leaves -------------------------------------------------------------------------------------


def test_pretraining_leaves_a_folder_that_transformers_loads(folder: Path, vocab: Input, texts: Input) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    events: list[tuple[str, dict[str, Any]]] = []
    run = kit.run_of(folder / "pretrained", {"data": texts, "vocab": vocab, "held": texts._replace(ref="held")}, events=events)
    stats = kit.stage(steps=20, validation="held", validate_every=10).run(run)
    assert stats["loss_last"] < stats["loss_first"] and stats["steps"] == 20
    assert stats["target_tokens"] + stats["masked_tokens"] == stats["tokens"]
    assert stats["rows"] == {"read": 40, "used": 40, "dropped": {}}
    assert stats["facts"][""]["shape"]["layers"] == 2 and len(stats["samples"]) == 3
    steps = [fields for name, fields in events if name == "step"]
    assert [fields["step"] for fields in steps] == list(range(2, 21, 2))
    assert [fields["step"] for name, fields in events if name == "validation"] == [10, 20]
    json.dumps(stats)

    model = AutoModelForCausalLM.from_pretrained(run.out)
    assert sum(p.numel() for p in model.parameters()) == stats["params"] == stats["trainable"]
    assert AutoTokenizer.from_pretrained(run.out)("the fox")["input_ids"]
    left = {path.name for path in run.out.iterdir()} - {"cache", "checkpoint"}  # removed with the manifest
    assert left == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert str(folder) not in "".join(p.read_text() for p in run.out.glob("*.json")), "a path of this machine got in"


def test_sft_learns_answers_and_keeps_the_template(folder: Path, base: Input, chats: Input) -> None:
    run = kit.run_of(folder / "chat", {"data": chats, "base": base})
    stats = kit.stage(start="base", objective="sft", epochs=2.0).run(run)
    whole = {"share_frac": 1.0, "planned_frac": 1.0}
    assert stats["sources"] == [{"ref": "data", "rows": 30, "tokens": stats["tokens"], "epochs": 2.0, **whole}]
    assert 0 < stats["target_tokens"] < stats["tokens"] / 2
    tokenizer = models.load_tokenizer(run.out)
    assert "<|im_start|>" in tokenizer.chat_template
    ends = json.loads((run.out / "generation_config.json").read_text())["eos_token_id"]
    assert set(tokenizer.convert_ids_to_tokens(ends)) == {"<|endoftext|>", "<|im_end|>"}


def test_dpo_with_an_adapter(folder: Path, base: Input) -> None:
    run = kit.run_of(folder / "aligned", {"data": kit.records(folder / "pairs", kit.pairs(20)), "base": base})
    stats = kit.stage(start="base", objective={"kind": "dpo", "beta": 0.5}, adapter={"kind": "lora", "rank": 2}).run(run)
    assert stats["loss_first"] == pytest.approx(0.693147, abs=1e-5), "policy and reference are the same at first"
    assert stats["trainable"] < stats["params"] and stats["merge_drift_nats"] < 1e-4
    assert (run.out / "adapter" / "adapter_model.safetensors").exists()
    assert len({path.stat().st_mode & 0o777 for path in (run.out / "adapter").iterdir()}) == 1, "who reads one reads all"
    merged, _ = models.load(run.out)
    start, _ = models.load(base.path)
    changed = [not torch.equal(a, b) for a, b in zip(merged.state_dict().values(), start.state_dict().values(), strict=True)]
    assert any(changed) and not all(changed)


def test_dpo_of_all_weights_keeps_the_start_as_its_reference(folder: Path, base: Input) -> None:
    run = kit.run_of(folder / "aligned-full", {"data": kit.records(folder / "pairs2", kit.pairs(20)), "base": base})
    stats = kit.stage(start="base", objective="dpo", optimizer={"kind": "adamw", "lr": 1e-3}, epochs=8.0).run(run)
    assert stats["loss_first"] == pytest.approx(0.693147, abs=1e-5) and stats["loss_last"] < 0.69


def test_the_reference_is_asked_for_the_measured_rows_alone(folder: Path, base: Input) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    inputs = {
        "data": kit.records(folder / "pairs3", kit.pairs(20)),
        "held": kit.records(folder / "pairs4", kit.pairs(9, 1)),
        "base": base,
    }
    still = {"kind": "adamw", "lr": 1e-9}
    stage = kit.stage(
        start="base", objective="dpo", optimizer=still, steps=1, validation="held", validate_every=1, validation_rows=4
    )
    stage.run(kit.run_of(folder / "aligned-held", inputs, events=events))
    (held,) = [fields for name, fields in events if name == "validation"]
    assert held["rows"] == 4 and held["loss"] == pytest.approx(0.693147, abs=1e-5), "each row meets its own reference"
    asked = [fields["total"] for name, fields in events if name == "progress" and fields["label"] == "reference"]
    assert sorted({*asked}) == [4, 20]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(folder: Path, base: Input, chats: Input) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        run = kit.run_of(folder / f"seed-{number}", {"data": chats, "base": base}, seed)
        kit.stage(start="base", objective="sft", adapter={"kind": "lora", "rank": 2, "dropout": 0.1}, steps=3).run(run)
        found.append((digest(run.out), (run.out / "adapter" / "adapter_config.json").read_bytes()))
    assert found[0] == found[1] and found[0][0] != found[2][0]


# --- rows -----------------------------------------------------------------------------------------------


def test_rows_that_do_not_fit_are_counted(folder: Path, base: Input) -> None:
    long = Record("long", messages=[{"role": "user", "content": "the " * 200}, {"role": "assistant", "content": "fox"}])
    silent = Record("silent", messages=[{"role": "user", "content": "the fox"}])
    rows = [*kit.chats(5), long, silent, Record("text", text="the fox"), *kit.pairs(1)]
    run = kit.run_of(folder / "odd", {"data": kit.records(folder / "odd-rows", rows), "base": base})
    stats = kit.stage(start="base", objective="sft", steps=2).run(run)
    assert stats["rows"]["read"] == 9 and stats["rows"]["used"] == 5
    assert stats["rows"]["dropped"] == {
        "a chat of more than 64 tokens": 1,
        "a preference pair, which this objective does not use": 1,
        "a text without questions and answers": 1,
        "nothing to train on": 1,
    }


def test_tools_of_a_row_reach_the_template(folder: Path, base: Input, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(base.path, tmp_path / "base")
    template = (base.path / "chat_template.jinja").read_text()
    (tmp_path / "base" / "chat_template.jinja").write_text(
        "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}{% set tools = none %}" + template
    )
    start = base._replace(path=tmp_path / "base")
    chats = kit.chats(6)
    for number, tools in enumerate([[{"name": "the fox"}], json.dumps([{"name": "the fox"}]), "no JSON", {"name": "x"}, []]):
        chats[number].meta["tools"] = tools
    run = kit.run_of(tmp_path / "run", {"data": kit.records(tmp_path / "rows", chats), "base": start})
    stats = kit.stage(start="base", objective="sft", template="own", steps=2).run(run)
    assert stats["rows"]["used"] == 4 and sum(stats["rows"]["dropped"].values()) == 2
    assert all(reason.startswith("its tools cannot be read") for reason in stats["rows"]["dropped"])
    plain = kit.records(
        tmp_path / "plain", [record for record in kit.chats(6) if record.id in {chats[i].id for i in (0, 1, 4, 5)}]
    )
    without = kit.stage(start="base", objective="sft", template="own", steps=2)
    before = without.run(kit.run_of(tmp_path / "without", {"data": plain, "base": start}))
    assert stats["sources"][0]["tokens"] > before["sources"][0]["tokens"], "two rows hold the tools' names too"
    checks = {check.name: check for check in kit.stage(start="base", objective="sft", template="own").checks(run)}
    assert checks["template parity"].ok and "4 of 4" in checks["template parity"].detail


def test_a_warm_up_longer_than_the_run_is_told(folder: Path, base: Input, chats: Input) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    run = kit.run_of(folder / "warm", {"data": chats, "base": base}, events=events)
    kit.stage(start="base", objective="sft", steps=3, schedule={"kind": "cosine", "warmup": 50}).run(run)
    assert any("6% of its peak" in str(event) for event in events)


def test_long_texts_are_cut_and_every_token_is_learnt_once() -> None:
    from modelwright.stages._train_row_kinds import cut

    for tokens in (9, 10, 11, 37, 100):
        pieces = cut(list(range(tokens)), 10)
        assert all(len(piece) <= 10 for piece in pieces)
        assert [token for piece in pieces for token in piece[1:]] == list(range(1, tokens))


def test_next_token_trains_on_whole_chats_beside_texts(folder: Path, base: Input, chats: Input, texts: Input) -> None:
    mixed = {"data": chats._replace(ref="data"), "more": texts._replace(ref="more"), "base": base}
    run = kit.run_of(folder / "mixed", mixed)
    data = [{"ref": "data", "weight": 1.0}, {"ref": "more", "weight": 3.0}]
    stats = kit.stage(start="base", objective="next_token", data=data, steps=20).run(run)
    one, two = (source["tokens"] for source in stats["sources"])
    assert 0.18 < one / (one + two) < 0.32
    assert stats["masked_tokens"] < stats["tokens"] / 8, "only the first token of a row is not predicted"


def test_data_that_never_fits_is_refused(folder: Path, base: Input, texts: Input) -> None:
    run = kit.run_of(folder / "wrong", {"data": texts, "base": base})
    with pytest.raises(UserError, match="no row of data can be trained on") as error:
        kit.stage(start="base", objective="sft").run(run)
    assert "without questions" in error.value.why and "messages" in error.value.fix


def test_chats_need_a_template(folder: Path, vocab: Input, chats: Input) -> None:
    run = kit.run_of(folder / "no-template", {"data": chats, "vocab": vocab})
    with pytest.raises(UserError, match="chat template"):
        kit.stage(objective="sft").run(run)


def test_a_context_too_long_for_the_start_is_refused(folder: Path, base: Input, chats: Input) -> None:
    run = kit.run_of(folder / "too-long", {"data": chats, "base": base})
    with pytest.raises(UserError, match="64 tokens that the start can see"):
        kit.stage(start="base", objective="sft", length=128).run(run)


# --- combinations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 1.0, "steps": 3}, "exactly one of"),
        ({"steps": None}, "exactly one of"),
        ({"vocab": None}, "`vocab` is missing"),
        ({"objective": "dpo"}, "frozen start"),
        ({"adapter": "lora"}, "beside a trained model"),
        ({"length": 256}, "no step could hold"),
    ],
)
def test_impossible_combinations(fields: dict[str, Any], message: str) -> None:
    tree = {
        "data": "data",
        "vocab": "vocab",
        "model": "llama",
        "objective": "next_token",
        "length": 64,
        "batch_tokens": 128,
        "steps": 6,
    }
    from modelwright.core.stage import STAGES

    with pytest.raises(ValidationError, match=message):
        STAGES.load("train").model_validate({k: v for k, v in {**tree, **fields}.items() if v is not None})


def test_what_a_combination_ignores() -> None:
    from modelwright.core.stage import STAGES

    tree = {"data": "data", "vocab": "v", "model": "llama", "start": "base", "objective": "sft", "steps": 3}
    stage = STAGES.load("train").model_validate(tree)
    assert set(stage.unused(stage)) == {"model", "vocab", "validate_every", "validation_rows", "patience", "keep"}
    tree = {"data": "data", "vocab": "v", "model": "llama", "objective": "sft", "steps": 3}
    assert "grow" in STAGES.load("train").model_validate(tree).unused(stage)
    assert set(kit.stage(validation="held").unused(stage)) == {"grow"}


# --- checks and estimates ---------------------------------------------------------------------------------


def test_checks_pass_on_sound_data(folder: Path, base: Input, chats: Input) -> None:
    run = kit.run_of(folder / "sound", {"data": chats, "base": base})
    found = {check.name: check for check in kit.stage(start="base", objective="sft").checks(run)}
    assert set(found) == {"rows kept", "mask audit", "end of turn", "template parity", "packing and accumulation"}
    assert all(check.ok for check in found.values()), found
    assert "<|im_end|>]" in found["mask audit"].detail
    assert not list(run.out.iterdir()), "checks leave nothing behind"


def test_checks_find_a_template_without_an_end(folder: Path, base: Input, chats: Input, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(base.path, tmp_path / "base")
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    (tmp_path / "base" / "chat_template.jinja").write_text(bare)
    run = kit.run_of(tmp_path / "run", {"data": chats, "base": base._replace(path=tmp_path / "base")})
    found = {check.name: check for check in kit.stage(start="base", objective="sft").checks(run)}
    assert not found["end of turn"].ok and "chatml" in found["end of turn"].fix


def test_checks_find_data_that_mostly_does_not_fit(folder: Path, base: Input, tmp_path: Path) -> None:
    rows = [*kit.chats(2), *kit.texts(5)]
    run = kit.run_of(tmp_path / "run", {"data": kit.records(tmp_path / "rows", rows), "base": base})
    kept = next(iter(kit.stage(start="base", objective="sft").checks(run)))
    assert not kept.ok and "5 a text without" in kept.detail and "sft takes chats" in kept.fix
    run = kit.run_of(tmp_path / "short", {"data": kit.records(tmp_path / "chats", kit.chats(7)), "base": base})
    kept = next(iter(kit.stage(start="base", objective="sft", length=8).checks(run)))
    assert not kept.ok and kept.fix == "raise `length`"


def test_estimates_grow_with_what_costs() -> None:
    shape = Shape(layers=4, hidden=256, intermediate=704, heads=4, kv_heads=4, vocab=4096)
    facts = {"data": Facts(type="records", chars=11.4e6), "base": Facts(type="model", shape=shape)}
    given = Given(Machine("laptop", 2, 16e9), facts)

    def cost(**fields: Any) -> Any:
        return kit.stage(**{"start": "base", "length": 256, "batch_tokens": 2048, "micro_tokens": None, **fields}).estimate(given)

    plain = cost(steps=900)
    assert 200 < plain.seconds.value < 900, "900 steps took 340 s in bf16 and 550 s in float32 on two cores"
    assert 0.5e9 < plain.memory.value < 1.2e9
    assert cost(steps=1800).seconds.value > 1.8 * plain.seconds.value
    assert cost(steps=900, objective="dpo").seconds.value != plain.seconds.value
    assert 2.5 < cost(epochs=3.0).seconds.value / cost(epochs=1.0).seconds.value < 3.1
    large = Given(
        given.machine, {**facts, "base": Facts(type="model", shape=shape.model_copy(update={"layers": 16, "hidden": 2048}))}
    )
    full, lora = (kit.stage(start="base", adapter=adapter).estimate(large) for adapter in (None, "lora"))
    assert lora.memory.value < full.memory.value / 2 and lora.seconds.value < full.seconds.value
    assert all(quantity.why for quantity in plain[:3]) and plain.facts[""].shape == shape
    unknown = kit.stage(start="hf:org/name").estimate(Given(given.machine, {"hf:org/name": Facts(type="path", bytes=540e6)}))
    assert "assumed" in unknown.memory.why and 2e9 < unknown.memory.value < 4e9


def test_runtime_fields_are_filled_from_the_machine_and_stay_out_of_the_key() -> None:
    stage = kit.stage(threads=None, micro_tokens=None)
    resolved = stage.resolve(Given(Machine("laptop", 3, 16e9), {}))
    assert resolved.threads == 3 and resolved.micro_tokens == 128
    assert resolved.identity() == stage.identity()
    assert "threads" not in stage.identity() and "steps" in stage.identity()


# --- killed -----------------------------------------------------------------------------------------------

CHILD_FIELDS = {
    how: json.dumps({"start": "base", "objective": "sft", "steps": 12, "adapter": adapter, "checkpoint_every_s": 0.0})
    for how, adapter in (("full", None), ("lora", {"kind": "lora", "rank": 2, "dropout": 0.1}))
}
CHILD = """
import json
import sys
from pathlib import Path
from modelwright.core.events import Log
from modelwright.core.stage import Input, Run
from tests import train_kit as kit
here = Path(sys.argv[1])
inputs = {"data": Input("data", "records", here / "chats"), "base": Input("base", "model", here / "base")}
def listen(event, fields):
    if event == "progress" and fields["label"] == "train":
        print("step", fields["done"], flush=True)
run = Run(here / sys.argv[2], inputs, 0, Log(None, listen))
run.out.mkdir(exist_ok=True)
kit.stage(**json.loads(sys.argv[3])).run(run)
"""


def child(folder: Path, name: str, how: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CHILD, str(folder), name, CHILD_FIELDS[how]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root)


def kill_and_resume(folder: Path, how: str, at_step: int, number: signal.Signals, delay_s: float = 0.0, label: str = "") -> None:
    name = f"killed-{how}-{at_step}-{number.name}-{label}"
    process = child(folder, name, how)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"step {at_step}":
            time.sleep(delay_s)
            process.send_signal(number)
            break
    process.communicate()
    assert process.returncode != 0 or delay_s
    for out in (folder / name, folder / f"whole-{how}"):
        if not (out / "model.safetensors").exists():
            run = kit.run_of(
                out, {"data": Input("data", "records", folder / "chats"), "base": Input("base", "model", folder / "base")}
            )
            kit.stage(**json.loads(CHILD_FIELDS[how])).run(run)
    assert digest(folder / name) == digest(folder / f"whole-{how}")


def test_killed_by_force_and_resumed_to_the_same_bits(folder: Path, base: Input, chats: Input) -> None:
    kill_and_resume(folder, "lora", 7, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "lora"])
@pytest.mark.parametrize("number", range(25))
def test_killed_at_any_point(folder: Path, base: Input, chats: Input, how: str, number: int) -> None:
    """Fifty points, most of them inside a step or while a checkpoint is on its way to the disk."""
    chance = random.Random(f"{how} {number}")
    kill_and_resume(folder, how, chance.randint(1, 11), signal.SIGKILL, chance.uniform(0, 0.04), f"{number}")


@pytest.mark.slow
def test_asked_to_stop_it_saves_first(folder: Path, base: Input, chats: Input) -> None:
    kill_and_resume(folder, "full", 5, signal.SIGTERM)


def test_a_wish_to_stop_is_granted_after_the_step(folder: Path, base: Input, chats: Input) -> None:
    def listen(event: str, fields: dict[str, Any]) -> None:
        if event == "progress" and fields["label"] == "train" and fields["done"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    from modelwright.core.events import Log

    run = Run(folder / "asked", {"data": chats, "base": base}, 0, Log(None, listen))
    run.out.mkdir()
    before = signal.getsignal(signal.SIGTERM)
    stage = kit.stage(start="base", objective="sft", steps=9, checkpoint_every_s=1e9)
    with pytest.raises(KeyboardInterrupt):
        stage.run(run)
    assert signal.getsignal(signal.SIGTERM) is before
    assert [p.name for p in (run.out / "checkpoint").glob("*.pt")] == ["step-00000003.pt"]
    events: list[tuple[str, dict[str, Any]]] = []
    stats = stage.run(kit.run_of(folder / "asked", {"data": chats, "base": base}, events=events))
    assert ("resumed", {"step": 3}) in events and stats["steps"] == 9


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_is_not_enough_is_said_with_what_to_do(
    error: Exception, folder: Path, base: Input, chats: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved before goes on with smaller micro-batches, to the same result."""

    def full(*given: Any) -> Any:
        raise error

    stage, inputs = kit.stage(start="base", objective="sft", steps=5, checkpoint_every_s=0.0), {"data": chats, "base": base}
    with monkeypatch.context() as patch, pytest.raises(UserError, match="more memory than there is") as told:
        steps = iter(range(3))
        real = loop.backward
        patch.setattr(loop, "backward", lambda *given: full() if next(steps, None) is None else real(*given))
        stage.run(kit.run_of(tmp_path / "full", inputs))
    assert "`micro_tokens` below 64" in told.value.fix and "`recompute: full`" in told.value.fix
    smaller = stage.model_copy(update={"micro_tokens": 32})
    events: list[tuple[str, dict[str, Any]]] = []
    stats = smaller.run(kit.run_of(tmp_path / "full", inputs, events=events))
    assert ("resumed", {"step": 3}) in events and stats["steps"] == 5


def test_samples_while_training_change_no_bit(folder: Path, base: Input, chats: Input) -> None:
    inputs, told = {"data": chats, "base": base}, []
    for name, every in (("silent", 0), ("telling", 2)):
        told = []
        stage = kit.stage(
            start="base", objective="sft", steps=6, adapter={"kind": "lora", "rank": 2, "dropout": 0.1}, samples_every=every
        )
        stage.run(kit.run_of(folder / name, inputs, events=told))
    assert digest(folder / "silent") == digest(folder / "telling")
    assert [fields["step"] for event, fields in told if event == "samples"] == [2, 4]
    assert all(sample["prompt"] for event, fields in told if event == "samples" for sample in fields["samples"])


def test_samples_while_training_are_of_the_weights_that_would_be_left(
    folder: Path, base: Input, chats: Input, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, **fields: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen: list[torch.Tensor] = []

        def look(model: Any, *rest: Any) -> list[Any]:
            seen.append(model.get_input_embeddings().weight.detach().clone())
            return []

        monkeypatch.setattr(_train_run, "samples", look)
        stage = kit.stage(start="base", objective="sft", **fields)
        stage.run(kit.run_of(folder / name, {"data": chats, "base": base}))
        return load_file(folder / name / "model.safetensors")["model.embed_tokens.weight"], seen

    _, (seen,) = run("average", average=0.9, steps=4, samples_every=3)
    left, _ = run("average shorter", average=0.9, steps=3)
    last, _ = run("last", steps=3)
    assert torch.equal(seen, left) and not torch.equal(seen, last)
