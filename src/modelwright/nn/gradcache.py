"""Losses that look at a whole step at once, on micro-batches that fit: vectors first, their gradients, then the model again.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache), arXiv:2101.06983,
section 3.2. Each micro-batch runs a second time in the backward pass, with the random state that it had, so dropout is the same.
"""

# Shape suffixes: T packed tokens, N positions, S documents, D model width.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modelwright.nn.attention import Layout
from modelwright.nn.device import of as device_of
from modelwright.nn.device import random_state, restore_random
from modelwright.nn.dropout import dropped
from modelwright.nn.logps import Policy
from modelwright.nn.model import Trunk, core
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed
from modelwright.nn.sequence import means


class Vectors(Policy):
    """A step as a loss over vectors sees it: one vector a document. It has no log-probabilities."""

    def __init__(self, vector_SD: Tensor) -> None:
        self.vector_SD = vector_SD

    def vectors(self) -> Tensor:
        return self.vector_SD


def pooled(batch: Packed, where: str) -> Packed:
    """The micro-batch with the positions whose mean is its document's vector: all (`mean`), the `first` or the `last`."""
    segments = batch.layout.segments
    count_S = torch.tensor(batch.layout.lengths if where == "mean" else [1] * len(segments))
    if where == "mean":
        position_N = torch.arange(len(batch.ids_T))
    else:
        position_N = torch.tensor([segment.start if where == "first" else segment.stop - 1 for segment in segments])
    owner_N = torch.repeat_interleave(torch.arange(len(segments)), count_S)
    return batch._replace(position_N=position_N, target_N=batch.ids_T[position_N], segment_N=owner_N, segments=len(segments))


def vectors(trunk: Trunk, batch: Packed, dtype: torch.dtype) -> Tensor:
    """[S, D] mean of each document's hidden states at the positions of the micro-batch, float32."""
    if batch.dropout is None or not trunk.model.training:
        hidden_ND = trunk.at(batch.ids_T, batch.layout, batch.position_N, dtype)
    else:
        with dropped(core(trunk.model), batch, batch.dropout):  # between modules, which our own forward pass does not call
            other = Trunk(trunk.model, own=False)
            other.choices = trunk.choices
            hidden_ND = other.at(batch.ids_T, batch.layout, batch.position_N, dtype)
        trunk.routed = other.routed
    return means(hidden_ND.to(torch.promote_types(hidden_ND.dtype, torch.float32)), batch.segment_N, batch.segments)


class _Again(torch.autograd.Function):
    """Vectors of several micro-batches; nothing is kept of them, the backward pass computes each a second time."""

    @staticmethod
    def forward(ctx: Any, none_0D: Tensor, trunk: Trunk, batches: Sequence[Packed], dtype: torch.dtype) -> Tensor:
        ctx.trunk, ctx.batches, ctx.dtype = trunk, batches, dtype
        ctx.random, parts = [], [none_0D]
        for batch in batches:
            ctx.random.append(random_state(device_of(trunk.model)))
            parts.append(vectors(trunk, batch, dtype))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_SD: Tensor) -> Any:
        device = device_of(ctx.trunk.model)
        after = random_state(device)
        parts = torch.split(grad_SD, [batch.segments for batch in ctx.batches]) if ctx.batches else ()
        for batch, random, part in zip(ctx.batches, ctx.random, parts, strict=True):
            restore_random(device, random)
            with torch.enable_grad():
                made, slopes = [vectors(ctx.trunk, batch, ctx.dtype)], [part]
                if (routed := ctx.trunk.routed) is not None:  # routers are kept sound, though no loss tells of it
                    made.append(ctx.trunk.choices.loss_of_step(routed) * ctx.trunk.loss_factor)
                    slopes.append(torch.ones_like(made[1]))
            torch.autograd.backward(made, slopes)
        restore_random(device, after)
        return None, None, None, None


def joined(whose: Sequence[tuple[list[int], tuple[int, ...]]], device: torch.device) -> Packed:
    """What the loss needs to know of all micro-batches, as if they were one: whose vectors these are. `whose`: of each
    micro-batch, `group_S` and `rows`."""
    groups: list[int] = []
    rows: list[int] = []
    for group, chosen in whose:
        groups += [len(rows) + number for number in group]
        rows += chosen
    none = torch.zeros(0, dtype=torch.long, device=device)
    group_S = torch.tensor(groups, device=device)
    return Packed(none, Layout([]), none, none, none, len(groups), None, None, tuple(rows), group_S=group_S)


def whole_loss(
    spread: Spread,
    batches: Sequence[Packed],
    loss: Callable[[Policy, Packed], tuple[Tensor, Tensor, dict[str, Tensor]]],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The loss over all these micro-batches together; its backward pass runs through them one by one. Of several processes each
    computes the vectors of its own, the loss of all, and the gradients of its own; the first says what the loss was."""
    trunk, own = spread.trunk, []
    for batch in batches:
        assert batch.group_S is not None
        own.append((batch.group_S.tolist(), batch.rows))
    wide = torch.promote_types(next(trunk.model.parameters()).dtype, torch.float32)
    width = core(trunk.model).config.hidden_size
    none_0D = torch.zeros(0, width, dtype=wide, device=spread.device, requires_grad=True)
    again: Any = _Again.apply
    own_SD = again(none_0D, trunk, batches, dtype)
    said = spread.exchange(own)
    vector_SD = spread.joined(own_SD, [sum(len(group) for group, _ in whose) for whose in said])
    total, weight, metrics = loss(Vectors(vector_SD), joined([one for whose in said for one in whose], spread.device))
    trunk.choices.weight = float(weight)
    if spread.replica == 0:
        return total, weight, metrics
    return total - total.detach(), weight * 0, {name: value * 0 for name, value in metrics.items()}
