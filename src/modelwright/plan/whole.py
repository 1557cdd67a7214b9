"""A whole plan: every stage's time, memory, energy and money on a machine, what free tiers hold it, and what keeps its budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, UserErrors
from modelwright.core.estimate import Estimate, Machine
from modelwright.core.parallel import Parallel, elsewhere
from modelwright.core.predict import Adjust, as_told, givens, known, predict
from modelwright.core.recipe import Loaded
from modelwright.core.spec import kind_of
from modelwright.core.steps import Step
from modelwright.core.units import bytes_text, seconds_text, text_table, usd_text
from modelwright.plan import money
from modelwright.plan._lint import Finding
from modelwright.plan._whole_text import card_cells, energy_text, memory_text, rule_of, share
from modelwright.plan.cuda import on_card
from modelwright.plan.fit import Fits, fit, refusal, typed
from modelwright.plan.lint import lint
from modelwright.plan.models import unsized
from modelwright.plan.money import Cost, Over, Session
from modelwright.plan.needs import needs
from modelwright.plan.target import Target


class Planned(NamedTuple):
    """One stage of a plan."""

    stage: str
    kind: str
    state: str
    key: str
    estimate: Estimate
    usd: float
    """Of what is left to do."""
    cost: Cost = Cost()
    """The same, split."""
    group: str = ""
    """`data`, `fine-tuning`, `evaluation`, …"""
    resumes: bool = False


class Plan(NamedTuple):
    """What a recipe will take. `print(plan)` shows the table."""

    rows: list[Planned]
    machine: str
    pitfalls: tuple[Finding, ...] = ()
    on: Machine = Machine("", 1, 0.0)
    device: str = ""
    rent: str = ""
    """Whose price it is, where the machine is rented."""
    electricity: str = ""
    """What a kWh costs, where the machine is one's own."""
    parallel: Parallel = Parallel()
    notes: tuple[str, ...] = ()
    """What has to be known of the device, and files of the user's own that were read."""
    sessions: tuple[Session, ...] = ()
    """Of free tiers that have this device."""
    unknown: tuple[str, ...] = ()
    """Paid APIs whose price nobody told."""
    over: tuple[Over, ...] = ()
    """Limits of the budget that it breaks."""
    proposals: tuple[str, ...] = ()
    """What would be cheaper, where it does."""
    short: tuple[Fits, ...] = ()
    """Stages that do not, or may not, fit the memory of the planned machine, and what to change in them."""

    @property
    def left(self) -> list[Planned]:
        return [row for row in self.rows if row.state != "cached"]

    @property
    def seconds(self) -> float:
        """Time left: what is cached costs nothing."""
        return sum(row.estimate.seconds.value for row in self.left)

    @property
    def peak_bytes(self) -> float:
        return max((row.estimate.processes * row.estimate.memory.value for row in self.left), default=0.0)

    @property
    def card_bytes(self) -> float:
        """Most of one card."""
        return max((row.estimate.device_memory.value for row in self.left if row.estimate.device_memory), default=0.0)

    @property
    def total(self) -> Cost:
        return money.total([row.cost for row in self.left])

    @property
    def groups(self) -> dict[str, Cost]:
        """What is left, by what it is for."""
        found: dict[str, Cost] = {}
        for row in self.left:
            found[row.group] = found.get(row.group, Cost(kwh=0.0)).plus(row.cost)
        return found

    def refuse(self) -> None:
        """UserError where the plan breaks its budget."""
        if self.over:
            raise money.refusal(self.over, {row.stage: row.cost for row in self.left}, self.proposals)

    def table(self) -> list[dict[str, str]]:
        card = any(row.estimate.device_memory is not None for row in self.rows)
        power = self.on.power_w > 0
        return [
            {
                "stage": r.stage,
                "kind": r.kind,
                "state": r.state,
                "time": seconds_text(r.estimate.seconds.value),
                "memory": memory_text(r.estimate),
                **(card_cells(r.estimate.device_memory) if card else {}),
                "disk": bytes_text(r.estimate.disk.value),
                **({"energy": energy_text(r.cost.kwh if r.state != "cached" else 0.0)} if power else {}),
                "cost": usd_text(r.usd),
            }
            for r in self.rows
        ]

    def split(self) -> list[dict[str, str]]:
        """What is left by what it is for, the shares of time and money beside them."""
        whole, found = self.total, self.groups
        return [
            {
                "for": name,
                "time": f"{seconds_text(one.seconds)} ({share(one.seconds, whole.seconds)})",
                **({"energy": energy_text(one.kwh)} if self.on.power_w else {}),
                "cost": usd_text(one.usd) + (f" ({share(one.usd, whole.usd)})" if whole.usd else ""),
            }
            for name, one in found.items()
        ]

    def refuse_memory(self) -> None:
        """UserError where a stage surely does not fit the memory."""
        if errors := [refusal(one) for one in self.short if one.need.surely_not]:
            raise errors[0] if len(errors) == 1 else UserErrors(errors)

    def misfits(self) -> list[str]:
        """Stages that do not, or may not, fit the memory of the planned machine."""
        found = []
        for one in self.short:
            takes, has = bytes_text(one.need.high_bytes), bytes_text(one.need.has_bytes)
            enough = f"; enough to change: {typed(one.needed)}" if one.needed else ""
            found.append(f"{one.stage} {one.need.verdict}: up to {takes} of {one.need.what}, which has {has}{enough}")
        return found

    def tree(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "machine": self.machine,
            "on": self.on._asdict(),
            "device": self.device,
            "rent": self.rent,
            "electricity": self.electricity,
            "notes": list(self.notes),
            "parallel": self.parallel.model_dump(),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "total": cost_tree(self.total),
            "groups": {name: cost_tree(found) for name, found in self.groups.items()},
            "free": [session._asdict() for session in self.sessions],
            "unknown_prices": list(self.unknown),
            "over_budget": [one._asdict() for one in self.over],
            "proposals": list(self.proposals),
            "misfits": self.misfits(),
            "pitfalls": [finding._asdict() for finding in self.pitfalls],
            "stages": [_stage_tree(row) for row in self.rows],
        }

    def __str__(self) -> str:
        return text_table(self.table())


def _stage_tree(row: Planned) -> dict[str, Any]:
    found = row.estimate
    return {
        "stage": row.stage,
        "kind": row.kind,
        "group": row.group,
        "state": row.state,
        "key": row.key,
        "usd": row.usd,
        "cost": cost_tree(row.cost),
        "seconds": found.seconds._asdict(),
        "memory": found.memory._asdict(),
        "device_memory": found.device_memory._asdict() if found.device_memory else None,
        "disk": found.disk._asdict(),
        "parts": [part._asdict() for part in found.parts],
        "device_parts": [part._asdict() for part in found.device_parts],
        "rule_of_thumb": {**rule._asdict(), "error_frac": rule.error_frac} if (rule := rule_of(found)) else None,
        "spans": [span._asdict() for span in found.spans],
        "asked_tokens": list(found.asked_tokens),
    }


def cost_tree(found: Cost) -> dict[str, float | None]:
    return {**found._asdict(), "usd": found.usd}


# --- from estimates to a plan -------------------------------------------------------------------------


def spread(loaded: Loaded, steps: Sequence[Step], machine: Machine) -> Parallel:
    """As the recipe says; else one process for each card, by `data` where a training fits on one, else by `shard`."""
    if (told := loaded.recipe.runtime.parallel) is not None:
        return told
    if machine.devices == 1 or not any(step.stage.spreads for step in steps):
        return Parallel()
    by_data = Parallel(data=machine.devices)
    estimates = predict(steps, machine, loaded.recipe.seed, parallel=by_data)
    cards = [need for one in estimates.values() if one.device_memory for need in needs(one, machine)[:1]]
    return by_data if all(need.fits for need in cards) else Parallel(shard=machine.devices)


def _check_cards(parallel: Parallel, loaded: Loaded, steps: Sequence[Step], machine: Machine) -> None:
    """UserError where processes of one machine would have to share a card, which they refuse when they start."""
    todo = [step.stage for step in steps if step.artifact is None and step.stage.spreads]
    on_cards = any(getattr(stage, "device", "") in ("auto", "cuda") for stage in todo)
    many = machine.device == "cuda" and parallel.processes > machine.devices
    if not many or not on_cards or elsewhere(loaded.recipe.runtime.launch):
        return
    raise UserError(
        f"`parallel: {parallel}` needs {parallel.processes} cards, and the plan is for {machine.name}",
        "each process needs a card of its own",
        f"--devices {parallel.processes}, or fewer processes in `runtime.parallel`",
    )


def _idle(parallel: Parallel, machine: Machine) -> Iterator[str]:
    if 1 < parallel.processes < machine.devices:
        idle = machine.devices - parallel.processes
        yield f"`parallel: {parallel}` leaves {idle} of {machine.devices} cards without work, and all of them are in the price"


def of_run(loaded: Loaded, machine: Machine) -> Machine:
    """This machine, as a run takes it."""
    return machine._replace(apart=elsewhere(loaded.recipe.runtime.launch))


def predicted(loaded: Loaded, steps: Sequence[Step], on: Target, adjust: Adjust) -> tuple[Parallel, dict[str, Estimate]]:
    """`adjust` is what runs here taught, and so for this machine alone."""
    runtime, machine = loaded.recipe.runtime, on.machine
    parallel = spread(loaded, steps, machine)
    if on.device:
        _check_cards(parallel, loaded, steps, machine)
    found = predict(steps, machine, loaded.recipe.seed, as_told if on.device else adjust, parallel, runtime.memory)
    return parallel, {name: on_card(one, machine) for name, one in found.items()}


def rows_of(steps: Sequence[Step], estimates: dict[str, Estimate], on: Target) -> tuple[list[Planned], tuple[str, ...]]:
    """Every stage with its money, and the paid APIs without a price."""
    rows, unknown = [], list[str]()
    for step in steps:
        found, kind = estimates[step.name], kind_of(step.stage)
        cost = Cost(kwh=0.0)
        if step.artifact is None:
            models = [parent.path for parent in step.parents if parent.path is not None and "model" in parent.accepts.types]
            api = money.paid(step.stage, found.asked_tokens, on.table, models)
            unknown += api.unknown
            computes = on.machine.device == "cpu" or found.device_memory is not None
            cost = money.cost(found.seconds.value, on.machine, on.rent, on.table, api.usd, computes)
        group = money.group(kind, step.stage)
        rows.append(Planned(step.name, kind, step.state, step.key, found, cost.usd, cost, group, step.stage.resumes))
    return rows, tuple(dict.fromkeys(unknown))


def machine_text(machine: Machine) -> str:
    cards = f", {bytes_text(machine.device_memory_bytes)} on each card" if machine.device_memory_bytes else ""
    cards = " for processors and GPU" if machine.one_memory else cards
    return f"{machine.name}, {machine.cores} cores, {bytes_text(machine.memory_bytes)}{cards}"


def plan(loaded: Loaded, steps: Sequence[Step], on: Target, adjust: Adjust) -> Plan:
    on = on if on.device else on._replace(machine=of_run(loaded, on.machine))
    parallel, estimates = predicted(loaded, steps, on, adjust)
    rows, unknown = rows_of(steps, estimates, on)
    machine, budget, bill = on.machine, loaded.recipe.budget, on.table.electricity
    own = on.rent is None or on.rent.usd_per_hour == 0
    found = Plan(
        rows,
        machine_text(machine),
        tuple(lint(loaded, steps, estimates, machine)),
        machine,
        on.device,
        on.rent.told if on.rent else "",
        f"${bill.usd_per_kwh:g} a kWh ({bill.title}, {bill.date})" if own and bill and machine.power_w else "",
        parallel,
        (*on.notes, *_idle(parallel, machine), *_notes(loaded, steps, estimates, own and not machine.power_w)),
        tuple(sessions(rows, on)),
        unknown,
        short=tuple(_short(loaded, steps, on, adjust, parallel, estimates)),
    )
    over = tuple(money.overs(budget, found.total, unknown))
    if not over or budget is None:
        return found
    from modelwright.plan._cheaper import proposals

    return found._replace(over=over, proposals=tuple(proposals(loaded, steps, on, adjust, found._replace(over=over), budget)))


def _notes(loaded: Loaded, steps: Sequence[Step], estimates: dict[str, Estimate], unbilled: bool) -> Iterator[str]:
    """What is guessed, or left out of the sum that the budget is held against."""
    facts = known(steps, estimates)
    yield from filter(None, (unsized(s.name, s.stage, facts[s.name]) for s in steps if s.artifact is None))
    if unbilled and loaded.recipe.budget is not None and loaded.recipe.budget.usd is not None:
        yield "no electricity is in the sum, for want of what this machine draws: `modelwright bench machine --power-w WATTS`"


def sessions(rows: Sequence[Planned], on: Target) -> list[Session]:
    left = [(row.stage, row.estimate.seconds.value, row.resumes) for row in rows if row.state != "cached"]
    return money.sessions(on.table, on.device, on.many, left)


def _short(
    loaded: Loaded, steps: Sequence[Step], on: Target, adjust: Adjust, parallel: Parallel, estimates: dict[str, Estimate]
) -> Iterator[Fits]:
    """Of the stages to be made those that may not fit; a curation makes itself as small as its memory."""
    todo = [step for step in steps if step.artifact is None and not step.stage.works]
    if all(need.fits for step in todo for need in needs(estimates[step.name], on.machine)):
        return
    given = givens(steps, estimates, on.machine, loaded.recipe.seed, parallel)
    for step in todo:
        found = fit(step.stage, given[step.name], step.name, adjust=as_told if on.device else adjust)
        if found.needs and not found.need.fits:
            yield found
