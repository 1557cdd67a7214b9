"""Own: the template that came inside the model's tokenizer.

Source: `chat_template` of a Hugging Face tokenizer, https://huggingface.co/docs/transformers/chat_templating.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from modelwright.core.errors import UserError
from modelwright.core.spec import Advice
from modelwright.methods.templates import Template


class Own(Template):
    """Keeps what the tokenizer brings."""

    version: ClassVar[int] = 2
    advice: ClassVar[Advice] = Advice(
        "you tune a model that already chats, or that came with a template", "the base model has none: then `chatml`"
    )

    kind: Literal["own"] = "own"

    def jinja(self) -> str:
        return ""

    def check(self, tokenizer: Any) -> None:
        self.of(tokenizer)

    def of(self, tokenizer: Any) -> str:
        from tokenizers import Tokenizer

        source = None if isinstance(tokenizer, Tokenizer) else tokenizer.chat_template
        if not isinstance(source, str) or not source:
            raise UserError(
                "the tokenizer has no chat template of its own",
                "a base model is not made for chats, so it often comes without one",
                "say which to use, for example `template: chatml` (its marks must be in the vocabulary) or `template: plain`",
            )
        return source
