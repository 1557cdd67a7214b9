"""One conversation in the terminal: what was said, how to answer, and the commands that change both."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelwright.cli._terminal import answer, footer, note
from modelwright.core.errors import UserError

if TYPE_CHECKING:
    from modelwright.cli._switch import Models
    from modelwright.methods.engines import Delta, Engine, Request

COMMANDS = {
    "/help": "these commands",
    "/reset": "forget the conversation",
    "/retry": "ask the last question again",
    "/edit [TEXT]": "ask TEXT in place of the last question; without TEXT, change it on the prompt",
    "/system TEXT": "set the system message and forget the conversation; without TEXT, none",
    "/temperature X": "0 always takes the likeliest token; up to 2",
    "/top-p X": "draw from the likeliest tokens that have this probability together; 1: all",
    "/top-k N": "draw from so many likeliest tokens; 0: all",
    "/min-p X": "leave out tokens less likely than this share of the likeliest; 0: none",
    "/seed N": "of the sampling",
    "/tokens N": "longest answer, in tokens; 0: what fits",
    "/logprobs on|off": "after an answer, its least likely tokens and what else might have come",
    "/model [NAME]": "go on with another model or adapter that was given; without NAME, those that there are",
    "/adapter [FOLDER]": "answer with this adapter; without FOLDER, the model alone",
    "/file PATH": "add a file's text to the next message",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "go on with a saved conversation",
    "/quit, /exit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
}
_NUMBERS: dict[str, tuple[str, type, float, float]] = {
    "/temperature": ("temperature", float, 0, 2),
    "/top-p": ("top_p", float, 0, 1),
    "/top-k": ("top_k", int, 0, 2**31 - 1),
    "/min-p": ("min_p", float, 0, 1),
    "/seed": ("seed", int, 0, 2**31 - 1),
    "/tokens": ("max_tokens", int, 0, 10**9),
}
"""Command -> field of `Chat`, its type and its range."""
_UNCOUNTED_TOKENS = 1024
"""Longest answer where the engine counts no tokens of a prompt, so that what fits is not known."""
_SHOWN = 8
"""Tokens that `/logprobs` lists."""


@dataclass
class Chat:
    """One conversation: what was said, how to answer."""

    engine: Engine
    name: str
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    logprobs: bool = False
    adapter: str = ""
    history: list[dict[str, str]] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    """Texts of files that go before the next message."""
    draft: str = ""
    """What the next prompt begins with."""
    asked: int = 0
    """Questions so far; each gets a seed of its own, so that asking again may give another answer."""
    saved: Path | None = None
    """The file that this conversation may overwrite."""
    models: Models | None = None
    """Those that were given, where `/model` may switch; `engine` is the one that is open."""

    def described(self) -> str:
        """The model in a few words."""
        kind = "" if "chat" in self.engine.capabilities else ", no chat template: it continues your text"
        room = f"context {self.engine.context} tokens" if self.engine.context else "context unknown"
        return f"{self.name} ({room}{kind})"

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes. Ctrl-C stops the answer and keeps what was said."""
        from modelwright.methods.engines import without_lead

        self.history.append({"role": "user", "content": "\n\n".join([*self.attached, text])})
        began_s, pieces, stopped = time.monotonic(), list[Any](), False
        try:
            stream = self.engine.submit(self._request())
            try:
                for delta in without_lead(stream):
                    pieces.append(delta)
                    answer(delta.text)
            except KeyboardInterrupt:
                stream.cancel()
                stopped = True
        except (UserError, KeyboardInterrupt):
            if any(piece.text for piece in pieces):
                answer("\n")
            self.history.pop()
            raise
        self.attached.clear()
        self.asked += 1
        self.history.append({"role": "assistant", "content": "".join(piece.text for piece in pieces)})
        last = pieces[-1] if pieces else None
        count = last.usage.answer_tokens if last and last.usage else sum(len(piece.tokens) for piece in pieces)
        answer("\n")
        footer(count, time.monotonic() - began_s, stopped, last is not None and last.finish == "length")
        if self.logprobs:
            self._doubts(pieces)

    def _request(self) -> Request:
        """The question as the engine takes it; the oldest turns go when they no longer fit, and the user is told."""
        from modelwright.methods.engines import Request, Sampling, request_of

        drawn = Sampling(self.max_tokens or _UNCOUNTED_TOKENS, self.temperature, self.top_p, self.top_k, min_p=self.min_p,
                         seed=(self.seed + self.asked) % 2**31, top_logprobs=3 if self.logprobs else 0)  # fmt: skip
        if "messages" in self.engine.capabilities:
            chat = "chat" in self.engine.capabilities
            return request_of(self.engine, self._messages() if chat else self.history[-1]["content"], drawn)
        tokens = self._fitting()
        room = self.engine.context - len(tokens)
        return Request(tokens, drawn._replace(max_tokens=min(self.max_tokens or room, room)), adapter=self.adapter)

    def _fitting(self) -> list[int]:
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
            note(f"forgot the {turns}: the context is {self.engine.context} tokens")
        return tokens

    def _tokens(self) -> list[int]:
        if "chat" not in self.engine.capabilities:
            # A base model only continues text: what was said before would be no help to it.
            return self.engine.encode(self.history[-1]["content"])
        return self.engine.render(self._messages())

    def _messages(self) -> list[dict[str, str]]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.history

    def _doubts(self, pieces: list[Delta]) -> None:
        """The answer's least likely tokens, and what else might have stood there."""
        told = [one for piece in pieces for one in zip(piece.tokens, piece.logprobs, piece.top or ((),) * len(piece.tokens))]  # noqa: B905
        if not told:
            return
        mean = math.exp(math.fsum(logprob for _, logprob, _ in told) / len(told))
        note(f"least likely of {len(told)} tokens (geometric mean {100 * mean:.3g} %):")
        for token, logprob, top in sorted(told, key=lambda one: one[1])[:_SHOWN]:
            others = ", ".join(self._shown(other, chance) for other, chance in top if other != token)
            note(f"  {self._shown(token, logprob):<24}" + (f" else {others}" if others else ""))

    def _shown(self, token: int, logprob: float) -> str:
        text = self.engine.decode([token])  # '' for a special one
        return f"{repr(text) if text else f'token {token}'} {100 * math.exp(logprob):.3g} %"

    # --- commands ---------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Do a `/command`; False to leave."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit"):
            return False
        if word in _NUMBERS:
            self._number(word, rest)
            return True
        action = {"/help": self._help, "/reset": self._reset, "/retry": self._retry, "/edit": self._edit,
                  "/system": self._system, "/logprobs": self._logprobs, "/model": self._model, "/adapter": self._adapter,
                  "/file": self._file, "/save": self._save, "/load": self._load}.get(word)  # fmt: skip
        if action is None:
            raise UserError(
                f"there is no command {word}", fix="/help lists them; begin with a space to send the line to the model"
            )
        action(rest)
        return True

    def _help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            note(f"{name:<18} {meaning}")

    def _reset(self, _: str) -> None:
        self.history.clear()
        self.attached.clear()
        note("forgotten")

    def _last(self) -> list[dict[str, str]]:
        """The last question and its answer, which are forgotten."""
        if not self.history:
            raise UserError("nothing was asked yet")
        turns = self.history[-2:]
        del self.history[-2:]
        return turns

    def _retry(self, _: str) -> None:
        turns = self._last()
        self._again(turns[0]["content"], turns)

    def _edit(self, text: str) -> None:
        turns = self._last()
        if text:
            self._again(text, turns)
        else:
            self.draft = turns[0]["content"]

    def _again(self, text: str, turns: list[dict[str, str]]) -> None:
        """Ask `text` in the place of `turns`, which stay where there is no answer."""
        attached, self.attached = self.attached, []  # they wait for the next message
        try:
            self.say(text)
        except (UserError, KeyboardInterrupt):
            self.history += turns
            raise
        finally:
            self.attached = attached

    def _system(self, text: str) -> None:
        if text and "chat" not in self.engine.capabilities:
            raise UserError("this model has no chat template, so it takes no system message")
        self.system = text
        self.history.clear()
        note("system message set, conversation forgotten" if text else "no system message, conversation forgotten")

    def _number(self, word: str, text: str) -> None:
        name, kind, low, high = _NUMBERS[word]
        value = number(text, kind, low, high, f"{word} {getattr(self, name)}")
        if name == "top_p" and value == 0:
            raise UserError("no token would be left", fix="/top-p 0.9")
        if name == "min_p" and value and "rules" not in self.engine.capabilities:
            raise UserError("this engine knows no min-p", fix="/top-p does about the same")
        setattr(self, name, value)
        note(f"{word[1:]} {value:g}" if name != "max_tokens" else f"answers of {value} tokens at most" if value
             else "answers as long as the context allows")  # fmt: skip

    def _logprobs(self, text: str) -> None:
        if text not in ("on", "off"):
            raise UserError(f"/logprobs takes on or off, not {text!r}")
        if text == "on" and "logprobs" not in self.engine.capabilities:
            raise UserError("this engine gives no log-probabilities")
        self.logprobs = text == "on"
        note(f"the least likely tokens are {'' if self.logprobs else 'not '}shown")

    def _model(self, text: str) -> None:
        if text:
            self.use(text)
        elif self.models is None or len(self.models.names) == 1:
            note(f"* {self.name}")
            note("there is no other: start the chat with --model NAME=PATH or --adapter NAME=PATH to have more to switch to")
        else:
            now = f"{self.name}:{self.adapter}" if self.adapter else self.name
            for name in self.models.names:
                note(f"{'*' if name == now else ' '} {name}")

    def use(self, text: str) -> None:
        """Go on with the model or the adapter of this name."""
        if self.models is None:
            raise UserError(f"there is no other model than {self.name}")
        model, adapter = self.models.find(text)
        if model is not self.models.current:
            try:
                self.models.switch(model)
            except BaseException:
                self.engine = self.models.engine  # the model of before, opened again
                if self.adapter:
                    self._load_adapter(self.adapter, self.models.current.adapters[self.adapter])
                raise
            self.engine, self.name, self.adapter = self.models.engine, model.name, ""
            note(f"{self.described()} goes on")
            self._without()
        if adapter:
            self._load_adapter(adapter, model.adapters[adapter])
        elif self.adapter:
            self._adapter("")

    def _without(self) -> None:
        """Leave off what was asked of a model before, and this one's engine cannot."""
        if self.min_p and "rules" not in self.engine.capabilities:
            self.min_p = 0.0
            note("min-p is off: this engine knows none")
        if self.logprobs and "logprobs" not in self.engine.capabilities:
            self.logprobs = False
            note("log-probabilities are off: this engine gives none")

    def _adapter(self, text: str) -> None:
        if text:
            path = Path(text).expanduser()
            self._load_adapter(path.resolve().name, path)
            if self.models is not None:
                self.models.current.adapters[self.adapter] = path
        else:
            self.adapter = ""
            note("answers come from the model alone")

    def _load_adapter(self, name: str, path: Path) -> None:
        if "adapters" not in self.engine.capabilities:
            raise UserError("this engine takes no adapters", fix="name the merged model")
        opened: Any = self.engine
        opened.load_adapter(name, path)
        self.adapter = name
        note(f"answers come with the adapter {name}")

    def _file(self, text: str) -> None:
        content = _read(text)
        self.attached.append(content)
        note(f"{Path(text).name} ({len(content)} characters) goes with the next message")

    def _save(self, text: str) -> None:
        path = _path(text)
        if path.exists() and path != self.saved:
            raise UserError(f"{path} exists", fix="take another name")
        tree = {"model": self.name, "messages": self._messages()}
        try:
            path.write_text(json.dumps(tree, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written", error.strerror or str(error)) from None
        self.saved = path
        note(f"saved {len(self.history)} messages in {path}")

    def _load(self, text: str) -> None:
        self.system, self.history = parse_conversation(_read(text), text)
        self.attached.clear()
        self.saved = _path(text)
        note(f"loaded {len(self.history)} messages")


def parse_conversation(text: str, name: str) -> tuple[str, list[dict[str, str]]]:
    """The system message and the turns of a file that /save wrote, or of a line that the chat page exported."""
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


def number(text: str, kind: type, low: float, high: float, example: str) -> Any:
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
