"""Memory that operations take for as long as they run, on a processor and on a card: no result tells of it.

Found with `torch.profiler` (`profile_memory`) on torch 2.13: oneDNN sums products in 16 bits up in float32, in room of its own as
large as the result (of one matrix of a batch); where the processor multiplies bfloat16 in hardware (AVX512-BF16), each thread
has blocks of the sides and of the sums, of about 0.1 to 1 MB whatever the product's size. What works element by element, or sums,
first copies what has another type. A graphics card's kernels do neither; flash attention's backward pass (`mha_varlen_bwd` in
https://github.com/Dao-AILab/flash-attention/blob/main/csrc/flash_attn/flash_api.cpp, which torch has a copy of) sums up gradients
of queries in float32, and those of keys and values for every head that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelwright.core import processor
from modelwright.core.memory.kernels import block_bytes, flash_bytes
from modelwright.nn import varlen

aten = torch.ops.aten

ALIGNED_BYTES = 128
"""What oneDNN asks for beyond its room."""
_HALF = (torch.bfloat16, torch.float16)

Workspace = Callable[[Sequence[Any], Mapping[str, Any], Any], int]
"""(arguments, keyword arguments, result) of an operation -> bytes that it takes meanwhile."""


def _product(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    if result.dtype not in _HALF:
        return 0
    if result.dtype == torch.bfloat16 and processor.here().half:
        left = [one for one in args if isinstance(one, Tensor)][-2]
        rows, inner = left.shape[-2:]
        return block_bytes(rows, inner, left.stride(-1) != 1) * torch.get_num_threads()
    return int(4 * result.shape[-2] * result.shape[-1]) + ALIGNED_BYTES


def _by_element(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    tensors = [one for one in args if isinstance(one, Tensor) and one.ndim and one.is_floating_point()]
    if len({one.dtype for one in tensors}) < 2:
        return 0
    wide = max(one.element_size() for one in tensors)
    return sum(wide * one.numel() for one in tensors if one.element_size() < wide)


def _sum(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    given: Tensor = args[0]
    if not given.is_floating_point() or given.dtype == result.dtype:
        return 0
    return int(given.numel() * result.element_size())


_PRODUCTS = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default, aten.bmm.default, aten.baddbmm.default)
_BY_ELEMENT = (
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor, aten.mul.Tensor, aten.mul_.Tensor),
    *(aten.div.Tensor, aten.div_.Tensor, aten.addcmul.default, aten.addcmul_.default, aten.where.self),
)
_SUMS = (aten.sum.dim_IntList, aten.sum.default, aten.mean.dim)

WORKSPACES: dict[Any, Workspace] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_BY_ELEMENT, _by_element),
    **dict.fromkeys(_SUMS, _sum),
}


def _flash_backward(args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    _, query_THC, key_LKC, _, _, _, ask = args[:7]
    (tokens, heads, width), kv_heads = query_THC.shape, key_LKC.shape[1]
    return round(flash_bytes(tokens, len(ask) - 1, heads, width, len(key_LKC) if kv_heads < heads else 0))


def card_workspaces() -> dict[Any, Workspace]:
    """What `WORKSPACES` is for a processor, of a card."""
    if varlen.kernel() is None:
        return {}
    return {torch.ops.torch_attn._varlen_attn_backward.default: _flash_backward}
