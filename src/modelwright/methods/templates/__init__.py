"""Templates: how a chat becomes text. One file a kind. Training and serving render with the same Jinja source.

Environment and variables as in Hugging Face's dialect (https://huggingface.co/docs/transformers/chat_templating):
an immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson`
without HTML escapes, and `{% generation %}` blocks. What a row trains on is found by rendering its prefixes, so
any template works without marks in it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from modelwright.core.errors import UserError
from modelwright.core.spec import Kinds, Spec
from modelwright.methods.templates._encode import (
    Encoded,
    array_encoder,
    encode_chat,
    encode_chats,
    encode_prompt,
    encoded_by,
    encoder,
    marks,
    parity,
    parity_check,
    tools_of,
)
from modelwright.methods.templates._render import Span, render, spans
from modelwright.methods.templates._typed import BREAK, broken, mended, special_tokens

__all__ = [
    "BREAK",
    "TEMPLATES",
    "Encoded",
    "Span",
    "Template",
    "array_encoder",
    "broken",
    "encode_chat",
    "encode_chats",
    "encode_prompt",
    "encoded_by",
    "encoder",
    "marks",
    "mended",
    "parity",
    "parity_check",
    "render",
    "spans",
    "special_tokens",
    "tools_of",
]

TEMPLATES = Kinds(__name__, f"{__name__}:Template")


class Template(Spec):
    """A chat template in Hugging Face's dialect of Jinja, kept inside the tokenizer (`chat_template`)."""

    special: ClassVar[tuple[str, ...]] = ()
    """Tokens that the vocabulary must hold whole."""
    stop: ClassVar[str] = ""
    """The token that ends a turn; it is inside the loss and stops generation. '': the tokenizer's own."""

    def jinja(self) -> str:
        """The template's source, '' where the tokenizer brings it; given `messages`, `add_generation_prompt`, `bos_token`,
        `eos_token`, `tools`."""
        raise NotImplementedError

    def of(self, tokenizer: Any) -> str:
        """The source to use with this tokenizer (transformers' or a bare one), whose vocabulary is checked for it."""
        self.check(tokenizer)
        return self.jinja()

    def check(self, tokenizer: Any) -> None:
        """UserError where the vocabulary lacks one of `special`."""
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in self.special if token not in vocabulary]:
            raise UserError(
                f"the tokenizer lacks {', '.join(map(repr, missing))}, which this chat template needs",
                "a turn's marks must be whole tokens, else the model cannot end its answer",
                "use `template: own` for the template that came with the tokenizer, or train a tokenizer with this template",
            )
