"""Vectors of texts, and documents ranked by how near they are to a question.

Sources: https://platform.openai.com/docs/api-reference/embeddings; https://docs.cohere.com/reference/rerank and
https://api.jina.ai/redoc for the form of ranking. Ours is by the cosine of two embeddings, which the answer says.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Any, Literal, cast

from anyio.to_thread import run_sync
from pydantic import BeforeValidator, Field

from modelwright.methods.engines import Embedding, Engine
from modelwright.serve.answers import Job, Learn, new_id
from modelwright.serve.asking import Asker, known, needs
from modelwright.serve.errors import ApiError
from modelwright.serve.requests import Ids, as_texts
from modelwright.serve.wire import Somebody, Wire
from modelwright.serve.work import Call, Piece

MOST_TEXTS = 2048
"""Of one request; OpenAI's limit."""


class EmbeddingRequest(Wire):
    model: str = Field(max_length=500)
    input: Annotated[
        list[Annotated[str, Field(min_length=1)] | Ids],
        BeforeValidator(as_texts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(min_length=1, max_length=MOST_TEXTS)
    """A text or token ids, or several of either."""
    encoding_format: Literal["float", "base64"] | None = None
    """null: float. base64: of float32 numbers, the lowest byte first."""
    dimensions: int | None = Field(None, ge=1)
    """Only the model's own number."""
    user: Somebody | None = None


class Document(Wire):
    text: str = Field(min_length=1)


class RerankRequest(Wire):
    neutral = {
        "max_tokens_per_doc": (),
        "max_chunks_per_doc": (),
        "rank_fields": (),
        "truncate_prompt_tokens": (),
        "priority": (0,),
    }
    model: str = Field(max_length=500)
    query: str = Field(min_length=1)
    documents: list[Annotated[str, Field(min_length=1)] | Document] = Field(min_length=1, max_length=MOST_TEXTS - 1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool | None = None


class VectorForm:
    """An answer that is not streamed."""

    learn: Learn | None = None

    def __init__(self, prefix: str, make: Any) -> None:
        self.id, self._make = new_id(prefix), make

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        body: dict[str, Any] = self._make(pieces[0].found, self.id)
        return body

    def begin(self) -> list[bytes]:
        return []

    def push(self, piece: Piece) -> list[bytes]:
        return []

    def end(self) -> list[bytes]:
        return []

    def fault(self, error: ApiError) -> bytes:
        return b""

    def said(self) -> tuple[str, str]:
        return "", "cancelled"


async def embedding(asker: Asker, body: EmbeddingRequest, stack: AsyncExitStack) -> Job:
    engine, tokens = await _texts(asker, stack, body.model, body.input, "input", body.user)

    def answer(vectors: list[list[float]], _: str) -> dict[str, Any]:
        if body.dimensions not in (None, len(vectors[0])):
            raise ApiError(400, f"dimensions: the model's embeddings have {len(vectors[0])}", param="dimensions")
        packed = [_packed(vector) if body.encoding_format == "base64" else vector for vector in vectors]
        rows = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(packed)]
        return {"object": "list", "data": rows, "model": body.model, "usage": _usage(tokens)}

    return Job(Call(partial(cast(Embedding, engine).embed, tokens), sum(map(len, tokens))), VectorForm("embd", answer), False)


async def rerank(asker: Asker, body: RerankRequest, stack: AsyncExitStack) -> Job:
    texts = [document.text if isinstance(document, Document) else document for document in body.documents]
    engine, tokens = await _texts(asker, stack, body.model, [body.query, *texts], "documents")

    def answer(vectors: list[list[float]], identity: str) -> dict[str, Any]:
        query, *rest = vectors
        scores = [_cosine(query, vector) for vector in rest]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        documents = [{"document": {"text": texts[index]}} if body.return_documents else {} for index in order]
        results = [
            {"index": index, "relevance_score": scores[index]} | more for index, more in zip(order, documents, strict=True)
        ]
        return {"id": identity, "object": "rerank", "model": body.model, "method": "cosine of embeddings", "results": results,
                "usage": _usage(tokens)}  # fmt: skip

    return Job(Call(partial(cast(Embedding, engine).embed, tokens), sum(map(len, tokens))), VectorForm("rerank", answer), False)


async def _texts(
    asker: Asker, stack: AsyncExitStack, model: str, texts: Sequence[str | list[int]], param: str, user: str | None = None
) -> tuple[Engine, list[list[int]]]:
    lease = await asker.take(stack, model, user)
    engine = lease.engine
    needs(engine, "embed", param, "this engine gives no embeddings")
    if lease.adapter:
        raise ApiError(400, "embeddings are the model's own: ask without an adapter", param="model", code="unsupported")
    tokens = await run_sync(
        lambda: [text if isinstance(text, list) else engine.encode(text) for text in texts], abandon_on_cancel=True
    )
    for index, ids in enumerate(tokens):
        known(engine, ids, param)
        if not 0 < len(ids) <= engine.context:
            raise ApiError(400, f"{param}: text {index} has {len(ids)} tokens; the model's context is {engine.context}",
                           param=param, code="context_length_exceeded")  # fmt: skip
    return engine, tokens


def _usage(tokens: Sequence[Sequence[int]]) -> dict[str, int]:
    count = sum(map(len, tokens))
    return {"prompt_tokens": count, "total_tokens": count}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in first) * sum(y * y for y in second))
    return sum(x * y for x, y in zip(first, second, strict=True)) / lengths if lengths else 0.0
