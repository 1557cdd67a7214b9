"""What holds the rows of key/value memory that a decoder drives, whichever way the model is run.

Shapes: T tokens of the stream, R places that give logits, V vocabulary, E width of the model, I and O a layer's inputs and
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from modelwright.nn.adapters import Adapter, Worn
from modelwright.nn.attend import Plan
from modelwright.nn.memory import Kept

SHARE = 32
"""Tokens from which on it pays to share a beginning or to keep a row."""


class Seen(NamedTuple):
    """What a forward pass gives, row by row, at the newest tokens that were asked for."""

    logits_RV: Tensor
    """float32, of the next token."""
    hidden_RE: Tensor
    """What the head saw."""


class Runner(Protocol):
    """Holds the rows under way. Rows are numbered 0.. without holes."""

    why: str
    """How the model is driven, for people."""
    model: Any
    most_rows: int
    worn: Worn
    """The adapters that rows have."""
    keeps: bool
    """Whether `keep`, and a `fork` shorter than the row, are cheaper than computing again."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        ...

    def begin(self, adapter: Adapter | None = None) -> int:
        """A new, empty row; the number is the highest."""
        ...

    def forward(self, new: Sequence[Sequence[int]], ask: Sequence[int] | None = None) -> Seen:
        """Every row takes its new tokens (none: it waits). `ask`: of how many of the newest the outcome is wanted, row by row;
        None: of the last one of each row that has new tokens."""
        ...

    def rewind(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def fork(self, row: int, length: int) -> int:
        """A new row with the first `length` tokens of this one."""
        ...

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its number."""
        ...

    def keep(self, row: int) -> Kept:
        """A copy of a row's memory, for `again`; what it shares stays shared."""
        ...

    def again(self, kept: Kept, length: int) -> int:
        """A new row with the first `length` tokens of one that was kept."""
        ...

    def logps(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> list[Tensor]:
        """Of each sequence, the log-probability in nats of each token after the first."""
        ...

    def states(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> Iterable[Tensor]:
        """Of each sequence, [T, E] what the head sees."""
        ...


Added = Callable[[str, Tensor, Tensor], None]
"""(place of a linear layer in the model, its [T, I] input, its [T, O] output): adds what adapters add to the output."""


class Trunk(Protocol):
    """A model as `Rows` runs it."""

    def __call__(self, ids_T: Tensor, position_T: Tensor, plan: Plan, added: Added | None = None) -> Tensor:
        """[T, E] what the head sees; attention by `attend(plan, layer, …)`."""
        ...

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """[R, V] in float32."""
        ...
