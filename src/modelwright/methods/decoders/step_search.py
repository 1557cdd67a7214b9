"""step_search: beam search over steps of a text, each beginning scored as it stands.

Snell et al. 2024, arXiv:2408.03314, section 5.2 (beam search): draw N beginnings of one step, keep the best N / M, draw M next
steps from each, and so on. There a process reward model scores; here any scorer does. Unlike there, beginnings that came out
equal count once, and finished answers stay among those that new ones have to beat.
"""

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, spent, unconstrained
from modelwright.methods.decoders._scored import Scored
from modelwright.methods.engines import Completion, Engine, Request


class _Path(NamedTuple):
    so_far: Completion
    """`finish` is '' while it goes on."""
    score: float


class StepSearch(Scored):
    """The beginnings that are kept, the best first."""

    advice: ClassVar[Advice] = Advice(
        "a scorer can tell early that a reasoning goes wrong", "answers are short, or the scorer only knows whole ones"
    )
    continues: ClassVar[bool] = True

    kind: Literal["step_search"] = "step_search"
    samples: int = Field(4, ge=1, le=256, examples=[2])
    """Next steps drawn from each beginning that is kept. More: a better best one of them, at as many times the tokens. 4 as in
    the paper (M)."""
    keep: int = Field(2, ge=1, le=256, examples=[1])
    """Beginnings kept after each step. More: a good answer that begins badly survives, at as many times the tokens. Default:
    the smallest number that can change its mind."""
    separator: str = Field("\n", min_length=1, examples=[" "])
    """What ends a step. Default: reasonings have a line a step."""

    def budget(self, max_tokens: float) -> float:
        return self.samples * self.keep * max_tokens

    def search(self, engine: Engine, request: Request) -> Asking:
        unconstrained(request, self.name)
        paths, tokens_spent, drawn = [_Path(Completion("", (), (), "", len(request.tokens)), 0.0)], 0, 0
        while live := [path.so_far for path in paths if not path.so_far.finish]:
            each = self.samples * (1 if drawn else self.keep)
            parents = [so_far for so_far in live for _ in range(each)]
            answers = yield [self._next(request, parent, drawn + number) for number, parent in enumerate(parents)]
            drawn += len(parents)
            tokens_spent += spent(answers)
            grown = [self._grown(engine, request, *pair) for pair in zip(parents, answers, strict=True)]
            grown = list({so_far.tokens: so_far for so_far in grown}.values())
            scores = self.scores(engine, request, grown)
            paths = [path for path in paths if path.so_far.finish] + list(map(_Path, grown, scores))
            paths = sorted(paths, key=lambda path: -path.score)[: self.keep]
        return Decoded([path.so_far for path in paths], tokens_spent, tuple(path.score for path in paths))

    def _next(self, request: Request, so_far: Completion, number: int) -> Request:
        """Asks for one more step."""
        drawn = self.drawn(request, number)
        left = request.sampling.max_tokens - len(so_far.tokens)
        sampling = drawn.sampling._replace(max_tokens=left, stop=(self.separator,))
        return drawn._replace(tokens=[*request.tokens, *so_far.tokens], sampling=sampling)

    def _grown(self, engine: Engine, request: Request, so_far: Completion, step: Completion) -> Completion:
        """A beginning and its next step, ended where a stop string of the request, the model or the length ends it."""
        tokens = so_far.tokens + step.tokens
        ended = step.finish == "stop" and self.separator not in engine.decode(step.tokens)  # the model's own end of a turn
        text = engine.decode(tokens[:-1] if ended else tokens)
        stops = [place for stop in request.sampling.stop if (place := text.find(stop)) >= 0]
        full = len(tokens) >= request.sampling.max_tokens or len(request.tokens) + len(tokens) >= engine.context
        finish = "stop" if stops or ended else "length" if full else ""
        logprobs, top = so_far.logprobs + step.logprobs, so_far.top + step.top
        return Completion(text[: min(stops, default=len(text))], tokens, logprobs, finish, len(request.tokens), top)
