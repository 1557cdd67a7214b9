"""What every open engine does the same way: it renders chats, queues requests for its worker's thread, and closes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.engines import Completion, Request
from modelwright.methods.engines._text import Pieces
from modelwright.methods.engines._worker import Answer, Worker, room
from modelwright.methods.templates import broken, mended, render


class Opened:
    """An open model; see `modelwright.methods.engines.Engine`. A kind brings its tokens, its text and its worker."""

    context: int
    _worker: Worker

    def __init__(self, folder: Path, template: str, marks: tuple[str, str], special: Sequence[str]) -> None:
        self._name, self._template, self._marks, self._special = folder.name, template, marks, special
        chat = frozenset({"chat"}) if template else frozenset[str]()
        self.capabilities: frozenset[str] = frozenset({"score", "logprobs", "seed"}) | chat

    def _tokens(self, text: str, special: bool) -> list[int]:
        """Ids of a text with nothing added; `special`: its special tokens become one token each, else they are spelt."""
        raise NotImplementedError

    def _pieces(self) -> Pieces:
        """What turns the tokens of one answer into text as they come."""
        raise NotImplementedError

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The chat as ids; special tokens that a person spelt in a message stay text."""
        if not self._template:
            raise UserError(
                f"{self._name} has no chat template",
                "it was not trained on chats, or was exported without one",
                "ask it to continue a text, or train with `objective: sft`",
            )
        bos, eos = self._marks
        text = render(self._template, broken(messages, self._special), True, bos=bos, eos=eos)
        return [token for piece, special in mended(text, self._special) for token in self._tokens(piece, special)]

    def submit(self, request: Request) -> Answer:
        return self._submit(request, quiet=False)

    def _submit(self, request: Request, quiet: bool) -> Answer:
        limit = room(request.tokens, request.sampling.max_tokens, self.context)
        return self._worker.submit(request, limit, self._pieces(), quiet=quiet)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        answers = [self._submit(request, quiet=True) for request in requests]
        try:
            return [answer.completion() for answer in answers]
        finally:
            for answer in answers:
                answer.cancel()

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        for sequence in tokens:
            room(sequence[:-1] or sequence, 1, self.context)
        return self._worker.score(tokens)

    def close(self) -> None:
        self._worker.close()
