"""lookup: greedy, with what followed the newest tokens where they stood before as the guess.

Saxena 2023, "Prompt Lookup Decoding", https://github.com/apoorvumang/prompt-lookup-decoding; see `_speculating`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice, Runtime
from modelwright.methods.decoders._speculating import Speculating
from modelwright.methods.engines import Speculate


class Lookup(Speculating):
    """No second model: the text itself is the guess."""

    advice: ClassVar[Advice] = Advice("answers repeat what was asked: code, summaries", "they do not: wrong guesses cost time")

    kind: Literal["lookup"] = "lookup"
    ngram: Annotated[int, Runtime] = Field(3, ge=1, le=16, examples=[1])
    """Newest tokens that are looked for; where they never stood before, fewer. More: better guesses. 3 as in the source."""

    def how(self) -> Speculate:
        return Speculate("lookup", self.tokens, self.ngram)
