"""How long and how many answers a device can serve: weights at each size, keys and values at each size, and what is left.

Sizes of weights are those of our own GGUF export (`methods/exporters/_types.py`), the rest is `core/memory/serving.py`. Quantised
keys and values are llama.cpp's q8_0 and q4_0 (https://github.com/ggml-org/llama.cpp, `--cache-type-k`), which no engine here has.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from modelwright.core.estimate import Machine, Quantity
from modelwright.core.memory.serving import CODINGS, serving_parts
from modelwright.core.units import bytes_text
from modelwright.methods.exporters._types import BLOCKS, data_bytes
from modelwright.plan.cuda import card_parts, interval
from modelwright.plan.fit import largest
from modelwright.plan.models import Base
from modelwright.plan.needs import Need

WEIGHTS = ("f32", "bf16", "q8_0", "q6_k", "q4_k_m")
"""As exports name them; the first two are the native engine's as well."""
CACHES = {"f32": True, "f16": True, "q8_0": False, "q4_0": False}
"""Type of keys and values -> whether an engine here has it."""
CONTEXTS = (2048, 8192, 32768, 131072)
MOST_SEQUENCES = 1024
MOST_CONTEXT = 1 << 20


class Served(NamedTuple):
    """One size of weights with one of keys and values."""

    weights: str
    cache: str
    here: bool
    longest: int | None
    """Tokens of the one sequence that fits; None: not even the weights do."""
    sequences: tuple[int | None, ...]
    """By context of `contexts`, how many at once."""


def contexts(base: Base) -> tuple[int, ...]:
    """Those that the model was made for."""
    return tuple(size for size in CONTEXTS if not base.context or size <= base.context) or (base.context,)


def need(base: Base, weights: str, cache: str, tokens: int, sequences: int, machine: Machine) -> Need:
    """What so many sequences of so many tokens take."""
    values, size = BLOCKS[cache]
    file = float(data_bytes(weights, base.shape))
    parts = serving_parts(base.shape, CODINGS["bf16"], tokens, sequences, 8.0 * size / values, weights=file)
    if machine.device == "cuda":
        takes = interval(parts, machine.name)
        return Need("memory of the card", takes, machine.device_memory_bytes, card_parts(parts, machine.name))
    why = ", ".join(f"{part.name} {bytes_text(part.bytes)}" for part in parts)
    has = machine.device_memory_bytes or machine.memory_bytes
    return Need("memory", Quantity(sum(part.bytes for part in parts), "bytes", why), has, parts)


def serving(base: Base, machine: Machine) -> list[Served]:
    """Every size of weights with every size of keys and values."""
    return [_served(base, machine, weights, cache) for weights in WEIGHTS for cache in CACHES]


def _served(base: Base, machine: Machine, weights: str, cache: str) -> Served:
    def fits(tokens: int, sequences: int) -> bool:
        return need(base, weights, cache, tokens, sequences, machine).fits

    longest = largest(lambda tokens: fits(tokens, 1), 1, base.context or MOST_CONTEXT)
    counts = tuple(largest(partial(fits, size), 1, MOST_SEQUENCES) for size in contexts(base))
    return Served(weights, cache, CACHES[cache], longest, counts)
