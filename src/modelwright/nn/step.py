"""What one step measures: losses and gradients of its micro-batches, here and on the other processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import NamedTuple

import torch

from modelwright.nn import trouble
from modelwright.nn.experts import Counted
from modelwright.nn.measure import LossFn, step_loss
from modelwright.nn.model import Trunk
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed, Rows, micro_batches, moved, pack


class BadStep(Exception):
    """A step whose gradient must not be used."""

    def __init__(self, what: str, rows: Sequence[int], module: str) -> None:
        super().__init__(what, rows, module)
        self.what, self.rows, self.module = what, rows, module


class Step(NamedTuple):
    """Sums over a step, and means where the name says nothing of a sum."""

    loss: float
    weight: float
    metrics: dict[str, float]
    tokens: int
    targets: int
    rows: list[int]
    bad: BadStep | None
    """The first micro-batch whose loss was no number."""
    grad_norm: float = math.nan
    counted: Counted | None = None
    """What the routers of a mixture of experts did."""


def backward(
    spread: Spread,
    rows: Rows,
    chosen: Sequence[int],
    visit: int,
    loss: LossFn,
    prepare: Callable[[Packed], Packed],
    micro_tokens: int,
    dtype: torch.dtype,
    whole_step: bool,
    factor: float = 1.0,
    keeping: Callable[[], AbstractContextManager[None]] = nullcontext,
    ready: Callable[[float], None] = lambda weight: None,
) -> Step:
    """The step on these rows; gradients, times `factor`, are added to the weights' own, on every process those of its
    micro-batches. Forward passes are made inside `keeping()`; `ready` is told a loss's weight before its backward pass."""
    choices = spread.trunk.choices
    choices.begin(int(rows.targets_R[chosen].sum()), int(rows.lengths_R[chosen].sum()))
    groups = spread.mine(micro_batches(rows, chosen, micro_tokens, spread.replicas))
    loss_sum, weight_sum, tokens, targets = 0.0, 0.0, 0, 0
    metrics: dict[str, float] = {}
    bad: BadStep | None = None
    for part in [groups] if whole_step else [[group] for group in groups]:
        if not any(part) and not whole_step:
            spread.idle(moved(prepare(pack(rows, chosen[:1], visit)), spread.device), dtype)
            continue
        batches = [moved(prepare(pack(rows, group, visit)), spread.device) for group in part if group]
        compute = partial(step_loss, spread, batches, loss, dtype, whole_step, factor)
        with keeping():
            total, weight, sums = spread.computed(batches, dtype, compute)
        value = float(total.detach())
        if not math.isfinite(value):
            own = [row for group in part for row in group]
            bad = bad or BadStep(f"the loss became {value}", own, _first_bad(spread, batches, dtype))
            if spread.alone:
                break
        ready(float(weight))
        spread.back(total if factor == 1 else total * factor)
        loss_sum, weight_sum = loss_sum + value, weight_sum + float(weight)
        tokens += sum(len(batch.ids_T) for batch in batches)
        targets += sum(len(batch.target_N) for batch in batches)
        for name, metric in sums.items():
            metrics[name] = metrics.get(name, 0.0) + float(metric)
    own_rows = [row for group in groups for row in group]
    return _together(
        spread.exchange(Step(loss_sum, weight_sum, metrics, tokens, targets, own_rows, bad, counted=choices.counted))
    )


def _together(parts: Sequence[Step]) -> Step:
    weight = sum(part.weight for part in parts)
    scale = 1 / max(weight, 1e-30)
    names = {name: None for part in parts for name in part.metrics}
    said = [part.counted for part in parts if part.counted is not None]
    counted = reduce(Counted.plus, said) if said else None
    metrics = {name: sum(part.metrics.get(name, 0.0) for part in parts) * scale for name in names}
    return Step(
        sum(part.loss for part in parts) * scale,
        weight,
        metrics if counted is None else {**metrics, **counted.metrics()},
        sum(part.tokens for part in parts),
        sum(part.targets for part in parts),
        [row for part in parts for row in part.rows],
        next((part.bad for part in parts if part.bad is not None), None),
        counted=counted,
    )


def _first_bad(spread: Spread, batches: Sequence[Packed], dtype: torch.dtype) -> str:
    """Where it began; on several processes only which weight here is no number, since looking further takes all."""
    weights: dict[str, torch.Tensor] = dict(spread.model.named_parameters()) if spread.alone else spread.trained
    name = trouble.first_bad_weight(weights, gradients=False)
    if name or not spread.alone:
        return name
    own = Trunk(spread.model, own=False)
    return trouble.first_bad_module(spread.model, lambda b: own.hidden(b.ids_T, b.layout, dtype), batches[0])
