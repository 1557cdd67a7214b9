"""budget_forcing: a model that thinks before it answers is made to think no shorter and no longer than asked.

Muennighoff et al. 2025 (s1), arXiv:2501.19393, section 3.1: an end of thinking that comes too early is taken away and "Wait"
written in its place; one that comes too late is written in. Everything is greedy, as there.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.spec import Advice
from modelwright.methods.decoders import Asking, Decoded, Decoder, chosen, spent, unconstrained
from modelwright.methods.engines import Completion, Engine, Request


class BudgetForcing(Decoder):
    """Thinks, then answers. The request's `max_tokens` and `stop` are about the answer behind the thoughts."""

    advice: ClassVar[Advice] = Advice(
        "the model was trained to think between marks", "it was not: more tokens of any other model are only more tokens"
    )
    continues: ClassVar[bool] = True

    kind: Literal["budget_forcing"] = "budget_forcing"
    least_tokens: int = Field(0, ge=0, examples=[20])
    """Tokens of thinking before its end is taken for one. More: longer thoughts, until they go round in circles. 0: it ends where
    the model ends it."""
    most_tokens: int = Field(2048, ge=1, examples=[2])
    """Tokens of thinking after which the end is written in. Less: cheaper. Thoughts get less where the context leaves less
    beside the answer. Default: ours; the paper goes from 512 to 8,192."""
    begin: str = Field("", examples=["<think>"])
    """Written before the thoughts, where the chat's template does not open them itself."""
    end: str = Field("</think>", min_length=1, examples=["e"])
    """What ends the thoughts, as it stands in the text. Default: as DeepSeek-R1, Qwen3 and SmolLM3 write it."""
    wait: str = Field("Wait", min_length=1, examples=[" So"])
    """Written in place of an end that comes too early. Default: the best of those that the paper tried."""
    answer: str = Field("\n", examples=[" Final Answer:"])
    """Written behind the end, before the answer."""
    show: Literal["answer", "all"] = "answer"
    """What the completion is: the answer alone, or the thoughts, too (without log-probabilities: some tokens are not the
    model's)."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least_tokens > self.most_tokens:
            raise ValueError("`least_tokens` is above `most_tokens`")
        return self

    def budget(self, max_tokens: float) -> float:
        return max_tokens + (self.least_tokens + self.most_tokens) / 2

    def search(self, engine: Engine, request: Request) -> Asking:
        unconstrained(request, self.name)
        request = chosen(request, self.name)
        closing = spelt(engine, self.end + self.answer)
        thoughts = spelt(engine, self.begin) if self.begin else []
        if self.end not in engine.decode(closing):
            raise UserError(
                f"the tokenizer hides {self.end!r} from the text",
                "so nobody sees where the thoughts end",
                "`end`: what stands in the text there",
            )
        room = engine.context - len(request.tokens) - len(thoughts) - len(closing) - request.sampling.max_tokens
        left, thought, tokens_spent = min(self.most_tokens, room), 0, 0
        while left > 0:
            sampling = request.sampling._replace(max_tokens=left, stop=(self.end,))
            (piece,) = yield [request._replace(tokens=[*request.tokens, *thoughts], sampling=sampling)]
            tokens_spent += spent([piece])
            thoughts += before_end(engine, piece)
            thought, left = thought + len(piece.tokens), left - len(piece.tokens)
            if piece.finish != "stop" or thought >= self.least_tokens:
                break
            wait = spelt(engine, self.wait)
            thoughts += wait
            thought, left = thought + len(wait), left - len(wait)
        thoughts += closing
        (last,) = yield [request._replace(tokens=[*request.tokens, *thoughts])]
        tokens_spent += spent([last])
        if self.show == "all":
            last = last._replace(text=engine.decode(thoughts) + last.text, tokens=(*thoughts, *last.tokens), logprobs=(), top=())
        return Decoded([last._replace(prompt_tokens=len(request.tokens))], tokens_spent)


def spelt(engine: Engine, text: str) -> list[int]:
    """A text's tokens without what the tokenizer puts before every text."""
    tokens, begin = engine.encode(text), engine.encode("")
    return tokens[len(begin) :] if tokens[: len(begin)] == begin else tokens


def before_end(engine: Engine, piece: Completion) -> Sequence[int]:
    """The tokens of an answer without those that spell its end; where a token holds both, what stands before it is spelt anew."""
    if piece.finish != "stop":
        return piece.tokens
    for count in range(len(piece.tokens) - 1, -1, -1):  # the last token is the model's end of a turn, or ended the stop string
        text = engine.decode(piece.tokens[:count])
        if piece.text.startswith(text):
            rest = piece.text[len(text) :]
            return [*piece.tokens[:count], *(spelt(engine, rest) if rest else ())]
    return []
