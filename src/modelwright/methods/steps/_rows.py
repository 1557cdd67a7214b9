"""What several steps ask of a row: the group it is in, a number drawn for it."""

from __future__ import annotations

import hashlib
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator

from modelwright.core.record import Record

ONE_OR_MORE = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | list[str])
"""Of a tuple of names: one alone may be written without a list."""
Names = Annotated[tuple[str, ...], ONE_OR_MORE]
"""Field type: one name or a list of them."""


def group_of(record: Record, key: str) -> str:
    """The value of a key of `meta`, '' where there is none. `site` is the host of `meta.url` where no source gave one."""
    value = record.meta.get(key)
    if value is None and key == "site" and "url" in record.meta:
        try:
            value = urlsplit(str(record.meta["url"])).hostname
        except ValueError:  # not a URL
            return ""
    return "" if value is None else str(value)


def draw(seed: int, name: str) -> float:
    """A number from 0 up to 1 that depends on the seed and the row's name alone."""
    digest = hashlib.blake2b(f"{seed}\x00{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
