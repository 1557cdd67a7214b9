"""The server from below: what no client sends, its OpenAPI document, a harness, a real engine."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from typing import Any

import httpx
import pytest

from modelwright.core.errors import UserError
from modelwright.methods.engines import Delta, Request, Sampling, Usage, open_engine
from modelwright.serve.app import Settings, create_app
from modelwright.serve.guard import Rules
from modelwright.serve.models import memory_bytes
from modelwright.serve.tools import Tool, calls_constraint, parser, style_of
from tests import engine_kit
from tests.fake_engine import FakeEngine
from tests.test_serve import Running, mutate, user

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
TOOL = {"type": "function", "function": FUNCTION}
CHAT = {"model": "tiny", "messages": user("hello")}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT | {"stop": ["q"], "temperature": 0.5, "top_p": 0.5, "seed": 1, "max_tokens": 20, "logprobs": True, "top_logprobs": 2,
                "stream": True, "stream_options": {"include_usage": True}, "n": 2, "logit_bias": {"5": 1.5}, "min_p": 0.1,
                "frequency_penalty": 0.1, "presence_penalty": 0.1, "top_k": 3, "repetition_penalty": 1.1, "typical_p": 0.9},
        CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False, "messages": [
                    *user("CALL weather"), {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]},
                    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "rain"}]}]},
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        CHAT | {"structured_outputs": {"choice": ["a", "b"]}, "max_completion_tokens": 5},
    ],
    "/v1/completions": [
        {"model": "tiny", "prompt": "once", "stop": "q", "max_tokens": 9, "logprobs": 1, "suffix": "", "echo": True, "n": 2},
        {"model": "tiny", "prompt": [[1, 2], "b"], "max_tokens": 0, "echo": True, "stream": True, "guided_regex": "a"},
    ],
    "/v1/responses": [
        {"model": "tiny", "input": "hello", "instructions": "x", "max_output_tokens": 9, "temperature": 0.1, "top_p": 0.5,
         "include": ["message.output_text.logprobs"], "top_logprobs": 1, "metadata": {"a": "b"}, "store": False, "stream": True,
         "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}},
        {"model": "tiny", "tools": [{"type": "function", **FUNCTION}], "tool_choice": "auto", "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "CALL weather"}]},
            {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "rain"}], "previous_response_id": "resp_0"},
    ],
    "/v1/messages": [
        {"model": "tiny", "max_tokens": 9, "messages": user("hello"), "system": [{"type": "text", "text": "x"}], "top_k": 3,
         "stop_sequences": ["q"], "temperature": 0.5, "top_p": 0.5, "stream": True},
        {"model": "tiny", "max_tokens": 90, "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
         "tool_choice": {"type": "any"}, "messages": [*user("CALL weather"), {"role": "assistant", "content": [
             {"type": "tool_use", "id": "a", "name": "weather", "input": {}}]}, {"role": "user", "content": [
                 {"type": "tool_result", "tool_use_id": "a", "content": "rain"}]}]},
    ],
    "/v1/messages/count_tokens": [{"model": "tiny", "messages": user("hello"), "system": "x"}],
    "/v1/embeddings": [{"model": "tiny", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}],
    "/v1/rerank": [{"model": "tiny", "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}],
    "/tokenize": [{"model": "tiny", "prompt": "a"}, {"model": "tiny", "messages": user("a"), "tools": [TOOL]}],
    "/detokenize": [{"model": "tiny", "tokens": [1, 2]}],
    "/v1/feedback": [{"id": "a", "rating": "up", "better": "b", "reasons": ["c"]}],
    "/v1/load_lora_adapter": [{"lora_name": "a", "lora_path": "b", "base_model_name": "tiny", "load_inplace": True}],
    "/v1/unload_lora_adapter": [{"lora_name": "a"}],
}  # fmt: skip
LOCAL = {"host": "localhost"}


@pytest.fixture(scope="module")
def server():
    running = Running(FakeEngine(), Settings(), Rules())
    yield running
    running.stop()


# --- requests that no client sends --------------------------------------------------------------------


def mutated(engine: Any, count: int, seed: int) -> None:
    """`count` requests, each a valid one changed once or several times, or broken as bytes: no fault of ours, no silence."""
    rng, app = random.Random(seed), create_app(engine, "tiny", admin=True)
    seen: dict[int, int] = {}

    async def ask() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            for number in range(count):
                path = rng.choice(list(BODIES))
                body = copy.deepcopy(rng.choice(BODIES[path]))
                for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
                    body = mutate(rng, copy.deepcopy(body))
                data = json.dumps(body).encode()
                if number % 7 == 0:
                    at = rng.randrange(len(data))
                    broken = rng.choice([b"", b"\xff", b"{", b"NaN", b"[" * 2000, b"1" * 5000, b"\x00", b"\\ud800"])
                    data = data[:at] + broken + data[at + rng.randrange(3) :]
                asked = client.post(path, content=data, headers={"content-type": "application/json"})
                response = await asyncio.wait_for(asked, 20)
                seen[response.status_code] = seen.get(response.status_code, 0) + 1
                assert response.status_code in (200, 400, 404), (path, data, response.text)
                if response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream"):
                    assert b"engine_error" not in response.content, (path, data, response.text)
                elif response.status_code != 200:
                    assert response.json()["error"]["message"], (path, data)
            assert app.state.queue.busy == 0

    asyncio.run(ask())
    assert seen[200] > count / 10 and seen[400] > count / 10, seen


def test_mutated_requests_of_every_endpoint():
    mutated(FakeEngine(), 400, seed=1)


@pytest.mark.slow
def test_five_thousand_mutated_requests():
    mutated(FakeEngine(), 5000, seed=2)


@pytest.mark.slow
def test_mutated_requests_of_a_real_engine(native):
    server, _ = native
    mutated(server.engine, 1000, seed=3)


def test_bodies_as_they_are(server):
    for path, bodies in BODIES.items():
        if "adapter" in path or "feedback" in path:
            continue
        for body in bodies:
            response = server.http.post(
                path, json={name: value for name, value in body.items() if name != "previous_response_id"}
            )
            assert response.status_code == 200, (path, response.text)


def test_every_field_of_the_clients_is_known():
    from typing import get_type_hints

    from anthropic.types import message_create_params
    from openai.types import embedding_create_params
    from openai.types.responses import response_create_params

    from modelwright.serve.anthropic import MessagesRequest
    from modelwright.serve.embeddings import EmbeddingRequest
    from modelwright.serve.responses import ResponsesRequest

    for ours, theirs in (
        (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
        (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
        (MessagesRequest, message_create_params.MessageCreateParamsBase),
    ):
        known = set(ours.model_fields) | set(ours.neutral)
        assert not set(get_type_hints(theirs)) - known and not set(ours.model_fields) & set(ours.neutral)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": ["a"] * 30, "n": 10}, "n"),
        ("/v1/completions", {"prompt": [1, 300]}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, None),
        ("/v1/chat/completions", {"messages": user("x"), "tools": [TOOL, TOOL]}, "tools"),
        ("/v1/chat/completions", {"messages": user("x"), "tools": [TOOL], "guided_regex": "a"}, "response_format"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "x"}]}, "input[0].arguments"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ("/v1/responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("/v1/embeddings", {"input": ""}, "input[0]"),
        ("/v1/embeddings", {"input": [[1.5]]}, "input[0][0]"),
        ("/v1/completions", {"prompt": [[]]}, "prompt[0]"),
        ("/v1/chat/completions", {"messages": user("x"), "tools": [TOOL], "tool_choice": {"type": "function"}},
         "tool_choice.function"),
        ("/v1/chat/completions", {"messages": user("x"), "A-b": 1}, "A-b"),
        ("/v1/rerank", {"query": "a", "documents": [{"text": ""}]}, "documents[0].text"),
        ("/v1/embeddings", {"input": "x" * 3000}, "input"),
        ("/tokenize", {"prompt": "a", "messages": user("b")}, "prompt"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(server, path, body, param):
    response = server.http.post(path, json={"model": "tiny"} | body)
    if param is None:
        assert response.status_code == 200
    else:
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error


DOT = "data:image/png;base64,iVBORw0KGgo="


def test_images_are_refused_with_the_reason(server):
    def refused(part: Any, why: str, path: str = "chat/completions", role: str = "user", **more: Any) -> None:
        body = {"model": "tiny", "messages": [{"role": role, "content": [part]}]} | more
        response = server.http.post(f"/v1/{path}", json=body)
        assert response.status_code == 400 and why in response.json()["error"]["message"], response.text

    for kind in ("input_audio", "file"):
        refused({"type": kind}, "no engine of this server takes")
    image = {"type": "image_url", "image_url": {"url": DOT}}
    refused(image, "tiny does not look at images")
    refused(image, "only a user's message holds images", role="system")
    for url in ("http://10.0.0.1/a.png", "file:///etc/passwd", "data:text/html;base64,AAAA", "data:image/png;base64,é", "", 7):
        refused({"type": "image_url", "image_url": {"url": url}}, "an image comes within the request")
    refused({"type": "image_url", "image_url": {"url": DOT, "detail": "most"}}, "of an image only")
    refused({"type": "image_url"}, "an image comes within the request")
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    refused({"type": "image", "source": source}, "does not look at images", "messages", max_tokens=5)
    refused({"type": "image", "source": source}, "no block of type image", "messages", "assistant", max_tokens=5)
    refused({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1"}}, "source", "messages", max_tokens=5)
    refused({"type": "image", "source": source}, "does not look at images", "messages/count_tokens")


@pytest.mark.parametrize("sees", [True, False])
def test_images_go_to_engines_that_look_at_them(sees):
    """In each API's own form, to the engine's in one."""
    engine = ElsewhereEngine()
    engine.capabilities |= {"images"} if sees else set()
    app = create_app(engine, "tiny")
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": DOT}}]
    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    asked = {
        "chat/completions": {"messages": user(parts)},
        "messages": {"messages": user([parts[0], {"type": "image", "source": source}]), "max_tokens": 9},
        "responses": {"input": user([{"type": "input_text", "text": "what is it?"}, {"type": "input_image", "image_url": DOT}])},
    }

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):
            for path, body in asked.items():
                response = await client.post(f"/v1/{path}", json={"model": "tiny"} | body)
                if sees:
                    assert response.status_code == 200, response.text
                    assert engine.last is not None and engine.last.messages[-1] == {"role": "user", "content": parts}, path
                else:
                    assert response.status_code == 400 and "images: true" in response.json()["error"]["message"]

    asyncio.run(use())


def test_nesting_has_an_end(server):
    for levels in (300, 900, 5000):
        data = '{"model": "tiny", "prompt": "a", "guided_json": ' + '{"a":' * levels + "{}" + "}" * levels + "}"
        response = server.http.post("/v1/completions", content=data, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text


class ElsewhereEngine(FakeEngine):
    """One whose own server has the template and the tokenizer."""

    capabilities = frozenset({"chat", "messages", "seed"})

    def encode(self, text: str) -> list[int]:
        raise UserError("the server has the tokenizer")

    def submit(self, request: Request) -> Any:
        self.last = request
        assert not request.tokens
        said = request.text or request.messages[-1]["content"]
        return [Delta(f"you said: {said}"), Delta("", finish="stop", usage=Usage(7, 3))]


def test_an_engine_that_is_a_server_of_its_own():
    app = create_app(ElsewhereEngine(), "tiny")

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):

            async def post(path: str, **body: Any) -> httpx.Response:
                return await client.post(path, json={"model": "tiny"} | body)

            chat = (await post("/v1/chat/completions", messages=user("a"))).json()
            assert chat["choices"][0]["message"]["content"] == "you said: a"
            assert chat["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            text = (await post("/v1/completions", prompt=["b", "c"])).json()
            assert [choice["text"] for choice in text["choices"]] == ["you said: b", "you said: c"]
            assert text["usage"]["prompt_tokens"] == 14
            told = (await post("/v1/messages", messages=user("d"), max_tokens=9)).json()
            assert told["usage"] == {"input_tokens": 7, "output_tokens": 3}
            for path, body in (("/v1/completions", {"prompt": [1]}), ("/tokenize", {"prompt": "a"}),
                               ("/v1/chat/completions", {"messages": user("a"), "tools": [TOOL]})):  # fmt: skip
                assert (await post(path, **body)).status_code == 400

    asyncio.run(use())


def test_tokens(server):
    found = server.http.post("/tokenize", json={"model": "tiny", "prompt": "hé"}).json()
    assert found == {"count": 3, "max_model_len": 2000, "tokens": [104, 195, 169]}
    assert server.http.post("/detokenize", json={"model": "tiny", "tokens": found["tokens"]}).json() == {"prompt": "hé"}
    assert server.http.post("/tokenize", json=CHAT).json()["count"] == len("<user>hello<assistant>")


# --- the OpenAPI document -----------------------------------------------------------------------------


def test_openapi_document_holds():
    """Requests made from the document, valid and not: no fault of ours, and every answer as documented."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    torch = pytest.importorskip("torch")
    torch.set_flush_denormal(False)  # a test before may have trained; hypothesis draws no floats where small ones become 0
    app = create_app(FakeEngine(), "tiny", admin=True)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=LOCAL)
    checks = [
        schemathesis.checks.not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=4, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def holds(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(headers=LOCAL, checks=checks)

        holds()
    assert asked > 50


# --- tools --------------------------------------------------------------------------------------------


def read(style: Any, text: str, size: int, several: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes `size` characters at a time."""
    reader = parser(style, [Tool.model_validate(TOOL)], several)
    shown, calls = "", []
    for at in range(0, len(text), size):
        more, found = reader.push(text[at : at + size])
        shown, calls = shown + more, calls + found
    more, found = reader.rest()
    return shown + more, [(call.name, call.arguments) for call in calls + found]


ONE = '{"name": "weather", "arguments": {"place": "Oslo"}}'
CALL = ("weather", '{"place": "Oslo"}')


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("style", "text", "shown", "calls"),
    [
        ("tags", f"Hi.\n<tool_call>\n{ONE}\n</tool_call>\n<tool_call>{ONE}</tool_call>\n", "Hi.", 2),
        ("tags", f"<tool_call>{ONE}", "", 1),
        ("tags", "a < b <tool> \n", "a < b <tool> \n", 0),
        ("tags", "<tool_call>{nonsense}</tool_call>", "<tool_call>{nonsense}</tool_call>", 0),
        ("tags", '<tool_call>{"name": "other"}</tool_call>', '<tool_call>{"name": "other"}</tool_call>', 0),
        ("list", f"[TOOL_CALLS] [{ONE}, {ONE}]", "", 2),
        ("list", f"[{ONE}]", "", 1),
        ("list", "[1, 2] are numbers", "[1, 2] are numbers", 0),
        ("list", "words", "words", 0),
        ("bare", '<|python_tag|>{"name": "weather", "parameters": {"place": "Oslo"}}', "", 1),
        ("bare", f"{ONE}; {ONE}", "", 2),
        ("bare", '{"name": "weather", "parameters": 3}', '{"name": "weather", "parameters": 3}', 0),
        ("bare", '{"name": ["weather"]}', '{"name": ["weather"]}', 0),
    ],
)
def test_calls_are_read_in_pieces(style, text, shown, calls, size):
    assert read(style, text, size) == (shown, [CALL] * calls)
    assert read(style, text, size, several=False)[1] == [CALL][:calls]


def test_the_form_of_calls_is_the_templates():
    from modelwright.methods.templates.chatml import ChatML
    from modelwright.methods.templates.mistral import Mistral

    class Templated(FakeEngine):
        def __init__(self, jinja: str) -> None:
            super().__init__()
            self.jinja = jinja

        def render(self, messages, tools=None):
            from modelwright.methods.templates import render

            return self.encode(render(self.jinja, messages, True, tools=tools))

    llama = ("{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '{\"name\": \"' + c.function.name + "
             "'\", \"parameters\": ' + (c.function.arguments | tojson) + '}' }}{% endfor %}{% endfor %}{{ tools }}")  # fmt: skip
    assert style_of(Templated(ChatML().jinja())) == "tags"
    assert style_of(Templated(Mistral().jinja())) == "list"
    assert style_of(Templated(llama)) == "bare"
    for jinja, why in ((engine_kit.CHATML, "leaves tools out"), (llama.replace('{"name', '{"title'), "does not read")):
        with pytest.raises(UserError, match=why):
            style_of(Templated(jinja))


def test_calls_keep_to_their_schemas():
    llguidance = pytest.importorskip("llguidance")
    from llguidance.hf import from_tokenizer

    words = from_tokenizer(engine_kit.tokenizer())
    count = {"$defs": {"n": {"type": "integer"}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
    tools = [Tool.model_validate({"type": "function", "function": {"name": name, "parameters": count}}) for name in "fg"]

    def allows(style: Any, text: str, must: bool, several: bool = True) -> bool:
        kind, source = calls_constraint(style, tools, must, several)
        made = llguidance.LLMatcher
        grammar = made.grammar_from_lark(source) if kind == "grammar" else made.grammar_from_json_schema(source)
        matcher = made(words, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return all(matcher.consume_token(token) for token in words.tokenize_str(text)) and matcher.is_accepting()

    good, bad = (json.dumps({"name": "g", "arguments": {"n": value}}) for value in (1, "x"))
    tagged, wrong = (f"<tool_call>\n{call}\n</tool_call>" for call in (good, bad))
    assert allows("tags", tagged, True) and allows("tags", f"{tagged}\n{tagged}", True)
    for text in (wrong, "words", f"words {tagged}"):
        assert not allows("tags", text, True)
    assert not allows("tags", f"{tagged}\n{tagged}", True, several=False)
    for text in ("words < more", f"words\n{tagged}", f"{tagged}\n{tagged} words"):
        assert allows("tags", text, False)
    assert not allows("tags", f"words {wrong}", False)
    assert allows("list", f"[{good}]", True) and not allows("list", f"[{bad}]", True) and not allows("list", "[]", True)


def test_adapters_are_the_operators(server):
    response = server.http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "/"})
    assert response.status_code == 403


# --- real engines -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    from modelwright.methods.templates.chatml import ChatML

    folder = engine_kit.folder(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024)
    (folder / "chat_template.jinja").write_text(ChatML().jinja())
    assert memory_bytes(folder) > 4 * 400 * 64
    with open_engine(folder) as engine:
        running = Running(engine, Settings(), Rules())
        yield running, folder
        running.stop()


def test_a_tool_that_must_be_called_is_called_well(native):
    server, _ = native
    tools: Any = [TOOL, {"type": "function", "function": {"name": "add", "parameters": {
        "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "type": "object", "additionalProperties": False,
        "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]}}}]  # fmt: skip
    ask = server.client().chat.completions.create
    named: Any = {"type": "function", "function": {"name": "add"}}
    answer = ask(model="tiny", messages=user("x"), tools=tools, tool_choice=named, parallel_tool_calls=False, max_tokens=100)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "add" and json.loads(call.function.arguments)["a"] in range(10)
    chosen = ask(model="tiny", messages=user("x"), max_tokens=50, extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    assert chosen.choices[0].message.content in ("red", "blue")
    bad: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}
    response = server.http.post("/v1/chat/completions", json=CHAT | {"response_format": bad})
    assert response.status_code == 400, response.text
    constraint = calls_constraint("list", [Tool.model_validate(tool) for tool in tools], True, False)
    answer = ask(
        model="tiny", messages=user("x"), max_tokens=100, extra_body={"structured_outputs": {"json": json.loads(constraint.text)}}
    )
    assert json.loads(answer.choices[0].message.content)[0]["name"] in ("weather", "add")


def test_scores_of_a_prompt_are_the_engines(native):
    server, _ = native
    engine = server.engine
    tokens = engine.encode("the cat sat on the mat")
    (choice,) = server.client().completions.create(model="tiny", prompt=tokens, echo=True, logprobs=2, max_tokens=1).choices
    assert choice.logprobs.token_logprobs[1:-1] == pytest.approx(engine.score([tokens])[0], abs=1e-4)
    assert len(choice.logprobs.tokens) == len(tokens) + 1
    for value, top in zip(choice.logprobs.token_logprobs[1:], choice.logprobs.top_logprobs[1:], strict=True):
        assert value <= max(top.values()) + 1e-6


def test_adapters_and_embeddings_of_a_real_engine(native, tmp_path):
    from peft import LoraConfig, get_peft_model

    server, _ = native
    model = engine_kit.model("Llama", 400, max_position_embeddings=1024)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=2))
    tuned.save_pretrained(tmp_path)
    app = create_app(server.engine, "tiny", admin=True)

    async def use() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
        ):

            async def first(model: str) -> float:
                asked = {"model": model, "prompt": "the cat", "logprobs": 0, "max_tokens": 1}
                answer = (await client.post("/v1/completions", json=asked)).json()
                return answer["choices"][0]["logprobs"]["token_logprobs"][0]

            before = await first("tiny")
            load = {"lora_name": "tuned", "lora_path": str(tmp_path)}
            assert (await client.post("/v1/load_lora_adapter", json=load)).status_code == 200
            assert await first("tuned") != before == await first("tiny")
            assert (
                await client.post("/v1/load_lora_adapter", json=load | {"lora_path": "/none", "lora_name": "x"})
            ).status_code == 400
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "tuned"})).status_code == 200
            body = {"model": "tiny", "query": "the cat", "documents": ["import os", "the cat"]}
            found = (await client.post("/v1/rerank", json=body)).json()["results"]
            assert found[0]["index"] == 1 and found[0]["relevance_score"] == pytest.approx(1, abs=1e-4)

    asyncio.run(use())


def test_lm_evaluation_harness(native):
    """Log-likelihoods over HTTP are those that the engine gives itself, and so is which continuation is the likeliest one."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    server, folder = native
    model = LocalCompletionsAPI(base_url=f"{server.url}/v1/completions", model="tiny", tokenizer_backend="huggingface",
                                tokenizer=str(folder), num_concurrent=1, max_length=256, batch_size=2)  # fmt: skip
    engine = server.engine
    pairs = [("def first(items):", " return items"), ("the cat", " sat on the mat")]
    for context in engine_kit.WORDS.split("\n"):  # until the likeliest token is one that its text becomes again
        tokens = engine.encode(context)
        (greedy,) = engine.generate([Request(tokens, Sampling(max_tokens=1))])
        if engine.encode(context + greedy.text) == [*tokens, *greedy.tokens]:
            break
    pairs.append((context, greedy.text))
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = model.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (logprob, _) in zip(pairs, found, strict=True):
        whole, head = engine.encode(context + continuation), engine.encode(context)
        assert logprob == pytest.approx(sum(engine.score([whole])[0][len(head) - 1 :]), abs=1e-3)
    assert [is_greedy for _, is_greedy in found] == [False, False, True]
    until = [Instance("generate_until", {}, ("def first(items):", {"until": ["\n"], "max_gen_toks": 8}), 0)]
    assert isinstance(model.generate_until(until, disable_tqdm=True)[0], str)
