"""Advise: a method, a model to start from and a recipe, from what is known of the task, the data, the machine and the budget.

Four trees are walked (`tree.yaml`): the method, how its weights are trained, the shape of a new model, what becomes of it where
it is to run. Each question keeps its answer and where that came from; branches that were not taken are the alternatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from modelwright.core.estimate import Machine
from modelwright.core.units import bytes_text, seconds_text
from modelwright.plan import _advise_fit as sizes
from modelwright.plan._advise_facts import Method, data, method
from modelwright.plan._advise_measured import Gain, Update, update
from modelwright.plan._advise_recipe import Files, scratch
from modelwright.plan._advise_tree import ADAPTED, HEADS, Known, Situation, Walk, walk
from modelwright.plan._advise_trees import trees
from modelwright.plan._advise_written import Answered, uncompared, why_not, written

__all__ = ["Advised", "Files", "Known", "Situation", "advise"]

SHOWN_GAINS = 5
"""Newest evaluations of the user's own that are told one by one."""
MANY_COPIES = 0.05
"""Share of rows that are copies, from which it is said."""


class Advised(NamedTuple):
    """The answer."""

    walks: tuple[Walk, ...]
    """One for each tree that was asked."""
    methods: tuple[Method, ...]
    """In the order in which they are done; those of weights and deployment behind."""
    chosen: sizes.Chosen | None
    """The model to start from; None where none is needed."""
    update: Update
    gains: tuple[Gain, ...]
    recipe: str
    """Text of the recipe; '' where there is none."""
    no_recipe: str
    """Why there is none."""
    remarks: tuple[str, ...]
    table: tuple[dict[str, str], ...]
    """Methods side by side."""
    unit: str
    """The model whose SFT of all weights, one pass, they are told beside."""

    @property
    def title(self) -> str:
        return self.walks[0].end.title

    def walked(self, tree: str) -> Walk | None:
        return next((found for found in self.walks if found.tree == tree), None)


def advise(
    known: Known, machine: Machine, gains: tuple[Gain, ...] = (), files: Files | None = None, name: str = "advised"
) -> Advised:
    """`gains`: of the user's own runs (`_advise_measured.gains`). `files`: the user's data; None: there is none to name."""
    found = update(gains)
    origins = dict(known.origins)
    s = known.situation._replace(machine=machine, length=files.length if files is not None else None)
    if s.full_gain is None and found.full_gain is not None:
        s = s._replace(full_gain=found.full_gain)
        origins["full_gain"] = ("runs", found.said)
    walks = [walk(trees()["method"], Known(s, origins))]
    leaf, methods = walks[0].leaf, walks[0].end.methods
    made = None
    chosen = None
    if leaf in ("pretrain", "scratch_sft"):
        shape = walk(trees()["shape"], Known(s, origins))
        walks.append(shape)
        made = scratch(shape.end.methods[0], s.text_tokens or 1e6, _flops(s, machine))
    if made is not None or leaf == "smaller" or any(name in (*ADAPTED, *HEADS) for name in methods):
        objective = _reckoned(methods)
        if made is not None:
            chosen = sizes.reckoned("your own", made.shape, s, machine, "next_token", "full", new=True)._replace(why=made.why)
        else:
            chosen = sizes.shrunk(s, machine) if leaf == "smaller" else sizes.choose(s, machine, objective, methods)
        if chosen.trains and made is None and (first := _trained(methods)) and not method(first).here:
            chosen = chosen._replace(trains=f"{chosen.trains}, reckoned in place of {method(first).title}")
        s = s._replace(room=chosen.room, chosen=methods)
        by = "the training stage's own estimate" if chosen.trains else "its weights at so many bits"
        origins |= {"room": ("reckoned", by), "chosen": ("reckoned", walks[0].end.title)}
        if made is None and any(name in ADAPTED for name in methods):
            walks.append(walk(trees()["weights"], Known(s, origins)))
        walks.append(walk(trees()["deploy"], Known(s, origins)))
    names = tuple(dict.fromkeys(name for one in walks for name in one.end.methods))
    used = tuple(method(name) for name in names)
    told = files or Files()
    remarks = (*_first(chosen), *_of_data(told), *_remarks(s, found, gains), *_would_fit(walks, s, machine))
    answered = Answered(s, tuple(walks), used, chosen, made, machine, told)
    no_recipe = why_not(answered)
    text = "" if no_recipe else written(answered, name)
    unit = chosen or sizes.choose(Situation(), machine, "sft")
    table = tuple(_table(walks, unit, machine))
    return Advised(tuple(walks), used, chosen, found, gains, text, no_recipe, remarks, table, unit.room.name)


def _flops(s: Situation, machine: Machine) -> float:
    """Of training that the budget holds."""
    hours = s.hours or sizes.DAY_HOURS
    if s.usd is not None and machine.usd_per_hour:
        hours = min(hours, s.usd / machine.usd_per_hour)
    return hours * 3600 * (machine.bf16_flops_per_s or machine.flops_per_s)


def _trained(methods: tuple[str, ...]) -> str:
    """The first that trains a model; '' where none does."""
    return next((name for name in methods if name in (*ADAPTED, *HEADS)), "")


def _reckoned(methods: tuple[str, ...]) -> str:
    """The objective whose training is reckoned: the first one, SFT for those that are not here yet."""
    named = _trained(methods) or "sft"
    return named if method(named).state == "kind" else "sft"


def _remarks(s: Situation, found: Update, gains: tuple[Gain, ...]) -> tuple[str, ...]:
    """What to know beside the answer."""
    said = [f"LoRA or all weights: {found.said}"]
    for gain in gains[-SHOWN_GAINS:]:
        way = "all weights" if gain.way == "full" else gain.way
        said.append(
            f"your run {gain.stage}: {gain.method} with {way} changed {gain.measure} by {gain.difference:+.3g} "
            f"({gain.low:+.3g} to {gain.high:+.3g}, {gain.rows} rows)"
        )
    if (s.duplicates or 0.0) >= MANY_COPIES:
        said.append(f"{s.duplicates:.0%} of rows are copies: the recipe takes them out, since repeated rows are learned by heart")
    if len(s.languages) > 1:
        said.append(f"rows are in {', '.join(s.languages)}: measure each apart, and look whether the start knows all of them")
    if said_of_tasks := uncompared(s):
        said.append(said_of_tasks)
    if s.private:
        said.append("data may not leave this machine: no paid API is advised to write or judge answers")
    return tuple(said)


def _of_data(files: Files) -> Iterator[str]:
    """What to know of the data beside what the trees asked."""
    yield from (f"{path}: {found.said}" for path, found in files.broken.items())
    yield from files.said


def _first(chosen: sizes.Chosen | None) -> Iterator[str]:
    """A smaller start to try the recipe with."""
    if chosen is None or chosen.start is None or not chosen.trains:
        return
    smallest = next(start for start in data().starts if start.chats is chosen.start.chats)
    if smallest != chosen.start:
        yield (
            f"make it once with {smallest.start} in place of {chosen.room.name}: in minutes it shows what is wrong with data and "
            "settings (Karpathy 2019, A recipe for training neural networks, https://karpathy.github.io/2019/04/25/recipe/)"
        )


def _would_fit(walks: list[Walk], s: Situation, machine: Machine) -> Iterator[str]:
    """Where LoRA does not fit: what would make it, cheapest first."""
    if s.shape is None or not any(one.leaf in ("qlora", "smaller_base") for one in walks):
        return
    for change in sizes.changes(s, s.shape, machine)[:4]:
        enough = ", and then it fits" if change.enough else ""
        yield f"LoRA would take less with: {change.name}, {bytes_text(change.gives_bytes)} less{enough}; {change.costs}"


def _table(walks: list[Walk], unit: sizes.Chosen, machine: Machine) -> list[dict[str, str]]:
    """The advised methods and those turned down, side by side."""
    roles = {name: "advised" for one in walks for name in one.end.methods}
    for one in walks:
        for other in one.alternatives:
            for name in other.methods:
                roles.setdefault(name, "turned down")
    return sizes.beside(roles, unit, machine)


def published() -> list[dict[str, str]]:
    """The public comparison that priors come from, as rows."""
    found = data()
    return [
        {
            "method": method(name).title,
            "accuracy": f"{row.value:.3f}",
            "memory": f"{row.memory_gb:g} GB",
            "time": seconds_text(row.seconds),
            "with": row.note,
        }
        for name, row in found.published.items()
    ]
