"""The server and the chat command over a real model: two layers, made here, under the native engine."""

from __future__ import annotations

import asyncio

import openai
import pytest

from modelwright.cli import chat
from modelwright.methods.engines import Request, Sampling, open_engine
from modelwright.serve.app import Settings
from modelwright.serve.guard import Rules
from tests.fake_engine import wait_until
from tests.test_serve import Running, user

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("tiny")
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|im_start|>", "<|im_end|>"])
    fast.train_from_iterator(["hello world"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, **shape)
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def server(folder):
    with open_engine(folder) as engine:
        running = Running(engine, Settings(parallel=4), Rules())
        yield running
        running.stop()


def test_answers_are_the_engines(server):
    engine, client = server.engine, server.client()
    tokens = engine.render(user("héllo"))
    (expected,) = engine.generate([Request(tokens, Sampling(max_tokens=20))])
    answer = client.chat.completions.create(model="tiny", messages=user("héllo"), max_tokens=20, logprobs=True)
    assert answer.choices[0].message.content == expected.text and answer.choices[0].finish_reason == expected.finish
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(tokens), len(expected.tokens))
    assert [t.logprob for t in answer.choices[0].logprobs.content] == pytest.approx(expected.logprobs, abs=1e-4)
    chunks = list(client.chat.completions.create(model="tiny", messages=user("héllo"), max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text


def test_no_thread_stands_between_a_request_and_the_engines_process(folder, monkeypatch):
    """Each one that had to be waited for made the first token later."""
    with open_engine(folder, supervised=True) as engine:
        running = Running(engine, Settings(parallel=4), Rules())
        try:
            client = running.client()
            expected = client.chat.completions.create(model="tiny", messages=user("héllo"), max_tokens=20).choices[0].message

            def waits(*_):
                raise AssertionError("a thread")

            monkeypatch.setattr("modelwright.serve.work.run_sync", waits)
            monkeypatch.setattr(running.queue._pool, "submit", waits)
            options = {"model": "tiny", "max_tokens": 20, "stream": True}
            chunks = list(client.chat.completions.create(messages=user("héllo"), **options))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.content
            assert list(client.completions.create(prompt="héllo", **options))[-1].choices[0].finish_reason
            with pytest.raises(openai.InternalServerError):
                client.completions.create(model="tiny", prompt="x" * 5000, max_tokens=1)  # its tokens are made in a thread
        finally:
            running.stop()


def test_at_once_and_one_gives_up(server):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            options = {"model": "tiny", "prompt": "hello", "max_tokens": 30, "temperature": 1.0}
            left = await client.completions.create(**(options | {"max_tokens": 200, "seed": 9}), stream=True)
            await anext(aiter(left))
            await left.close()
            answers = await asyncio.gather(*(client.completions.create(**options, seed=seed % 2) for seed in range(8)))
            return [answer.choices[0].text for answer in answers]

    texts = asyncio.run(ask_all())
    assert len(set(texts[::2])) == len(set(texts[1::2])) == 1 and texts[0] != texts[1]
    wait_until(lambda: server.queue.busy == 0)


def test_chat_once(folder, capsys):
    assert chat.main([str(folder), "--once", "hello", "--max-tokens", "8"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\n") and len(said.out) > 1 and "cut at the length limit" in said.err
