"""Attention of packed documents as one kernel: the same numbers and gradients as the formula in float64."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from modelwright.core.memory.kernels import scratch_bytes
from modelwright.nn.attention import Layout, Segment, by_document, plain, together

many = pytest.importorskip("modelwright.nn._attend_many", reason="for processors with AVX-512", exc_type=ImportError)

LENGTHS = [1, 2, 3, 64, 65, 7, 100, 129, 33]
"""On both sides of a block of 64 queries and of one of 96 keys, odd and even."""
TYPES = [torch.float32] + [torch.bfloat16] * many.HAS_HALF
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
"""Relative to the norm: rounding of sums, and of 8 bits."""


def formula(query_THC: Tensor, key_TKC: Tensor, value_TKC: Tensor, window: int | None, both: bool) -> Tensor:
    outs, start = [], 0
    for length in LENGTHS:
        at_L = torch.arange(length)
        seen_LL = torch.full((length, length), True) if both else at_L[None] <= at_L[:, None]
        if window is not None:
            seen_LL = seen_LL & ((at_L[None] - at_L[:, None]).abs() < window)
        parts = (part[start : start + length].transpose(0, 1)[None] for part in (query_THC, key_TKC, value_TKC))
        outs.append(scaled_dot_product_attention(*parts, attn_mask=seen_LL, enable_gqa=True, scale=0.3)[0].transpose(0, 1))
        start += length
    return torch.cat(outs)


def drawn(dtype: torch.dtype, heads: int, kv_heads: int, width: int, tokens: int = sum(LENGTHS)) -> list[Tensor]:
    draw = torch.Generator().manual_seed(heads + width)
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(tokens, size, width, generator=draw).to(dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize(("window", "both"), [(None, False), (None, True), (20, False), (33, True)])
@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_and_gradients(dtype: torch.dtype, width: int, window: int | None, both: bool) -> None:
    for heads, kv_heads in ((6, 2), (2, 2)):
        given = drawn(dtype, heads, kv_heads, width)
        grad_THC = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        wide = [part.detach().double().requires_grad_() for part in given]
        wanted = formula(*wide, window, both)
        found = many.attended(*given, LENGTHS, 0.3, window, both)
        pairs = [(found, wanted)]
        pairs += zip(
            torch.autograd.grad(found, given, grad_THC), torch.autograd.grad(wanted, wide, grad_THC.double()), strict=True
        )
        for mine, right in pairs:
            assert float((mine.double() - right).norm().detach() / right.norm().detach()) < ALLOWED[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_document_is_the_same_bits_beside_others_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    given = drawn(dtype, 6, 2, 32)
    whole = many.attended(*given, LENGTHS, None)
    gradients = torch.autograd.grad(whole.float().sum(), given)
    before, threads = sum(LENGTHS[:4]), torch.get_num_threads()
    part = slice(before, before + LENGTHS[4])
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        alone = [one[part].detach().requires_grad_() for one in given]
        found = many.attended(*alone, [LENGTHS[4]], None)
        assert torch.equal(found, whole[part])
        for mine, all_of_it in zip(torch.autograd.grad(found.float().sum(), alone), gradients, strict=True):
            assert torch.equal(mine, all_of_it[part])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_number_is_seen(dtype: torch.dtype, place: int) -> None:
    """A broken weight must not vanish in a softmax."""
    given = [part.detach() for part in drawn(dtype, 2, 2, 16, 70)]
    given[place][30, 0, 3] = math.nan
    broken_T = many.attended(*given, [70], None).isnan().any(-1)[:, 0]
    assert broken_T[30] and (place == 0 or broken_T[30:].all())
    assert place == 2 or not broken_T[:30].any()  # zero times a broken value is none, in its block


def test_large_scores_do_not_overflow() -> None:
    given = [part.detach() * 100 for part in drawn(torch.float32, 2, 2, 16, 150)]
    wanted = by_document(*given, Layout([Segment(0, 150)]), None, lambda *of: plain(*of, 1.0))
    assert torch.allclose(many.attended(*given, [150], 1.0), wanted, atol=1e-3)


def test_what_it_does_not_take() -> None:
    branched = Layout([Segment(0, 4), Segment(4, 6, 0), Segment(6, 9, 0)])
    given = [part.detach() for part in drawn(torch.float32, 2, 2, 16, 9)]
    assert together(*given, branched, None, None) is None
    assert together(*given, Layout([Segment(0, 9)]), None, None) is not None
    narrow, exact = [part[..., :8] for part in given], [part.double() for part in given]
    assert all(together(*some, Layout([Segment(0, 9)]), None, None) is None for some in (narrow, exact))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_plan_knows_its_scratch_memory(dtype: torch.dtype) -> None:
    half, per = dtype == torch.bfloat16, 2 if dtype == torch.bfloat16 else 1
    for longest, width in ((1, 16), (64, 64), (333, 80), (2000, 128)):
        assert scratch_bytes(longest, width, half) == -(-many._backward_bytes(longest, width, per) // 64) * 64


@pytest.mark.skipif(not many.HAS_HALF, reason="products in bfloat16")
def test_what_autocast_leaves_of_several_types_runs_in_its_own() -> None:
    """transformers' rotary positions leave queries and keys in float32 there, and values in bfloat16."""
    given = [part.detach() for part in drawn(torch.float32, 4, 2, 32)]
    given[2] = given[2].bfloat16()
    layout = Layout(
        [Segment(start, start + length) for start, length in zip(accumulate([0, *LENGTHS[:-1]]), LENGTHS, strict=True)]
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = together(*given, layout, 0.3, None)
        wanted = by_document(*given, layout, None, lambda *parts: plain(*parts, scaling=0.3))
    assert found is not None and found.dtype == wanted.dtype == torch.bfloat16
    assert float((found - wanted).float().norm() / wanted.float().norm()) < ALLOWED[torch.bfloat16]


def test_it_is_computed_again_where_layers_are() -> None:
    given = drawn(torch.float32, 4, 2, 32)
    once = many.attended(*given, LENGTHS, 0.3)
    again = checkpoint(many.attended, *given, LENGTHS, 0.3, use_reentrant=False)
    wanted, found = (torch.autograd.grad(out.square().sum(), given) for out in (once, again))
    assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
