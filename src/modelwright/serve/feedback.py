"""What people think of answers: a rating becomes a line of the file that the user named, with the request and the answer.

The lines are those of `methods/formats/feedback.py`, which reads them as training data. Request and answer come from the server's
own memory, by the answer's id, so a client cannot make them up. Nothing is written unless somebody rates.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.methods.formats import FEEDBACK_SCHEMA
from modelwright.serve.errors import ApiError
from modelwright.serve.requests import ChatRequest, CompletionRequest
from modelwright.serve.wire import Wire

REMEMBERED_CHARS = 32_000_000
"""Text of answers and their requests that is remembered for ratings; the oldest are forgotten first."""
SENT = ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop")
"""Fields of a request that go into the file, where the client set them."""


class Rating(Wire):
    """The body of `POST /v1/feedback`; the last one of an answer counts."""

    id: str = Field(max_length=100)
    """The answer's `id`, as the API gave it."""
    rating: Literal["up", "down"]
    better: str | None = Field(None, max_length=200_000)
    """What the answer should have been."""
    reasons: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(None, max_length=10)


class _Answer(NamedTuple):
    model: str
    request: dict[str, Any]
    text: str
    finish: str

    @property
    def chars(self) -> int:
        return len(self.text) + len(json.dumps(self.request))


class Feedback:
    """The file of ratings, open for one server. `close` it."""

    def __init__(self, path: Path, model: str, model_key: str) -> None:
        self.path, self._model, self._key = path, model, model_key
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._chars = 0
        self._rated: set[str] = set()
        self._work = Lock()
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
            self._append(b"")
        except Timeout:
            raise UserError(f"another server writes to {path}", fix="give each its own --feedback FILE") from None
        except OSError as error:
            raise UserError(f"{path} cannot be written", error.strerror or str(error), "give --feedback another file") from None

    def close(self) -> None:
        self._lock.release()

    def remember(self, identity: str, body: ChatRequest | CompletionRequest, text: str, finish: str) -> None:
        """An answer as far as the client got it."""
        asked = {name: value for name, value in body.model_dump(exclude_none=True).items() if name in SENT}
        if isinstance(body, ChatRequest):
            asked = {"messages": [message.plain() for message in body.messages], **asked}
        else:
            asked = {"prompt": body.prompt[0], **asked}
        answer = _Answer(body.model, asked, text, finish)
        with self._work:
            self._answers[identity] = answer
            self._chars += answer.chars
            while self._chars > REMEMBERED_CHARS:
                self._chars -= self._answers.popitem(last=False)[1].chars

    def rate(self, rating: Rating) -> dict[str, Any]:
        """Write the rating; in the place of an earlier one of the same answer."""
        with self._work:
            answer = self._answers.get(rating.id)
            if answer is None:
                why = "it is too long ago, or was one of several, or was asked with tools, images or echo"
                raise ApiError(404, f"there is no answer {rating.id!r} to rate: {why}", param="id", code="answer_not_found")
            if rating.id in self._rated:
                self._take_out(rating.id)
            row = {
                "schema": FEEDBACK_SCHEMA,
                "id": rating.id,
                "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "model": answer.model,
                "model_key": self._key if answer.model == self._model else "",
                "request": answer.request,
                "answer": answer.text,
                "finish": answer.finish,
                **rating.model_dump(exclude={"id"}, exclude_none=True),
            }
            self._append(json.dumps(row).encode() + b"\n")
            self._rated.add(rating.id)
            return row

    def _append(self, line: bytes) -> None:
        """All of the line or, after a crash, a part that the next one does not join."""
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)  # what people wrote is theirs
        with os.fdopen(handle, "ab+") as file:
            if line and file.tell() and _last(file) != b"\n":
                file.write(b"\n")
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _take_out(self, identity: str) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with self.path.open("rb") as old, os.fdopen(handle, "wb") as new:
            new.writelines(line for line in old if not _is(line, identity))
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(self.path)


def _last(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def _is(line: bytes, identity: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False  # torn by a crash; it stays for the reader to count
    return isinstance(row, dict) and row.get("id") == identity
