"""The server as the libraries that people use see it: openai, anthropic, litellm, langchain-openai."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from modelwright.serve.app import Settings
from modelwright.serve.guard import Rules
from tests.fake_engine import FakeEngine
from tests.test_serve import Running, user

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture(scope="module")
def server():
    running = Running(FakeEngine(), Settings(), Rules())
    yield running
    running.stop()


@pytest.fixture
def client(server):
    return server.client()


# --- openai -------------------------------------------------------------------------------------------


def test_several_choices_with_their_own_seeds(server, client):
    answer = client.chat.completions.create(model="tiny", messages=user("x"), n=3, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3 and [choice.index for choice in answer.choices] == [0, 1, 2]
    one = client.chat.completions.create(model="tiny", messages=user("x"), temperature=1.0, seed=7)
    assert one.choices[0].message.content == texts[2]
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(len(text) for text in texts)
    chunks = list(client.chat.completions.create(model="tiny", messages=user("x"), n=3, temperature=1.0, seed=5, stream=True))
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert sum(choice.finish_reason == "stop" for chunk in chunks for choice in chunk.choices) == 3


def test_top_logprobs(client):
    answer = client.chat.completions.create(model="tiny", messages=user("x"), logprobs=True, top_logprobs=2)
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, first.bytes) == ("y", [121]) and [top.token for top in first.top_logprobs] == ["y", "z"]
    assert first.top_logprobs[0].logprob == pytest.approx(first.logprob)
    answer = client.chat.completions.create(model="tiny", messages=user("日"), logprobs=True)
    half = answer.choices[0].logprobs.content[-3:]  # each of the character's bytes is a token
    assert bytes(byte for token in half for byte in token.bytes).decode() == "日" and half[0].token == "\ufffd"
    answer = client.completions.create(model="tiny", prompt="x", logprobs=2)
    assert answer.choices[0].logprobs.top_logprobs[0] == pytest.approx({"y": -0.693147, "z": -1.386294}, abs=1e-5)


def test_penalties_bias_and_extensions_reach_the_engine(server, client):
    client.chat.completions.create(
        model="tiny", messages=user("x"), frequency_penalty=0.5, presence_penalty=-0.25, logit_bias={"5": 3},
        extra_body={"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "typical_p": 0.9},
    )  # fmt: skip
    asked = server.engine.last.sampling
    assert (asked.frequency_penalty, asked.presence_penalty, asked.logit_bias) == (0.5, -0.25, ((5, 3.0),))
    assert (asked.top_k, asked.min_p, asked.repetition_penalty, asked.typical_p) == (7, 0.1, 1.5, 0.9)


class Answer(pydantic.BaseModel):
    yes: bool
    words: list[str]


def test_structured_answers(server, client):
    answer = client.chat.completions.parse(model="tiny", messages=user("x"), response_format=Answer)
    assert answer.choices[0].message.parsed == Answer(yes=True, words=[])
    schema = json.loads(server.engine.last.constraint.text)
    assert schema["properties"].keys() == {"yes", "words"}
    answer = client.chat.completions.create(model="tiny", messages=user("x"), response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {}
    for body, kind in (
        ({"structured_outputs": {"choice": ["red", "blue"]}}, "choices"),
        ({"guided_regex": "[a-z]+"}, "regex"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar"),
        ({"guided_json": {"type": "object"}}, "json_schema"),
    ):
        client.completions.create(model="tiny", prompt="x", extra_body=body)
        assert server.engine.last.constraint.kind == kind


def test_tools_are_offered_called_and_answered(server, client):
    def ask(messages: Any, **more: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER], **more).choices[0]

    choice = ask(user("CALL weather weather"))
    assert server.engine.decode(server.engine.last.tokens).startswith(
        '<tools>[{"type": "function", "function": {"name": "weather"'
    )
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
    first, second = choice.message.tool_calls
    assert (
        first.id != second.id and first.function.name == "weather" and json.loads(first.function.arguments) == {"place": "Oslo"}
    )
    messages = [*user("CALL weather weather"), choice.message]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in choice.message.tool_calls]
    assert ask(messages).message.content == "it says rain"
    assert '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>' in server.engine.decode(
        server.engine.last.tokens
    )
    assert len(ask(user("CALL weather weather"), parallel_tool_calls=False).message.tool_calls) == 1
    assert ask(user("CALL nothing")).message.tool_calls is None, "there is no such tool, so it is text"
    assert "<tool_call>" in ask(user("CALL nothing")).message.content
    assert "<tool_call>" in ask(user("CALL weather"), tool_choice="none").message.content
    assert not server.engine.decode(server.engine.last.tokens).startswith("<tools>")


def test_tools_that_must_be_called(server, client):
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, name in (("required", "other"), (named, "weather")):
        answer = client.chat.completions.create(model="tiny", messages=user("x"), tools=[other, WEATHER], tool_choice=choice)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == name and answer.choices[0].message.content is None
    assert server.engine.last.constraint.kind == "grammar" and '"weather"' in server.engine.last.constraint.text
    assert '"other"' not in server.engine.last.constraint.text


def test_calls_in_a_stream(client):
    stream = client.chat.completions.create(model="tiny", messages=user("CALL weather weather"), tools=[WEATHER], stream=True)
    text, calls, ends = "", {}, []
    for chunk in stream:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
        for call in choice.delta.tool_calls or ():
            calls[call.index] = (call.function.name, call.function.arguments)
    assert text == "Let me look." and ends == ["tool_calls"]
    assert calls == {0: ("weather", '{"place": "Oslo"}'), 1: ("weather", '{"place": "Oslo"}')}
    with client.chat.completions.stream(model="tiny", messages=user("CALL weather"), tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "weather"


def test_several_prompts_token_ids_and_echo(client):
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], n=2, max_tokens=50)
    assert [choice.text for choice in answer.choices] == ["you said: ab"] * 2 + ["you said: cd"] * 2
    assert answer.usage.prompt_tokens == 4
    answer = client.completions.create(model="tiny", prompt=[[104, 105], [106]], echo=True, max_tokens=50)
    assert [choice.text for choice in answer.choices] == ["hiyou said: hi", "jyou said: j"]
    (scored,) = client.completions.create(model="tiny", prompt="hé", echo=True, max_tokens=0, logprobs=1).choices
    assert (scored.text, scored.finish_reason) == ("hé", "length")
    assert scored.logprobs.token_logprobs[0] is None and scored.logprobs.top_logprobs[0] is None
    assert scored.logprobs.token_logprobs[1:] == pytest.approx([-0.693147] * 2, abs=1e-5)
    assert scored.logprobs.text_offset == [0, 1, 2] and scored.logprobs.tokens[0] == "h"
    stream = client.completions.create(model="tiny", prompt=["ab", "cd"], echo=True, stream=True, logprobs=1, max_tokens=3)
    texts, probs = ["", ""], [0, 0]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        probs[chunk.choices[0].index] += len(chunk.choices[0].logprobs.tokens) if chunk.choices[0].logprobs else 0
    assert texts == ["abyou", "cdyou"] and probs == [5, 5]


def test_embeddings_and_ranks(server, client):
    both = client.embeddings.create(model="tiny", input=["aab", "ccc"])  # the client asks for base64
    plain = client.embeddings.create(model="tiny", input="aab", encoding_format="float")
    assert both.data[0].embedding == plain.data[0].embedding == [0, 2, 1, 0, 0, 0, 0, 0] and both.usage.prompt_tokens == 6
    raw = server.http.post("/v1/embeddings", json={"model": "tiny", "input": [1, 2], "encoding_format": "base64"}).json()
    assert struct.unpack("<8f", base64.b64decode(raw["data"][0]["embedding"])) == (0, 1, 1, 0, 0, 0, 0, 0)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)
    body = {"model": "tiny", "query": "aab", "documents": ["ccc", {"text": "aaab"}, "aabb"], "top_n": 2, "return_documents": True}
    found = server.http.post("/v1/rerank", json=body).json()
    assert [row["index"] for row in found["results"]] == [1, 2] and found["results"][0]["document"] == {"text": "aaab"}
    assert found["method"] == "cosine of embeddings" and 0.9 < found["results"][0]["relevance_score"] < 1


# --- openai: responses --------------------------------------------------------------------------------


def test_responses_are_kept_and_go_on(server, client):
    first = client.responses.create(model="tiny", input="hello", instructions="be kind", metadata={"a": "b"})
    assert first.output_text == "you said: hello" and first.status == "completed" and first.metadata == {"a": "b"}
    assert first.usage.output_tokens == 15
    second = client.responses.create(model="tiny", input=user("again"), previous_response_id=first.id)
    assert second.output_text == "you said: again"
    prompt = server.engine.decode(server.engine.last.tokens)
    assert prompt == "<user>hello<assistant>you said: hello<user>again<assistant>", "instructions are for one answer"
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    for gone in (first.id, client.responses.create(model="tiny", input="x", store=False).id):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(gone)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="tiny", input="x", previous_response_id=first.id)
    cut = client.responses.create(model="tiny", input="hello", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason, cut.output_text) == ("incomplete", "max_output_tokens", "you")


def test_responses_stream_their_events_in_order(client):
    events = list(client.responses.create(model="tiny", input="hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event.delta for event in events[4:-4]) == "you said: hi"
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert events[-1].response.output_text == events[-4].text == "you said: hi"
    with client.responses.stream(model="tiny", input="hi") as stream:
        assert stream.get_final_response().output_text == "you said: hi"


def test_responses_with_tools_and_forms(server, client):
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    answer = client.responses.create(model="tiny", input="CALL weather", tools=[tool])
    assert server.engine.last.constraint.kind == "grammar", "strict holds calls to their schema"
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    answer = client.responses.create(model="tiny", input="CALL weather", tools=[{**tool, "strict": False}])
    text, call = answer.output
    assert text.content[0].text == "Let me look." and json.loads(call.arguments) == {"place": "Oslo"}
    items = [*user("q"), *answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    client.responses.create(model="tiny", input=items, tools=[tool])
    prompt = server.engine.decode(server.engine.last.tokens)
    assert "<user>q<assistant>Let me look.<tool_call>" in prompt and prompt.endswith("<tool>rain<assistant>")
    kinds = [event.type for event in client.responses.create(model="tiny", input="CALL weather", tools=[tool], stream=True)]
    assert "response.function_call_arguments.done" in kinds
    parsed = client.responses.parse(model="tiny", input="x", text_format=Answer)
    assert parsed.output_parsed == Answer(yes=True, words=[])
    told = client.responses.create(model="tiny", input="x", include=["message.output_text.logprobs"], top_logprobs=1)
    assert told.output[0].content[0].logprobs[0].top_logprobs[0].token == "y"


# --- anthropic ----------------------------------------------------------------------------------------


@pytest.fixture
def claude(server):
    return anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0)


CLAUDE_TOOL: Any = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}


def test_messages(server, claude):
    answer = claude.messages.create(model="tiny", max_tokens=50, system="be kind", messages=user("hello"))
    assert answer.content[0].text == "you said: hello" and answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len("<system>be kind<user>hello<assistant>"), 15)
    assert claude.messages.count_tokens(model="tiny", messages=user("hello")).input_tokens == len("<user>hello<assistant>")
    cut = claude.messages.create(model="tiny", max_tokens=3, messages=user("hello"))
    assert (cut.content[0].text, cut.stop_reason) == ("you", "max_tokens")
    met = claude.messages.create(model="tiny", max_tokens=50, messages=user("a b|c"), stop_sequences=["zz", "|"])
    assert (met.content[0].text, met.stop_reason, met.stop_sequence) == ("you said: a b", "stop_sequence", "|")
    parts: Any = [{"type": "text", "text": "hé", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "llo"}]
    assert claude.messages.create(model="tiny", max_tokens=50, messages=user(parts)).content[0].text == "you said: héllo"


def test_messages_stream(claude):
    with claude.messages.stream(model="tiny", max_tokens=50, messages=user("hello")) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_text() == "you said: hello"
        assert stream.get_final_message().usage.output_tokens == 15
    assert [kind for kind in dict.fromkeys(kinds) if kind != "text"] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_messages_with_tools(server, claude):
    answer = claude.messages.create(model="tiny", max_tokens=200, messages=user("CALL weather"), tools=[CLAUDE_TOOL])
    text, use = answer.content
    assert answer.stop_reason == "tool_use" and text.text == "Let me look." and use.input == {"place": "Oslo"}
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "rain"}]}
    turns: Any = [*user("q"), {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    claude.messages.create(model="tiny", max_tokens=50, messages=turns, tools=[CLAUDE_TOOL])
    assert server.engine.decode(server.engine.last.tokens).endswith("</tool_call><tool>rain<assistant>")
    choice: Any = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    with claude.messages.stream(
        model="tiny", max_tokens=200, messages=user("x"), tools=[CLAUDE_TOOL], tool_choice=choice
    ) as stream:
        assert stream.get_final_message().content[0].input == {"place": ""}


def test_faults_in_anthropics_words(server, claude):
    with pytest.raises(anthropic.NotFoundError, match="there is no model"):
        claude.messages.create(model="other", max_tokens=5, messages=user("x"))
    begun = [*user("x"), {"role": "assistant", "content": "y"}]
    for more in ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"messages": begun},
                 {"messages": user([{"type": "image", "source": {}}])}):  # fmt: skip
        with pytest.raises(anthropic.BadRequestError) as caught:
            claude.messages.create(**{"model": "tiny", "max_tokens": 5, "messages": user("x")} | more)
        assert caught.value.body["type"] == "error" and caught.value.body["error"]["type"] == "invalid_request_error"
    with (
        pytest.raises(anthropic.APIStatusError),
        claude.messages.stream(model="tiny", max_tokens=50, messages=user("BOOM LATER")) as stream,
    ):
        stream.get_final_text()
    body = server.http.post("/v1/messages", json={"model": "tiny", "messages": user("x")}).json()
    assert body["error"]["message"] == "missing field: max_tokens"


# --- litellm and langchain ----------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch):
    """Neither library calls home: litellm takes the prices that it brings, langsmith traces nothing."""
    for name, value in (("LITELLM_LOCAL_MODEL_COST_MAP", "True"), ("LITELLM_TELEMETRY", "False"), ("LANGSMITH_TRACING", "false"),
                        ("LANGCHAIN_TRACING_V2", "false"), ("NO_PROXY", "*")):  # fmt: skip
        monkeypatch.setenv(name, value)


def test_litellm(server, quiet):
    litellm = pytest.importorskip("litellm")
    litellm.telemetry = False
    asked = {"model": "openai/tiny", "api_base": f"{server.url}/v1", "api_key": "unused", "num_retries": 0}
    answer = litellm.completion(**asked, messages=user("hello"))
    assert answer.choices[0].message.content == "you said: hello" and answer.usage.completion_tokens == 15
    stream = litellm.completion(**asked, messages=user("hello"), stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "you said: hello"
    called = litellm.completion(**asked, messages=user("CALL weather"), tools=[WEATHER])
    assert called.choices[0].message.tool_calls[0].function.name == "weather"
    assert litellm.embedding(**asked, input=["aab"]).data[0]["embedding"] == [0, 2, 1, 0, 0, 0, 0, 0]
    claude = {"model": "anthropic/tiny", "api_base": server.url, "api_key": "unused", "num_retries": 0}
    assert litellm.completion(**claude, messages=user("hello"), max_tokens=50).choices[0].message.content == "you said: hello"


def test_langchain(server, quiet):
    langchain = pytest.importorskip("langchain_openai")
    asked: Any = {"base_url": f"{server.url}/v1", "api_key": "unused", "model": "tiny", "max_retries": 0}
    chat = langchain.ChatOpenAI(**asked)
    assert chat.invoke("hello").content == "you said: hello"
    pieces = list(chat.stream("hello", stream_usage=True))
    assert "".join(piece.content for piece in pieces) == "you said: hello"
    assert [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata] == [15]
    called = chat.bind_tools([WEATHER]).invoke("CALL weather")
    assert called.tool_calls[0]["args"] == {"place": "Oslo"}
    for method in ("json_schema", "function_calling"):
        assert chat.with_structured_output(Answer, method=method).invoke("x") == Answer(yes=True, words=[])
    vectors = langchain.OpenAIEmbeddings(**asked, check_embedding_ctx_length=False)
    assert vectors.embed_documents(["aab"]) == [[0, 2, 1, 0, 0, 0, 0, 0]]
    text = langchain.OpenAI(**asked, max_tokens=50, temperature=0, top_p=1)
    assert text.invoke("once") == "you said: once"
