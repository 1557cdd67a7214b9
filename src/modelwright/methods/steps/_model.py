"""A model that looks at texts: opened once, and given windows of many rows at once."""

# Shape suffixes: T packed tokens, N positions.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from modelwright.core.errors import UserError

WINDOW = 512
"""Beyond it a small model gains little from context."""
MICRO_TOKENS = 4096
"""Tokens that go through the model at once."""


class Reader(NamedTuple):
    trunk: Any
    tokenizer: Any
    device: Any
    window: int


def opened(path: str, window: int | None, head: str = "causal") -> Reader:
    """`window`: tokens seen at once; None: as many as the model can see, at most `WINDOW`."""
    from modelwright.nn import device
    from modelwright.nn import model as models

    model, tokenizer = models.load(path, head=head)
    most = getattr(model.config, "max_position_embeddings", 1 << 30) - 1
    if window is not None and window > most:
        raise UserError(
            f"`window` {window} is more than {path} can see",
            f"it sees {most} tokens and one that begins them",
            f"set `window: {most}` or less",
        )
    chosen = device.choose("auto").device
    return Reader(models.Trunk(model.to(chosen)), tokenizer, chosen, window or min(most, WINDOW))


def windows(reader: Reader, texts: Sequence[str], first: Sequence[int] = ()) -> Iterator[list[tuple[int, list[int]]]]:
    """Groups of (row, tokens) that go through the model together; each piece begins with the tokens `first`."""
    group: list[tuple[int, list[int]]] = []
    size = 0
    for row, text in enumerate(texts):
        ids = reader.tokenizer(text.encode("utf-8", "replace").decode(), add_special_tokens=False)["input_ids"]
        for begin in range(0, len(ids), reader.window):
            piece = [*first, *ids[begin : begin + reader.window]]
            if group and size + len(piece) > MICRO_TOKENS:
                yield group
                group, size = [], 0
            group.append((row, piece))
            size += len(piece)
    if group:
        yield group


def packed(reader: Reader, group: Sequence[tuple[int, list[int]]]) -> tuple[Any, Any]:
    """Tokens [T] of a group and where each piece lies."""
    import torch

    from modelwright.nn.attention import Layout, Segment

    ends = accumulate((len(piece) for _, piece in group), initial=0)
    segments = [Segment(begin, end) for begin, end in pairwise(ends)]
    return torch.tensor([token for _, piece in group for token in piece], device=reader.device), Layout(segments)
