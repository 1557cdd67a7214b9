"""Laws of training, over every objective, optimizer and schedule, each found by its file: a finite loss with a gradient, the same
step however its rows are packed, accumulated and ordered, and after a stop at any step the bits of the undisturbed run."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Input, Run
from modelwright.methods.objectives import OBJECTIVES
from modelwright.methods.optimizers import OPTIMIZERS
from modelwright.methods.schedules import SCHEDULES
from modelwright.nn import model as models
from tests import objectives_kit
from tests import train_kit as kit

STEPS = 5
SIZES = {"depth": 2, "hidden": 32, "heads": 4, "intermediate": 48}
MODELS = {
    "causal": {"kind": "llama", **SIZES, "kv_heads": 2},
    "masked": {"kind": "encoder", **SIZES},
    "sequence": {"kind": "encoder", **SIZES},
    "tokens": {"kind": "encoder", **SIZES},
    "vectors": {"kind": "encoder", **SIZES},
    "seq2seq": {"kind": "encoder_decoder", **SIZES, "head_dim": 8},
}
"""By what objectives need of a model's head."""
MIXTURE = {"kind": "moe", "depth": 1, "hidden": 32, "heads": 4, "head_dim": 8, "intermediate": 48, "experts": 4}


def rows_of(needs: str) -> list[Record]:
    """What objectives need of rows."""
    if needs == "answers":
        return kit.chats(40)
    if needs == "pairs":
        return kit.pairs(40)
    draw = random.Random(0)

    def meta(text: str) -> dict[str, Any]:
        words = text.split()
        tags = {"tokens": words, "ner_tags": [draw.randrange(2) for _ in words]}
        return {"label": draw.randrange(2), "positive": kit.sentence(draw, 4), "negatives": [kit.sentence(draw, 3)], **tags}

    return [Record(row.id, text=row.text, meta=meta(row.text)) for row in kit.texts(40)]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """With the marks of every objective."""
    folder = objectives_kit.vocabulary(tmp_path_factory.mktemp("vocab"))
    tokenizer = models.load_tokenizer(folder)
    marks = [mark for kind in OBJECTIVES.names() for mark in OBJECTIVES.load(kind)().marks()]  # type: ignore[attr-defined]
    tokenizer.add_tokens(list(dict.fromkeys(marks)), special_tokens=True)
    tokenizer.save_pretrained(folder)
    return Input("vocab", "tokenizer", folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, vocab: Input) -> Input:
    """For objectives that measure against a frozen start, and for rows that are chats."""
    out = tmp_path_factory.mktemp("start")
    stage = kit.stage(template="chatml", steps=1)
    stage.run(kit.run_of(out, {"data": kit.records(out / "rows", kit.texts(9)), "vocab": vocab}))
    return Input("base", "model", out)


class Bench:
    """Runs trainings that differ in what is asked for alone."""

    def __init__(self, folder: Path, vocab: Input, start: Input) -> None:
        self.folder, self.given, self.made = folder, {"vocab": vocab, "base": start}, 0

    def run(self, kind: str, stop: int = 0, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
        """Digest of the weights and the `step` events. `stop`: it is ended after this step, and goes on."""
        objective: Any = OBJECTIVES.load(kind)
        self.made += 1
        inputs = {**self.given, "data": kit.records(self.folder / f"rows-{self.made}", rows_of(objective.needs))}
        if objective.needs in ("answers", "pairs"):
            fields |= {"start": "base"}
        else:
            fields = {"model": MODELS[objective.head], **fields}
        stage = kit.stage(
            **{"objective": kind, "steps": STEPS, "log_every": 1, "length": 48, "checkpoint_every_s": 0.0, **fields}
        )
        events: list[dict[str, Any]] = []

        def listen(event: str, told: dict[str, Any]) -> None:
            if event == "step":
                events.append(told)
            if event == "progress" and told.get("label") == "train" and told["done"] == stop and not stopped:
                stopped.append(stop)
                raise KeyboardInterrupt

        stopped: list[int] = []
        out = self.folder / f"out-{self.made}"
        out.mkdir()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                stage.run(Run(out, inputs, 3, Log(None, listen)))
        stage.run(Run(out, inputs, 3, Log(None, listen)))
        return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(), events


@pytest.fixture
def bench(tmp_path: Path, vocab: Input, start: Input) -> Iterator[Bench]:
    threads = torch.get_num_threads()
    yield Bench(tmp_path, vocab, start)
    torch.set_num_threads(threads)


def partners(number: int) -> dict[str, Any]:
    """An optimizer and a schedule, others for each number; an average of weights wants a steady rate."""
    optimizers, schedules = OPTIMIZERS.names(), SCHEDULES.names()
    optimizer = optimizers[number % len(optimizers)]
    schedule = "constant" if OPTIMIZERS.load(optimizer).averages else schedules[number % len(schedules)]  # type: ignore[attr-defined]
    return {"optimizer": optimizer, "schedule": schedule}


CASES: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in OBJECTIVES.names()]
CASES += [("next_token", {"model": MIXTURE}), ("contrastive", {"model": MIXTURE})]
"""Each objective, and two whose models add losses of their own."""


@pytest.mark.parametrize(("number", "kind", "fields"), [(n, *case) for n, case in enumerate(CASES)])
def test_every_objective(number: int, kind: str, fields: dict[str, Any], bench: Bench) -> None:
    fields = {**fields, **partners(number), "batch_tokens": 192}
    digest, whole = bench.run(kind, micro_tokens=192, **fields)
    assert len(whole) == STEPS and all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in whole)
    _, apart = bench.run(kind, micro_tokens=8, **fields)  # each row alone
    for name in ("loss", "grad_norm"):
        assert apart[0][name] == pytest.approx(whole[0][name], rel=2e-5), name
    again, _ = bench.run(kind, stop=1 + number % (STEPS - 1), micro_tokens=192, **fields)
    assert again == digest


@pytest.mark.slow
@pytest.mark.parametrize("number", range(60))
def test_any_combination_stopped_anywhere(number: int, bench: Bench) -> None:
    draw = random.Random(number)
    kind, fields = draw.choice(CASES)
    fields = {**fields, **partners(draw.randrange(10**6)), "micro_tokens": draw.choice([8, 40, 64])}
    if fields["optimizer"] != "schedule_free" and draw.random() < 0.3:
        fields["average"] = 0.9
    digest, _ = bench.run(kind, **fields)
    again, _ = bench.run(kind, stop=draw.randint(1, STEPS - 1), **fields)
    assert again == digest
