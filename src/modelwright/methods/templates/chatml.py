"""ChatML: `<|im_start|>role`, the text, `<|im_end|>`.

Source: OpenAI, "ChatML" (2023), https://github.com/openai/openai-python/blob/v0.28.1/chatml.md. The Jinja is ours; without
`system` it renders what the ChatML templates of Qwen2 and SmolLM2 render for chats that bring a system message or need none.
Tools, calls and results are written as in the template of https://huggingface.co/Qwen/Qwen2.5-7B-Instruct, which took them from
Hermes; arguments that are JSON text already stay so.
"""

from __future__ import annotations

import json
import string
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.templates import Template
from modelwright.methods.templates._refusals import THOUGHTS

_HEAD = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
_HEAD += "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
_FOOT = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
_FOOT += (
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_CALLS = (
    "{% for call in message['tool_calls'] or [] %}{% set call = call.function or call %}"
    "{{ ('' if loop.first and not text else '\\n') }}"
    """{{ '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}"""
    "{{ (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}"
)
_RESULT = (  # results in a row are one turn
    "{{ '' if loop.previtem and loop.previtem['role'] == 'tool' else '<|im_start|>user' }}"
    "{{ '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
    "{{ '' if loop.nextitem and loop.nextitem['role'] == 'tool' else '<|im_end|>\\n' }}"
)

_SPACE = (
    "{% if message['role'] == 'assistant' %}{% set text = text.strip() %}"
    f"{{% set text = (' ' if text and text[:1] in '{string.ascii_letters}_' else '') + text %}}{{% endif %}}"
)
"""The header's line end must stay a token of its own. Many ways to cut text keep `\\n ` whole before a digit, some before a sign
or a Chinese character; before a letter all give the space to the word. ASCII letters, since llama.cpp's Jinja sees bytes."""


class ChatML(Template):
    """Turns between `<|im_start|>` and `<|im_end|>`."""

    special: ClassVar[tuple[str, ...]] = ("<|im_start|>", "<|im_end|>")
    stop: ClassVar[str] = "<|im_end|>"
    version: ClassVar[int] = 3
    advice: ClassVar[Advice] = Advice(
        "you train the vocabulary yourself, or tune a base model that has no chat template",
        "the model came with its own template: then keep `own`",
    )

    kind: Literal["chatml"] = "chatml"
    system: str = Field("", examples=["You answer questions about Python."])
    """System message put before chats that bring none; '' (as ChatML itself): none. Longer costs its tokens in every chat."""
    space: bool = Field(False, examples=[True])
    """Put a space before each answer that begins with a letter from A to Z or `_`, and leave out white space around it, so that
    its first word is the same token as inside a text (byte-level BPE): small models copy better. Off: as published. Engines
    take the space off again."""

    def jinja(self) -> str:
        system = json.dumps(self.system, ensure_ascii=False)
        head, foot = json.dumps(_HEAD), json.dumps(_FOOT)
        opening = (  # where there are tools, the system message says so
            "{% set own = messages and messages[0]['role'] == 'system' %}"
            "{% set system = (messages[0]['content'] or '') if own else " + system + " %}"
            "{% if tools or (system and not own) %}{{ '<|im_start|>system\\n' + system }}"
            "{% if tools %}{{ ('\\n\\n' if system else '') + "
            + head
            + " }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}"
            "{{ " + foot + " }}{% endif %}{{ '<|im_end|>\\n' }}{% endif %}"
        )
        turns = (
            "{% for message in messages %}{% if tools and own and loop.first %}{% elif message['role'] == 'tool' %}"
            + _RESULT
            + "{% else %}{% set text = message['content'] or '' %}"
            + (_SPACE if self.space else "")
            + "{{ '<|im_start|>' + message['role'] + '\\n' + text }}"
            + _CALLS
            + "{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        )
        return THOUGHTS + opening + turns + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
