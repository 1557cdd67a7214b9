"""What the architectures share: how the dial gives sizes, how a width splits into heads, and first weights that are noise.

Starting weights: normal with std 0.02, and 0.02 / sqrt(2 * layers) for the projections that add to the residual stream (Radford
et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3).
"""

from __future__ import annotations

from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape

INIT_STD = 0.02


def up_to(value: float, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -int(-value // multiple) * multiple


def width_and_heads(depth: int, hidden: int | None, heads: int | None) -> tuple[int, int]:
    """What is unset follows the dial: 64 of width for each layer, a head for each 64 of width."""
    width = hidden or 64 * depth
    return width, heads or max(1, width // 64)


def half_of(heads: int) -> int:
    """Two query heads for each key/value head, where they come in pairs."""
    return heads // 2 if heads % 2 == 0 else heads


def check_heads(heads: int, kv_heads: int, head_dim: int) -> None:
    """UserError where rotary positions or grouped-query attention could not be."""
    if head_dim % 2:
        raise UserError(f"a head cannot be {head_dim} wide", "rotary positions need pairs", "choose an even `head_dim`")
    if heads % kv_heads:
        raise UserError(
            f"{heads} heads cannot share {kv_heads} key/value heads evenly", fix="choose `kv_heads` that divides `heads`"
        )


def check_split(hidden: int, heads: int) -> None:
    """UserError where the width is no multiple of the number of heads."""
    if hidden % heads:
        raise UserError(
            f"a width of {hidden} does not split into {heads} heads",
            "transformers refuses such a configuration",
            "choose `hidden` as a multiple of `heads`",
        )


def check_even_split(hidden: int, heads: int) -> None:
    """UserError where the width does not split into heads that rotary positions can turn."""
    if hidden % (2 * heads):
        raise UserError(
            f"a width of {hidden} does not split into {heads} heads of an even width",
            "rotary positions need pairs",
            "choose `hidden` as a multiple of twice `heads`",
        )


def rope(theta: float) -> dict[str, Any]:
    """Rotary positions with this base, as transformers' configurations say it."""
    return {"rope_type": "default", "rope_theta": theta}


def common(shape: Shape, context: int) -> dict[str, Any]:
    """What every configuration here says of these sizes, in transformers' words."""
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": context,
        "initializer_range": INIT_STD,
    }


def decoder(shape: Shape, context: int) -> dict[str, Any]:
    """What every decoder's configuration says."""
    return {**common(shape, context), "num_key_value_heads": shape.kv_heads, "tie_word_embeddings": shape.tied}


def noise(model: Any, smaller: tuple[str, ...] = ("o_proj", "down_proj"), cut: bool = False) -> None:
    """Every matrix drawn anew in place; norms and biases stay as they are. `smaller`: the matrices that add to the residual
    stream and so start smaller with depth. `cut`: nothing lies further out than two deviations."""
    import torch

    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            std = INIT_STD / (2 * layers) ** 0.5 if name.removesuffix(".weight").endswith(smaller) else INIT_STD
            if cut:
                torch.nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)
            else:
                parameter.normal_(0.0, std)
