"""The cheap parts of our own forward pass, each one kernel by torch.compile: norms, rotary positions, the gate of the MLP.

Source: Ansel et al. 2024, "PyTorch 2", doi:10.1145/3620665.3640366. Matrix products, attention and the loss are library calls or
walks over chunks that a compiler could not improve; what lies between them reads and writes memory several times, which pays to
fuse where memory is slow beside products: on graphics cards (not measured yet). On a processor our own kernels do it
(`nn/_pieces.py`); this compiler's take 20 to 40 s to make. The number of tokens is a variable of every kernel, so that a resumed
training runs the same ones; sums are in another order than without, hence rounding.
"""

# Shape suffixes: T packed tokens (heads may follow), D width, I width of the MLP.

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelwright.nn.device import on_processor

BACKEND = "inductor"
"""torch.compile's own."""


class Pieces(NamedTuple):
    """The same results as the pieces of `nn/forward.py` that have these names."""

    added: Callable[[Tensor, Tensor], Tensor]
    """(stream, what is added to it) -> their sum in the stream's type."""
    scale: Callable[[Tensor, float], Tensor]
    """(rows, epsilon) -> [T, 1] 1 / root mean square."""
    normed: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
    """(rows, their scale, gain, type) -> rows in this type."""
    slope: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(gradient, rows, their scale, gain) -> gradients of the rows and of the gain."""
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(rows, cosines, sines) -> rows."""
    gated: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]
    """(activation, gate, up) -> their product."""
    gate_slopes: Callable[..., tuple[Tensor, Tensor]]
    """(activation, its derivative, gradient, gate, up) -> gradients of gate and up."""


def _scale(x_TD: Tensor, eps: float) -> Tensor:
    return (x_TD.square().mean(-1, keepdim=True) + eps).rsqrt()


def _normed(x_TD: Tensor, scale_T1: Tensor, gain_D: Tensor, dtype: torch.dtype) -> Tensor:
    return (x_TD * scale_T1 * gain_D).to(dtype)


def _slope(grad_TD: Tensor, x_TD: Tensor, scale_T1: Tensor, gain_D: Tensor) -> tuple[Tensor, Tensor]:
    hat_TD = x_TD * scale_T1
    gain_grad_D = (grad_TD * hat_TD).flatten(0, -2).sum(0)
    grad_TD = grad_TD * gain_D
    return (grad_TD - hat_TD * (grad_TD * hat_TD).mean(-1, keepdim=True)) * scale_T1, gain_grad_D


def _rotate(x_TD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    half = x_TD.shape[-1] // 2
    first, second = x_TD[..., :half], x_TD[..., half:]
    cos, sin = cos_T1D[..., :half], sin_T1D[..., :half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _gated(activation: Callable[[Tensor], Tensor], gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    return activation(gate_TI) * up_TI


def _gate_slopes(
    activation: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor, Tensor], Tensor],
    grad_TI: Tensor,
    gate_TI: Tensor,
    up_TI: Tensor,
) -> tuple[Tensor, Tensor]:
    return derivative(grad_TI * up_TI, gate_TI), grad_TI * activation(gate_TI)


def _compiled(piece: Callable[..., Any], backend: str) -> Callable[..., Any]:
    kernel = torch.compile(piece, backend=backend)

    def run(*given: Any) -> Any:
        for one in given:
            if isinstance(one, Tensor) and one.ndim > 1:
                torch._dynamo.maybe_mark_dynamic(one, 0)
        return kernel(*given)

    return run


@cache
def pieces(backend: str) -> Pieces:
    """Compiled when each is first called with tensors of a kind."""
    made = (_compiled(piece, backend) for piece in (_scale, _normed, _slope, _rotate, _gated, _gate_slopes))
    return Pieces(torch.add, *made)  # one operation: there is nothing to fuse


_CHOSEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def choose(model: nn.Module) -> None:
    """From now on our forward pass runs this transformers model in fused pieces."""
    _CHOSEN.add(model)


@cache
def _for_processors() -> Pieces | None:
    """Kernels of our own; None without numba."""
    try:
        found: Pieces = import_module("modelwright.nn._pieces").PIECES
    except ImportError:
        return None
    return found


def of(model: nn.Module) -> Pieces | None:
    if model in _CHOSEN:
        return pieces(BACKEND)
    weight = next(model.parameters())
    return _for_processors() if on_processor(weight) and weight.dtype == torch.float32 else None
