"""From an answer to the recipe that does it, or to why none can be written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from modelwright.core.estimate import Machine, Shape
from modelwright.methods.objectives import OBJECTIVES
from modelwright.plan import _advise_fit as sizes
from modelwright.plan._advise_answers import COMPARED, answer_tokens, checked
from modelwright.plan._advise_facts import Method, method
from modelwright.plan._advise_recipe import Files, Scratch, Wanted, recipe, tasks
from modelwright.plan._advise_tree import Situation, Walk
from modelwright.plan.models import named


class Answered(NamedTuple):
    """What the trees came to."""

    situation: Situation
    walks: tuple[Walk, ...]
    used: tuple[Method, ...]
    chosen: sizes.Chosen | None
    made: Scratch | None
    machine: Machine
    files: Files

    def leaf(self, tree: str) -> str:
        """Where the walk through a tree ended; '' where it was not walked."""
        return next((walk.leaf for walk in self.walks if walk.tree == tree), "")

    @property
    def methods(self) -> tuple[str, ...]:
        """Of the first tree, up to the first that is not here yet."""
        return tuple(takewhile(lambda name: method(name).here, self.walks[0].end.methods))

    @property
    def later(self) -> list[str]:
        return [found.title for found in self.used if not found.here]

    @property
    def start(self) -> str:
        """Reference of the model that the recipe begins with; '' for one from scratch, and where nobody named one."""
        if self.made is not None:
            return ""
        found = self.chosen
        if found is None and not self.situation.start:  # prompts are measured on the model that would be trained
            found = sizes.choose(self.situation, self.machine, "sft")
        return found.start.start if found is not None and found.start is not None else self.situation.start

    @property
    def export(self) -> dict[str, Any] | None:
        """Format for where it is to run; None: it stays as it is."""
        served = {"kind": "safetensors"} if self.situation.target == "gpu" else None
        formats = {"gguf_8": {"kind": "gguf", "type": "q8_0"}, "gguf_4": {"kind": "gguf", "type": "q4_k_m"}, "as_is": served}
        return formats.get(self.leaf("deploy"))

    @property
    def shape(self) -> Shape | None:
        if self.made is not None:
            return self.made.shape
        chosen = self.chosen
        return named(chosen.start.like).shape if chosen is not None and chosen.start is not None else self.situation.shape


_DATA = {
    "texts": "texts",
    "rows": "rows with answers",
    "pairs": "better and worse answers",
    "near": "pairs that belong together",
    "labelled": "texts with labels",
}
"""What `Files` has, in words."""
_NEEDS = {"next_token": "texts", "sft": "rows", "prompting": "rows", "dpo": "pairs", "contrastive": "near"}
"""Method -> what of it; others learn from labels."""


def why_not(found: Answered) -> str:
    """Why no recipe is written; '' where one is."""
    return next(_reasons(found), "")


def _reasons(found: Answered) -> Iterator[str]:
    smaller, files = found.leaf("method") == "smaller", found.files
    weights = [walk for walk in found.walks if walk.tree == "weights"]
    here = all(method(name).here for walk in weights for name in walk.end.methods)
    if found.later and ((not found.methods and not smaller) or not here):
        yield f"not here yet: {', '.join(found.later)}; a recipe is written for what can run"
    if nothing := [walk for walk in found.walks if not walk.end.methods and walk.leaf != "smaller"]:
        yield nothing[0].end.why
    if odd := [text for text in (*files.names(), *files.unknown, found.situation.start) if not text.isprintable()]:
        yield f"{odd[0]!r} has characters that no recipe of mine writes: rename it"
    lacks = [_DATA[of] for of in dict.fromkeys(_NEEDS.get(name, "labelled") for name in found.methods) if not getattr(files, of)]
    if lacks and files.unknown:
        named = "name its keys in `modelwright convert --from`, which writes one that is"
        yield f"{', '.join(files.unknown)} is in no layout that is known: {named}"
    yield from files.hopeless
    if files.buried and {"classify", "regress"} & {*found.methods}:
        yield f"labels lie in `{files.label_key}`, where no objective reads them: put them at the top of each row"
    if lacks:
        yield f"a recipe needs your data: name the files ({', '.join(lacks)}); of a folder of several sorts, each by itself"
    if found.made is None and not found.start:
        yield "a recipe needs a model to start from: name it with --start"
    if found.start.startswith("hf:") and not re.search(r"@[0-9a-f]{40}$", found.start):
        yield f"{found.start} is not pinned: name its commit, --start hf:org/name@<40 hex digits>"
    if smaller and found.export is None:
        missing = f"not here yet: {', '.join(found.later)}" if found.later else "it fits as it is where it runs"
        yield f"{missing}: nothing is made"


def written(found: Answered, name: str) -> str:
    """The recipe's text."""
    s, made = found.situation, found.made
    why = {one.name: f"{one.title}, for when {one.advice.use_when}." for one in found.used}
    last, way = found.walks[-1].end.why, found.leaf("weights") or "full"
    shape, trained = found.shape, [name for name in found.methods if name in OBJECTIVES.names() and found.start]
    tight = frozenset(name for name in trained if shape is not None and sizes.tight(shape, s, found.machine, name, way))
    why |= {name: f"{why[name]} So few tokens are computed at once that it fits." for name in tight}
    exact, answered = checked(s) and s.verifier in COMPARED, answer_tokens(s._replace(length=found.files.length))
    asked = {"kind": "evaluate", "tasks": tasks(exact, answered)}
    wanted = Wanted(
        name=name,
        methods=found.methods,
        way=way,
        start=found.start,
        shape=shape,
        architecture=next((walk.end.methods[0] for walk in found.walks if walk.tree == "shape"), ""),
        depth=made.depth if made is not None else 0,
        vocab=made.vocab if made is not None else 0,
        export=found.export,
        precision=sizes.precision(found.machine),
        exact=exact,
        answer_tokens=answered,
        usd=s.usd,
        hours=s.hours,
        tight=tight,
        engine=sizes.at_once(asked, shape, s, found.machine) if shape is not None else {},
        why=why | {"export": last[:1].upper() + last[1:]},
        head=tuple(_head(found)),
    )
    return recipe(wanted, found.files)


def uncompared(s: Situation) -> str:
    """Said where most answers can be checked, and none of the tasks that a recipe asks does it; '' elsewhere."""
    if not checked(s) or s.verifier in COMPARED:
        return ""
    by = f" by {s.verifier}" if s.verifier else ""
    return f"answers can be checked{by}, and no task here does that yet: `rouge` tells words in common, not right answers"


def _head(found: Answered) -> Iterator[str]:
    """Why this recipe, as the lines above it."""
    first = found.walks[0].end
    yield f"{first.title}: {first.why}. Written by `modelwright advise`."
    yield ""
    if found.chosen is not None:
        yield f"Start: {found.chosen.room.name}, {found.chosen.why}. Planned for {found.machine.name}."
    for walk in found.walks:
        for step in walk.steps:
            yield f"{step.asks} {step.fact} ({step.how}{f': {step.evidence}' if step.evidence else ''})."
    if found.later:
        yield f"Not here yet, and left out: {', '.join(found.later)}."
    if said := uncompared(found.situation):
        yield f"{said[:1].upper()}{said[1:]}."
    yield ""
    yield "Look at it before it runs: `modelwright plan --why`, `modelwright check`."
