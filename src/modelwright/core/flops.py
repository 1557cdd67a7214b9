"""Useful FLOPs of training, and the share of the machine that they reach (MFU).

Model FLOPs utilization as in Chowdhery et al. 2022, arXiv:2204.02311, appendix B, with two differences: attention is counted as a
causal model needs it (half), and logits only where the loss looks. What an implementation computes beyond that (recomputed
activations, padding, masked halves) is not useful and not counted.
"""

from __future__ import annotations

from modelwright.core.estimate import Shape


def forward_flops_per_token(
    shape: Shape, context_tokens: float, target_frac: float, causal: bool = True, whole_last_layer: bool = False
) -> float:
    """FLOPs of one token on its way through the model, where the loss looks at a share of the tokens.

    One layer of weights `w`, attention width `a = heads * head_dim` and a token that has `context_tokens` in its document
    (mean over tokens, so `sum(l^2) / sum(l)` over lengths `l`): `2 w + 2 a context_tokens`, the second term being
    `4 a l` per token halved because a token sees only those before it (`causal`). Of experts, those that a token goes to
    count. In the last layer, only keys and values are needed where no loss looks; `whole_last_layer`: all of it is computed all
    the same. The head, and what an encoder has before it: `2 (vocab hidden + extra) target_frac`.
    """
    if shape.decoder_layers:
        return _read_and_written(shape, context_tokens, target_frac)
    head_dim = shape.head_dim or shape.hidden // shape.heads
    width, keys = head_dim * shape.heads, head_dim * shape.kv_heads
    mlp = 3 * shape.intermediate * (shape.experts_per_token if shape.experts else 1) + shape.experts  # the router's column each
    layer = 2.0 * shape.hidden * (2 * width + 2 * keys + mlp) + (2.0 if causal else 4.0) * width * context_tokens
    keys_and_values = 4.0 * shape.hidden * keys
    unseen = 0.0 if whole_last_layer else (1 - target_frac) * (layer - keys_and_values)
    return shape.layers * layer - unseen + 2.0 * (shape.vocab * shape.hidden + shape.extra) * target_frac


def _read_and_written(shape: Shape, context_tokens: float, written_frac: float) -> float:
    """The same of an encoder-decoder: a token is read by the encoder, which looks both ways, and gives keys and values to every
    layer of the decoder; or it is written by the decoder, which looks back and at what was read."""
    width, mlp = (shape.head_dim or shape.hidden // shape.heads) * shape.heads, 3 * shape.intermediate
    looks = 4.0 * width * context_tokens
    read = shape.layers * (2.0 * shape.hidden * (4 * width + mlp) + looks) + shape.decoder_layers * 4.0 * shape.hidden * width
    layer = 2.0 * shape.hidden * (6 * width + mlp) + (1 - written_frac) * looks + written_frac * looks / 2
    write = shape.decoder_layers * layer + 2.0 * shape.vocab * shape.hidden
    return (1 - written_frac) * read + written_frac * write


def training_flops_per_token(
    shape: Shape, context_tokens: float, target_frac: float, adapter_params: float | None, causal: bool = True
) -> float:
    """FLOPs that one token of training needs.

    Backward is twice forward where all weights are trained (`adapter_params` None: three passes in all), and as much as
    forward where they are frozen (two), plus 6 for each weight of the adapter.
    """
    forward = forward_flops_per_token(shape, context_tokens, target_frac, causal)
    return 3 * forward if adapter_params is None else 2 * forward + 6.0 * adapter_params


def mfu(tokens_per_s: float, flops_per_token: float, matrix_flops_per_s: float) -> float:
    """Share of the machine's rate of matrix products that useful work reaches, 0 to 1."""
    return tokens_per_s * flops_per_token / matrix_flops_per_s
