"""What operators rely on: keys and their limits, the door, numbers, traces, logs."""

from __future__ import annotations

import http.server
import io
import json
import logging
import math
import os
import re
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelwright.core.errors import UserError
from modelwright.methods.engines import Delta, Unavailable, Usage
from modelwright.serve import logs
from modelwright.serve.asking import Settings
from modelwright.serve.errors import ApiError
from modelwright.serve.guard import Rules
from modelwright.serve.keys import Keys, digest, new_key
from modelwright.serve.limits import Bucket, Client, Limits
from modelwright.serve.logs import Record
from modelwright.serve.metrics import MOST_SERIES, Metrics, memory_bytes
from modelwright.serve.tracing import Traces, open_traces
from tests import test_serve
from tests.fake_engine import FakeEngine, wait_until


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# --- keys and limits ---


def test_a_bucket_refills_evenly_and_may_owe():
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.level == 0 and bucket.wait_s(1) == 1.0 and bucket.wait_s(30) == 30.0
    clock.now_s += 10
    assert bucket.level == pytest.approx(10)
    bucket.take(40)
    assert bucket.level == pytest.approx(-30) and bucket.wait_s(1) == pytest.approx(31)
    clock.now_s += 1000
    assert bucket.level == 60


def test_limits_of_a_key():
    clock = Clock()
    client = Client("me", Limits(requests_per_minute=2, tokens_per_minute=100, models=("a",)), clock)
    client.ask()
    client.ask()
    with pytest.raises(ApiError, match="2 requests a minute") as caught:
        client.ask()
    assert (caught.value.status, caught.value.code, caught.value.retry_s) == (429, "rate_limit_exceeded", 30)
    clock.now_s += 60
    client.spend(130)
    told = {name.decode(): value.decode() for name, value in client.headers()}
    assert told["x-ratelimit-limit-requests"] == "2" and told["x-ratelimit-remaining-tokens"] == "0"
    assert told["x-ratelimit-reset-tokens"] == "78.000s"
    with pytest.raises(ApiError, match="100 tokens a minute") as caught:
        client.ask()
    assert caught.value.retry_s == math.ceil(31 * 60 / 100)
    assert client.headers()[1] == (b"x-ratelimit-remaining-requests", b"2")  # a refusal takes none
    clock.now_s += 19
    client.ask()
    client.check_model("a")
    with pytest.raises(ApiError, match="may not use the model 'b'"):
        client.check_model("b")
    assert not Client().headers() and Client().may_use("anything")


def test_keys_are_kept_as_digests(tmp_path, caplog):
    path = tmp_path / "keys.jsonl"
    first = new_key(path, "ann", Limits(requests_per_minute=3))
    path.write_bytes(path.read_bytes().rstrip())  # as an editor may leave it
    second = new_key(path, "bob", Limits(models=("tiny",)))
    text = path.read_text()
    assert first.startswith("mw-") and first not in text and digest(first) in text and first[3:] not in text
    assert os.stat(path).st_mode & 0o777 == 0o600
    keys = Keys(path)
    ann, bob = keys.find(first), keys.find(second)
    assert ann is not None and ann.name == "ann" and ann.limits == Limits(requests_per_minute=3)
    assert bob is not None and bob.limits.models == ("tiny",)
    assert keys.find(first + "x") is None and keys.find("") is None
    with pytest.raises(UserError, match="called 'ann' already"):
        new_key(path, "ann", Limits())
    for name in ("two words", "", "x" * 65):
        with pytest.raises(UserError, match="cannot be a key"):
            new_key(path, name, Limits())
    with pytest.raises(UserError, match="cannot be a key"):
        new_key(path, "carl", Limits(concurrent=0))

    ann.ask()
    third = new_key(path, "carl", Limits())  # while we serve
    keys.refresh()
    assert keys.find(third) is not None and keys.find(first) is ann  # with what it has used
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "ann" not in line) + "\n")
    keys.refresh()
    assert keys.find(first) is None and keys.find(third) is not None
    changed = [json.loads(line) | {"tokens_per_minute": 7} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, changed)) + "\n\n")
    keys.refresh()
    assert keys.find(second) is bob and bob.limits == Limits(tokens_per_minute=7, models=("tiny",))

    path.write_text("broken")
    keys.refresh()
    assert keys.find(third) is not None and "stay as they were" in caplog.text and "broken" not in caplog.text
    said = len(caplog.records)
    keys.refresh()
    assert len(caplog.records) == said  # told once
    path.unlink()
    keys.refresh()
    assert keys.find(third) is not None and len(caplog.records) == said + 1


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "holds no key"), ('{"name": "a"}', "line 1"), ('\n{"name": "a", "sha256": "zz"}', "line 2.*\n.*sha256"),
     ('{"name": "a", "sha256": "%s", "rpm": 3}' % ("0" * 64), "rpm"),
     ('{"name": "a", "sha256": "%s", "concurrent": 0}' % ("0" * 64), "concurrent"),
     ('{"name": "a", "sha256": "%s"}\n' % ("0" * 64) * 2, "same name")],
)  # fmt: skip
def test_bad_keys_files(tmp_path, text, what):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Keys(path)
    assert re.search(what, str(caught.value)), str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        Keys(tmp_path / "none")


# --- the door ---

start = test_serve.start


def test_pages_of_named_origins_may_ask(start):
    server = start(rules=Rules(api_key="k" * 20, origins=frozenset({"https://app.example"})))
    page = {"origin": "https://app.example"}
    asks = page | {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    told = server.http.options("/v1/completions", headers=asks)
    assert told.status_code == 204 and told.headers["access-control-allow-origin"] == "https://app.example"
    assert told.headers["access-control-allow-headers"] == "authorization, content-type" and told.headers["vary"] == "origin"
    assert server.http.options("/v1/completions", headers=asks | {"origin": "https://evil.example"}).status_code == 403
    answer = server.http.post("/v1/completions", json=test_serve.COMPLETION, headers=page | {"x-api-key": "k" * 20})
    assert answer.status_code == 200 and "x-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    refused = server.http.post("/v1/completions", json=test_serve.COMPLETION, headers=page)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"


def test_what_needs_a_key(start):
    server = start(rules=Rules(api_key="k" * 20))
    for path, status in (("/v1/models", 401), ("/metrics", 401), ("/v1", 401), ("/health", 200), ("/ready", 200), ("/", 200)):
        assert server.http.get(path).status_code == status, path
        assert server.http.get(path, headers={"x-api-key": "k" * 20}).status_code != 401
        assert server.http.get(path, headers={"x-api-key": "k" * 19}).status_code == status
    told = server.http.post("/v1/messages", json={}, headers={"x-api-key": "wrong"}).json()
    assert told["type"] == "error" and told["error"]["type"] == "authentication_error"


def test_a_requests_own_deadline(start):
    server = start(settings=Settings(parallel=1))
    slow = {"model": "tiny", "prompt": "SLOW", "max_tokens": 1900}
    cut = server.http.post("/v1/completions", json=slow, headers={"x-request-timeout": "0.3"})
    assert cut.status_code == 200 and cut.json()["choices"][0]["finish_reason"] == "length"
    assert 0 < cut.json()["usage"]["completion_tokens"] < 1900
    streamed = server.http.post("/v1/completions", json=slow | {"stream": True}, headers={"x-request-timeout": "0.3"}).text
    assert '"finish_reason":"length"' in streamed and streamed.endswith("data: [DONE]\n\n")
    late = server.http.post("/v1/completions", json=slow, headers={"x-request-timeout": "0.0000001"})
    assert late.status_code == 504 and late.headers["x-should-retry"] == "false"
    for odd in ("soon", "-1", "nan", "", "1e9"):
        told = server.http.post("/v1/completions", json=slow, headers={"x-request-timeout": odd})
        assert told.status_code == 400 and told.json()["error"]["param"] == "X-Request-Timeout"
    wait_until(server.idle)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
def test_a_deadline_holds_where_the_engine_does_not_answer(start, path):
    """Before the answer begins, too: while its prompt becomes tokens."""

    class Stuck(FakeEngine):
        def __init__(self):
            super().__init__()
            self.free = threading.Event()

        def encode(self, text):
            self.free.wait(20)
            return super().encode(text)

    server = start(engine=Stuck())
    asked = {"chat/completions": test_serve.CHAT, "completions": test_serve.COMPLETION, "embeddings": {"input": "a"}}[path]
    began_s = time.monotonic()
    late = server.http.post(f"/v1/{path}", json=asked | {"model": "tiny"}, headers={"x-request-timeout": "0.3"})
    assert late.status_code == 504 and time.monotonic() - began_s < 5
    server.engine.free.set()
    wait_until(server.idle)
    assert server.http.post(f"/v1/{path}", json=asked | {"model": "tiny"}).status_code == 200


def test_limits_of_everybody_where_there_is_no_key(start):
    server = start(rules=Rules(limits=Limits(tokens_per_minute=30)))
    ask = {"model": "tiny", "prompt": "x" * 20, "max_tokens": 30}
    first = server.http.post("/v1/completions", json=ask)
    assert first.status_code == 200 and first.headers["x-ratelimit-limit-tokens"] == "30"
    second = server.http.post("/v1/completions", json=ask)
    assert second.status_code == 429 and second.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(second.headers["retry-after"]) > 30 and second.headers["x-ratelimit-remaining-tokens"] == "0"
    assert server.http.get("/v1/models").status_code == 200  # what uses no model is not counted


class Elsewhere(FakeEngine):
    """One whose own server has the tokenizer and counts: pieces are texts alone."""

    capabilities = frozenset({"chat", "messages"})

    def submit(self, request):
        return Told(request.text == "ENDLESS")


class Told:
    def __init__(self, endless):
        self.ended, self.endless = threading.Event(), endless

    def __iter__(self):
        yield Delta("a few words")
        while self.endless and not self.ended.wait(0.01):
            yield Delta("more ")
        yield Delta("", finish="cancelled") if self.endless else Delta("", finish="stop", usage=Usage(7, 3))

    def cancel(self):
        self.ended.set()


def test_limits_hold_where_the_engines_own_server_counts(start):
    """It tells how many tokens there were at the end, and never for an answer that is cut."""
    server = start(engine=Elsewhere(), rules=Rules(limits=Limits(tokens_per_minute=100)))

    def left() -> int:
        return int(server.http.post("/v1/embeddings", json={}).headers["x-ratelimit-remaining-tokens"])

    for path, body in (
        ("chat/completions", test_serve.CHAT),
        ("completions", test_serve.COMPLETION),
        ("messages", test_serve.CHAT),
    ):
        for stream in (False, True):
            answer = server.http.post(f"/v1/{path}", json=body | {"stream": stream, "max_tokens": 9})
            assert answer.status_code == 200 and "a few words" in answer.text
    assert 40 <= left() <= 50, "six times ten of a hundred, which fill up again meanwhile"
    numbers = server.http.get("/metrics").text
    assert 'prompt_tokens_total{model="tiny"} 42' in numbers and 'answer_tokens_total{model="tiny"} 18' in numbers
    assert "time_to_first_token_seconds_count 6" in numbers
    endless = test_serve.COMPLETION | {"prompt": "ENDLESS", "stream": True}
    text = server.http.post("/v1/completions", json=endless, headers={"x-request-timeout": "1"}).text
    assert '"finish_reason":"length"' in text and "deadline" not in text, "what there is of the answer is the answer"
    wait_until(server.idle)
    assert left() < 20, "a piece without a count is about a token"


def test_what_an_engines_own_server_does_wrong_is_no_fault_of_the_client(start):
    """A client tries a 503 again, and gives up at a 400."""

    class Away(Elsewhere):
        def submit(self, request):
            if request.text == "ENDLESS":
                raise UserError("the prompt is longer than the context")
            raise Unavailable("nobody answers at http://127.0.0.1:1/v1")

    server = start(engine=Away())
    for path, body in (
        ("chat/completions", test_serve.CHAT),
        ("completions", test_serve.COMPLETION),
        ("messages", test_serve.CHAT),
    ):
        told = server.http.post(f"/v1/{path}", json=body | {"max_tokens": 9})
        assert told.status_code == 503 and told.headers["retry-after"] == "5" and "nobody answers" in told.text
    assert server.http.post("/v1/completions", json=test_serve.COMPLETION | {"prompt": "ENDLESS"}).status_code == 400


# --- what is told ---


def ended(**fields) -> Record:
    made = Record(Client("ann"), "req-1", "POST", "/v1/chat/completions?x", "/v1/chat/completions", status=200, model="tiny",
                  began_s=10.0, began_ns=10**18, queued_s=0.5, asked_s=10.5, first_s=11.0, last_s=11.3, gaps_s=[0.1, 0.2],
                  tokens_in=7, tokens_out=3, finish="stop", ended_s=11.4)  # fmt: skip
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_metrics_are_prometheus_text():
    metrics = Metrics({"slots_busy": (lambda: 2, "Slots."), "memory_bytes": (memory_bytes, "Memory.")})
    metrics.tell(ended())
    metrics.tell(ended(status=429, first_s=math.nan, queued_s=math.nan, gaps_s=[], tokens_in=0, model='a"\\\nb'))
    metrics.tell(ended(model='a"\\\nb', ended_s=10000.0))
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
             for family in text_string_to_metric_families(metrics.text()) for sample in family.samples}  # fmt: skip
    requests = "modelwright_requests_total"
    assert found[requests, (("endpoint", "/v1/chat/completions"), ("status", "200"))] == 2
    assert found[requests, (("endpoint", "/v1/chat/completions"), ("status", "429"))] == 1
    assert found["modelwright_prompt_tokens_total", (("model", 'a"\\\nb'),)] == 7
    assert found["modelwright_answer_tokens_total", (("model", "tiny"),)] == 3
    assert found["modelwright_queue_seconds_count", ()] == 2 and found["modelwright_queue_seconds_sum", ()] == 1.0
    assert found["modelwright_time_to_first_token_seconds_bucket", (("le", "1.0"),)] == 2
    assert found["modelwright_time_to_first_token_seconds_bucket", (("le", "0.5"),)] == 0
    assert found["modelwright_time_per_token_seconds_count", ()] == 4
    assert found["modelwright_request_seconds_bucket", (("le", "+Inf"),)] == 3
    assert found["modelwright_slots_busy", ()] == 2 and found["modelwright_memory_bytes", ()] > 1e6
    for number in range(2 * MOST_SERIES):
        metrics.tell(ended(model=f"m{number}"))
    assert len(metrics.prompt.values) == MOST_SERIES + 1


def test_spans_follow_the_conventions():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    kept = InMemorySpanExporter()
    traces = Traces(kept)
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    traces.tell(ended(traceparent=caller))
    traces.tell(ended(status=429, queued_s=math.nan, asked_s=math.nan, first_s=math.nan, last_s=math.nan, endpoint="/v1/models"))
    traces.tell(ended(status=500))
    traces._provider.force_flush()
    spans = kept.get_finished_spans()
    whole = next(span for span in spans if span.name == "POST /v1/chat/completions")
    assert f"{whole.context.trace_id:032x}" == caller[3:35] and f"{whole.parent.span_id:016x}" == caller[36:52]
    parts = {span.name: (span.end_time - span.start_time) / 1e9 for span in spans if span.parent and span.parent != whole.parent}
    assert parts == pytest.approx({"queue": 0.5, "prefill": 0.5, "decode": 0.3}, abs=1e-6)
    assert whole.start_time == 10**18 and (whole.end_time - whole.start_time) / 1e9 == pytest.approx(1.4)
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI") and isinstance(value, str)}
    ours = {name for name in whole.attributes if name.startswith("gen_ai.")}
    assert ours <= known and whole.attributes["gen_ai.usage.output_tokens"] == 3
    assert not [name for span in spans for name in span.attributes if "message" in name or "prompt" in name]
    bare = next(span for span in spans if span.name == "POST /v1/models")
    assert not [name for name in bare.attributes if name.startswith("gen_ai.")]
    assert [span.status.is_ok for span in spans if span.parent is None or span.parent == whole.parent] == [True, True, False]
    traces.close()
    assert open_traces(None, {}.get) is None


def test_spans_reach_a_collector():
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        traces = open_traces(f"http://127.0.0.1:{collector.server_port}", {}.get)
        traces.tell(ended())
        traces.close()
        collector.shutdown()
        thread.join()
    assert [path for path, _ in got] == ["/v1/traces"] and b"gen_ai.usage.input_tokens" in got[0][1]


def test_lines_of_the_log(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    before = {name: (log.handlers, log.propagate, log.level) for name in ("modelwright", "uvicorn")
              for log in [logging.getLogger(name)]}  # fmt: skip
    try:
        logs.start("json")
        logs.tell(ended(path="/v1/\x1b[31m\n{}"))
        logging.getLogger("modelwright.serve").error("broken", exc_info=ValueError("why"))
        logs.start("text")
        logs.tell(ended(path="/v1/\x1b[31m\nx", queued_s=math.nan, user="ann status=500"))
        logs.start(None)
        logs.tell(ended())
    finally:
        for name, (handlers, propagate, level) in before.items():
            log = logging.getLogger(name)
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
    lines = out.getvalue().splitlines()
    row = json.loads(lines[0])
    assert row["request_id"] == "req-1" and row["queue_s"] == 0.5 and row["seconds"] == pytest.approx(1.4) and row["key"] == "ann"
    assert row["answer_tokens"] == 3 and row["level"] == "info" and row["first_token_s"] == 1.0
    assert "ValueError: why" in json.loads(lines[1])["error"]
    assert "\\u001b[31m\\n" in lines[2] and "status=200" in lines[2] and "queue_s" not in lines[2] and len(lines) == 3
    assert 'user="ann status=500"' in lines[2] and "user" not in row


def test_ids_that_clients_choose():
    assert logs.named("my-id.1:2") == "my-id.1:2"
    for bad in ("", "a b", "x" * 129, "a\nb", "é"):
        assert re.fullmatch(r"req-[0-9a-f]{24}", logs.named(bad))
