"""Span corruption: an encoder reads a text with gaps, a decoder writes what stood in them; how T5 is pretrained.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv:1910.10683,
section 3.1.4 (15 % of the tokens in spans of 3 on average), with the counts and the sampler of the released code
(https://github.com/google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py: `random_spans_helper`,
`random_spans_noise_mask`, `noise_span_to_unique_sentinel`). New gaps each time a row is seen. Differences: rows are texts, not
windows over many of them joined, so they are of any length; and there are never more spans than tokens between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.memory.own import Texts
from modelwright.core.spec import Advice
from modelwright.methods.objectives import CrossEntropy, Head, Needs

if TYPE_CHECKING:
    from modelwright.nn.rows import Packed


class SpanCorruption(CrossEntropy):
    """Mean over the tokens to write of -log p(token | the text with gaps, what was written before it): each gap's mark, its
    tokens, and an end. Pieces of texts have about a tenth more tokens than `length`, which is what the encoder gets to read."""

    needs: ClassVar[Needs] = "text"
    head: ClassVar[Head] = "seq2seq"
    target_frac: ClassVar[float] = 0.18
    advice: ClassVar[Advice] = Advice(
        "pretraining an encoder-decoder, or going on with T5 on texts of a new kind",
        "the model is to go on with a text or to chat: a decoder and `next_token`",
    )

    kind: Literal["span_corruption"] = "span_corruption"
    rate: float = Field(0.15, gt=0, lt=1, examples=[0.3])
    """Share of a text's tokens that are hidden; more learns more from a text, each gap from less of it. 0.15 as in T5."""
    span: float = Field(3.0, ge=1, examples=[5.0])
    """Mean length of a gap in tokens; longer ones are harder and make what is written shorter. 3 as in T5."""
    sentinels: int = Field(100, ge=1, examples=[40])
    """How many marks `<extra_id_0>`, `<extra_id_1>` … the vocabulary has, one for each gap of a row; more allow longer rows. 100
    as in T5's vocabulary, enough for `length: 1800`."""

    def marks(self) -> tuple[str, ...]:
        return tuple(f"<extra_id_{number}>" for number in range(self.sentinels))

    def counts(self, tokens: int) -> tuple[int, int]:
        """Of so many tokens, how many are hidden, in how many gaps."""
        if tokens < 2:
            return 0, 0
        hidden = min(max(round(tokens * self.rate), 1), tokens - 1)
        return hidden, min(max(round(hidden / self.span), 1), tokens - hidden)

    def row_tokens(self, length: int) -> int:
        def read(tokens: int) -> int:
            hidden, gaps = self.counts(tokens)
            return tokens - hidden + gaps + 1  # and an end

        tokens = length - 1
        while read(tokens + 1) <= length:
            tokens += 1
        if (gaps := max(self.counts(n)[1] for n in range(tokens + 1))) > self.sentinels:
            raise UserError(
                f"a row of {tokens} tokens has {gaps} gaps, and there are {self.sentinels} marks for them",
                "every gap needs a mark of its own",
                f"lower `length`, or set `sentinels: {gaps}` and give the tokenizer as many",
            )
        return tokens

    def texts(self, tokens: int) -> tuple[Texts, ...]:
        hidden, gaps = self.counts(tokens)
        read, written = tokens - hidden + gaps + 1, hidden + gaps + 1
        return Texts(read, 0, 0), Texts(written, written, written, before=read)

    def change(self, tokenizer: Any, seed: int) -> Callable[[Packed], Packed] | None:
        from modelwright.nn.spans import Spans, corrupted

        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-text token",
                "both what is read and what is written end with it",
                "set `eos_token` in its tokenizer_config.json",
            )
        sentinels = tuple(tokenizer.convert_tokens_to_ids(list(self.marks())))
        how = Spans(self.counts, sentinels, tokenizer.eos_token_id, seed)
        return lambda batch: corrupted(batch, how)
