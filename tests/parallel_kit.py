"""Trainings of a tiny model on one process or several, in float64: `python -m tests.parallel_kit FILE` is one of several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VOCAB = 61
FAMILY: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True},
    "mixtral": {"head_dim": 8, "num_local_experts": 4},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
"""What their configurations need beside the sizes."""


def make(job: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig

    from modelwright.methods.adapters.lora import LoRA
    from modelwright.nn import model as models

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        job.get("family", "llama"),
        vocab_size=VOCAB,
        hidden_size=job.get("hidden", 32),
        intermediate_size=job.get("intermediate", 48),
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=job.get("tied", True),
        **FAMILY.get(job.get("family", "llama"), {}),
        router_aux_loss_coef=job.get("balance", 0.0),
        router_z_loss_coef=job.get("balance", 0.0),
    )
    model = models.build(config)
    if hasattr(config, "num_experts"):
        model.set_experts_implementation("eager")  # the other one knows no float64
    models.packed(model)
    if rank := job.get("rank"):
        model = LoRA(rank=rank).wrap(model)
        for name, parameter in model.named_parameters():  # they begin as zero, and half of them would have no gradient
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    if job.get("float64", True):
        model.double()
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):  # transformers' own computes in float32 whatever comes
                module.forward = types.MethodType(_norm, module)
            if type(module).__name__.endswith("TopKRouter"):
                module.forward = types.MethodType(_route, module)
    return model


def _norm(self: Any, x: Any) -> Any:
    gemma = type(self).__name__.startswith("Gemma")
    eps, gain = (self.eps, 1 + self.weight) if gemma else (self.variance_epsilon, self.weight)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


def _route(self: Any, x: Any) -> Any:
    """Of Mixtral, and of Qwen where it makes its probabilities sum to 1."""
    logits = x.flatten(0, -2) @ self.weight.t()
    found = logits.softmax(-1).topk(self.top_k, dim=-1)
    return logits, found.values / found.values.sum(-1, keepdim=True), found.indices


def rows(folder: Path, kind: str, shortest: int = 6) -> Any:
    import numpy as np

    from modelwright.nn.rows import Row, pair, store

    rng = np.random.default_rng(0)
    found = []
    for number in range(30):
        ids = rng.integers(0, VOCAB, int(rng.integers(shortest, 20))).tolist()
        texts = (3, len(ids) - 3) if kind == "contrastive" else ()
        if kind == "dpo":
            other = [*ids[:4], *rng.integers(0, VOCAB, 5).tolist()]
            found.append(pair((ids, [0] * 4 + [1] * (len(ids) - 4)), (other, [0] * 4 + [1] * 5), f"row {number}"))
        else:
            found.append(Row(ids, [0, 0, *[1] * (len(ids) - 2)], name=f"row {number}", parts=texts))
    return store(found, folder, VOCAB)


def optimizers(job: dict[str, Any], spread: Any) -> list[Any]:
    """`optimizer` of the job, else AdamW."""
    import torch

    from modelwright.methods.optimizers import OPTIMIZERS

    if "optimizer" not in job:
        groups = [{"params": list(spread.trained.values()), "initial_lr": 1e-3}]
        return [torch.optim.AdamW(groups, lr=1e-3, fused=job.get("fused", True))]
    chosen: Any = OPTIMIZERS.build({"kind": job["optimizer"], "lr": 1e-3})
    built = chosen.build(spread.trained.items())
    for group in (group for one in built for group in one.param_groups if "dtype" in group):
        group["dtype"] = torch.float64  # Muon's products
    return built if chosen.elementwise else spread.owning(built)


def train(job: dict[str, Any], folder: Path, ranks: Any = None, steps: int | None = None) -> dict[str, Any]:
    """Losses, gradient norms and the last validation's loss. `steps`: stop before this step, as Ctrl-C would."""
    import torch

    from modelwright.methods.objectives import OBJECTIVES
    from modelwright.nn.loop import Hooks, Interrupted, Settings, Trainer
    from modelwright.nn.measure import evaluate
    from modelwright.nn.order import Source, order
    from modelwright.stages._train_run import objective_loss
    from modelwright.stages._train_spread import spread_out

    model = make(job)
    first = ranks is None or ranks.rank == 0
    stored = rows(folder / f"rows-{0 if ranks is None else ranks.rank}", job.get("objective", "sft"), job.get("shortest", 6))
    total = job.get("steps", 50)
    plan = order([Source(0, stored.lengths_R)], 60, 0, total)
    dtype = torch.float64 if job.get("float64", True) else torch.float32
    objective: Any = OBJECTIVES.build(job.get("objective", "sft"))
    objective.attach(model)
    model.to(dtype)
    change, loss = objective.change(None, 0), objective_loss(objective)
    spread = spread_out(model.train(), ranks)

    def prepare(batch: Any) -> Any:
        if change is not None:
            return change(batch)
        return batch._replace(reference_N=torch.full((len(batch.target_N),), -4.0, dtype=dtype)) if stored.pairs else batch

    trainer = Trainer(
        model,
        stored,
        plan,
        optimizers(job, spread),
        lambda step, steps: 1.0,
        loss,
        Settings(
            *(job.get("micro_tokens", 40), dtype, 1.0, 1, 1e9),
            validate_every=job.get("validate_every", 25),
            keep_best=job.get("keep_best", False),
            average=job.get("average", 0.0),
        ),
        folder / "checkpoint",
        prepare,
        objective.whole_step,
        spread,
    )
    found: dict[str, Any] = {"loss": [], "norm": [], "validation": []}

    def step(fields: dict[str, Any]) -> None:
        found["norm"].append(fields["grad_norm"])

    def progress(done: int, value: float) -> None:
        found["loss"].append(value)
        if done == steps and first:
            os.kill(os.getpid(), 15)

    def validate(done: int, stop: Any) -> float:
        whole = objective.whole_step
        value = evaluate(model, stored, range(7), loss, 40, dtype, prepare, whole_step=whole, spread=spread)["loss"]
        found["validation"].append(value)
        return value

    try:
        trainer.fit(Hooks(step, progress, lambda event, fields: None, validate))
    except Interrupted:
        found["stopped"] = True
    found["weights"] = {
        name: float(part.abs().sum()) for name, p in spread.trained.items() for part in [spread.whole(name, p.detach())]
    }
    found["held"] = sum(p.numel() for p in model.parameters())
    return found


def together(jobs: list[dict[str, Any]], folder: Path, processes: int) -> list[dict[str, Any]]:
    """What the first of several processes found for each job, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "-m", "tests.parallel_kit", str(folder / "jobs.json")),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


def main(path: Path) -> None:
    import torch

    from modelwright.nn.parallel import Sizes
    from modelwright.nn.parallel.several import Ranks

    torch.set_num_threads(1)
    found, ranks = [], None
    for number, job in enumerate(json.loads(path.read_text())):
        ranks = Ranks(Sizes(**job["sizes"]), "cpu", job.get("zero", 0))
        folder = Path(job.get("folder") or path.parent / str(number))
        found.append(train(job, folder, ranks, job.get("stop")))
    assert ranks is not None
    if ranks.rank == 0:
        (path.parent / "found.json").write_text(json.dumps(found))
    ranks.wait()
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
