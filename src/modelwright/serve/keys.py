"""API keys in a file: names, limits and digests, never the keys themselves.

A key is 32 random bytes made by us and shown once. Its SHA-256 digest is enough at rest: salt and a slow function such as scrypt
guard secrets that people choose, which can be guessed; nobody guesses 256 random bits, with or without the file. NIST SP 800-63B,
section 5.1.2.2, asks for salt and a password function below 112 bits only, https://pages.nist.gov/800-63-3/sp800-63b.html.
The file holds a JSON object a line, so that a key is added or taken away by adding or deleting its line.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelwright.core.errors import UserError
from modelwright.serve.limits import Client, Limits

log = logging.getLogger("modelwright.serve")

PREFIX = "mw-"
"""Lets scanners of leaked secrets know what they found."""

Positive = Annotated[int, Field(ge=1)] | None


class Line(BaseModel):
    """One key as the file has it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    """In logs and metrics."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: str = ""
    requests_per_minute: Positive = None
    tokens_per_minute: Positive = None
    concurrent: Positive = None
    models: list[str] | None = None

    def limits(self) -> Limits:
        models = None if self.models is None else tuple(self.models)
        return Limits(self.requests_per_minute, self.tokens_per_minute, self.concurrent, models)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(path: Path, name: str, limits: Limits) -> str:
    """Append a new key's line to the file, which only its owner may read, and return the key."""
    if path.exists() and any(line.name == name for line in read(path)):
        raise UserError(f"{path} has a key called {name!r} already", fix="choose another name, or delete its line first")
    key = PREFIX + secrets.token_urlsafe(32)
    row = {"name": name, "sha256": digest(key), "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    row |= {field: value for field, value in limits._asdict().items() if value is not None}
    try:
        Line.model_validate_json(json.dumps(row))
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise UserError(f"{name!r} cannot be a key: {what}", fix="names are letters, digits, . _ @ -") from None
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # an editor left the last line without an end
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(row) + "\n")
    return key


def read(path: Path) -> list[Line]:
    """The file's lines; UserError names the one that is wrong, without its content."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the keys file {path} cannot be read", str(error)) from None
    lines: list[Line] = []
    for number, row in enumerate(text.splitlines(), 1):
        if row.strip():
            try:
                lines.append(Line.model_validate_json(row))
            except ValidationError as error:
                fault = error.errors(include_input=False)[0]
                where = ".".join(map(str, fault["loc"]))
                raise UserError(f"line {number} of {path} is no key", f"{where}: {fault['msg']}".removeprefix(": ")) from None
    if len({line.name for line in lines}) < len(lines):
        raise UserError(f"two keys of {path} have the same name", fix="delete one of them")
    return lines


class Keys:
    """The keys of a file that may change while we serve."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clients: dict[str, Client] = {}
        self._stamp = (0, 0)
        self._load()
        if not self._clients:
            raise UserError(f"{path} holds no key", fix=f"modelwright serve --new-key NAME --keys {path}")

    def find(self, given: str) -> Client | None:
        """Whose key this is. Every digest is compared, in constant time."""
        asked, found = digest(given), None
        for known, client in self._clients.items():
            if hmac.compare_digest(asked, known):
                found = client
        return found

    def refresh(self) -> None:
        """Read the file where it has changed; one that cannot be used leaves the keys as they were."""
        if self._look() == self._stamp:
            return
        try:
            self._load()
            log.info("%d keys read from %s", len(self._clients), self.path)
        except UserError as error:
            log.error("the keys stay as they were: %s", error)

    def _look(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size

    def _load(self) -> None:
        """A key that was there keeps what it has used."""
        self._stamp = self._look()
        before = {client.name: client for client in self._clients.values()}
        clients = {}
        for line in read(self.path):
            client = before.get(line.name) or Client(line.name, line.limits())
            if client.limits != line.limits():
                client.limit(line.limits())
            clients[line.sha256] = client
        self._clients = clients
