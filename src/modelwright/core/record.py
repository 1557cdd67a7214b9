"""Record: one row of data, from a raw page to a chat or a preference pair. Stored as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from modelwright.core.errors import UserError

Message = dict[str, Any]
"""`{"role": "system" | "user" | "assistant" | "tool", "content": str}`, as in the OpenAI API."""


@dataclass(slots=True)
class Record:
    """Exactly one of: `text` (a document), `messages` (a chat), `messages` + `chosen` + `rejected` (a preference)."""

    id: str
    """Unique in its artifact and stable between runs: a path, a qualified name, a row number."""
    text: str = ""
    messages: list[Message] = field(default_factory=list)
    """The whole chat; for a preference, the shared prompt."""
    chosen: list[Message] = field(default_factory=list)
    """The better continuation of `messages`."""
    rejected: list[Message] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    """Where it came from (path, licence, object, sort, …); carried along, never trained on."""

    def to_json(self) -> bytes:
        """One line, without its end."""
        tree: dict[str, Any] = {"id": self.id}
        for name in ("text", "messages", "chosen", "rejected", "meta"):
            if value := getattr(self, name):
                tree[name] = value
        try:
            return orjson.dumps(tree)
        except TypeError:  # half of a surrogate pair, a number of more than 64 bits
            return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def from_json(line: bytes) -> Record:
    """The reverse."""
    tree = quick_json(line)
    return Record(**(json.loads(line.decode("utf-8", "surrogatepass")) if tree is None else tree))


LONG_NUMBER = 2.0**53


def quick_json(line: bytes) -> Any:
    """What `json.loads` reads, by orjson; None where that refuses, or may have made a float of a long whole number."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if _exact(value) else None


def _exact(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(type(inner) is str or _exact(inner) for inner in value.values())
    if kind is list:
        return all(type(inner) is str or _exact(inner) for inner in value)
    return kind is not float or abs(value) < LONG_NUMBER


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write JSON lines; returns the number of rows."""
    rows = 0
    with path.open("wb") as file:
        for record in records:
            file.write(record.to_json() + b"\n")
            rows += 1
    return rows


def read_records(path: Path) -> Iterator[Record]:
    """Read JSON lines that we wrote. For files of the user's own, see `modelwright.methods.formats`."""
    with path.open("rb") as file:
        yield from parse_records(file, path.name)


def parse_records(lines: Iterable[bytes], name: str, first: int = 1) -> Iterator[Record]:
    """The same from lines of a file, of which the first one has this number."""
    for number, line in enumerate(lines, first):
        try:
            yield from_json(line)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{name} line {number} is not a record",
                str(error),
                "the file was changed after it was written; `modelwright verify` tells which",
            ) from None
