"""Errors as OpenAI's API words them, `{"error": {message, type, param, code}}`, and as Anthropic's does under its own paths.

https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class ApiError(Exception):
    """A request that we refuse. `param` names the field; `retry_s` tells the client when to try again."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_s: int = 0) -> None:
        self.status, self.message, self.param, self.code, self.retry_s = status, message, param, code, retry_s
        super().__init__(message)

    def body(self, path: str = "") -> dict[str, Any]:
        """`path`: what was asked for, which says whose words to use."""
        if is_anthropic(path):
            kind = _ANTHROPIC.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        return {"error": {"message": self.message, "type": _TYPES.get(self.status, _kind(self.status)),
                          "param": self.param, "code": self.code}}  # fmt: skip

    def headers(self) -> dict[str, str]:
        headers = {"retry-after": str(self.retry_s)} if self.retry_s else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self, path: str = "") -> Response:
        return json_response(self.body(path), self.status, self.headers())


def is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
          503: "service_unavailable_error"}  # fmt: skip
_ANTHROPIC = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
              429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip


def _kind(status: int) -> str:
    return "server_error" if status >= 500 else "invalid_request_error"


def json_response(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: a lone surrogate that a request brought in must not break the answer that quotes it."""
    return Response(json.dumps(body, separators=(",", ":")), status, headers, "application/json")
