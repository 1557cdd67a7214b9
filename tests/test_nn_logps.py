"""Log-probabilities where the loss needs them: torch's own numbers, gradients too, however they are cut into chunks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelwright.nn.logps import Policy, chunks

T, D, V, N = 12, 16, 50, 9


def parts(bias: bool = False) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    position = torch.tensor([0, 1, 1, 4, 5, 6, 9, 10, 11])  # two targets share a position, as the first of two answers do
    return torch.randn(T, D, requires_grad=True), nn.Linear(D, V, bias=bias), position, torch.randint(0, V, (N,)), torch.rand(N)


def truth(hidden: torch.Tensor, head: nn.Linear, position: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return head(hidden)[position].float().log_softmax(-1).gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("chunk_bytes", [1, 4 * V * 4, 1 << 30])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("way", ["nll", "logps"])
def test_values_and_gradients(way: str, frozen: bool, bias: bool, chunk_bytes: int) -> None:
    hidden, head, position, target, weight = parts(bias)
    head.requires_grad_(not frozen)
    expected = -(weight * truth(hidden, head, position, target)).sum() * 0.7
    expected.backward()
    wanted = [hidden.grad, *(p.grad for p in head.parameters())]
    hidden.grad = None
    head.zero_grad()
    policy = Policy(hidden, position, target, head, torch.float32, chunk_bytes)
    found = policy.nll(weight * 0.7) if way == "nll" else -(weight * policy.logps()).sum() * 0.7
    found.backward()
    assert torch.allclose(found, expected, atol=1e-5)
    for ours, theirs in zip([hidden.grad, *(p.grad for p in head.parameters())], wanted, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-5)


def test_gradients_add_up() -> None:
    hidden, head, position, target, weight = parts()
    for _ in range(2):
        Policy(hidden, position, target, head, torch.float32).nll(weight).backward()
    twice = head.weight.grad.clone()
    head.zero_grad()
    Policy(hidden, position, target, head, torch.float32).nll(weight).backward()
    assert torch.allclose(twice, 2 * head.weight.grad, atol=1e-5)


def test_a_factor_after_the_fact_is_refused() -> None:
    hidden, head, position, target, weight = parts()
    with pytest.raises(AssertionError, match="weights"):
        (Policy(hidden, position, target, head, torch.float32).nll(weight) * 2).backward()


def test_nothing_is_kept_without_gradients() -> None:
    hidden, head, position, target, weight = parts()
    with torch.no_grad():
        policy = Policy(hidden, position, target, head, torch.float32)
        assert torch.allclose(policy.nll(weight), -(weight * policy.logps()).sum(), atol=1e-5)
    assert head.weight.grad is None


def test_softmax_is_float32_under_bf16() -> None:
    hidden, head, position, target, _ = parts()
    half = Policy(hidden, position, target, head, torch.bfloat16).logps()
    assert half.dtype == torch.float32
    logits = (hidden[position].bfloat16() @ head.weight.bfloat16().t()).float()
    assert torch.allclose(half, logits.log_softmax(-1).gather(1, target[:, None])[:, 0], atol=1e-6)


def test_chunks_cover_everything_once() -> None:
    for positions in (0, 1, 5, 100):
        for chunk_bytes in (1, 4 * V * 7, 1 << 30):
            covered = [i for part in chunks(positions, V, chunk_bytes) for i in range(positions)[part]]
            assert covered == list(range(positions))
