"""What fits: how much of each memory a stage takes, the most of a field that still fits, and what to change where it does not.

Every number is the stage's own estimate: with other values the stage is built and checked anew, and asked again. What counts is
the high end of the interval, so that what is called fitting does. Fields are searched by bisection, since memory grows with them.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from modelwright.core.errors import UserError
from modelwright.core.estimate import Estimate, Given
from modelwright.core.parallel import Parallel
from modelwright.core.predict import Adjust, as_told
from modelwright.core.spec import Spec, kind_of
from modelwright.core.stage import Stage
from modelwright.core.steps import Step
from modelwright.core.units import bytes_text
from modelwright.plan.needs import Need, needs

S = TypeVar("S", bound=Spec)


# --- a stage with other values ----------------------------------------------------------------------


class Tried(NamedTuple):
    """A stage, and what it would take."""

    stage: Stage
    given: Given
    estimate: Estimate
    needs: tuple[Need, ...]
    adjust: Adjust

    @property
    def need(self) -> Need:
        """Of the scarcest memory."""
        return self.needs[0]

    @property
    def fits(self) -> bool:
        return all(need.fits for need in self.needs)

    def alike(self, need: Need) -> Need:
        """What it takes of the same memory."""
        return next(one for one in self.needs if ("card" in one.what) is ("card" in need.what))


def tried(stage: Stage, given: Given, adjust: Adjust = as_told) -> Tried:
    """`adjust`: by what earlier runs measured."""
    found = adjust(kind_of(stage), stage.estimate(given))
    return Tried(stage, given, found, needs(found, given.machine), adjust)


def with_values(spec: S, values: Mapping[str, Any]) -> S:
    """The spec with other values at dotted paths, checked as if it had been read from a recipe."""
    fields = {name: getattr(spec, name) for name in spec.model_fields_set}
    below: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, dot, rest = path.partition(".")
        if dot:
            below.setdefault(name, {})[rest] = value
        else:
            fields[name] = value
    for name, inner in below.items():
        old = fields.get(name, getattr(spec, name))
        if isinstance(old, str):  # a bare word is short for its kind
            fields[name] = {"kind": old, **inner}
        elif "kind" in inner:
            kept = old.model_fields_set if isinstance(old, Spec) else ()
            fields[name] = {field: getattr(old, field) for field in kept} | inner
        elif isinstance(old, Spec):
            fields[name] = with_values(old, inner)
        else:
            raise UserError(f"there is no {name!r} to change")
    return type(spec).model_validate(fields)


def attempt(now: Tried, values: Mapping[str, Any], given: Given | None = None) -> Tried | None:
    """The stage with other values; None where it cannot have them, or would ignore them."""
    if any(path.partition(".")[0] not in type(now.stage).model_fields for path in values):
        return None
    try:
        stage = with_values(now.stage, values)
        if _ignored(stage) - _ignored(now.stage):
            return None
        return tried(stage, given or now.given, now.adjust)
    except (ValidationError, PydanticCustomError, UserError):
        return None


def _ignored(stage: Stage) -> set[str]:
    """Paths of set values that the combination does not use."""
    found = set()
    for prefix, spec in (("", stage), *((f"{path}.", spec) for path, spec in stage.children())):
        found |= {prefix + name for name in spec.unused(stage) if name.partition(".")[0] in spec.model_fields_set}
    return found


def largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from `low` to `high` that fits, where smaller ones fit as well; None where `low` does not."""
    if low > high or not fits(low):
        return None
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- the most of a field ----------------------------------------------------------------------------


class Most(NamedTuple):
    """The largest value of a field with which all else fits."""

    field: str
    value: int | None
    """None: not even the smallest fits."""
    limit: str
    """What else holds it: '' where it is the memory."""


LONGEST = 1 << 20
"""Tokens of a row; where models end is told by none of their sizes."""
STEP = 64
"""Tokens are told in such steps: matrix products like it so."""
WHOLE, MADE_FOR, WIDE = "all of a step at once", "what the model was made for", "as wide as the model"
"""What holds a number where it is not the memory."""


def most(now: Tried, longest: int = 0) -> tuple[Most, ...]:
    """Of micro-batch, length and LoRA's rank, as far as the stage has them. `longest`: tokens that the model was made for."""
    stage: Any = now.stage
    fields = type(now.stage).model_fields
    if not {"micro_tokens", "batch_tokens", "length"} <= set(fields):
        return ()

    def of(values: Callable[[int], Mapping[str, Any]], high: int) -> int | None:
        return largest(lambda value: (then := attempt(now, values(value))) is not None and then.fits, 1, high)

    micro = of(lambda value: {"micro_tokens": STEP * value}, -(-stage.batch_tokens // STEP))
    whole = micro is not None and STEP * micro >= stage.batch_tokens
    top = (longest or LONGEST) // STEP
    length = of(lambda value: longer(now, STEP * value), top)
    found = [
        Most("micro_tokens", None if micro is None else min(stage.batch_tokens, STEP * micro), WHOLE if whole else ""),
        Most("length", None if length is None else STEP * length, MADE_FOR if longest and length == top else ""),
    ]
    if "adapter" in fields and stage.adapter is not None and "rank" in type(stage.adapter).model_fields:
        width = stage.shape(now.given.parents)[0].hidden
        rank = of(lambda value: {"adapter.rank": value}, width)
        found.append(Most("adapter.rank", rank, WIDE if rank == width else ""))
    return tuple(found)


def longer(now: Tried, length: int) -> dict[str, int]:
    """What else has to change for rows of such a length: a step and a micro-batch hold at least one of them."""
    stage: Any = now.stage
    micro = stage.micro_tokens or stage.resolve(now.given).micro_tokens
    return {
        "length": length,
        "batch_tokens": max(stage.batch_tokens, length),
        "micro_tokens": max(min(micro, stage.batch_tokens), length),
    }


# --- fit and refuse ---------------------------------------------------------------------------------


class Option(NamedTuple):
    """A change that can be tried."""

    name: str
    values: dict[str, Any]
    """By dotted path in the stage."""
    costs: str
    given: Given | None = None
    """What is known then, where that changes."""
    sets: tuple[str, ...] = ()
    """What to type, where it is no field of the stage."""


def field_of(spec: Any, name: str, without: Any) -> Any:
    """What stands in the field, or `without` where there is none: stages of all kinds come here."""
    return getattr(spec, name) if isinstance(spec, Spec) and name in type(spec).model_fields else without


def largest_or_least(now: Tried, values: Callable[[int], dict[str, Any]], low: int, high: int) -> int | None:
    """The largest number with which all fits, else the smallest that can be; None where there is none."""
    if low > high:
        return None

    def fits(size: int) -> bool:
        then = attempt(now, values(size))
        return then is not None and then.fits

    return largest(fits, low, high) or low


class Change(NamedTuple):
    """Something to change, after all that stand before it."""

    name: str
    sets: tuple[str, ...]
    """As typed behind a command: `stages.chat.recompute=full`; empty for what is not here yet."""
    gives_bytes: float
    """Less than before it, at the high end."""
    takes_bytes: float
    """With it and all before it, at the high end."""
    costs: str
    """In time, quality or money, with its source."""
    enough: bool
    """With it everything fits."""
    here: bool = True
    """False: not in this project yet, told for information; what comes after it goes without."""
    memory: str = "memory"
    """Of which it gives: what was scarcest before it."""

    @property
    def on_card(self) -> bool:
        return "card" in self.memory


class Fits(NamedTuple):
    """Whether a stage fits, and what would make it."""

    stage: str
    needs: tuple[Need, ...]
    changes: tuple[Change, ...]
    """Cheapest first; empty where everything fits."""
    already: tuple[str, ...]
    """What would be on that list, and is done anyway."""
    needed: tuple[str, ...]
    """The fewest of the changes' `sets` that make it fit; empty where none do."""

    @property
    def need(self) -> Need:
        return self.needs[0]


def fit(
    stage: Stage, given: Given, name: str, lengths: Mapping[str, Mapping[str, Any]] | None = None, adjust: Adjust = as_told
) -> Fits:
    """`name`: of the stage in its recipe. `lengths`: histograms of rows by reference, where they are known."""
    from modelwright.plan._fit_changes import already, changes

    now = tried(stage, given, adjust)
    if not now.needs or now.fits:
        return Fits(name, now.needs, (), (), ())
    found, needed = changes(now, name, lengths or {})
    return Fits(name, now.needs, found, already(now), needed)


def refusal(found: Fits, run_anyway: str = "") -> UserError:
    """For a stage that surely does not fit: the sum, and what to change. `run_anyway`: how to go on all the same."""
    need = found.need
    has = bytes_text(need.has_bytes)
    says = f"stage {found.stage!r} takes about {bytes_text(need.takes.value)} of {need.what}, and there are {has}"
    fix = "\n       ".join([*lines_of(found), *([run_anyway] if run_anyway else [])])
    return UserError(says, need.sum_text(), fix, f"stages.{found.stage}")


def judge(adjust: Adjust, step: Step, given: Given, estimate: Estimate) -> str:
    """A sentence where the stage may not fit, '' where it does; UserError where it surely does not. A curation is not looked at:
    it makes itself as small as its memory, and refuses by itself."""
    found, machine = needs(estimate, given.machine), given.machine
    if step.stage.works or not found or found[0].fits:
        return ""
    if step.stage.spreads and machine.devices > 1 and given.parallel.processes == 1:
        given = given._replace(parallel=Parallel(shard=machine.devices))  # as a run divides what is too large for one card
        found = needs(step.stage.estimate(given), machine)
    if (need := found[0]).fits:
        return ""
    if need.surely_not:
        told = fit(step.stage, given, step.name, adjust=adjust)
        raise refusal(told._replace(needs=found), "or run with --no-gates, and it is tried all the same")
    return (
        f"this may take more {need.what} than there is: {bytes_text(need.takes.value)} expected, at most "
        f"{bytes_text(need.high_bytes)} of {bytes_text(need.has_bytes)}; `modelwright fit` shows what to change"
    )


def lines_of(found: Fits) -> list[str]:
    """What to change, for people."""
    if not found.changes:
        return [] if found.need.fits else ["nothing in this stage gives memory: a smaller model does, or a machine with more"]
    lines = ["what gives memory, cheapest first, each beside those before it:"]
    both = len({change.on_card for change in found.changes} | {"card" in found.need.what}) > 1
    for number, change in enumerate(found.changes, 1):
        gives, takes = bytes_text(change.gives_bytes), bytes_text(change.takes_bytes)
        where = (" on the card" if change.on_card else " of main memory") if both else ""
        ends = f"{takes}, which fits" if change.enough else takes
        here = "" if change.here else " (not here yet)"
        lines.append(f"{number}. {change.name}{here}: {gives} less{where}, at most {ends}; {change.costs}")
        if change.sets:
            lines.append(f"   {typed(change.sets)}")
    lines += [f"done already: {text}" for text in found.already]
    return [*lines, f"enough of these: {typed(found.needed)}" if found.needed else "all of these together are not enough"]


def typed(sets: Sequence[str]) -> str:
    """As it is typed in a shell."""
    return " ".join(map(shlex.quote, sets))
