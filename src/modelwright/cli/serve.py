"""`modelwright serve`: the model behind OpenAI's HTTP API and a chat page, until a signal comes."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from modelwright.cli import _model
from modelwright.core.errors import missing_extra

ABOUT = "Serve a model over HTTP: OpenAI-compatible endpoints under /v1, and a chat page at /."


def parser() -> argparse.ArgumentParser:
    parse = _model.parser("serve", ABOUT)
    parse.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other machines only with --api-key-file (%(default)s)"
    )
    parse.add_argument("--port", type=int, default=8080, help="0 takes a free one (%(default)s)")
    parse.add_argument("--name", help="the model's name for clients (from the recipe or file)")
    parse.add_argument(
        "--temperature", type=float, default=0.0, help="of requests that set none; 0 is greedy, OpenAI's is 1 (%(default)s)"
    )
    parse.add_argument("--parallel", type=int, default=4, help="answers at a time (%(default)s)")
    parse.add_argument("--queue", type=int, default=32, help="requests that may wait; more get 429 (%(default)s)")
    parse.add_argument("--max-request-bytes", type=int, default=1_000_000, help="(%(default)s)")
    parse.add_argument("--drain-seconds", type=float, default=30.0, help="time to finish answers after a signal (%(default)s)")
    parse.add_argument("--api-key-file", type=Path, metavar="FILE", help="ask clients for the key in FILE")
    parse.add_argument(
        "--feedback",
        type=Path,
        metavar="FILE.jsonl",
        help="keep people's ratings, with request and answer, in FILE (none are kept)",
    )
    parse.add_argument("--log-requests", action="store_true", help="a line on standard error for each request")
    return parse


def main(args: list[str]) -> int:
    parse = parser()
    given = parse.parse_args(args)
    if (
        given.parallel < 1
        or given.queue < 0
        or given.max_request_bytes < 1
        or given.drain_seconds < 0
        or not 0 <= given.temperature <= 2
    ):
        parse.error(
            "--parallel and --max-request-bytes take 1 or more, --queue and --drain-seconds 0 or more, --temperature 0 to 2"
        )
    try:
        from modelwright.serve import run
        from modelwright.serve.app import Settings
        from modelwright.serve.feedback import Feedback
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise
        raise missing_extra(package, "serve", "`modelwright serve`") from None
    key = run.read_api_key(given.api_key_file) if given.api_key_file else None
    address = run.Address(given.host, given.port)
    run.bind(address, key).close()  # a port in use is told before the model is loaded
    settings = Settings(given.temperature, given.parallel, given.queue)
    with ExitStack() as stack:
        engine, found = stack.enter_context(_model.open_model(given))
        name = given.name or found
        feedback = None
        if given.feedback:
            model = _model.resolve_model(given.model, given.overrides, given.store, given.allow_code)
            feedback = stack.enter_context(closing(Feedback(given.feedback, name, _model.key_of(model.path))))

        def announce(url: str) -> None:
            kept = f"\nratings go to {given.feedback}, with request and answer" if feedback else ""
            print(f"serving {name} at {url}/v1\nchat page {url}/ (Ctrl-C stops){kept}", flush=True)

        finished = run.serve(
            engine,
            name,
            address,
            settings=settings,
            api_key=key,
            body_bytes=given.max_request_bytes,
            drain_s=given.drain_seconds,
            log_requests=given.log_requests,
            on_ready=announce,
            feedback=feedback,
        )
    print("stopped" if finished else "stopped; answers under way were cancelled", file=sys.stderr)
    return 0 if finished else 130
