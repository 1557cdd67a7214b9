"""`modelwright chat`: talk with a model in the terminal, or pipe prompts through it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from modelwright.cli import _model
from modelwright.core.errors import UserError

if TYPE_CHECKING:
    from modelwright.methods.engines import Delta, Engine

ABOUT = "Chat with a model. Without a terminal on standard input, each line is one message and each answer is printed plainly."
COMMANDS = {
    "/help": "these commands",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message and forget the conversation; without TEXT, none",
    "/temperature X": "0 always takes the likeliest token; up to 2",
    "/tokens N": "longest answer, in tokens; 0: what fits",
    "/file PATH": "add a file's text to the next message",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "go on with a saved conversation",
    "/quit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def parser() -> argparse.ArgumentParser:
    parse = _model.parser("chat", ABOUT)
    parse.add_argument("--once", metavar="QUESTION", help="answer this and end")
    parse.add_argument("--system", default="", metavar="TEXT", help="system message")
    parse.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parse.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    parse.add_argument("--max-tokens", type=int, default=0, help="longest answer; 0: what fits (%(default)s)")
    parse.add_argument("--seed", type=int, default=0, help="of the sampling (%(default)s)")
    return parse


def main(args: list[str]) -> int:
    parse = parser()
    given = parse.parse_args(args)
    if not 0 <= given.temperature <= 2 or not 0 < given.top_p <= 1 or given.max_tokens < 0 or not 0 <= given.seed < 2**31:
        parse.error("--temperature takes 0 to 2, --top-p above 0 to 1, --max-tokens 0 or more, --seed 0 to 2147483647")
    with _model.open_model(given) as (engine, name):
        chat = Chat(engine, name, given.system, given.temperature, given.top_p, given.max_tokens, given.seed)
        if given.once is not None:
            chat.say(given.once)
            return 0
        return converse(chat) if sys.stdin.isatty() and sys.stdout.isatty() else pipe(chat, sys.stdin)


@dataclass
class Chat:
    """One conversation: what was said, how to answer, where to print."""

    engine: Engine
    name: str
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 0
    seed: int = 0
    history: list[dict[str, str]] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    """Texts of files that go before the next message."""
    asked: int = 0
    """Questions so far; each gets a seed of its own, so that asking again may give another answer."""
    saved: Path | None = None
    """The file that this conversation may overwrite."""

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes. Ctrl-C stops the answer and keeps what was said."""
        from modelwright.methods.engines import Request, Sampling, without_lead

        self.history.append({"role": "user", "content": "\n\n".join([*self.attached, text])})
        try:
            tokens = self._prompt()
        except UserError:
            self.history.pop()
            raise
        self.attached.clear()
        room = self.engine.context - len(tokens)
        sampling = Sampling(
            min(self.max_tokens or room, room), self.temperature, self.top_p, seed=(self.seed + self.asked) % 2**31
        )
        self.asked += 1
        stream = self.engine.submit(Request(tokens, sampling))
        began_s = time.monotonic()
        pieces: list[Delta] = []
        stopped = False
        try:
            for delta in without_lead(stream):
                pieces.append(delta)
                _print(delta.text)
        except KeyboardInterrupt:
            stream.cancel()
            stopped = True
        answer = "".join(piece.text for piece in pieces)
        self.history.append({"role": "assistant", "content": answer})
        count = sum(len(piece.tokens) for piece in pieces)
        cut = bool(pieces) and pieces[-1].finish == "length"
        _print("\n")
        _footer(count, time.monotonic() - began_s, stopped, cut)

    def _prompt(self) -> list[int]:
        """The conversation as tokens; the oldest turns go when it no longer fits, and the user is told."""
        dropped = 0
        while True:
            tokens = self._tokens()
            # Room for an answer: what the user allows, but no more than a quarter, or a long limit would eat the history.
            reserve = max(1, min(self.max_tokens or self.engine.context, self.engine.context // 4))
            if len(tokens) + reserve <= self.engine.context:
                break
            if len(self.history) < 3 or "chat" not in self.engine.capabilities:
                if len(tokens) < self.engine.context:
                    break
                raise UserError(
                    f"the message does not fit: {len(tokens)} tokens, and the model's context is {self.engine.context}",
                    fix="send less text",
                )
            del self.history[:2]
            dropped += 1
        if dropped:
            turns = f"{dropped} oldest question{'s' * (dropped > 1)} and answer{'s' * (dropped > 1)}"
            _note(f"forgot the {turns}: the context is {self.engine.context} tokens")
        return tokens

    def _tokens(self) -> list[int]:
        if "chat" not in self.engine.capabilities:
            # A base model only continues text: what was said before would be no help to it.
            return self.engine.encode(self.history[-1]["content"])
        return self.engine.render(([{"role": "system", "content": self.system}] if self.system else []) + self.history)

    def command(self, line: str) -> bool:
        """Do a `/command`; False to leave."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit"):
            return False
        action = {"/help": self._help, "/reset": self._reset, "/system": self._system, "/temperature": self._temperature,
                  "/tokens": self._limit, "/file": self._file, "/save": self._save, "/load": self._load}.get(word)  # fmt: skip
        if action is None:
            raise UserError(
                f"there is no command {word}", fix="/help lists them; begin with a space to send the line to the model"
            )
        action(rest)
        return True

    def _help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            _note(f"{name:<16} {meaning}")

    def _reset(self, _: str) -> None:
        self.history.clear()
        self.attached.clear()
        _note("forgotten")

    def _system(self, text: str) -> None:
        if text and "chat" not in self.engine.capabilities:
            raise UserError("this model has no chat template, so it takes no system message")
        self.system = text
        self.history.clear()
        _note("system message set, conversation forgotten" if text else "no system message, conversation forgotten")

    def _temperature(self, text: str) -> None:
        self.temperature = _number(text, float, 0, 2, "/temperature 0.7")
        _note(f"temperature {self.temperature:g}")

    def _limit(self, text: str) -> None:
        self.max_tokens = _number(text, int, 0, 10**9, "/tokens 100")
        _note(
            f"answers of {self.max_tokens or 'as many'} tokens at most"
            if self.max_tokens
            else "answers as long as the context allows"
        )

    def _file(self, text: str) -> None:
        content = _read(text)
        self.attached.append(content)
        _note(f"{Path(text).name} ({len(content)} characters) goes with the next message")

    def _save(self, text: str) -> None:
        path = _path(text)
        if path.exists() and path != self.saved:
            raise UserError(f"{path} exists", fix="take another name")
        tree = {
            "model": self.name,
            "messages": ([{"role": "system", "content": self.system}] if self.system else []) + self.history,
        }
        try:
            path.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written", error.strerror or str(error)) from None
        self.saved = path
        _note(f"saved {len(self.history)} messages in {path}")

    def _load(self, text: str) -> None:
        self.system, self.history = parse_conversation(_read(text), text)
        self.attached.clear()
        self.saved = _path(text)
        _note(f"loaded {len(self.history)} messages")


def parse_conversation(text: str, name: str) -> tuple[str, list[dict[str, str]]]:
    """The system message and the turns of a file that /save wrote."""
    try:
        messages = [(message["role"], message["content"]) for message in json.loads(text)["messages"]]
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{name} is not a saved conversation", f"{type(error).__name__}: {error}") from None
    system = ""
    if messages and messages[0][0] == "system":
        system = messages.pop(0)[1]
    roles = [role for role, _ in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not all(
        isinstance(content, str) for _, content in [*messages, ("", system)]
    ):
        raise UserError(f"{name} is not a saved conversation", "it must hold a question and its answer in turn")
    return system, [{"role": role, "content": content} for role, content in messages]


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


def converse(chat: Chat) -> int:
    """The prompt in a terminal, with line editing and a history of this session."""
    kind = "" if "chat" in chat.engine.capabilities else ", no chat template: it continues your text"
    _note(f"{chat.name} (context {chat.engine.context} tokens{kind}). /help lists commands, Ctrl-D leaves.")
    for text in _typed():
        try:
            if text.startswith("/"):
                if not chat.command(text):
                    return 0
            else:
                chat.say(text)
        except UserError as error:
            _note(str(error), "red")
    return 0


def _typed() -> Iterator[str]:
    """Lines from the keyboard; Ctrl-C clears the line, twice in a row leaves."""
    read: Callable[[str], str] = input
    try:
        import readline  # gives `input` editing and the arrow keys; Windows has them without

        readline.set_history_length(1000)
        prompt = "\001\033[1;36m\002you ›\001\033[0m\002 "  # \001 \002: no width, for readline
    except ImportError:
        prompt = "you › "
    interrupted = False
    while True:
        try:
            line = read(prompt)
            interrupted = False
            if line.strip():
                yield line
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            interrupted = True
            _note("Ctrl-C again or Ctrl-D leaves")


def _print(text: str) -> None:
    """A piece of an answer. A terminal obeys control characters, and a model may print any: it gets none of them."""
    sys.stdout.write(CONTROL.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _footer(tokens: int, seconds: float, stopped: bool, cut: bool) -> None:
    """How it went: always when the answer is not whole, else only for a person at a terminal."""
    notes = ["stopped"] * stopped + ["cut at the length limit (/tokens N)"] * cut
    if sys.stdout.isatty():
        notes = [f"{tokens} tokens", f"{tokens / max(seconds, 1e-3):.0f} tokens/s", *notes]
    if notes:
        _note(" · ".join(notes))


def _note(text: str, style: str = "dim") -> None:
    """A line of ours, beside the answers: on standard error, in colour where that is a terminal."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console

    Console(stderr=True).print(text, style=style, markup=False, highlight=False)


def _number(text: str, kind: type, low: float, high: float, example: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{text!r} is not a number", fix=example) from None
    if not low <= value <= high:
        raise UserError(f"{text} is not from {low:g} to {high:g}", fix=example)
    return value


def _path(text: str) -> Path:
    if not text:
        raise UserError("which file?", fix="give its name after the command")
    return Path(text).expanduser()


def _read(text: str) -> str:
    path = _path(text)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text", str(error)) from None
