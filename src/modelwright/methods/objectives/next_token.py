"""Next token: cross-entropy on every token of a text, or of a whole chat.

Source: Bengio et al. 2003, "A Neural Probabilistic Language Model", equation 1 of section 2; as pretraining, Radford et al.
2018, "Improving Language Understanding by Generative Pre-Training", equation 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.objectives import CrossEntropy, Needs


class NextToken(CrossEntropy):
    """Mean over tokens of -log p(token | those before it in its document)."""

    needs: ClassVar[Needs] = "text"
    advice: ClassVar[Advice] = Advice(
        "pretraining, and going on with it on new texts",
        "teaching answers: then `sft`, which leaves questions out of the loss",
        needs="texts: 20 tokens a weight from scratch, about 100 million to teach a field to a model that is there",
        cost=1.0,
        memory=1.0,
        quality="clean, without duplicates, with a share of general text against forgetting",
        deployment="a base model: it goes on with texts, and has no manners before SFT",
        source=(
            "Hoffmann et al. 2022, arXiv:2203.15556, table 3 (20 tokens a weight); Gururangan et al. 2020, "
            "arXiv:2004.10964 (going on in a field)"
        ),
    )

    kind: Literal["next_token"] = "next_token"
