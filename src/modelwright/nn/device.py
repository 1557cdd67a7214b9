"""Where a model is trained: the processor, a CUDA card or Apple's GPU (mps). What differs between them is asked for here.

mps follows https://docs.pytorch.org/docs/stable/notes/mps.html and has not been run: no float64, no collectives.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelwright.core.errors import UserError
from modelwright.nn import cards


class Chosen(NamedTuple):
    device: torch.device
    why: str
    """For a note."""


class Card(NamedTuple):
    """A card that is not here, for which tensors without values stand in."""

    flash: bool
    """It has torch's flash attention."""


_STANDS_FOR: ContextVar[Card | None] = ContextVar("stands_for", default=None)


@contextmanager
def standing_for(card: Card | None) -> Iterator[None]:
    """While this is open, what lies in the processor's memory stands for what would lie in a card's: kernels are chosen as there.
    None: it stands for itself."""
    token = _STANDS_FOR.set(card)
    try:
        yield
    finally:
        _STANDS_FOR.reset(token)


def imagined() -> Card | None:
    """For which tensors stand now."""
    return _STANDS_FOR.get()


def on_processor(tensor: Tensor) -> bool:
    """Whether a processor's kernels are for this."""
    return tensor.device.type == "cpu" and _STANDS_FOR.get() is None


def choose(wanted: str, processes: int = 1) -> Chosen:
    """The device for `auto`, `cpu`, `cuda` or `mps`; UserError for one that is not there. `processes`: that train together."""
    chosen = _choose(wanted, processes)
    os.environ.setdefault("DS_ACCELERATOR", chosen.device.type)  # DeepSpeed, where it is installed, would guess, and say so
    return chosen


def _choose(wanted: str, processes: int) -> Chosen:
    found = {"cpu": "", "cuda": _cuda_lacks(), "mps": _mps_lacks(processes)} if wanted != "cpu" else {"cpu": ""}
    if wanted == "auto":
        kind = next(name for name in ("cuda", "mps", "cpu") if not found[name])
        told = [name for name in ("cuda", "mps") if name != "mps" or sys.platform == "darwin"]  # elsewhere nobody expects one
        lacks = "; ".join(f"no {name}: {found[name]}" for name in told if found[name] and kind == "cpu")
        return Chosen(torch.device(kind), f"`device: auto`{f' ({lacks})' if lacks else ''}")
    if found[wanted]:
        raise UserError(
            f"`device: {wanted}` cannot be used here", found[wanted], "write `device: auto`, and see `modelwright doctor`"
        )
    return Chosen(torch.device(wanted), f"`device: {wanted}`")


def _cuda_lacks() -> str:
    """Why training cannot run on a CUDA card here; '' where it can."""
    if not torch.cuda.is_available():
        return cards.told()
    if torch.version.cuda is None or cards.runs_on(torch.cuda.get_device_capability(), torch.cuda.get_arch_list()):
        return ""
    return cards.told()


def _mps_lacks(processes: int) -> str:
    if not torch.backends.mps.is_available():
        return "this is no Mac with a GPU that torch can use"
    return "" if processes == 1 else "processes cannot exchange what lies there"


def of(model: Any) -> torch.device:
    """Where a model's weights are."""
    device: torch.device = next(model.parameters()).device
    return device


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, dtype: torch.dtype, weights: torch.dtype) -> torch.autocast:
    """Products in `dtype` by weights of another type; off where they are the same."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != weights)


def random_state(device: torch.device) -> Tensor:
    """Bytes of torch's generator, and behind them those of the device's own, where it has one."""
    if device.type == "cuda":
        return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state(device)])
    if device.type == "mps":
        return torch.cat([torch.get_rng_state(), torch.mps.get_rng_state()])
    return torch.get_rng_state()


def restore_random(device: torch.device, state: Tensor) -> None:
    """The reverse. A state of a device of another sort has nothing for this one's generator, which then stays as it is."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    own = state[size:]
    if device.type == "cuda" and len(own) == len(torch.cuda.get_rng_state(device)):
        torch.cuda.set_rng_state(own, device)
    if device.type == "mps" and len(own) == len(torch.mps.get_rng_state()):
        torch.mps.set_rng_state(own)


def synchronise(device: torch.device) -> None:
    """Until all that was asked of it is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that this process held there, weights and all; what it holds now on mps, which keeps no peak; None on a
    processor, whose memory is the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def no_memory(error: BaseException) -> bool:
    """Whether memory was asked for that is not there; torch has no class of its own for a processor's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; to a CUDA card while the work before it still runs."""
    if device.type == "cpu":
        return tensor
    if device.type == "mps" and tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
