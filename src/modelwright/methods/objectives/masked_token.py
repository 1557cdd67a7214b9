"""Masked token: guess hidden tokens of a text from both sides; how encoders are pretrained.

Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 3.1 (15 % of the tokens; of these 80 % become the mask, 10 % any
token, 10 % stay; at least one a row, as in its code). New masks each time a row is seen: Liu et al. 2019, "RoBERTa",
arXiv:1907.11692, section 4.1. No next-sentence task, by RoBERTa's section 4.2. Special tokens are never hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.errors import UserError
from modelwright.core.memory.own import Texts
from modelwright.core.spec import Advice
from modelwright.methods.objectives import CrossEntropy, Head, Needs

if TYPE_CHECKING:
    from modelwright.nn.rows import Packed


class MaskedToken(CrossEntropy):
    """Mean over hidden tokens of -log p(token | the rest of its text)."""

    needs: ClassVar[Needs] = "text"
    head: ClassVar[Head] = "masked"
    target_frac: ClassVar[float] = 0.15
    advice: ClassVar[Advice] = Advice(
        "pretraining an encoder, or going on with it on texts of a new kind", "the model has to write: then `next_token`"
    )

    kind: Literal["masked_token"] = "masked_token"
    rate: float = Field(0.15, gt=0, lt=1, examples=[0.3])
    """Share of a text's tokens that are guessed; more learns more from a text, each guess from less of it. 0.15 as in BERT;
    ModernBERT takes 0.3 (arXiv:2412.13663, section 2.2)."""
    mask_frac: float = Field(0.8, ge=0, le=1, examples=[0.5])
    """Share of the guessed tokens that become the mask token. 0.8 as in BERT."""
    random_frac: float = Field(0.1, ge=0, le=1, examples=[0.2])
    """Share of the guessed tokens that become a random token; the rest stays as it is. 0.1 as in BERT."""
    mask: str | None = Field(None, min_length=1, examples=["<mask>"])
    """The mask token, as it stands in the vocabulary. Unset: the one that the tokenizer names as its own."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask_frac + self.random_frac > 1:
            raise PydanticCustomError("shares", "`mask_frac` and `random_frac` are shares of the same tokens: together at most 1")
        return self

    def marks(self) -> tuple[str, ...]:
        return () if self.mask is None else (self.mask,)

    def texts(self, tokens: int) -> tuple[Texts, ...]:
        guessed = max(1, round(self.rate * tokens))
        return (Texts(tokens, guessed, guessed),)

    def change(self, tokenizer: Any, seed: int) -> Callable[[Packed], Packed] | None:
        from modelwright.nn.masking import Masking, masked

        mask_id = tokenizer.mask_token_id if self.mask is None else tokenizer.get_vocab().get(self.mask)
        if mask_id is None:
            raise UserError(
                "the tokenizer has no mask token",
                "hidden tokens are replaced with it" if self.mask is None else f"{self.mask!r} is not in its vocabulary",
                'train the tokenizer with `special: ["[MASK]"]`, and say `objective: {kind: masked_token, mask: "[MASK]"}`',
            )
        how = Masking(
            self.rate, self.mask_frac, self.random_frac, mask_id, len(tokenizer), tuple(tokenizer.all_special_ids), seed
        )
        return lambda batch: masked(batch, how)
