"""What one HTTP request asks of an engine: one answer or several, made at once, their pieces in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from anyio.to_thread import run_sync

from modelwright.methods.engines import Delta, Engine, Posting, Pushed, Request, Sampling, Stream, Top


@dataclass(slots=True)
class Piece:
    """A piece of one of the answers."""

    index: int
    delta: Delta
    found: Any = None
    """What a `Call` gave, or an `Echo`."""

    @property
    def tokens(self) -> int:
        """New tokens in it."""
        return len(self.delta.tokens)


class Pieces(Protocol):
    """Answers under way."""

    def __iter__(self) -> Iterator[Piece]: ...
    def cancel(self) -> None: ...
    def listen(self, take: Callable[[Piece | BaseException | None], None]) -> bool:
        """Have every piece given to `take` in the engine's thread, then the fault that ended them, or None. False: they can
        only be iterated."""
        ...


class Work(Protocol):
    prompt_tokens: int
    """Of all its prompts, each counted once."""

    def submit(self) -> Pieces:
        """Begin; called in a thread of the queue's."""
        ...

    def begin(self) -> Pieces | None:
        """The same in the event loop; None where that might wait, and nothing was begun."""
        ...


class Echo(NamedTuple):
    """A prompt that is given back before its answer."""

    text: str
    tokens: Sequence[int]
    scores: Sequence[float] = ()
    """Log-probabilities of the tokens after the first; none where nobody asked."""
    tops: Sequence[Top] = ()


class Group:
    """Answers to several requests, or several to one. The engine makes them all at once and shares what they begin with."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        prompt_tokens: int,
        echoes: Callable[[], Sequence[Echo]] | None = None,
    ) -> None:
        """`echoes` gives what comes before each answer."""
        self._engine, self._requests, self.prompt_tokens, self._echoes = engine, requests, prompt_tokens, echoes

    def submit(self) -> Pieces:
        echoes = self._echoes() if self._echoes else ()
        streams: list[Stream] = []
        try:
            for request in self._requests:
                streams.append(self._engine.submit(request) if request.sampling.max_tokens else _Nothing())
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return _Streams(streams, echoes)

    def begin(self) -> Pieces | None:
        if self._echoes or len(self._requests) > 1 or not isinstance(self._engine, Posting):
            return None
        request = self._requests[0]
        stream = self._engine.begin(request) if request.sampling.max_tokens else None
        return _Streams([stream], ()) if stream is not None else None


class _Nothing:
    """An answer of no token."""

    def __iter__(self) -> Iterator[Delta]:
        yield Delta("", finish="length")

    def cancel(self) -> None:
        """It has ended."""


class _Streams:
    def __init__(self, streams: Sequence[Stream], echoes: Sequence[Echo]) -> None:
        self._streams, self._echoes = streams, echoes

    def __iter__(self) -> Iterator[Piece]:
        """A piece of each in turn: an engine decodes them in step, so none waits long for another."""
        for index, echo in enumerate(self._echoes):
            yield Piece(index, Delta(""), echo)
        live = [(index, iter(stream)) for index, stream in enumerate(self._streams)]
        while live:
            for index, pieces in list(live):
                delta = next(pieces, None)
                if delta is None:
                    live.remove((index, pieces))
                else:
                    yield Piece(index, delta)

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()

    def listen(self, take: Callable[[Piece | BaseException | None], None]) -> bool:
        streams = [stream for stream in self._streams if isinstance(stream, Pushed)]
        if len(streams) < len(self._streams):
            return False
        for index, echo in enumerate(self._echoes):
            take(Piece(index, Delta(""), echo))
        live, fault = set(range(len(streams))), list[BaseException]()

        def taken(index: int, came: Delta | BaseException) -> None:
            if isinstance(came, Delta):
                take(Piece(index, came))
                ended = came.finish is not None
            else:
                fault.append(came)
                self.cancel()
                ended = True
            if ended:
                live.discard(index)
                if not live:
                    take(fault[0] if fault else None)

        for index, stream in enumerate(streams):
            stream.listen(partial(taken, index))
        return True


class Call:
    """Work that gives one result: scores, embeddings."""

    def __init__(self, function: Callable[[], Any], prompt_tokens: int) -> None:
        self._function, self.prompt_tokens = function, prompt_tokens

    def submit(self) -> Pieces:
        return _Called(self._function)

    def begin(self) -> Pieces | None:
        return None


class _Called:
    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def __iter__(self) -> Iterator[Piece]:
        yield Piece(0, Delta(""), self._function())

    def cancel(self) -> None:
        """It ends by itself: an engine scores without a break."""

    def listen(self, take: Callable[[Piece | BaseException | None], None]) -> bool:
        return False


async def called(engine: Engine, name: Literal["encode", "render"], *arguments: Any) -> Any:
    """A method's result, without a thread where the engine can be asked without a wait."""
    if isinstance(engine, Posting):
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any) -> None:
            if future.done():  # who asked has gone
                return
            if isinstance(value, BaseException):
                future.set_exception(value)
            else:
                future.set_result(value)

        def take(value: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, value)

        if engine.post(name, arguments, take):
            return await future
    # a client that is gone, or whose time is over, does not wait for the thread
    return await run_sync(partial(getattr(engine, name), *arguments), abandon_on_cancel=True)


def likeliest(engine: Engine, tokens: Sequence[int], count: int) -> list[Top]:
    """The likeliest tokens in the place of each token after the first."""
    # Each is the beginning of the next, which engines with a shared-prefix cache compute once.
    asked = [Request(tokens[:end], Sampling(max_tokens=1, top_logprobs=count)) for end in range(1, len(tokens))]
    return [completion.top[0] for completion in engine.generate(asked)]
