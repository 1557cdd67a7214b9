"""Log-probabilities where the loss needs them: torch's own numbers, gradients too, however they are cut into chunks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelwright.core import processor
from modelwright.core.memory.kernels import How, loss_bytes
from modelwright.nn.logps import Head, LowRank, Policy, chunks

T, D, V, N, R = 12, 16, 50, 9, 3
EXACT = {torch.float32: 1e-5, torch.float64: 1e-9}


class Case:
    """Hidden states, a head of some kind, targets and weights; and what torch makes of them with all logits at once."""

    def __init__(self, kind: str = "plain", dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        # two targets share a position, as the first of two answers do
        self.position = torch.tensor([0, 1, 1, 4, 5, 6, 9, 10, 11])
        self.hidden = torch.randn(T, D, dtype=dtype, requires_grad=True)
        self.weight, self.bias = (nn.Parameter(torch.randn(*sizes, dtype=dtype)) for sizes in ((V, D), (V,)))
        self.down, self.up = (nn.Parameter(torch.randn(*sizes, dtype=dtype)) for sizes in ((R, D), (V, R)))
        self.target, self.weights = torch.randint(0, V, (N,)), torch.rand(N)
        self.dtype, self.cap = dtype, 3.0 if "cap" in kind else None
        for table in (self.weight, self.bias):
            table.requires_grad_("frozen" not in kind)
        low_rank = LowRank(self.down, self.up, 0.7, nn.Identity()) if "lora" in kind else None
        self.head = Head(self.weight, self.bias if "bias" in kind else None, low_rank, self.cap)

    def policy(self, chunk_bytes: int = 1 << 30) -> Policy:
        return Policy(self.hidden, self.position, self.target, self.head, self.dtype, chunk_bytes)

    def logits(self, temperature: float = 1.0) -> Tensor:
        """[N, V] by the definitions."""
        logits = self.hidden[self.position] @ self.weight.t()
        if self.head.low_rank is not None:
            logits = logits + 0.7 * (self.hidden[self.position] @ self.down.t() @ self.up.t())
        logits = logits if self.head.bias is None else logits + self.bias
        logits = logits if self.cap is None else self.cap * (logits / self.cap).tanh()
        return logits / temperature

    def gradients(self, make: Callable[[], Tensor]) -> list[Tensor]:
        """The loss, and its gradients by everything that learns; zeros where it does not depend on it."""
        leaves = [self.hidden, self.weight, self.bias, self.down, self.up]
        for leaf in leaves:
            leaf.grad = None
        loss = make()  # part of its gradients are there already
        loss.backward()
        return [loss.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def truth_loss(case: Case) -> Tensor:
    """torch's own smoothing; the z-loss by its formula."""
    logits = case.logits()
    each = cross_entropy(logits, case.target, reduction="none", label_smoothing=0.2) + 0.03 * logits.logsumexp(-1).square()
    return (case.weights * each).sum()


IDS = torch.randint(0, V, (N, 4), generator=torch.Generator().manual_seed(5))
MIX = torch.randn(N, 4, generator=torch.Generator().manual_seed(6))
WAYS: dict[str, tuple[Callable[[Case, Policy], Tensor], Callable[[Case], Tensor]]] = {
    "nll": (
        lambda case, policy: policy.nll(case.weights),
        lambda case: (case.weights * cross_entropy(case.logits(), case.target, reduction="none")).sum(),
    ),
    "smoothing and z": (
        lambda case, policy: policy.cross_entropy(case.weights, 0.2, 0.03).total,
        truth_loss,
    ),
    "logps": (
        lambda case, policy: -(case.weights * policy.logps()).sum(),
        lambda case: (case.weights * cross_entropy(case.logits(), case.target, reduction="none")).sum(),
    ),
    "warm logps": (
        lambda case, policy: -(case.weights * policy.logps(1.7)).sum(),
        lambda case: (case.weights * cross_entropy(case.logits(1.7), case.target, reduction="none")).sum(),
    ),
    "at": (
        lambda case, policy: (MIX * policy.at(IDS, 0.6)).sum(),
        lambda case: (MIX * case.logits(0.6).log_softmax(-1).gather(1, IDS)).sum(),
    ),
    "entropies": (
        lambda case, policy: (case.weights * policy.entropies(1.3)).sum(),
        lambda case: (case.weights * torch.distributions.Categorical(logits=case.logits(1.3)).entropy()).sum(),
    ),
}
HEADS = ["plain", "bias", "frozen", "frozen bias", "cap", "frozen cap", "lora frozen", "lora bias cap", "lora frozen bias cap"]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("chunk_bytes", [1, 4 * V * 4, 1 << 30])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients(way: str, kind: str, chunk_bytes: int, dtype: torch.dtype) -> None:
    case = Case(kind, dtype)
    ours, theirs = WAYS[way]
    wanted = case.gradients(lambda: theirs(case))
    found = case.gradients(lambda: ours(case, case.policy(chunk_bytes)))
    for mine, truth in zip(found, wanted, strict=True):
        assert mine.dtype == dtype and float((mine - truth).abs().max()) <= EXACT[dtype] * max(1.0, float(truth.abs().max()))
    assert "frozen" not in kind or case.weight.grad is None is case.bias.grad


def test_the_parts_of_the_loss_are_told() -> None:
    case = Case("cap")
    found = case.policy(300).cross_entropy(case.weights, 0.2, 0.03)
    assert torch.allclose(
        found.nll, (case.weights * cross_entropy(case.logits(), case.target, reduction="none")).sum(), atol=1e-5
    )
    assert torch.allclose(found.z, 0.03 * (case.weights * case.logits().logsumexp(-1).square()).sum(), atol=1e-5)
    assert not found.nll.requires_grad and not found.z.requires_grad and found.total.requires_grad
    plain = case.policy(300).cross_entropy(case.weights)
    assert torch.equal(plain.total, plain.nll) and float(plain.z) == 0


@pytest.mark.parametrize("kind", ["bias", "lora bias cap"])
def test_the_likeliest_tokens(kind: str) -> None:
    case = Case(kind)
    found = case.policy(300).top(5, 0.8)
    wanted = case.logits(0.8).log_softmax(-1).topk(5, 1)
    assert torch.equal(found.id_NK, wanted.indices) and torch.allclose(found.logp_NK, wanted.values, atol=1e-5)
    assert torch.allclose(case.policy().at(found.id_NK, 0.8), found.logp_NK, atol=1e-5)
    assert not found.logp_NK.requires_grad and case.weight.grad is None
    nowhere = Policy(case.hidden, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), case.head, torch.float32)
    assert nowhere.top(5).id_NK.shape == (*nowhere.at(IDS[:0]).shape[:1], 5) and nowhere.nll(torch.zeros(0)).item() == 0


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation gives."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.most = max([self.most, *sizes])
        return found


@pytest.mark.parametrize("kind", ["plain", "frozen", "lora bias cap"])
@pytest.mark.parametrize("way", [*WAYS, "top"])
def test_full_logits_are_never_made(way: str, kind: str) -> None:
    """Forward and backward: nothing is larger than the head itself, with many more positions than it is wide."""
    torch.manual_seed(0)
    case = Case(kind)
    many = 40 * D
    case.hidden = torch.randn(many, D, requires_grad=True)
    case.position, case.target, case.weights = torch.arange(many), torch.randint(0, V, (many,)), torch.rand(many)
    policy = case.policy(4 * V * 8)
    with Largest() as largest:
        if way == "top":
            policy.top(3)
        elif way == "at":
            policy.at(IDS[:1].expand(many, 4)).sum().backward()
        else:
            WAYS[way][0](case, policy).backward()
    assert V * 8 <= largest.most <= many * D < many * V, largest.most


MEASURE = """
import sys, torch
from pathlib import Path
from modelwright.nn.logps import Head, Policy
vocab, width, positions, dtype = *map(int, sys.argv[1:4]), getattr(torch, sys.argv[4])
head = Head(torch.randn(vocab, width, requires_grad=True))
head.weight.grad = torch.zeros_like(head.weight)
hidden = torch.randn(positions, width, requires_grad=True)
def loss(some):
    policy = Policy(hidden, torch.arange(some), torch.zeros(some, dtype=torch.long), head, dtype)
    policy.nll(torch.ones(some)).backward()
    # of this program alone: `getrusage` begins with what the one that started it had
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line) * 1024
torch.set_num_threads(1)
print(-loss(1) + loss(positions))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count this memory otherwise")
@pytest.mark.parametrize(("dtype", "positions"), [("float32", 400), ("float32", 40), ("bfloat16", 400)])
def test_the_plan_knows_the_memory_of_the_loss(dtype: str, positions: int) -> None:
    """With a vocabulary whose chunks are larger than usual: 192 positions."""
    command = [sys.executable, "-c", MEASURE, "49152", "64", str(positions), dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    measured = float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    found = loss_bytes(49152, 64, positions, How(dtype == "bfloat16", processor=processor.here()))
    planned = max(found.making, found.back)
    library = 24e6  # workspaces of matrix products, and pages that the allocator rounds to
    assert 0.4 * planned < measured < 1.1 * planned + library, f"{measured / 1e6:.0f} MB, planned {planned / 1e6:.0f}"


def test_dropout_beside_the_head_is_drawn_once() -> None:
    """One policy sees one draw, whatever is asked of it; its gradient goes through the same one."""
    case = Case("lora frozen")
    assert case.head.low_rank is not None
    case.head = case.head._replace(low_rank=case.head.low_rank._replace(dropout=nn.Dropout(0.5)))
    policy = case.policy()
    assert torch.equal(policy.at(case.target[:, None])[:, 0], policy.logps()) and not torch.equal(
        policy.logps(), case.policy().logps()
    )
    torch.manual_seed(3)
    wanted_low = nn.functional.dropout(case.hidden[case.position], 0.5) @ case.down.t() * 0.7
    logits = case.hidden[case.position] @ case.weight.t() + wanted_low @ case.up.t()
    wanted = case.gradients(logits.log_softmax(-1)[:, 3].sum)
    torch.manual_seed(3)
    found = case.gradients(lambda: case.policy().at(torch.full((N, 1), 3)).sum())
    assert all(torch.allclose(mine, truth, atol=1e-5) for mine, truth in zip(found, wanted, strict=True))


def test_gradients_add_up() -> None:
    case = Case("bias")
    for _ in range(2):
        case.policy().nll(case.weights).backward()
    assert case.weight.grad is not None and case.bias.grad is not None
    twice = [case.weight.grad.clone(), case.bias.grad.clone()]
    case.weight.grad = case.bias.grad = None
    case.policy().nll(case.weights).backward()
    assert torch.allclose(twice[0], 2 * case.weight.grad, atol=1e-5) and torch.allclose(twice[1], 2 * case.bias.grad, atol=1e-5)


def test_a_factor_after_the_fact_is_refused() -> None:
    case = Case()
    with pytest.raises(AssertionError, match="weights"):
        (case.policy().nll(case.weights) * 2).backward()


def test_nothing_is_kept_without_gradients() -> None:
    case = Case("lora bias")
    with torch.no_grad():
        assert torch.allclose(case.policy().nll(case.weights), -(case.weights * case.policy().logps()).sum(), atol=1e-5)
    assert case.weight.grad is None is case.up.grad


def test_softmax_is_float32_under_bf16() -> None:
    case = Case()
    half = Policy(case.hidden, case.position, case.target, case.head, torch.bfloat16).logps()
    assert half.dtype == torch.float32
    logits = (case.hidden[case.position].bfloat16() @ case.weight.bfloat16().t()).float()
    assert torch.allclose(half, logits.log_softmax(-1).gather(1, case.target[:, None])[:, 0], atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_under_bf16_stay_close(way: str) -> None:
    case = Case("lora bias cap")
    ours, theirs = WAYS[way]
    wanted = case.gradients(lambda: theirs(case))
    half = (case.hidden, case.position, case.target, case.head, torch.bfloat16, 4 * V * 4)
    for mine, truth in zip(case.gradients(lambda: ours(case, Policy(*half))), wanted, strict=True):
        assert float((mine - truth).norm()) < 0.05 * float(truth.norm())


def test_chunks_cover_everything_once() -> None:
    for positions in (0, 1, 5, 100):
        for chunk_bytes in (1, 4 * V * 7, 1 << 30):
            covered = [i for part in chunks(positions, V, chunk_bytes) for i in range(positions)[part]]
            assert covered == list(range(positions))
