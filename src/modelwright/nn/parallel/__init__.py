"""A model as it lies on the processes that train it: on one alone (here), or on several (`several.py`).

What the loop asks is the same for both. Processes stand in a grid with an axis for each way of dividing the work:

    data      replicas: each has the whole model and sees other rows of a step
    shard     as data, but each keeps a part of every weight (FSDP2, ZeRO 3)
    expert    as data, but each keeps some of the experts
    context   all see the same rows, each some of their tokens
    tensor    all see the same tokens, each computes with a part of every matrix
    pipeline  each has some of the layers
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from modelwright.nn.device import of as device_of
from modelwright.nn.device import random_state, restore_random
from modelwright.nn.gradients import begun
from modelwright.nn.model import Trunk
from modelwright.nn.rows import Packed

T = TypeVar("T")
Sums = tuple[Tensor, Tensor, dict[str, Tensor]]
"""(sum of the loss, its weight, sums of metrics) of what was computed."""


class Sizes(NamedTuple):
    """Processes along each axis of the grid."""

    data: int = 1
    shard: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    pipeline: int = 1

    @property
    def processes(self) -> int:
        return math.prod(self)


class Wholes(ABC):
    """In place of an optimizer: its state is told, and taken up, with whole tensors, whatever the layout."""

    @property
    @abstractmethod
    def param_groups(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def step(self) -> None: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, stored: dict[str, Any]) -> None: ...


class Spread:
    """The whole model on this process alone."""

    replicas = 1
    """How many see other rows than this process does, itself included."""
    replica = 0
    """Which of these this process is."""
    first = True
    """This process writes files and tells what happens."""
    alone = True
    divided = False
    """No process has the whole model."""
    updates: Callable[..., Any] | None = None
    """Makes steps in place of `update.Update`, where something else has gradients and optimizer state."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, device_of(model)
        self.trained: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        """What this process holds of the weights that are trained; optimizers work on it."""

    @cached_property
    def trunk(self) -> Trunk:
        """The model as the loss sees it; asked for inside `within`."""
        return Trunk(self.model)

    # --- a step ---------------------------------------------------------------------------------------

    def mine(self, groups: Sequence[T]) -> list[T]:
        """Of the micro-batches of a step, those that this process computes."""
        return list(groups)

    def within(self, compute: Callable[[], T]) -> T:
        """A forward pass; weights that lie elsewhere come for it."""
        return compute()

    def computed(self, batches: Sequence[Packed], dtype: torch.dtype, compute: Callable[[], Sums]) -> Sums:
        """The forward pass of a micro-batch, or of all of a step; nothing where the loss is another process'."""
        return self.within(compute)

    def back(self, total: Tensor) -> None:
        """The backward pass of the one that was computed last, or of an earlier one, as long as all have come by `exchange`."""
        torch.autograd.backward(total)

    def idle(self, batch: Packed, dtype: torch.dtype) -> None:
        """Take part in a forward and a backward pass of the others; this process has no rows for it."""

    def exchange(self, mine: T) -> list[T]:
        """What every process says whose loss counts, in their order; plain values."""
        return [mine]

    def joined(self, own_SD: Tensor, lengths: Sequence[int]) -> Tensor:
        """The vectors of all replicas, of which each has so many, one behind the other; gradients go to the own ones."""
        return own_SD

    def wanted(self, *flags: bool) -> list[bool]:
        """Each flag: whether any process has it set."""
        return list(flags)

    def gradients(self) -> list[Tensor]:
        """Once a step, after its backward passes: the gradients of what this process holds, summed over all processes."""
        return [begun(parameter) for parameter in self.trained.values()]  # zeros where no token led: a resumed run is the same

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """Length of the whole gradient."""
        return float(torch.nn.utils.get_total_norm(gradients))

    def owning(self, optimizers: Sequence[Any]) -> list[Any]:
        """Optimizers over `trained` that look at each weight whole, made fit for what no process has whole."""
        return list(optimizers)

    # --- what is saved ----------------------------------------------------------------------------------

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor of a weight's shape of which this process holds `part`; every process has to ask, the first gets it."""
        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of it."""
        return whole

    def put(self, name: str, whole: Tensor) -> None:
        """Give a weight these values."""
        with torch.no_grad():
            self.trained[name].copy_(self.part(name, whole))

    def states(self, named: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """An optimizer's state by weight, that of weights of other processes too: what belongs to their values is empty."""
        return named

    def random(self) -> list[Tensor]:
        """States of the random numbers, process by process."""
        return [random_state(self.device)]

    def restore_random(self, states: Sequence[Tensor]) -> None:
        restore_random(self.device, states[0])

    def wait(self) -> None:
        """Until every process is here."""


def to_wholes(spread: Spread, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, which fit any other layout."""
    stored = optimizer.state_dict()
    if spread.alone or isinstance(optimizer, Wholes):
        return stored
    indices = _indices(spread, optimizer, stored)
    states = spread.states({name: stored["state"].get(index, {}) for name, index in indices.items()})
    changed = {
        indices[name]: _changed(state, lambda value: value.shape == spread.trained[name].shape, partial(spread.whole, name))  # noqa: B023
        for name, state in states.items()
    }
    return {**stored, "state": changed}


def to_parts(spread: Spread, optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, Any]:
    """The reverse."""
    if spread.alone or isinstance(optimizer, Wholes):
        return stored
    changed = {
        index: _changed(stored["state"][index], lambda value: value.ndim == part.ndim, partial(spread.part, name))
        for name, index in _indices(spread, optimizer, stored).items()
        if (part := spread.trained[name]).numel() and index in stored["state"]
    }
    return {**stored, "state": changed}


def _indices(spread: Spread, optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> dict[str, int]:
    """Name of each weight of an optimizer -> where its stored state is."""
    names = {id(parameter): name for name, parameter in spread.trained.items()}
    own = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip(own, [index for group in stored["param_groups"] for index in group["params"]], strict=True))


def _changed(state: dict[str, Any], belongs: Callable[[Tensor], bool], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A weight's state with every tensor that goes with its values changed; numbers beside them stay."""
    return {
        key: change(value) if isinstance(value, Tensor) and value.ndim and belongs(value) else value
        for key, value in state.items()
    }
