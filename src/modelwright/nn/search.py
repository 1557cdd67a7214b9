"""Branches of one prompt: key/value memory that forks, for searches over continuations (beams, contrastive search).

A search has a memory of its own beside that of the requests under way, over the same weights; what branches have in common is
stored once (see `modelwright.nn.memory`).

Shapes: B branches, T tokens of the prompt, V vocabulary, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modelwright.nn._kv import Rows
from modelwright.nn._plain import Plain
from modelwright.nn._runner import Runner
from modelwright.nn.adapters import Adapter

_PIECE = 64
"""Tokens of a prompt whose hidden states are wanted are read so many at a time, because the head's logits come with them."""


def beside(runner: Runner) -> Runner:
    """Another memory over the same model, driven the same way."""
    if isinstance(runner, Rows):
        return Rows(runner.model, runner.most_rows, runner.trunk)
    assert isinstance(runner, Plain)
    return Plain(runner.model, runner.most_rows, runner.why)


class Search:
    """The branches of one prompt, at first the prompt alone. One thread owns it. hidden: `prompt_hidden_TE` is wanted."""

    @torch.inference_mode()
    def __init__(self, runner: Runner, tokens: Sequence[int], adapter: Adapter | None = None, hidden: bool = False) -> None:
        self._runner = runner
        self._rows = [runner.begin(adapter)]
        """The runner's row of each branch."""
        self.prompt_hidden_TE: Tensor | None = None
        if hidden:
            pieces = [list(tokens[start : start + _PIECE]) for start in range(0, len(tokens), _PIECE)]
            found = [runner.forward([piece], [len(piece)]) for piece in pieces]
            self.prompt_hidden_TE = torch.cat([seen.hidden_RE for seen in found]).float()
            seen = found[-1]
        else:
            seen = runner.forward([list(tokens)])
        self.logits_BV, self.hidden_BE = seen.logits_RV[-1:], seen.hidden_RE[-1:].float()

    @torch.inference_mode()
    def keep(self, which: Sequence[int]) -> None:
        """Branch i is a copy of branch `which[i]` from now on; the others are gone."""
        place_B = torch.tensor(which, dtype=torch.long, device=self.logits_BV.device)
        self.logits_BV, self.hidden_BE = self.logits_BV[place_B], self.hidden_BE[place_B]
        lengths = self._runner.lengths
        used: set[int] = set()
        rows = []
        for branch in which:
            row = self._rows[branch]
            rows.append(self._runner.fork(row, lengths[row]) if row in used else row)
            used.add(row)
        for row in sorted(set(self._rows) - used, reverse=True):
            last = len(self._runner.lengths) - 1
            self._runner.drop(row)  # the last row takes its number
            rows = [row if other == last else other for other in rows]
        self._rows = rows

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> None:
        """A token for every branch."""
        token_of = dict(zip(self._rows, tokens, strict=True))
        seen = self._runner.forward([[token_of[row]] for row in range(len(tokens))])
        place_B = torch.tensor(self._rows, dtype=torch.long, device=seen.logits_RV.device)
        self.logits_BV, self.hidden_BE = seen.logits_RV[place_B], seen.hidden_RE[place_B].float()
