"""A linear classifier from the user's own examples, which `quality` and `toxicity` share; the machine: `text/linear.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from modelwright.core.errors import UserError
from modelwright.core.stage import Accepts, Run
from modelwright.methods.sources import open_records
from modelwright.methods.steps import content
from modelwright.methods.steps._rows import ONE_OR_MORE

if TYPE_CHECKING:
    from modelwright.text.linear import Trained

Examples = Annotated[tuple[Annotated[str, Accepts(("records",))], ...], ONE_OR_MORE]
"""Field type: one reference to records or a list of them."""
MIN_EXAMPLES = 20
"""Of each class: with fewer, the four of them that are held out say nothing of how well they are told apart."""
CHANCE = 0.6
"""AUC below which the classifier is said to have learnt next to nothing."""


def learnt(refs: dict[str, Sequence[str]], run: Run) -> Trained:
    """Tells the texts behind the first references from those behind the second; the same weights in every process."""
    import numpy as np

    from modelwright.text import Texts
    from modelwright.text.linear import trained

    texts: list[str] = []
    counts: list[int] = []
    for field, found in refs.items():
        before = len(texts)
        texts += [text for ref in found for record in open_records(run.inputs[ref], run.log) if (text := content(record)).strip()]
        counts.append(len(texts) - before)
        if counts[-1] < MIN_EXAMPLES:
            raise UserError(
                f"`{field}` has {counts[-1]} examples, and a classifier needs {MIN_EXAMPLES} of each class at least",
                f"in {', '.join(found)}; empty rows do not count",
                "add rows, or paragraphs in files of their own; some hundreds make it good",
            )
    return trained(Texts.of(texts), np.arange(len(texts)) < counts[0], seed=0)


def known(refs: dict[str, Sequence[str]], run: Run) -> dict[str, list[str]] | None:
    """What stands behind references, for `measured_by`; None where that has no key."""
    found = {field: [f"{run.inputs[ref].key}#{run.inputs[ref].part}" for ref in named] for field, named in refs.items()}
    return found if all(run.inputs[ref].key for named in refs.values() for ref in named) else None


def told(step: str, found: Trained) -> str:
    """What the user should know of it."""
    text = f"{step}: the classifier tells held-out examples apart with an AUC of {found.auc:.3f} ({found.held_out} rows)"
    return text + (", hardly better than chance: the examples do not differ in their words" if found.auc < CHANCE else "")
