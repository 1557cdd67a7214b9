"""Rows for a trace, made up of what a stage says of them: as long as they may be, as many as fill a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelwright.core.estimate import Facts
from modelwright.methods.objectives import ANSWER_FRAC, BRANCH_FRAC
from modelwright.stages._train_memory import LEAST_TOKENS

if TYPE_CHECKING:
    from modelwright.nn.order import Order
    from modelwright.nn.rows import Packed, Row, Rows
    from modelwright.stages._train_spec import Training

STEPS = 2
"""The second has what the first one left: gradients and the optimizer's states."""


class Words:
    """As much of a tokenizer as objectives ask for: how many tokens there are, and which are marks."""

    mask_token_id = eos_token_id = pad_token_id = 0
    all_special_ids = (0,)

    def __init__(self, size: int, marks: Sequence[str]) -> None:
        self._size, self._marks = size, marks

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        return dict.fromkeys(self._marks, 0)

    def convert_tokens_to_ids(self, marks: Sequence[str]) -> list[int]:
        return [(number + 1) % self._size for number in range(len(marks))]


class Made(NamedTuple):
    rows: Rows
    plan: Order
    attach: Callable[[Packed], Packed]
    why: str
    """Of what length rows are, and why."""


def made(stage: Training, data: Sequence[Facts], words: Words, folder: Path, seed: int) -> Made:
    """The rows of two steps, and what is done to each micro-batch; `data`: what is known of the stage's own rows."""
    import numpy as np

    from modelwright.nn.order import Order
    from modelwright.nn.rows import store

    length, why = _length(stage, data)
    vocab = len(words)
    rows = [_row(stage, length, vocab)]
    size = len(rows[0].ids)
    rows *= max(1, stage.batch_tokens // size)
    rest = stage.batch_tokens - len(rows) * size
    if rest >= LEAST_TOKENS * size // length:
        rows.append(_row(stage, rest * length // size, vocab))
    stored = store(rows, folder, vocab)
    chosen = _chosen(stage, stored)
    numbers = np.tile(np.asarray(chosen), STEPS)
    plan = Order(numbers, np.arange(0, len(numbers) + 1, len(chosen)))
    return Made(stored, plan, _attach(stage, words, seed), why)


def _chosen(stage: Training, rows: Rows) -> list[int]:
    """The rows of a step: of more micro-batches than two the others hold what the second does, and are left out."""
    from modelwright.nn.rows import micro_batches

    every = list(range(len(rows)))
    assert stage.micro_tokens is not None, "resolve first"
    groups = micro_batches(rows, every, stage.micro_tokens)
    if stage.objective.whole_step or len(groups) < 3:
        return every
    largest = sorted(groups, key=lambda group: -int(rows.lengths_R[group].sum()))
    return sorted(largest[0] + largest[1])


def _length(stage: Training, data: Sequence[Facts]) -> tuple[int, str]:
    """Tokens of a text of the rows."""
    longest = stage.objective.row_tokens(stage.length)
    tokens, rows = (sum(getattr(fact, name) or 0.0 for fact in data) for name in ("tokens", "rows"))
    if tokens and rows and all(fact.tokens and fact.rows for fact in data):
        mean = max(LEAST_TOKENS, round(tokens / rows))
        if mean < longest:
            return mean, f"rows of {mean} tokens, the mean of the data"
    return longest, f"rows of {longest} tokens, the most that there may be"


def _row(stage: Training, length: int, vocab: int) -> Row:
    """One of texts of so many tokens."""
    import numpy as np

    from modelwright.nn.rows import FIRST, SECOND, Row

    length = max(length, LEAST_TOKENS)
    ids = np.arange(length) * 7 % max(vocab - 1, 1) + 1  # none is a mark
    needs = stage.objective.needs
    if needs == "pairs":
        branch = max(1, round(length * BRANCH_FRAC))
        shared = length - branch
        both = np.concatenate([ids, ids[shared:]])
        return Row(both, [0] * shared + [FIRST] * branch + [SECOND] * branch, (branch, branch))
    if needs == "answers":
        answer = max(1, round(length * ANSWER_FRAC))
        return Row(ids, [0] * (length - answer) + [FIRST] * answer)
    every = [FIRST] * length
    if needs == "labels":
        return Row(ids, every, label=0.0)
    if needs == "tags":
        return Row(ids, every, tags=[0] * length)
    if needs == "groups":
        return Row(np.tile(ids, 2), every * 2, parts=[length, length])
    return Row(ids, every)


def _attach(stage: Training, words: Words, seed: int) -> Callable[[Packed], Packed]:
    if (change := stage.objective.change(words, seed)) is not None:
        return change
    if not stage.objective.reference:
        return lambda batch: batch

    def with_reference(batch: Packed) -> Packed:
        import torch

        return batch._replace(reference_N=torch.zeros(len(batch.target_N)))  # as many as the frozen start would say

    return with_reference
