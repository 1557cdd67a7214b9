"""What searches over branches share: which requests they take, and how a line of tokens becomes a completion.

Source: stop strings as in the OpenAI API (the answer ends before them):
https://platform.openai.com/docs/api-reference/chat/create.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from modelwright.core.errors import UserError
from modelwright.methods.decoders import chosen
from modelwright.methods.engines import Branches, Branching, Completion, Engine, Request, Top
from modelwright.methods.engines._worker import room


class Line(NamedTuple):
    """An answer as far as it is written."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """The model's own."""
    top: tuple[Top, ...] = ()

    def grown(self, token: int, logps_V: Any, tops: int) -> Line:
        """With one more token; `tops`: likeliest tokens to tell."""
        top = self.top
        if tops:
            likely = logps_V.argsort()[::-1][:tops]
            top = (*top, tuple((int(t), float(logps_V[t])) for t in likely))
        return Line((*self.tokens, token), (*self.logprobs, float(logps_V[token])), top)


def opened(engine: Engine, request: Request, decoder: str, hidden: bool = False) -> tuple[Branches, int]:
    """The branches of a request, and how many tokens its answer may have."""
    request = chosen(request, decoder)
    if request.speculate is not None:
        raise UserError(
            f"the decoder `{decoder}` cannot speculate",
            "proposals are for one line of tokens, and it follows several",
            "leave `speculate` out of the request",
        )
    most = room(request.tokens, request.sampling.max_tokens, engine.context)
    return cast(Branching, engine).branches(request, hidden), most


def finish_of(engine: Engine, request: Request, line: Line, stop: frozenset[int], most: int) -> str:
    """How a line has ended; '' where it goes on."""
    if line.tokens[-1] in stop:
        return "stop"
    stops = request.sampling.stop
    if stops and any(text in engine.decode(line.tokens) for text in stops):
        return "stop"
    return "length" if len(line.tokens) >= most else ""


def completion(engine: Engine, request: Request, line: Line, stop: frozenset[int], finish: str) -> Completion:
    text = engine.decode(line.tokens[:-1] if line.tokens[-1] in stop else line.tokens)
    text = text[: min((place for s in request.sampling.stop if (place := text.find(s)) >= 0), default=len(text))]
    logprobs = line.logprobs if request.sampling.logprobs else ()
    return Completion(text, line.tokens, logprobs, finish, len(request.tokens), line.top)
