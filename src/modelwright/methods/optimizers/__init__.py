"""Optimizers: how a gradient becomes a step. One file a kind; what torch has is torch's, where it is right.

Rates that fall from the head to the embeddings (`layer_decay`) are given to the groups here, for every kind alike. Source: Clark
et al. 2020, ELECTRA, arXiv:2003.10555, appendix B; the exponents are those of BEiT, Bao et al. 2022, arXiv:2106.08254.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.memory.weights import Weight
from modelwright.core.spec import Kinds, Spec

OPTIMIZERS = Kinds(__name__, f"{__name__}:Optimizer")

Named = Sequence[tuple[str, Any]]
"""Weights with the names that the model gives them."""


class Rates(NamedTuple):
    """Peak learning rates that were published to work; what is far from them has to have a reason."""

    low: float
    high: float
    source: str
    most_params: float = math.inf
    """Of models of at most so many weights."""

    def scaled(self, low: float, high: float, source: str) -> Rates:
        """The same for an optimizer whose rates are told beside another's."""
        return Rates(self.low * low, self.high * high, f"{source}; {self.source}", self.most_params)


ADAMW_NEW = (Rates(6e-5, 6e-4, "GPT-3, arXiv:2005.14165, table 2.1: 6e-4 for 125M weights to 6e-5 for 175B"),)
ADAMW_TUNED = (
    Rates(2e-5, 1e-3, "BERT, arXiv:1810.04805, appendix A.3: 2e-5 to 5e-5; SmolLM2-360M, alignment-handbook: 1e-3", 0.6e9),
    Rates(1e-5, 3e-4, "InstructGPT, arXiv:2203.02155, appendix C: 9.65e-6 for 1.3B; SmolLM2-1.7B, alignment-handbook: 3e-4", 3e9),
    Rates(2e-6, 2e-5, "Tulu 3, arXiv:2411.15124: 2e-6 for 70B, 5e-6 for 8B; Zephyr-7B, alignment-handbook: 2e-5"),
)


class Optimizer(Spec):
    """Builds torch optimizers over named parameters. A kind writes `make`."""

    state_bytes_per_param: ClassVar[float]
    """For the planner: of a matrix of a layer, where it depends on the weight."""
    elementwise: ClassVar[bool] = False
    """A value's step depends on that value's gradients alone: then processes may each keep a part of a weight."""
    weightwise: ClassVar[bool] = False
    """A weight's step depends on that weight and its gradients alone, as where it is `elementwise`: then it can be made while
    others have no gradient yet, and by one process for all that hold a part of the weight."""
    averages: ClassVar[bool] = False
    """It keeps an average of the weights that is to be evaluated and saved: then a rate that decays and a second average are
    one too many."""
    rates_new: ClassVar[tuple[Rates, ...]] = ()
    """Published values of `lr` where a model begins with first weights, those of small models first. Empty: none are known."""
    rates_tuned: ClassVar[tuple[Rates, ...]] = ()
    """Likewise where all weights of a trained model go on; an adapter's and an objective's `rate_factor` come on top."""

    layer_decay: float = Field(1.0, gt=0, le=1, examples=[0.5])
    """Factor of the rate from each layer to the one below it: layer i of n, from 0, steps with `layer_decay ** (n - i)` of the
    rate, what is above the layers with all of it, the embeddings (a head tied to them, too) with one power more than layer 0.
    Lower keeps what the first layers learned before. 1: all alike; ELECTRA tunes with 0.8 to 0.9."""

    def build(self, named: Iterable[tuple[str, Any]]) -> list[Any]:
        """Optimizers whose groups carry `initial_lr`; the loop multiplies it by the schedule's factor."""
        named = list(named)
        built = self.make(named)
        if self.layer_decay != 1:
            scales = layer_scales([name for name, _ in named], self.layer_decay)
            by_weight = {id(parameter): scales[name] for name, parameter in named}
            for optimizer in built:
                optimizer.param_groups = [part for group in optimizer.param_groups for part in _by_scale(group, by_weight)]
        return built

    def make(self, named: Named) -> list[Any]:
        """Optimizers over these weights, with one peak rate for all layers."""
        raise NotImplementedError

    def state_bytes(self, weight: Weight) -> float:
        """Kept between steps for one tensor of this shape."""
        return self.state_bytes_per_param * weight.values

    def step_bytes(self, weights: Sequence[Weight], card: bool) -> float:
        """Most that a step over these needs beside weights, gradients and states; `card`: not on a processor, where what works
        value by value goes through a weight in pieces. Default: nothing, as torch's fused kernels."""
        return 0.0

    def step_flops(self, shape: Shape) -> float:
        """Matrix products of one step, for the planner; 0 for optimizers that work element by element."""
        return 0.0


PIECE = 1 << 17
"""Values worked on at once on a processor (`nn/optim`)."""


def largest(weights: Iterable[Weight]) -> int:
    """Values of the largest of these tensors."""
    return max((weight.values for weight in weights), default=0)


def piece(weights: Sequence[Weight], card: bool) -> int:
    """Values of the largest of them that are worked on at once."""
    return largest(weights) if card else min(PIECE, largest(weights))


def is_hidden_matrix(name: str, parameter: Any) -> bool:
    """A matrix inside a layer: neither the embeddings nor the head, by the names that transformers gives them."""
    return parameter.ndim == 2 and not is_embedding(name) and "lm_head" not in name


def is_embedding(name: str) -> bool:
    """A table that is looked up: of tokens, of positions or, in T5, of distances."""
    return any(part in name for part in ("embed", "wte", "wpe", "shared.weight", "relative_attention_bias"))


def decay_groups(named: Named, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices with decay, vectors (norms, biases) without."""
    matrices = [parameter for _, parameter in named if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in named if parameter.ndim < 2]
    found = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": group, "lr": lr, "initial_lr": lr, "weight_decay": decay} for group, decay in found if group]


_LAYER = re.compile(r"(.*?)\.(\d+)\.")
"""`model.layers.3.` of a name; an expert's number comes after it."""


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """Name -> factor of the rate."""
    found = {name: _LAYER.match(name) for name in names}
    stacks = sorted({match[1] for match in found.values() if match})
    if len(stacks) != 1:
        raise UserError(
            f"`layer_decay` needs one stack of numbered layers, and what is trained has {', '.join(stacks) or 'none'}",
            "it makes the rate fall from layer to layer",
            "leave `layer_decay` out",
        )
    layers = 1 + max(int(match[2]) for match in found.values() if match)

    def place(name: str) -> int:
        if match := found[name]:
            return int(match[2])
        return -1 if is_embedding(name) else layers

    return {name: decay ** (layers - place(name)) for name in names}


def _by_scale(group: dict[str, Any], scales: Mapping[int, float]) -> list[dict[str, Any]]:
    """The group, cut into those of one rate each."""
    parts: dict[float, list[Any]] = {}
    for parameter in group["params"]:
        parts.setdefault(scales[id(parameter)], []).append(parameter)
    return [
        {**group, "params": parameters, **{rate: group[rate] * scale for rate in ("lr", "initial_lr")}}
        for scale, parameters in sorted(parts.items())
    ]
