"""What a training stage tells beside its steps: the load of the machine, what MFU is measured against, and its trackers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from modelwright.core.estimate import Shape
from modelwright.core.events import read_events
from modelwright.core.flops import training_flops_per_token
from modelwright.core.load import Sampler
from modelwright.core.spec import Spec
from modelwright.core.stage import Run
from modelwright.methods.trackers import flat, tracked

if TYPE_CHECKING:
    import torch

    from modelwright.nn.order import Order
    from modelwright.nn.rows import Rows
    from modelwright.stages._train_spec import Training

SHORT_FLOPS = 2e12
"""Trainings with less work than this (some ten seconds of a laptop) are not held up to measure the machine first."""


@contextmanager
def watched(stage: Training, run: Run) -> Iterator[Sampler]:
    """Within the block the run's log tells the machine's load, and the stage's trackers hear everything."""
    with ExitStack() as stack:
        if stage.trackers:
            assert isinstance(stage, Spec)
            config = flat(stage.model_dump(mode="json", exclude={"trackers"}))
            sets = [mix.ref for mix in stage.validation or ()]
            for tracker in stage.trackers:
                stack.enter_context(tracked(tracker, run.out.name.removesuffix(".part"), config, run.log, sets))
        earlier = read_events(run.out / "metrics.jsonl", "load")  # of the sitting before a kill
        yield stack.enter_context(Sampler(run.log, earlier=earlier))


def tell_rates(stage: Training, run: Run, model: Any, shape: Shape, rows: Rows, plan: Order, dtype: torch.dtype) -> None:
    """The event `rates`: FLOPs of a token and the machine's measured rate, of which the MFU follows at any speed."""
    from modelwright.nn.model import looks_both_ways
    from modelwright.nn.rate import matrix_flops_per_s

    tokens = squares = targets = 0.0
    for piece in plan.pieces():
        lengths = rows.lengths_R[piece].astype(float)
        tokens, squares = tokens + float(lengths.sum()), squares + float((lengths**2).sum())
        targets += float(rows.targets_R[piece].sum())
        rows.let_go()
    frozen = any(not p.requires_grad for p in model.parameters())
    adapter = float(sum(p.numel() for p in model.parameters() if p.requires_grad)) if frozen else None
    context = squares / tokens
    # which tokens are hidden is drawn later, so their share is the objective's own word
    looked_at = stage.objective.target_frac if stage.objective.head in ("masked", "seq2seq") else targets / tokens
    per_token = training_flops_per_token(shape, context, looked_at, adapter, not looks_both_ways(model))
    per_token += (2 if frozen else 3) * stage.objective.added_flops(shape) * looked_at
    if per_token * tokens < SHORT_FLOPS:
        return
    rate = matrix_flops_per_s(dtype, next(model.parameters()).device)
    run.log.event(
        "rates",
        flops_per_token=float(f"{per_token:.6g}"),
        matrix_flops_per_s=float(f"{rate:.4g}"),
        products=str(dtype).removeprefix("torch."),
    )
