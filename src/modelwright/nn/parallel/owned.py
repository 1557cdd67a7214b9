"""Optimizers whose step looks at a whole weight, where each process holds a part of it: every weight has an owner that steps it.

For a step the parts of a weight and of its gradient travel to the owner, which keeps the weight's state, and the new values
travel back; so states are divided over processes weight by weight, and what is computed is what one process computes. Source of
putting a matrix together for its step: Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982, section 2.3. There
every process that gets the matrix steps it and keeps its part; here one does, and any optimizer that steps weight by weight can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modelwright.nn.parallel import Wholes, messages

AT_ONCE = 1 << 24
"""Values that come to an owner together, at most, or one weight: 64 MB of float32."""


class Cut(NamedTuple):
    """How a weight is divided over the processes of a group."""

    side: int
    lengths: tuple[int, ...]
    """Along that side, process by process."""


def cut(whole: int, side: int, processes: int) -> Cut:
    """As torch's `chunk` divides so many: parts of one size, of which the last ones may be smaller or empty."""
    most = -(-whole // processes)
    return Cut(side, tuple(max(0, min(whole, (place + 1) * most) - place * most) for place in range(processes)))


class Owned(Wholes):
    """In place of `inner`, which was made for the parts that this process holds; `cuts`: those of them that are parts."""

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        named: Mapping[str, Tensor],
        cuts: Mapping[str, Cut],
        group: dist.ProcessGroup,
        talk: dist.ProcessGroup,
    ) -> None:
        """`talk`: of all processes, for what is no tensor of theirs."""
        self.inner, self.named, self.cuts, self.group, self.talk = inner, named, cuts, group, talk
        self.place, self.processes = dist.get_rank(group), dist.get_world_size(group)
        names = {id(weight): name for name, weight in named.items()}
        self._names = [[names[id(weight)] for weight in one["params"]] for one in inner.param_groups]
        self.owners = self._shared_out()
        self._batches = self._together()
        self._own = {name: nn.Parameter(named[name].new_empty(0)) for name, owner in self.owners.items() if owner == self.place}
        """What the optimizer steps here in place of parts; without values but during a step."""
        for one, here in zip(inner.param_groups, self._here(), strict=True):
            one["params"] = [self._own.get(name, named[name]) for name in here]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def _here(self) -> list[list[str]]:
        """By group, what this process steps: what it owns, and what every process holds whole."""
        return [[name for name in some if self.owners.get(name, self.place) == self.place] for some in self._names]

    def _values(self, name: str) -> int:
        """Of the whole weight."""
        return self._row(name) * sum(self.cuts[name].lengths)

    def _row(self, name: str) -> int:
        """Values of a weight with one along the side that is cut."""
        sides = list(self.named[name].shape)
        sides[self.cuts[name].side] = 1
        return int(torch.Size(sides).numel())

    def _shared_out(self) -> dict[str, int]:
        """Name of each weight that is cut -> its owner's place: the largest first, each to the process that has least."""
        found, load = {}, [0] * self.processes
        every = [name for names in self._names for name in names if name in self.cuts]
        for name in sorted(every, key=lambda name: -self._values(name)):
            owner = load.index(min(load))
            found[name] = owner
            load[owner] += self._values(name)
        return {name: found[name] for name in every}

    def _together(self) -> list[list[str]]:
        """Weights that travel at one time: of each owner the next ones, as many as are allowed."""
        queues = [[name for name, owner in self.owners.items() if owner == place] for place in range(self.processes)]
        batches = []
        while any(queues):
            batch: list[str] = []
            for queue in queues:
                load = 0
                while queue and (not load or load + self._values(queue[0]) <= AT_ONCE):
                    load += self._values(queue[0])
                    batch.append(queue.pop(0))
            batches.append(batch)
        return batches

    # --- a step ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> None:
        for batch in self._batches:
            mine = [name for name in batch if self.owners[name] == self.place]
            values = self._to_owners(batch, {name: self.named[name] for name in batch})
            slopes = self._to_owners(batch, {name: _gradient(self.named[name]) for name in batch})
            for name in mine:
                self._own[name].data = values[name]
                self._own[name].grad = slopes[name]
            self._step(self._own[name] for name in mine)
            new = self._to_parts(batch, {name: self._own[name].data for name in mine})
            for name in batch:
                self.named[name].copy_(new[name])
            for name in mine:
                self._own[name].grad = None
                self._own[name].data = values[name].new_empty(0)
        self._step(self.named[name] for names in self._here() for name in names if name not in self.owners)

    def _step(self, weights: Iterable[Tensor]) -> None:
        """The optimizer's step of these weights alone."""
        chosen = {id(weight) for weight in weights}
        groups = [(group, group["params"]) for group in self.inner.param_groups]
        try:
            for group, held in groups:
                group["params"] = [weight for weight in held if id(weight) in chosen]
            self.inner.step()
        finally:
            for group, held in groups:
                group["params"] = held

    def _to_owners(self, batch: Sequence[str], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors of those that this process owns; `parts`: what it holds of each."""
        mine = [name for name in batch if self.owners[name] == self.place]
        sent = [sum(parts[name].numel() for name in batch if self.owners[name] == place) for place in range(self.processes)]
        sizes = [[self._row(name) * self.cuts[name].lengths[place] for name in mine] for place in range(self.processes)]
        flat = torch.cat([self._turned(name, parts[name]).reshape(-1) for name in batch])  # a batch has its owners in order
        got = messages.send(flat, sent, [sum(some) for some in sizes], self.group)
        pieces = iter(torch.split(got, [size for some in sizes for size in some]))
        by_place = [[next(pieces) for _ in mine] for _ in range(self.processes)]
        return {
            name: self._back(name, torch.cat([by_place[place][index] for place in range(self.processes)]))
            for index, name in enumerate(mine)
        }

    def _to_parts(self, batch: Sequence[str], wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse."""
        mine = [name for name in batch if self.owners[name] == self.place]
        cut_up = {name: torch.split(self._turned(name, wholes[name]), list(self.cuts[name].lengths)) for name in mine}
        sent = [[cut_up[name][place].reshape(-1) for name in mine] for place in range(self.processes)]
        sizes = [self.named[name].numel() for name in batch]
        owners = [self.owners[name] for name in batch]
        received = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == p) for p in range(self.processes)]
        nothing = self.named[batch[0]].new_empty(0)
        flat = torch.cat([nothing, *(piece for some in sent for piece in some)])
        got = messages.send(flat, [sum(p.numel() for p in some) for some in sent], received, self.group)
        return {name: self._back(name, piece) for name, piece in zip(batch, torch.split(got, sizes), strict=True)}

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        """With the side that is cut before the others."""
        return tensor.detach().movedim(self.cuts[name].side, 0)

    def _back(self, name: str, flat: Tensor) -> Tensor:
        side = self.cuts[name].side
        sides = list(self.named[name].shape)
        sides.insert(0, sides.pop(side))
        return flat.view(-1, *sides[1:]).movedim(0, side).contiguous()

    # --- what is saved ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As one process alone would have it; every process has to ask, the first gets it."""
        places = iter(range(sum(len(names) for names in self._names)))
        states: dict[int, Any] = {}
        groups = []
        for group, names in zip(self.inner.param_groups, self._names, strict=True):
            indices = [next(places) for _ in names]
            groups.append({**group, "params": indices})
            for index, name in zip(indices, names, strict=True):
                if state := self._told(name):
                    states[index] = state
        return {"state": states, "param_groups": groups}

    def _told(self, name: str) -> dict[str, Any]:
        """The state of a weight, on the first process."""
        own: dict[str, Any] = self.inner.state.get(self._own.get(name, self.named[name]), {})
        light = {key: value.cpu() if isinstance(value, Tensor) else value for key, value in own.items()}
        ranks = dist.get_process_group_ranks(self.group)
        owner = self.owners.get(name, 0)
        if owner == 0 or ranks[0] != 0:  # the first has it, or it is among others
            return light
        if self.place == owner:
            dist.send_object_list([light], 0, group=self.talk)
        elif self.place == 0:
            said: list[Any] = [None]
            dist.recv_object_list(said, ranks[owner], group=self.talk)
            return dict(said[0])
        return light

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        kept: list[dict[str, Any]] = []
        states: dict[int, Any] = {}
        for group, names, here in zip(stored["param_groups"], self._names, self._here(), strict=True):
            indices = dict(zip(names, group["params"], strict=True))
            kept.append({**group, "params": [indices[name] for name in here]})
            states |= {indices[name]: stored["state"][indices[name]] for name in here if indices[name] in stored["state"]}
        self.inner.load_state_dict({"state": states, "param_groups": kept})


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None, "`Spread.gradients` gives each one"
    return weight.grad
