"""ChatML: `<|im_start|>role`, the text, `<|im_end|>`.

Source: OpenAI, "ChatML" (2023), https://github.com/openai/openai-python/blob/v0.28.1/chatml.md. The Jinja is ours; without
`system` it renders what the ChatML templates of Qwen2 and SmolLM2 render for chats that bring a system message or need none.
"""

from __future__ import annotations

import json
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.templates import Template


class ChatML(Template):
    """Turns between `<|im_start|>` and `<|im_end|>`."""

    special: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    stop: ClassVar[str] = "<|im_end|>"
    advice: ClassVar[Advice] = Advice(
        "you train the vocabulary yourself, or tune a base model that has no chat template",
        "the model came with its own template: then keep `own`",
    )

    kind: Literal["chatml"] = "chatml"
    system: str = Field("", examples=["You answer questions about Python."])
    """System message put before chats that bring none; '' (as ChatML itself): none. Longer costs its tokens in every chat."""
    space: bool = Field(False, examples=[True])
    """Put a space before each answer, so that its first word is the same token as inside a text (byte-level BPE): small models
    copy better. Off: as published. Engines take the space off again."""

    def jinja(self) -> str:
        content = "(message['content'] or '')"
        if self.space:
            content = "(' ' + message['content'].strip() if message['role'] == 'assistant' else " + content + ")"
        turn = "{{ '<|im_start|>' + message['role'] + '\\n' + " + content + " + '<|im_end|>\\n' }}"
        opening = ""
        if self.system:
            quoted = json.dumps(self.system, ensure_ascii=False)
            opening = (
                "{% if messages and messages[0]['role'] != 'system' %}"
                "{{ '<|im_start|>system\\n' + " + quoted + " + '<|im_end|>\\n' }}{% endif %}"
            )
        turns = "{% for message in messages %}" + turn + "{% endfor %}"
        return opening + turns + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
