"""Which rows each step trains on: a fixed plan made before training from the row lengths and the seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from modelwright.core.errors import UserError


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

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def step(self, index: int) -> list[int]:
        return [int(row) for row in self.rows[self.starts[index] : self.starts[index + 1]]]


def order(
    sources: Sequence[Source], batch_tokens: int, seed: int, steps: int | None = None, epochs: float | None = None
) -> Order:
    """A plan for `steps` steps of at most `batch_tokens` tokens, or for `epochs` passes over the sources.

    Every epoch of a source is a new permutation drawn from (seed, source, epoch). Sources are interleaved so that
    each has its share of the tokens at any time. A row longer than `batch_tokens` makes a step of its own.
    """
    assert (steps is None) != (epochs is None)
    limits, shares = _shares(sources, batch_tokens, steps, epochs)
    rows: list[int] = []
    starts = [0]
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
    if steps is not None and len(starts) <= steps:
        raise UserError(
            f"the data lasts for {len(starts) - 1} of {steps} steps",
            "every source has `epochs`, and all are used up",
            "leave `epochs` unset for one source, or ask for fewer steps",
        )
    return Order(np.asarray(rows, np.int64), np.asarray(starts, np.int64))


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
    used, drawn = [0.0] * len(sources), [0] * len(sources)
    while open_sources := [i for i in range(len(sources)) if drawn[i] < limits[i]]:
        index = min(open_sources, key=lambda i: (used[i] / shares[i], i))
        row, length = next(streams[index])
        used[index] += length
        drawn[index] += 1
        yield row, length


def _stream(source: Source, index: int, seed: int) -> Iterator[tuple[int, int]]:
    epoch = 0
    while True:
        for row in np.random.Generator(np.random.PCG64([seed, index, epoch])).permutation(len(source.lengths)):
            yield source.first + int(row), int(source.lengths[row])
        epoch += 1
