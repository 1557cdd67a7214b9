"""The edge between a header and an answer: the same tokens in pieces and in one go, whatever the answer begins with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelwright.core.record import Message
from modelwright.methods.templates import TEMPLATES, Template, encode_chat, encode_prompt, parity, parity_check, render
from modelwright.methods.tokenizers import TOKENIZERS
from modelwright.methods.tokenizers._fast import _cuts

BEGINNINGS = {
    "letter": "Yes, it is.",
    "name": "_name, self",
    "Latin": "Élan vital.",
    "Cyrillic": "Да, это так.",
    "Arabic": "نعم",
    "Han": "東京です",
    "Hangul": "네, 맞아요",
    "digit": "1",
    "digits": "42 apples",
    "half": "½ of it",
    "Roman": "Ⅷ",
    "Arabic digit": "٣ كتب",
    "square": "²",
    "circle": "① one",
    "quote": '"Yes"',
    "bracket": "(a, b)",
    "dots": "...",
    "apostrophe": "'s",
    "list": "- one\n- two",
    "fence": "```python\nx = 1\n```",
    "emoji": "🙂 yes",
    "joined emoji": "👩‍💻 yes",
    "accent": "\u0301x",
    "invisible": "\u200bx",
    "spaces": "  Yes",
    "space and digit": " 1",
    "tab": "\tx = 1",
    "newline": "\nYes",
    "lines": "\r\n\n  1",
    "wide spaces": "\u3000\u3000日",
    "spaces alone": "   ",
    "lines alone": "\n\n",
}
TEMPLATES_OF: dict[str, Template] = {
    **{name: TEMPLATES.build(name) for name in TEMPLATES.names() if name != "own"},
    "chatml with space": TEMPLATES.load("chatml").model_validate({"kind": "chatml", "space": True}),
}
GPT2 = ("bpe smollm", "bpe gpt2")


def _told(template: str, cut: str, sign: str) -> bool:
    """Where a token may lie across the edge, which a check tells: three templates are as published, however text is cut."""
    return {
        "alpaca": True,  # an answer follows its colon at once
        "chatml": sign.isspace(),  # an answer's own white space stays
        "llama3": cut in GPT2,  # a header ends in two line ends, of which GPT-2 leaves one to what follows
    }.get(template, False)


MARKS = tuple(dict.fromkeys(["<s>", "</s>", *(token for template in TEMPLATES_OF.values() for token in template.special)]))


def _texts() -> list[str]:
    """Every beginning behind every header, so that tokens across an edge are learned where the cuts let them be."""
    bare = [text.strip() for text in BEGINNINGS.values()]
    headers = ("", "assistant\n", "assistant\n ", "model\n", "assistant\n\n", "Response:", "Answer:", "Answer: ")
    return [header + text for header in headers for text in bare] * 8


@pytest.fixture(scope="module", params=["bpe smollm", "bpe gpt2", "char_bpe", "unigram", "wordpiece", "cut qwen2", "cut llama3"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import PreTrainedTokenizerFast

    kind, _, how = request.param.partition(" ")
    if kind == "cut":
        trained = _published(how)
    else:
        method = TOKENIZERS.load(kind).model_validate({"kind": kind, "size": 2000, **({"pre": how} if how else {})})
        trained = method.train(iter(_texts()), MARKS)
    made = PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")
    made.cut = request.param
    return made


def _published(how: str) -> Any:
    """Byte-level BPE whose text is cut as that family's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer.from_str(json.dumps({**json.loads(Tokenizer(models.BPE()).to_str()), "pre_tokenizer": _cuts()[how]}))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _chat(answer: str) -> list[Message]:
    return [m for _ in range(2) for m in ({"role": "user", "content": "And?"}, {"role": "assistant", "content": answer})]


def test_every_kind_of_tokenizer_is_here() -> None:
    assert set(TOKENIZERS.names()) <= {"bpe", "char_bpe", "unigram", "wordpiece"}
    assert set(_cuts()) == {"smollm", "gpt2", "qwen2", "llama3"}


@pytest.mark.parametrize("name", TEMPLATES_OF)
def test_no_token_lies_across_the_edge_of_an_answer(name: str, tokenizer: Any) -> None:
    jinja = TEMPLATES_OF[name].jinja()
    for what, answer in BEGINNINGS.items():
        if _told(name, tokenizer.cut, answer[0]):
            continue
        chat = _chat(answer)
        fault = parity(tokenizer, jinja, chat)
        assert fault is None, (what, fault)
        served = encode_prompt(tokenizer, jinja, chat[:3])  # as history, by an engine
        assert encode_chat(tokenizer, jinja, chat).ids[: len(served)] == served, what


def test_one_difference_is_a_fault(tokenizer: Any) -> None:
    """An answer `1` once stopped a training, and then was allowed as rare."""
    assert parity_check(tokenizer, TEMPLATES_OF["chatml with space"].jinja(), [_chat("1")]).ok
    jinja = TEMPLATES_OF["chatml"].jinja()
    chats = [*(_chat("Yes") for _ in range(199)), _chat("\n\n Yes")]
    check, equal = parity_check(tokenizer, jinja, chats), parity(tokenizer, jinja, chats[-1]) is None
    assert check.ok is equal and bool(check.fix) is not equal
    assert check.detail.startswith(f"{199 + equal} of 200 chats")


def test_the_space_stands_before_words_alone() -> None:
    jinja = TEMPLATES_OF["chatml with space"].jinja()
    spaced = {what for what, answer in BEGINNINGS.items() if "assistant\n " in render(jinja, _chat(answer))}
    assert spaced == {"letter", "name", "spaces", "tab", "newline"}
    for said in ("", "  ", None):
        call = {"role": "assistant", "content": said, "tool_calls": [{"name": "f", "arguments": "{}"}]}
        assert "assistant\n<tool_call>\n" in render(jinja, [_chat("")[0], call])
    for name in ("chatml", "chatml with space"):  # what others say stays as it is
        assert "user\n  1 <|im_end|>" in render(TEMPLATES_OF[name].jinja(), [{"role": "user", "content": "  1 "}])
