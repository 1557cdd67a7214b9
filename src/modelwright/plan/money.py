"""What a plan costs: rent, paid APIs, energy, free tiers, budgets. Prices are rows of `prices.yaml`, each with its date.

Users change them in a file of the same layout: `--prices`, or `modelwright/prices.yaml` in the folder of settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Machine
from modelwright.core.places import read_yaml
from modelwright.core.recipe import Budget
from modelwright.core.spec import Spec, kind_of
from modelwright.core.stage import Stage
from modelwright.core.units import seconds_text
from modelwright.methods.objectives import Objective
from modelwright.plan.devices import LAYOUT, checked, settings_file, shipped

HOUR_S, KWH_J = 3600.0, 3.6e6
WEEK_HOURS, MONTH_WEEKS = 168, 4
BEFORE_MIN = 15
"""Minutes before a session is cut off by which a run should have saved."""


class Read(Spec):
    """When and where a price was read."""

    date: date
    """The day on which it was so."""
    title: str
    """Whose price, and of what."""
    url: str = ""
    """The page; empty for prices of your own."""


class Electricity(Read):
    """What a machine of one's own is billed for."""

    usd_per_kwh: float = Field(ge=0)
    """Dollars for a kilowatt-hour."""


class Hourly(Read):
    """A device on demand."""

    device: str
    """Its name in the table of devices; `this`: the machine that plans and runs."""
    provider: str
    """Who rents it; a name of your own where it is yours."""
    usd_per_hour: float = Field(ge=0)
    """Dollars for one of it and an hour; 0: it is yours, and electricity is counted."""
    least: int = Field(1, ge=1)
    """They are rented in bundles of so many."""


class Free(Read):
    """A device for nothing, or for a monthly price, within limits."""

    device: str
    """Its name in the table of devices."""
    provider: str
    """Who lends it."""
    devices: int = Field(1, ge=1)
    """How many there are in a session."""
    session_hours: float = Field(gt=0)
    """When a session is cut off."""
    weekly_hours: float | None = Field(None, gt=0)
    """Hours of all sessions of a week; unset: not told."""
    usd_per_month: float = Field(0.0, ge=0)
    """What the plan costs that it is part of."""
    note: str = ""
    """What else has to be known."""


class Api(Read):
    """A model behind a paid API."""

    provider: str
    """As `provider` of the engine `openai`."""
    model: str
    """As `model` of that engine."""
    prompt_usd: float = Field(ge=0)
    """Dollars for a million tokens of prompts."""
    answer_usd: float = Field(ge=0)
    """Dollars for a million tokens of answers."""


class Prices(Spec):
    """The whole file."""

    electricity: Electricity | None = None
    """What a kWh costs; unset: what the table of this program says."""
    hours: tuple[Hourly, ...] = ()
    """Devices by the hour."""
    free: tuple[Free, ...] = ()
    """Devices for nothing."""
    api: tuple[Api, ...] = ()
    """Paid APIs."""

    def over(self, other: Prices) -> Prices:
        """These rows, and of `other` those that none of them replaces."""
        hours = {(row.device, row.provider, row.least): row for row in (*other.hours, *self.hours)}
        free = {(row.device, row.provider): row for row in (*other.free, *self.free)}
        api = {(row.provider, row.model): row for row in (*other.api, *self.api)}
        return Prices(
            electricity=self.electricity or other.electricity,
            hours=tuple(hours.values()),
            free=tuple(free.values()),
            api=tuple(api.values()),
        )


def prices(file: Path | None = None) -> Prices:
    """This program's, under those of the folder of settings, under those of `file`."""
    found = _own()
    for path in (settings_file("prices.yaml"), file):
        if path is not None:
            found = checked(Prices, read_yaml(path, LAYOUT)).over(found)
    return found


@cache
def _own() -> Prices:
    return checked(Prices, shipped("prices.yaml"))


# --- one stage ----------------------------------------------------------------------------------------


THIS = "this"
"""The device of rows for the machine that plans and runs, where it is rented."""


class Rent(NamedTuple):
    """What all the planned devices cost together."""

    usd_per_hour: float
    provider: str
    told: str


def rent(table: Prices, device: str, count: int) -> Rent | None:
    """The cheapest row for so many of a device; None where there is none."""
    found = [(row.usd_per_hour * _rented(row, count), row) for row in table.hours if row.device == device]
    if not found:
        return None
    usd, row = min(found, key=lambda pair: pair[0])
    more = f", {many} are rented at once" if (many := _rented(row, count)) > count else ""
    return Rent(usd, row.provider, f"${usd:.4g} an hour at {row.provider}{more} ({row.title}, read {row.date})")


def _rented(row: Hourly, count: int) -> int:
    """Whole bundles of `least`."""
    return row.least * math.ceil(count / row.least)


class Cost(NamedTuple):
    """Of a stage, or of several."""

    seconds: float = 0.0
    rent_usd: float = 0.0
    api_usd: float = 0.0
    power_usd: float = 0.0
    """Of electricity, where the machine is one's own."""
    kwh: float | None = None
    """None: not known."""

    @property
    def usd(self) -> float:
        return self.rent_usd + self.api_usd + self.power_usd

    def plus(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.rent_usd + other.rent_usd,
            self.api_usd + other.api_usd,
            self.power_usd + other.power_usd,
            None if self.kwh is None or other.kwh is None else self.kwh + other.kwh,
        )


def total(costs: Sequence[Cost]) -> Cost:
    found = Cost(kwh=0.0)
    for one in costs:
        found = found.plus(one)
    return found


def cost(seconds: float, machine: Machine, hired: Rent | None, table: Prices, api_usd: float, computes: bool = True) -> Cost:
    """`computes`: the boards work while it runs; else they wait, and what they draw then is not known and left out."""
    kwh = machine.power_w * seconds / KWH_J if computes else 0.0
    own = hired is None or hired.usd_per_hour == 0
    power_usd = kwh * table.electricity.usd_per_kwh if own and table.electricity is not None else 0.0
    known = kwh if machine.power_w else None
    return Cost(seconds, hired.usd_per_hour * seconds / HOUR_S if hired else 0.0, api_usd, power_usd, known)


class Paid(NamedTuple):
    """What paid engines of a stage are predicted to cost."""

    usd: float
    unknown: tuple[str, ...] = ()
    """Provider and model of those whose price nobody told."""


def paid(stage: Stage, asked_tokens: tuple[float, float], table: Prices, models: Sequence[Path] = ()) -> Paid:
    """The recipe's own prices first, then the table's; a server of one's own costs nothing. `models`: files of the user's own;
    one that names an engine is taken to be asked everything."""
    from modelwright.methods.engines._remote import is_card, read_card

    usd, unknown = 0.0, []
    children = dict(stage.children())
    cards = [read_card(path) for path in models if is_card(path)] if children.get("engine") is None else []
    for spec in (*children.values(), *cards):
        tree: Mapping[str, Any] = spec.model_dump()
        if "prompt_usd" not in tree:
            continue
        row = next((row for row in table.api if (row.provider, row.model) == (tree["provider"], tree["model"])), None)
        told = (tree["prompt_usd"], tree["answer_usd"])
        if not any(told) and row is not None:
            told = (row.prompt_usd, row.answer_usd)
        elif not any(told) and tree["provider"] != "other":
            unknown.append(f"{tree['provider']} {tree['model']}")
        usd += sum(tokens / 1e6 * price for tokens, price in zip(asked_tokens, told, strict=True))
    return Paid(usd, tuple(unknown))


def group(kind: str, stage: Stage) -> str:
    """Under what people ask for the cost: data, pretraining, fine-tuning, preferences, rewards, evaluation, …"""
    objective = dict(stage.children()).get("objective")
    if not isinstance(objective, Objective):
        return {"evaluation": "evaluation", "records": "data", "tokenizer": "data"}.get(stage.produces, stage.produces)
    if objective.needs == "pairs":
        return "preferences"
    if objective.needs == "answers":
        return "fine-tuning"
    return "pretraining" if objective.needs == "text" else kind_of(objective)


# --- free tiers ---------------------------------------------------------------------------------------


class Session(NamedTuple):
    """Whether work fits what is lent for nothing."""

    provider: str
    fits: bool
    told: str
    usd: float = 0.0
    """Of the monthly plans that it takes."""


def sessions(table: Prices, device: str, count: int, stages: Sequence[tuple[str, float, bool]]) -> list[Session]:
    """`stages`: name, seconds, and whether a run that was cut off goes on. One for each row of this device."""
    return [_session(row, stages) for row in table.free if row.device == device and row.devices >= count]


def _session(row: Free, stages: Sequence[tuple[str, float, bool]]) -> Session:
    whole_s = row.session_hours * HOUR_S
    usd = f"${row.usd_per_month:g} a month" if row.usd_per_month else "free"
    used, left_s = 1, whole_s
    for name, seconds, resumes in stages:
        if not resumes and seconds > whole_s:
            what = f"{name} takes {seconds_text(seconds)} at a stretch, and a session ends after {row.session_hours:g} h"
            return Session(row.provider, False, f"{row.provider} ({usd}): does not fit, {what}")
        if seconds > left_s and not resumes:
            used, left_s = used + 1, whole_s
        elif seconds > left_s:
            more = math.ceil((seconds - left_s) / whole_s)
            used, left_s = used + more, left_s + more * whole_s
        left_s -= seconds
    total_h = sum(seconds for _, seconds, _ in stages) / HOUR_S
    weeks = math.ceil(total_h / (row.weekly_hours or WEEK_HOURS))
    end_min = int(60 * row.session_hours) - BEFORE_MIN
    how = f"{used} sessions of {row.session_hours:g} h, with `runtime: {{until: {end_min // 60}h{end_min % 60:02d}m}}`"
    told = how if used > 1 else f"one session of {row.session_hours:g} h"
    if row.weekly_hours:
        told += f", {weeks} weeks of {row.weekly_hours:g} h" if weeks > 1 else f", within {row.weekly_hours:g} h a week"
    text = f"{row.provider} ({usd}): {told}{f'; {row.note}' if row.note else ''}"
    return Session(row.provider, True, text, row.usd_per_month * math.ceil(weeks / MONTH_WEEKS))


# --- budgets ------------------------------------------------------------------------------------------


class Over(NamedTuple):
    """A limit that a plan breaks."""

    what: str
    """`usd`, `hours` or `kwh`."""
    takes: float | None
    """None: it cannot be told."""
    limit: float
    why: str = ""

    def __str__(self) -> str:
        if self.takes is None:
            return f"whether it keeps to {amount(self.what, self.limit)} cannot be told: {self.why}"
        times = f"{self.takes / self.limit:.3g} times as much"
        return f"{amount(self.what, self.takes)} of at most {amount(self.what, self.limit)}, {times}"


def amount(what: str, value: float) -> str:
    """Dollars below a cent to three digits: a limit and what breaks it would look alike."""
    return {
        "usd": f"${value:.2f}" if value >= 0.01 or not value else f"${value:.3g}",
        "hours": f"{value:.3g} h",
        "kwh": f"{value:.3g} kWh",
    }[what]


def value_of(what: str, found: Cost) -> float | None:
    return {"usd": found.usd, "hours": found.seconds / HOUR_S, "kwh": found.kwh}[what]


def overs(budget: Budget | None, found: Cost, unknown: Sequence[str] = ()) -> list[Over]:
    """Every limit that is broken, or that nobody can hold the plan to."""
    broken = []
    for what, limit in (budget.model_dump() if budget else {}).items():
        takes = value_of(what, found)
        if limit is None:
            continue
        if what == "usd" and unknown:
            fix = "give `prompt_usd` and `answer_usd` in the recipe, or a row of --prices"
            broken.append(Over(what, None, limit, f"nobody told the price of {', '.join(unknown)}; {fix}"))
        elif takes is None:
            why = (
                "what it draws is not known: `modelwright bench machine --power-w WATTS`, or `power_w` in a row of --devices-file"
            )
            broken.append(Over(what, None, limit, why))
        elif takes > limit:
            broken.append(Over(what, takes, limit))
    return broken


def refusal(broken: Sequence[Over], stages: Mapping[str, Cost], proposals: Sequence[str]) -> UserError:
    """By how much a plan breaks its budget, what takes most, and what would be cheaper."""
    first = broken[0].what
    ordered = sorted(stages.items(), key=lambda pair: -(value_of(first, pair[1]) or 0.0))
    largest = ", ".join(f"{name} {amount(first, value_of(first, found) or 0.0)}" for name, found in ordered[:3])
    nothing = "nothing in the tables of devices and prices is cheap enough: raise the budget, or train on less"
    if all(one.takes is None for one in broken):
        nothing = "tell what is not known, or leave that limit out"
    cheaper = "\n       ".join(["what would do:", *proposals]) if proposals else nothing
    return UserError(f"the plan breaks its budget: {'; '.join(map(str, broken))}", f"most takes: {largest}", cheaper)
