"""What would keep a budget that a plan breaks: faster products, another device, both, fewer steps, an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Given, Machine
from modelwright.core.predict import Adjust, as_told, givens
from modelwright.core.recipe import Budget, Loaded
from modelwright.core.steps import Step
from modelwright.core.units import seconds_text, usd_text
from modelwright.plan import devices, money
from modelwright.plan.fit import attempt, field_of, tried, typed, with_values
from modelwright.plan.money import Cost, Over
from modelwright.plan.needs import needs
from modelwright.plan.target import Target
from modelwright.plan.whole import Plan, Planned, predicted, rows_of, sessions

SHOWN = 3
"""Proposals of each sort."""
GAIN_FRAC = 0.02
"""Products that spare less of the time than this are not worth their rounding."""


class Asked(NamedTuple):
    """What proposals are made for."""

    loaded: Loaded
    adjust: Adjust
    budget: Budget


class Faster(NamedTuple):
    """The stages with products in a type that a machine is faster at."""

    steps: tuple[Step, ...]
    sets: tuple[str, ...]
    """What to type for it."""


class Kept(NamedTuple):
    """A machine, lent or rented, on which a plan keeps its budget and fits."""

    usd: float
    seconds: float
    told: str


def proposals(loaded: Loaded, steps: Sequence[Step], on: Target, adjust: Adjust, broken: Plan, budget: Budget) -> Iterator[str]:
    """What gives the same first; each of the first two sorts keeps the budget."""
    asked, told = Asked(loaded, adjust, budget), as_told if on.device else adjust
    faster = _faster(steps, on.machine)
    quick = _rows(asked, faster.steps, on) if faster else None
    if quick and quick.total.seconds > (1 - GAIN_FRAC) * broken.seconds:
        quick = None
    overs = money.overs(budget, quick.total, quick.unknown) if quick else []
    if faster and quick and not overs and _fits(quick.rows, on.machine):
        takes = f"{seconds_text(quick.total.seconds)}, {usd_text(quick.total.usd)}"
        yield f"{typed(faster.sets)}: {takes}, with rounding in products"
    yield from _other_devices(asked, steps, on)
    excess = [one for one in broken.over if one.takes is not None]
    if not excess:
        return
    largest, step = _largest(broken.rows, steps, excess)
    given = _given(asked, steps, on, broken, largest.stage)
    yield from _fewer(largest, step, excess)
    if faster and quick and (still := [one for one in overs if one.takes is not None]):
        for text in _fewer(*_largest(quick.rows, faster.steps, still), still):
            yield f"{typed(faster.sets)} {text}"
    yield from _adapter(largest, step, given, broken.total, told)


class Rows(NamedTuple):
    """Of a plan that was tried."""

    rows: Sequence[Planned]
    unknown: tuple[str, ...]

    @property
    def total(self) -> Cost:
        return money.total([row.cost for row in _left(self.rows)])


def _rows(asked: Asked, steps: Sequence[Step], on: Target) -> Rows | None:
    """None where a stage cannot be on such a machine."""
    try:
        _, estimates = predicted(asked.loaded, steps, on, asked.adjust)
    except UserError:
        return None
    return Rows(*rows_of(steps, estimates, on))


def _left(rows: Sequence[Planned]) -> list[Planned]:
    return [row for row in rows if row.state != "cached"]


def _fits(rows: Sequence[Planned], machine: Machine) -> bool:
    """Whether it may: of no stage it is sure that it does not."""
    return not any(need.surely_not for row in _left(rows) for need in needs(row.estimate, machine))


def _largest(rows: Sequence[Planned], steps: Sequence[Step], excess: Sequence[Over]) -> tuple[Planned, Step]:
    """The stage that takes most of what the budget breaks at first."""
    largest = max(_left(rows), key=lambda row: money.value_of(excess[0].what, row.cost) or 0.0)
    return largest, next(step for step in steps if step.name == largest.stage)


def _given(asked: Asked, steps: Sequence[Step], on: Target, broken: Plan, stage: str) -> Given:
    estimates: dict[str, Estimate] = {row.stage: row.estimate for row in broken.rows}
    return givens(steps, estimates, on.machine, asked.loaded.recipe.seed, broken.parallel)[stage]


# --- faster products --------------------------------------------------------------------------------


def _faster(steps: Sequence[Step], machine: Machine) -> Faster | None:
    """Of all trainings to be made whose products run in float32, where the machine has faster ones; None where there are none."""
    type_ = machine.products("auto")[0]
    found, sets = list[Step](), list[str]()
    for step in steps:
        wanted = step.artifact is None and field_of(step.stage, "precision", None) == "fp32" and type_ != "fp32"
        try:
            found.append(step._replace(stage=with_values(step.stage, {"precision": type_})) if wanted else step)
        except (ValidationError, UserError):
            found.append(step)  # it cannot be had with what else the stage has
        if found[-1] is not step:
            sets.append(f"stages.{step.name}.precision={type_}")
    return Faster(tuple(found), tuple(sets)) if sets else None


# --- other devices ----------------------------------------------------------------------------------


def _other_devices(asked: Asked, steps: Sequence[Step], on: Target) -> Iterator[str]:
    """Devices with a price, or lent for nothing, on which the plan keeps its budget and fits: as it is, then with faster
    products."""
    plain, quick = list[Kept](), list[Kept]()
    for name, listed in devices.table(on.devices_file).items():
        priced = money.rent(on.table, name, 1) or any(row.device == name for row in on.table.free)
        if listed.row.device in ("cpu", "tpu") or not priced:
            continue
        other = on._replace(machine=devices.machine(listed), device=name, many=1)
        faster = _faster(steps, other.machine)
        plain += _kept(asked, steps, other, name == on.device)
        quick += _kept(asked, faster.steps, other, name == on.device, faster.sets) if faster else []
    for sort in (plain, quick):
        yield from (found.told for found in sorted(sort)[:SHOWN])


def _kept(asked: Asked, steps: Sequence[Step], other: Target, here: bool, sets: tuple[str, ...] = ()) -> list[Kept]:
    """One or none. `here`: what was planned for, which may still be lent for nothing; `sets`: what to type with it."""
    found = _rows(asked, steps, other)
    if found is None:
        return []
    free = sorted((one for one in sessions(found.rows, other) if one.fits), key=lambda one: one.usd)
    usable = found.total._replace(rent_usd=free[0].usd, power_usd=0.0) if free else found.total
    broken = money.overs(asked.budget, usable, found.unknown)
    if broken or (here and not free) or not _fits(found.rows, other.machine):
        return []
    typing = f" with {typed(sets)}" if sets else ""
    takes = f"{seconds_text(usable.seconds)}, {usd_text(usable.usd)}"
    if free:
        told = f"run on {other.device} at {free[0].provider}{typing}: {takes}"
    else:
        hired = other.rent.provider if other.rent else "yours"
        told = f"{' '.join([*([typed(sets)] if sets else []), f'--device {other.device}'])}: {takes} ({hired})"
    return [Kept(usable.usd, usable.seconds, told)]


# --- less work --------------------------------------------------------------------------------------


def _fewer(largest: Planned, step: Step, excess: Sequence[Over]) -> Iterator[str]:
    """As many steps, or epochs, as the budget holds; what does not grow with them stays."""
    spans = largest.estimate.spans
    whole = sum(span.seconds for span in spans)
    grows = sum(span.seconds for span in spans if span.name.startswith(("steps", "validation"))) / whole if whole else 1.0
    keeps = 1.0
    for one in excess:
        takes = money.value_of(one.what, largest.cost) or 0.0
        if takes * grows > 0:
            keeps = min(keeps, 1 - ((one.takes or 0.0) - one.limit) / (takes * grows))
    tree = step.stage.model_dump(include={"steps", "epochs"})
    if keeps > 0 and (steps := int((tree.get("steps") or 0) * keeps)):
        yield f"stages.{step.name}.steps={steps} instead of {tree['steps']}"
    elif keeps > 0 and (epochs := int((tree.get("epochs") or 0) * keeps * 100) / 100):
        yield f"stages.{step.name}.epochs={epochs:g} instead of {tree['epochs']:g}"


def _adapter(largest: Planned, step: Step, given: Given, total: Cost, adjust: Adjust) -> Iterator[str]:
    """LoRA instead of all weights, where the stage can have it and it is faster."""
    if step.stage.model_dump(include={"adapter"}).get("adapter", "none") is not None:
        return
    then = attempt(tried(step.stage, given, adjust), {"adapter": {"kind": "lora"}})
    if then is not None and (spared := largest.estimate.seconds.value - then.estimate.seconds.value) > 0:
        took = total.seconds - spared
        yield f"stages.{step.name}.adapter=lora: {seconds_text(took)} altogether instead of {seconds_text(total.seconds)}"
