"""The server as its clients see it: the official openai client, and requests that no client would send."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import threading
import typing

import httpx
import openai
import pytest
import uvicorn

from modelwright.core.errors import UserError
from modelwright.methods.engines import Sampling
from modelwright.methods.engines._remote import _ROOM_KEYS
from modelwright.serve.app import Settings, create_app
from modelwright.serve.guard import Rules
from modelwright.serve.logs import Record
from modelwright.serve.requests import ChatRequest, CompletionRequest
from modelwright.serve.run import Address, Server, bind, read_api_key
from tests.fake_engine import FakeEngine, wait_until


class Running:
    """The server in a thread, on a free port."""

    def __init__(self, engine, settings: Settings, rules: Rules) -> None:
        self.engine = engine
        self.told: list[Record] = []
        self.app = create_app(engine, "tiny", settings, rules, tell=[self.told.append])
        self.queue = self.app.state.queue
        config = uvicorn.Config(self.app, log_level="critical", ws="none", timeout_graceful_shutdown=2)
        self.server = Server(config, self.queue, drain_s=5)
        self.socket = bind(Address(port=0), None)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve(sockets=[self.socket])))
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.http = httpx.Client(base_url=self.url, timeout=10)

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0} | options)

    def idle(self) -> bool:
        return self.queue.busy == 0 and self.engine.active == 0

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def start():
    running = []

    def begin(engine=None, settings=None, rules=None) -> Running:
        running.append(Running(engine or FakeEngine(), settings or Settings(), rules or Rules()))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def shared():
    server = Running(FakeEngine(), Settings(), Rules())
    yield server
    server.stop()


def user(text: str) -> list[typing.Any]:
    return [{"role": "user", "content": text}]


CHAT = {"model": "tiny", "messages": user("hello")}
COMPLETION = {"model": "tiny", "prompt": "once"}


def test_chat(shared):
    answer = shared.client().chat.completions.create(model="tiny", messages=user("hello"))
    assert answer.choices[0].message.content == "you said: hello"
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].logprobs is None
    prompt = len("<user>hello<assistant>")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (prompt, 15, prompt + 15)
    assert answer.model == "tiny" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "user": "ann"}),
        ("/v1/chat/completions", {**CHAT, "user": "old", "safety_identifier": "ann"}),
        ("/v1/completions", {**COMPLETION, "user": "ann"}),
        ("/v1/responses", {"model": "tiny", "input": "hello", "user": "ann"}),
        ("/v1/messages", {**CHAT, "max_tokens": 5, "metadata": {"user_id": "ann"}}),
        ("/v1/messages/count_tokens", {**CHAT, "metadata": {"user_id": "ann"}}),
        ("/v1/embeddings", {"model": "tiny", "input": "hello", "user": "ann"}),
    ],
)
def test_whom_a_client_asks_for_is_told_in_the_log(shared, path, body):
    shared.told.clear()
    assert httpx.post(shared.url + path, json=body).status_code == 200
    wait_until(lambda: shared.told)
    assert [seen.row()["user"] for seen in shared.told] == ["ann"]


def test_chat_goes_on_with_the_clients_own_message_object(shared):
    client = shared.client()
    first = client.chat.completions.create(model="tiny", messages=user("a"))
    messages = [*user("a"), first.choices[0].message, *user("b")]
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == "you said: b"
    parts = [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "é"}, {"type": "text", "text": "f"}]},
    ]
    assert client.chat.completions.create(model="tiny", messages=parts).choices[0].message.content == "you said: éf"
    assert shared.engine.decode(shared.engine.last.tokens).startswith("<system>x<user>")


def test_chat_stream_with_usage(shared):
    stream = shared.client().chat.completions.create(
        model="tiny", messages=user("héllo"), stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "you said: héllo"
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 16
    assert all(c.usage is None for c in chunks[:-1])
    assert sum(len(c.choices[0].logprobs.content) for c in chunks[:-1] if c.choices[0].logprobs) == 16


def test_stream_ends_with_done_and_without_usage_unless_asked(shared):
    text = shared.http.post("/v1/completions", json=COMPLETION | {"stream": True}).text
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]" and all(event.startswith("data: ") for event in events)
    bodies = [json.loads(event[6:]) for event in events[:-1]]
    assert all("usage" not in body for body in bodies)
    assert "".join(body["choices"][0]["text"] for body in bodies) == "you said: once"


def test_completions_and_sampling_fields_reach_the_engine(shared):
    client = shared.client()
    answer = client.completions.create(
        model="tiny", prompt="once", max_tokens=300, temperature=0.5, top_p=0.9, stop=["zz", "yy"], seed=-1, logprobs=0
    )
    sampling = shared.engine.last.sampling
    assert sampling == Sampling(300, 0.5, 0.9, 0, ("zz", "yy"), 2**31 - 1)
    choice = answer.choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text and choice.logprobs.text_offset[:3] == [0, 1, 2]
    assert choice.logprobs.token_logprobs[0] == pytest.approx(-0.6931, abs=1e-3)
    assert client.completions.create(model="tiny", prompt=["a" * 20]).usage.completion_tokens == 16
    cut = client.chat.completions.create(model="tiny", messages=user("hello"), max_completion_tokens=4)
    assert cut.choices[0].message.content == "you " and cut.choices[0].finish_reason == "length"
    stopped = client.chat.completions.create(model="tiny", messages=user("hello"), stop="said")
    assert stopped.choices[0].message.content == "you "


def test_seed_and_temperature(start):
    client = start(settings=Settings(temperature=1.0)).client()

    def ask(**options) -> str:
        return client.chat.completions.create(model="tiny", messages=user("x"), **options).choices[0].message.content

    assert ask(seed=3) == ask(seed=3) != ask(seed=4)
    assert len({ask() for _ in range(5)}) > 1  # no seed: a new one each time
    assert ask(temperature=0) == "you said: x"


def test_models_health_ready_and_page(shared):
    client = shared.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert any(client.models.retrieve("tiny").model_extra.get(key) == 2000 for key in _ROOM_KEYS), "our own engines look for it"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert shared.http.get("/health").json() == {"status": "ok"}
    wait_until(shared.idle)
    assert shared.http.get("/ready").json() == {"status": "ready", "answering": 0, "waiting": 0}
    page = shared.http.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/page.js", "/page.css", "/icon.svg"):
        assert shared.http.get(path).status_code == 200 and path in page.text
    assert "innerHTML" not in shared.http.get("/page.js").text and "//" not in page.text.replace("http://www.w3.org", "")
    assert shared.http.get("/docs").status_code == 404
    schema = shared.http.get("/openapi.json").json()
    assert "/v1/chat/completions" in schema["paths"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 17}, "n"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"user": "a\nb"}, "user"),
        ({"top_k": -3}, "top_k"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
        ({"messages": user("x" * 3000)}, "messages"),
        ({"max_tokens": 5000}, "messages"),
    ],
)
def test_refusals_name_the_field(shared, change, param):
    response = shared.http.post("/v1/chat/completions", json=CHAT | change)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert param.partition("[")[0] in error["message"] or error["code"] == "context_length_exceeded"


def test_neutral_values_of_fields_we_do_not_honour_pass(shared):
    neutral = {name: values[0] if values else None for name, values in ChatRequest.neutral.items()}
    assert shared.http.post("/v1/chat/completions", json=CHAT | neutral).status_code == 200
    neutral = {name: values[0] if values else None for name, values in CompletionRequest.neutral.items()}
    assert shared.http.post("/v1/completions", json=COMPLETION | neutral).status_code == 200
    for field in ("prompt",):
        for value in ([], [[]], ["a", 1], [1, 256], [-1], 3, None):
            assert shared.http.post("/v1/completions", json=COMPLETION | {field: value}).status_code == 400


def test_every_field_of_openais_client_is_known():
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_params

    for ours, theirs in ((ChatRequest, chat_params), (CompletionRequest, completion_create_params)):
        known = set(ours.model_fields) | set(ours.neutral)
        assert set(typing.get_type_hints(theirs.CompletionCreateParamsBase)) <= known
        assert not set(ours.model_fields) & set(ours.neutral)


def test_errors_as_the_client_raises_them(shared):
    client = shared.client()
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'") as caught:
        client.chat.completions.create(model="gpt", messages=user("x"))
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="template refuses"):
        client.chat.completions.create(model="tiny", messages=user("REFUSE"))
    with pytest.raises(openai.InternalServerError, match="the engine failed"):
        client.chat.completions.create(model="tiny", messages=user("BOOM"))
    with pytest.raises(openai.InternalServerError, match="the engine failed"):
        client.chat.completions.create(model="tiny", messages=user("BOOM LATER"))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="tiny", messages=user("BOOM"), stream=True)
    with pytest.raises(openai.APIError, match="the engine failed"):
        list(client.chat.completions.create(model="tiny", messages=user("BOOM LATER"), stream=True))
    wait_until(shared.idle)


def test_an_engine_that_cannot(start):
    engine = FakeEngine()
    engine.capabilities = frozenset()
    server = start(engine)
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    for path, body, word in (
        ("/v1/chat/completions", CHAT, "chat template"),
        ("/v1/completions", COMPLETION | {"min_p": 0.1}, "min_p"),
        ("/v1/completions", COMPLETION | {"guided_choice": ["a"]}, "guided_choice"),
        ("/v1/completions", COMPLETION | {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/completions", COMPLETION | {"echo": True, "logprobs": 0}, "logprobs"),
        ("/v1/embeddings", {"model": "tiny", "input": "a"}, "embeddings"),
        ("/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}, "embeddings"),
        ("/v1/completions", COMPLETION | {"logprobs": 0}, "logprobs"),
        ("/v1/completions", COMPLETION | {"seed": 1, "temperature": 1}, "seed"),
    ):
        response = server.http.post(path, json=body)
        assert response.status_code == 400 and word in response.json()["error"]["message"], (body, response.text)
    engine.capabilities = frozenset({"chat"})
    answer = server.http.post("/v1/chat/completions", json=CHAT | tools).json()
    assert answer["error"]["param"] == "tool_choice"
    assert (
        server.http.post("/v1/completions", json=COMPLETION | {"seed": 1}).status_code == 200
    )  # greedy: the seed changes nothing


def test_the_door(shared):
    post = lambda **options: shared.http.post("/v1/chat/completions", **({"json": CHAT} | options)).status_code
    assert post() == 200
    assert post(headers={"host": "evil.example"}) == 421
    assert post(headers={"host": f"evil.example:{shared.port}"}) == 421
    assert post(headers={"host": f"LOCALHOST:{shared.port}"}) == 200
    assert post(headers={"host": "[::1]:1"}) == 200
    assert post(headers={"origin": "https://evil.example"}) == 403
    assert post(headers={"origin": "null"}) == 403
    assert post(headers={"origin": f"http://localhost:{shared.port}"}) == 403  # not the host that was asked
    assert post(headers={"origin": shared.url}) == 200
    assert shared.http.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    assert shared.http.options("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    body = json.dumps(CHAT)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""):
        assert post(json=None, content=body, headers={"content-type": kind}) == 415
    assert post(json=None, content=body, headers={"content-type": "application/json; charset=UTF-8"}) == 200
    assert post(headers={"content-encoding": "gzip"}) == 415
    answer = shared.http.get("/v1/models")
    assert "access-control-allow-origin" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"


def test_size_limit_counts_what_comes(start):
    server = start(rules=Rules(body_bytes=1000))
    big = json.dumps(CHAT | {"messages": user("x" * 2000)}).encode()
    headers = {"content-type": "application/json"}
    for content in (big, iter([big[:500], big[500:]])):  # with a Content-Length and in chunks
        response = server.http.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"
    assert server.http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_body_that_does_not_come(start):
    server = start(rules=Rules(body_s=0.2))
    headers = {"content-type": "application/json", "content-length": "50"}

    def slow():
        yield b"{"
        threading.Event().wait(0.6)
        yield b"}" * 49

    response = server.http.post("/v1/chat/completions", content=slow(), headers=headers)
    assert response.status_code == 408


def test_api_key(start):
    server = start(rules=Rules(api_key="k" * 20, hosts=None))
    with pytest.raises(openai.AuthenticationError):
        server.client(api_key="wrong").models.list()
    assert server.http.get("/v1/models").status_code == 401
    assert server.http.get("/v1/models", headers={"authorization": "Basic " + "k" * 20}).headers["www-authenticate"] == "Bearer"
    assert [model.id for model in server.client(api_key="k" * 20).models.list()] == ["tiny"]
    assert server.http.get("/health", headers={"host": "anything"}).status_code == 200
    assert server.http.get("/").status_code == 200


def test_disconnect_frees_the_slot(start):
    server = start(settings=Settings(parallel=1, waiting=4))
    client = server.client()
    stream = client.chat.completions.create(model="tiny", messages=user("SLOW"), stream=True)
    next(iter(stream))
    assert server.queue.answering == 1
    stream.close()
    wait_until(server.idle)
    for options in ({}, {"stream": True}):  # gives up before there is an answer: not streamed, and waiting in the queue
        holder = client.chat.completions.create(model="tiny", messages=user("SLOW"), stream=True)
        next(iter(holder))
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="tiny", messages=user("SLOW"), timeout=0.2, **options)
        wait_until(lambda: server.queue.waiting == 0)
        holder.close()
        wait_until(server.idle)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="tiny", messages=user("SLOW"), timeout=0.3)
        wait_until(server.idle)


def test_queue_is_bounded_and_in_order(start):
    server = start(settings=Settings(parallel=2, waiting=1))
    client = server.client()
    holders = [client.chat.completions.create(model="tiny", messages=user("SLOW"), stream=True) for _ in range(2)]
    for holder in holders:
        next(iter(holder))
    got = []
    waiter = threading.Thread(target=lambda: got.append(client.chat.completions.create(model="tiny", messages=user("late"))))
    waiter.start()
    wait_until(lambda: server.queue.waiting == 1)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="tiny", messages=user("x"))
    assert int(caught.value.response.headers["retry-after"]) >= 1 and caught.value.code == "queue_full"
    assert server.http.get("/ready").json() == {"status": "ready", "answering": 2, "waiting": 1}
    holders[0].close()
    waiter.join(5)
    assert got[0].choices[0].message.content == "you said: late"
    holders[1].close()
    wait_until(server.idle)
    assert server.engine.most_active == 2


def test_many_at_once(shared):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="x", max_retries=0) as client:
            asks = [client.chat.completions.create(model="tiny", messages=user(f"q{i}")) for i in range(24)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asks)]

    assert asyncio.run(ask_all()) == [f"you said: q{i}" for i in range(24)]
    wait_until(shared.idle)


ODD = [None, True, -1, 0, 1.5, 1e308, 10**30, "", "x", "\ud800", "\x00", [], [[]], {}, {"a": 1}, [None], "tiny", ["a"] * 50]


def mutate(rng: random.Random, tree: typing.Any, depth: int = 0) -> typing.Any:
    if depth > 3 or rng.random() < 0.25:
        return rng.choice(ODD)
    if isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        if rng.random() < 0.2:
            del tree[key]
        elif rng.random() < 0.2:
            tree[str(rng.choice(ODD))] = rng.choice(ODD)
        else:
            tree[key] = mutate(rng, tree[key], depth + 1)
    elif isinstance(tree, list) and tree:
        index = rng.randrange(len(tree))
        tree[index] = mutate(rng, tree[index], depth + 1)
    return tree


def test_mutated_requests_never_break_the_server(shared):
    rng = random.Random(0)
    full = {
        "/v1/chat/completions": CHAT
        | {"stop": ["q"], "temperature": 0.5, "top_p": 0.5, "seed": 1, "max_tokens": 20, "logprobs": True, "stream": True,
           "stream_options": {"include_usage": True}, "n": 1, "tools": []},
        "/v1/completions": COMPLETION | {"stop": "q", "max_tokens": 9, "logprobs": 0, "suffix": "", "logit_bias": {}},
    }  # fmt: skip
    seen = set()
    for number in range(300):
        path = rng.choice(list(full))
        data = json.dumps(mutate(rng, copy.deepcopy(full[path]))).encode()
        if number % 3 == 0:  # and broken as bytes
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice([b"", b"\xff", b"{", b"NaN", b"[" * 2000, b"1" * 5000]) + data[at + rng.randrange(3) :]
        response = shared.http.post(path, content=data, headers={"content-type": "application/json"})
        seen.add(response.status_code)
        assert response.status_code in (200, 400, 404), (path, data, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
    assert {200, 400} <= seen
    wait_until(shared.idle)
    assert shared.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert shared.http.put("/v1/models").status_code == 405


def test_ports_hosts_and_keys(tmp_path):
    with bind(Address(port=0), None) as taken:
        with pytest.raises(UserError, match="--port 0"):
            bind(Address(port=taken.getsockname()[1]), None)
    with pytest.raises(UserError, match="--api-key-file"):
        bind(Address("0.0.0.0", 0), None)
    with pytest.raises(UserError, match="no address"):
        bind(Address("no.such.host.invalid", 0), None)
    with pytest.raises(UserError, match="no port"):
        bind(Address(port=70000), None)
    bind(Address("0.0.0.0", 0), "k" * 20).close()
    key = tmp_path / "key"
    for text in ("short", "two words that are long enough", ""):
        key.write_text(text)
        with pytest.raises(UserError, match="usable API key"):
            read_api_key(key)
    key.write_text("k" * 20 + "\n")
    assert read_api_key(key) == "k" * 20
    with pytest.raises(UserError, match="cannot be read"):
        read_api_key(tmp_path / "none")
