"""The ladder of the fast path at the SmolLM-135M shape, with 12 of its 30 layers so that many runs fit an hour: each trick
switched off alone, then all together; no peer. With fewer layers the head weighs more than in the whole model.

Rows are those of `sft_vs_trl` (chat lengths, 40 % answers, 8 an optimizer step), for LoRA those of `lora_vs_trl`; for shared
prompts each becomes a preference pair under DPO, with a second answer as long as its own. A trick is switched off by replacing,
in the measured process alone, the part of the library that has it. Every run is a fresh process whose first step is not timed
and whose peak resident memory counts; figures are medians of rounds in each of which every run comes once. `speed` is how many
times faster training is with the trick than without, `memory` its peak over the peak without (below 1: the trick saves memory).

- packing: without it, rows are padded to the longest of their step
- last_layer: without it, the last layer runs for all tokens, not only where the loss looks
- head: without it, logits of all tokens in one piece are kept for the backward pass (so the last layer runs for all, too)
- own_forward: without it, transformers' modules and autograd (so the last layer runs for all, too)
- lora_own_forward: the same under LoRA
- one_kernel: without it, attention document by document with torch's kernel
- pieces: without them, what lies between products as single operations of torch
- shared_prompt: without it, both answers of a pair carry their prompt
- denormals: without it, numbers below 1.2e-38 are computed with; random weights give few, sharp attention many
- huge_pages, spinning: without them, torch's and OpenMP's own defaults
- fused_adamw: without it, torch's plain loop over the weights

`python -m benchmarks ablation [--steps 4] [--depth 12] [--precision auto] [--repeats 2] [--only NAME ...]`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks import _training
from benchmarks._training import ROWS_A_STEP, VOCAB, Job
from modelwright.core import environment
from modelwright.core.measure import Meter
from modelwright.core.units import bytes_text

DEPTH = 12

# --- what takes a trick out of this process -------------------------------------------------------------


def no_huge_pages() -> None:
    environment.FOR_TORCH.pop("THP_MEM_ALLOC_ENABLE")


def no_spinning() -> None:
    environment.FOR_TORCH.pop("GOMP_SPINCOUNT")


def no_packing() -> None:
    plain = _training.rows

    def padded(kind: str, steps: int) -> _training.Rows:
        data = plain(kind, steps)
        found = []
        for begin in range(0, len(data), ROWS_A_STEP):
            step = data[begin : begin + ROWS_A_STEP]
            longest = max(len(ids) for ids, _ in step)
            found += [tuple(part + [0] * (longest - len(part)) for part in row) for row in step]
        return found  # type: ignore[return-value]

    _training.rows = padded


def no_flush() -> None:
    import torch

    torch.set_flush_denormal = lambda on: False


def no_fused_adamw() -> None:
    import torch

    given: Any = torch.optim.AdamW
    optim: Any = torch.optim
    optim.AdamW = lambda groups, fused, **options: given(groups, **options)


def whole_last_layer() -> None:
    from modelwright.nn import model

    model.MOST_WANTED = 0.0


def whole_head() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from modelwright.nn import logps, model

    class Plain(model.Policy):
        """As transformers' models compute it."""

        def __init__(self, hidden_TD: Any, position_N: Any, target_N: Any, head: Any, dtype: Any) -> None:
            super().__init__(hidden_TD, position_N, target_N, head, dtype)
            self.hidden_TD, self.position_N = hidden_TD, position_N

        def cross_entropy(self, weight_N: Any, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Any:
            logits_TV = (self.hidden_TD.to(self.dtype) @ self.head.weight.to(self.dtype).t()).float()
            label_T = torch.full((len(logits_TV),), -100).index_copy(0, self.position_N, self.target_N)
            total = cross_entropy(logits_TV, label_T, reduction="sum")
            return logps.Sums(total, total.detach(), torch.zeros(()))

    whole_last_layer()
    replaced: Any = model
    replaced.Policy = Plain


def transformers_forward() -> None:
    from modelwright.nn.model import Trunk

    given = Trunk.__init__
    replaced: Any = Trunk
    replaced.__init__ = lambda self, model, own=True: given(self, model, own=False)


def no_one_kernel() -> None:
    from modelwright.nn import attention

    replaced: Any = attention
    replaced._many = lambda: None


def no_pieces() -> None:
    from modelwright.nn import fused

    replaced: Any = fused
    replaced._for_processors = lambda: None


def prompts_apart() -> None:
    from modelwright.nn import rows

    def apart(chosen: Any, rejected: Any, name: str = "") -> rows.Row:
        (first, first_mask), (second, second_mask) = chosen, rejected
        flags = [rows.FIRST * bit for bit in first_mask] + [rows.SECOND * bit for bit in second_mask]
        return rows.Row([*first, *second], flags, (len(first), len(second)), name)

    rows.pair = apart


class Trick(NamedTuple):
    case: str
    remove: Callable[[], None]


EARLY = {"huge_pages": Trick("sft", no_huge_pages), "spinning": Trick("sft", no_spinning)}
"""Those that count when torch is loaded."""
TRICKS = {
    "packing": Trick("sft", no_packing),
    "last_layer": Trick("sft", whole_last_layer),
    "head": Trick("sft", whole_head),
    "own_forward": Trick("sft", transformers_forward),
    "lora_own_forward": Trick("lora", transformers_forward),
    "one_kernel": Trick("sft", no_one_kernel),
    "pieces": Trick("sft", no_pieces),
    "shared_prompt": Trick("dpo", prompts_apart),
    "denormals": Trick("sft", no_flush),
    **EARLY,
    "fused_adamw": Trick("sft", no_fused_adamw),
}


# --- one run in its own process -------------------------------------------------------------------------


def work(job: Job, off: list[str]) -> dict[str, float]:
    meter = Meter()
    tokens = sum(len(ids) for ids, _ in _training.rows("chat", job.steps)[ROWS_A_STEP:])  # padding is no work done
    for name in (name for name in TRICKS if name in off and name in EARLY):
        TRICKS[name].remove()
    environment.prepare()
    for name in (name for name in TRICKS if name in off and name not in EARLY):
        TRICKS[name].remove()
    with tempfile.TemporaryDirectory() as folder:
        ends = (pairs if job.case == "dpo" else _training.ours)(job, Path(folder))
    assert len(ends) == job.steps + 1, ends
    return {"tokens_per_s": tokens / (ends[-1] - ends[1]), "peak_bytes": meter.peak_bytes()}


def pairs(job: Job, folder: Path) -> list[float]:
    """DPO on the chats of `sft` with a second answer to each."""
    from modelwright.methods.objectives.dpo import DPO
    from modelwright.nn import model as models
    from modelwright.nn import rows

    def data() -> Iterator[rows.Row]:
        rng = random.Random(1)
        for ids, mask in _training.rows("chat", job.steps):
            answer = sum(mask)
            other = [*ids[:-answer], *(rng.randrange(VOCAB) for _ in range(answer))]
            yield rows.pair((ids, mask), (other, mask))

    policy = _training.model(job.depth)
    models.packed(policy)
    return _training.fit(policy, data(), DPO(), job, folder)


# --- the ladder -----------------------------------------------------------------------------------------


def runs(only: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Name -> (case, tricks that are off)."""
    chosen = {name: trick for name, trick in TRICKS.items() if not only or name in only}
    found: dict[str, tuple[str, list[str]]] = {f"{case}: all on": (case, []) for case in {t.case: 0 for t in chosen.values()}}
    found |= {f"{trick.case}: without {name}": (trick.case, [name]) for name, trick in chosen.items()}
    together = [name for name, trick in TRICKS.items() if trick.case == "sft"]
    return found if only else {**found, "sft: without any": ("sft", together)}


def measure(job: Job, off: list[str]) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.ablation", json.dumps([job._asdict(), off])]
    clean = {name: value for name, value in os.environ.items() if name not in environment.FOR_TORCH}
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, env=clean)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> dict[str, float]:
    """Print the table; returns what each trick gives."""
    steps, bf16, depth = _training.settled(DEPTH)
    parser = argparse.ArgumentParser(prog="python -m benchmarks ablation")
    parser.add_argument("--repeats", type=int, default=2, help="rounds; medians are told")
    parser.add_argument("--only", nargs="+", default=[], choices=list(TRICKS), help="these tricks alone")
    given, _ = parser.parse_known_args()
    wanted = runs(given.only)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    for _ in range(given.repeats):
        for name, (case, off) in wanted.items():
            rounds[name].append(measure(Job(case, "ours", steps, bf16, depth=depth), off))
    found = {name: {key: median(one[key] for one in told) for key in told[0]} for name, told in rounds.items()}
    print(f"{'bf16' if bf16 else 'fp32'} products, {depth} layers, {steps} steps, median of {given.repeats}")
    figures: dict[str, float] = {}
    for name, (case, off) in wanted.items():
        on, here = found[f"{case}: all on"], found[name]
        line = f"{name:32s} {here['tokens_per_s']:8.1f} tokens/s   peak {bytes_text(here['peak_bytes']):>8s}"
        if off:
            speed, memory = on["tokens_per_s"] / here["tokens_per_s"], on["peak_bytes"] / here["peak_bytes"]
            key = off[0] if len(off) == 1 else "together"
            figures |= {f"speed_{key}": round(speed, 2), f"memory_{key}": round(memory, 2)}
            line += f"   the trick gives: speed x {speed:.2f}, memory x {memory:.2f}"
        print(line)
    return figures


if __name__ == "__main__":
    fields, names = json.loads(sys.argv[1])
    print(json.dumps(work(Job(**fields), names)))
