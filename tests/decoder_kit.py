"""Engines without a model, for the tests of decoders: a token is a character, answers are made by a function."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from modelwright.methods.engines import Completion, Request


def said(texts: Sequence[str]) -> Callable[[str], str]:
    """These, one after the other."""
    left = iter(texts)
    return lambda _: next(left)


class Scripted:
    """Tokens are characters, 0 ends an answer; `say` makes one of the text so far."""

    def __init__(
        self, say: Callable[[str], str], context: int = 1000, hidden: str = "", more: frozenset[str] = frozenset()
    ) -> None:
        self.say, self.context, self.hidden = say, context, hidden
        self.capabilities = frozenset({"seed", "logprobs"}) | more

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        text = "".join(chr(token) for token in tokens if token)
        return text.replace(self.hidden, "") if self.hidden else text

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.answer(request, self.say(self.decode(request.tokens))) for request in requests]

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        yield from self.generate(requests)

    def answer(self, request: Request, whole: str) -> Completion:
        most = min(request.sampling.max_tokens, self.context - len(request.tokens))
        assert most > 0
        cuts = [(place, place + len(s)) for s in request.sampling.stop if (place := whole.find(s)) >= 0]
        shown, end = min(cuts, default=(len(whole), len(whole)))
        finish = "stop" if end + (not cuts) <= most else "length"
        tokens = tuple(map(ord, whole[:end])) + (() if cuts else (0,)) if finish == "stop" else tuple(map(ord, whole[:most]))
        logprobs = tuple(-1.0 / (1 + token % 7) for token in tokens)
        return Completion(whole[: min(shown, len(tokens))], tokens, logprobs, finish, len(request.tokens))


class Drawing(Scripted):
    """Each way to draw draws other texts, always the same ones."""

    TEXTS = ("it is 4\nso B", "it is 5.0\nanswer is A", "no </think> idea A\n5", "x = 1\nmore, 4", "def (", "4\n\nWait B")

    def __init__(self) -> None:
        super().__init__(str)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.answer(request, self._draw(request)) for request in requests]

    def _draw(self, request: Request) -> str:
        how = request.sampling._replace(max_tokens=0, stop=())
        draw = random.Random(repr((list(request.tokens), how)))
        return draw.choice(self.TEXTS) if how.temperature else self.TEXTS[len(request.tokens) % len(self.TEXTS)]
