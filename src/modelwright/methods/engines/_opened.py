"""What every open engine does the same way: it renders chats, queues requests for its worker's thread, and closes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.engines import Completion, Constraint, Request, Rule
from modelwright.methods.engines._grammar import Grammar, grammar_of
from modelwright.methods.engines._rules import behind, check, rule_of
from modelwright.methods.engines._text import Pieces
from modelwright.methods.engines._worker import Answer, Worker, room
from modelwright.methods.templates import broken, mended, render

_GRAMMARS = 64
"""Constraints kept ready: agents send the same schemas again and again, and one takes some milliseconds to read."""


class Opened:
    """An open model; see `modelwright.methods.engines.Engine`. A kind brings its tokens, its text and its worker."""

    context: int
    vocabulary: int = 0
    _worker: Worker

    def __init__(
        self, folder: Path, template: str, marks: tuple[str, str], special: Sequence[str], unconstrained: str = ""
    ) -> None:
        """unconstrained: why answers cannot be held to a schema or a grammar; '' where they can."""
        self._name, self._template, self._marks, self._special = folder.name, template, marks, special
        self._unconstrained = unconstrained
        more = {"chat": bool(template), "constrain": not unconstrained}
        self.capabilities: frozenset[str] = frozenset(
            {"score", "logprobs", "seed", "rules"} | {name for name in more if more[name]}
        )
        self._grammars: dict[Constraint, Grammar] = {}
        self._table: Any = None
        self._building = threading.Lock()

    def _tokens(self, text: str, special: bool) -> list[int]:
        """Ids of a text with nothing added; `special`: its special tokens become one token each, else they are spelt."""
        raise NotImplementedError

    def _pieces(self) -> Pieces:
        """What turns the tokens of one answer into text as they come."""
        raise NotImplementedError

    def _words(self) -> Any:
        """llguidance's table of this model's tokens; see `_grammar`."""
        raise NotImplementedError

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """The chat as ids; special tokens that a person spelt in a message stay text."""
        if not self._template:
            raise UserError(
                f"{self._name} has no chat template",
                "it was not trained on chats, or was exported without one",
                "ask it to continue a text, or train with `objective: sft`",
            )
        bos, eos = self._marks
        if tools:  # who offers a tool may not write marks either
            tools = broken([{"role": "tool", "content": list(tools)}], self._special)[0]["content"]
        text = render(self._template, broken(messages, self._special), True, bos=bos, eos=eos, tools=tools)
        return [token for piece, special in mended(text, self._special) for token in self._tokens(piece, special)]

    def submit(self, request: Request) -> Answer:
        return self._submit(request, quiet=False)

    def tell_within(self, around: Callable[[], AbstractContextManager[None]], apart_s: float) -> None:
        """Whoever listens to answers is told of a step's tokens inside of this, in the worker's thread; pieces of one answer come
        so far apart at least."""
        self._worker.around, self._worker.apart_s = around, apart_s

    def _submit(self, request: Request, quiet: bool) -> Answer:
        limit = room(request.tokens, request.sampling.max_tokens, self.context)
        rule = self._rule(request)
        return self._worker.submit(
            request._replace(sampling=behind(request.sampling)), limit, self._pieces(), rule=rule, quiet=quiet
        )

    def _rule(self, request: Request) -> Rule | None:
        """What the request asks of its logits; UserError for what means nothing or cannot be done here."""
        check(request.sampling, self.vocabulary)
        if request.adapter and "adapters" not in self.capabilities:
            raise UserError(
                f"{self._name} is asked to answer with the adapter {request.adapter!r}",
                f"{type(self).__name__.lstrip('_')} takes no adapters",
                "use `engine: native`, or merge the adapter into the model",
            )
        if request.speculate is not None and "speculate" not in self.capabilities:
            raise UserError(
                f"{self._name} is asked to speculate ({request.speculate.kind})",
                f"{type(self).__name__.lstrip('_')} verifies no proposals",
                "use `engine: native`, or ask without it",
            )
        grammar = None if request.constraint is None else self._grammar(request.constraint)
        return rule_of(request.sampling, request.tokens, grammar)

    def _grammar(self, constraint: Constraint) -> Grammar:
        """The constraint at its start. Made in the caller's thread: nobody waits for another's grammar."""
        if self._unconstrained:
            raise UserError(
                f"answers of {self._name} cannot be held to a {constraint.kind}",
                self._unconstrained,
                "ask without it, or use a model with a byte-level tokenizer",
            )
        with self._building:
            if self._table is None:
                self._table = self._words()
            known = self._grammars.get(constraint)
        if known is None:
            known = grammar_of(constraint, self._table)
            with self._building:
                if len(self._grammars) >= _GRAMMARS:
                    del self._grammars[next(iter(self._grammars))]
                self._grammars[constraint] = known
        return known.copy()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return list(self.answers(requests))

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        answers = [self._submit(request, quiet=True) for request in requests]
        try:
            for answer in answers:
                yield answer.completion()
        finally:
            for answer in answers:
                answer.cancel()

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        self._fit(tokens)
        return self._worker.score(tokens)

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Of each sequence, the mean of its last hidden states, of length 1; see the capability `embed`."""
        self._fit(tokens)
        return self._worker.embed(tokens)

    def _fit(self, tokens: Sequence[Sequence[int]]) -> None:
        """UserError for an empty sequence and for one that the context does not hold."""
        for sequence in tokens:
            room(sequence[:-1] or sequence, 1, self.context)

    def close(self) -> None:
        self._worker.close()
