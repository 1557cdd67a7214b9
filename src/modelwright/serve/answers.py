"""What we answer: the bodies and stream chunks of OpenAI's two completion endpoints.

Sources: https://platform.openai.com/docs/api-reference/chat/object, .../chat/streaming and .../completions/object.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, NamedTuple

from modelwright.methods.engines import Delta, Engine, Request, without_lead


class Job(NamedTuple):
    """A request that passed every check, ready for the engine."""

    request: Request
    model: str
    chat: bool
    stream: bool
    usage: bool
    """Send the token counts at the end of a stream."""
    logprobs: bool
    id: str
    created: int


def new_id(chat: bool) -> tuple[str, int]:
    return f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", int(time.time())


def _base(job: Job, chunk: bool) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if job.chat else "text_completion"
    return {"id": job.id, "object": kind, "created": job.created, "model": job.model}


def usage(job: Job, completion_tokens: int) -> dict[str, int]:
    prompt_tokens = len(job.request.tokens)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def logprobs(job: Job, engine: Engine, deltas: list[Delta], offset: int) -> dict[str, Any] | None:
    """The tokens' log-probabilities; `offset` is where their text begins in the answer, in characters."""
    if not job.logprobs:
        return None
    pairs = [pair for delta in deltas for pair in zip(delta.tokens, delta.logprobs, strict=True)]
    texts = [engine.decode([token]) for token, _ in pairs]
    if job.chat:
        # A token that is part of a character has no text of its own, and its bytes are unknown: null, as the API allows.
        content = [
            {
                "token": text,
                "logprob": value,
                "bytes": None if "\ufffd" in text else list(text.encode()),
                "top_logprobs": [],
            }
            for text, (_, value) in zip(texts, pairs, strict=True)
        ]
        return {"content": content, "refusal": None}
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {"tokens": texts, "token_logprobs": [value for _, value in pairs], "top_logprobs": None, "text_offset": offsets}


def text(job: Job, deltas: list[Delta]) -> str:
    """What the answer says."""
    return "".join(delta.text for delta in (without_lead(deltas) if job.chat else deltas))


def whole(job: Job, engine: Engine, deltas: list[Delta]) -> dict[str, Any]:
    """The answer in one piece."""
    said = text(job, deltas)
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish(deltas), "logprobs": logprobs(job, engine, deltas, 0)}
    if job.chat:
        choice["message"] = {"role": "assistant", "content": said, "refusal": None}
    else:
        choice["text"] = said
    return _base(job, False) | {"choices": [choice], "usage": usage(job, sum(len(delta.tokens) for delta in deltas))}


class Cancelled(RuntimeError):
    """The engine gave an answer up."""


def finish(deltas: list[Delta]) -> str:
    """`stop` or `length`."""
    reason = deltas[-1].finish if deltas else None
    if reason == "cancelled":
        raise Cancelled("the engine cancelled the answer")
    if reason not in ("stop", "length"):
        raise RuntimeError(f"the engine ended an answer with {reason!r}")
    return reason


def chunk(job: Job, engine: Engine, delta: Delta | None, *, offset: int = 0, first: bool = False) -> bytes:
    """One server-sent event with a piece of the answer; without a piece, the header of a chat."""
    end = finish([delta]) if delta and delta.finish else None
    choice: dict[str, Any] = {"index": 0, "finish_reason": end,
                              "logprobs": logprobs(job, engine, [delta], offset) if delta and delta.tokens else None}  # fmt: skip
    piece = delta.text if delta else ""
    if job.chat:
        choice["delta"] = {"role": "assistant", "content": ""} if first else {"content": piece} if piece or not end else {}
    else:
        choice["text"] = piece
    return event(_base(job, True) | {"choices": [choice]} | ({"usage": None} if job.usage else {}))


def usage_chunk(job: Job, completion_tokens: int) -> bytes:
    return event(_base(job, True) | {"choices": [], "usage": usage(job, completion_tokens)})


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
