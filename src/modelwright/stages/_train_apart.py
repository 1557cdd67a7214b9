"""Whether what a training learns from and what judges it share rows: exactly, or nearly.

Source: Lee et al. 2021, "Deduplicating training data makes language models better", arXiv:2107.06499, section 6.2: overlap of
train and validation makes the loss say less than it seems. Near is what it is for a split (`_curate_split`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from importlib import util
from typing import TYPE_CHECKING

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Check, Run, parse_ref
from modelwright.methods.sources import open_records
from modelwright.methods.steps import size_of
from modelwright.stages._curate_split import Split, find_leaks

if TYPE_CHECKING:
    from modelwright.stages._train_spec import Training

LOOKED_BYTES = 48_000_000
"""Of text on each side: some seconds of work."""
MOST_SHARED = 0.01
"""Share of held-out rows: rows of a few words are alike by chance."""
_SPLIT = Split(test=1, near=0.8)


def apart(stage: Training, run: Run) -> Iterator[Check]:
    """Parts of one split are apart already, and one reference on both sides is plain to see (rule `leak` of `check`)."""
    learnt = {mix.ref for mix in stage.data}
    for held in stage.validation or ():
        others = sorted(ref for ref in learnt if parse_ref(ref).name != parse_ref(held.ref).name)
        if not others:
            continue
        if util.find_spec("numba") is None:
            yield Check("validation is apart", True, f"{held.ref} is not compared: that needs the extra `data`", "")
            continue
        yield _compared(run, held.ref, others)


def _compared(run: Run, held: str, others: Sequence[str]) -> Check:
    test, whole = _rows(run, [held])
    train, whole_train = _rows(run, others)
    part = ["train"] * len(train) + ["test"] * len(test)
    leaks = find_leaks([*train, *test], part, _SPLIT)
    # the other way round, to count the held-out rows, of which there are fewer
    shared = find_leaks([*test, *train], ["train"] * len(test) + ["test"] * len(train), _SPLIT) if leaks else {}
    names = ", ".join(others)
    detail = f"{len(shared)} of {len(test)} rows of {held} are also, or nearly, in {names}"
    if leaks:
        row = min(leaks)
        detail += f", such as {train[row].id}: {leaks[row]}"
    if not (whole and whole_train):
        detail += f" (of the first {LOOKED_BYTES // 10**6} MB of each)"
    ok = len(shared) <= MOST_SHARED * len(test)
    fix = f"curate {names} with the step `{{kind: held_out, against: {held!r}}}`, or divide them in one `split`"
    return Check("validation is apart", ok, detail, "" if ok else fix)


def _rows(run: Run, refs: Sequence[str]) -> tuple[list[Record], bool]:
    """Rows as their text alone, and whether they are all."""
    found: list[Record] = []
    left = LOOKED_BYTES
    for ref in refs:
        for record in open_records(run.inputs[ref], Log(None)):
            if (left := left - size_of(record)) < 0:
                return found, False
            found.append(dataclasses.replace(record, meta={}))  # what it was made from is no part of it
    return found, True
