"""greedy: the likeliest token at every place. What it makes of open texts: Holtzman et al. 2019, arXiv:1904.09751, section 3."""

from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, Decoder, chosen, spent
from modelwright.methods.engines import Engine, Request


class Greedy(Decoder):
    """One answer, always the same."""

    advice: ClassVar[Advice] = Advice(
        "numbers are to be repeated: evaluation, tests", "texts are long and open: it falls into loops; then `sample`"
    )

    kind: Literal["greedy"] = "greedy"

    def search(self, engine: Engine, request: Request) -> Asking:
        completions = yield [chosen(request, self.name)]
        return Decoded(completions, spent(completions))
