"""Local engines in a process of their own, and servers that we start: the same answers, clear ends, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelwright.cli._model import resolve_model
from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.spec import allow_code
from modelwright.methods.engines import (
    ENGINES,
    Constraint,
    Delta,
    EngineDied,
    Posting,
    Pushed,
    Request,
    Sampling,
    Speculate,
    Usage,
    open_engine,
    pick,
    request_of,
)  # fmt: skip
from modelwright.methods.engines import _choose as choose
from modelwright.methods.engines import _supervised as supervised
from modelwright.methods.engines._wire import Pipe, read
from modelwright.methods.exporters import EXPORTERS
from tests import engine_kit as kit
from tests.fake_engine import wait_until

TEXT = "def first(items: list[int]) -> int:\n    return items[0]\n"
LONG = Sampling(max_tokens=240, temperature=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.folder(tmp_path_factory.mktemp("model"))


def spec(kind: str, **fields: Any) -> Any:
    return ENGINES.load(kind)(**fields)


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """What a server that we start looks at before it starts."""
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (path / "model.safetensors").touch()
    return path


LIGHT = Path(__file__).with_name("light_engine.py")
NATIVE = {"max_batch": 4, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def child(folder: Path) -> Iterator[Any]:
    with open_engine(folder, spec("native", **NATIVE), supervised=True) as engine:
        yield engine


@pytest.fixture
def light() -> Any:
    allow_code(LIGHT)
    return ENGINES.load(str(LIGHT))()


def gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


# --- the pipe -------------------------------------------------------------------------------------------


def test_a_message_that_would_wait_is_not_sent() -> None:
    given, out = os.pipe()
    with os.fdopen(given, "rb") as far, os.fdopen(out, "wb") as near:
        pipe, reader = Pipe(far, near), Pipe(far, near)
        assert pipe.send_now(1, "a") and reader.receive() == [1, "a"] and reader.came_bytes == 7
        assert not pipe.send_now(2, "b" * 5000), "more than a pipe takes at once"
        with pipe._lock:
            assert not pipe.send_now(3, "another thread is sending")
        sent = 0
        while pipe.send_now(4, "c" * 4000):
            sent += 1
            assert sent < 10_000
        assert sent and [reader.receive() for _ in range(sent)] == [[4, "c" * 4000]] * sent, "nothing is cut"
        assert pipe.send_now(5)


def test_what_is_told_of_a_step_goes_out_at_once() -> None:
    given, out = os.pipe()
    with os.fdopen(given, "rb") as far, os.fdopen(out, "wb") as near:
        pipe, reader = Pipe(far, near), Pipe(far, near)
        with pipe.gathered():
            pipe.send(1, "a")
            other = threading.Thread(target=pipe.send, args=(2, "of another thread, which need not wait"))
            other.start()
            other.join()
            pipe.send(3, "c")
        assert [reader.receive()[0] for _ in range(3)] == [2, 1, 3]
        with pytest.raises(ValueError, match="in the middle"), pipe.gathered():
            pipe.send(4)
            raise ValueError("in the middle")
        pipe.send(5)
        assert [reader.receive() for _ in range(2)] == [[4], [5]], "what was sent before it is not lost"


def test_pieces_come_apart_in_time_and_none_is_lost(folder: Path) -> None:
    """The first at once, and the last; tokens between that come sooner than eyes follow go together."""
    with open_engine(folder, spec("native", **NATIVE)) as opened:
        engine: Any = opened
        request = Request(engine.encode(TEXT)[:4], Sampling(40, 1.0, seed=3, top_logprobs=1))
        alone = list(engine.submit(request))
        engine.tell_within(contextlib.nullcontext, 3600.0)
        first, last = engine.submit(request)
    assert len(alone) > 2 and first == alone[0] and last.finish == alone[-1].finish
    for field in ("tokens", "logprobs", "top"):
        assert getattr(first, field) + getattr(last, field) == tuple(x for piece in alone for x in getattr(piece, field))
    assert first.text + last.text == "".join(piece.text for piece in alone)


def test_a_process_that_does_not_read_holds_nobody_up(light: Any, tmp_path: Path) -> None:
    """Whoever gives an answer up, or asks from an event loop, goes on at once."""
    with open_engine(tmp_path, light, supervised=True) as engine:
        asked = Request(engine.encode("SLOW"), Sampling(500))
        stream = engine.submit(asked)
        next(iter(stream))
        psutil.Process(engine.process).suspend()
        try:
            large = [threading.Thread(target=engine.encode, args=("x" * 200_000,), daemon=True) for _ in range(2)]
            for thread in large:
                thread.start()
            time.sleep(0.2)  # the pipe is full, and its lock is taken
            began_s = time.monotonic()
            for _ in range(20):
                stream.cancel()
            assert engine.begin(asked) is None and not engine.post("encode", ("x",), print)
            assert time.monotonic() - began_s < 1
        finally:
            psutil.Process(engine.process).resume()
        for thread in large:
            thread.join(20)
            assert not thread.is_alive()
        assert list(engine.submit(Request(engine.encode("a"), Sampling(20))))[-1].finish == "stop"


def test_what_is_posted_is_answered_as_what_is_called(light: Any, tmp_path: Path) -> None:
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with open_engine(tmp_path, light, supervised=True) as engine:
        assert isinstance(engine, Posting)
        assert engine.post("encode", ("hé",), came.put) and came.get(timeout=10) == engine.encode("hé")
        assert engine.post("render", ([{"role": "user", "content": "REFUSE"}], None), came.put)
        assert isinstance(came.get(timeout=10), UserError)
        asked = Request(engine.encode("a"), Sampling(20))
        stream = engine.begin(asked)
        assert stream is not None and list(stream) == list(engine.submit(asked))
        with pytest.raises(UserError, match="prompt is empty"):
            engine.begin(Request([]))
        os.kill(engine.process, signal.SIGSTOP)
        assert engine.post("encode", ("a",), came.put)
        os.kill(engine.process, signal.SIGKILL)
        assert isinstance(came.get(timeout=10), EngineDied)
        wait_until(lambda: engine._life.died is not None)
        assert engine.begin(asked) is None and not engine.post("encode", ("a",), came.put), "it has to be started first"
        assert engine.encode("a") == [97] and engine.begin(asked) is not None
    assert engine.begin(asked) is None


# --- a child --------------------------------------------------------------------------------------------


def test_messages_keep_their_types() -> None:
    request = Request([1, 2], Sampling(5, stop=("a", "b"), logit_bias=((3, 1.5),)), Constraint("regex", "a+"), "blue",
                      messages=({"role": "user", "content": ["x"]},))._replace(
                          speculate=Speculate("draft", model=Path("small"), layers=(1, 2)))  # fmt: skip
    delta = Delta("é\ud800", (1, 2), (-0.5, -float("inf")), "stop", (((1, -0.5), (2, -1.0)), ()), Usage(1, 2))
    for value in (request, delta):
        sent = json.loads(json.dumps(value, default=str))
        assert read(type(value), sent) == value


def test_the_child_answers_as_the_engine_does(folder: Path, child: Any) -> None:
    with open_engine(folder, spec("native", **NATIVE)) as here:
        assert child.capabilities == here.capabilities - {"branch"} and child.context == here.context
        assert child.vocabulary == here.vocabulary
        tokens = child.encode(TEXT)
        chat = [{"role": "user", "content": "hé"}]
        assert tokens == here.encode(TEXT) and child.decode(tokens) == TEXT and child.render(chat) == here.render(chat)
        requests = [Request(tokens[:n], Sampling(8, 1.0, seed=n, stop=("q",), top_logprobs=2)) for n in range(2, 8)]
        assert child.generate(requests) == here.generate(requests)
        assert child.score([tokens, tokens[:5]]) == here.score([tokens, tokens[:5]])
        assert child.embed([tokens]) == here.embed([tokens])  # type: ignore[attr-defined]
        one, two = (list(engine.submit(requests[0])) for engine in (child, here))
        for field in ("tokens", "logprobs", "top"):
            assert [x for d in one for x in getattr(d, field)] == [x for d in two for x in getattr(d, field)]
        assert "".join(piece.text for piece in one) == "".join(piece.text for piece in two)


def test_streams_cancel_and_listen(child: Any) -> None:
    tokens = child.encode(TEXT)
    stream = child.submit(Request(tokens, LONG))
    for _ in stream:
        break
    stream = child.submit(Request(tokens, LONG))
    stream.cancel()
    assert [piece.finish for piece in stream][-1] in ("cancelled", "stop")
    stream.cancel()
    heard: list[Any] = []
    ended = threading.Event()

    def take(piece: Any) -> None:
        heard.append(piece)
        if isinstance(piece, BaseException) or piece.finish:
            ended.set()

    stream = child.submit(Request(tokens, Sampling(5)))
    assert isinstance(stream, Pushed)
    stream.listen(take)
    assert ended.wait(10) and sum(len(piece.tokens) for piece in heard) == 5
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(len(child.generate([Request(tokens, Sampling(6))])[0].tokens)))
               for _ in range(6)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [6] * 6


def test_bad_requests_are_told_and_the_child_lives(child: Any) -> None:
    before = child.process
    for wrong, says in ((Request([5] * 300), "300 tokens"), (Request([]), "prompt is empty"), (Request([5], adapter="no"), "no")):
        with pytest.raises(UserError, match=says):
            list(child.submit(wrong))
        with pytest.raises(UserError, match=says):
            child.generate([wrong])
    with pytest.raises(UserError, match="299 tokens"):
        child.score([[5] * 300])
    with pytest.raises(UserError):
        child.load_adapter("gone", "./nothing-here")
    assert child.process == before and len(child.generate([Request([5], Sampling(2))])[0].tokens) == 2


def test_a_killed_child_is_told_and_started_again(
    light: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine(Path(), light, supervised=True) as opened:
        engine: Any = opened
        slow = Request(engine.encode("SLOW"), Sampling(5000))
        engine.load_adapter("blue", tmp_path)
        asked = Request(engine.encode("a"), Sampling(20), adapter="blue")
        before, first = engine.process, engine.generate([asked])
        heard: list[Any] = []
        engine.submit(slow).listen(heard.append)
        pieces = iter(engine.submit(slow))
        next(pieces)
        os.kill(before, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL: most likely because memory ran out") as caught:
            list(pieces)
        assert "max_batch" in caught.value.fix
        wait_until(lambda: bool(heard) and isinstance(heard[-1], EngineDied))
        assert engine.generate([asked]) == first and engine.adapters == ("blue",), "adapters are loaded anew"
        assert engine.process != before and engine.restarts == 1 and gone(before) and "started again" in caplog.text
        waited: list[float] = []
        monkeypatch.setattr(engine._closing, "wait", lambda seconds: waited.append(seconds) or True)
        os.kill(engine.process, signal.SIGSEGV)
        wait_until(lambda: engine._life.died is not None)
        with pytest.raises(UserError, match="closed"):
            engine.encode("a")
        assert waited == [1.0], "the second time in a minute it waits"
        last = engine.process
    assert gone(last)
    with pytest.raises(UserError, match="closed"):
        engine.encode("a")


def test_an_adapter_that_has_gone_stops_no_other_request(light: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_engine(Path(), light, supervised=True) as opened:
        engine: Any = opened
        for name in ("blue", "red"):
            (tmp_path / name).mkdir()
            engine.load_adapter(name, tmp_path / name)
        plain = Request(engine.encode("a"), Sampling(20))
        red = plain._replace(adapter="red")
        before = engine.generate([plain, red])
        (tmp_path / "blue").rmdir()
        os.kill(engine.process, signal.SIGKILL)
        wait_until(lambda: engine._life.died is not None)
        assert engine.generate([plain, red]) == before and engine.restarts == 1
        assert "'blue'" in caplog.text and engine.adapters == ("red",)


def test_faults_of_the_child_are_faults_here(light: Any) -> None:
    closed = light.model_copy(update={"fails": "no"})
    with pytest.raises(UserError, match="cannot be opened") as caught, open_engine(Path(), closed, supervised=True):
        pass
    assert caught.value.why == "no" and caught.value.fix == "open another one"
    with open_engine(Path(), light, supervised=True) as opened:
        engine: Any = opened
        with pytest.raises(RuntimeError, match="boom"):
            list(engine.submit(Request(engine.encode("BOOM"))))
        with pytest.raises(UserError, match="the template refuses this chat"):
            engine.render([{"role": "user", "content": "REFUSE"}])
        with pytest.raises(UserError, match="cannot do `embed`"):
            engine.embed([[1]])
        assert engine.decode(engine.encode("hé\ud800".encode("utf-8", "replace").decode())) == "hé?" and engine.restarts == 0


def test_an_answer_that_cannot_be_told_fails_alone(folder: Path) -> None:
    """What goes wrong while a step's tokens are told is an error of that answer: the others go on, in the same process."""
    torn = Path(__file__).with_name("torn_engine.py")
    allow_code(torn)
    with open_engine(folder, ENGINES.load(str(torn))(**NATIVE), supervised=True) as opened:
        engine: Any = opened
        before, asked = engine.process, Request(engine.encode(TEXT), LONG)
        streams = [engine.submit(asked) for _ in range(2)]
        with pytest.raises(RuntimeError, match="ValueError: no text can be made of it"):
            list(streams[0])
        beside = list(streams[1])
        assert beside[-1].finish in ("stop", "length")
        answer = engine.generate([asked])[0]
        assert answer.tokens == tuple(token for piece in beside for token in piece.tokens) and len(answer.tokens) > 100
        assert engine.process == before and engine.restarts == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell")
def test_what_a_process_takes(light: Any, folder: Path) -> None:
    with open_engine(Path(), light, supervised=True) as opened:
        engine: Any = opened
        found = supervised.taken_bytes(engine)
        assert 5e6 < found <= psutil.Process(engine.process).memory_info().rss
        os.kill(engine.process, signal.SIGKILL)
        wait_until(lambda: engine._life.died is not None)
        assert supervised.taken_bytes(engine) == 0
    with open_engine(folder, spec("native", **NATIVE)) as here:
        assert supervised.taken_bytes(here) == 0, "it has no process of its own"


def test_pieces_are_quick(light: Any) -> None:
    """Processor time of both sides for a token that travels alone; the bound is ten times what was measured."""
    count = 1500
    with open_engine(Path(), light, supervised=True) as opened:
        engine: Any = opened
        request = Request(engine.encode("x" * (count - 10)), Sampling(5000))
        child = psutil.Process(engine.process)
        before_s = time.process_time() + sum(child.cpu_times()[:2])
        assert len(list(engine.submit(request))) > count
        spent_s = time.process_time() + sum(child.cpu_times()[:2]) - before_s
    assert spent_s / count < 1e-3


@pytest.mark.parametrize(
    ("code", "says"),
    [(-9, "memory ran out"), (-11, "SIGSEGV"), (-4, "another processor"), (-15, "ended by SIGTERM"), (7, "with code 7")],
)
def test_how_it_died(code: int, says: str) -> None:
    assert says in str(supervised.death(code))


def test_a_child_never_outlives_its_parent() -> None:
    script = f"""
        from pathlib import Path
        from modelwright.core.spec import allow_code
        from modelwright.methods.engines import ENGINES
        from modelwright.methods.engines._supervised import Supervised
        allow_code(Path({str(LIGHT)!r}))
        engine = Supervised(ENGINES.load({str(LIGHT)!r})(), Path())
        print(engine.process, flush=True)
        input()
    """
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdin=pipe, stdout=pipe, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        process = int(parent.stdout.readline())
        assert not gone(process)
        parent.kill()
        parent.wait()
        wait_until(lambda: gone(process))


# --- models that cannot be opened -----------------------------------------------------------------------


def sharded(folder: Path, path: Path) -> Path:
    shutil.copytree(folder, path)
    shards = {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return path


def test_bad_models_are_told(folder: Path, tmp_path: Path) -> None:
    missing = sharded(folder, tmp_path / "sharded")
    torn = Path(shutil.copytree(folder, tmp_path / "torn"))
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:2000])
    odd = Path(shutil.copytree(folder, tmp_path / "odd"))
    (odd / "config.json").write_text((odd / "config.json").read_text().replace('"llama"', '"martian"'))
    named = "model-00002-of-00002.safetensors"
    for path, says, apart in ((missing, named, True), (torn, "torn", False), (odd, "martian", True)):
        with pytest.raises(UserError, match=says), open_engine(path, spec("native", **NATIVE), supervised=apart):
            pass
    with pytest.raises(UserError, match="no engine opens"), open_engine(tmp_path, supervised=True):
        pass


def test_llamacpp_in_a_child_and_its_bad_models(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    EXPORTERS.load("gguf")(type="f32").write(folder, tmp_path, Log(None))  # type: ignore[attr-defined, call-arg]
    good = tmp_path / "model.gguf"
    fields = {"max_batch": 2, "threads": 1, "context": 512}
    with open_engine(good, spec("llamacpp", **fields), supervised=True) as engine:
        assert len(engine.generate([Request(engine.encode(TEXT), Sampling(4))])[0].tokens) == 4
        with pytest.raises(UserError, match="context holds 256"):
            engine.submit(Request([5] * 300))
    odd, torn = tmp_path / "odd.gguf", tmp_path / "torn.gguf"
    data = good.read_bytes()
    odd.write_bytes(data.replace(b"llama", b"llamb"))
    torn.write_bytes(data[: len(data) // 2])
    for path, says in ((odd, "llamb"), (torn, "torn.gguf")):
        with pytest.raises(UserError, match=says), open_engine(path, spec("llamacpp", **fields), supervised=True):
            pass


# --- servers that we start ------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`vllm` and `sglang` on PATH, and how they behave; what they were called with comes back."""
    bin_, record = tmp_path / "bin", tmp_path / "record"
    bin_.mkdir()
    for name in ("vllm", "sglang"):
        script = bin_ / name
        kit_file = Path(__file__).with_name("remote_kit.py")
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{kit_file}" "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")

    def behave(**ways: Any) -> None:
        monkeypatch.setenv("FAKE_WAYS", json.dumps({"record": str(record), **ways}))

    behave()
    behave.runs = lambda: [json.loads(line) for line in record.read_text().splitlines()]  # type: ignore[attr-defined]
    return behave


def chat(engine: Any) -> Request:
    return request_of(engine, [{"role": "user", "content": "hello"}], Sampling(9))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_is_started_spoken_to_and_ended(shell: Path, program: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    program(slow_s=0.3)
    with open_engine(shell, spec(kind, precision="bf16", context=300)) as engine:
        assert engine.capabilities == {"messages", "chat", "seed", "constrain"} and engine.context == 300
        assert engine.generate([chat(engine)])[0].text == "said hello and more"
        assert "".join(piece.text for piece in engine.submit(chat(engine))) == "said hello and more"
        (run,) = program.runs()
        assert not gone(run["pid"])
        kept = engine._folder  # type: ignore[attr-defined]
    assert gone(run["pid"]) and not kept.exists()
    args = " ".join(run["args"])
    assert args.startswith("serve ") and "--host 127.0.0.1" in args and "--dtype bfloat16" in args and " 300" in args
    assert "api-key" not in args and len(run["key"]) == (43 if kind == "vllm" else 0)
    assert f"{kind} starts" in caplog.text


def test_a_server_that_dies_at_its_start_says_why(shell: Path, program: Any, tmp_path: Path) -> None:
    program(dies=True)
    log = tmp_path / "server.log"
    with pytest.raises(UserError, match="code 3") as caught, open_engine(shell, spec("vllm", log=str(log))):
        pass
    assert "architecture is not known" in str(caught.value) and "loading the weights" in log.read_text()
    program(slow_s=60)
    with pytest.raises(UserError, match=r"did not answer within 0\.3 s"), open_engine(shell, spec("vllm", start_s=0.3)):
        pass
    assert gone(program.runs()[-1]["pid"])


def test_a_server_that_dies_at_work_is_started_once_more(shell: Path, program: Any) -> None:
    program(script=["die"])
    with open_engine(shell, spec("vllm")) as engine:
        with pytest.raises(EngineDied, match="vllm died") as caught:
            engine.generate([chat(engine)])
        assert "code 1" in str(caught.value) and "loading the weights" in str(caught.value)
        with pytest.raises(EngineDied, match="vllm died"):
            list(engine.submit(chat(engine)))
        with pytest.raises(EngineDied, match="died twice"):
            engine.generate([chat(engine)])
    assert len(program.runs()) == 2


def test_a_server_never_outlives_its_parent(shell: Path, program: Any) -> None:
    script = f"""
        from pathlib import Path
        from modelwright.methods.engines import ENGINES
        engine = ENGINES.load("vllm")().open(Path({str(shell)!r}))
        print("ready", flush=True)
        input()
    """
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdin=pipe, stdout=pipe, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        assert parent.stdout.readline() == "ready\n"
        (run,) = program.runs()
        parent.kill()
        parent.wait()
        wait_until(lambda: gone(run["pid"]))


def test_a_recipe_names_no_program_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "server"
    script.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ValueError, match="--allow-code"):
        spec("vllm", command=str(script))
    allow_code(script)
    assert spec("vllm", command=str(script)).found() == str(script)
    script.write_text("#!/bin/sh\nexit 4\n")
    with pytest.raises(ValueError, match="changed"):
        spec("vllm", command=str(script))


# --- which one ------------------------------------------------------------------------------------------


def test_what_auto_means(shell: Path, tmp_path: Path, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    monkeypatch.setattr(choose, "DRIVER", driver)
    assert pick(shell, serve=True).spec == spec("native") and "vllm: no NVIDIA GPU here" in pick(shell, serve=True).why
    driver.touch()
    assert pick(shell, serve=True).spec == spec("vllm") and pick(shell).spec == spec("native")
    odd = Path(shutil.copytree(shell, tmp_path / "odd"))
    (odd / "config.json").write_text('{"architectures": ["MartianForCausalLM"]}')
    assert "it does not list MartianForCausalLM" in pick(odd, serve=True).why
    card = tmp_path / "judge.json"
    card.write_text('{"kind": "openai", "provider": "groq", "model": "large"}')
    assert pick(card).spec == spec("openai", provider="groq", model="large") and pick(card).why == "judge.json says so"
    for bad in ("{", "[]", '{"kind": "native"}', '{"kind": "nothing"}', '{"kind": "openai", "key": "x"}'):
        card.write_text(bad)
        with pytest.raises(UserError, match=r"judge\.json describes"):
            pick(card)
    with pytest.raises(UserError, match="opens no files"), open_engine(shell, spec("openai", provider="groq", model="large")):
        pass


def test_names_of_models_elsewhere() -> None:
    def named(text: str) -> Any:
        return choose.named(Path(text))

    assert named("anthropic:claude") == spec("openai", provider="anthropic", model="claude")
    assert named("ollama:llama3:8b") == spec("ollama", model="llama3:8b") and named("lmstudio:") == spec("lmstudio")
    assert named("http://127.0.0.1:8000/v1#a/b") == spec("openai", base_url="http://127.0.0.1:8000/v1", model="a/b")
    for text, name in (("ollama:llama3", "llama3"), ("ollama:", "ollama"), ("http://127.0.0.1:8000/v1/", "127.0.0.1:8000")):
        assert resolve_model(text) == (Path(text), name)
    assert [named(text) for text in ("folder", "recipe.yaml:stage", "C:/models/x")] == [None] * 3
