"""The law of use for engines that ask a server: nothing goes over a network, and what would have gone is seen."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx

from modelwright.core.spec import allow_code
from modelwright.methods.engines import Sampling, open_engine, request_of
from modelwright.methods.engines import _http as http
from modelwright.methods.engines import _started as started
from modelwright.methods.engines._providers import PROVIDERS
from tests.law_kit import Seen

KEYS = {provider.key: f"key-of-{name}" for name, provider in PROVIDERS.items()} | {"MY_KEY": "mine"}
QUESTIONS = [f"question {n}" for n in range(12)]
BUSY = 2
"""Times that every question is sent away at first."""
PROGRAM = "./my-server"
BASES: dict[str, Any] = {
    "openai": {"provider": "openai", "model": "m"},
    "openai.cache_bytes": {"provider": "openai", "model": "m", "cache": "answers"},
    "ollama": {"model": "m"},
    "lmstudio": {"model": "m"},
}
OTHERS = {f"{kind}.command": PROGRAM for kind in ("vllm", "sglang")}


def files(folder: Path) -> None:
    """A program that a recipe was allowed to run; it never is."""
    (folder / PROGRAM).write_text("#!/bin/sh\nexit 1\n")
    allow_code(folder / PROGRAM)


class _Wire:
    """In place of the network, of waits and of programs."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.effort: list[Any] = []
        self.flags: list[Any] = []
        """Of a program's arguments those that change answers."""

    def answer(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        if request.method == "GET":
            names = ("m", "small-chat", "model")
            return httpx.Response(200, json={"data": [{"id": name, "max_model_len": 512} for name in names]})
        asked = f"{url} {request.content.decode()}"
        self.sent[asked] += 1
        if self.sent[asked] <= BUSY and request.url.port != STARTED_PORT:  # servers of ours are not asked again
            return httpx.Response(503, json={"error": {"message": "busy"}})
        body = json.loads(request.content)
        text = f"said {body['messages'][-1]['content']}"
        told = {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []}]} if body.get("logprobs") else None
        choice = {"finish_reason": "stop", "message": {"content": text}, "logprobs": told}
        return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    def client(self, make: Any) -> Any:
        def made(**fields: Any) -> Any:
            self.effort += [fields["headers"], str(fields["timeout"]), fields["limits"].max_connections]
            return make(transport=httpx.MockTransport(self.answer), **fields)

        return made

    def begin(self, program: Any) -> None:
        hidden = (program._start.argv[2], str(program._log.parent))
        argv = ["…" if any(text in part for text in hidden) or (part.isdigit() and int(part) > 9999) else part
                for part in program._start.argv]  # fmt: skip
        self.effort += [argv, program._log.name, program._start_s]
        program._process = SimpleNamespace(poll=lambda: None, stdin=io.BytesIO(), wait=lambda timeout=None: 0)
        program.began_s = 0.0
        flags = ("--dtype", "--max-model-len", "--context-length")
        self.flags = [pair for pair in itertools.pairwise(argv) if pair[0] in flags]


STARTED_PORT = 45678


def see(spec: Any, bench: Any) -> Seen:
    """What is sent, where, and what comes back; and how it was asked."""
    wire = _Wire()
    with ExitStack() as stack:
        for replaced in _replaced(wire):
            stack.enter_context(replaced)
        stack.enter_context(chdir(bench.fresh()))
        engine: Any = stack.enter_context(open_engine(bench.model if "start" in dir(spec) else Path("m"), spec))
        texts = []
        for text in (*QUESTIONS, QUESTIONS[-1]):
            asked = request_of(engine, [{"role": "user", "content": text}], Sampling(300))
            texts.append(engine.generate([asked])[0].text)
        kept = len(list(Path("answers").glob("*"))) if Path("answers").exists() else 0
        wire.effort += [sum(wire.sent.values()), kept, list(engine.usage)]
        outcome = [texts, sorted(wire.sent), engine.context, sorted(engine.capabilities), wire.flags]
        return Seen(outcome, effort=wire.effort)


def _replaced(wire: _Wire) -> Iterator[Any]:
    def wait(call: Any, seconds: float) -> None:
        if seconds >= 1:  # what a server of a crowd would get; back-off is drawn by chance
            wire.effort.append(round(seconds))

    yield patch.dict(os.environ, KEYS)
    yield patch.object(httpx, "Client", wire.client(httpx.Client))
    yield patch.object(http.Call, "wait", wait)
    yield patch.object(http, "delay_s", lambda tried, headers: 0.0)
    yield patch.object(started.Program, "begin", lambda program: wire.begin(program))  # noqa: PLW0108 (a method of the class)
    yield patch.object(started, "_free_port", lambda: STARTED_PORT)
    yield patch.object(shutil, "which", lambda name: f"/bin/{name}")
