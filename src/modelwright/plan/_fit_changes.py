"""What to change in a stage that does not fit, cheapest first: the same result, then rounding, another method, less data, a
smaller model, more cards. What each gives is the stage's own estimate before and after; what it costs stands here, with its
source.

Sources of costs: recomputation, Chen et al. 2016, arXiv:1604.06174; products in 16 bits, Micikevicius et al. 2018,
arXiv:1710.03740; steps in the backward pass, Lv et al. 2023, arXiv:2306.09782; states in 8 bits, Dettmers et al. 2022,
arXiv:2110.02861 (abstract); adapters, Biderman et al. 2024, arXiv:2405.09673 (abstract); sharding, Rajbhandari et al. 2020,
arXiv:1910.02054.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from modelwright.core.estimate import Facts, Given
from modelwright.core.parallel import Parallel
from modelwright.core.spec import kind_of
from modelwright.core.stage import parse_ref
from modelwright.core.units import bytes_text, count_text
from modelwright.methods.objectives import Objective
from modelwright.plan._advise_facts import Start, data
from modelwright.plan._fit_asked import fewer_answers, fewer_bits, half_weights, shorter_pieces
from modelwright.plan._fit_models import four_bit_needs
from modelwright.plan.fit import STEP, Change, Option, Tried, attempt, field_of, largest_or_least
from modelwright.plan.models import named

LEAST_FRAC = 0.005
"""Changes that give less of the memory than this are left out: they are lost in the interval."""
CHARS_PER_TOKEN = 3.5
"""Where only characters of rows are known; byte-level BPE on code and English gives 3 to 4.5."""
MOST_CARDS = 64
LEAST_RANK, LEAST_LENGTH = 4, 256
"""Below these nobody is advised to go: little is learned so."""

Lengths = Mapping[str, Mapping[str, Any]]


def changes(first: Tried, name: str, lengths: Lengths) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Each after those before it, until all fits; and what to type of them so that it does."""
    now, taken = first, list[Option]()
    found: list[Change] = []
    for offer in OFFERS:
        if offer is _length and (change := four_bits(now)) is not None:
            found.append(change)
        option = offer(now, lengths)
        then = attempt(now, option.values, option.given) if option is not None else None
        if option is None or then is None:
            continue
        before, after = now.need.high_bytes, then.alike(now.need).high_bytes
        if before - after < LEAST_FRAC * now.need.has_bytes:
            continue
        costs, memory = _slower(now, then) + option.costs, now.need.what
        found.append(Change(option.name, _sets(option, name), before - after, after, costs, then.fits, memory=memory))
        taken.append(option)
        now = then
        if now.fits:
            return tuple(found), _fewest(first, taken, name)
    return tuple(found), ()


def _fewest(first: Tried, taken: list[Option], name: str) -> tuple[str, ...]:
    """What to type of the options: those without which the last would not do, and of them each value that is needed."""

    def fits(values: Mapping[str, Any], given: Given) -> bool:
        found = attempt(first, values, given)
        return found is not None and found.fits

    for option in reversed(taken[:-1]):
        fewer = [one for one in taken if one is not option]
        if fits(*_all(first, fewer)):
            taken = fewer
    values, given = _all(first, taken)
    for path in tuple(values):
        fewer_values = {other: value for other, value in values.items() if other != path}
        if fits(fewer_values, given):
            values = fewer_values
    return *(text for option in taken for text in option.sets), *_typed(values, name)


def _all(first: Tried, options: Sequence[Option]) -> tuple[dict[str, Any], Given]:
    """What all of them change: of several values of a field the last."""
    values: dict[str, Any] = {}
    given = first.given
    for option in options:
        values |= option.values
        if option.given is not None:
            spread = option.given if option.given.parallel != first.given.parallel else given
            parents = {**given.parents, **option.given.parents}
            given = given._replace(parents=parents, parallel=spread.parallel, machine=spread.machine)
    return values, given


def _typed(values: Mapping[str, Any], name: str) -> list[str]:
    return [f"stages.{name}.{path}={written(value)}" for path, value in values.items()]


def _sets(option: Option, name: str) -> tuple[str, ...]:
    return *option.sets, *_typed(option.values, name)


def written(value: Any) -> str:
    """As YAML in one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("...").strip()


def _slower(now: Tried, then: Tried) -> str:
    times = then.estimate.seconds.value / max(now.estimate.seconds.value, 1e-9)
    return f"{times:.2f} times the time; " if abs(times - 1) >= 0.02 else ""


# --- the same result --------------------------------------------------------------------------------


def _micro(now: Tried, lengths: Lengths) -> Option | None:
    if not {"micro_tokens", "batch_tokens", "length"} <= set(type(now.stage).model_fields):
        return None
    stage: Any = now.stage
    at_once = min(stage.resolve(now.given).micro_tokens, stage.batch_tokens)
    least = -(-stage.length // STEP)
    most = -(-at_once // STEP) - 1
    size = largest_or_least(now, lambda value: {"micro_tokens": STEP * value}, least, most)
    if size is None:
        return None
    costs = "the same result; matrix products of fewer than some hundred tokens run slower"
    return Option(f"micro-batches of {STEP * size:,} tokens", {"micro_tokens": STEP * size}, costs)


def _divide(now: Tried, lengths: Lengths) -> Option | None:
    """Copies of a model on several processes, of which each may keep a part."""
    parallel = now.given.parallel
    if parallel.data == 1:
        return None
    shard = parallel.data * parallel.shard
    given = now.given._replace(parallel=parallel.model_copy(update={"data": 1, "shard": shard}))
    sets = ("runtime.parallel.data=1", f"runtime.parallel.shard={shard}")
    costs = "the same but for the order of sums; weights travel in each pass (arXiv:2304.11277)"
    return Option(f"divide the model over the {shard} processes that have copies", {}, costs, given, sets)


def _recompute(now: Tried, lengths: Lengths) -> Option | None:
    return Option("compute layers again in the backward pass", {"recompute": "full"}, "the same to the bit (arXiv:1604.06174)")


def _offload(what: str, now: Tried, lengths: Lengths) -> Option | None:
    held = field_of(now.stage, "offload", ())
    if what in held or now.given.machine.device != "cuda":
        return None
    costs = "the same to the bit; a copy there and back each step, over the link of the card"
    return Option(f"keep {what} in the processor's memory", {"offload": (*held, what)}, costs)


# --- the same but for rounding ----------------------------------------------------------------------


def _states(now: Tried, lengths: Lengths) -> Option | None:
    costs = "as good as 32 bits in the paper's tasks, up to 1.5B weights (arXiv:2110.02861)"
    return Option("optimizer's states in 8 bits", {"optimizer.kind": "adamw8bit"}, costs)


def _half(now: Tried, lengths: Lengths) -> Option | None:
    type_ = now.given.machine.products("bf16")[0]
    if type_ == "fp32" and now.given.machine.fp16_flops_per_s:
        type_ = "fp16"
    costs = "rounding in products; weights, sums and loss stay float32 (arXiv:1710.03740)"
    return Option(f"products in {type_}", {"precision": type_}, costs)


def _in_backward(now: Tried, lengths: Lengths) -> Option | None:
    values = {"step_in_backward": True, "clip": 0.0}
    costs = "differs by rounding, and gradients are not clipped (arXiv:2306.09782)"
    return Option("step weights inside the backward pass", values, costs)


# --- another method ---------------------------------------------------------------------------------


def _adapter(now: Tried, lengths: Lengths) -> Option | None:
    costs = "learns less of programming and mathematics than all weights do, and forgets less (arXiv:2405.09673)"
    taken = field_of(now.stage, "adapter", None) is not None
    return None if taken else Option("train LoRA beside frozen weights", {"adapter": "lora"}, costs)


def _rank(now: Tried, lengths: Lengths) -> Option | None:
    rank = field_of(field_of(now.stage, "adapter", None), "rank", 1)
    less = largest_or_least(now, lambda value: {"adapter.rank": value}, LEAST_RANK, rank - 1)
    if less is None:
        return None
    return Option(f"LoRA of rank {less}", {"adapter.rank": less}, "less room to learn in (arXiv:2106.09685, table 6)")


def four_bits(now: Tried) -> Change | None:
    """QLoRA in place of LoRA, for information."""
    shape = next((facts.shape for facts in now.given.parents.values() if facts.shape), None)
    if (
        shape is None
        or field_of(now.stage, "adapter", None) is None
        or not any(part.name in ("weights", "opening") for part in now.need.parts)
    ):
        return None
    then = now._replace(needs=four_bit_needs(now, shape))
    costs = "as good as LoRA beside 16 bits in the paper's tests (arXiv:2305.14314)"
    after = then.alike(now.need).high_bytes
    gives, what = now.need.high_bytes - after, "QLoRA: the frozen weights in 4 bits"
    return Change(what, (), gives, after, costs, then.fits, here=False, memory=now.need.what)


# --- less data, a smaller model, more cards ---------------------------------------------------------


def _length(now: Tried, lengths: Lengths) -> Option | None:
    if not {"micro_tokens", "batch_tokens", "length"} <= set(type(now.stage).model_fields):
        return None
    stage: Any = now.stage

    whole = {"step_in_backward": False} if field_of(stage, "step_in_backward", False) else {}  # it needs steps of one micro-batch

    def values(size: int) -> dict[str, Any]:
        return {"length": STEP * size, "micro_tokens": STEP * size, **whole}

    size = largest_or_least(now, values, LEAST_LENGTH // STEP, -(-stage.length // STEP) - 1)
    if size is None:
        return None
    return Option(f"rows of at most {STEP * size:,} tokens", values(size), _cut(now, STEP * size, lengths))


def _cut(now: Tried, length: int, lengths: Lengths) -> str:
    """How many rows are longer, where that is known."""
    stage: Any = now.stage
    known = [(mix.ref, lengths[mix.ref]) for mix in stage.data if mix.ref in lengths]
    total = sum(sum(histogram["counts"]) for _, histogram in known)
    if not total:
        return "longer texts are cut into pieces, longer chats left out; how many is not known yet"
    over = 0.0
    for ref, histogram in known:
        facts = now.given.parents.get(ref, Facts(type="records"))
        each = facts.chars / facts.tokens if facts.chars and facts.tokens else CHARS_PER_TOKEN
        over += _above(histogram, length * each)
    return f"about {over / total:.0%} of {count_text(total)} rows are longer: texts are cut into pieces, chats left out"


def _above(histogram: Mapping[str, Any], chars: float) -> float:
    """Rows longer than this; evenly spread inside a bin."""
    edges, counts = histogram["edges"], histogram["counts"]
    bins = zip(edges, edges[1:], counts, strict=False)
    return float(sum(count * min(1.0, max(0.0, (high - chars) / (high - low))) for low, high, count in bins))


def _smaller(now: Tried, lengths: Lengths) -> Option | None:
    field = "start" if field_of(now.stage, "start", None) is not None else "model"
    start = field_of(now.stage, field, None)
    start = start if isinstance(start, str) else None
    depth = field_of(field_of(now.stage, "model", None), "depth", 1)
    if start is None and (less := largest_or_least(now, lambda value: {"model.depth": value}, 1, depth - 1)) is not None:
        return Option(f"a model of depth {less}", {"model.depth": less}, "fewer weights know less")
    if start is None or parse_ref(start).kind == "stage":  # an earlier stage decides how large it is
        return None
    has = now.given.parents[start].shape
    for one in (starts := _starts(now)):
        shape = named(one.like).shape
        given = now.given._replace(parents={**now.given.parents, one.start: Facts(type="model", shape=shape)})
        smaller = has is None or shape.params < has.params
        if smaller and ((then := attempt(now, {field: one.start}, given)) is not None) and (then.fits or one is starts[-1]):
            what = f"a {field} of {count_text(shape.params)} weights, such as {one.name}"
            return Option(what, {field: one.start}, "fewer weights know less", given)
    return None


def _starts(now: Tried) -> list[Start]:
    """Public models, pinned, the largest first: those that only go on with texts where texts are what is learned."""
    objective = field_of(now.stage, "objective", None)
    texts = isinstance(objective, Objective) and objective.needs in ("text", "documents")
    found = [start for start in data().starts if start.chats is not texts]
    return sorted(found, key=lambda start: -named(start.like).params)


def _cards(now: Tried, lengths: Lengths) -> Option | None:
    if now.given.parallel.processes > 1 or now.given.machine.device != "cuda":  # others are whole machines, or never trained on
        return None

    alone: dict[str, Any] = {"step_in_backward": False} if field_of(now.stage, "step_in_backward", False) else {}
    if "states" in (held := field_of(now.stage, "offload", ())):  # both are one process's
        alone["offload"] = tuple(what for what in held if what != "states")

    def spread(count: int) -> Given:
        return now.given._replace(parallel=Parallel(shard=count), machine=_several(now, count))

    counts = [2**power for power in range(1, MOST_CARDS.bit_length())]
    count = next((n for n in counts if (then := attempt(now, alone, spread(n))) is not None and then.fits), counts[-1])
    costs = f"{count} times the price an hour, for less than so many times the speed (arXiv:1910.02054)"
    sets = (f"runtime.parallel.shard={count}",)
    return Option(f"shard over {count} such cards", alone, costs, spread(count), sets)


def _several(now: Tried, count: int) -> Any:
    machine = now.given.machine
    return machine._replace(
        devices=count, memory_bytes=machine.memory_bytes * count / machine.devices, usd_per_hour=machine.usd_per_hour * count
    )


OFFERS: tuple[Callable[[Tried, Lengths], Option | None], ...] = (
    fewer_answers,
    shorter_pieces,
    _micro,
    _divide,
    _recompute,
    partial(_offload, "activations"),
    partial(_offload, "states"),
    _states,
    _half,
    half_weights,
    _in_backward,
    _adapter,
    _rank,
    _length,
    fewer_bits,
    _smaller,
    _cards,
)
"""Cheapest first."""


def already(now: Tried) -> tuple[str, ...]:
    """What other programs would still have to switch on, and what it spares at most. A step over lists of tensors holds about a
    copy of what it steps: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html (`foreach`)."""
    stage: Any = now.stage
    if "micro_tokens" not in type(stage).model_fields:
        return ()
    shape = stage.shape(now.given.parents)[0]
    targets = min(stage.resolve(now.given).micro_tokens, stage.batch_tokens) * stage.objective.target_frac
    logits, step = 2 * 4.0 * targets * shape.vocab, 4.0 * stage.trainable(shape)
    found = [
        (logits, "the loss in chunks", f"logits of {count_text(targets)} targets and their gradient would take"),
        (
            step if "adamw" in kind_of(stage.optimizer) else 0.0,
            "a fused step",
            "one over lists of weights would take",
        ),
    ]
    least = LEAST_FRAC * now.need.has_bytes
    return tuple(f"{what}: {why} {bytes_text(size)}" for size, what, why in found if size > least)
