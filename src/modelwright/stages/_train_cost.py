"""What training costs, before it starts: pure arithmetic over shapes and row counts, every number with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from modelwright.core.estimate import TORCH, Estimate, Facts, Machine, Shape, estimate
from modelwright.core.memory import Asks, Stepper
from modelwright.core.memory.modules import Beside
from modelwright.core.memory.weights import Weight
from modelwright.core.parallel import Parallel
from modelwright.core.units import bytes_text
from modelwright.stages import _train_memory as memories
from modelwright.stages import _train_time as times
from modelwright.stages._train_memory import Row

CHARS_PER_TOKEN, CHARS_DOUBLING, CHARS_MOST = 3.5, 0.385, 4.3
"""Of a vocabulary of 4,096, how many more each doubling of it brings, and the most: byte-level BPE on Python's library gave 2.75
with 1,024 tokens and 3.52 with 4,096; vocabularies of 32,000 and more give 4 to 4.5 on code and English."""
FILL_FRAC = 0.93
"""Share of `batch_tokens` that whole rows fill; rows are an eighth of a batch or less."""


class Load(NamedTuple):
    """The numbers that the cost depends on."""

    shape: Shape
    trained: Sequence[Weight]
    """Weights with a gradient, tensor by tensor, those that only training has among them."""
    trainable: float
    """Of them, those of the model or its adapter."""
    frozen: Sequence[Weight]
    """Weights without a gradient."""
    beside: Beside | None
    """The adapter, where there is one."""
    optimizer: Stepper
    state_bytes_per_param: float
    step_flops: float
    """Of the optimizer."""
    batch_tokens: int
    micro_tokens: int
    length: int
    row: Row
    """As long as a row may be, or as long as they are on average."""
    steps: int | None
    epochs: float | None
    data_tokens: float | None
    target_frac: float
    """Share of tokens whose logits are computed."""
    reference: bool
    half: bool
    """Products in 16 bits."""
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
    asks: Asks = "cross_entropy"
    offload: Sequence[str] = ()
    """What lies in the processor's memory while a card does not use it."""
    chars: float = 0.0
    """Of the data's text."""
    context: float | None = None
    """Tokens that the start can see; None: those of a row."""
    chats: bool = False
    """The data is chats."""
    like: str = ""
    """Objective, adapter and numbers, which a step's rate depends on beside its sizes."""
    precision: str = "auto"
    threads: int | None = None
    """Of each process; None: its share of the cores."""


def steps_and_tokens(load: Load) -> tuple[float, float]:
    if load.steps is not None:
        return load.steps, load.steps * load.batch_tokens * FILL_FRAC
    tokens = (load.epochs or 1) * (load.data_tokens or 0)
    return max(1.0, tokens / (load.batch_tokens * FILL_FRAC)), tokens


def cost(load: Load, machine: Machine, unknown: str) -> Estimate:
    """`unknown`: what had to be assumed, '' where nothing had."""
    shape, params = load.shape, load.shape.params
    steps, tokens = steps_and_tokens(load)
    spans = times.spans(load, machine, steps, tokens)
    trained = load.trainable + load.added
    memory, spread = memories.memory(load, machine, tokens), load.parallel
    left = shape.model_copy(update={"tied": False}) if load.parts else shape
    disk = left.params * 4.0 + (params + load.added) * 4.0 + trained * load.state_bytes_per_param + 6.0 * (load.data_tokens or 0)
    disk += 40.0 * load.rows + (trained * 4.0 if load.keep_best else 0.0)
    assumed = f"; assumed {unknown}" if unknown else ""
    facts = Facts(type="model", tokens=tokens, bytes=left.params * 4.0, shape=left, head=load.head, context=load.context)
    found = estimate(
        sum(span.seconds for span in spans),
        ", ".join(f"{span.name} {span.seconds:.3g} s ({span.why})" for span in spans)
        + (f"; {spread.processes} processes share this machine" if spread.processes > 1 else "")
        + assumed,
        memory.process.value,
        memory.process.why + assumed,
        disk,
        f"weights {bytes_text(params * 4.0)}, one checkpoint, tokenised rows{assumed}",
        {"": facts},
    )
    found = found._replace(spans=spans, parts=memory.parts, device_memory=memory.card, device_parts=memory.card_parts)
    if machine.apart:
        return found
    return found._replace(processes=spread.processes) if spread.processes > 1 else found._replace(leaves=TORCH)


def chars_per_token(vocab: int) -> float:
    """Where nothing is known but the vocabulary's size."""
    return max(1.0, min(CHARS_MOST, CHARS_PER_TOKEN + CHARS_DOUBLING * math.log2(max(vocab, 1) / 4096)))


def data_tokens(facts: Sequence[Facts], vocab: int, marks: float = 0.0) -> tuple[float | None, str]:
    """Tokens of the rows, each with so many of its template, as far as they are known, and what was assumed."""
    total, assumed = 0.0, ""
    for fact in facts:
        if fact.tokens is not None:
            total += fact.tokens
        elif (size := fact.chars if fact.chars is not None else fact.bytes) is not None:
            total += size / chars_per_token(vocab) + (fact.rows or 0.0) * marks
            assumed = f"{chars_per_token(vocab):.1f} characters a token"
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
