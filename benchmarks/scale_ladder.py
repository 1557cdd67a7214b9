"""A scaling law fitted to small runs, held against a larger run that it had not seen: eight models trained from scratch on
Python's standard library (four sizes, two lengths), the law of `modelwright scale --fit`, then a model of more weights and more
tokens than any of them. The loss is that on held-out files, in nats a token. `off` is the share by which prediction and
measurement differ, `inside` is 1 where the measurement lies in the 95 % interval.

`python -m benchmarks scale_ladder`
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

HEAD = """
name: ladder
stages:
  corpus:
    kind: curate
    source: {kind: python_package, package: stdlib}
    steps: [{kind: length, min_chars: 100}, exact_dedup]
    split: {test: 0.03}
  vocab: {kind: tokenizer, data: "corpus:train", method: {kind: bpe, size: 2048}}
"""
RUNG = """
  {name}:
    kind: train
    data: "corpus:train"
    validation: "corpus:test"
    validation_rows: 120
    validate_every: {steps}
    vocab: vocab
    model: {{kind: llama, depth: {depth}, hidden: {hidden}, heads: {heads}}}
    objective: next_token
    optimizer: muon
    schedule: wsd
    length: 512
    batch_tokens: 1024
    steps: {steps}
"""


class Rung(NamedTuple):
    name: str
    depth: int
    hidden: int
    heads: int
    steps: int


SIZES, STEPS = ((2, 64, 1), (2, 128, 2), (3, 128, 2), (3, 192, 3)), (200, 600)
TARGET = Rung("target", 4, 256, 4, 900)


def main() -> dict[str, float]:
    """Print the ladder and the prediction; returns how far off it was."""
    import modelwright as mw
    from modelwright.core.store import Store
    from modelwright.plan._scaling_fit import fit
    from modelwright.plan._scaling_runs import ladders

    rungs = [Rung(f"rung{n}x{steps}", *size, steps) for n, size in enumerate(SIZES) for steps in STEPS]
    with tempfile.TemporaryDirectory() as folder:
        store, recipe = Path(folder) / "store", Path(folder) / "ladder.yaml"
        recipe.write_text(HEAD + "".join(RUNG.format(**rung._asdict()) for rung in rungs))
        mw.load(recipe, store=store).run()
        (ladder,) = ladders(Store(store))
        fitted = fit(ladder.runs)
        for run in fitted.runs:
            print(
                f"{run.name:22s} {run.params / 1e6:6.2f}M weights {run.tokens / 1e3:6.0f}k tokens"
                f"   measured {run.loss:.4f}   law {fitted.law.loss(run.params, run.tokens):.4f}"
            )
        recipe.write_text(HEAD + "".join(RUNG.format(**rung._asdict()) for rung in [*rungs, TARGET]))
        mw.load(recipe, store=store).run()
        (ladder,) = ladders(Store(store))
        (target,) = (run for run in ladder.runs if run.name.startswith("target"))
        said = fitted.predict(target.params, target.tokens)
    print(
        f"{target.name:22s} {target.params / 1e6:6.2f}M weights {target.tokens / 1e3:6.0f}k tokens"
        f"   measured {target.loss:.4f}   predicted {said.loss:.4f} ({said.low:.4f} to {said.high:.4f})"
    )
    return {"off": round(abs(target.loss / said.loss - 1), 4), "inside": float(said.low <= target.loss <= said.high)}
