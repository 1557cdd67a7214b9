"""`modelwright serve`: models behind OpenAI's and Anthropic's HTTP APIs and a chat page, until a signal comes."""

from __future__ import annotations

import argparse
import math
import os
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modelwright.cli import _model
from modelwright.core.errors import UserError, missing_extra
from modelwright.core.units import bytes_of, bytes_text

if TYPE_CHECKING:
    from modelwright.methods.engines import Engine, EngineSpec
    from modelwright.serve.guard import Rules
    from modelwright.serve.limits import Limits
    from modelwright.serve.models import Models

ABOUT = "Serve models over HTTP: endpoints as OpenAI's and Anthropic's under /v1, and a chat page at /."


def parser() -> argparse.ArgumentParser:
    parse = _model.parser("serve", ABOUT, needed=False)
    parse.add_argument("--host", default="127.0.0.1", help="address to listen on; other machines only with a key (%(default)s)")
    parse.add_argument("--port", type=int, default=8080, help="0 takes a free one (%(default)s)")
    parse.add_argument(
        "--feedback",
        type=Path,
        metavar="FILE.jsonl",
        help="keep people's ratings, with request and answer, in FILE (none are kept)",
    )
    _models(parse.add_argument_group("models"))
    _keys(parse.add_argument_group("keys and limits"))
    _work(parse.add_argument_group("requests"))
    _told(parse.add_argument_group("what is told"))
    return parse


def _models(parse: argparse._ArgumentGroup) -> None:
    parse.add_argument("--name", help="the first model's name for clients (from the recipe or file)")
    adapter = "an adapter (PEFT's folder, or GGUF under llama.cpp), asked for by its name; of the first model unless told"
    _model.add_more(parse, "one more model, opened when it is asked for", adapter)
    parse.add_argument(
        "--memory", metavar="SIZE", help="of all open models together, such as 8GB; idle ones make room (no limit)"
    )
    parse.add_argument("--admin", action="store_true", help="let adapters be loaded and unloaded over HTTP")
    parse.add_argument(
        "--in-process",
        action="store_true",
        help="run engines in the server's own process (in one of their own, started again when it dies)",
    )


def _keys(parse: argparse._ArgumentGroup) -> None:
    parse.add_argument("--api-key-file", type=Path, metavar="FILE", help="ask clients for the key in FILE")
    parse.add_argument(
        "--keys", type=Path, metavar="FILE", help="ask clients for one of the keys in FILE, read again when it changes"
    )
    parse.add_argument(
        "--new-key", metavar="NAME", help="add a key to the file of --keys, with the limits given here, print it once, and end"
    )
    parse.add_argument(
        "--requests-per-minute", type=int, metavar="N", help="of the new key, or of everybody where keys have no file"
    )
    parse.add_argument("--tokens-per-minute", type=int, metavar="N", help="the same, of prompts and answers together")
    parse.add_argument("--concurrent", type=int, metavar="N", help="the same: answers at a time")
    parse.add_argument(
        "--only-model", action="append", metavar="NAME", help="the same: a model that may be used; may be repeated"
    )
    parse.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of ORIGIN ask, such as https://app.example; may be repeated (none)",
    )


def _work(parse: argparse._ArgumentGroup) -> None:
    parse.add_argument(
        "--temperature", type=float, default=0.0, help="of requests that set none; 0 is greedy, OpenAI's is 1 (%(default)s)"
    )
    parse.add_argument("--parallel", type=int, default=4, help="answers at a time (%(default)s)")
    parse.add_argument("--queue", type=int, default=32, help="requests that may wait; more get 429 (%(default)s)")
    parse.add_argument("--queue-seconds", type=float, default=math.inf, metavar="S", help="longest wait; then 429 (no limit)")
    parse.add_argument(
        "--deadline-seconds",
        type=float,
        default=math.inf,
        metavar="S",
        help="longest time for a request; clients may ask for less with X-Request-Timeout (no limit)",
    )
    parse.add_argument(
        "--stall-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="hang up on clients that take nothing of their answer, or say nothing, for so long (%(default)s)",
    )
    parse.add_argument("--max-request-bytes", type=int, default=1_000_000, metavar="N", help="(%(default)s)")
    parse.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="S", help="time to finish answers after a signal (%(default)s)"
    )


def _told(parse: argparse._ArgumentGroup) -> None:
    parse.add_argument("--log", choices=("text", "json"), help="a line on standard error for each request, without its texts")
    parse.add_argument(
        "--trace",
        metavar="URL",
        help="send spans to this OpenTelemetry collector (to that of OTEL_EXPORTER_OTLP_ENDPOINT, where set)",
    )


def main(args: list[str]) -> int:
    parse = parser()
    given = parse.parse_args(args)
    _check(parse, given)
    try:
        from modelwright.serve import run
        from modelwright.serve.asking import Settings
        from modelwright.serve.feedback import Feedback
        from modelwright.serve.tracing import open_traces
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("fastapi", "uvicorn", "starlette", "anyio"):
            raise
        raise missing_extra(package, "serve", "`modelwright serve`") from None
    if given.new_key:
        return _new_key(given)
    rules = _rules(given)
    address = run.Address(given.host, given.port)
    run.bind(address, rules.guarded).close()  # a port in use is told before the model is loaded
    settings = Settings(given.temperature, given.parallel, given.queue, given.queue_seconds)
    settled = run.Settled(given.drain_seconds, given.stall_seconds, given.log, given.admin)
    with ExitStack() as stack:
        models, first = _open_models(given, stack)
        feedback = stack.enter_context(closing(Feedback(given.feedback, first.name, first.key))) if given.feedback else None

        def announce(url: str) -> None:
            kept = f"\nratings go to {given.feedback}, with request and answer" if feedback else ""
            print(f"serving {', '.join(models.names)} at {url}/v1\nchat page {url}/ (Ctrl-C stops){kept}", flush=True)

        finished = run.serve(
            models,
            first.name,
            address,
            settings=settings,
            rules=rules,
            settled=settled,
            traces=open_traces(given.trace, os.environ.get),
            feedback=feedback,
            on_ready=announce,
        )
    print("stopped" if finished else "stopped; answers under way were cancelled", file=sys.stderr)
    return 0 if finished else 130


def _check(parse: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is opened."""
    least: dict[str, float] = dict.fromkeys(("queue", "drain_seconds", "queue_seconds", "temperature"), 0)
    least |= dict.fromkeys(("deadline_seconds", "stall_seconds"), 0.1)
    least |= dict.fromkeys(("parallel", "max_request_bytes", "requests_per_minute", "tokens_per_minute", "concurrent"), 1)
    for name, minimum in least.items():
        value = getattr(given, name)
        if value is not None and not value >= minimum:
            parse.error(f"--{name.replace('_', '-')} takes {minimum:g} or more")
    if given.temperature > 2:
        parse.error("--temperature takes 0 to 2")
    for origin in given.allow_origin:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not host or set(host) & set("/*, "):
            parse.error(f"--allow-origin takes an origin such as https://app.example, not {origin!r}")
    limits = (given.requests_per_minute, given.tokens_per_minute, given.concurrent, given.only_model)
    if given.keys and not given.new_key and any(limits):
        parse.error("keys of a file have their own limits: give them with --new-key, or change the file")
    if given.new_key is not None and (not given.keys or given.model or given.models):
        parse.error("--new-key NAME takes --keys FILE and limits, and no model")
    if not given.new_key and not given.model and not given.models:
        parse.error(f"name a model: {_model.MODEL}")


def _limits(given: argparse.Namespace) -> Limits:
    from modelwright.serve.limits import Limits

    models = tuple(given.only_model) if given.only_model else None
    return Limits(given.requests_per_minute, given.tokens_per_minute, given.concurrent, models)


def _new_key(given: argparse.Namespace) -> int:
    from modelwright.serve.keys import new_key

    key = new_key(given.keys, given.new_key, _limits(given))
    print(f"the key of {given.new_key}, of which {given.keys} has a digest only; it is shown this once", file=sys.stderr)
    print(key)
    return 0


def _rules(given: argparse.Namespace) -> Rules:
    from modelwright.serve import run
    from modelwright.serve.guard import Rules
    from modelwright.serve.keys import Keys

    return Rules(
        api_key=run.read_api_key(given.api_key_file) if given.api_key_file else None,
        body_bytes=given.max_request_bytes,
        keys=Keys(given.keys) if given.keys else None,
        limits=_limits(given),
        origins=frozenset(origin.lower() for origin in given.allow_origin),
        deadline_s=given.deadline_seconds,
    )


class _First(NamedTuple):
    """The model that is opened at once."""

    name: str
    key: str
    """Of its artifact."""


def _open_models(given: argparse.Namespace, stack: ExitStack) -> tuple[Models, _First]:
    """All that can be asked for, the first one open; closed with the stack."""
    from modelwright.core.spec import allow_code
    from modelwright.serve.models import Models, Source, memory_bytes

    for file in given.allow_code:
        allow_code(file)
    found = []
    if given.model:
        path, name = _model.resolve_model(given.model, given.overrides, given.store, given.allow_code)
        found.append((given.name or name, path))
    for text in given.models:
        name, place = _model.pair("--model", text)
        found.append((name, _model.resolve_model(place, (), given.store, given.allow_code).path))
    specs = [_model.chosen(path, name, given.engine, serve=True) for name, path in found]
    opens = [partial(_open, path, spec, not given.in_process) for (_, path), spec in zip(found, specs, strict=True)]
    sources = [Source(name, open_, memory_bytes(path)) for (name, path), open_ in zip(found, opens, strict=True)]
    models = Models(sources, _memory_bytes(given.memory, sources[0].bytes) if given.memory else 0)
    for text in given.adapters:
        name, folder = _model.pair("--adapter", text)
        base, _, name = name.rpartition(":")
        if not Path(folder).exists():
            fix = "give its folder, with adapter_config.json in it, or a GGUF file where llama.cpp answers"
            raise UserError(f"there is no adapter at {folder!r}", fix=fix)
        models.add(name, base or found[0][0], Path(folder))
    first = opens[0]()  # a fault of it is told before anything is served
    stack.callback(first.close)
    models.hold(found[0][0], first)
    return models, _First(found[0][0], _model.key_of(found[0][1]))


def _memory_bytes(text: str, least_bytes: int) -> int:
    try:
        found = int(bytes_of(text))
    except ValueError:
        raise UserError(f"--memory {text}: no size", fix="such as 800MB or 8GB") from None
    if found < least_bytes:
        raise UserError(f"--memory {text}: the first model takes {bytes_text(least_bytes)}", fix="give more, or a smaller model")
    return found


def _open(path: Path, spec: EngineSpec, supervised: bool) -> Engine:
    from modelwright.methods.engines import open_with

    return open_with(spec, path, supervised)
