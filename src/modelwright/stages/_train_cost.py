"""What training costs, before it starts: pure arithmetic over shapes and row counts, every number with its reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from modelwright.core.flops import forward_flops_per_token
from modelwright.core.parallel import Parallel
from modelwright.core.stage import Estimate, Facts, Machine, Shape, estimate
from modelwright.core.units import bytes_text, count_text

IMPORTS_BYTES = 0.48e9
"""torch, transformers, PEFT, a tokenizer and what the allocator keeps; measured 0.37 GB for the imports alone."""
CHARS_PER_TOKEN = 3.5
"""Where nothing better is known; byte-level BPE on code and English gives 3 to 4.5."""
FILL_FRAC = 0.93
"""Share of `batch_tokens` that whole rows fill; rows are an eighth of a batch or less."""
LOGITS_BYTES, LOGITS_POSITIONS = 16 << 20, 192
"""Logits are made in chunks of at least so many bytes and positions (`nn/logps.py`)."""
LOGITS_COPIES = 2.0
"""Chunks that are there at once; measured 1.4 in float32, and 1.6 beside the head in bf16 (49,152 tokens of vocabulary)."""
ROW_BYTES, ROW_USE_BYTES = 8, 4
"""Memory of each stored row (its length, its place in the epoch) and of each time it is used (`nn/order.py`); its tokens stay on
the disk, as do 40 bytes more."""


class Load(NamedTuple):
    """The numbers that the cost depends on."""

    shape: Shape
    trainable: float
    state_bytes_per_param: float
    step_flops: float
    """Of the optimizer."""
    batch_tokens: int
    micro_tokens: int
    length: int
    steps: int | None
    epochs: float | None
    data_tokens: float | None
    target_frac: float
    """Share of tokens whose logits are computed."""
    reference: bool
    half: bool
    """Products in bf16."""
    validations: tuple[int, float] = (0, 0.0)
    """(steps between two, tokens of one); (0, 0): none."""
    keep_best: bool = False
    averaged: int = 0
    """Copies of the trained weights that averages hold: a moving one, and those of training while it is measured."""
    full: bool = False
    """Layers are computed again in the backward pass."""
    own: bool = True
    """Whether `nn/forward.py` runs it, not transformers' modules."""
    parts: bool = False
    """One table for head and embeddings becomes two."""
    added: int = 0
    """Weights that only training has."""
    added_flops: float = 0.0
    """What these take for each target on its way forward."""
    head: str | None = None
    """What the model will give, as objectives name it."""
    rows: float = 0.0
    """Of the data."""
    step_in_backward: bool = False
    """Gradients of a layer and of the table of embeddings, not of all weights, exist together."""
    parallel: Parallel = Parallel()


def activation_bytes(shape: Shape, half: bool, own: bool = True, full: bool = False) -> float:
    """Bytes that one token leaves for the backward pass. `full`: layers are computed again, one at a time, so that all but one
    leave only what enters them.

    Our own forward pass (`nn/forward.py`) keeps the two residual sums in float32 and queries, keys, values, attention's result
    (twice) and the MLP's gate and up in the type of the products; transformers' modules (not `own`) keep the norms and the
    MLP's products as well.
    """
    width = (shape.head_dim or shape.hidden // shape.heads) * shape.heads
    keys = width * shape.kv_heads / shape.heads
    size = 2 if half else 4
    mlp = shape.intermediate * max(1, shape.experts_per_token)
    kept = 3 * width + 2 * keys + 2 * mlp + (width + keys if shape.qk_norm else 0) + (shape.norms - 2) * shape.hidden
    layers = float(shape.layers)
    if shape.decoder_layers:  # a fifth of the tokens is written, by layers that look twice; T5's GELU keeps its steps (measured)
        layers, kept = 0.8 * layers + 0.2 * 1.5 * shape.decoder_layers, kept + 2 * mlp
    of_layer = 2 * shape.hidden * 4 + kept * size
    if not own:
        of_layer = 6 * shape.hidden * 4 + (kept + 2 * mlp + 2 * shape.hidden) * size
    return layers * 4 * shape.hidden + of_layer if full else layers * of_layer


def logits_bytes(vocab: int, hidden: int, positions: int, half: bool) -> float:
    """Of the loss over so many positions: the largest chunk, and in bf16 the head's weights and their gradient in that."""
    chunk = min(max(LOGITS_BYTES, 4 * vocab * LOGITS_POSITIONS), 4 * vocab * positions)
    return LOGITS_COPIES * chunk + (2 * 2.0 * vocab * hidden if half else 0.0)


def micro_tokens(shape: Shape, batch_tokens: int, half: bool, own: bool = True, full: bool = False) -> int:
    """Tokens of a micro-batch whose activations take about 0.9 GB, at least 256: fewer make matrix products slow (135M
    weights, 2 cores: a step of 1,100 tokens is 7 % faster at once than in two halves)."""
    return int(min(batch_tokens, max(256, 0.9e9 / activation_bytes(shape, half, own, full) // 64 * 64)))


def state_bytes(params: float, gradients: float, trained: float, of_each: float) -> float:
    """Weights and gradients in float32, and what an optimizer keeps `of_each` weight that is trained."""
    return (params + gradients) * 4.0 + trained * of_each


def state_of_each(params: float, gradients: float, trained: float, state_bytes_per_param: float, spread: Parallel) -> float:
    """What one of several processes holds of them. DeepSpeed steps a second copy of its part of the weights."""
    if not spread.zero:
        return state_bytes(params, gradients, trained, state_bytes_per_param) / (spread.shard * spread.tensor * spread.pipeline)
    parts = [(4.0 * trained + trained * state_bytes_per_param, 1), (4.0 * gradients, 2), (4.0 * params, 3)]
    return sum(size / (spread.shard if spread.zero >= stage else 1) for size, stage in parts)


def steps_and_tokens(load: Load) -> tuple[float, float]:
    if load.steps is not None:
        return load.steps, load.steps * load.batch_tokens * FILL_FRAC
    tokens = (load.epochs or 1) * (load.data_tokens or 0)
    return max(1.0, tokens / (load.batch_tokens * FILL_FRAC)), tokens


def cost(load: Load, machine: Machine, unknown: str) -> Estimate:
    """`unknown`: what had to be assumed, '' where nothing had."""
    shape, params = load.shape, load.shape.params
    steps, tokens = steps_and_tokens(load)
    full = load.trainable >= params
    forward = forward_flops_per_token(shape, min(load.length, 512), load.target_frac, whole_last_layer=not load.own)
    forward += load.added_flops * load.target_frac
    passes = (3.0 if full else 2.1) + load.full
    flops = steps * load.step_flops + tokens * passes * forward
    if load.reference:
        flops += (load.data_tokens or tokens) * forward
    every, held_tokens = load.validations
    held_tokens *= math.ceil(steps / every) if every else 0
    flops += held_tokens * forward
    trained = load.trainable + load.added
    optimizer_s = steps * trained * (12 + load.state_bytes_per_param) / 8e9
    rate = (load.half and machine.bf16_flops_per_s) or machine.flops_per_s
    seconds = flops / rate + optimizer_s + 5.0
    table = min(trained, shape.vocab * shape.hidden)
    gradients = table + (trained - table) / shape.layers if load.step_in_backward else trained
    kept = load.state_bytes_per_param + 4.0 * load.averaged
    activations = activation_bytes(shape, load.half, load.own, load.full) * min(load.micro_tokens, load.batch_tokens)
    activations += 12.0 * load.added / shape.hidden * min(load.micro_tokens, load.batch_tokens)  # a head keeps three rows a token
    logits = logits_bytes(shape.vocab, shape.hidden, load.micro_tokens, load.half)
    rows = load.rows * (ROW_BYTES + ROW_USE_BYTES * tokens / max(load.data_tokens or tokens, 1.0))
    spread = load.parallel
    state = state_of_each(params + load.added, gradients, trained, kept, spread)
    activations /= spread.context * spread.tensor
    of_each = f"; of each process ({spread})" if spread.processes > 1 else ""
    memory = IMPORTS_BYTES + state + activations + logits + rows
    left = shape.model_copy(update={"tied": False}) if load.parts else shape
    disk = left.params * 4.0 + (params + load.added) * 4.0 + trained * load.state_bytes_per_param + 6.0 * (load.data_tokens or 0)
    disk += 40.0 * load.rows + (trained * 4.0 if load.keep_best else 0.0)
    assumed = f"; assumed {unknown}" if unknown else ""
    facts = Facts(type="model", tokens=tokens, bytes=left.params * 4.0, shape=left, head=load.head)
    return estimate(
        seconds,
        f"{count_text(tokens)} tokens x {count_text(flops / max(tokens, 1))} FLOP at {count_text(rate)}FLOP/s"
        f" ({passes:g} passes of {count_text(params)} weights"
        f"{f'; {count_text(held_tokens)} tokens of validation' if held_tokens else ''}"
        f"{f'; {spread.processes} processes share this machine' if spread.processes > 1 else ''}){assumed}",
        memory,
        f"weights, gradients, optimizer {bytes_text(state)}, activations of {load.micro_tokens} tokens {bytes_text(activations)},"
        f" logits {bytes_text(logits)}, places of rows {bytes_text(rows)}, imports {bytes_text(IMPORTS_BYTES)}{of_each}{assumed}",
        disk,
        f"weights {bytes_text(params * 4.0)}, one checkpoint, tokenised rows{assumed}",
        {"": facts},
    )


def data_tokens(facts: list[Facts], chars_per_token: float | None) -> tuple[float | None, str]:
    """Tokens of the rows, as far as they are known, and what was assumed."""
    total, assumed = 0.0, ""
    for fact in facts:
        if fact.tokens is not None:
            total += fact.tokens
        elif (size := fact.chars if fact.chars is not None else fact.bytes) is not None:
            total += size / (chars_per_token or CHARS_PER_TOKEN)
            assumed = "" if chars_per_token else f"{CHARS_PER_TOKEN} characters a token"
        else:
            return None, "a data set of one million tokens"
    return total, assumed


def guess(params: float) -> Shape:
    """A Llama shape of about so many weights, where only the size of the files is known."""
    width = next((w for w in range(64, 16384, 64) if _llama(w).params >= params), 16384)
    return _llama(width)


def _llama(width: int) -> Shape:
    """Depth and vocabulary in the proportions of published models (SmolLM, Llama 3): one layer per 64 of width, at most 32."""
    layers = min(32, max(1, width // 32))
    heads = max(1, width // 64)
    return Shape(
        layers=layers,
        hidden=width,
        intermediate=width * 8 // 3,
        heads=heads,
        kv_heads=heads,
        vocab=49152 if width >= 512 else 8192,
    )
