"""What lies between products, as kernels: the same numbers as the operations of torch that they take the place of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelwright.nn import forward
from modelwright.nn.blocks import ACTIVATIONS, Norm

pieces = pytest.importorskip("modelwright.nn._pieces", exc_type=ImportError)

TYPES = [torch.float32, torch.bfloat16]
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 6e-3}
"""Relative to the norm."""
SIZES = [(1, 16), (37, 24), (700, 64)]
"""Tokens and width: less than a chunk, odd, and several chunks."""


def drawn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    return float((found.double() - wanted.double()).norm().detach() / wanted.double().norm().detach()) < ALLOWED[dtype]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_norms_and_their_slopes(dtype: torch.dtype, size: tuple[int, int], offset: float) -> None:
    x_TD, grad_TD = drawn(*size), drawn(*size, dtype=dtype).flip(0)
    found = []
    for fused in (None, pieces.PIECES):
        norm = Norm(nn.Parameter(drawn(size[1])), 1e-5, offset, fused)
        scale_T1 = forward._scale(x_TD, norm)
        normed_TD = forward._normed(x_TD, scale_T1, norm, dtype)
        slope_TD = forward._norm_backward(grad_TD, x_TD, scale_T1, norm)
        found.append((scale_T1, normed_TD, slope_TD, norm.weight.grad))
    for (plain, own), kind in zip(zip(*found, strict=True), (torch.float32, dtype, torch.float32, torch.float32), strict=True):
        assert own.dtype == plain.dtype and own.shape == plain.shape and near(own, plain, kind)


@pytest.mark.parametrize("dtype", TYPES)
def test_rotation(dtype: torch.dtype) -> None:
    x_THC, turn = drawn(37, 3, 16, dtype=dtype), drawn(37, 1, 8, dtype=dtype)
    cos_T1C, sin_T1C = (torch.cat([part, part], -1) for part in (turn.cos(), turn.sin()))
    wanted = forward._rotate(*(part.float() for part in (x_THC, cos_T1C, sin_T1C)), None)
    assert near(forward._rotate(x_THC, cos_T1C, sin_T1C, pieces.PIECES), wanted, dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_gates_and_their_slopes(dtype: torch.dtype, name: str) -> None:
    activation = ACTIVATIONS[name]
    gate, up, grad = (drawn(700, 24, dtype=dtype).roll(shift) * 4 for shift in range(3))
    wide = [part.float() for part in (gate, up, grad)]
    active = activation.forward(wide[0])
    assert near(pieces.gated(activation.forward, gate, up), active * wide[1], dtype)
    of_gate, of_up = pieces.gate_slopes(activation.forward, activation.backward, grad, gate, up)
    assert near(of_gate, activation.backward(wide[2] * wide[1], wide[0]), dtype) and near(of_up, wide[2] * active, dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_with_the_stream(dtype: torch.dtype) -> None:
    x_TD, part_TD = drawn(700, 24), drawn(700, 24, dtype=dtype).flip(0)
    assert torch.equal(pieces.added(x_TD, part_TD), x_TD + part_TD)


def test_rows_that_do_not_lie_side_by_side_are_read_rightly() -> None:
    x_TD, part_DT = drawn(700, 24), drawn(24, 700)
    assert torch.equal(pieces.added(x_TD, part_DT.t()), x_TD + part_DT.t())
    turned_TD = x_TD.t().contiguous().t()
    scale_T1 = pieces.scale(x_TD, 1e-5)
    assert torch.equal(pieces.scale(turned_TD, 1e-5), scale_T1)
    assert torch.equal(*(pieces.normed(one, scale_T1, x_TD[0], torch.float32) for one in (x_TD, turned_TD)))
    assert torch.equal(*(pieces.slope(one, one, scale_T1, x_TD[0])[0] for one in (x_TD, turned_TD)))
    silu = ACTIVATIONS["silu"]
    assert torch.equal(*(pieces.gated(silu.forward, one, one) for one in (x_TD, turned_TD)))
    assert torch.equal(*(pieces.gate_slopes(silu.forward, silu.backward, one, one, x_TD)[1] for one in (x_TD, turned_TD)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_seen(value: float) -> None:
    """In a gate, in what goes through it and in the stream."""
    broken = drawn(40, 24)
    broken[7, 3] = value
    other, activation = drawn(40, 24).flip(0), ACTIVATIONS["silu"]
    made: list[Any] = [pieces.added(broken, other), pieces.gated(activation.forward, other, broken)]
    made += pieces.gate_slopes(activation.forward, activation.backward, broken, other, other)
    if math.isnan(value):
        made += [pieces.gated(activation.forward, broken, other), pieces.scale(broken, 1e-5)]
    assert all(not one[7].isfinite().all() for one in made)


@pytest.mark.parametrize("dtype", TYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    x_TD, grad_TD, gain_D = drawn(2000, 64), drawn(2000, 64, dtype=dtype), drawn(64)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(pieces.slope(grad_TD, x_TD, pieces.scale(x_TD, 1e-5), gain_D))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for some in found for one, other in zip(some, found[0], strict=True))
