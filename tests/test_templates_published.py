"""Chat templates as models were published, against transformers: the same text, the same tokens, and the mask that the makers of
TRL marked by hand (`{% generation %}` in their training variants) but for white space and headers that a server writes itself."""

from __future__ import annotations

import re
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.methods.templates import encode_chat, parity, render, spans
from modelwright.methods.templates._render import TRAINED_ON

SPEC = find_spec("trl")
FOLDER = Path(SPEC.submodule_search_locations[0]) / "chat_templates" if SPEC and SPEC.submodule_search_locations else Path()
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
pytestmark = pytest.mark.skipif(not TEXTS, reason="TRL, which carries published templates, is not installed")

USER, ANSWER = {"role": "user", "content": "How old is it?"}, {"role": "assistant", "content": "Seven.\nOr eight."}
AGAIN, SURE = {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, 12 < 13."}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "call00001", "name": "add"}
THOUGHT = {**ANSWER, "reasoning_content": "hm, well", "thinking": "hm, well"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
]
CHATS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "one": ([USER, ANSWER], None),
    "two": ([USER, ANSWER, AGAIN, SURE], None),
    "system": ([{"role": "system", "content": "Be brief."}, USER, ANSWER], None),
    "tools": ([USER, CALL, RESULT, ANSWER], TOOLS),
    "thought": ([USER, THOUGHT], None),
    "thoughts": ([USER, THOUGHT, AGAIN, {**SURE, "reasoning_content": "so", "thinking": "so"}], None),
}
NAMES = [name for name in TEXTS if not name.endswith("_training")]
UNSTABLE = {"gptoss": {"two", "thoughts"}, "glm4moe": {"thoughts"}}
"""Chats whose earlier answers end with another mark than a last one, or with none: refused, and so counted, never guessed."""
HEADER = re.compile(r"(\s|<think>|</think>|<｜Assistant｜>|<｜tool▁outputs▁end｜>|<\|start\|>assistant)*")
"""What TRL's marks hold and ours do not: what a generation prompt writes, and white space around an answer."""


@pytest.fixture(scope="module")
def fast() -> Any:
    """Every byte, and every mark of these templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pattern = r"<\|[^|\s<>]+\|>|<｜[^｜]+｜>|</?(?:think|tools|tool_call|tool_response|start_of_turn|end_of_turn)>"
    marks = sorted({mark for text in TEXTS.values() for mark in re.findall(pattern, text)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([*marks, "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")


@pytest.fixture(autouse=True)
def same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return TRAINED_ON

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day)


def theirs(fast: Any, name: str, chat: Any, tools: Any, **more: Any) -> Any:
    """What transformers makes of the chat; None where the template refuses it."""
    import jinja2

    try:
        return fast.apply_chat_template(chat, chat_template=TEXTS[name], tools=tools, **more)
    except (jinja2.TemplateError, TypeError):
        return None


@pytest.mark.parametrize("name", NAMES)
def test_text_tokens_and_mask(name: str, fast: Any) -> None:
    compared = 0
    for key, (chat, tools) in CHATS.items():
        text = theirs(fast, name, chat, tools, tokenize=False)
        if text is None:
            with pytest.raises(UserError):
                render(TEXTS[name], chat, bos="<s>", eos="</s>", tools=tools)
            continue
        assert render(TEXTS[name], chat, bos="<s>", eos="</s>", tools=tools, now=TRAINED_ON) == text, key
        if key in UNSTABLE.get(name, ()):
            with pytest.raises(UserError, match="cannot tell which text message 2 of 4 trains on"):
                encode_chat(fast, TEXTS[name], chat, tools=tools)
            continue
        ours = encode_chat(fast, TEXTS[name], chat, tools=tools)
        assert ours.ids == theirs(fast, name, chat, tools, tokenize=True, return_dict=False), key
        assert parity(fast, TEXTS[name], chat, tools=tools) is None
        assert any(ours.mask) and not all(ours.mask)
        compared += 1
        marked = theirs(
            fast, f"{name}_training", chat, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        ) if f"{name}_training" in TEXTS else None  # fmt: skip
        if marked is None or marked["input_ids"] != ours.ids:
            continue  # that variant writes the chat otherwise
        both = list(zip(ours.ids, ours.mask, marked["assistant_masks"], strict=True))
        less = fast.decode([token for token, mine, other in both if other and not mine])
        more = fast.decode([token for token, mine, other in both if mine and not other])
        assert HEADER.fullmatch(less), (key, less)
        assert not more or (name == "diffusion_gemma" and key == "tools"), (key, more)
    assert compared >= 3 or name == "llava_next"  # which takes lists of parts alone


@pytest.mark.skipif("qwen3" not in TEXTS, reason="no such template")
def test_thoughts_are_kept_where_the_template_keeps_them() -> None:
    trained = [span.text for span in spans(TEXTS["qwen3"], [USER, THOUGHT], eos="</s>") if span.trained]
    assert trained == ["<think>\nhm, well\n</think>\n\nSeven.\nOr eight.<|im_end|>"]
    chat, tools = CHATS["tools"]
    trained = [span.text for span in spans(TEXTS["qwen3"], chat, eos="</s>", tools=tools) if span.trained]
    assert trained[0] == '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>'
    assert trained[1].endswith("Seven.\nOr eight.<|im_end|>")


def test_a_text_that_is_closed_only_at_its_end() -> None:
    phi = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    )
    trained = [span.text for span in spans(phi, [USER, ANSWER, AGAIN, SURE], eos="</s>") if span.trained]
    assert trained == ["Seven.\nOr eight.<|end|>", "Yes, 12 < 13.<|end|>\n</s>"]


def test_an_answer_that_begins_like_a_thought_is_not_cut_in_its_first_sign() -> None:
    opens = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
    )
    chat = [
        USER,
        {"role": "assistant", "content": "<b>Seven</b>"},
        AGAIN,
        {"role": "assistant", "content": "<think>hm</think>Yes"},
    ]
    trained = [span.text for span in spans(opens, chat, eos="</s>") if span.trained]
    assert trained == ["<b>Seven</b><|end|>", "<think>hm</think>Yes<|end|>"]
