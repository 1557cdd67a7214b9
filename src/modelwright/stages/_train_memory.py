"""The memory of a training stage, before it starts: what the process and each card hold, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from modelwright.core import processor
from modelwright.core.estimate import Machine, Part, Quantity
from modelwright.core.memory import Account, Training, training_account
from modelwright.core.memory.own import Texts, Work
from modelwright.core.units import bytes_text, count_text

if TYPE_CHECKING:
    from modelwright.stages._train_cost import Load

IMPORTS_BYTES = 0.48e9
"""torch, transformers, PEFT, a tokenizer and what the allocator keeps: 0.45 to 0.48 GB beside the account in small trainings on
Linux, x86-64, with torch 2.13 for CPU; 0.37 GB of it are the imports alone. Others differ: calibration corrects it."""
ROW_BYTES, ROW_USE_BYTES = 8, 4
"""Memory of each stored row (its length, its place in the epoch) and of each time it is used (`nn/order.py`); its tokens stay on
the disk, as do 40 bytes more."""


LEAST_TOKENS = 4
"""A shorter row is no row."""


class Row(NamedTuple):
    """A row of the data."""

    tokens: int
    texts: Callable[[int], tuple[Texts, ...]]
    """What a row of so many tokens becomes (`Objective.texts`)."""
    whole: bool = True
    """Its texts are stored as they are; else they are made of a stored text while training."""

    def stored(self, tokens: int) -> int:
        """Of a row of such texts, as micro-batches are filled with them."""
        return round(sum(text.number * text.tokens for text in self.texts(tokens))) if self.whole else tokens


class Memory(NamedTuple):
    """What a process holds, and what a card does."""

    process: Quantity
    parts: tuple[Part, ...]
    card: Quantity | None = None
    card_parts: tuple[Part, ...] = ()


def memory(load: Load, machine: Machine, tokens: float) -> Memory:
    """`tokens`: of the whole training. On a machine with cards, it is on these, and the rest in the processor's memory."""
    data = load.data_tokens or tokens
    rows = load.rows * (ROW_BYTES + ROW_USE_BYTES * tokens / max(data, 1.0))
    beside = [
        Part("imports", IMPORTS_BYTES, "torch, transformers, PEFT, a tokenizer and what the allocator keeps"),
        Part("rows", rows, f"places of {count_text(load.rows)} rows"),
    ]
    if load.reference:
        kept = 4.0 * load.target_frac * data
        beside.append(Part("reference", kept, "log-probabilities of the frozen start, one for each target of the data"))
    of_each = f" of each process ({load.parallel})" if load.parallel.processes > 1 else ""
    card = machine.device_memory_bytes > 0
    account, opening = training_account(_training(load, card, machine)), 4.0 * load.shape.params
    if not card:
        if opening > account.bytes:
            part = Part("opening", opening, "the whole model in float32, before the processes divide it")
            account = Account("opening", (part,))
        return Memory(*_added(tuple(beside) + account.parts, f" at {account.moment};{of_each or ' of the process'}"))
    beside.append(Part("opening", opening, "the model in float32, before it is on the card"))
    if away := _away(load, machine):
        beside.append(Part("offloaded", _offloaded(load, account), f"{' and '.join(away)}, which the card does not hold"))
    held, on_card = _added(tuple(beside), of_each), _added(account.parts, f" at {account.moment};{of_each or ' of the card'}")
    return Memory(*held, *on_card)


def _added(parts: tuple[Part, ...], where: str) -> tuple[Quantity, tuple[Part, ...]]:
    largest = sorted(parts, key=lambda part: -part.bytes)
    why = ", ".join(f"{part.name} {bytes_text(part.bytes)}" for part in largest)
    return Quantity(sum(part.bytes for part in parts), "bytes", why + (f";{where}" if where else "")), parts


def _training(load: Load, card: bool, machine: Machine) -> Training:
    return Training(
        shape=load.shape,
        work=work(load.row, load.batch_tokens, load.micro_tokens),
        trained=load.trained,
        optimizer=load.optimizer,
        frozen=load.frozen,
        beside=load.beside,
        half=load.half,
        own=load.own,
        full=load.full,
        asks=load.asks,
        averaged=load.averaged > 1,
        swapped=min(load.averaged, 1),
        validated=load.validations[0] > 0,
        step_in_backward=load.step_in_backward,
        ahead=load.added / load.shape.hidden**2,
        card=card,
        flash=machine.flash,
        processor=processor.here(),
        threads=load.threads or max(1, machine.cores // load.parallel.processes),
        offload=_away(load, machine),
        parallel=load.parallel,
    )


def work(row: Row, batch_tokens: float, micro_tokens: float) -> Work:
    """The largest micro-batch of a step of such rows, and of a shorter one that fills it, as `nn/rows.py` divides them."""
    size = row.stored(row.tokens)
    rows = max(1, int(batch_tokens // size))
    rest = int((batch_tokens - rows * size) * row.tokens // size)
    short = row.stored(rest) if rest >= LEAST_TOKENS else 0
    groups = max(1, -(-(rows * size + short) // int(micro_tokens)))
    while True:
        each, more = divmod(rows, groups)
        sizes = [(each + 1) * size] * more + [each * size] * (groups - more)
        sizes[more % groups] += short
        if groups >= rows + bool(short) or all(found <= micro_tokens for found in sizes):
            break
        groups += 1
    largest = max(sizes)
    beside = row.texts(rest) if short and sizes[more % groups] == largest else ()
    whole = round((largest - (short if beside else 0)) / size)
    texts = tuple(text._replace(number=text.number * whole) for text in row.texts(row.tokens)) if whole else ()
    return Work(texts + beside, sizes.count(largest) > 1, groups)


def _away(load: Load, machine: Machine) -> Sequence[str]:
    """What lies in the processor's memory: nothing where there is no CUDA card, and a run refuses to move anything."""
    return load.offload if machine.device == "cuda" else ()


def _offloaded(load: Load, account: Account) -> float:
    trained = sum(weight.number * load.optimizer.state_bytes(weight) for weight in load.trained)
    kept = sum(part.bytes for part in account.parts if part.name == "activations")
    return (trained if "states" in load.offload else 0.0) + (kept if "activations" in load.offload else 0.0)
