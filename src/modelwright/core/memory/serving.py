"""Memory of a model that answers: weights at any number of bits, keys and values of what is under way, and models beside it.

Sources. Blocks and scales: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339 (a scale for each row); Dettmers et al. 2023,
"QLoRA", arXiv:2305.14314, section 3 (NF4 in blocks of 64 with 32-bit scales; double quantisation: 8-bit scales, themselves in
blocks of 256); Frantar et al. 2022, "GPTQ", arXiv:2210.17323, section 4 (groups of 128); OCP "Microscaling Formats (MX) v1.0",
2023, section 5.2 (blocks of 32 with an 8-bit scale). GGUF's types are `methods/exporters/_types.py`'s. Keys and values: Shazeer
2019, arXiv:1911.02150 (two rows a layer and token), Ainslie et al. 2023, arXiv:2305.13245 (heads that share them), Beltagy et al.
2020, arXiv:2004.05150, section 3.1 (a window). The models of RL: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (PPO: policy,
value, reward and reference); Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1 (GRPO: no value).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from modelwright.core.estimate import Part, Shape
from modelwright.core.memory.weights import head_width, weights_of
from modelwright.core.units import bytes_text, count_text


class Coding(NamedTuple):
    """How a matrix is stored."""

    bits: float
    """Of a value."""
    block: float = 0.0
    """Values that share a scale; 0: there is none."""
    scale_bits: float = 0.0
    """Of a block's scale, and what else is stored of a block (a zero, a minimum)."""
    outer: float = 0.0
    """Scales that share one of their own, of 32 bits (double quantisation); 0: there is none."""
    tables_bits: float = 16.0
    """Of embeddings and a head, which these codings leave as they are."""

    @property
    def bits_per_value(self) -> float:
        """With scales, and scales of scales."""
        scales = self.scale_bits / self.block if self.block else 0.0
        return self.bits + scales + (32.0 / (self.block * self.outer) if self.outer else 0.0)


CODINGS: Mapping[str, Coding] = {
    "fp32": Coding(32, tables_bits=32),
    "bf16": Coding(16),
    "fp16": Coding(16),
    "fp8": Coding(8),
    "int8": Coding(8, 4096, 32),
    "nf4": Coding(4, 64, 32),
    "nf4-dq": Coding(4, 64, 8, 256),
    "int4-g128": Coding(4, 128, 16 + 4),
    "mxfp4": Coding(4, 32, 8),
}
"""Of other programs' quantised folders, by the names that people know; int8's rows are as wide as a 7B model's."""


def weights_bytes(shape: Shape, coding: Coding) -> float:
    """Of all weights: matrices of layers in this coding, tables and norms as the coding leaves them. Nothing makes them smaller:
    65 billion at 4 bits are 32.5 GB without scales, so they do not lie in 24 GB."""
    found = 0.0
    for weight in weights_of(shape):
        matrix = len(weight.sides) > 1 and weight.place in ("attention", "mlp", "experts")
        bits = coding.bits_per_value if matrix else coding.tables_bits
        found += weight.number * weight.values * bits / 8
    return found


def cache_bytes(shape: Shape, tokens: float, sequences: float = 1, bits: float = 16.0, windows: bool = True) -> float:
    """Keys and values of so many sequences of so many tokens. `windows`: layers with a window keep no more than that."""
    layers = shape.decoder_layers or shape.layers
    windowed = min(shape.windowed_layers, layers) if windows else 0
    rows = (layers - windowed) * tokens + windowed * min(tokens, shape.window)
    if shape.decoder_layers:  # and those of what was read, once for each layer
        rows += layers * tokens
    return sequences * rows * 2 * shape.kv_heads * head_width(shape) * bits / 8


def logits_row_bytes(shape: Shape, sequences: float) -> float:
    """Logits of the next token of each, in float32."""
    return 4.0 * shape.vocab * sequences


def serving_parts(
    shape: Shape,
    coding: Coding,
    tokens: float,
    sequences: float = 1,
    cache_bits: float = 16.0,
    windows: bool = True,
    at_once: float = 512,
    weights: float | None = None,
) -> tuple[Part, ...]:
    """What answers take while so many sequences of so many tokens are under way. `at_once`: tokens of prompts in one step;
    `weights`: their bytes, where a file tells."""
    size = weights_bytes(shape, coding) if weights is None else weights
    cache = cache_bytes(shape, tokens, sequences, cache_bits, windows)
    step = max(at_once, sequences) * 4.0 * (3 * shape.hidden + 3 * shape.intermediate * max(1, shape.experts_per_token))
    window = f", {shape.windowed_layers} layers of {shape.window} tokens" if windows and shape.windowed_layers else ""
    return (
        Part("weights", size, f"{count_text(shape.params)} at {8 * size / shape.params:.3g} bits with scales and tables"),
        Part("cache", cache, f"{sequences:g} x {count_text(tokens)} tokens at {cache_bits:g} bits{window}"),
        Part("activations", step + logits_row_bytes(shape, sequences), f"a step of {max(at_once, sequences):g} tokens"),
    )


# --- models beside the one that is trained -----------------------------------------------------------------------


def beside_policy(
    reference: Shape | None = None,
    reward: Shape | None = None,
    value: Shape | None = None,
    coding: Coding = CODINGS["bf16"],
    state_bytes_per_param: float = 8.0,
) -> tuple[Part, ...]:
    """Models that RL holds beside its policy: a frozen reference and a reward model, and a value model that is trained with it
    (weights and gradients in float32, and what its optimizer keeps)."""
    found = [
        Part(name, weights_bytes(shape, coding), f"{count_text(shape.params)} frozen weights at {coding.bits:g} bits")
        for name, shape in (("reference", reference), ("reward", reward))
        if shape is not None
    ]
    if value is not None:
        of_each = 8.0 + state_bytes_per_param
        found.append(Part("value", value.params * of_each, f"{count_text(value.params)} trained weights at {of_each:g} bytes"))
    return tuple(found)


# --- the rule of thumb -------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A rule of thumb beside the account."""

    bytes: float
    account_bytes: float
    wrong: tuple[str, ...]
    """What it does not know, the largest first."""

    @property
    def error_frac(self) -> float:
        """Of the rule against the account; below zero: it says too little."""
        return self.bytes / self.account_bytes - 1


def rule_of_thumb(params: float, bits: float) -> float:
    """params x 4 bytes / (32 / bits) x 1.2: a fifth more than bare weights."""
    return params * 4.0 / (32.0 / bits) * 1.2


def beside_rule(params: float, bits: float, parts: tuple[Part, ...]) -> Rule:
    """The rule against the account of the same model. It knows weights alone, at the bits that the format is named after."""
    bare = params * bits / 8
    wrong: list[tuple[float, str]] = []
    for part in parts:
        extra = part.bytes - bare if part.name == "weights" else part.bytes
        if extra > 0.005 * bare:
            what = "scales, and tables that keep more bits" if part.name == "weights" else f"{part.name} ({part.why})"
            wrong.append((extra, f"it knows no {what}: {bytes_text(extra)}"))
    account = sum(part.bytes for part in parts)
    return Rule(rule_of_thumb(params, bits), account, tuple(text for _, text in sorted(wrong, reverse=True)))
