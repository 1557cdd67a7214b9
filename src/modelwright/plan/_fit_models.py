"""Which public models a device can train, and by which method: the estimate of a training stage for each, in the smallest form.

What is not in this project yet is told for information, from the stage that comes nearest: QLoRA as LoRA whose base lies in 4
bits (Dettmers et al. 2023, arXiv:2305.14314, section 3: NF4 in blocks of 64 with constants quantised once more, 4.127 bits a
weight; embeddings, head and norms stay in 16 bits, and one matrix at a time is there in 16 bits), and GRPO as LoRA whose
reference is the model without it, beside the keys and values of 8 answers to a prompt (Shao et al. 2024, arXiv:2402.03300; 8 as
in TRL 1.16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from modelwright.core.errors import UserError
from modelwright.core.estimate import Facts, Given, Machine, Part, Shape
from modelwright.core.memory.serving import CODINGS, cache_bytes, weights_bytes
from modelwright.core.memory.weights import weights_of
from modelwright.core.parallel import Parallel
from modelwright.core.stage import STAGES, Stage
from modelwright.core.units import bytes_text
from modelwright.plan.cuda import card_parts, interval, on_card
from modelwright.plan.fit import LONGEST, MADE_FOR, STEP, WIDE, Fits, Most, Tried, fit, largest, tried
from modelwright.plan.models import Base, bases
from modelwright.plan.needs import Need, scarcest

START, DATA = "./start/", "./rows.jsonl"
NF4 = CODINGS["nf4-dq"]
ANSWERS = 8
MOST_ROWS = 4096


class Method(NamedTuple):
    """A way to train."""

    title: str
    objective: str
    adapter: bool
    here: bool = True


METHODS = {
    "full": Method("all weights", "sft", False),
    "lora": Method("LoRA", "sft", True),
    "qlora": Method("QLoRA", "sft", True, here=False),
    "dpo": Method("DPO with LoRA", "dpo", True),
    "grpo": Method("GRPO with LoRA", "sft", True, here=False),
}


class Asked(NamedTuple):
    """A training that is no recipe's."""

    method: str
    length: int = 2048
    rows: int = 1
    """In a micro-batch, which is a step."""
    rank: int = 16
    full: bool = False
    """Layers are computed again in the backward pass."""


def method_of(name: str) -> Method:
    if name not in METHODS:
        raise UserError(f"there is no method {name!r} to fit", fix=f"one of: {', '.join(METHODS)}")
    return METHODS[name]


def training(base: Base, asked: Asked, machine: Machine) -> Tried:
    """The stage that does it, and what it takes here."""
    method = method_of(asked.method)
    tokens = asked.length * asked.rows
    fields: dict[str, Any] = {
        "kind": "train",
        "start": START,
        "data": DATA,
        "objective": method.objective,
        "length": asked.length,
        "batch_tokens": tokens,
        "micro_tokens": tokens,
        "steps": 1000,
        "precision": products(machine),
        "recompute": "full" if asked.full else "selective",
    }
    if method.adapter:
        fields["adapter"] = {"kind": "lora", "rank": asked.rank}
    stage = STAGES.build(fields)
    assert isinstance(stage, Stage)
    rows = Facts(type="records", rows=10_000, tokens=10_000.0 * asked.length)
    parents = {START: Facts(type="model", shape=base.shape, head="causal"), DATA: rows}
    found = _told(tried(stage, Given(machine, parents)), asked.method)
    if machine.devices > 1 and not found.fits:
        found = _told(tried(stage, Given(machine, parents, parallel=Parallel(shard=machine.devices))), asked.method)
    return found


def fits_of(now: Tried, method: str) -> Fits:
    """What to change where it does not fit; of what is not here yet only the sum is told."""
    if now.fits or not METHODS[method].here:
        return Fits("train", now.needs, (), (), ())
    return fit(now.stage, now.given, "train")


def products(machine: Machine) -> str:
    """The type of products that pays here: 16 bits where the device has them."""
    kind = machine.products("bf16")[0]
    return "fp16" if kind == "fp32" and machine.device == "cuda" else kind


def _told(now: Tried, method: str) -> Tried:
    """What the method would take that comes nearest to this one."""
    if METHODS[method].here:
        return now
    shape = now.given.parents[START].shape
    assert shape is not None
    if method == "qlora":
        return now._replace(needs=four_bit_needs(now, shape))
    held = [any(part.name == "weights" for part in need.parts) for need in now.needs]
    return now._replace(needs=scarcest([with_answers(n, shape, now) if it else n for n, it in zip(now.needs, held, strict=True)]))


def four_bit_needs(now: Tried, shape: Shape) -> tuple[Need, ...]:
    """Of each memory in which the start lies, with its frozen matrices in 4 bits."""
    held = [any(part.name in ("weights", "opening") for part in need.parts) for need in now.needs]
    return scarcest([in_four_bits(need, shape, now) if it else need for need, it in zip(now.needs, held, strict=True)])


def in_four_bits(need: Need, shape: Shape, now: Tried) -> Need:
    """The same with the frozen matrices of layers in 4 bits, and the rest of the start in 16."""
    size, coding = weights_bytes(shape, NF4), f"{NF4.bits_per_value:.3f} bits in layers, 16 in tables"
    stage, parts = cast(Any, now.stage), list[Part]()
    for part in need.parts:
        if part.name == "weights":
            share = part.bytes / (4.0 * (shape.params + stage.trainable(shape)))  # of each process
            adapter = part._replace(name="adapter", bytes=part.bytes - 4.0 * share * shape.params)
            parts += [Part("base in 4 bits", share * size, coding), adapter]
        elif part.name == "opening":  # as bitsandbytes does it: each tensor on its way
            parts.append(part._replace(bytes=size * part.bytes / (4.0 * shape.params), why=coding))  # of every process
        else:
            parts.append(part)
    largest = max(weight.values for weight in weights_of(shape) if weight.place in ("attention", "mlp", "experts"))
    return remade(need, [*parts, Part("one matrix in 16 bits", 2.0 * largest, "what is multiplied at the moment")], now)


def with_answers(need: Need, shape: Shape, now: Tried) -> Need:
    """The same beside the keys and values of answers that are written for the next step."""
    stage: Any = now.stage
    size = cache_bytes(shape, stage.length, ANSWERS)
    cache = Part("cache", size, f"keys and values of {ANSWERS} x {stage.length:,} tokens in 16 bits")
    return remade(need, [*need.parts, cache], now)


def remade(need: Need, parts: list[Part], now: Tried) -> Need:
    """With these parts, and what a card holds beside them; elsewhere the interval is as wide as before, in proportion."""
    machine = now.given.machine
    if machine.device == "cuda" and need.parts == on_card(now.estimate, machine).device_parts:
        return need._replace(takes=interval(parts, machine.name), parts=card_parts(parts, machine.name))
    total = sum(part.bytes for part in parts)
    old = need.takes
    low, high = (None if end is None else end * total / old.value for end in (old.low, old.high))
    why = ", ".join(f"{part.name} {bytes_text(part.bytes)}" for part in parts)
    return need._replace(takes=old._replace(value=total, low=low, high=high, why=why), parts=tuple(parts))


# --- the table --------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A model and a method on a device."""

    need: Need
    again: bool
    """Layers have to be computed again in the backward pass."""


def cell(base: Base, method: str, machine: Machine, length: int) -> Cell:
    """With one row in a micro-batch, and recomputation where it does not fit without."""
    found = training(base, Asked(method, length), machine)
    if found.fits:
        return Cell(found.need, again=False)
    return Cell(training(base, Asked(method, length, full=True), machine).need, again=True)


def most_of(base: Base, asked: Asked, machine: Machine) -> tuple[Most, ...]:
    """The most of each number with which all others still fit."""

    def of(change: Callable[[int], Asked], high: int) -> int | None:
        return largest(lambda value: fits(base, change(value), machine), 1, high)

    longest = base.context or LONGEST
    steps = of(lambda value: asked._replace(length=STEP * value), longest // STEP)
    length = None if steps is None else STEP * steps
    rows = of(lambda value: asked._replace(rows=value), MOST_ROWS)
    found = [
        Most(f"rows of {asked.length:,} tokens at once", rows, ""),
        Most("length", length, MADE_FOR if base.context and length == longest // STEP * STEP else ""),
    ]
    if METHODS[asked.method].adapter and rows is not None:
        rank = of(lambda value: asked._replace(rank=value), base.shape.hidden)
        found.append(Most("rank", rank, WIDE if rank == base.shape.hidden else ""))
    return tuple(found)


def fits(base: Base, asked: Asked, machine: Machine) -> bool:
    return training(base, asked, machine).fits


def largest_base(asked: Asked, machine: Machine) -> Base | None:
    """The largest public model that can be trained so."""
    return next((base for base in reversed(bases()) if fits(base, asked, machine)), None)
