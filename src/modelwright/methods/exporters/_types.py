"""GGUF's types of weights: which one each tensor of a model gets, and how many bytes that is. Plain numbers only.

Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (types and alignment) and llama.cpp's `llama-quantize`
(`src/llama-quant.cpp`), whose mixtures these are, so that a `q4_k_m` of ours is what people know by that name: the head, value
and down projections, whose errors reach the answer least mixed, keep more bits than the rest, most of all in the first and
last layers.
Differs: for q4_0 to q5_1 head and embedding are q8_0 and not q6_K, which is exact enough for small models and needs no llama.cpp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from modelwright.core.estimate import Shape

BLOCKS = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q5_1": (32, 24),
    "iq4_nl": (32, 18),
    "iq3_s": (256, 110),
    "iq4_xs": (256, 136),
    "q2_k": (256, 84),
    "q3_k": (256, 110),
    "q4_k": (256, 144),
    "q5_k": (256, 176),
    "q6_k": (256, 210),
}
"""Weights of a block, and its bytes."""
_SMALLER = {
    "q2_k": "iq4_nl",
    "q3_k": "iq4_nl",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
}
"""What takes rows that are not whole blocks of 256: blocks of 32 of at least as many bits, as llama.cpp chooses them."""
ALIGNMENT_BYTES = 32
SLOW_BYTES_PER_S = {"q4_k": 34e6, "q5_k": 40e6, "q2_k": 40e6, "q6_k": 86e6, "iq4_nl": 8.6e6, "iq4_xs": 8.6e6, "iq3_s": 9.4e6}
"""Float32 weights that llama.cpp turns into these in a second of one core (a 2020s server), where it takes longer than writing
them: it searches for the best scale of each block."""


class Type(NamedTuple):
    """What `type: …` means."""

    base: str
    """Of most matrices."""
    number: int
    """`llama_ftype`."""
    rise: float
    """Of perplexity, as a fraction, that the proof accepts."""
    difference: float
    """Of log-probabilities in nats, mean of absolute values, that the proof accepts."""


TYPES = {
    "f32": Type("f32", 0, 0.002, 0.005),
    "f16": Type("f16", 1, 0.005, 0.01),
    "bf16": Type("bf16", 32, 0.02, 0.05),
    "q8_0": Type("q8_0", 7, 0.02, 0.1),
    "q6_k": Type("q6_k", 18, 0.03, 0.2),
    "q5_1": Type("q5_1", 9, 0.1, 0.4),
    "q5_0": Type("q5_0", 8, 0.1, 0.4),
    "q5_k_m": Type("q5_k", 17, 0.1, 0.4),
    "q5_k_s": Type("q5_k", 16, 0.1, 0.4),
    "q4_1": Type("q4_1", 3, 0.3, 0.7),
    "q4_0": Type("q4_0", 2, 0.3, 0.7),
    "q4_k_m": Type("q4_k", 15, 0.3, 0.7),
    "q4_k_s": Type("q4_k", 14, 0.3, 0.7),
    "iq4_nl": Type("iq4_nl", 25, 0.3, 0.7),
    "iq4_xs": Type("iq4_xs", 30, 0.3, 0.7),
    "q3_k_l": Type("q3_k", 13, 0.6, 1.2),
    "q3_k_m": Type("q3_k", 12, 0.6, 1.2),
    "q3_k_s": Type("q3_k", 11, 0.6, 1.2),
    "iq3_s": Type("iq3_s", 26, 0.6, 1.2),
    "q2_k": Type("q2_k", 10, 2.0, 2.0),
}


class Model(NamedTuple):
    """What of a model a mixture depends on."""

    layers: int
    shared: int
    """Query heads for each key/value head."""
    experts: int
    tied: bool


def of_tensor(kind: str, name: str, shape: tuple[int, ...], model: Model) -> tuple[str, str]:
    """The type of a tensor in an export of this kind, and the one that it would have if its rows were whole blocks."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "f32", "f32"  # norms and biases; a router, where a small error sends a token elsewhere
    wanted = _mixed(kind, name, shape, model)
    fitting = (taken for taken in (wanted, _SMALLER.get(wanted, "f16"), "f16") if shape[-1] % BLOCKS[taken][0] == 0)
    return next(fitting), wanted


def _mixed(kind: str, name: str, shape: tuple[int, ...], model: Model) -> str:
    base = TYPES[kind].base
    if base in ("f32", "f16", "bf16", "q8_0"):
        return base
    if name in ("output.weight", "token_embd.weight"):
        if BLOCKS[base][0] == 32 and base != "iq4_nl":
            return "q8_0"
        if name == "output.weight" or model.tied:
            return "q6_k" if shape[-1] % BLOCKS[base][0] == 0 else "q8_0"
        return base
    layer, part = int(name.split(".")[1]), name.split(".")[2]
    eight = model.experts == 8  # attention is a small share of such a model
    few = layer < model.layers // 8
    ends = few or layer >= 7 * model.layers // 8 or (layer - model.layers // 8) % 3 == 2
    if part == "attn_v":
        return "q8_0" if eight else _value(kind, base, layer, ends, model.shared >= 4)
    if part == "attn_k" and eight:
        return "q8_0"
    if part == "attn_output":
        if eight:
            return "q5_k" if base in ("q2_k", "q3_k", "q4_k", "iq3_s", "iq4_nl", "iq4_xs") and kind != "q3_k_l" else base
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(kind, base)
    return _down(kind, base, few, ends, layer < model.layers // 16) if part in ("ffn_down", "ffn_down_exps") else base


def _value(kind: str, base: str, layer: int, ends: bool, shared: bool) -> str:
    """Of the value projection; `shared`: many query heads read each of its heads, so that more bits for it are cheap."""
    if kind in ("q4_k_m", "q5_k_m"):
        return "q6_k" if ends else base
    if kind == "q4_k_s":
        return "q5_k" if layer < 4 else base
    if kind == "q3_k_m":
        return "q5_k" if layer < 2 else "q4_k"
    by_sharing = {"q2_k": ("q3_k", "q4_k"), "iq3_s": (base, "q4_k"), "iq4_nl": (base, "q5_k"), "iq4_xs": (base, "q5_k")}
    return by_sharing[kind][shared] if kind in by_sharing else {"q3_k_l": "q5_k"}.get(kind, base)


def _down(kind: str, base: str, few: bool, ends: bool, fewest: bool) -> str:
    """Of the MLP's second matrix."""
    if kind in ("q4_k_m", "q5_k_m"):
        return "q6_k" if ends else base
    if kind == "q3_k_m":
        return "q5_k" if fewest else "q4_k"
    if few and kind in ("q4_k_s", "iq4_nl", "iq4_xs"):
        return "q5_k"
    return {"q2_k": "q3_k", "q3_k_l": "q5_k"}.get(kind, base)


def size_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Of a tensor of this type."""
    weights, size = BLOCKS[kind]
    count = 1
    for side in shape:
        count *= side
    return count // weights * size


def data_bytes(kind: str, shape: Shape) -> int:
    """Of all tensors of a model of this shape in an export of this kind, each from a multiple of 32 bytes on."""
    model = _model(shape)
    sizes = (size_bytes(of_tensor(kind, name, sides, model)[0], sides) for name, sides in _tensors(shape))
    return sum(-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in sizes)


def smaller(pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many tensors got another type than they should have, of what `of_tensor` gave."""
    return dict(Counter(f"{wanted} became {taken}" for taken, wanted in pairs if taken != wanted))


def foretold(kind: str, shape: Shape) -> dict[str, int]:
    """The same for a model of this shape."""
    model = _model(shape)
    return smaller(of_tensor(kind, name, sides, model) for name, sides in _tensors(shape))


def _model(shape: Shape) -> Model:
    return Model(shape.layers, shape.heads // shape.kv_heads, shape.experts, shape.tied)


def _tensors(shape: Shape) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and sizes of what a decoder of this shape has."""
    head = shape.head_dim or shape.hidden // shape.heads
    queries, keys, stack = head * shape.heads, head * shape.kv_heads, (shape.experts,) if shape.experts else ()
    experts = "_exps" if shape.experts else ""
    layer = {
        "attn_q": (queries, shape.hidden),
        "attn_k": (keys, shape.hidden),
        "attn_v": (keys, shape.hidden),
        "attn_output": (shape.hidden, queries),
        **{f"ffn_{part}{experts}": (*stack, shape.intermediate, shape.hidden) for part in ("gate", "up")},
        f"ffn_down{experts}": (*stack, shape.hidden, shape.intermediate),
        **{f"norm{number}": (shape.hidden,) for number in range(shape.norms)},
        **({"attn_q_norm": (head,), "attn_k_norm": (head,)} if shape.qk_norm else {}),
        **({"ffn_gate_inp": (shape.experts, shape.hidden)} if shape.experts else {}),
    }
    table = (shape.vocab, shape.hidden)
    yield from [("token_embd.weight", table), ("output_norm.weight", (shape.hidden,))]
    if not shape.tied:
        yield "output.weight", table
    for number in range(shape.layers):
        yield from ((f"blk.{number}.{part}.weight", sides) for part, sides in layer.items())
