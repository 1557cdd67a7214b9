"""Ratings while a model is served: what is written, what is refused, and that it is training data afterwards."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.methods.sources._files import read
from modelwright.serve import feedback as module
from modelwright.serve.app import create_app
from modelwright.serve.feedback import Feedback
from tests.fake_engine import FakeEngine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ratings.jsonl"


@pytest.fixture
def client(path: Path) -> Iterator[TestClient]:
    with (
        closing(Feedback(path, "tiny", "0f")) as kept,
        TestClient(create_app(FakeEngine(), "tiny", feedback=kept), base_url="http://localhost") as client,
    ):
        yield client


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rating_is_kept_with_request_and_answer(client: TestClient, path: Path) -> None:
    assert client.get("/v1/models").json()["data"][0]["feedback"] == "ratings.jsonl"
    identity = client.post("/v1/chat/completions", json=CHAT).json()["id"]
    assert path.read_bytes() == b"", "nothing is written unless somebody rates"
    told = client.post("/v1/feedback", json={"id": identity, "rating": "up"}).json()
    (row,) = rows(path)
    assert told == {"object": "feedback", "id": identity, "rating": "up", "time": row["time"]} and row["time"].endswith("Z")
    assert row["request"] == {"messages": CHAT["messages"], "temperature": 0.0} and row["answer"] == "you said: hello"
    assert (row["model"], row["model_key"], row["finish"], row["rating"]) == ("tiny", "0f", "stop", "up")
    assert "better" not in row and "reasons" not in row
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client.post("/v1/feedback", json={"id": identity, "rating": "down", "better": "Hi.", "reasons": ["wrong"]})
    (row,) = rows(path)
    assert (row["rating"], row["better"], row["reasons"]) == ("down", "Hi.", ["wrong"]), "the last rating counts"


def test_streams_completions_and_what_was_read_of_them(client: TestClient, path: Path) -> None:
    with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True, "max_tokens": 8}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    client.post("/v1/feedback", json={"id": events[0]["id"], "rating": "down"})
    text = client.post("/v1/completions", json={"model": "tiny", "prompt": "once", "max_tokens": 4}).json()
    client.post("/v1/feedback", json={"id": text["id"], "rating": "up"})
    first, second = rows(path)
    assert (first["answer"], first["finish"], first["request"]["max_tokens"]) == ("you said", "length", 8)
    assert second["request"] == {"prompt": "once", "max_tokens": 4} and second["answer"] == "you "


def test_answers_of_every_api_can_be_rated(client: TestClient, path: Path) -> None:
    hello = [{"role": "user", "content": "hello"}]
    for place, body in (("messages", {"messages": hello, "max_tokens": 50}), ("responses", {"input": "hello"})):
        identity = client.post(f"/v1/{place}", json={"model": "tiny"} | body).json()["id"]
        assert client.post("/v1/feedback", json={"id": identity, "rating": "up"}).status_code == 200, place
        assert rows(path)[-1]["request"]["messages"] == hello and rows(path)[-1]["answer"] == "you said: hello"


def test_ratings_become_records(client: TestClient, path: Path) -> None:
    for name, more in (("a", {"rating": "up"}), ("b", {"rating": "down", "better": "Better."})):
        asked = {**CHAT, "messages": [{"role": "user", "content": name}]}
        client.post("/v1/feedback", json={"id": client.post("/v1/chat/completions", json=asked).json()["id"], **more})
    found = list(read(path, Log(None)))
    assert [(r.messages[-1]["content"], r.meta["label"]) for r in found] == [
        ("you said: a", True),
        ("you said: b", False),
        ("Better.", True),
    ]
    assert {r.meta["model_key"] for r in found} == {"0f"}


def test_what_is_refused(client: TestClient, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = client.post("/v1/chat/completions", json=CHAT).json()["id"]
    good = {"id": identity, "rating": "up"}
    for body, status, code in (
        ({**good, "id": "chatcmpl-0"}, 404, "answer_not_found"),
        ({**good, "rating": "meh"}, 400, None),
        ({**good, "answer": "made up"}, 400, None),
        ({**good, "reasons": ["x" * 300]}, 400, None),
        ({**good, "reasons": ["x"] * 11}, 400, None),
    ):
        answer = client.post("/v1/feedback", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), body
    for headers, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 421),
        ({"content-type": "text/plain"}, 415),
    ):
        answer = client.post("/v1/feedback", content=json.dumps(good), headers={"content-type": "application/json", **headers})
        assert answer.status_code == status
    assert path.read_bytes() == b""
    monkeypatch.setattr(module, "REMEMBERED_CHARS", 120)
    client.post("/v1/chat/completions", json=CHAT)
    assert client.post("/v1/feedback", json=good).status_code == 404, "the oldest answers are forgotten first"


def test_off_by_default() -> None:
    with TestClient(create_app(FakeEngine(), "tiny"), base_url="http://localhost") as client:
        assert client.get("/v1/models").json()["data"][0]["feedback"] is None
        answer = client.post("/v1/feedback", json={"id": "x", "rating": "up"})
        assert answer.status_code == 404 and "--feedback FILE" in answer.json()["error"]["message"]


def test_the_file_is_one_servers_and_a_torn_line_stays_alone(path: Path) -> None:
    path.write_bytes(b'{"schema": "modelwright.feedb')
    with closing(Feedback(path, "tiny", "")) as kept:
        with pytest.raises(UserError, match="another server writes"):
            Feedback(path, "tiny", "")
        request = module.ChatRequest.model_validate(CHAT)
        for number in (1, 2):
            kept.remember(f"i{number}", request, "answer", "stop")
            kept.rate(module.Rating(id=f"i{number}", rating="up"))
        kept.rate(module.Rating(id="i1", rating="down"))
    lines = path.read_text().splitlines()
    assert lines[0] == '{"schema": "modelwright.feedb' and [json.loads(line)["id"] for line in lines[1:]] == ["i2", "i1"]
    heard: list[Any] = []
    log = Log(None, lambda name, fields: heard.append(fields["why"]) if name == "unreadable" else None)
    assert len(list(read(path, log, on_bad="drop"))) == 2 and "bad JSON" in heard[0]
    with pytest.raises(UserError, match="cannot be written"):
        Feedback(path.parent, "tiny", "")
