"""Batched decoding over a llama.cpp context: each request is one sequence of the context's memory.

Source: llama.h (`llama_decode` takes tokens of several sequences at once); scheduling as in Yu et al. 2022, "Orca", OSDI.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from ctypes import c_float
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.methods.engines import Request, Rule, Sampling, Top
from modelwright.methods.engines import _llama_c as c
from modelwright.methods.engines._draw import Dial, choose, logps
from modelwright.methods.engines._llama_adapters import Lora, Loras
from modelwright.methods.engines._llama_memory import WORTH_TOKENS, Sequences, common

_LOGIT_BYTES = 64 << 20
"""llama.cpp keeps the logits of every position asked for; scoring asks for no more than this at a time."""


class Step(NamedTuple):
    key: int
    token: int
    logprob: float
    finish: str | None
    top: Top


@dataclass
class _Row:
    key: int
    pending: list[int]
    """Tokens not yet given to the model: of the prompt, then the newest token."""
    left: int
    sampling: Sampling
    rule: Rule | None
    random: random.Random
    adapter: Lora | None = None
    sequence: int = -1
    at: int = 0
    """Tokens that the memory holds."""
    fed: int = field(default=0)
    """Tokens of `pending` in the batch that is being decoded."""

    def dial(self) -> Dial:
        """For the next token."""
        sampling = self.sampling
        uniform = self.random.random() if sampling.temperature > 0 else 0.0
        return Dial(
            sampling.temperature, sampling.top_p, sampling.top_k, uniform, self.rule, sampling.top_logprobs, sampling.logprobs
        )


class Rows:
    """A decoder (see `_worker.Decoder`) over a GGUF model. One thread owns it."""

    def __init__(self, model: int, context_tokens: int, rows: int, batch_tokens: int, threads: int) -> None:
        import numpy as np

        self._lib, self._model = c.library(), model
        self.vocab = self._lib.llama_model_get_vocab(model)
        self.vocab_size = self._lib.llama_vocab_n_tokens(self.vocab)
        self._batch_tokens = batch_tokens
        # one sequence more than rows: scoring has its own and disturbs nobody
        self._context = c.open_context(model, context_tokens, rows + 1, batch_tokens, threads)
        self._memory = self._lib.llama_get_memory(self._context)
        if self._memory is None or self._lib.llama_model_has_encoder(model):
            self.close()
            raise UserError(
                "the GGUF file holds an encoder", "it does not continue texts", "take a causal language model, such as a Llama"
            )
        self._sequences, self._scoring = Sequences(self._lib, self._memory, rows), rows
        self.adapters = Loras(model, self._context)
        self._rows: list[_Row] = []
        self._waiting: deque[_Row] = deque()
        self._stop = frozenset(token for token in range(self.vocab_size) if self._lib.llama_vocab_is_eog(self.vocab, token))
        self._token, self._pos, self._seq = (np.zeros(batch_tokens, dtype=np.int32) for _ in range(3))
        self._ones = np.ones(batch_tokens, dtype=np.int32)
        self._out = np.zeros(batch_tokens, dtype=np.int8)
        self._seqs = self._seq.ctypes.data + 4 * np.arange(batch_tokens, dtype=np.uint64)
        places = (one.ctypes.data for one in (self._token, self._pos, self._ones, self._seqs, self._out))
        self._given = c.Batch(0, next(places), None, *places)
        self._logits_V = c_float * self.vocab_size

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    def add(self, key: int, request: Request, max_tokens: int, rule: Rule | None) -> None:
        sampling, adapter = request.sampling, self.adapters.take(request.adapter)
        self._waiting.append(_Row(key, list(request.tokens), max_tokens, sampling, rule, random.Random(sampling.seed), adapter))

    def cancel(self, key: int) -> None:
        for row in [row for row in self._waiting if row.key == key]:
            self._waiting.remove(row)
            self.adapters.leave(row.adapter)
        for row in [row for row in self._rows if row.key == key]:
            self._leave(row)

    def _leave(self, row: _Row) -> None:
        self._rows.remove(row)
        self._sequences.free.append(row.sequence)
        self.adapters.leave(row.adapter)

    def step(self) -> list[Step]:
        """One token for every row whose prompt is in; the rest of a batch takes prompts, a long one over several steps. Rows with
        different adapters are a batch each."""
        self._enter()
        by_adapter: dict[int, list[_Row]] = {}
        for row in self._rows:
            by_adapter.setdefault(id(row.adapter), []).append(row)
        return [step for rows in by_adapter.values() for step in self._batch(rows)]

    def _batch(self, rows: list[_Row]) -> list[Step]:
        used, ready = 0, list[tuple[_Row, int]]()
        # Rows under way before prompts; and by sequence, since llama.cpp cuts a batch where their numbers do not go up.
        for row in sorted(rows, key=lambda row: (len(row.pending) > 1, row.sequence)):
            row.fed = min(len(row.pending), self._batch_tokens - used)
            if row.fed:
                whole = row.fed == len(row.pending)
                self._fill(used, row.pending[: row.fed], row.at, row.sequence)
                self._out[used + row.fed - 1] = whole
                used += row.fed
                if whole:
                    ready.append((row, used - 1))
        self.adapters.wear(rows[0].adapter)
        self._decode(used)
        for row in rows:
            row.at += row.fed
            self._sequences.held[row.sequence] += row.pending[: row.fed]
            del row.pending[: row.fed]
        return self._choose(ready) if ready else []

    def _enter(self) -> None:
        """Give waiting requests a sequence; one whose prompt begins like one that is being computed waits to copy that."""
        held, wore = self._sequences.held, self._sequences.wore
        for row in list(self._waiting):
            if not self._sequences.free:
                return
            alike = [other for other in self._rows if other.adapter is row.adapter]
            coming = {other.sequence: held[other.sequence] + other.pending for other in alike if len(other.pending) > 1}
            there = [one for number, one in enumerate(held) if number not in coming and wore[number] is row.adapter]
            known = max((common(one, row.pending) for one in there), default=0)
            soon = {number: common(prompt, row.pending) for number, prompt in coming.items()}
            if any(shared >= known + WORTH_TOKENS and shared > len(held[number]) for number, shared in soon.items()):
                continue
            self._waiting.remove(row)
            row.sequence, row.at = self._sequences.take(row.pending, row.adapter)
            del row.pending[: row.at]
            self._rows.append(row)

    def _choose(self, ready: list[tuple[_Row, int]]) -> list[Step]:
        dials = [row.dial() for row, _ in ready]
        steps = []
        for (row, _), (token, logprob, top) in zip(ready, choose(self._logits([p for _, p in ready]), dials), strict=True):
            row.pending, row.left = [token], row.left - 1
            finish = "stop" if token in self._stop else "length" if row.left == 0 else None
            steps.append(Step(row.key, token, logprob, finish, top))
            if finish is not None:
                self._leave(row)
        return steps

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        self.adapters.wear(None)
        return [self._score(list(sequence)) for sequence in tokens]

    def _score(self, tokens: list[int]) -> list[float]:
        import numpy as np

        found: list[float] = []
        try:
            for start, part in self._parts(tokens[:-1]):
                found += logps(np.stack(self._logits(range(len(part)))), tokens[start + 1 : start + 1 + len(part)])
        finally:
            self._lib.llama_memory_seq_rm(self._memory, self._scoring, -1, -1)
        return found

    def _parts(self, tokens: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Give the model a text of its own, part by part: where a part begins, and its tokens, all of which have an output."""
        size = max(1, min(self._batch_tokens, _LOGIT_BYTES // (4 * self.vocab_size)))
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            self._fill(0, part, start, self._scoring)
            self._out[: len(part)] = 1
            self._decode(len(part))
            yield start, part

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of each sequence, the mean of its last hidden states, of length 1."""
        self.adapters.wear(None)
        self._lib.llama_set_embeddings(self._context, True)
        try:
            return [self._embed(list(sequence)) for sequence in tokens]
        finally:
            self._lib.llama_set_embeddings(self._context, False)

    def _embed(self, tokens: list[int]) -> list[float]:
        import numpy as np

        total_E = np.zeros(self._lib.llama_model_n_embd(self._model))
        try:
            for _, part in self._parts(tokens):
                for place in range(len(part)):
                    hidden = self._lib.llama_get_embeddings_ith(self._context, place)
                    total_E += np.ctypeslib.as_array(hidden, shape=total_E.shape)
        finally:
            self._lib.llama_memory_seq_rm(self._memory, self._scoring, -1, -1)
        found: list[float] = (total_E / np.linalg.norm(total_E)).tolist()
        return found

    def _fill(self, start: int, tokens: list[int], at: int, sequence: int) -> None:
        end = start + len(tokens)
        self._token[start:end] = tokens
        self._pos[start:end] = range(at, at + len(tokens))
        self._seq[start:end] = sequence
        self._out[start:end] = 0

    def _decode(self, used: int) -> None:
        self._given.n_tokens = used
        code = self._lib.llama_decode(self._context, self._given)
        if code:
            raise UserError(
                f"llama.cpp could not decode a batch of {used} tokens (code {code})",
                c.last_error() or "code 1: its memory is full",
                "lower `max_batch` or `context`",
            )

    def _logits(self, places: Sequence[int]) -> list[Any]:
        """[V] each, llama.cpp's own memory: it writes over it in the next step."""
        import numpy as np

        found = (self._lib.llama_get_logits_ith(self._context, place) for place in places)
        return [np.frombuffer(self._logits_V.from_address(address), np.float32) for address in found]

    def close(self) -> None:
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
