"""`modelwright chat`: talk with a model in the terminal, or pipe prompts through it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from modelwright.cli import _model
from modelwright.cli._switch import given_models
from modelwright.cli._talk import Chat
from modelwright.cli._terminal import note
from modelwright.core.errors import UserError

ABOUT = "Chat with a model. Without a terminal on standard input, each line is one message and each answer is printed plainly."
_LINES = 1000
"""Of the history that is kept."""


def parser() -> argparse.ArgumentParser:
    parse = _model.parser("chat", ABOUT)
    parse.add_argument("--once", metavar="QUESTION", help="answer this and end")
    parse.add_argument("--system", default="", metavar="TEXT", help="system message")
    parse.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parse.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    parse.add_argument("--max-tokens", type=int, default=0, help="longest answer; 0: what fits (%(default)s)")
    parse.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    adapter = (
        "an adapter (PEFT's folder, or GGUF under llama.cpp), of the first model unless told; the first begins with its first"
    )
    _model.add_more(parse, "one more model, which /model switches to", adapter, "[[MODEL:]NAME=]PATH")
    parse.add_argument("--no-history", action="store_true", help="keep no file of the lines that are typed")
    return parse


def main(args: list[str]) -> int:
    parse = parser()
    given = parse.parse_args(args)
    if not 0 <= given.temperature <= 2 or not 0 < given.top_p <= 1 or given.max_tokens < 0 or not 0 <= given.seed < 2**31:
        parse.error("--temperature takes 0 to 2, --top-p above 0 to 1, --max-tokens 0 or more, --seed 0 to 2147483647")
    with given_models(given) as models:
        drawn = (given.temperature, given.top_p, given.max_tokens, given.seed)
        chat = Chat(models.engine, models.current.name, given.system, *drawn, models=models)
        if models.current.adapters:
            chat.use(next(iter(models.current.adapters)))
        if given.once is not None:
            chat.say(given.once)
            return 0
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            return pipe(chat, sys.stdin)
        return converse(chat, None if given.no_history else history_file())


def history_file() -> Path:
    """Where typed lines are kept: https://specifications.freedesktop.org/basedir-spec, `XDG_STATE_HOME`."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "modelwright" / "chat_history"


def pipe(chat: Chat, lines: TextIO) -> int:
    """Each line a message; the first error ends it."""
    for line in lines:
        text = line.rstrip("\r\n")
        if text.startswith("/"):
            if not chat.command(text):
                break
        elif text.strip():
            chat.say(text)
    return 0


def converse(chat: Chat, history: Path | None) -> int:
    """The prompt in a terminal, with line editing and the lines of earlier chats."""
    note(f"{chat.described()}. /help lists commands, Ctrl-D leaves.")
    for text in _typed(chat, history):
        try:
            if text.startswith("/"):
                if not chat.command(text):
                    return 0
            else:
                chat.say(text)
        except UserError as error:
            note(str(error), "red")
        except KeyboardInterrupt:  # while a prompt was made ready or a model opened
            note("stopped")
    return 0


def _typed(chat: Chat, history: Path | None) -> Iterator[str]:
    """Lines from the keyboard; Ctrl-C clears the line, twice in a row leaves."""
    read: Callable[[str], str] = input
    try:
        import readline  # gives `input` editing and the arrow keys; Windows has them without
    except ImportError:
        prompt, keep = "you › ", None
    else:
        prompt = "\001\033[1;36m\002you ›\001\033[0m\002 "  # \001 \002: no width, for readline
        keep = _remember(history)
        readline.set_startup_hook(lambda: readline.insert_text(chat.draft))
    interrupted = False
    try:
        while True:
            try:
                line = read(prompt)
                interrupted, chat.draft = False, ""
                if line.strip():
                    yield line
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted, chat.draft = True, ""
                note("Ctrl-C again or Ctrl-D leaves")
    finally:
        if keep is not None:
            keep()


def _remember(history: Path | None) -> Callable[[], None]:
    """Bring back the lines of earlier chats; what is returned keeps those of this one, for their writer's eyes alone."""
    import readline

    readline.set_history_length(_LINES)
    if history is None:
        return lambda: None
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(history, os.O_CREAT | os.O_RDWR, 0o600))
        readline.read_history_file(history)
    except OSError as error:
        note(f"lines are not kept: {history} cannot be used ({error.strerror})")
        return lambda: None
    return lambda: readline.write_history_file(history)
