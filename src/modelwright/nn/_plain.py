"""Rows in transformers' own caches, one forward a row: right for every model, slow for all.

Shapes: T tokens, R places that give logits, V vocabulary, E width of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from modelwright.nn._runner import Seen
from modelwright.nn.adapters import Adapter, Worn
from modelwright.nn.memory import Kept


class Plain:
    """One transformers cache a row: right for every model, one forward a row and step. New tokens wait until an outcome is
    asked for; what a cache cannot forget is computed again."""

    keeps = False

    def __init__(self, model: Any, most_rows: int, why: str) -> None:
        self.model, self.most_rows, self.why = model, most_rows, f"one row at a time: {why}"
        self.device = next(model.parameters()).device
        self._tokens: list[list[int]] = []
        self._caches: list[Any] = []
        self._held: list[int] = []
        """How many tokens of a row its cache holds."""
        self._adapters: list[Adapter | None] = []
        self.worn = Worn(model)

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self._tokens]

    def begin(self, adapter: Adapter | None = None) -> int:
        self._tokens.append([])
        self._adapters.append(adapter)
        self._caches.append(self._empty())
        self._held.append(0)
        return len(self._tokens) - 1

    def _empty(self) -> Any:
        return DynamicCache(config=self.model.config)

    def forward(self, new: Sequence[Sequence[int]], ask: Sequence[int] | None = None) -> Seen:
        logits: list[Tensor] = []
        hidden: list[Tensor] = []
        for row, tokens in enumerate(new):
            self._tokens[row] += tokens
            asked = min(len(tokens), 1) if ask is None else ask[row]
            if asked:
                found = self._caught_up(row, asked)
                logits.append(found.logits_RV)
                hidden.append(found.hidden_RE)
        if not logits:
            return Seen(torch.empty(0), torch.empty(0))
        return Seen(torch.cat(logits), torch.cat(hidden))

    def _caught_up(self, row: int, asked: int) -> Seen:
        waiting = self._tokens[row][self._held[row] :]
        # layers with a state take one token at a time behind others, whatever they are given
        pieces = [[token] for token in waiting] if self._held[row] and self.model._is_stateful else [waiting]
        logits, hidden = [], []
        for piece in pieces:
            with self.worn.on([self._adapters[row]] * len(piece), hooked=True):
                seen = self.model(
                    input_ids=torch.tensor([piece], device=self.device),
                    past_key_values=self._caches[row],
                    use_cache=True,
                    output_hidden_states=True,
                )
            logits.append(seen.logits[0, -asked:].float())
            hidden.append(seen.hidden_states[-1][0, -asked:])
        self._held[row] = len(self._tokens[row])
        return Seen(torch.cat(logits)[-asked:], torch.cat(hidden)[-asked:])

    def rewind(self, row: int, length: int) -> None:
        del self._tokens[row][length:]
        if (more := self._held[row] - length) <= 0:
            return
        if all(type(layer) is DynamicLayer for layer in self._caches[row].layers):
            self._caches[row].crop(-more)
            self._held[row] = length
        else:
            self._caches[row], self._held[row] = self._empty(), 0

    def fork(self, row: int, length: int) -> int:
        self._tokens.append(list(self._tokens[row]))
        self._caches.append(copy.deepcopy(self._caches[row]))
        self._held.append(self._held[row])
        self._adapters.append(self._adapters[row])
        self.rewind(len(self._tokens) - 1, length)
        return len(self._tokens) - 1

    def drop(self, row: int) -> None:
        parts: tuple[list[Any], ...] = (self._tokens, self._caches, self._held, self._adapters)
        for part in parts:
            part[row] = part[-1]
            part.pop()

    def keep(self, row: int) -> Kept:
        raise NotImplementedError("rows with transformers' caches are not kept")

    def again(self, kept: Kept, length: int) -> int:
        raise NotImplementedError("rows with transformers' caches are not kept")

    def states(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> Iterable[Tensor]:
        for sequence in tokens:
            ids = torch.tensor([list(sequence)], device=self.device)
            yield self.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1][0]

    def logps(self, tokens: Sequence[Sequence[int]], chunk_tokens: int) -> list[Tensor]:
        found = []
        for sequence in tokens:
            ids = torch.tensor([list(sequence)], device=self.device)
            logits_TV = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            found.append(F.log_softmax(logits_TV, -1).gather(1, ids[0, 1:, None])[:, 0])
        return found
