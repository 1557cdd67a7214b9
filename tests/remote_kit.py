"""A server with OpenAI's API for tests: it says what was asked, and misbehaves where the question tells it to.

Run as a program it is a `vllm` or `sglang`: `python remote_kit.py serve MODEL --port N …`.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, models: Any = None, key: str = "") -> None:
        self.models = models or [{"id": "tiny", "max_model_len": 512}]
        self.key = key
        self.seen: list[dict[str, Any]] = []
        """Path, headers and body of each request."""
        self.script: list[Any] = []
        """What the next answers are: (status, headers, body), or a word of `_Handler._special`."""
        self.gone = threading.Event()
        """A client went away in the middle of a stream."""
        self.active = self.most_active = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[Fake]:
        thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._allowed():
            self._json(200, {"object": "list", "data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
            step = server.script.pop(0) if server.script else None
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            if not self._allowed() or self._special(step):
                return
            self._answer(body, step)
        finally:
            with server.lock:
                server.active -= 1

    def _allowed(self) -> bool:
        if self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": f"wrong key {self.headers.get('authorization')}", "code": "invalid_api_key"}})
            return False
        return True

    def _special(self, step: Any) -> bool:
        if isinstance(step, tuple):
            self._json(step[0], step[2], step[1])
        elif step == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif step == "die":
            os._exit(1)
        else:
            return False
        return True

    def _answer(self, body: dict[str, Any], step: Any) -> None:
        names = [model["id"] for model in self.server.models]
        if body["model"] not in names:
            self._json(404, {"error": {"message": f"The model {body['model']} does not exist", "code": "model_not_found"}})
            return
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        words = [f"said {asked}", " and", " more"]
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        finish = "length" if limit < len(words) else "stop"
        words = words[:limit]
        told = self._logprobs(words) if body.get("logprobs") else [None] * len(words)
        if not body.get("stream"):
            if step == "slow":
                time.sleep(0.2)
            said = (
                {"message": {"role": "assistant", "content": "".join(words)}} if "messages" in body else {"text": "".join(words)}
            )
            entries = [entry for place in told if place for entry in place["content"]]
            choice = {"index": 0, "finish_reason": finish, "logprobs": {"content": entries} if entries else None, **said}
            self._json(200, {"choices": [choice], "usage": USAGE})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            self._events(body, words, told, finish, step)
        except OSError:
            self.server.gone.set()

    def _events(self, body: dict[str, Any], words: list[str], told: list[Any], finish: str, step: Any) -> None:
        for place, word in enumerate(words * (10_000 if step == "endless" else 1)):
            piece = {"delta": {"content": word}} if "messages" in body else {"text": word}
            logprobs = told[place % len(words)]
            self._event({"choices": [{"index": 0, "finish_reason": None, "logprobs": logprobs, **piece}]})
            if step == "endless":
                time.sleep(0.01)
            if step == "torn":
                return
        self._event({"choices": [{"index": 0, "finish_reason": finish, "delta": {}, "text": ""}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({"choices": [], "usage": USAGE})
        self.wfile.write(b": a comment\n\ndata: [DONE]\n\n")

    def _event(self, tree: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(tree).encode() + b"\n\n")
        self.wfile.flush()

    def _logprobs(self, words: list[str]) -> list[Any]:
        top = [{"token": "no", "logprob": -2.0}]
        return [{"content": [{"token": word, "logprob": -0.5, "top_logprobs": top}]} for word in words]

    def _json(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(tree).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def main(args: list[str]) -> None:
    """A server program: its ways are in the environment, so that its arguments stay those of the real one."""
    ways = json.loads(os.environ.get("FAKE_WAYS", "{}"))
    if "record" in ways:
        with open(ways["record"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"args": args, "key": os.environ.get("VLLM_API_KEY", ""), "pid": os.getpid()}) + "\n")
    print("loading the weights", flush=True)
    if ways.get("dies"):
        print("ValueError: the model's architecture is not known", flush=True)
        sys.exit(3)
    time.sleep(ways.get("slow_s", 0))
    given = dict(itertools.pairwise(args))
    key = os.environ.get("VLLM_API_KEY", "")
    if "--config" in given:
        with open(given["--config"], encoding="utf-8") as file:
            key = json.load(file)["api-key"]
    fake = Fake(int(given["--port"]), [{"id": given["--served-model-name"], "max_model_len": 512}], key)
    fake.script = ways.get("script", [])
    fake.serve_forever(0.01)


if __name__ == "__main__":
    main(sys.argv[1:])
