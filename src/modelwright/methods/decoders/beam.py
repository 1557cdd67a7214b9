"""beam: the likeliest answers by keeping several beginnings, and diverse beams that keep out of each other's way.

Beam search with length normalisation: Wu et al. 2016, arXiv:1609.08144, section 7, in transformers' form (the sum of
log-probabilities divided by length to the power of `length_penalty`; `generation/utils.py`, `_beam_search`). Diverse beams:
Vijayakumar et al. 2016, arXiv:1610.02424, algorithm 1 with Hamming diversity: group after group takes its step, and a token that
an earlier group has just taken loses `diversity_penalty` for each time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelwright.core.spec import Advice, Spec
from modelwright.methods.decoders import Asking, Decoded, Decoder
from modelwright.methods.decoders._branching import Line, completion, finish_of, opened
from modelwright.methods.engines import Engine, Request


class Beam(Decoder):
    """All finished beams, the best first; `scores` are their normalised log-probabilities."""

    advice: ClassVar[Advice] = Advice(
        "the likeliest whole answer is wanted: translation, short structured answers",
        "texts are open: the likeliest one is short and dull (Holtzman et al. 2019); then `sample`",
    )
    needs: ClassVar[frozenset[str]] = frozenset({"branch"})

    kind: Literal["beam"] = "beam"
    beams: int = Field(4, ge=1, le=256, examples=[2])
    """Beginnings kept, in all groups together. More: likelier answers, at as many times the tokens; many beams find answers that
    are too short (Stahlberg and Byrne 2019, arXiv:1908.10090). 4 as in Vaswani et al. 2017 (arXiv:1706.03762)."""
    length_penalty: float = Field(1.0, ge=-5, le=5, examples=[-2.0])
    """Scores are divided by the length to this power: above 0 answers may be longer, below 0 they get shorter. 1: the mean
    log-probability, transformers' default."""
    early_stopping: bool | Literal["never"] = Field(False, examples=[True])
    """When to stop: True as soon as there are as many answers as beams; False when the best beginning, as long as it is now, is
    worse than the worst answer; never: when no beginning can become better than that, however long. Default: transformers'."""
    groups: int = Field(1, ge=1, le=256, examples=[2])
    """Groups of diverse beams; must divide `beams`. More: answers that differ more, each from a narrower search."""
    diversity_penalty: float = Field(0.5, ge=0, examples=[5.0])
    """Nats that a token loses for each time that an earlier group has taken it in this step. More: groups differ more. Default:
    the middle of the 0.2 to 0.8 that the paper finds good."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.beams % self.groups:
            raise ValueError(f"{self.beams} beams cannot be {self.groups} groups of equal size")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        return {"diversity_penalty": "there is one group of beams, which has no other to differ from"} if self.groups == 1 else {}

    def budget(self, max_tokens: float) -> float:
        return self.beams * max_tokens

    def search(self, engine: Engine, request: Request) -> Asking:
        yield from ()  # asks for nothing: it works on branches
        branches, most = opened(engine, request, self.name)
        tokens_spent, tops = 0, request.sampling.top_logprobs
        groups = running = [_Group(self, most) for _ in range(self.groups)]
        with branches:
            for length in range(1, most + 1):
                own_BV, ruled_BV = branches.logps(), branches.ruled()
                taken: Counter[int] = Counter()
                for group in running:
                    found = []
                    for score, beam, token in group.likeliest(ruled_BV, taken, len(branches.stop)):
                        line = beam.line.grown(token, own_BV[beam.branch], tops)
                        finish = finish_of(engine, request, line, branches.stop, most)
                        found.append(_Beam(score, line, beam.branch, finish))
                    tokens = group.take(found, length)
                    taken.update(tokens)
                    tokens_spent += len(tokens)
                running = [group for group in running if not group.done]
                if not running:
                    break
                live = [beam for group in running for beam in group.live]
                branches.keep([beam.branch for beam in live])
                branches.extend([beam.line.tokens[-1] for beam in live])
                for place, beam in enumerate(live):
                    beam.branch = place
        ended = sorted((beam for group in groups for beam in group.ended), key=lambda beam: -beam.score)
        completions = [completion(engine, request, beam.line, branches.stop, beam.finish) for beam in ended]
        return Decoded(completions, tokens_spent, tuple(beam.score for beam in ended))


@dataclass
class _Beam:
    score: float
    """Sum of log-probabilities less penalties; of an ended one divided by its length to the power of the length penalty."""
    line: Line
    branch: int
    finish: str = ""


class _Group:
    """Beams that compete with each other."""

    def __init__(self, spec: Beam, most: int) -> None:
        self.spec, self.most, self.size = spec, most, spec.beams // spec.groups
        self.live = [_Beam(0.0, Line(), 0)]
        """The best first."""
        self.ended: list[_Beam] = []
        self.done = False

    def likeliest(self, logps_BV: Any, taken: Mapping[int, int], ends: int) -> list[tuple[float, _Beam, int]]:
        """(score, beam, token), the best first; so many that enough go on even where every end of an answer is among them."""
        import numpy as np

        scores_BV = np.stack([beam.score + logps_BV[beam.branch].astype(np.float64) for beam in self.live])
        for token, times in taken.items():
            scores_BV[:, token] -= self.spec.diversity_penalty * times
        score_N = scores_BV.reshape(-1)
        count = min(max(2, 1 + ends) * self.size, len(score_N))
        place_C = np.argpartition(-score_N, count - 1)[:count]
        place_C = place_C[np.lexsort((place_C, -score_N[place_C]))]  # of equal ones the first
        pairs = [divmod(int(place), scores_BV.shape[1]) for place in place_C if score_N[place] > -np.inf]
        return [(float(scores_BV[number, token]), self.live[number], token) for number, token in pairs]

    def take(self, found: Sequence[_Beam], length: int) -> list[int]:
        """One step: the best go on, ended ones among them are kept. Returns the tokens that were written."""
        new = [replace(beam, score=beam.score / length**self.spec.length_penalty) for beam in found[: self.size] if beam.finish]
        self.live = [beam for beam in found if not beam.finish][: self.size]
        self.ended = sorted([*self.ended, *new], key=lambda beam: -beam.score)[: self.size]
        full = len(self.ended) == self.size
        self.done = not self.live or (full and (self.spec.early_stopping is True or not self._may_improve(length)))
        return [beam.line.tokens[-1] for beam in (*self.live, *new)]

    def _may_improve(self, length: int) -> bool:
        penalty = self.spec.length_penalty
        best_length = self.most if self.spec.early_stopping == "never" and penalty > 0 else length
        return bool(self.live[0].score / best_length**penalty > self.ended[-1].score)
