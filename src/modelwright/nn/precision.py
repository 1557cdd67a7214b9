"""In what type matrix products run on a device, and why; what is fast there is measured once and remembered.

bfloat16 is taken where products in it are faster than in float32, never where they are emulated. float16 with scaled losses
(`nn/scaling.py`) is for cards before Ampere, which have no bfloat16. float8 is torchao's dynamic scaling by tensor
(https://github.com/pytorch/ao/tree/main/torchao/float8, after Micikevicius et al. 2022, "FP8 Formats for Deep Learning",
arXiv:2209.05433), on cards from capability 8.9 on (Ada, Hopper); it has not been run.
"""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import nn

from modelwright.core import rates
from modelwright.core.errors import UserError
from modelwright.nn import cards
from modelwright.nn import device as devices
from modelwright.nn.model import has_bf16
from modelwright.nn.rate import measured

GAIN = 1.1
"""Products in bfloat16 are fast where they are so many times as fast as in float32; less is noise."""
FLOAT8 = (8, 9)
"""First compute capability with products in float8."""
MULTIPLE = 16
"""Sides of matrices that float8 kernels multiply are multiples of this."""


class Numbers(NamedTuple):
    """How products run."""

    dtype: torch.dtype
    why: str
    """For a note; '' where it is what the recipe says."""
    scaling: bool = False
    fp8: bool = False
    """Linear layers of the model multiply in float8, the rest in `dtype`."""


def numbers(precision: str, device: torch.device) -> Numbers:
    """For `auto`, `fp32`, `bf16`, `fp16` or `fp8`; UserError for what the device must not or cannot do."""
    if precision == "fp32":
        return Numbers(torch.float32, "")
    if precision == "fp16":
        if device.type == "cpu":
            raise UserError(
                "`precision: fp16` is for graphics cards",
                "processors have no fast products in float16, and its range is small",
                "write `precision: bf16`, or `device: cuda` on a machine with a card",
            )
        return Numbers(torch.float16, "", scaling=True)
    if precision == "fp8":
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8:
            raise UserError(
                "`precision: fp8` needs a card with products in float8",
                f"this is {devices.name_of(device)}; Ada, Hopper and later have them",
                "write `precision: bf16`",
            )
        _torchao()
        return Numbers(torch.bfloat16, "", fp8=True)
    fast, why = fast_bf16(device)
    if fast:
        return Numbers(torch.bfloat16, "" if precision == "bf16" else why)
    if precision == "auto" and device.type == "cuda":
        return Numbers(torch.float16, f"{why}: they run in float16, with scaled losses", scaling=True)
    return Numbers(torch.float32, f"{why}: they run in float32, more exact and faster here")


def fast_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether products in bfloat16 are faster than in float32 there, and what says so."""
    if device.type == "cpu" and not has_bf16():
        return False, "this processor has no bf16 products (AVX512-BF16 or AMX)"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < cards.AMPERE:
        return False, f"{devices.name_of(device)} has no bf16 products"
    found = _remembered(device)
    gain = found["bf16"] / found["fp32"]
    return gain >= GAIN, f"products in bf16 are {gain:.2f} times as fast as in float32 on this {device.type}"


def _remembered(device: torch.device) -> dict[str, float]:
    """FLOP/s in `fp32` and `bf16`, measured when first asked on a machine."""
    cpu = device.type == "cpu"
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine()) if cpu else devices.name_of(device)
    key = f"{name} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    known = rates.known()
    if key not in known:
        found = {"fp32": measured(torch.float32, device), "bf16": measured(torch.bfloat16, device)}
        known[key] = {kind: float(f"{rate:.4g}") for kind, rate in found.items()}
        rates.remember(key, known[key])
    return known[key]


def _torchao() -> Any:
    try:
        return import_module("torchao.float8")
    except ImportError:
        raise UserError("`precision: fp8` needs torchao", "it is not installed", "pip install 'modelwright[gpu]'") from None


def in_float8(model: nn.Module) -> list[str]:
    """Let the model's linear layers multiply in float8; names of those that do. Weights stay float32 under their names."""
    taken: list[str] = []

    def fits(module: nn.Module, name: str) -> bool:
        # the head is multiplied chunk by chunk with the loss (`nn/logps.py`), not by its module
        good = type(module) is nn.Linear and module is not head and not any(side % MULTIPLE for side in module.weight.shape)
        if good:
            taken.append(name)
        return good

    head = model.get_output_embeddings()  # type: ignore[operator]
    _torchao().convert_to_float8_training(model, module_filter_fn=fits)
    if not taken:
        raise UserError(
            "no layer of this model can multiply in float8",
            f"sides of its matrices are no multiples of {MULTIPLE}",
            "write `precision: bf16`",
        )
    return taken
