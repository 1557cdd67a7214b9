"""contrastive: the likeliest of a few tokens that is not too like what is already there.

Su et al. 2022, arXiv:2202.06417, equation 5: of the `top_k` likeliest tokens the one with the largest (1 - alpha) * probability -
alpha * (largest cosine between its hidden state and that of any token before it, the prompt's included).
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, Decoder
from modelwright.methods.decoders._branching import Line, completion, finish_of, opened
from modelwright.methods.engines import Engine, Request


class Contrastive(Decoder):
    """One answer, always the same, without the loops of greedy ones."""

    advice: ClassVar[Advice] = Advice(
        "long open texts that are to be the same each time",
        "hidden states of all tokens are alike, as in some small models: then `sample`",
    )
    needs: ClassVar[frozenset[str]] = frozenset({"branch"})

    kind: Literal["contrastive"] = "contrastive"
    penalty_alpha: float = Field(0.6, ge=0, le=1, examples=[0.0])
    """Weight of the likeness against the probability. More: fewer repetitions, less likely tokens; 0 is greedy. 0.6 as in
    the authors' guide, https://huggingface.co/blog/introducing-csearch."""
    top_k: int = Field(4, ge=1, le=1024, examples=[8])
    """Tokens that are looked at; each takes a forward pass. More: less likely ones may win. 4 as in the same guide."""

    def budget(self, max_tokens: float) -> float:
        return self.top_k * max_tokens

    def search(self, engine: Engine, request: Request) -> Asking:
        import numpy as np

        yield from ()  # asks for nothing: it works on branches
        line, tops, tokens_spent, finish = Line(), request.sampling.top_logprobs, 0, ""
        branches, most = opened(engine, request, self.name, hidden=True)
        with branches:
            before = list(_units(branches.prompt_hidden))
            while not finish:
                own_V, ruled_V = branches.logps()[0], branches.ruled()[0]
                token_K = np.argsort(-ruled_V, kind="stable")[: self.top_k]
                token_K = token_K[ruled_V[token_K] > -np.inf]
                branches.keep([0] * len(token_K))
                branches.extend([int(token) for token in token_K])
                tokens_spent += len(token_K)
                unit_KE = _units(branches.hidden())
                likeness_K = (unit_KE @ np.stack(before).T).max(1)
                score_K = (1 - self.penalty_alpha) * np.exp(ruled_V[token_K]) - self.penalty_alpha * likeness_K
                best = int(score_K.argmax())
                branches.keep([best])
                before.append(unit_KE[best])
                line = line.grown(int(token_K[best]), own_V, tops)
                finish = finish_of(engine, request, line, branches.stop, most)
        return Decoded([completion(engine, request, line, branches.stop, finish)], tokens_spent)


def _units(hidden_BE: Any) -> Any:
    """Vectors of length 1 in the same directions."""
    import numpy as np

    return hidden_BE / np.linalg.norm(hidden_BE, axis=1, keepdims=True).clip(min=1e-12)
