"""SFT: cross-entropy on the answers of a chat, end of turn included; questions are context only.

Source: Ouyang et al. 2022, "Training language models to follow instructions", arXiv:2203.02155, section 3.5. The mean is over
all answer tokens of the global batch, so that accumulation and packing do not change it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from modelwright.core.spec import Advice
from modelwright.methods.objectives import ANSWER_FRAC, CrossEntropy, Needs


class SFT(CrossEntropy):
    """Mean over answer tokens of -log p(token | chat before it)."""

    needs: ClassVar[Needs] = "answers"
    target_frac: ClassVar[float] = ANSWER_FRAC
    advice: ClassVar[Advice] = Advice(
        "you have chats with good answers",
        "you only have texts (`next_token`) or comparisons (`dpo`)",
        needs="prompts with good answers, or chats",
        least_rows=50,
        cost=1.0,
        memory=1.0,
        quality=("every answer is one that you would give: a thousand chosen ones beat many loose ones (LIMA, arXiv:2305.11206)"),
        deployment="a model as before, or an adapter beside it",
        source=(
            "OpenAI, Supervised fine-tuning, https://platform.openai.com/docs/guides/supervised-fine-tuning: "
            "gains from 50 to 100 rows; three passes a row, which is the unit of cost"
        ),
    )

    kind: Literal["sft"] = "sft"
