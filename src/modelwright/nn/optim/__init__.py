"""Optimizers that torch lacks or does slowly, a file each, nearly all over one loop, whose states load with the very bits saved.

What a step needs beside the states is small: one weight at a time, and where the arithmetic allows it a piece of one, which also
stays in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from modelwright.nn.device import on_processor

CPU_PIECE = 1 << 17
"""Values worked on at once on a processor: half a megabyte of each tensor."""


class Weightwise(torch.optim.Optimizer):
    """Steps one weight after the other."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no line search here"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """One step of one weight; the gradient is left as it is."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch would turn every state into the type of its weight, codes of 8 bits too."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        fill(self, state_dict, lambda value, device: value.to(device))


def fill(optimizer: torch.optim.Optimizer, stored: dict[str, Any], place: Callable[[Tensor, torch.device], Tensor]) -> None:
    """Take up the stored states of the weights as they are, each tensor where `place` puts it for the weight's device."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    for parameter, index in zip(own, indices, strict=True):
        if index in stored["state"]:
            optimizer.state[parameter] = {
                name: place(value, parameter.device) if isinstance(value, Tensor) else value
                for name, value in stored["state"][index].items()
            }


def pieces(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The same part of each of these tensors of one shape, flat, part after part; elsewhere than on a processor, all at once."""
    first = tensors[0]
    if not on_processor(first) or not all(tensor.is_contiguous() for tensor in tensors):
        yield list(tensors)
        return
    flat = [tensor.view(-1) for tensor in tensors]
    for begin in range(0, first.numel(), CPU_PIECE):
        yield [tensor[begin : begin + CPU_PIECE] for tensor in flat]


def adam_direction(gradient: Tensor, state: dict[str, Any], beta1: float, beta2: float, eps: float) -> Tensor:
    """Adam's bias-corrected mean over root of mean square. Kingma and Ba 2015, arXiv:1412.6980, algorithm 1."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] += 1
    correct1, correct2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    found = torch.empty_like(gradient)
    for direction, slope, mean, square in pieces(found, gradient, state["mean"], state["square"]):
        mean.lerp_(slope, 1 - beta1)
        square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        torch.div(mean, square.div(correct2).sqrt_().add_(eps), out=direction).div_(correct1)
    return found
