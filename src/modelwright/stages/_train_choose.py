"""Which training stage of a recipe to look at before it is made, and which tokenizer it will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from modelwright.core.errors import UserError
from modelwright.core.spec import kind_of
from modelwright.core.stage import Input
from modelwright.core.steps import Parent, Step

if TYPE_CHECKING:
    from modelwright.stages._train_spec import Training


class Chosen(NamedTuple):
    name: str
    stage: Training
    parents: Sequence[Parent]
    instead: dict[str, Input]
    """In the place of a start that is not made: the tokenizer that it will have."""


def choose(steps: Sequence[Step], name: str | None, recipe: Path) -> Chosen:
    """The stage of this name, or the last whose rows and tokenizer are made; UserError where there is none."""
    known = {step.name: step for step in steps}
    trains = {step.name: step for step in steps if kind_of(step.stage) == "train"}
    if not trains or (name is not None and name not in trains):
        what = f"the recipe has no stage {name!r} that trains" if name is not None else f"{recipe} trains nothing"
        raise UserError(what, fix=f"its stages that train: {', '.join(trains) or 'none'}")
    found = {each: _chosen(step, trains, known) for each, step in trains.items() if name in (None, each)}
    wanted = name or next((each for each in reversed(found) if not _missing(found[each], known)), next(iter(found)))
    if missing := _missing(found[wanted], known):
        raise UserError(
            f"stage {wanted!r} cannot be previewed yet: {', '.join(missing)} is not made",
            "its rows and its tokenizer come from there",
            " && ".join(f"modelwright run {recipe} --only {stage}" for stage in missing),
        )
    return found[wanted]


def _chosen(step: Step, trains: Mapping[str, Step], known: Mapping[str, Step]) -> Chosen:
    """The stage; where its start is not made, with the tokenizer and chat template that the start will have."""
    own = stage = cast("Training", step.stage)
    template, first = own.template, own.start
    while stage.start is not None and stage.start in trains and trains[stage.start].artifact is None:
        stage = cast("Training", trains[stage.start].stage)
        template = template or stage.template
    source = known.get(stage.start or stage.vocab or "")
    if stage is own or first is None or source is None or source.artifact is None:
        return Chosen(step.name, own, step.parents, {})
    instead = {first: Input(first, "tokenizer", source.artifact.path)}
    with_template = cast("Training", step.stage.model_copy(update={"template": template}))
    return Chosen(step.name, with_template, step.parents, instead)


def _missing(chosen: Chosen, known: Mapping[str, Step]) -> list[str]:
    """Stages to make before its rows can become tokens."""
    stage = chosen.stage
    needed = {*(mix.ref for mix in stage.data), stage.start or stage.vocab} - set(chosen.instead)
    stages = [parent.stage for parent in chosen.parents if parent.ref in needed and parent.stage is not None]
    return [name for name in dict.fromkeys(stages) if known[name].artifact is None]
