"""The weights of a decoder's layers, found in transformers' modules and called by one set of names; nothing is copied.

What one family has and another has not (norms of heads, norms behind a part, windows, another activation) is data: `FAMILIES`.
Each is the forward pass of transformers' modelling file of that `model_type`.
"""

# Shape suffixes: T packed tokens, I inputs of a linear layer, O outputs, R rank of an adapter.

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from modelwright.nn.fused import Pieces
from modelwright.nn.gradients import add, add_product


class Activation(NamedTuple):
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient, input) -> the input's gradient."""


ACTIVATIONS = {
    "silu": Activation(silu, torch.ops.aten.silu_backward),
    "gelu_pytorch_tanh": Activation(partial(gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")),
}
"""By their names in configurations."""

LINEAR = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Field of `Block` -> a linear layer's place in a layer."""
NORMS = {"norm_in": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
HEAD_NORMS = {"norm_query": "self_attn.q_norm", "norm_key": "self_attn.k_norm"}
OUTER_NORMS = {
    "norm_attended": "post_attention_layernorm",
    "norm_mlp": "pre_feedforward_layernorm",
    "norm_out": "post_feedforward_layernorm",
}


class Family(NamedTuple):
    """How a `model_type` differs from Llama: names of attributes in transformers' modules, '' for what it has not."""

    norms: dict[str, str] = NORMS
    """Field of `Block` -> the norm's place in a layer."""
    eps: str = "variance_epsilon"
    """The norm's small number."""
    offset: float = 0.0
    """Norms multiply with this plus their weight."""
    activation: str = "hidden_act"
    """In the configuration."""
    window: str = ""
    """In an attention module: tokens that its queries see."""
    turns: str = ""
    """In an attention module: which rotary frequencies it takes, where there are several."""
    embedding: str = "Embedding"
    """Class of the table of embeddings."""
    scale: str = ""
    """In the table: what embeddings are multiplied with."""


FAMILIES = {
    "llama": Family(),
    "mistral": Family(window="config.sliding_window"),
    "qwen2": Family(window="sliding_window"),
    "qwen3": Family(NORMS | HEAD_NORMS, window="sliding_window"),
    "gemma3_text": Family(
        NORMS | HEAD_NORMS | OUTER_NORMS,
        eps="eps",
        offset=1.0,
        activation="hidden_activation",
        window="sliding_window",
        turns="layer_type",
        embedding="Gemma3TextScaledWordEmbedding",
        scale="scalar_embed_scale",
    ),
}
"""Values of `model_type` whose blocks are the ones computed here."""


class Norm(NamedTuple):
    weight: nn.Parameter
    eps: float
    offset: float = 0.0
    fused: Pieces | None = None

    def gain(self) -> Tensor:
        return self.weight + self.offset if self.offset else self.weight


class Projection(NamedTuple):
    """A linear layer, with LoRA's two matrices beside it where there are some."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    """[R, I]"""
    up: Tensor | None = None
    """[O, R]"""
    scale: float = 1.0

    @staticmethod
    def of(module: Any) -> Projection | None:
        """None for a layer that computes something else: quantised, DoRA, dropout, several adapters or merged ones."""
        if type(module) is nn.Linear:
            return Projection(module.weight, module.bias)
        peft: Any = sys.modules.get("peft.tuners.lora.layer")
        if peft is None or type(module) is not peft.Linear:
            return None
        base, active = module.base_layer, list(module.active_adapters)
        if type(base) is not nn.Linear or len(active) != 1 or module.merged or module.disable_adapters or module.lora_variant:
            return None
        name = active[0]
        down, up = module.lora_A[name], module.lora_B[name]
        if not isinstance(module.lora_dropout[name], nn.Identity) or down.bias is not None or up.bias is not None:
            return None
        return Projection(base.weight, base.bias, down.weight, up.weight, module.scaling[name])

    def __call__(self, input_TI: Tensor) -> Tensor:
        """[T, O]"""
        dtype = input_TI.dtype
        weight = self.weight.to(dtype)
        out_TO = input_TI @ weight.t() if self.bias is None else torch.addmm(self.bias.to(dtype), input_TI, weight.t())
        if self.down is not None and self.up is not None:
            out_TO.addmm_(input_TI @ self.down.to(dtype).t(), self.up.to(dtype).t(), alpha=self.scale)
        return out_TO

    def backward(self, grad_TO: Tensor, input_TI: Tensor, onto_TI: Tensor | None = None) -> Tensor:
        """Add the weights' gradients to theirs; returns the input's, added to `onto_TI` where that is given."""
        weight = self.weight.to(grad_TO.dtype)
        grad_TI = grad_TO @ weight if onto_TI is None else onto_TI.addmm_(grad_TO, weight)
        add_product(self.weight, grad_TO, input_TI)
        if self.bias is not None:
            add(self.bias, grad_TO.sum(0, dtype=torch.float32))
        if self.down is not None and self.up is not None:
            down = self.down.to(grad_TO.dtype)
            grad_TR = (grad_TO @ self.up.to(grad_TO.dtype)).mul_(self.scale)
            add_product(self.up, grad_TO, (input_TI @ down.t()).mul_(self.scale))
            add_product(self.down, grad_TR, input_TI)
            grad_TI.addmm_(grad_TR, down)
        return grad_TI


class Block(NamedTuple):
    """The weights of one layer, as transformers holds them, and what else its attention needs."""

    query: Projection
    key: Projection
    value: Projection
    out: Projection
    gate: Projection
    up: Projection
    down: Projection
    activation: Activation
    window: int | None
    turns: str
    norm_in: Norm
    norm_mlp: Norm
    norm_query: Norm | None = None
    norm_key: Norm | None = None
    norm_attended: Norm | None = None
    """Of what attention adds to the stream."""
    norm_out: Norm | None = None
    """Of what the MLP adds to the stream."""
    fused: Pieces | None = None
    """Kernels that compute what lies between products (`nn/fused.py`); None: one operation after the other."""
    sum: Callable[[Tensor], Tensor] = lambda part: part
    """Over the processes that share the layer, where there are some: of what it adds to the stream, and of gradients of what it
    reads."""


def norm_of(module: Any, family: Family, fused: Pieces | None) -> Norm:
    return Norm(module.weight, getattr(module, family.eps), family.offset, fused)


def block_of(layer: Any, family: Family, activation: Activation, fused: Pieces | None) -> Block | None:
    attention = layer.self_attn
    linear: dict[str, Any] = {field: Projection.of(layer.get_submodule(place)) for field, place in LINEAR.items()}
    if not all(linear.values()):
        return None
    window = attrgetter(family.window)(attention) if family.window else None
    turns = getattr(attention, family.turns) if family.turns else ""
    norms: dict[str, Any] = {field: norm_of(layer.get_submodule(place), family, fused) for field, place in family.norms.items()}
    return Block(activation=activation, window=window, turns=turns, fused=fused, **linear, **norms)
