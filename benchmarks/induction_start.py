"""What first weights that copy are worth: `init: induction` against `init: normal` after 300 steps of 1,024 tokens, three seeds.

The recipe is benchmarks/induction_start.yaml: answers in the loss, the same rows in the same order, the same questions on
functions that neither saw. `normal` ties its head to the embeddings, which is its best; the circuit needs a head of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from modelwright.api import load, text_table

STORE = Path(__file__).parents[1] / "runs" / "benchmark-induction-start"
RECIPE = Path(__file__).with_name("induction_start.yaml")
SEEDS = (0, 1, 2)


def main() -> dict:
    shutil.rmtree(STORE, ignore_errors=True)
    rows, found = [], {"normal": [], "induction": []}
    for seed in SEEDS:
        arguments = ["run", str(RECIPE), f"seed={seed}", "--store", str(STORE), "--json"]
        subprocess.run([sys.executable, "-m", "modelwright.cli.main", *arguments], check=True, stdout=subprocess.DEVNULL)
        made = {s.name: s.artifact.manifest for s in load(RECIPE, f"seed={seed}", store=STORE).steps() if s.artifact}
        for init, values in found.items():
            score = next(m for m in made[f"{init}_score"]["stats"]["metrics"] if not m["group"])
            values.append(score["value"])
            rows.append(
                {
                    "seed": str(seed),
                    "first weights": init,
                    "exact": f"{score['value']:.3f}",
                    "95 % interval": f"{score['low']:.3f} to {score['high']:.3f}",
                    "training loss": f"{made[init]['stats']['loss_last']:.2f}",
                    "seconds": f"{made[init]['stats']['seconds']:.0f}",
                }
            )
    print(text_table(rows))
    return {name: median(values) for name, values in found.items()}
