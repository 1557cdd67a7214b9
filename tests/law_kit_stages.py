"""The law of use for stages: each is run as the command runs it, on a recipe of one stage and what it refers to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.events import read_events
from modelwright.core.execute import execute
from modelwright.core.predict import predict
from modelwright.core.recipe import Loaded, loads
from modelwright.core.record import Record, write_records
from modelwright.core.stage import parse_ref
from modelwright.core.steps import prepare
from modelwright.core.store import MANIFEST, Artifact, Store, relative_files, sha256_file
from tests import crawl_kit, engine_kit, law_kit_remote, tracker_kit, train_kit
from tests.law_kit import Seen, Subject, Tree
from tests.law_kit_run import counted

MACHINE = Machine("law", 2, 8e9)
PARENTS: dict[str, Tree] = {
    "before": {
        "kind": "evaluate",
        "model": "./model2/",
        "data": "./chats.jsonl",
        "tasks": ["perplexity"],
        "engine": {"kind": "native", "threads": 1},
    },
    "earlier": {"kind": "curate", "source": [{"kind": "jsonl", "path": "./rows.jsonl"}]},
}
"""Stages that a case may refer to; everything else is a file."""


def files(folder: Path) -> None:
    """Models, vocabularies and rows that the recipes name."""
    engine_kit.folder(folder / "model")
    engine_kit.folder(folder / "model2", initializer_range=0.02)  # nearly uniform: better than wild
    train_kit.tokenizer(folder / "words")
    train_kit.tokenizer(folder / "words2")
    tree = json.loads((folder / "words2" / "tokenizer.json").read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:5]
    (folder / "words2" / "tokenizer.json").write_text(json.dumps(tree))
    write_records(folder / "texts.jsonl", train_kit.texts(24))
    write_records(folder / "texts2.jsonl", train_kit.texts(16, seed=7))
    write_records(folder / "chats.jsonl", [_with_meta(record, n) for n, record in enumerate(train_kit.chats(24))])
    write_records(folder / "chats2.jsonl", train_kit.chats(8, seed=7))
    write_records(folder / "rows.jsonl", rows())
    law_kit_remote.files(folder)


def _with_meta(record: Record, number: int) -> Record:
    record.meta = {"from": ("prompt", "memory")[number % 2]}
    return record


def rows() -> list[Record]:
    """Rows to curate: alone, equal, near each other, made from the same text, and of the same page."""
    draw = train_kit.random.Random(5)
    found = train_kit.texts(20, seed=3)
    for n in range(6):
        text = train_kit.sentence(draw, 40)
        words = text.split()
        found.append(Record(f"near-{n}", text=text, meta={"page": f"p{n % 2}"}))
        found.append(
            Record(f"near-{n}-again", text=" ".join([*words[:20], "otherwise", *words[21:]]), meta={"page": f"p{n % 3}"})
        )
        found.append(
            Record(f"made-{n}", text=train_kit.sentence(draw, 30), meta={"source": f"origin {n % 3}", "path": f"path {n % 2}"})
        )
    return [*found, Record("twin", text=found[0].text)]


def loaded(stage: Tree, folder: Path, seed: int = 0) -> Loaded:
    """The recipe of this stage, checked as the command checks it."""
    wanted = {parse_ref(value).name for value in _strings(stage)}
    stages = {**{name: tree for name, tree in PARENTS.items() if name in wanted}, "it": stage}
    return loads(yaml.safe_dump({"name": "law", "seed": seed, "stages": stages}, sort_keys=False), folder=folder)


def _strings(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [text for value in inner for text in _strings(value)]


UNSTEADY = ("load", "rates", "columns")
"""Events of the machine, not of the spec: they depend on the time, or on what the store knows from earlier runs."""
UNSTEADY_NOTES = ("statistics were known", "kernels are compiled for this processor")
"""How notes begin that are told the first time alone, in a store or on a machine."""


def see_stage(spec: Any, bench: Any, seed: int = 0) -> Seen:
    """Statistics, files and events of the artifact; the estimate, and how the work was cut."""
    import torch

    from modelwright.methods.engines import native
    from modelwright.nn import step

    recipe = loaded(spec.model_dump(mode="json", exclude_unset=True), bench.folder, seed)
    store = Store(bench.folder / "store")
    estimate = predict(prepare(recipe, store), MACHINE, 0)["it"]
    threads: set[int] = set()
    checkpoints: set[str] = set()

    def listen(event: str, fields: dict[str, Any]) -> None:
        if event == "progress" and fields["unit"] == "steps":
            threads.add(torch.get_num_threads())
            checkpoints.update(path.name for path in store.root.glob("model/it-*.part/checkpoint/*"))

    with (
        counted(step, "pack") as packed,
        counted(native._Native, "generate") as asked,
        counted(native._Native, "score") as scored,
        tracker_kit.installed(),
        crawl_kit.law(),
    ):
        try:
            *_, (_, _, artifact) = execute(recipe, store, MACHINE, listen, gates=False)
        except UserError:
            for part in store.root.glob("*/it-*.part"):
                shutil.rmtree(part)  # it would be gone on with by a run that differs in a Runtime field, and its notes be there
            raise
    assert artifact is not None
    try:
        told = [
            [event["event"], event]
            for event in read_events(artifact.path / "metrics.jsonl")
            if event["event"] not in UNSTEADY and not str(event.get("text", "")).startswith(UNSTEADY_NOTES)
        ]
        traced = artifact.manifest["stats"].get("profile", {}).get("steps")
        effort = [[*estimate], sorted(threads), sorted(checkpoints), packed, asked, scored, traced]
        return Seen([_stats(artifact), _files(artifact)], told, json.loads(json.dumps(effort, default=lambda v: v.model_dump())))
    finally:
        shutil.rmtree(artifact.path)  # a Runtime field leaves the key as it is


def _stats(artifact: Artifact) -> Any:
    """Without what only repeats a gate's fields, and without what a tracer saw."""
    stats = {name: value for name, value in artifact.manifest["stats"].items() if name != "profile"}
    if "gates" in stats:
        stats["gates"] = [gate["passed"] for gate in stats["gates"]]
    return stats


def _files(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(relative_files(artifact.path)):
        path = artifact.path / name
        if path.suffix == ".safetensors":
            found[name] = _weights(path)
        elif name == "items.jsonl":
            found[name] = [json.loads(line) for line in path.read_text().splitlines()]
        elif path.name not in (MANIFEST, "metrics.jsonl") and path.parent.name != "profile":
            found[name] = sha256_file(path)
    return found


def _weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {
        name: [list(w.shape), w.double().mean().item(), w.double().abs().mean().item()] for name, w in load_file(path).items()
    }


LLAMA = {"kind": "llama", "depth": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48}
TRAIN: Tree = {
    "data": "./texts.jsonl",
    "vocab": "./words/",
    "model": LLAMA,
    "objective": "next_token",
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "schedule": {"kind": "constant", "warmup": 1},
    "length": 32,
    "batch_tokens": 64,
    "steps": 3,
    "threads": 1,
    "micro_tokens": 64,
    "log_every": 1,
}
WORSE: Tree = {"validation": "./texts2.jsonl", "validate_every": 1, "steps": 4, "optimizer": {"kind": "adamw", "lr": 0.5}}
"""The loss on validation grows."""
TWO = [{"ref": "./texts.jsonl"}, {"ref": "./texts2.jsonl"}]
FROM: Tree = {"start": "./model/", "model": ..., "vocab": ...}
CHATS: Tree = {"data": "./chats.jsonl", "length": 192, "batch_tokens": 256}
NATIVE = {"kind": "native", "threads": 1}
EVALUATE: Tree = {"model": "./model/", "data": "./chats.jsonl", "tasks": ["perplexity"], "engine": NATIVE}
SPLIT: Tree = {"split": {"test": 0.3}}
WEIGHT_HERE = "asks about each row once"
SHAPES = {"kind": "safetensors"}


def _gate(**fields: Any) -> Tree:
    return {"gates": [{"task": "perplexity", **fields}]}


BASES: dict[str, Tree] = {
    "curate": {"source": [{"kind": "jsonl", "path": "./rows.jsonl"}]},
    "curate.split.test": SPLIT,
    "curate.split.validation": SPLIT,
    "curate.split.group": SPLIT,
    "curate.split.near": SPLIT,
    "curate.split.origin": SPLIT,
    "curate.limits": {"steps": ["exact_dedup"]},
    "curate.limits.max_dropped_frac": {"steps": ["exact_dedup"]},
    "curate.limits.max_unreadable_frac": {
        "source": [{"kind": "jsonl", "path": "./bad/bad.jsonl", "on_bad": "drop"}],
        "limits": {"max_unreadable_frac": 1.0},
    },
    "tokenizer": {"data": "./texts.jsonl", "method": {"kind": "bpe", "size": 300}},
    "tokenizer.data.0.weight": {"data": [{"ref": "./texts.jsonl", "weight": 1.0}, {"ref": "./texts2.jsonl", "weight": 1.0}]},
    "tokenizer.data.0.epochs": {"data": TWO},
    "train": TRAIN,
    "train.data.0.weight": {
        "data": [{"ref": "./texts.jsonl", "weight": 1.0}, {"ref": "./texts2.jsonl", "weight": 1.0}],
        "steps": 6,
    },
    "train.data.0.epochs": {"data": TWO, "steps": ..., "epochs": 1.0},
    "train.validation.0.ref": {"validation": "./texts.jsonl"},
    "train.validation.0.weight": {
        "validation": [{"ref": "./texts.jsonl", "weight": 1.0}, {"ref": "./texts2.jsonl", "weight": 1.0}]
    },
    "train.validation.0.epochs": {"validation": TWO},
    "train.validate_every": {"validation": "./texts2.jsonl"},
    "train.validation_rows": {"validation": "./texts2.jsonl"},
    "train.patience": WORSE,
    "train.keep": WORSE,
    "train.on_bad_step": {"steps": 24, "spike": 0.01, "on_bad_step": "skip"},
    "train.spike": {"steps": 24, "on_bad_step": "skip"},
    "train.step_in_backward": {"clip": 0.0},
    "train.start": FROM,
    "train.grow": FROM,
    "train.objective": {**FROM, **CHATS},
    "train.adapter": FROM,
    "train.template": {**CHATS, "template": "plain"},
    "train.epochs": {"steps": ..., "epochs": 1.0},
    "crawl": {"seeds": [crawl_kit.LAW_SEED], "contact": "mailto:me@example.org", "delay_s": 0.0, "allow_private": True},
    "crawl.timeout_s": {"tries": 1},
    "crawl.hosts": {"stay": "domain"},
    "extend": {"start": "./model/", "tokens": [" river", " house"]},
    "extend.size": {"vocab": "./words/"},
    "extend.init": {"data": "./texts.jsonl"},
    "extend.data.0.ref": {"data": "./chats.jsonl"},
    "extend.data.0.weight": {"data": "./chats.jsonl"},
    "extend.data.0.epochs": {"data": "./chats.jsonl"},
    "evaluate": EVALUATE,
    "evaluate.engine": {"engine": ...},
    "evaluate.decoder": {"tasks": [{"kind": "rouge", "max_tokens": 4}]},
    "evaluate.gates.0.task": {"tasks": ["perplexity", {"kind": "rouge", "max_tokens": 2}], **_gate(at_most=2.0)},
    "evaluate.gates.0.metric": _gate(at_most=50.0),
    "evaluate.gates.0.group": _gate(at_most=1e9),
    "evaluate.gates.0.at_least": _gate(at_least=0.0),
    "evaluate.gates.0.at_most": _gate(at_most=1e9),
    "evaluate.gates.0.not_worse_than_against": {"against": "./model2/", **_gate(at_most=1e9)},
    "export": {"model": "./model/", "format": SHAPES},
    "export.proof_rows": {"data": "./chats.jsonl"},
    "export.data.0.ref": {"data": "./chats.jsonl"},
    "export.data.0.weight": {"data": "./chats.jsonl"},
    "export.data.0.epochs": {"data": "./chats.jsonl"},
}
OTHERS: dict[str, Any] = {
    "curate.source": [{"kind": "jsonl", "path": "./texts.jsonl"}],
    "curate.split.group": "page",
    "tokenizer.data": "./texts2.jsonl",
    "tokenizer.data.0.ref": "./texts2.jsonl",
    "tokenizer.data.0.weight": 9.0,
    "tokenizer.method": {"kind": "bpe", "size": 320},
    "train.data": "./texts2.jsonl",
    "train.data.0.ref": "./texts2.jsonl",
    "train.data.0.weight": 9.0,
    "train.validation": "./texts2.jsonl",
    "train.validation.0.ref": "./texts2.jsonl",
    "train.validate_every": 2,
    "train.validation_rows": 1,
    "train.patience": 1,
    "train.keep": "best",
    "train.average": 0.5,
    "train.on_bad_step": "rollback",
    "train.spike": 0.01,
    "train.start": "./model2/",
    "train.model": {**LLAMA, "hidden": 64},
    "train.vocab": "./words2/",
    "train.objective": "sft",
    "train.adapter": {"kind": "lora", "rank": 2},
    "train.optimizer": {"kind": "adamw", "lr": 0.002},
    "train.schedule": {"kind": "linear", "warmup": 0},
    "train.template": "chatml",
    "train.length": 16,
    "train.precision": "bf16",  # what needs a card is in tests/test_precision.py
    "train.device": "cpu",
    "train.threads": 2,
    "train.micro_tokens": 32,
    "train.checkpoint_every_s": 0.0,
    "train.log_every": 2,
    "train.samples_every": 1,
    "train.profile_steps": 1,
    "crawl.seeds": ["http://crawl.example/a"],
    "crawl.contact": "https://me.example",
    "crawl.max_wait_s": 0.001,
    "extend.start": "./model2/",
    "extend.vocab": "./words/",
    "extend.data": "./chats.jsonl",
    "extend.data.0.ref": "./texts.jsonl",
    "evaluate.model": "./model2/",
    "evaluate.data": "./chats2.jsonl",
    "evaluate.data.0.ref": "./chats2.jsonl",
    "evaluate.tasks": ["perplexity", {"kind": "exact_match", "max_tokens": 2}],
    "evaluate.engine": {**NATIVE, "precision": "bf16"},
    "evaluate.decoder": {"kind": "sample", "temperature": 2.0},
    "evaluate.gates": [{"task": "perplexity", "at_most": 1.5}],
    "evaluate.gates.0.task": "rouge",
    "evaluate.gates.0.metric": "bits per byte",
    "evaluate.gates.0.group": "from=nowhere",
    "evaluate.gates.0.at_least": 1e9,
    "evaluate.gates.0.at_most": 1.5,
    "evaluate.batch": 5,
    "export.model": "./model2/",
    "export.format": {**SHAPES, "precision": "fp32"},
    "export.data": "./chats.jsonl",
    "export.data.0.ref": "./chats2.jsonl",
}
REFUSED = {
    "extend.data.0.weight": "only looked at",
    "extend.data.0.epochs": "only looked at",
    "train.validation.0.weight": "measured on each row once",
    "train.validation.0.epochs": "measured on each row once",
    "evaluate.data.0.weight": WEIGHT_HERE,
    "evaluate.data.0.epochs": WEIGHT_HERE,
    "export.data.0.weight": "uses each row at most once",
    "export.data.0.epochs": "uses each row at most once",
}
STAGES = Subject(see_stage, BASES, OTHERS, REFUSED)
