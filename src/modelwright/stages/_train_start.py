"""Whether a training can go on from its start, as far as is known before that is opened, or made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelwright.core.errors import Impossible
from modelwright.core.estimate import Given

if TYPE_CHECKING:
    from modelwright.stages._train_spec import Training

OPENS_AS = {"causal": ("causal", "sequence", "tokens", "vectors"), "masked": ("masked", "sequence", "tokens", "vectors")}
"""Head that a model was trained with -> those that it can be opened with (`Objective.head`); others open as what they are."""


def check_start(stage: Training, given: Given) -> None:
    """Impossible for a start that is known to have another head than is needed, or to see fewer tokens than rows have."""
    if stage.start is None or stage.start not in given.parents:
        return
    facts = given.parents[stage.start]
    has = facts.head
    if has is not None and stage.objective.head not in (known := OPENS_AS.get(has, (has,))):
        raise Impossible(
            f"{stage.start} has a `{has}` head, and this objective needs a `{stage.objective.head}` one",
            f"it can be opened with: {', '.join(known)}",
            "choose another objective, or another `start`",
        )
    check_length(stage.length, facts.context)


def check_length(length: int, context: float | None) -> None:
    """Impossible for rows of more tokens than the start can see; None: that is not known."""
    if context is not None and length > context:
        raise Impossible(
            f"`length` {length} is more than the {context:.0f} tokens that the start can see",
            "its positions end there",
            f"set `length: {context:.0f}` or less, or a larger `length` where the start is trained",
        )
