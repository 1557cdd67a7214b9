"""How long training takes, before it starts: its parts by the work in them, each a `Span` that runs correct by itself.

Every constant was measured as processor time of one thread on a Xeon at 2.5 GHz with AVX-512 (the machine of docs/benchmarks.md),
on trainings of 1 to 7 million weights; `plan/calibrate.py` replaces what differs elsewhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelwright.core.estimate import Machine, Span, imports
from modelwright.core.memory.weights import head_width
from modelwright.core.passes import Passed, passed, products_s
from modelwright.core.units import count_text

if TYPE_CHECKING:
    from modelwright.stages._train_cost import Load

CHECKS_S = 0.7
"""A slice of rows through the tokenizer, and the loss of 768 tokens in two ways."""
OPEN_S = 0.15
"""The model opened or drawn, and held against transformers' own results."""
CHARS_PER_S, CHAT_CHARS_PER_S, PIECES_CHARS_PER_S = 10e6, 0.8e6, 1.5e6
"""Of one core: texts by byte-level BPE; chats, whose messages are rendered by a template and encoded one by one; and texts by
WordPiece, which encoders mostly have."""
ROW_S = 5e-5
"""A row read and stored."""
STEP_S = 2e-3
"""Rows of a step chosen and packed, its numbers told."""
UPDATE_BYTES_PER_S = 8e9
"""Of one core: gradients clipped, weights stepped."""
SAMPLE_TOKENS = 3 * 48
"""Tokens of the answers that are shown at the end."""
SAMPLE_LAYER_S, SAMPLE_S = 1.3e-3, 1.5e-3
"""A token of them: each layer of transformers' modules, and the rest."""
WRITE_BYTES_PER_S = 250e6
"""Weights written, synced and hashed."""
END_S = 0.1


def spans(load: Load, machine: Machine, steps: float, tokens: float) -> tuple[Span, ...]:
    """`steps` and `tokens`: of the training."""
    shape = load.shape
    weights_s = 4.0 * shape.params / WRITE_BYTES_PER_S
    data = load.data_tokens or tokens
    every, held = load.validations
    held *= math.ceil(steps / every) if every else 0
    passes = _passes(load)
    steps_s = _passed(load, machine, tokens, passes)
    micros = steps * math.ceil(load.batch_tokens / load.micro_tokens)
    update_s = steps * STEP_S + products_s(steps * load.step_flops, shape.hidden, machine)
    update_s += steps * (load.trainable + load.added) * (12 + load.state_bytes_per_param) / _update_bytes_per_s(machine)
    sampled_s = SAMPLE_TOKENS * (SAMPLE_S + shape.layers * SAMPLE_LAYER_S) if load.head == "causal" else 0.0
    found = [
        imports("torch, transformers and PEFT"),
        Span("checks", CHECKS_S, "a slice of the rows, and their loss in two ways"),
        Span("open", OPEN_S + weights_s, "the model, held against transformers' results"),
        Span("rows", _rows_s(load, machine), f"{count_text(load.rows)} rows become tokens", "chats" if load.chats else ""),
        Span("steps products", steps_s.products_s, f"{count_text(tokens)} tokens, {passes:g} passes", load.like),
        Span("steps moves", steps_s.moved_s, "attention's scores and the loss's logits through memory"),
        Span("steps calls", steps_s.called_s, f"{count_text(micros)} micro-batches of {shape.layers} layers", load.like),
        Span("steps update", update_s, f"{count_text(steps)} steps of {count_text(load.trainable + load.added)} weights"),
        Span("end", END_S + weights_s + sampled_s, "weights written, answers sampled"),
    ]
    for name, each, why in (("reference", data * load.reference, "by the frozen start"), ("validation", held, "held out")):
        if each:
            found.append(Span(name, sum(_passed(load, machine, each)), f"{count_text(each)} tokens {why}"))
    if each := _exchange_s(load, machine):
        found.append(Span("steps exchange", steps * each, f"gradients, {count_text(steps)} times between processes"))
    if travels := _travels_s(load, machine, tokens):
        found.append(Span("steps travels", travels, f"what layers tell each other of {count_text(tokens)} tokens"))
    if load.parallel.pipeline > 1:
        filled = max(1.0, micros / steps / load.parallel.data)
        empty = (load.parallel.pipeline - 1) / filled
        why = f"processes of the pipeline, for {empty:.0%} of their work: {count_text(filled)} micro-batches a step go through"
        found.append(Span("steps waits", empty * sum(steps_s), why))
    return tuple(found)


def _exchange_s(load: Load, machine: Machine) -> float:
    """Of a step: gradients go around the ring twice (arXiv:1802.05799), and weights that are divided once more."""
    spread = load.parallel
    whole, divided = spread.data * spread.expert * spread.context, spread.shard
    if whole * divided == 1 or not machine.link_bytes_per_s:
        return 0.0
    rounds = 3 if divided > 1 else 2
    own = 4.0 * (load.trainable + load.added) / (spread.tensor * spread.pipeline)
    return rounds * (1 - 1 / (whole * divided)) * own / machine.link_bytes_per_s


def _travels_s(load: Load, machine: Machine, tokens: float) -> float:
    """Of the training: in each layer two sums of the stream in each pass by `tensor` (arXiv:1909.08053, section 3), keys and
    values gathered in both passes and their gradients home by `context` (arXiv:2407.21783, section 3.3.2), tokens to their
    experts and back in both by `expert` (arXiv:2006.16668, section 3.2)."""
    shape, spread = load.shape, load.parallel
    if not machine.link_bytes_per_s:
        return 0.0
    row, size, passes = 4.0 * shape.hidden, (2.0 if load.half else 4.0), 2 + load.full
    sums = 2 * passes * 2 * (1 - 1 / spread.tensor) * row
    looked_at = (passes + 1) * 2 * (1 - 1 / spread.context) * size * head_width(shape) * shape.kv_heads
    sent = 2 * passes * (1 - 1 / spread.expert) * row * shape.experts_per_token
    layers = (shape.layers + shape.decoder_layers) / spread.pipeline
    own = tokens / (spread.data * spread.shard * spread.expert)
    return own * layers * (sums + looked_at + sent) / machine.link_bytes_per_s


def _passes(load: Load) -> float:
    """Forward passes' worth of products in a step; frozen weights get no gradient."""
    return (3.0 if load.trainable >= load.shape.params else 2.1) + load.full


def _passed(load: Load, machine: Machine, tokens: float, passes: float = 1.0) -> Passed:
    row_tokens = min((load.data_tokens or tokens) / load.rows if load.rows else math.inf, load.length)
    return passed(
        load.shape,
        machine,
        tokens,
        max(row_tokens, 1.0),
        load.micro_tokens,
        passes=passes,
        target_frac=load.target_frac,
        precision=load.precision,
        whole_last_layer=not load.own,
        added_flops=load.added_flops,
    )


def _update_bytes_per_s(machine: Machine) -> float:
    return (machine.device != "cpu" and machine.bandwidth_bytes_per_s) or UPDATE_BYTES_PER_S * machine.cores


def _rows_s(load: Load, machine: Machine) -> float:
    if load.chats:
        rate = CHAT_CHARS_PER_S
    elif load.head == "masked":
        rate = PIECES_CHARS_PER_S * machine.cores
    else:
        rate = machine.tokenise_chars_per_s or CHARS_PER_S * machine.cores
    return load.rows * ROW_S + load.chars / rate
