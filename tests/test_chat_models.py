"""`modelwright chat` with several models and adapters: `/model` tells them and switches."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelwright.cli import chat
from modelwright.core.errors import UserError
from modelwright.methods import engines
from tests.fake_engine import FakeEngine

FILES = ("tiny.gguf", "big.gguf", "broken.gguf")


class Named(FakeEngine):
    """Answers tell who gives them."""

    def __init__(self, name: str, **changed: object) -> None:
        super().__init__()
        self.name = name
        self.__dict__ |= changed

    def submit(self, request):
        assert not self.closed
        return super().submit(request)

    def asked(self, tokens):
        return f"{self.name}: {super().asked(tokens)}"


@pytest.fixture
def opened(tmp_path, monkeypatch) -> list[Named]:
    """All engines, in the order of their opening."""
    made: list[Named] = []
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        Path(name).touch()
    for name in ("polite", "rude"):
        Path(name).mkdir()
    monkeypatch.setattr(engines, "pick", lambda path, serve: engines.Picked(None, "a test"))

    @contextmanager
    def open_engine(path, spec, supervised) -> Iterator[Named]:
        if path.stem == "broken":
            raise UserError("broken.gguf cannot be opened", "it is torn")
        assert all(engine.closed for engine in made), "one at a time: two may not fit"
        plain = {"capabilities": frozenset({"score"})} if path.stem == "big" else {}
        made.append(Named(path.stem, **plain))
        with made[-1].opened() as engine:
            yield engine

    monkeypatch.setattr(engines, "open_engine", open_engine)
    return made


def piped(monkeypatch, lines: list[str], *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    return chat.main(["tiny.gguf", *options])


def test_another_model_goes_on_with_the_conversation(opened, monkeypatch, capsys):
    lines = ["one", "/model", "/model big", "two", "/model tiny", "three", "/model tiny", "four"]
    assert piped(monkeypatch, lines, "--model", "big=big.gguf") == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "you said: tiny: one",
        "you said: big: two",  # it has no chat template, and continues the text
        "you said: tiny: three",
        "you said: tiny: four",
    ]
    assert "* tiny" in said.err and "  big" in said.err
    assert "big (context 2000 tokens, no chat template: it continues your text)" in said.err
    assert [engine.name for engine in opened] == ["tiny", "big", "tiny"] and all(engine.closed for engine in opened)
    history = opened[-1].decode(opened[-1].last.tokens)
    assert "<user>one<assistant>you said: tiny: one<user>two<assistant>you said: big: two<user>three" in history


def test_adapters_are_switched_too(opened, monkeypatch, capsys):
    lines = ["one", "/model rude", "two", "/model tiny", "three", "/model tiny:polite", "four", "/model big", "/model polite",
             "five", "/adapter rude", "/model"]  # fmt: skip
    given = ["--adapter", "polite=polite", "--adapter", "rude", "--model", "big=big.gguf"]
    assert piped(monkeypatch, lines, *given) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "as polite: tiny: one",
        "as rude: tiny: two",
        "you said: tiny: three",
        "as polite: tiny: four",
        "as polite: tiny: five",
    ]
    assert "* tiny:rude" in said.err and "  tiny:polite" in said.err
    assert [engine.name for engine in opened] == ["tiny", "big", "tiny"]


def test_what_the_next_model_cannot_do_is_left_off_and_told(opened, monkeypatch, capsys):
    lines = ["/min-p 0.1", "/logprobs on", "/model big", "one"]
    assert piped(monkeypatch, lines, "--model", "big=big.gguf") == 0
    said = capsys.readouterr()
    assert "min-p is off" in said.err and "log-probabilities are off" in said.err
    assert opened[-1].last.sampling.min_p == 0 and opened[-1].last.sampling.top_logprobs == 0


def test_alone_it_says_how_to_give_another(opened, monkeypatch, capsys):
    assert piped(monkeypatch, ["/model"]) == 0
    assert "* tiny" in (said := capsys.readouterr().err) and "--model NAME=PATH" in said and "--adapter NAME=PATH" in said


def test_a_model_that_does_not_open_leaves_the_one_before(opened, monkeypatch, capsys):
    options = ["tiny.gguf", "--model", "broken=broken.gguf", "--adapter", "polite"]
    models = chat.given_models(chat.parser().parse_args(options))
    with models:
        talk = chat.Chat(models.engine, "tiny", models=models)
        for name, error in (("broken", "it is torn"), ("bog", "no model or adapter 'bog'"), ("tiny:none", "none")):
            with pytest.raises(UserError, match=error):
                talk.command(f"/model {name}")
            talk.say("still there?")
        assert talk.name == "tiny" and capsys.readouterr().out.count("you said: tiny: still there?") == 3
        talk.use("polite")
        with pytest.raises(UserError, match="it is torn"):
            talk.use("broken")
        talk.say("and you?")
        assert capsys.readouterr().out == "as polite: tiny: and you?\n"
        with pytest.raises(UserError, match="there is no adapter"):
            talk.command("/adapter nowhere")
        assert talk.adapter == "polite"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--model", "big.gguf"], "names nothing"),
        (["--model", "tiny=big.gguf"], "two .* called 'tiny'"),
        (["--model", "big=none.gguf"], "no model at"),
        (["--adapter", "nowhere"], "there is no adapter"),
        (["--adapter", "other:polite=polite"], "no model 'other'"),
        (["--adapter", "polite", "--adapter", "polite"], "two .* called 'tiny:polite'"),
    ],
)
def test_what_cannot_be_given(opened, monkeypatch, options, error):
    with pytest.raises(UserError, match=error):
        piped(monkeypatch, ["hello"], *options)
    assert not opened
