"""The law of use for what trains: architectures, adapters, objectives, optimizers, schedules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelwright.core.stage import Shape
from modelwright.methods.objectives import Batch
from tests.law_kit import Seen, Subject

VOCAB, TOKENS = 90, 12


def _ids(seed: int, count: int = TOKENS) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def see_architecture(spec: Any, bench: Any) -> Seen:
    """What a fresh model answers, which depends on every size and every weight."""
    from modelwright.nn.model import build

    torch.manual_seed(0)
    model = build(spec.config(VOCAB, 64)).eval()
    spec.initialise(model)
    with torch.no_grad():
        logits_TV = model(input_ids=_ids(0)[None]).logits[0]
    return Seen(logits_TV[:, :5], effort=spec.shape(VOCAB).model_dump())


ARCHITECTURES = Subject(
    see_architecture,
    bases={
        "llama": {"depth": 2, "hidden": 64, "heads": 4},
        "llama.hidden": {"hidden": ...},
    },
)


def see_adapter(spec: Any, bench: Any) -> Seen:
    """Log-probabilities of a wrapped model in training mode, through the forward pass that training uses."""
    from modelwright.nn import model as models
    from modelwright.nn.attention import Layout, Segment

    torch.manual_seed(0)
    model, _ = models.load(bench.model)
    models.packed(model)
    model = spec.wrap(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():  # a fresh adapter changes nothing
            torch.nn.init.normal_(parameter, std=0.05)
    torch.manual_seed(1)
    ids_T = _ids(2)
    logps_N = (
        models.Trunk(model.train())
        .policy(ids_T, Layout([Segment(0, TOKENS)]), torch.arange(TOKENS - 1), ids_T[1:], torch.float32)
        .logps()
    )
    shape = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, vocab=VOCAB)
    return Seen([logps_N, sum(p.numel() for p in trained.values())], effort=spec.trainable_params(shape))


ADAPTERS = Subject(see_adapter)


class Toy(NamedTuple):
    """A policy of which only the log-probabilities are known."""

    logp_N: Tensor

    def nll(self, weight_N: Tensor) -> Tensor:
        return -(weight_N * self.logp_N).sum()

    def logps(self) -> Tensor:
        return self.logp_N


def see_objective(spec: Any, bench: Any) -> Seen:
    """The loss of two pairs and its gradient."""
    draw = torch.Generator().manual_seed(0)
    segment_N = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    logp_N = -torch.rand(10, generator=draw) * 3
    batch = Batch(
        target_N=torch.arange(10),
        weight_N=torch.ones(10),
        segment_N=segment_N,
        segments=4,
        chosen_P=torch.tensor([0, 2]),
        rejected_P=torch.tensor([1, 3]),
        reference_N=-torch.rand(10, generator=draw) * 3,
    )
    logp_N.requires_grad_()
    loss = spec.loss(Toy(logp_N), batch)
    loss.total.backward()
    return Seen([loss.total, loss.weight, logp_N.grad])


OBJECTIVES = Subject(see_objective)


def see_optimizer(spec: Any, bench: Any) -> Seen:
    """Weights after three steps, among them an embedding, a matrix of a layer and a norm."""
    torch.manual_seed(0)
    named = [(name, torch.nn.Parameter(torch.randn(*sizes) * 0.5)) for name, sizes in _SIZES.items()]
    built = spec.build(named)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter)
        for optimizer in built:
            optimizer.step()
    return Seen([parameter for _, parameter in named], effort=spec.state_bytes_per_param)


_SIZES = {"model.embed_tokens.weight": (9, 4), "model.layers.0.mlp.up_proj.weight": (6, 4), "model.norm.weight": (4,)}
OPTIMIZERS = Subject(see_optimizer)


def see_schedule(spec: Any, bench: Any) -> Seen:
    return Seen([spec.factor(step, 100) for step in range(100)])


SCHEDULES = Subject(see_schedule)
