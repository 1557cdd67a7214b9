"""Losses and log-probabilities over many rows, without a gradient: validation, and what a frozen reference says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modelwright.nn import gradcache
from modelwright.nn.device import of as device_of
from modelwright.nn.logps import Policy
from modelwright.nn.model import Trunk
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed, Rows, moved, pack, runs

LossFn = Callable[[Policy, Packed], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(sum of the loss, its weight, sums of metrics) of one micro-batch."""


def micro_loss(trunk: Trunk, batch: Packed, loss: LossFn, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss sums of one micro-batch; gradients are recorded unless they are switched off around it."""
    total, weight, metrics = loss(trunk.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, dtype), batch)
    if trunk.routed is not None and torch.is_grad_enabled():  # a validation's loss is the plain one
        total = total + trunk.choices.loss(trunk.routed, weight, len(batch.target_N))
    return total, weight, metrics


def step_loss(
    spread: Spread, batches: Sequence[Packed], loss: LossFn, dtype: torch.dtype, whole_step: bool, factor: float = 1.0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss sums of one micro-batch, or of all of a step together, of which other processes may have some. `factor`: what they
    will be multiplied with before their gradient is taken."""
    trunk = spread.trunk
    trunk.loss_factor = factor
    if not whole_step:
        (batch,) = batches
        return micro_loss(trunk, batch, loss, dtype)
    return gradcache.whole_loss(spread, batches, loss, dtype)


@torch.no_grad()
def evaluate(
    model: Any,
    rows: Rows,
    chosen: Sequence[int],
    loss: LossFn,
    micro_tokens: int,
    dtype: torch.dtype,
    prepare: Callable[[Packed], Packed] = lambda batch: batch,
    stop: Callable[[], bool] = lambda: False,
    whole_step: bool = False,
    spread: Spread | None = None,
) -> dict[str, float]:
    """Mean loss (and metrics) over these rows, without dropout; empty where `stop` said so before the end. `whole_step`: the
    loss is one of all the rows together. `spread`: how the model lies on several processes, which share the rows."""
    spread = spread or Spread(model)
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {"loss": 0.0}
    weight_sum = 0.0
    try:
        groups = list(runs(rows, chosen, micro_tokens))
        groups = spread.mine(groups + [[]] * (-len(groups) % spread.replicas))
        for part in [groups] if whole_step else [[group] for group in groups]:
            if stop():
                return {}
            if not any(part) and not whole_step:
                spread.idle(moved(prepare(pack(rows, chosen[:1])), spread.device), dtype)
                continue
            batches = [moved(prepare(pack(rows, group)), spread.device) for group in part if group]
            compute = partial(step_loss, spread, batches, loss, dtype, whole_step)
            total, weight, metrics = spread.computed(batches, dtype, compute)
            weight_sum += float(weight)
            for name, value in {"loss": total, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    finally:
        model.train(was_training)
    said = spread.exchange((sums, weight_sum))
    whole = max(sum(weight for _, weight in said), 1e-30)
    return {name: sum(one.get(name, 0.0) for one, _ in said) / whole for name in {n: 0 for one, _ in said for n in one}}


@torch.no_grad()
def target_logps(
    model: Any, rows: Rows, chosen: Sequence[int], micro_tokens: int, dtype: torch.dtype, progress: Callable[[int], None]
) -> Tensor:
    """Log-probability of every target of these rows, in their order: what a frozen reference says, computed once."""
    was_training, trunk, device = model.training, Trunk(model), device_of(model)
    model.eval()
    parts, done = [], 0
    try:
        for group in runs(rows, chosen, micro_tokens):
            batch = moved(pack(rows, group), device)
            parts.append(trunk.policy(batch.ids_T, batch.layout, batch.position_N, batch.target_N, dtype).logps().cpu())
            done += len(group)
            progress(done)
    finally:
        model.train(was_training)
    return torch.cat(parts)
