"""Traces of requests: one span each, and in it the wait, the reading of the prompt and the making of the answer. No texts.

Source: OpenTelemetry's conventions for generative AI, https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, and for
HTTP servers, .../semconv/http/http-spans/; a caller's `traceparent` by W3C Trace Context, https://www.w3.org/TR/trace-context/.
Spans are made when a request has ended, from the times in its record, so that nothing is done for them while tokens come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from modelwright.core.errors import missing_extra
from modelwright.serve.logs import Record

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/responses": "chat", "/v1/messages": "chat",
              "/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}  # fmt: skip


class Traces:
    """Sends spans to a collector in the background."""

    def __init__(self, exporter: Any = None, url: str | None = None) -> None:
        """To `exporter`, else by OTLP over HTTP to `url`, else to where OpenTelemetry's environment variables say."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "opentelemetry", "trace", "--trace") from None
        # Resource.create reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which win over ours.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "modelwright"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("modelwright.serve")

    def tell(self, seen: Record) -> None:
        """Make the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        def ns(at_s: float) -> int:
            return seen.began_ns + int((at_s - seen.began_s) * 1e9)

        caller = TraceContextTextMapPropagator().extract({"traceparent": seen.traceparent} if seen.traceparent else {})
        http: dict[str, Any] = {"http.request.method": seen.method, "http.route": seen.endpoint}
        http |= {"http.response.status_code": seen.status, "modelwright.request_id": seen.id}
        name = f"{seen.method} {seen.endpoint}"
        whole = self._tracer.start_span(name, caller, SpanKind.SERVER, {**http, **_ai(seen)}, start_time=ns(seen.began_s))
        if seen.status >= 500 or not seen.status:
            whole.set_attribute("error.type", str(seen.status or "cancelled"))
            whole.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(whole)
        parts = {"queue": (seen.asked_s - seen.queued_s, seen.asked_s), "prefill": (seen.asked_s, seen.first_s),
                 "decode": (seen.first_s, seen.last_s)}  # fmt: skip
        for part, (begin_s, end_s) in parts.items():
            if not math.isnan(end_s - begin_s):
                self._tracer.start_span(part, inside, start_time=ns(begin_s)).end(ns(end_s))
        whole.end(ns(seen.ended_s))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _ai(seen: Record) -> dict[str, Any]:
    """What the conventions ask of a request to a model."""
    if seen.endpoint not in OPERATIONS:
        return {}
    told: dict[str, Any] = {"gen_ai.operation.name": OPERATIONS[seen.endpoint], "gen_ai.provider.name": "modelwright"}
    told |= {"gen_ai.request.model": seen.model, "gen_ai.response.model": seen.model}
    told |= {"gen_ai.usage.input_tokens": seen.tokens_in, "gen_ai.usage.output_tokens": seen.tokens_out}
    if seen.user:
        told["user.id"] = seen.user
    if seen.finish:
        told["gen_ai.response.finish_reasons"] = [seen.finish]
    if not math.isnan(seen.first_s):
        told["gen_ai.response.time_to_first_chunk"] = seen.first_s - seen.began_s
    return told


def open_traces(url: str | None, environment: Callable[[str], str | None]) -> Traces | None:
    """Off unless a collector's URL is given, or OpenTelemetry's own variables name one."""
    if url:
        return Traces(url=url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1/traces")
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return Traces() if any(map(environment, names)) else None
