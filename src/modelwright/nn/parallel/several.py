"""A model on several processes: torch's process groups and, for what is divided, its DTensor and FSDP2.

Sources: Li et al. 2020, "PyTorch Distributed", arXiv:2006.15704 (data); Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277, and
Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054 (shard). Sums of losses and gradients are sums over the whole step, whatever
process computed them, so every layout takes the steps that one process alone would take.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from modelwright.core.errors import UserError
from modelwright.nn.device import random_state, restore_random
from modelwright.nn.model import Trunk, core
from modelwright.nn.parallel import Sizes, Spread, context, expert, messages, owned
from modelwright.nn.parallel.tensor import Divided
from modelwright.nn.rows import Packed

T = TypeVar("T")
AXES = ("pipeline", "data", "shard", "expert", "context", "tensor")
"""From the outermost to the innermost: neighbours talk most, so they should be on one machine."""
ROWS = ("data", "shard", "expert")
"""Axes along which processes see different rows."""
CUTTING = ("shard", "expert", "tensor")
"""Axes along which processes hold parts of weights."""
BUCKET = 1 << 24
"""Values of gradients that are summed over processes at once: 64 MB of float32; fewer wait more often for the network."""


class Ranks:
    """This process among all of them."""

    def __init__(self, sizes: Sizes, device: str, zero: int = 0) -> None:
        """`zero`: the stage of DeepSpeed's ZeRO that divides over `shard`; 0: FSDP2 does."""
        if not dist.is_initialized():
            # the first process may work for hours while the others wait: tokens, a reference
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
        assert dist.get_world_size() == sizes.processes, f"{dist.get_world_size()} processes for {sizes}"
        if device == "cuda":
            torch.cuda.set_device(_card(int(os.environ["LOCAL_RANK"])))
        self.sizes, self.rank, self.device, self.zero = sizes, dist.get_rank(), device, zero
        self.mesh: DeviceMesh = init_device_mesh(device, tuple(getattr(sizes, axis) for axis in AXES), mesh_dim_names=AXES)
        self.talk = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        """Of all processes, for plain values."""
        self.replicas, self.replica = 1, 0
        for axis in ROWS:
            size = getattr(sizes, axis)
            self.replicas, self.replica = self.replicas * size, self.replica * size + self.at(axis)
        self.counts = self.at("context") == self.at("tensor") == 0 and self.at("pipeline") == sizes.pipeline - 1
        """Its loss is a part of the step's; others compute the same one, or none."""

    def at(self, axis: str) -> int:
        """Place of this process along an axis."""
        return int(self.mesh.get_local_rank(axis))

    def group(self, axis: str) -> dist.ProcessGroup:
        found: dist.ProcessGroup = self.mesh.get_group(axis)
        return found

    def wait(self) -> None:
        """Until every process is here."""
        dist.barrier(group=self.talk)

    def close(self) -> None:
        dist.destroy_process_group()


def _card(place: int) -> int:
    """The card of the process with this place on its machine."""
    if place >= (cards := torch.cuda.device_count()):
        raise UserError(
            f"there are more processes on this machine than its {cards} cards",
            "each process trains on a card of its own",
            "fewer processes in `runtime.parallel`, or `device: cpu`",
        )
    return place


class Several(Spread):
    """A model on the processes of a grid."""

    alone = False

    def __init__(self, model: Any, ranks: Ranks) -> None:
        self.ranks, self.root = ranks, _Root(model)
        self.replicas, self.replica, self.first = ranks.replicas, ranks.replica, ranks.rank == 0
        sharded = self._sharded = ranks.sizes.shard > 1
        self.divided = sharded or ranks.sizes.expert * ranks.sizes.tensor > 1
        self._layers = Divided(model, ranks.group("tensor")) if ranks.sizes.tensor > 1 else None
        if ranks.sizes.expert > 1:
            expert.divide(model, ranks.mesh["expert"])
        if sharded:
            self._shard(model)
        self.summed = [axis for axis in (("context", "expert") if sharded else ("data", "context", "expert"))]
        """Axes over which gradients are summed here; FSDP2 does it over its own."""
        self._held = {name: p for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model)
        if ranks.sizes.context > 1:
            self.trunk = context.Trunk(model, ranks.group("context"))
        else:
            self.trunk = Trunk(model, own=not sharded)
        if self._layers is not None and self.trunk.decoder is not None:
            self._layers.into(self.trunk.decoder)
        self.trained = {name: _local(p) for name, p in self._held.items()}
        torch.manual_seed(torch.initial_seed() + ranks.replica)  # dropout draws other numbers for other rows

    def _shard(self, model: Any) -> None:
        sizes, mesh = self.ranks.sizes, self.ranks.mesh
        over = mesh["data", "shard"] if sizes.data > 1 else mesh["shard"]
        for layer in layers(model):
            fully_shard(layer, mesh=over)
        fully_shard(self.root, mesh=over)
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, not means
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    # --- a step ---------------------------------------------------------------------------------------

    def mine(self, groups: Sequence[T]) -> list[T]:
        return list(groups[self.replica :: self.replicas])

    def within(self, compute: Callable[[], T]) -> T:
        found: T = self.root(compute)
        if isinstance(self.root, FSDPModule) and not torch.is_grad_enabled():
            self.root.reshard()  # no backward pass comes to do it, and averages of weights may go before the next pass
        return found

    def idle(self, batch: Packed, dtype: torch.dtype) -> None:
        if self._sharded or self.ranks.sizes.expert > 1:
            hidden_TD = self.within(lambda: self.trunk.hidden(batch.ids_T, batch.layout, dtype))
            if hidden_TD.requires_grad:
                torch.autograd.backward(hidden_TD.sum() * 0)

    def exchange(self, mine: T) -> list[T]:
        found: list[Any] = [None] * self.ranks.sizes.processes
        dist.all_gather_object(found, (self.ranks.counts, mine), group=self.ranks.talk)
        return [said for counts, said in found if counts]

    def joined(self, own_SD: Tensor, lengths: Sequence[int]) -> Tensor:
        assert self.replicas == self.ranks.sizes.data, "a loss of a whole step is divided over `data` alone"
        return messages.joined(own_SD, lengths, self.ranks.group("data"))

    def wanted(self, *flags: bool) -> list[bool]:
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.ranks.talk)
        return [bool(flag) for flag in found]

    def gradients(self) -> list[Tensor]:
        for name, held in self._held.items():
            if held.grad is None:
                held.grad = torch.zeros_like(held)
            self.trained[name].grad = _local(held.grad)
        found = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        for axis in self.summed:
            if getattr(self.ranks.sizes, axis) > 1:
                apart = [gradient for name, gradient in found.items() if not self._parted(name, axis)]
                for bucket in _buckets(apart):
                    _sum(bucket, self.ranks.group(axis))
        if self._layers is not None:
            for bucket in _buckets([gradient for name, gradient in found.items() if name in self._layers.partial]):
                _sum(bucket, self.ranks.group("tensor"))
        return list(found.values())

    def norm(self, gradients: Sequence[Tensor]) -> float:
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        copies = torch.tensor([self._copies(name) for name in self._held], dtype=torch.float64)
        total = (torch.stack(norms).cpu().square() / copies).sum()
        dist.all_reduce(total, group=self.ranks.talk)
        return float(total.sqrt())

    def owning(self, optimizers: Sequence[Any]) -> list[Any]:
        cutting = [axis for axis in CUTTING if getattr(self.ranks.sizes, axis) > 1]
        if not cutting:
            return list(optimizers)
        (axis,) = cutting
        cuts = {name: found for name in self.trained if (found := self._cut(name)) is not None}
        group = self.ranks.group(axis)
        return [  # torch's AdamW steps value by value, whatever it is beside
            one if isinstance(one, torch.optim.AdamW) else owned.Owned(one, self.trained, cuts, group, self.ranks.talk)
            for one in optimizers
        ]

    def _cut(self, name: str) -> owned.Cut | None:
        """How a weight is divided over processes; None where each has it whole."""
        held = self._held[name]
        if self._layers is not None and name in self._layers.sides:
            side = self._layers.sides[name]
            return owned.cut(held.shape[side] * self._layers.size, side, self._layers.size)
        if not isinstance(held, DTensor):
            return None
        for size, placement in zip(held.device_mesh.shape, held.placements, strict=True):
            if isinstance(placement, Shard):
                return owned.cut(held.shape[placement.dim], placement.dim, size)
        return None

    def _parted(self, name: str, axis: str) -> bool:
        """Whether processes along an axis hold other parts of a weight, and no copies."""
        held = self._held[name]
        return isinstance(held, DTensor) and axis in (held.device_mesh.mesh_dim_names or ())

    def _copies(self, name: str) -> int:
        """Processes that hold the same part of a weight as this one, itself included."""
        held, parts = self._held[name], 1
        if self._layers is not None and name in self._layers.sides:
            parts = self._layers.size
        if isinstance(held, DTensor):
            for size, placement in zip(held.device_mesh.shape, held.placements, strict=True):
                parts *= 1 if placement.is_replicate() else size
        return self.ranks.sizes.processes // parts

    # --- what is saved ----------------------------------------------------------------------------------

    def whole(self, name: str, part: Tensor) -> Tensor:
        whole = self._gathered(name, part)
        return whole if self.first else whole.new_empty(0)

    def _gathered(self, name: str, part: Tensor) -> Tensor:
        held, whole = self._held[name], part
        if isinstance(held, DTensor):
            spread = DTensor.from_local(
                part, held.device_mesh, held.placements, run_check=False, shape=held.shape, stride=held.stride()
            )
            whole = spread.full_tensor()
        if self._layers is not None:
            whole = self._layers.whole(name, whole)
        return whole

    def part(self, name: str, whole: Tensor) -> Tensor:
        held = self._held[name]
        if self._layers is not None:
            whole = self._layers.part(name, whole)
        if not isinstance(held, DTensor):
            return whole
        return _local(distribute_tensor(whole.to(held.device), held.device_mesh, held.placements, src_data_rank=None))

    def random(self) -> list[Tensor]:
        found: list[Any] = [None] * self.ranks.sizes.processes
        dist.all_gather_object(found, random_state(self.device), group=self.ranks.talk)
        return found

    def restore_random(self, states: Sequence[Tensor]) -> None:
        if len(states) == self.ranks.sizes.processes:
            restore_random(self.device, states[self.ranks.rank])

    def wait(self) -> None:
        self.ranks.wait()


class _Root(nn.Module):
    """What FSDP2 wraps: whatever is computed inside its forward pass finds the weights there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], T]) -> T:
        return compute()


def layers(model: Any) -> list[nn.Module]:
    """The repeated blocks of a model: whole weights of one of them at a time are in memory."""
    return [
        module for group in core(model).modules() if isinstance(group, nn.ModuleList) for module in group if _is_layer(module)
    ]


def _is_layer(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("Layer", "Block"))


def _local(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor._local_tensor.detach()
    return nn.Parameter(local) if tensor.requires_grad else local


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _sum(bucket: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Each becomes its sum over the group."""
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat, group=group)
    for tensor, values in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
        tensor.copy_(values.view_as(tensor))
