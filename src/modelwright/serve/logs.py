"""What is told of each request: one record, from which its line in the log, its metrics and its trace are made. It holds no text
of prompts or answers.

Source: JSON lines, https://jsonlines.org; the names of fields follow those of our metrics.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from modelwright.serve.limits import Client

Form = Literal["text", "json"]

log = logging.getLogger("modelwright.serve.requests")


@dataclass(slots=True)
class Record:
    """One request, from its first byte to its last. Times are of `time.monotonic`, NaN where that did not happen."""

    client: Client = field(default_factory=Client)
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    method: str = ""
    path: str = ""
    """As it was asked; `endpoint` is the one of ours that it meant."""
    endpoint: str = "other"
    traceparent: str = ""
    status: int = 0
    model: str = ""
    user: str = ""
    """Whom the client asks for, in its own words."""
    began_s: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)
    """The same moment since 1970."""
    deadline_s: float = math.inf
    """The client wants nothing of it after this."""
    queued_s: float = math.nan
    """Seconds in the queue."""
    asked_s: float = math.nan
    """When the engine got it."""
    first_s: float = math.nan
    """When the first token came."""
    last_s: float = math.nan
    gaps_s: list[float] = field(default_factory=list)
    """Seconds for each token after the first."""
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = ""
    ended_s: float = math.nan

    def spend(self, tokens_in: int, tokens_out: int) -> None:
        """Count tokens against the key's limit too."""
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.client.spend(tokens_in + tokens_out)

    def row(self) -> dict[str, Any]:
        """For people and programs that read logs; times in seconds."""
        told: dict[str, Any] = {"request_id": self.id, "method": self.method, "path": self.path, "status": self.status}
        told |= {"key": self.client.name, "model": self.model, "user": self.user}
        told |= {"seconds": self.ended_s - self.began_s, "queue_s": self.queued_s,
                 "first_token_s": self.first_s - self.began_s, "prompt_tokens": self.tokens_in,
                 "answer_tokens": self.tokens_out, "finish": self.finish}  # fmt: skip
        told = {name: _short(value) for name, value in told.items()}
        return {name: value for name, value in told.items() if value not in ("", 0) and value is not None}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def _word(value: Any) -> str:
    """One without blanks, and without what a terminal would obey."""
    plain = not isinstance(value, str) or re.fullmatch(r"[!-~]*", value)
    return str(value) if plain else json.dumps(value)


_HERE: ContextVar[Record] = ContextVar("record")


def record() -> Record:
    """That of the request which is being served; one of nobody's where there is none."""
    return _HERE.get(None) or Record()


def begin(made: Record) -> None:
    """From here on this is what `record` gives in the task."""
    _HERE.set(made)


def named(given: str) -> str:
    """A request's id as the client chose it, or a new one where that could break a log."""
    return given if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", given) else Record().id


def tell(made: Record) -> None:
    log.info("%s", f"{made.method} {made.path}", extra={"row": made.row()})


class _Lines(logging.Formatter):
    """One line a message: JSON, or words for people."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form

    def format(self, line: logging.LogRecord) -> str:
        row: dict[str, Any] = line.__dict__.get("row", {})
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.created)) + f".{int(line.msecs):03d}Z"
        fault = self.formatException(line.exc_info) if line.exc_info and line.exc_info[0] else ""
        if self._form == "json":
            body = {"time": when, "level": line.levelname.lower(), "message": line.getMessage(), **row}
            return json.dumps(body | ({"error": fault} if fault else {}))
        words = [f"{name}={_word(value)}" for name, value in row.items() if name not in ("method", "path")]
        # A path may hold what a terminal would obey; JSON's escapes take it out.
        text = json.dumps(line.getMessage(), ensure_ascii=True)[1:-1] if row else line.getMessage()
        return " ".join([when, line.levelname.lower(), text, *words]) + (f"\n{fault}" if fault else "")


def start(form: Form | None) -> None:
    """What goes wrong in server and engines, and with a form each request too, as lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(form or "text"))
    for name, level in (("modelwright", "INFO" if form else "WARNING"), ("uvicorn", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
