"""Which rows each step trains on: a fixed plan made before training from the row lengths and the seed alone.

In memory: four bytes for each time that a row is used, and four a row for the order of the epoch that is being drawn.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from modelwright.core.errors import UserError
from modelwright.nn.rows import AT_ONCE


class Source(NamedTuple):
    """Rows `first` to `first + len(lengths)` of the stored ones, and how much of them to use."""

    first: int
    lengths: np.ndarray
    weight: float | None = None
    """Share of tokens, relative to the other sources; None: as many as it has."""
    epochs: float | None = None
    """Times each row is used; None: as often as the budget asks for."""
    name: str = ""


class Order(NamedTuple):
    """Row numbers in training order, and where each step begins among them."""

    rows: np.ndarray
    starts: np.ndarray
    shares: tuple[float, ...] = ()
    """Share of the tokens that each source was to have."""

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def step(self, index: int) -> list[int]:
        return [int(row) for row in self.rows[self.starts[index] : self.starts[index + 1]]]

    def pieces(self) -> Iterator[np.ndarray]:
        """`rows`, some at a time: what is made of all of them at once would take more memory than they do."""
        for begin in range(0, len(self.rows), AT_ONCE):
            yield self.rows[begin : begin + AT_ONCE]

    def used(self, first: int, end: int, lengths_R: np.ndarray) -> tuple[int, int]:
        """How often rows `first` to `end` are used, all together, and their tokens."""
        times = tokens = 0
        for piece in self.pieces():
            mine = piece[(piece >= first) & (piece < end)]
            times, tokens = times + len(mine), tokens + int(lengths_R[mine].sum())
        return times, tokens


def order(
    sources: Sequence[Source], batch_tokens: int, seed: int, steps: int | None = None, epochs: float | None = None
) -> Order:
    """A plan for `steps` steps of at most `batch_tokens` tokens, or for `epochs` passes over the sources.

    Every epoch of a source is a new permutation drawn from (seed, source, epoch). Sources are interleaved so that
    each has its share of the tokens at any time. A row longer than `batch_tokens` makes a step of its own.
    """
    assert (steps is None) != (epochs is None)
    limits, shares = _shares(sources, batch_tokens, steps, epochs)
    rows, starts = array("I"), array("q", [0])
    room = batch_tokens
    for row, length in _draw(sources, limits, shares, seed):
        if length > room and len(rows) > starts[-1]:
            starts.append(len(rows))
            room = batch_tokens
            if steps is not None and len(starts) > steps:
                break
        rows.append(row)
        room -= length
    else:
        starts.append(len(rows))
    if not rows:
        count = sum(len(source.lengths) for source in sources)
        raise UserError(
            f"{epochs:g} epochs of {count} rows are less than one row",
            "a part of a pass uses as many rows, rounded",
            f"ask for at least {1 / max(count, 1):.2g} epochs, or give `steps`",
        )
    if steps is not None and len(starts) <= steps:
        raise UserError(
            f"the data lasts for {len(starts) - 1} of {steps} steps",
            "every source has `epochs`, and all are used up",
            "leave `epochs` unset for one source, or ask for fewer steps",
        )
    return Order(np.asarray(rows), np.asarray(starts), tuple(share / sum(shares) for share in shares))


def _shares(
    sources: Sequence[Source], batch_tokens: int, steps: int | None, epochs: float | None
) -> tuple[list[float], list[float]]:
    """Per source: how many rows at most, and its share of the tokens."""
    tokens = [float(source.lengths.sum()) for source in sources]
    free = [i for i, source in enumerate(sources) if source.epochs is None]
    weights = {i: (tokens[i] if sources[i].weight is None else float(sources[i].weight or 0)) for i in free}
    if steps is None:
        assert epochs is not None
        pool = epochs * sum(tokens[i] for i in free)
    else:
        pool = steps * batch_tokens - sum(tokens[i] * (source.epochs or 0) for i, source in enumerate(sources))
        if free and pool <= 0:
            raise UserError(
                "`epochs` of the sources ask for more tokens than the steps hold",
                f"{steps} steps of {batch_tokens} tokens",
                "use more steps or fewer epochs",
            )
    limits, shares = [], []
    for i, source in enumerate(sources):
        if source.epochs is not None:
            limits.append(float(round(source.epochs * len(source.lengths))))
            shares.append(source.epochs * tokens[i])
            continue
        shares.append(pool * weights[i] / sum(weights.values()))
        weighted = any(sources[j].weight is not None for j in free)
        if steps is not None:
            limits.append(float("inf"))
        else:
            assert epochs is not None
            limits.append(
                max(1.0, round(shares[i] / tokens[i] * len(source.lengths)))
                if weighted
                else float(round(epochs * len(source.lengths)))
            )
    return limits, shares


def _draw(sources: Sequence[Source], limits: Sequence[float], shares: Sequence[float], seed: int) -> Iterator[tuple[int, int]]:
    """(row, length) one after the other; always from the source that lags most behind its share."""
    streams = [_stream(source, index, seed) for index, source in enumerate(sources)]
    used, drawn = [0] * len(sources), [0] * len(sources)
    behind = [(0.0, index) for index, limit in enumerate(limits) if limit > 0]  # a heap: the one that lags most is first
    while behind:
        _, index = behind[0]
        row, length = next(streams[index])
        used[index] += length
        drawn[index] += 1
        if drawn[index] < limits[index]:
            heapq.heapreplace(behind, (used[index] / shares[index], index))
        else:
            heapq.heappop(behind)
        yield row, length


def _stream(source: Source, index: int, seed: int) -> Iterator[tuple[int, int]]:
    epoch = 0
    while True:
        rows = np.arange(len(source.lengths), dtype=np.uint32)
        np.random.Generator(np.random.PCG64([seed, index, epoch])).shuffle(rows)
        for begin in range(0, len(rows), AT_ONCE):
            some = rows[begin : begin + AT_ONCE]
            yield from zip((source.first + some.astype(np.int64)).tolist(), source.lengths[some].tolist(), strict=True)
        epoch += 1
