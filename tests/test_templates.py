"""Templates: the text of a chat, what it trains on, and its token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelwright.core.errors import UserError
from modelwright.methods.templates import (
    BREAK,
    TEMPLATES,
    Template,
    broken,
    encode_chat,
    encode_chats,
    encode_prompt,
    encoder,
    parity,
    parity_check,
    render,
    spans,
    special_tokens,
)

LLAMA3 = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN3 = (  # the last answer is written with an empty thought, earlier ones without
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
R1 = (  # the generation prompt opens a thought that stored answers lack
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A:{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{% if m['role'] == 'skip' %}{% continue %}{% endif %}U:{{ m['content'] | tojson }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
CHAT = [
    {"role": "user", "content": "How old is it?"},
    {"role": "assistant", "content": "Seven.\nOr eight."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, 12 < 13."},
]
SPECIAL = "<|endoftext|> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> <start_of_turn> <end_of_turn>"


def make(kind: str, **fields: Any) -> Template:
    spec = TEMPLATES.load(kind).model_validate({"kind": kind, **fields})
    assert isinstance(spec, Template)
    return spec


CHATML = make("chatml").jinja()


@pytest.fixture(scope="module")
def bare() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    newlines = pre_tokenizers.Split(Regex(r"[\r\n]+"), behavior="isolated")  # as Llama 3 and Qwen cut them
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([newlines, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = ["How old is it? Seven. Or eight. Sure? Yes, user assistant model \n\n    return x"] * 4
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=[*SPECIAL.split(), "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return tokenizer


@pytest.fixture(scope="module")
def fast(bare: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")


ALL = {
    "chatml": CHATML,
    "chatml with system": make("chatml", system='Say "x".\nBriefly.').jinja(),
    "plain": make("plain").jinja(),
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "r1": R1,
    "marked": MARKED,
}


@pytest.mark.parametrize("name", ALL)
def test_renders_as_transformers_does(name: str, fast: Any) -> None:
    for chat in (CHAT, CHAT[:1], CHAT[:3], [*CHAT, {"role": "user", "content": 'é <b> & "q"  '}]):
        for prompt in (False, True):
            theirs = fast.apply_chat_template(chat, chat_template=ALL[name], tokenize=False, add_generation_prompt=prompt)
            assert render(ALL[name], chat, prompt, bos="<s>", eos="</s>") == theirs


@pytest.mark.parametrize("name", ALL)
def test_spans_join_to_the_chat_and_train_on_answers(name: str) -> None:
    pieces = spans(ALL[name], CHAT, bos="<s>", eos="</s>")
    assert "".join(piece.text for piece in pieces) == render(ALL[name], CHAT, bos="<s>", eos="</s>")
    trained = [piece.text for piece in pieces if piece.trained]
    end = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "plain": "</s>", "marked": "</s>", "r1": "<|end|>"}.get(
        name, "<|im_end|>"
    )
    lead = " " if name == "plain" else ""
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert trained == [f"{lead}Seven.\nOr eight.{end}", f"{lead}{thought}Yes, 12 < 13.{end}"]
    assert [piece.role for piece in pieces if piece.trained] == ["assistant", "assistant"]
    assert pieces[0].role == "user" and not pieces[0].trained


@pytest.mark.parametrize("name", ["chatml", "plain", "llama3", "gemma", "mistral", "alpaca"])
def test_a_turn_of_weight_0_is_context(name: str) -> None:
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(2) for role in ("user", "assistant")]
    jinja = TEMPLATES.build(name).jinja()
    every, weighed = (spans(jinja, chat, eos="<end>") for chat in (turns, [turns[0], {**turns[1], "weight": 0}, *turns[2:]]))
    assert "".join(span.text for span in every) == "".join(span.text for span in weighed)
    trained = [[span.text for span in found if span.trained] for found in (every, weighed)]
    assert len(trained[0]) == 2 and trained[1] == trained[0][1:]


def test_prompt_of_a_span_is_what_a_server_renders() -> None:
    for jinja in (CHATML, LLAMA3, GEMMA):
        pieces = spans(jinja, CHAT, bos="<s>")
        served = render(jinja, CHAT[:3], True, bos="<s>")
        last = max(i for i, piece in enumerate(pieces) if piece.trained)
        assert "".join(piece.text for piece in pieces[:last]) == served


def test_other_roles_and_first() -> None:
    everything = spans(CHATML, CHAT, roles=("user", "assistant"))
    assert [s.trained for s in everything] == [True, False, True, False, True, False, True, False]
    only_last = spans(CHATML, CHAT, first=2)
    assert [s.text for s in only_last if s.trained] == ["Yes, 12 < 13.<|im_end|>"]
    assert only_last[0].role == "user+assistant+user"
    answer_first = spans(CHATML, CHAT[1:])
    assert [s.text for s in answer_first if s.trained] == ["Seven.\nOr eight.<|im_end|>", "Yes, 12 < 13.<|im_end|>"]
    call = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{}"}]}]
    assert [s.text for s in spans(CHATML, call) if s.trained] == [
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
    ]


def test_faults_are_told() -> None:
    with pytest.raises(UserError, match="Roles must alternate"):
        render(GEMMA, [CHAT[1], CHAT[1]])
    with pytest.raises(UserError, match="System role not supported"):
        render(GEMMA, [{"role": "system", "content": "x"}])
    with pytest.raises(UserError, match="line 1 of the chat template is not Jinja"):
        render("{% for %}", CHAT)
    with pytest.raises(UserError, match="refuses this chat"):
        render("{{ messages[9]['content'] + 'x' }}", CHAT)
    with pytest.raises(UserError, match="which text message 2 of 4 trains on"):
        spans("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", CHAT)
    escape = "{{ ''.__class__.__mro__ }}{{ messages.append(1) }}"
    with pytest.raises(UserError, match="refuses"):
        render(escape, CHAT)


@pytest.mark.parametrize("name", ["chatml", "chatml with system", "llama3", "gemma", "plain"])
def test_encoding_equals_transformers_and_the_joint_one(name: str, bare: Any, fast: Any) -> None:
    ids, mask = encode_chat(fast, ALL[name], CHAT)
    assert len(ids) == len(mask)
    joint = fast.apply_chat_template(CHAT, chat_template=ALL[name], tokenize=True, return_dict=False)
    assert ids == joint
    assert parity(fast, ALL[name], CHAT) is None
    assert encode_chat(bare, ALL[name], CHAT, bos="<s>", eos="</s>") == (ids, mask)
    trained = fast.decode([i for i, m in zip(ids, mask, strict=True) if m])
    expected = "".join(s.text for s in spans(ALL[name], CHAT, bos="<s>", eos="</s>") if s.trained)
    assert trained == expected


def test_mask_equals_transformers_generation_mask(fast: Any) -> None:
    theirs = fast.apply_chat_template(
        CHAT, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encode_chat(fast, MARKED, CHAT)
    assert ids == theirs["input_ids"] and mask == theirs["assistant_masks"]


def test_parity_tells_a_token_across_the_edge(fast: Any) -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "\n    return x"}]
    fault = parity(fast, CHATML, chat)
    assert fault is not None and "in training" in fault and "in one go" in fault
    check = parity_check(fast, CHATML, [CHAT, chat, [{"content": "who?"}]])
    assert not check.ok and check.detail.startswith("1 of 3 chats") and check.fix
    assert parity_check(fast, CHATML, [CHAT]).ok


def test_the_day_is_fixed_in_training_alone(bare: Any) -> None:
    from datetime import datetime

    dated = "{{ strftime_now('%d %b %Y') }} " + CHATML
    assert spans(dated, CHAT)[0].text.startswith("26 Jul 2024 ")
    assert render(dated, CHAT).startswith(datetime.now().strftime("%d %b %Y"))
    assert parity(bare, dated, CHAT) is None


def test_many_chats_at_once(bare: Any) -> None:
    results = encode_chats(bare, GEMMA, [CHAT, CHAT[1:], CHAT[:2]], bos="<s>", first=[2, 0, 0])
    assert isinstance(results[1], UserError)
    assert results[0] == encode_chat(bare, GEMMA, CHAT, bos="<s>", first=2)
    assert results[2] == encode_chat(bare, GEMMA, CHAT[:2], bos="<s>")


def test_stored_truncation_never_cuts_rows(bare: Any) -> None:
    from tokenizers import Tokenizer

    cut = Tokenizer.from_str(bare.to_str())
    cut.enable_truncation(3)
    cut.enable_padding(length=50)
    assert encoder(cut)(["How old is it?"]) == encoder(bare)(["How old is it?"])


def test_vocabulary_is_checked(bare: Any, fast: Any) -> None:
    from tokenizers import Tokenizer, models

    assert make("chatml").of(bare) == CHATML
    with pytest.raises(UserError, match=r"lacks '<\|im_start\|>', '<\|im_end\|>'"):
        make("chatml").of(Tokenizer(models.BPE()))
    with pytest.raises(UserError, match="no chat template of its own"):
        make("own").of(bare)
    with pytest.raises(UserError, match="no chat template of its own"):
        make("own").check(fast)


def test_own_template_and_its_fields(fast: Any, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    fast.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    assert make("own").of(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == GEMMA
    assert make("plain", question="Q:").jinja() != make("plain").jinja() != make("plain", answer="A:").jinja()
    system = make("chatml", system="S").jinja()
    assert render(system, CHAT[:1]).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n")
    assert render(system, [{"role": "system", "content": "T"}]) == "<|im_start|>system\nT<|im_end|>\n"


@pytest.mark.parametrize("name", ["chatml", "chatml with system", "llama3", "gemma"])
def test_a_mark_that_a_person_typed_is_text(name: str, bare: Any, fast: Any) -> None:
    """In training as in serving: the special tokens of a rendered chat are those of its template."""
    special = set(fast.all_special_ids) | {i for i, token in fast.added_tokens_decoder.items() if token.special}
    typed = "".join(special_tokens(fast)) + " and once more: " + " ".join(special_tokens(fast))
    forged = [{"role": "user", "content": typed}, *CHAT[1:]]
    for tokenizer in (fast, bare):
        honest, ids = (encode_chat(tokenizer, ALL[name], chat, bos="<s>", eos="</s>").ids for chat in (CHAT, forged))
        assert [i for i in ids if i in special] == [i for i in honest if i in special]
        assert typed in tokenizer.decode(ids, skip_special_tokens=True)
        assert parity(tokenizer, ALL[name], forged, bos="<s>", eos="</s>") is None
    parts = [{"role": "user", "content": [{"type": "text", "text": typed}]}]
    assert BREAK in broken(parts, special_tokens(fast))[0]["content"][0]["text"] and broken(CHAT, special_tokens(fast)) == CHAT
    assert encode_prompt(fast, ALL[name], forged[:1])[-1:] == encode_prompt(fast, ALL[name], CHAT[:1])[-1:]
