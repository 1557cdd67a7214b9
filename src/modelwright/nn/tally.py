"""What tensors hold in memory while something runs: every storage counted once, from the operation that made it to its end.

The storages of results are followed by weak references, as torch's own `torch.distributed._tools.mem_tracker` follows them, on
real tensors and on those of `nn/fake.py` alike; what is counted is what a real run asks of c10's allocator (`torch.profiler` with
`profile_memory` tells it). Memory that an operation takes and gives back inside itself is no result of it: `WORKSPACES` says what
is known of that.

With a mode like this one at work, autograd adds gradients beside the old ones where it would add to them
(`can_accumulate_inplace` in torch/csrc/autograd/input_buffer.cpp, `isTensorSubclassLike`); such sums are counted as what they
would be.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modelwright.nn.workspaces import WORKSPACES, Workspace

aten = torch.ops.aten

OF_FILES = {
    "nn/logps.py": "logits",
    "nn/rows.py": "batch",
    "nn/masking.py": "batch",
    "nn/spans.py": "batch",
    "nn/dropout.py": "batch",
    "nn/update.py": "optimizer",
    "nn/early.py": "optimizer",
    "nn/average.py": "optimizer",
}
"""The last two parts of a file's path -> what its storages are, unless an owner is known; all of `nn/optim` is `optimizer`."""
SUMS = frozenset(
    {
        aten.add.Tensor,
        aten.index_add.default,
        aten.scatter_add.default,
        aten.index_put.default,
        aten.scatter.src,
        aten.scatter.value,
    }
)
"""What autograd's engine does in place where no mode watches."""
TOLD_EVERY = 500
"""Operations."""
_PLUMBING = ("torch/utils/_python_dispatch.py", "torch/_compile.py", "torch/_dynamo/", "nn/tally.py", "nn/fake.py")
_DEVICE = torch.ops.prim.device.default
_INDEX_TYPES = frozenset({torch.int64, torch.int32, torch.bool})


class Event(NamedTuple):
    bytes: int
    """Allocated; below zero: freed."""
    storage: int
    """Number of the storage, in the order in which they were allocated."""
    operation: str
    """By which it was allocated, or after which it was let go."""


class Peak(NamedTuple):
    """The moment when most is held, the first of these where there are several."""

    bytes: int
    operation: str
    """Whose result made it so."""
    place: str
    """File and function that asked for it."""
    parts: dict[str, int]
    """Bytes by what they are: `weights`, `gradients`, `optimizer`, `activations`, `logits`, `batch` and what `own` was told."""


class _Storage(NamedTuple):
    place: str
    part: str
    """What it is, unless an owner is known."""


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is entered. What exists before is counted when `own` is told of it."""

    def __init__(self, told: Callable[[int], None] | None = None, rooms: Mapping[Any, Workspace] = WORKSPACES) -> None:
        """`told` hears now and then how many operations were seen. `rooms`: what kernels take for themselves."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._told, self._seen, self._rooms = told, 0, rooms
        self.events: list[Event] = []
        self._storages: list[_Storage] = []
        self._owners: dict[int, str] = {}
        self._known: dict[int, tuple[int, int, weakref.ref[Any]]] = {}
        """By the storage's address: its number, its bytes, and what tells of its end."""
        self._operation = "before"
        self._replaced: tuple[int, int] | None = None
        """Storage that the last operation would have added to, had nobody watched, and the place of its event."""

    def __exit__(self, *error: Any) -> None:
        self._known.clear()  # and with it what tells of ends
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    # --- what is told -----------------------------------------------------------------------------------

    def peak(self) -> Peak:
        live = most = at = 0
        for index, event in enumerate(self.events):
            live += event.bytes
            if live > most:
                most, at = live, index
        held: dict[int, int] = {}
        for event in self.events[: at + 1]:
            held[event.storage] = held.get(event.storage, 0) + event.bytes
        parts: dict[str, int] = {}
        for number, size in held.items():
            if size:
                part = self._owners.get(number, self._storages[number].part)
                parts[part] = parts.get(part, 0) + size
        if not self.events:
            return Peak(0, "", "", {})
        last = self.events[at]
        return Peak(most, last.operation, self._storages[last.storage].place, parts)

    def own(self, part: str, tensors: Iterable[Tensor]) -> None:
        """The storages of these are such a part, from their beginning on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            found = self._known.get(storage._cdata)
            number = found[0] if found is not None else self._begun(storage, "before", "", part)
            self._owners[number] = part

    @contextmanager
    def of_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
        """While this is open, every step of these tells which storages are gradients and which the optimizer's."""

        def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            self.own("gradients", (weight.grad for weight in weights if weight.grad is not None))

        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            values = (value for state in optimizer.state.values() for value in state.values())
            self.own("optimizer", (value for value in values if isinstance(value, Tensor)))

        handles = [one.register_step_pre_hook(before) for one in optimizers]
        handles += [one.register_step_post_hook(after) for one in optimizers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # --- what is seen -----------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and a wrapper that says so would cost as much as an operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return func(*args)
        given = kwargs or {}
        self._seen += 1
        if self._told is not None and self._seen % TOLD_EVERY == 0:
            self._told(self._seen)
        self._replaced = None
        self._operation, makes = _read(func)
        result = func(*args, **given)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            known = self._known.get(storage._cdata)
            if known is not None:
                if known[1] != storage.nbytes():  # resized where it is
                    self._ended(storage._cdata)
                    self._begun(storage, *self._where(tensor))
            elif makes:
                self._begun(storage, *self._where(tensor))
                if func in SUMS and _asked_by_engine():
                    old = self._known.get(args[0].untyped_storage()._cdata)
                    self._replaced = (old[0], len(self.events) - 1) if old is not None else None
        if (workspace := self._rooms.get(func)) is not None and (size := workspace(args, given, result)):
            self._passing(size)
        return result

    def _where(self, tensor: Tensor) -> tuple[str, str, str]:
        place = _place()
        file = place.partition(" ")[0]
        part = "optimizer" if file.startswith("optim/") else OF_FILES.get(file, "activations")
        return self._operation, place, "batch" if part == "activations" and tensor.dtype in _INDEX_TYPES else part

    def _begun(self, storage: Any, operation: str, place: str, part: str) -> int:
        number, size, address = len(self._storages), storage.nbytes(), storage._cdata
        self._storages.append(_Storage(place, part))
        self._known[address] = number, size, weakref.ref(storage, lambda _: self._ended(address))
        if size:
            self.events.append(Event(size, number, operation))
        return number

    def _ended(self, address: int) -> None:
        number, size, _ = self._known.pop(address)
        if not size:
            return
        event = Event(-size, number, self._operation)
        if self._replaced is not None and self._replaced[0] == number:  # the sum would lie where this lay
            self.events.insert(self._replaced[1], event)
            self._replaced = None
        else:
            self.events.append(event)

    def _passing(self, size: int) -> None:
        """Memory that the operation takes for itself and gives back at its end."""
        number, operation = len(self._storages), f"room of {self._operation}"
        self._storages.append(_Storage(_place(), "workspaces"))
        self.events += [Event(size, number, operation), Event(-size, number, operation)]


@cache
def _read(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether its results are new: not where they are its arguments or lie in them."""
    lies_in = any(result.alias_info is not None for result in func._schema.returns)
    return str(func.overloadpacket), not lies_in or func is aten.lift_fresh.default


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for one in result:
            yield from _tensors(one)


@cache
def _told(code: CodeType) -> str | None:
    """File and function; None for torch's own and for what watches."""
    path = Path(code.co_filename).as_posix()
    if "/torch/" in path or path.endswith(("nn/tally.py", "nn/fake.py")):
        return None
    return f"{'/'.join(path.split('/')[-2:])} {code.co_qualname}"


def _place() -> str:
    """Who asked for the operation."""
    frame = sys._getframe(1)
    while frame is not None:
        if (told := _told(frame.f_code)) is not None:
            return told
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@cache
def _is_plumbing(code: CodeType) -> bool:
    path = Path(code.co_filename).as_posix()
    return any(part in path for part in _PLUMBING)


def _asked_by_engine() -> bool:
    """Whether autograd's engine asked for the operation, and no function of Python's that it called."""
    frame = sys._getframe(1)
    while frame is not None and _is_plumbing(frame.f_code):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
