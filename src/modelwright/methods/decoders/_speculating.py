"""Greedy answers in fewer steps: a quick guess at the next tokens, verified by the model in one pass.

Leviathan et al. 2023, arXiv:2211.17192, section 2: what is sampled keeps its distribution, and greedy decoding is a case of
sampling. The engine does it; what the guesses are is said by the kind.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from modelwright.core.spec import Runtime
from modelwright.methods.decoders import Asking, Decoded, Decoder, chosen, spent
from modelwright.methods.engines import Engine, Request, Speculate


class Speculating(Decoder):
    """One answer, the greedy one. Of the tokens that are spent, guesses that were wrong are a part."""

    needs: ClassVar[frozenset[str]] = frozenset({"speculate"})

    tokens: Annotated[int, Runtime] = Field(4, ge=1, le=64, examples=[2])
    """Tokens guessed for a step. More: fewer steps where guesses are right, dearer ones where they are wrong. 4 as in
    Chen et al. 2023 (arXiv:2302.01318)."""

    def how(self) -> Speculate:
        raise NotImplementedError

    def search(self, engine: Engine, request: Request) -> Asking:
        completions = yield [chosen(request, self.name)._replace(speculate=self.how())]
        return Decoded(completions, spent(completions))
