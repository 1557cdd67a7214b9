"""How long tokens take on their way through a transformer on a processor: products, what is no product, and calls.

Fitted to processor seconds of one thread on a Xeon at 2.5 GHz with AVX-512 (the machine of docs/benchmarks.md): nine trainings
of 1 to 7 million weights, 2 to 10 layers and widths of 128 to 448 (benchmarks/plan_time.yaml with fewer steps), of which the
steps of each came out within 14 %, and a prompt of SmolLM-135M's shape (`engine_vs_transformers`). `plan/calibrate.py` corrects
what differs.
"""

from __future__ import annotations

from typing import NamedTuple

from modelwright.core.estimate import Machine, Shape
from modelwright.core.flops import forward_flops_per_token
from modelwright.core.memory.kernels import flash_takes
from modelwright.core.memory.weights import head_width

REACHED_FRAC = 0.5
"""`Machine.flops_per_s`, which whole trainings reach, over the rate of products alone: 55 of 110 GFLOP/s a core. The rest of the
time is what is counted here by itself."""
THIN = 20.0
"""Width at which products reach half of that rate."""
SCORE_S, SCORED = 6e-9, 600.0
"""Of one core: softmax and mask of one query and key of a head, in each pass. Beyond so many keys the kernel leaves out most of
what the mask hides."""
LOGIT_S = 2e-9
"""Of one core: softmax of one logit, in each pass."""
DOCUMENT_S = 0.6e-3
"""Calls of a layer's attention to one document, in each pass; no second core helps."""
LAYER_S = 2e-3
"""Calls of a layer for tokens that are computed together, in each pass; no second core helps."""
CARD_DOCUMENT_S, CARD_LAYER_S = 1e-4, 4e-4
"""The same where a card computes, assumed: its host issues kernels, each in about 10 microseconds, and the card waits where they
are shorter. With flash attention all documents are one call (`nn/varlen.py`)."""


class Passed(NamedTuple):
    """Seconds."""

    products_s: float
    moved_s: float
    """Attention's scores and the loss's logits, through memory."""
    called_s: float


def products_s(flops: float, width: int, machine: Machine, precision: str = "fp32") -> float:
    """Of so many FLOPs in matrices about as wide as the model. A card's rate has everything in it already."""
    share = REACHED_FRAC * (1 + THIN / width) if machine.device == "cpu" else 1.0
    return flops / machine.products(precision)[1] * share


def passed(
    shape: Shape,
    machine: Machine,
    tokens: float,
    row_tokens: float,
    at_once: float,
    *,
    passes: float = 1.0,
    target_frac: float = 1.0,
    precision: str = "fp32",
    whole_last_layer: bool = False,
    added_flops: float = 0.0,
) -> Passed:
    """So many passes of `tokens` in rows of `row_tokens`, `at_once` of them together, where the loss looks at `target_frac` of
    them and takes `added_flops` for each beside the head's."""
    forward = forward_flops_per_token(shape, min(row_tokens, 512), target_frac, whole_last_layer=whole_last_layer)
    flops = tokens * passes * (forward + added_flops * target_frac)
    layers, card = shape.layers + shape.decoder_layers, machine.device != "cpu"
    document_s, layer_s = (CARD_DOCUMENT_S, CARD_LAYER_S) if card else (DOCUMENT_S, LAYER_S)
    half, width = machine.products(precision)[0] != "fp32", head_width(shape)
    if machine.flash and half and flash_takes(width) and not shape.decoder_layers:
        document_s = 0.0  # one kernel attends in all documents
    calls = passes * (tokens / row_tokens * layers * document_s + tokens / at_once * (layers + 1) * layer_s)
    products = products_s(flops, shape.hidden, machine, precision)
    if card:
        return Passed(products, 0.0, max(calls / machine.devices - products, 0.0))
    moved = layers * shape.heads * min(row_tokens, SCORED) * SCORE_S + target_frac * shape.vocab * LOGIT_S
    return Passed(products, tokens * passes * moved / max(machine.cores, 1), calls)


# --- answers ----------------------------------------------------------------------------------------------

THIN_TOKEN = 3.0
"""Products of a token that is written take so many times as long as of one that is read: they have one row a sequence."""
CONTEXT = 128.0
"""Tokens that a written one looks back at, where nobody knows: they matter little."""
SEQUENCES = 32
TOKEN_S, TOKEN_LAYER_S = 1.2e-4, 0.3e-4
"""Of one core: a token written, among so many sequences: choosing it, and each layer's calls and what it reads of the sequence's
keys and values. Measured: 15,188 tokens of a model of 2.6M weights and 4 layers, 0.38 ms each; of SmolLM-135M's shape 5.4 ms on
two cores."""


def written_s(shape: Shape, machine: Machine, tokens: float) -> float:
    """Seconds that `tokens` of answers take in a batch, beside reading their prompts."""
    flops = THIN_TOKEN * tokens * forward_flops_per_token(shape, CONTEXT, 1.0)
    products = products_s(flops, shape.hidden, machine)
    if machine.device != "cpu":
        return max(products, tokens / SEQUENCES * (shape.layers + 1) * CARD_LAYER_S)
    return products + tokens * (TOKEN_S + shape.layers * TOKEN_LAYER_S)
