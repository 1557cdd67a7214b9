"""Servers that we start ourselves and talk to over HTTP: watched, started again once, ended with us. Never imported.

Each has an environment of its own, because its torch is not ours. It listens on 127.0.0.1 alone, on a free port, with a
random key.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator

from modelwright.core.errors import UserError
from modelwright.core.spec import Runtime, allowed_file
from modelwright.methods.engines import Completion, Delta, EngineDied
from modelwright.methods.engines._http import Call, Client, Lost, Server
from modelwright.methods.engines._providers import Provider
from modelwright.methods.engines._remote import Remote, RemoteSpec

log = logging.getLogger("modelwright.engines")
LAST_LINES = 12
LOOK_S, TELL_S = 0.1, 20.0
"""Between two looks at a server that starts, and between two lines about it."""
CALM_S = 600.0
"""A server that dies twice, each time sooner than this, is not started again."""
DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Start(NamedTuple):
    """A program to run."""

    argv: Sequence[str]
    env: Mapping[str, str]


class StartedSpec(RemoteSpec):
    """Settings of every server that we start."""

    program: ClassVar[str] = ""
    """Its command."""

    parallel: Annotated[int, Runtime] = Field(64, ge=1, le=1024, examples=[2])
    """Requests under way at once; the server batches them. More: higher throughput, and each answer is slower."""
    command: Annotated[str, Runtime] = Field("", examples=["./my-server"])
    """The program, where it is not on PATH: a file that `--allow-code FILE` permits, because a recipe may not run programs by
    itself."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field("auto", examples=["bf16"])
    """Type of weights and products; auto: that of the model's files."""
    memory_frac: Annotated[float, Runtime] = Field(0.9, gt=0, le=1, examples=[0.5])
    """Share of the GPU's memory that the server may take. More: more answers at once; less leaves room for others. Default: that
    of vLLM."""
    start_s: Annotated[float, Runtime] = Field(900.0, gt=0, examples=[60.0])
    """Longest time until it answers, in seconds; it compiles and captures graphs, minutes for a large model."""
    log: Annotated[str, Runtime] = Field("", examples=["server.log"])
    """File that keeps what the server prints; unset: a temporary one, which goes with the engine."""

    @field_validator("command")
    @classmethod
    def _is_allowed(cls, value: str) -> str:
        return str(allowed_file(Path(value))[0]) if value else ""

    def found(self) -> str | None:
        """The program's path."""
        return self.command or shutil.which(self.program)

    def accepts(self, model: Path) -> str | None:
        if (model / "config.json").is_file() and self.found() is None:
            return f"there is no program {self.program} on PATH"
        return self.suits(model)

    def suits(self, model: Path) -> str | None:
        if not (model / "config.json").is_file():
            return "no config.json in it"
        return None if any(model.glob("*.safetensors")) else "no *.safetensors in it"

    def start(self, program: str, model: Path, name: str, port: int, folder: Path, key: str) -> Start:
        """How it is run; `folder` is for files of its own, readable by us alone."""
        raise NotImplementedError


class Program:
    """One server process, and its next life."""

    def __init__(self, name: str, start: Start, client: Client, log_file: Path, start_s: float) -> None:
        self._name, self._start, self._client, self._log, self._start_s = name, start, client, log_file, start_s
        self._process: subprocess.Popen[bytes]
        self.began_s = 0.0

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """Returns when it answers."""
        guard = [sys.executable, "-I", str(Path(__file__).with_name("_guard.py"))]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [*guard, *self._start.argv], stdin=subprocess.PIPE, stdout=out, stderr=out, env={**os.environ, **self._start.env}
            )
        self.began_s = time.monotonic()
        try:
            self._wait()
        except BaseException:
            self.end()
            raise

    def _wait(self) -> None:
        log.warning("%s starts; what it prints is in %s", self._name, self._log)
        told_s = 0.0
        while True:
            with contextlib.suppress(Lost):
                self._client.models()
                return
            waited_s = time.monotonic() - self.began_s
            if not self.running:
                raise UserError(f"{self._name} ended before it answered", self.ending(), "see what it printed last, above")
            if waited_s > self._start_s:
                fix = "raise `start_s`, or see what it waits for"
                raise UserError(f"{self._name} did not answer within {self._start_s:g} s", self.lines(), fix)
            if waited_s - told_s > TELL_S:
                told_s = waited_s
                log.warning("%s is not ready after %.0f s: %s", self._name, waited_s, self.lines().rpartition("\n")[2])
            time.sleep(LOOK_S)

    def died(self) -> bool:
        """Whether a lost connection means that; its end may be a moment behind."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        return not self.running

    def ending(self) -> str:
        code = self._process.poll()
        how = f"it was ended by signal {code - 128}" if code is not None and code > 128 else f"it ended with code {code}"
        return f"{how}; the last lines that it printed:\n{self.lines()}"

    def lines(self) -> str:
        with self._log.open(errors="replace") as file:
            return "".join(deque(file, LAST_LINES)).rstrip()

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # the guard asks it to end, waits, and kills
        self._process.wait()


class Started(Remote):
    """See `modelwright.methods.engines.Engine`."""

    def __init__(self, spec: StartedSpec, provider: Provider, model: Path) -> None:
        program = spec.found()
        if program is None or (reason := spec.accepts(model)):
            why = f"there is no program {spec.program} on PATH" if program is None else reason
            fix = f"install {spec.program} in an environment of its own and put it on PATH, or take `engine: native`"
            raise UserError(f"{spec.program} cannot open {model.name}", why or "", fix)
        self._folder = Path(tempfile.mkdtemp(prefix="modelwright-"))
        self._again = threading.Lock()
        self._quick = False
        """It has died soon after its start."""
        name, port, key = model.resolve().name, _free_port(), secrets.token_urlsafe(32)
        server = Server(provider.name, f"http://127.0.0.1:{port}/v1", key, "", spec.timeout_s, 0, spec.parallel)
        log_file = Path(spec.log).expanduser() if spec.log else self._folder / "log.txt"
        start = spec.start(program, model.resolve(), name, port, self._folder, key)
        self._looks = Client(server)
        self._program = Program(provider.name, start, self._looks, log_file, spec.start_s)
        try:
            self._program.begin()
            super().__init__(spec, provider, server, name, chat=has_template(model), images=looks(model))
        except BaseException:
            self._leave()
            raise

    def stream(self, path: str, body: dict[str, Any], call: Call) -> Iterator[Delta]:
        self._alive()
        try:
            yield from super().stream(path, body, call)
        except Lost as error:
            raise self._fault(error) from None

    def _whole(self, path: str, body: dict[str, Any], call: Call) -> Completion:
        self._alive()
        try:
            return super()._whole(path, body, call)
        except Lost as error:
            raise self._fault(error) from None

    def close(self) -> None:
        super().close()
        self._program.end()
        self._leave()

    def _leave(self) -> None:
        self._looks.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _alive(self) -> None:
        with self._again:
            if self._program.running:
                return
            quick = time.monotonic() - self._program.began_s < CALM_S
            if quick and self._quick:
                raise EngineDied(f"{self._provider.name} died twice", self._program.ending(), "mend what its last lines tell")
            self._quick = quick
            log.warning("%s died: %s", self._provider.name, self._program.ending())
            self._program.begin()

    def _fault(self, error: Lost) -> UserError:
        if not self._program.died():
            return error
        return EngineDied(f"{self._provider.name} died", self._program.ending(), "ask again: it is started once more")


def has_template(model: Path) -> bool:
    """A chat template lies in a file of its own or in the tokenizer's settings."""
    if (model / "chat_template.jinja").is_file() or (model / "chat_template.json").is_file():
        return True
    settings = model / "tokenizer_config.json"
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def looks(model: Path) -> bool:
    """The model has a part that looks at images."""
    return "vision_config" in json.loads((model / "config.json").read_text(encoding="utf-8"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
