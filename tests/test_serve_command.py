"""`modelwright serve` as a process: its first line, its signals, its refusals; and which model a command line names."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from modelwright.cli import _model, serve
from modelwright.core.errors import UserError
from modelwright.serve import run
from modelwright.serve.keys import new_key
from modelwright.serve.limits import Limits
from tests.fake_engine import FakeEngine, wait_until

SCRIPT = """
import sys
from pathlib import Path
from modelwright.cli import serve
from tests.fake_engine import FakeEngine
serve._open = lambda path, spec, supervised: FakeEngine(Path(path).with_name("go"))
sys.exit(serve.main(sys.argv[1:]))
"""

LONG_S = 60.0
"""More than anything takes here on a machine that is busy with other things; no test waits so long unless something is broken."""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    begun = []

    def begin(*options: str):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tiny.gguf"), "--port", "0", *options]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parent.parent))
        line = begun[-1].stdout.readline()
        assert line.startswith("serving tiny") and " at http://127.0.0.1:" in line, line + begun[-1].stderr.read()
        return begun[-1], line.split()[-1].removesuffix("/v1")

    yield begin
    for child in begun:
        child.kill()
        child.communicate()


def held_stream(url: str, tokens: int):
    """An answer that has begun, and goes on only when there is a file `go` beside the model."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(model="tiny", prompt="HELD", max_tokens=tokens, stream=True)
    return stream, next(iter(stream))


def is_draining(http: httpx.Client) -> bool:
    return http.get("/ready").status_code == 503


def test_ratings_are_kept_where_the_command_says(process, tmp_path):
    path = tmp_path / "ratings.jsonl"
    child, url = process("--feedback", str(path))
    assert "chat page" in child.stdout.readline() and f"ratings go to {path}" in child.stdout.readline()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert httpx.post(f"{url}/v1/feedback", json={"id": answer.id, "rating": "up"}).status_code == 200
    assert '"answer": "you said: hello"' in path.read_text() and '"model_key": ""' in path.read_text()


def test_sigterm_drains(process, tmp_path):
    child, url = process("--drain-seconds", "600")
    stream, first = held_stream(url, 80)
    texts = [first.choices[0].text]
    reader = threading.Thread(target=lambda: texts.extend(chunk.choices[0].text for chunk in stream))
    reader.start()
    child.send_signal(signal.SIGTERM)
    with httpx.Client(base_url=url, timeout=LONG_S) as http:
        wait_until(lambda: is_draining(http), LONG_S)
        refused = http.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (
            refused.status_code == 503 and refused.headers["retry-after"] and refused.json()["error"]["code"] == "shutting_down"
        )
        assert http.get("/health").status_code == 200
    (tmp_path / "go").touch()
    reader.join(LONG_S)
    assert "".join(texts) == ("tick " * 16)  # all of it came
    assert child.wait(LONG_S) == 0
    assert child.stderr.read() == "stopped\n"


@pytest.mark.parametrize("drain_s", ["600", "0.3"])
def test_ending_in_time_cuts_answers(process, drain_s):
    """A second Ctrl-C, or the end of the time to drain: the answer would never end by itself."""
    child, url = process("--drain-seconds", drain_s)
    stream, _ = held_stream(url, 900)
    child.send_signal(signal.SIGINT)
    if drain_s == "600":
        with httpx.Client(base_url=url, timeout=LONG_S) as http:
            wait_until(lambda: is_draining(http), LONG_S)  # two signals that come before one is handled are one
        child.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    assert child.wait(LONG_S) == 130
    assert child.stderr.read().splitlines()[-1] == "stopped; answers under way were cancelled"


def test_ctrl_c_when_idle(process):
    child, _ = process()
    child.send_signal(signal.SIGINT)
    assert child.wait(LONG_S) == 0
    assert child.stderr.read() == "stopped\n"


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr(serve, "_open", lambda path, spec, supervised: pytest.fail("opened"))
    return str(tmp_path / "tiny.gguf")


def test_refusals_come_before_the_model_is_opened(tiny, tmp_path):
    with run.bind(run.Address(port=0), None) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be opened"):
            serve.main([tiny, "--port", port])
    (tmp_path / "keys").write_text("{}")
    Path(tiny).write_bytes(bytes(100))
    for options, match in [
        (["--host", "0.0.0.0"], "lets other machines in"),
        (["--api-key-file", str(tmp_path / "none")], "cannot be read"),
        (["--keys", str(tmp_path / "none")], "cannot be read"),
        (["--keys", str(tmp_path / "keys")], "line 1 of .*keys is no key"),
        (["--model", "other"], "names nothing"),
        (["--model", f"tiny={tiny}"], "two models have the same name"),
        (["--model", f"other={tmp_path / 'none.gguf'}"], "no model at"),
        (["--adapter", f"mine={tmp_path / 'none'}"], "no adapter at"),
        (["--adapter", f"other:mine={tmp_path}"], "no model 'other' for the adapter"),
        (["--adapter", f"mine={tmp_path}", "--adapter", f"tiny:mine={tmp_path}"], "two adapters are called 'mine'"),
        (["--memory", "much"], "no size"),
        (["--memory", "0.001kB"], "the first model takes"),
    ]:
        with pytest.raises(UserError, match=match):
            serve.main([tiny, "--port", "0", *options])
    with pytest.raises(UserError, match="no model at"):
        serve.main([str(tmp_path / "tiny.ggfu"), "--port", "0"])


@pytest.mark.parametrize(
    "options",
    [["--parallel", "0"], ["--concurrent", "0"], ["--queue-seconds", "-1"], ["--deadline-seconds", "nan"], ["--log", "xml"],
     ["--allow-origin", "*"], ["--allow-origin", "https://a/b"], ["--temperature", "3"], ["--new-key", "a"],
     ["--new-key", "a", "--keys", "f"], ["--keys", "f", "--concurrent", "2"]],
)  # fmt: skip
def test_options_that_cannot_be(tiny, options):
    with pytest.raises(SystemExit) as caught:
        serve.main([tiny, *options])
    assert caught.value.code == 2


def test_no_model_is_named():
    with pytest.raises(SystemExit):
        serve.main([])


def test_a_new_key_is_printed_once(tmp_path, capsys):
    path = tmp_path / "keys.jsonl"
    limits = ["--requests-per-minute", "3", "--only-model", "tiny", "--only-model", "other"]
    assert serve.main(["--new-key", "ann", "--keys", str(path), *limits]) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert key.startswith("mw-") and key not in said.err and key not in path.read_text()
    row = json.loads(path.read_text())
    assert (row["name"], row["requests_per_minute"], row["models"]) == ("ann", 3, ["tiny", "other"]) and "concurrent" not in row


def test_keys_models_and_what_is_told(process, tmp_path):
    keys, adapter = tmp_path / "keys.jsonl", tmp_path / "adapter"
    adapter.mkdir()
    (tmp_path / "other.gguf").touch()
    key = new_key(keys, "ann", Limits(requests_per_minute=2, models=("tiny", "mine")))
    child, url = process("--keys", str(keys), "--model", f"other={tmp_path / 'other.gguf'}", "--adapter", f"mine={adapter}",
                         "--log", "json", "--allow-origin", "https://app.example", "--memory", "1GB")  # fmt: skip
    http = httpx.Client(base_url=url, headers={"x-api-key": key})
    assert httpx.get(f"{url}/metrics").status_code == 401 and httpx.get(f"{url}/v1/models").status_code == 401
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny", "mine"]
    ask = {"model": "tiny", "prompt": "a secret"}
    told = http.post("/v1/completions", json=ask, headers={"x-request-id": "mine-1", "origin": "https://app.example"})
    assert told.status_code == 200 and told.headers["x-request-id"] == "mine-1"
    assert told.headers["x-ratelimit-remaining-requests"] == "1" and told.headers["x-ratelimit-limit-requests"] == "2"
    assert told.headers["access-control-allow-origin"] == "https://app.example"
    assert http.post("/v1/completions", json=ask | {"model": "other"}).json()["error"]["code"] == "model_not_allowed"
    third = http.post("/v1/completions", json=ask)
    assert third.status_code == 429 and int(third.headers["retry-after"]) > 0
    new = new_key(keys, "bob", Limits())
    child.send_signal(signal.SIGHUP)
    bob = {"authorization": f"Bearer {new}"}
    wait_until(lambda: httpx.post(f"{url}/v1/completions", json=ask, headers=bob).status_code == 200, LONG_S)
    numbers = http.get("/metrics").text
    assert 'modelwright_requests_total{endpoint="/v1/completions",status="429"} 1' in numbers
    child.send_signal(signal.SIGTERM)
    assert child.wait(LONG_S) == 0
    lines = child.stderr.read().splitlines()
    rows = [json.loads(line) for line in lines[:-1]]
    first = next(row for row in rows if row.get("request_id") == "mine-1")
    assert first["key"] == "ann" and first["model"] == "tiny" and first["answer_tokens"] > 3 and first["finish"] == "length"
    assert not any("secret" in line or key in line or new in line for line in lines)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_missing_packages_are_named(tiny, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("modelwright.serve")]:
        monkeypatch.delitem(sys.modules, name)
    import modelwright

    monkeypatch.delattr(modelwright, "serve", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package '{package}'[\s\S]*pip install 'modelwright\[serve\]'"):
        serve.main([tiny])


def test_the_engine_is_closed(tiny, monkeypatch):
    engine = FakeEngine()
    monkeypatch.setattr(serve, "_open", lambda path, spec, supervised: engine)
    seen = []

    def serve_nothing(models, name, address, **settings) -> bool:
        seen.append((name, address, settings["settings"].temperature))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "serve", serve_nothing)
    with pytest.raises(KeyboardInterrupt):
        serve.main([tiny, "--port", "0", "--name", "mine", "--temperature", "0.7"])
    assert engine.closed and seen == [("mine", ("127.0.0.1", 0), 0.7)]


def test_which_model(tmp_path):
    artifact = tmp_path / "chat-0123456789ab"
    artifact.mkdir()
    assert _model.resolve_model(str(artifact)).name == "chat-0123456789ab"
    (artifact / "manifest.json").write_text("{}")
    assert _model.resolve_model(str(artifact)) == (artifact, "chat")
    (artifact / "model.gguf").touch()
    assert _model.resolve_model(str(artifact / "model.gguf")).name == "chat"
    (tmp_path / "m.q8.gguf").touch()
    assert _model.resolve_model(str(tmp_path / "m.q8.gguf")).name == "m.q8"
    with pytest.raises(UserError, match=r"did you mean .*m\.q8\.gguf"):
        _model.resolve_model(str(tmp_path / "m.q4.gguf"))
    with pytest.raises(UserError, match="nothing to override"):
        _model.resolve_model(str(artifact), ["seed=1"])
    for text in ("none.yaml", "none.yml:chat"):
        with pytest.raises(UserError, match="no recipe 'none"):
            _model.resolve_model(text)


def test_a_recipe_names_its_model(tmp_path, monkeypatch):
    from modelwright import api

    recipe = tmp_path / "r.yaml"
    recipe.touch()
    asked = []

    class Project:
        recipe = argparse.Namespace(name="mine")

        def model_path(self) -> Path:
            return Path("last")

        def artifact(self, stage: str):
            return argparse.Namespace(path=Path(stage))

    def load(path, *overrides, store):
        asked.append((path, overrides, store))
        return Project()

    monkeypatch.setattr(api, "load", load)
    assert _model.resolve_model(str(recipe), ["seed=1"], Path("s")) == (Path("last"), "mine")
    assert _model.resolve_model(f"{recipe}:chat") == (Path("chat"), "mine-chat")
    assert asked == [(recipe, ("seed=1",), Path("s")), (recipe, (), Path("store"))]
