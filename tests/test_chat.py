"""`modelwright chat`: piped, scripted in a real terminal, and its commands."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelwright.cli import _terminal, chat
from modelwright.core.errors import UserError
from modelwright.methods import engines
from tests.fake_engine import FakeEngine


@pytest.fixture
def engine(tmp_path, monkeypatch):
    made = FakeEngine()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("tiny.gguf").touch()
    monkeypatch.setattr(engines, "pick", lambda path, serve: engines.Picked(None, "a test"))
    monkeypatch.setattr(engines, "open_engine", lambda path, spec, supervised: made.opened())
    return made


def piped(monkeypatch, text: str, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return chat.main(["tiny.gguf", *options])


def sent(engine: FakeEngine) -> str:
    return engine.decode(engine.last.tokens)


def test_each_line_is_a_message_and_the_chat_goes_on(engine, monkeypatch, capsys):
    assert piped(monkeypatch, "one\n\ntwo") == 0
    said = capsys.readouterr()
    assert said.out == "you said: one\nyou said: two\n" and said.err == ""
    assert sent(engine) == "<user>one<assistant>you said: one<user>two<assistant>"
    assert engine.last.sampling.temperature == 0 and engine.closed


def test_once_and_its_options(engine, capsys):
    assert (
        chat.main(["tiny.gguf", "--once", "hé", "--system", "be", "--max-tokens", "5", "--temperature", "0.5", "--seed", "7"])
        == 0
    )
    said = capsys.readouterr()
    assert said.out == "you s\n" and "cut at the length limit" in said.err
    assert sent(engine).startswith("<system>be<user>hé")
    assert engine.last.sampling[:2] == (5, 0.5) and engine.last.sampling.seed == 7
    for wrong in (["--temperature", "-1"], ["--top-p", "0"], ["--max-tokens", "-1"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            chat.main(["tiny.gguf", *wrong])


def test_commands(engine, monkeypatch, capsys, tmp_path):
    Path("a.txt").write_text("some text")
    script = ["/system be brief", "one", "/file a.txt", "two", "/save talk.json", "/save talk.json", "/reset", "three",
              "/load talk.json", "/temperature 0.5", "/tokens 3", "four", "/tokens 0", "/help", "/quit", "never"]  # fmt: skip
    assert piped(monkeypatch, "\n".join(script)) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:4] == ["you said: one", "you said: some text", "", "two"]
    assert "you said: three" in said.out and "never" not in said.out
    assert "a.txt (9 characters)" in said.err and "/temperature X" in said.err and "saved 4 messages" in said.err
    saved = json.loads(Path("talk.json").read_text())
    assert saved["model"] == "tiny" and [m["role"] for m in saved["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert sent(engine).startswith("<system>be brief<user>one<assistant>you said: one<user>some text\n\ntwo<assistant>")
    assert engine.last.sampling[:2] == (3, 0.5)


def test_commands_that_ask_again_and_how_to_draw(engine, monkeypatch, capsys, tmp_path):
    script = ["one", "/edit two", "three", "/retry", "/top-p 0.9", "/top-k 7", "/min-p 0.1", "/seed 3", "/temperature 0.5",
              "/logprobs on", "four", "/logprobs off", "five"]  # fmt: skip
    assert piped(monkeypatch, "\n".join(script)) == 0
    said = capsys.readouterr()
    sampling = engine.last.sampling
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.temperature) == (0.9, 7, 0.1, 0.5)
    assert sampling.seed == 3 + 5 and sampling.top_logprobs == 0
    assert sent(engine).startswith("<user>two<assistant>you said: two<user>three<assistant>you said: three<user>four<assistant>")
    assert said.out.count("you said: three") == 2 and said.err.count("least likely of") == 1
    assert "'y' 50 %                 else 'z' 25 %, '{' 12.5 %" in said.err and "(geometric mean 50 %)" in said.err


def test_an_adapter(engine, monkeypatch, capsys, tmp_path):
    (tmp_path / "tuned").mkdir()
    assert piped(monkeypatch, "one\n/adapter\ntwo", "--adapter", str(tmp_path / "tuned")) == 0
    said = capsys.readouterr()
    assert said.out == "as tuned: one\nyou said: two\n" and "from the model alone" in said.err
    with pytest.raises(UserError, match="there is no adapter"):
        piped(monkeypatch, "/adapter nowhere")


class Elsewhere(FakeEngine):
    """An engine with the capability `messages`: it has no tokens to count."""

    capabilities = frozenset({"messages", "chat"})

    def render(self, messages, tools=None):
        raise AssertionError("it has no tokens")

    encode = render

    def submit(self, request):
        self.last = request
        text = request.text or request.messages[-1]["content"]
        return iter([engines.Delta(f"heard {text}"), engines.Delta("", finish="length", usage=engines.Usage(5, 9))])


def test_an_engine_that_takes_messages(engine, monkeypatch, capsys):
    remote = Elsewhere()
    monkeypatch.setattr(engines, "open_engine", lambda path, spec, supervised: remote.opened())
    assert piped(monkeypatch, "/system be\none\ntwo") == 0
    said = capsys.readouterr()
    assert said.out == "heard one\nheard two\n" and "cut at the length limit" in said.err
    assert [message["content"] for message in remote.last.messages] == ["be", "one", "heard one", "two"]
    assert remote.last.tokens == () and remote.last.sampling.max_tokens == 1024
    remote.capabilities = frozenset({"messages"})
    assert piped(monkeypatch, "once upon") == 0
    assert remote.last.text == "once upon" and remote.last.messages == ()
    for line, error in (("/min-p 0.1", "no min-p"), ("/logprobs on", "no log-prob"), ("/adapter x", "no adapters")):
        with pytest.raises(UserError, match=error):
            piped(monkeypatch, line)


def test_a_question_that_failed_is_forgotten(engine, monkeypatch, capsys):
    talk = chat.Chat(engine, "tiny")
    with pytest.raises(UserError, match="refuses"):
        talk.say("REFUSE")
    assert talk.history == [] and talk.asked == 0


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/nothing", "no command /nothing"),
        ("/temperature hot", "not a number"),
        ("/temperature 3", "not from 0 to 2"),
        ("/tokens -1", "not from 0"),
        ("/top-p 0", "no token would be left"),
        ("/retry", "nothing was asked"),
        ("/edit x", "nothing was asked"),
        ("/logprobs maybe", "takes on or off"),
        ("/file", "which file"),
        ("/file none", "cannot be read"),
        ("/file binary", "cannot be read"),
        ("/save tiny.gguf", "exists"),
        ("/save no/such/folder", "cannot be written"),
        ("/load text", "not a saved conversation"),
        ("/load list", "not a saved conversation"),
        ("/load order", "a question and its answer"),
        ("REFUSE", "the template refuses"),
        ("x" * 3000, "does not fit"),
    ],
)
def test_errors_end_a_pipe(engine, monkeypatch, line, error):
    Path("binary").write_bytes(b"\xff\xfe")
    Path("text").write_text("{")
    Path("list").write_text("[]")
    Path("order").write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    with pytest.raises(UserError, match=error):
        piped(monkeypatch, line)
    assert engine.closed


def test_asking_again_draws_again_and_the_seed_repeats_it(engine, monkeypatch, capsys):
    drawn = []
    for _ in range(2):
        piped(monkeypatch, "x\n/reset\nx", "--temperature", "1", "--seed", "3")
        drawn.append(capsys.readouterr().out.splitlines())
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]


def test_a_model_without_template_continues_text(engine, monkeypatch, capsys):
    engine.capabilities = frozenset()
    assert piped(monkeypatch, "once upon\nthen") == 0
    assert sent(engine) == "then"
    with pytest.raises(UserError, match="no chat template"):
        piped(monkeypatch, "/system x")


def test_old_turns_are_dropped_with_a_note(engine, monkeypatch, capsys):
    engine.context = 300
    assert piped(monkeypatch, "\n".join(f"{n}" * 40 for n in range(5))) == 0
    said = capsys.readouterr()
    assert "forgot the 1 oldest question and answer: the context is 300 tokens" in said.err
    assert said.out.count("you said") == 5
    assert "0000" not in sent(engine) and "4444" in sent(engine)


def test_an_interrupted_answer_is_kept(engine, monkeypatch, capsys):
    talk = chat.Chat(engine, "tiny")
    real = engine.submit

    class Interrupted:
        def __init__(self, stream) -> None:
            self.stream = stream

        def __iter__(self):
            pieces = iter(self.stream)
            yield next(pieces)
            yield next(pieces)
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.stream.cancel()

    monkeypatch.setattr(engine, "submit", lambda request: Interrupted(real(request)))
    talk.say("hello")
    said = capsys.readouterr()
    assert said.out == "yo\n" and "stopped" in said.err
    assert talk.history[-1] == {"role": "assistant", "content": "yo"}


def test_ctrl_c_while_an_answer_is_made_ready_ends_that_alone(engine, monkeypatch, capsys):
    """A prompt that is rendered, an engine that starts again, a model that opens: the conversation goes on."""
    talk, real, lines = chat.Chat(engine, "tiny"), engine.render, ["one", "two", "/model big", "three"]

    def render(messages, tools=None):
        if messages[-1]["content"] == "two":
            raise KeyboardInterrupt
        return real(messages, tools)

    def use(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "render", render)
    monkeypatch.setattr(talk, "use", use)
    monkeypatch.setattr(chat, "_typed", lambda *_: iter(lines))
    assert chat.converse(talk, None) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["you said: one", "you said: three"] and said.err.count("stopped") == 2
    assert [turn["content"] for turn in talk.history] == ["one", "you said: one", "three", "you said: three"]


@pytest.mark.parametrize("command", ["/retry", "/edit and now"])
@pytest.mark.parametrize("fault", [UserError("the engine's process died"), KeyboardInterrupt()])
def test_what_is_asked_again_and_fails_is_not_forgotten(engine, monkeypatch, command, fault):
    talk = chat.Chat(engine, "tiny")
    for question in ("one", "two"):
        talk.say(question)
    talk.attached = ["a file"]
    before = list(talk.history)

    def submit(_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(engine, "submit", submit)
        with pytest.raises(type(fault)):
            talk.command(command)
    assert talk.history == before and talk.attached == ["a file"]
    talk.command("/retry")
    assert [turn["content"] for turn in talk.history] == ["one", "you said: one", "two", "you said: two"]


TERMINAL = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job hands on an ignored one
from modelwright.cli import chat
from modelwright.methods import engines
from tests.fake_engine import FakeEngine
engines.pick = lambda path, serve: engines.Picked(None, "a test")
engines.open_engine = lambda path, spec, supervised: FakeEngine().opened()
sys.exit(chat.main(["tiny.gguf"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_in_a_terminal(tmp_path):
    """Typed lines, an answer stopped by Ctrl-C, an error that does not end it, no control characters, Ctrl-D."""
    import pty

    (tmp_path / "tiny.gguf").touch()
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm", "COLUMNS": "200",
                                "XDG_STATE_HOME": str(tmp_path / "state")}  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", TERMINAL],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown, seen = b"", 0

    def until(text: str) -> None:
        """Read until `text` has come, after what was waited for before."""
        nonlocal shown, seen
        end_s = time.monotonic() + 60
        while (at := shown.find(text.encode(), seen)) < 0:
            assert time.monotonic() < end_s, shown.decode(errors="replace")
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 4096)
        seen = at + len(text.encode())

    def type_(text: str) -> None:
        os.write(ours, text.encode())

    try:
        until("you ›")
        type_("hello\n")
        until("you said: hello")
        until("tokens/s")
        until("you ›")
        type_("SLOW\n")
        until("tick tick")
        child.send_signal(signal.SIGINT)
        until("stopped")
        until("you ›")
        type_("/nothing\n")
        until("there is no command /nothing")
        until("you ›")
        type_("/edit\n")
        until("you ›")
        until("SLOW")
        type_("\x15bye\n")  # Ctrl-U: the draft goes
        until("you said: bye")
        until("you ›")
        type_("\x04")
        assert child.wait(5) == 0
        kept = tmp_path / "state" / "modelwright" / "chat_history"
        assert kept.read_text().splitlines() == ["hello", "SLOW", "/nothing", "/edit", "bye"]
        assert kept.stat().st_mode & 0o077 == 0, "nobody else reads it"
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_a_terminal_gets_no_control_characters(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    _terminal.answer("a\x1b]0;title\x07b\n\tc\x9b31m")
    assert sys.stdout.getvalue() == "a]0;titleb\n\tc31m"
