"""`modelwright serve` as a process: its first line, its signals, its refusals; and which model a command line names."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from modelwright.cli import _model, serve
from modelwright.core.errors import UserError
from modelwright.methods import engines
from modelwright.serve import run
from tests.fake_engine import FakeEngine, wait_until

SCRIPT = """
import sys
from modelwright.cli import serve
from modelwright.methods import engines
from tests.fake_engine import FakeEngine
engines.open_engine = lambda path, spec: FakeEngine().opened()
sys.exit(serve.main(sys.argv[1:]))
"""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    begun = []

    def begin(*options: str):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tiny.gguf"), "--port", "0", *options]
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parent.parent))
        line = begun[-1].stdout.readline()
        assert line.startswith("serving tiny at http://127.0.0.1:"), line + begun[-1].stderr.read()
        return begun[-1], line.split()[3].removesuffix("/v1")

    yield begin
    for child in begun:
        child.kill()
        child.communicate()


def stream_slowly(url: str, tokens: int):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(model="tiny", prompt="SLOW", max_tokens=tokens, stream=True)
    return stream, next(iter(stream))


def test_ratings_are_kept_where_the_command_says(process, tmp_path):
    path = tmp_path / "ratings.jsonl"
    child, url = process("--feedback", str(path))
    assert "chat page" in child.stdout.readline() and f"ratings go to {path}" in child.stdout.readline()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert httpx.post(f"{url}/v1/feedback", json={"id": answer.id, "rating": "up"}).status_code == 200
    assert '"answer": "you said: hello"' in path.read_text() and '"model_key": ""' in path.read_text()


def test_sigterm_drains(process):
    child, url = process()
    stream, first = stream_slowly(url, 80)
    texts = [first.choices[0].text]
    reader = threading.Thread(target=lambda: texts.extend(chunk.choices[0].text for chunk in stream))
    reader.start()
    child.send_signal(signal.SIGTERM)
    wait_until(lambda: httpx.get(f"{url}/ready").status_code == 503)
    refused = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert refused.status_code == 503 and refused.headers["retry-after"] and refused.json()["error"]["code"] == "shutting_down"
    assert httpx.get(f"{url}/health").status_code == 200
    reader.join(5)
    assert "".join(texts) == ("tick " * 16)  # all of it came
    assert child.wait(5) == 0
    assert child.stderr.read() == "stopped\n"


@pytest.mark.parametrize("options", [(), ("--drain-seconds", "0.3")])
def test_ending_in_time_cuts_answers(process, options):
    """A second Ctrl-C, or the end of the time to drain."""
    child, url = process(*options)
    stream, _ = stream_slowly(url, 900)
    began_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    if not options:
        time.sleep(0.15)
        child.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    assert child.wait(6) == 130
    assert time.monotonic() - began_s < 4
    assert child.stderr.read().splitlines()[-1] == "stopped; answers under way were cancelled"


def test_ctrl_c_when_idle(process):
    child, _ = process()
    child.send_signal(signal.SIGINT)
    assert child.wait(5) == 0
    assert child.stderr.read() == "stopped\n"


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> str:
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr(engines, "open_engine", lambda path, spec: pytest.fail("opened"))
    return str(tmp_path / "tiny.gguf")


def test_refusals_come_before_the_model_is_opened(tiny, tmp_path):
    with run.bind(run.Address(port=0), None) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be opened"):
            serve.main([tiny, "--port", port])
    with pytest.raises(UserError, match="lets other machines in"):
        serve.main([tiny, "--host", "0.0.0.0", "--port", "0"])
    with pytest.raises(UserError, match="cannot be read"):
        serve.main([tiny, "--api-key-file", str(tmp_path / "none")])
    with pytest.raises(UserError, match="no model at"):
        serve.main([str(tmp_path / "tiny.ggfu"), "--port", "0"])
    with pytest.raises(SystemExit) as caught:
        serve.main([tiny, "--parallel", "0"])
    assert caught.value.code == 2


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
    monkeypatch.setattr(engines, "open_engine", lambda path, spec: engine.opened())
    seen = []

    def serve_nothing(engine, name, address, **settings) -> bool:
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
