"""What the training benchmarks share: one shape, rows, a run of ours and of the peer in fresh processes, the comparison."""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from modelwright.core import environment
from modelwright.core.measure import Meter
from modelwright.core.units import bytes_text

Rows = list[tuple[list[int], list[int]]]
"""(ids, mask) of every row."""

VOCAB, ROWS_A_STEP = 49_152, 8
SHAPE: dict[str, Any] = {"depth": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "intermediate": 1536, "tied": True}
"""SmolLM-135M."""
RANK = 16


class Case(NamedTuple):
    """What is trained, and how: `case` of a worker."""

    rows: Literal["chat", "full"]
    lora: bool
    peer: Literal["trl", "trainer"]


CASES = {
    "sft": Case("chat", False, "trl"),
    "lora": Case("chat", True, "trl"),
    "pretrain": Case("full", False, "trainer"),
}


class Job(NamedTuple):
    """One run in a process of its own."""

    case: str
    side: Literal["ours", "peer"]
    steps: int
    bf16: bool
    micro: int = 8
    """The peer's rows at once."""
    micro_tokens: int = 0
    """Ours: tokens at once; 0: what a training stage chooses."""
    checkpointing: bool = False
    depth: int = SHAPE["depth"]


def rows(kind: str, steps: int) -> Rows:
    """The same for both sides. Chats: 140 tokens on average, 40 % answers, log-normal lengths (the deviation of the logarithm,
    0.8, is that of five chat and preference data sets, 0.67 to 0.92) as evenly spaced quantiles: few rows, true spread."""
    rng = random.Random(0)
    count = steps * ROWS_A_STEP
    if kind == "full":
        return [([rng.randrange(VOCAB) for _ in range(512)], [1] * 512) for _ in range(count)]
    normal = NormalDist(math.log(140) - 0.8**2 / 2, 0.8)
    lengths = [min(1024, max(16, round(math.exp(normal.inv_cdf((i + 0.5) / count))))) for i in range(count)]
    rng.shuffle(lengths)
    found = []
    for length in lengths:
        answer = max(4, round(length * 0.4))
        found.append(([rng.randrange(VOCAB) for _ in range(length)], [0] * (length - answer) + [1] * answer))
    return found


def model(depth: int) -> Any:
    import torch

    from modelwright.methods.architectures.llama import Llama
    from modelwright.nn.model import build

    torch.manual_seed(0)
    return build(Llama(**{**SHAPE, "depth": depth}).config(VOCAB, 2048))


# --- one run in its own process -------------------------------------------------------------------------


def ours(job: Job, folder: Path) -> list[float]:
    """Seconds at which each step ended, the start first."""
    environment.prepare()  # as the command does

    from modelwright.methods.adapters.lora import LoRA
    from modelwright.methods.objectives.next_token import NextToken
    from modelwright.methods.objectives.sft import SFT
    from modelwright.nn import model as models
    from modelwright.nn.rows import Row

    case = CASES[job.case]
    policy = model(job.depth)
    models.packed(policy)
    if case.lora:
        policy = LoRA(rank=RANK).wrap(policy)
    data = (Row(ids, mask) for ids, mask in rows(case.rows, job.steps))
    return fit(policy, data, SFT() if case.rows == "chat" else NextToken(), job, folder)


def fit(policy: Any, data: Iterable[Any], objective: Any, job: Job, folder: Path) -> list[float]:
    """Train on these stored rows, so many a step; returns what `ours` does."""
    import numpy as np
    import torch

    from modelwright.core.memory import micro_tokens
    from modelwright.methods.architectures.llama import Llama
    from modelwright.methods.optimizers.adamw import AdamW
    from modelwright.nn.loop import Hooks, Settings, Trainer
    from modelwright.nn.order import Order
    from modelwright.nn.rows import store
    from modelwright.stages._train_run import objective_loss

    stored = store(data, folder / "rows", VOCAB)
    order = Order(np.arange(len(stored)), np.arange(0, len(stored) + 1, ROWS_A_STEP))
    chosen = job.micro_tokens or micro_tokens(Llama(**{**SHAPE, "depth": job.depth}).shape(VOCAB), 1 << 30, job.bf16)
    trainer = Trainer(
        policy.train(),
        stored,
        order,
        AdamW(lr=2e-5).build((name, p) for name, p in policy.named_parameters() if p.requires_grad),
        lambda step, steps: 1.0,
        objective_loss(objective),
        Settings(chosen, torch.bfloat16 if job.bf16 else torch.float32, 1.0, 10, 1e9),
        folder / "checkpoint",
        lambda batch: batch._replace(reference_N=torch.zeros(len(batch.target_N))) if objective.reference else batch,
    )
    ends = [time.monotonic()]
    hooks = Hooks(
        lambda fields: None, lambda done, loss: ends.append(time.monotonic()), lambda event, fields: None, lambda step, stop: 0.0
    )
    trainer.fit(hooks)
    return ends


def peer(job: Job, folder: Path) -> list[float]:
    """The same for TRL's SFTTrainer or transformers' Trainer. Rows come tokenised; their own optimizer (fused AdamW), collator
    and loss."""
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
            self.ends.append(time.monotonic())

        def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
            self.ends.append(time.monotonic())

    case, clock = CASES[job.case], Clock()
    data = rows(case.rows, job.steps)
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": job.micro,
        "gradient_accumulation_steps": ROWS_A_STEP // job.micro,
        "max_steps": job.steps,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "bf16": job.bf16,
        "use_cpu": True,
        "gradient_checkpointing": job.checkpointing,
        "save_strategy": "no",
        "logging_steps": 100,
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    if case.peer == "trainer":
        plain = Dataset.from_dict({"input_ids": [ids for ids, _ in data], "labels": [ids for ids, _ in data]})
        Trainer(model(job.depth), TrainingArguments(**settings), train_dataset=plain, callbacks=[clock]).train()
        return clock.ends
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    masked = Dataset.from_dict({"input_ids": [ids for ids, _ in data], "completion_mask": [mask for _, mask in data]})
    adapter: Any = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear") if case.lora else None
    SFTTrainer(
        model=model(job.depth),
        args=SFTConfig(completion_only_loss=True, **settings),
        train_dataset=masked,
        processing_class=_tokenizer(),
        peft_config=adapter,
        callbacks=[clock],
    ).train()
    return clock.ends


def _tokenizer() -> Any:
    """TRL wants one; the rows are ids already, so it need only name the padding."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>")


def work(job: Job) -> dict[str, float]:
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder:
        ends = (ours if job.side == "ours" else peer)(job, Path(folder))
    assert len(ends) == job.steps + 1, ends
    tokens = sum(len(ids) for ids, _ in rows(CASES[job.case].rows, job.steps)[ROWS_A_STEP:])
    return {"tokens_per_s": tokens / (ends[-1] - ends[1]), "peak_bytes": meter.peak_bytes()}


# --- the comparison -------------------------------------------------------------------------------------


def measure(job: Job) -> dict[str, float]:
    """One run in a fresh process; its first step is not timed."""
    command = [sys.executable, "-m", "benchmarks._training", json.dumps(job._asdict())]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def table(jobs: list[tuple[str, Job]]) -> dict[str, dict[str, float]]:
    """Measure and print each."""
    results = {}
    for name, job in jobs:
        figures = results[name] = measure(job)
        print(f"{name:52s} {figures['tokens_per_s']:8.1f} tokens/s   peak {bytes_text(figures['peak_bytes'])}", flush=True)
    return results


def ratios(mine: dict[str, float], theirs: dict[str, float], suffix: str = "") -> dict[str, float]:
    """Ours over theirs."""
    return {
        f"speed{suffix}": round(mine["tokens_per_s"] / theirs["tokens_per_s"], 2),
        f"memory{suffix}": round(mine["peak_bytes"] / theirs["peak_bytes"], 2),
    }


def settled(depth: int = SHAPE["depth"]) -> tuple[int, bool, int]:
    """Steps, whether bf16 has hardware here, layers (so many by default): what a benchmark's command line may change."""
    from modelwright.nn.model import has_bf16

    parser = argparse.ArgumentParser(prog="python -m benchmarks NAME")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps; the first is not timed")
    parser.add_argument("--depth", type=int, default=depth, help="layers; fewer for a quick look")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    given, _ = parser.parse_known_args()
    return given.steps, has_bf16() if given.precision == "auto" else given.precision == "bf16", given.depth


def against_trl(case: str) -> dict[str, float]:
    """Ours against TRL's default (one micro-batch of 8) and its best (fastest of 1, 2, 4, 8 with accumulation)."""
    steps, bf16, depth = settled()
    lengths = [len(ids) for ids, _ in rows("chat", steps)]
    mean = sum(lengths) / len(lengths)
    print(f"{_name(bf16)} products, {len(lengths)} rows, {mean:.0f} tokens on average, longest {max(lengths)}")
    mine = Job(case, "ours", steps, bf16, depth=depth)
    theirs = {f"TRL micro-batch {m} x {ROWS_A_STEP // m}": Job(case, "peer", steps, bf16, m, depth=depth) for m in (1, 2, 4, 8)}
    slow = "TRL micro-batch 8 x 1, gradient checkpointing"
    results = table(
        [("modelwright", mine), *theirs.items(), (slow, theirs["TRL micro-batch 8 x 1"]._replace(checkpointing=True))]
    )
    best = max(theirs, key=lambda name: results[name]["tokens_per_s"])
    print(f"best of TRL: {best}")
    default = results["TRL micro-batch 8 x 1"]
    return {**ratios(results["modelwright"], results[best]), **ratios(results["modelwright"], default, "_default")}


def _name(bf16: bool) -> str:
    return "bf16" if bf16 else "fp32"


def against_trainer() -> dict[str, float]:
    """Ours against transformers' Trainer at equal micro-batch, 8 and 1 rows at once."""
    steps, bf16, depth = settled()
    print(f"{_name(bf16)} products, {steps * ROWS_A_STEP} rows of 512 tokens, every token in the loss")
    jobs = []
    for micro in (8, 1):
        job = Job("pretrain", "ours", steps, bf16, micro, 512 * micro, depth=depth)
        jobs += [(f"modelwright, {micro} rows at once", job), (f"Trainer, {micro} rows at once", job._replace(side="peer"))]
    found = table(jobs)
    return {
        **ratios(found["modelwright, 8 rows at once"], found["Trainer, 8 rows at once"]),
        **ratios(found["modelwright, 1 rows at once"], found["Trainer, 1 rows at once"], "_micro_1"),
    }


if __name__ == "__main__":
    print(json.dumps(work(Job(**json.loads(sys.argv[1])))))
