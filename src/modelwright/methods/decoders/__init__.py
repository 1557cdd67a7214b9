"""Decoders: how an answer is searched for with an engine's next-token probabilities. One file a kind; evaluation and
`compare-decoding` call this.

Each kind counts the tokens that it wrote, kept or not, so that accuracy can be told against tokens spent (Snell et al. 2024,
arXiv:2408.03314, who compare methods at equal spending).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from modelwright.core.errors import UserError
from modelwright.core.spec import Kinds, Spec, kind_of
from modelwright.methods.engines import Completion, Engine, EngineSpec, Request, Sampling

DECODERS = Kinds(__name__, f"{__name__}:Decoder")

THE_REQUESTS = frozenset({"max_tokens", "stop", "seed", "logit_bias", "top_logprobs", "logprobs"})
"""What of `Sampling` stays with the request; every other field says how tokens are chosen, which is the decoder's."""


class Decoded(NamedTuple):
    """What a decoder made of one request."""

    completions: list[Completion]
    """Best first; never empty."""
    tokens_spent: int
    """Tokens that were written for it, those of answers and beams that were given up included. Prompts are not counted."""
    scores: tuple[float, ...] = ()
    """What the completions were ordered by, the higher the better; empty where there was nothing to order."""


Asking = Generator[list[Request], list[Completion], Decoded]
"""A search under way: it yields requests and is sent their answers."""


class Decoder(Spec):
    """A way to an answer. Same engine, request and fields: same answer, whatever else is asked in the same batch."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Capabilities that the engine must have."""
    continues: ClassVar[bool] = False
    """It goes on behind what was written, which an engine that takes chats instead of tokens (`messages`) cannot."""

    def search(self, engine: Engine, request: Request) -> Asking:
        """What a kind says: yields requests that may be answered together, and returns what came of them."""
        raise NotImplementedError

    def wants(self) -> frozenset[str]:
        """`needs`, and what these fields need beside it."""
        return self.needs

    def budget(self, max_tokens: float) -> float:
        """Tokens that it writes where an answer has so many, for the planner."""
        return max_tokens

    @property
    def name(self) -> str:
        return kind_of(self)

    def lacks(self, capabilities: frozenset[str]) -> str | None:
        """Why an engine with these capabilities cannot do it; None where it can."""
        missing = sorted(self.wants() - capabilities)
        if missing:
            return f"the decoder `{self.name}` needs {', '.join(missing)}"
        if self.continues and "messages" in capabilities:
            return f"the decoder `{self.name}` goes on behind tokens, and this engine takes messages alone"
        return None

    def unable(self, spec: EngineSpec) -> UserError | None:
        """The same of a kind of engine, before any is open: what no model has under it."""
        missing = next((need for need in sorted(self.wants()) if need in spec.lacks), None)
        if missing is not None:
            return UserError(f"the decoder `{self.name}` needs {missing}, which this engine lacks", fix=spec.lacks[missing])
        if self.continues and not spec.local:
            return UserError(
                f"the decoder `{self.name}` goes on behind tokens, and a server takes messages alone", fix="take `engine: native`"
            )
        return None

    def placed(self, where: Callable[[str], Path]) -> Self:
        """With the folders of what it refers to in place of references."""
        return self

    def run(self, engine: Engine, request: Request) -> Decoded:
        (found,) = self.run_all(engine, [request])
        return found

    def run_all(self, engine: Engine, requests: Sequence[Request]) -> Iterator[Decoded]:
        """Every request searched for, in order, as they are found; what they ask for at the same time is one batch of the
        engine's."""
        if reason := self.lacks(engine.capabilities):
            raise UserError(
                reason,
                f"this engine can only {', '.join(sorted(engine.capabilities))}",
                "take the engine `native`, or another decoder",
            )
        searches = [self.search(engine, request) for request in requests]
        done: dict[int, Decoded] = {}
        asked: dict[int, list[Request]] = {}

        def go_on(index: int, answers: list[Completion] | None) -> None:
            try:
                asked[index] = next(searches[index]) if answers is None else searches[index].send(answers)
            except StopIteration as end:
                done[index] = end.value

        for index in range(len(searches)):
            go_on(index, None)
        told = 0
        while asked:
            batch, asked = asked, {}
            answers = engine.answers([request for found in batch.values() for request in found])
            for index, found in batch.items():
                go_on(index, [next(answers) for _ in found])
                while told in done:
                    yield done[told]
                    told += 1
        for index in range(told, len(searches)):  # those that asked nothing
            yield done[index]


def chosen(request: Request, decoder: str, **fields: Any) -> Request:
    """The request with tokens chosen as `fields` of `Sampling` say; UserError where it says itself how to choose."""
    choosing = {name: value for name, value in Sampling._field_defaults.items() if name not in THE_REQUESTS}
    own = [name for name, value in choosing.items() if getattr(request.sampling, name) != value]
    if own:
        raise UserError(
            f"the request sets {', '.join(own)}, and so does the decoder `{decoder}`",
            "how tokens are chosen is said in one place",
            f"leave {', '.join(own)} out of the request, and set what the decoder has fields for there",
        )
    return request._replace(sampling=request.sampling._replace(**fields))


def unconstrained(request: Request, decoder: str) -> None:
    """UserError where the answer is held to a form, which a decoder that writes it in several requests would lose."""
    if request.constraint is not None:
        raise UserError(
            f"the decoder `{decoder}` cannot hold an answer to a {request.constraint.kind}",
            "it writes an answer in pieces, and the form is about the whole of it",
            "leave the constraint out, or take another decoder",
        )


def seed_of(seed: int, request: Request, number: int = 0) -> int:
    """A seed that differs by prompt and by sample: items that share their random numbers would rise and fall together."""
    tree = repr((seed, request.sampling.seed, list(request.tokens), request.messages, request.text, number))
    return int.from_bytes(hashlib.sha256(tree.encode()).digest()[:4], "big") >> 1


def prompt_text(engine: Engine, request: Request) -> str:
    """What was asked, for people and scorers."""
    if "messages" not in engine.capabilities:
        return engine.decode(request.tokens)
    return request.text or "\n\n".join(str(message["content"]) for message in request.messages)


def spent(completions: Sequence[Completion]) -> int:
    """Tokens that were written for these, wrong guesses of speculation included."""
    return sum(c.usage.answer_tokens if c.usage is not None else len(c.tokens) + c.proposed - c.accepted for c in completions)


def mean_logprob(completion: Completion) -> float:
    """Of the answer's tokens, in nats, before temperature; minus infinity for an answer without any."""
    return sum(completion.logprobs) / len(completion.logprobs) if completion.logprobs else float("-inf")
