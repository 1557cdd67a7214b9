"""sample: each token drawn from the model's probabilities, with any of the usual cuts and penalties.

Top-k: Fan et al. 2018, arXiv:1805.04833. Nucleus (top-p): Holtzman et al. 2019, arXiv:1904.09751. Min-p: Nguyen et al. 2024,
arXiv:2407.01082. Locally typical: Meister et al. 2022, arXiv:2202.00666. Eta: Hewitt et al. 2022, arXiv:2210.15191.
Repetition penalty: Keskar et al. 2019, arXiv:1909.05858. Frequency and presence penalties as in the OpenAI API
(https://platform.openai.com/docs/api-reference/chat/create).
"""

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, Decoder, chosen, seed_of, spent
from modelwright.methods.engines import Engine, Request


class Sample(Decoder):
    """One answer, drawn. Cuts and penalties are off by default: then draws follow the model's own probabilities."""

    advice: ClassVar[Advice] = Advice("open texts, where the likeliest one is dull", "there is one right answer: then `greedy`")
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    kind: Literal["sample"] = "sample"
    temperature: float = Field(1.0, ge=0, le=5, examples=[0.5])
    """Divides the logits: above 1 draws are wilder, below 1 tamer; 0 always takes the likeliest. 1: as the model was trained."""
    top_k: int = Field(0, ge=0, examples=[2])
    """Only so many of the likeliest tokens; fewer are tamer. 0: all."""
    top_p: float = Field(1.0, gt=0, le=1, examples=[0.3])
    """Only the likeliest tokens that together have this probability; less is tamer. 1: all."""
    min_p: float = Field(0.0, ge=0, lt=1, examples=[0.5])
    """Only tokens with at least this share of the likeliest one's probability; more is tamer. 0: all."""
    typical_p: float = Field(1.0, gt=0, le=1, examples=[0.3])
    """Only the tokens whose surprise is nearest to the expected one, until they have this probability together. 1: all."""
    eta: float = Field(0.0, ge=0, lt=1, examples=[0.2])
    """Cuts tokens less likely than this or, where the model is unsure, than a smaller bound that falls with its entropy.
    0: none."""
    repetition_penalty: float = Field(1.0, gt=0, le=10, examples=[3.0])
    """Weakens tokens that prompt or answer hold; above 1 repeats less. 1: none."""
    frequency_penalty: float = Field(0.0, ge=-10, le=10, examples=[5.0])
    """Taken from a token's logit for each time that the answer holds it; more repeats less. 0: none."""
    presence_penalty: float = Field(0.0, ge=-10, le=10, examples=[5.0])
    """Taken once from the logit of a token that the answer holds; more takes up more different words. 0: none."""
    seed: int = Field(0, ge=0, lt=2**31, examples=[1])
    """Of the draws. The same seed and prompt give the same answer; different prompts draw different numbers."""

    def wants(self) -> frozenset[str]:
        plain = Sample(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed)
        return self.needs if self == plain else self.needs | {"rules"}

    def search(self, engine: Engine, request: Request) -> Asking:
        fields = self.model_dump(exclude={"kind", "seed"})
        completions = yield [chosen(request, self.name, **fields, seed=seed_of(self.seed, request))]
        return Decoded(completions, spent(completions))
