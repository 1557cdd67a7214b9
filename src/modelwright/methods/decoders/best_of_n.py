"""best_of_n: several answers are drawn and the one with the highest score is given.

Stiennon et al. 2020, arXiv:2009.01325 (best of N by a reward model); accuracy against tokens spent as in Snell et al. 2024,
arXiv:2408.03314. The scorer here is a task that needs no right answer, a function in Python, or the model's own probabilities.
"""

from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, spent
from modelwright.methods.decoders._scored import Scored
from modelwright.methods.engines import Engine, Request


class BestOfN(Scored):
    """All answers, the best first."""

    advice: ClassVar[Advice] = Advice(
        "answers can be told good from bad cheaply (code that parses, a reward model)",
        "there is no scorer but the model's own probabilities: then `self_consistency` or `beam`",
    )

    kind: Literal["best_of_n"] = "best_of_n"

    def budget(self, max_tokens: float) -> float:
        return self.samples * max_tokens

    def search(self, engine: Engine, request: Request) -> Asking:
        completions = yield [self.drawn(request, number) for number in range(self.samples)]
        scores = self.scores(engine, request, completions)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])  # equal ones as they were drawn
        return Decoded([completions[i] for i in order], spent(completions), tuple(scores[i] for i in order))
