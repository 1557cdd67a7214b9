"""Gradients that are added where they lie, inside the matrix product that makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from modelwright.core.memory.kernels import SLICE_BYTES
from modelwright.nn.device import on_processor


def begun(weight: Tensor) -> Tensor:
    """The weight's gradient, to be added to; zeros where there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def add(parameter: Tensor | None, grad: Tensor) -> None:
    """Add to `.grad`; the first gradient becomes it."""
    if parameter is None or not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = grad.to(parameter.dtype)
    else:
        parameter.grad += grad


def add_product(weight: Tensor, grad_TO: Tensor, input_TI: Tensor) -> None:
    """Add grad^T input to the weight's gradient: beside it, a copy of a head's would cost as much memory as the vocabulary. Where
    the product is of another type than the gradient it is made in slices, which are added while they are in the cache."""
    if not weight.requires_grad:
        return
    if grad_TO.dtype == weight.dtype:
        if weight.grad is None:
            weight.grad = grad_TO.t() @ input_TI
        else:
            weight.grad.addmm_(grad_TO.t(), input_TI)
        return
    found, rows = begun(weight), len(weight)
    if on_processor(weight):
        rows = max(1, SLICE_BYTES // (weight.element_size() * weight.shape[1]))
    for start in range(0, len(weight), rows):
        found[start : start + rows] += grad_TO[:, start : start + rows].t() @ input_TI
