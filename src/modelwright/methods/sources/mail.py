"""Mail: the text of messages, from mbox files, maildirs and `.eml` files.

Sources: RFC 5322 (messages), RFC 2045 to 2047 (MIME), RFC 4155 (mbox; a line `>From ` is one that began with `From `),
https://cr.yp.to/proto/maildir.html, RFC 3676 section 4.3 (a signature begins with `-- `) and 4.5 (quotations with `>`).
"""

from __future__ import annotations

import email.errors
import email.policy
import hashlib
import re
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Input
from modelwright.core.units import bytes_text
from modelwright.methods.sources._doc_files import Documents, Unreadable
from modelwright.methods.sources._doc_html import html_text
from modelwright.methods.sources._files import find, refuse
from modelwright.methods.sources._open import cannot_read, obstacles, state, unchanged

MESSAGE_BYTES = 50_000_000
"""Longer messages are counted as unreadable: they hold films, and would lie in memory thrice."""
LINE_BYTES = 1 << 20
FAULTS = (LookupError, ValueError, AttributeError, TypeError, AssertionError, email.errors.MessageError)
"""What the standard library raises of damaged messages and their headers."""
_FROM = re.compile(rb"From \S+ .*\d\d:\d\d.*\d{4}")
"""The line between two messages: an address and the C library's time; a sentence that begins with `From ` has none."""
_ANSWERED = re.compile(
    r"^[^\n>]{0,200}(?:\n[^\n>]{1,200})?(?:wrote|writes|schrieb|écrit|escribió|ha scritto)\b[^\n]{0,100}:[ \t]*\n(?=\s*>)",
    re.MULTILINE,
)
_BELOW = re.compile(
    r"^(?:-{2,} ?Original Message ?-{2,}|-{2,} ?Forwarded message ?-{2,}|_{20,})[ \t]*$.*", re.MULTILINE | re.DOTALL
)
_SIGNATURE = re.compile(r"^-- ?$.*", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"^[ \t]*>.*(?:\n|\Z)", re.MULTILINE)
_ID = re.compile(r"<[^<>\s]{1,500}>")


class Place(NamedTuple):
    """Where a message's bytes lie."""

    name: str
    """File and number of the message: the row's name."""
    file: Path
    start: int
    size_bytes: int


class Mail(Documents):
    """One document a message or a thread. Bodies still name people: add the step `pii`."""

    bytes_per_s: ClassVar[float] = 2.5e6
    """Measured on a 2-core machine."""
    suffixes: ClassVar[tuple[str, ...]] = (".eml", ".mbox")
    small: ClassVar[bool] = False

    kind: Literal["mail"] = "mail"
    per: Literal["message", "thread"] = Field("message", examples=["thread"])
    """What one document is. A thread is a message with all answers to it, in the order of the files; it is found by the messages'
    ids, so everything is read twice. Default: a message."""
    cut: bool = Field(True)
    """Cut quoted messages and signatures off. Default: on, because each answer would repeat what it answers."""
    senders: Literal["hash", "keep", "drop"] = Field("hash", examples=["drop"])
    """What becomes of the sender's address in `meta.from`: 16 hex digits of its sha256, itself, or nothing. A hash tells senders
    apart, but who guesses an address can check the guess; `drop` tells nothing. Default: hash, because addresses are personal."""

    def found(self, path: Path) -> list[Path]:
        """Named as mail, in a maildir (also in one whose name begins with a dot), or with an mbox's first line."""
        if path.is_file():
            return find(path, self.match, self.suffixes)
        files = sorted(file for file in path.glob(self.match) if file.is_file() and _is_mail(file))
        if not files:
            raise UserError(
                f"{path} holds no mail", f"looked for mbox, maildir and .eml in {self.match}", "correct the path or `match`"
            )
        return files

    def rows(self, inputs: Mapping[str, Input], log: Log) -> Iterator[Record]:
        if self.per == "message":
            yield from super().rows(inputs, log)
            return
        path = self.place(inputs)
        for name, bad in obstacles(path, self.suffixes):
            refuse(name, bad, log, self.on_bad)
        before = {file: state(file) for file in self.found(path)}
        for places in self._threads(path, list(before), log):
            yield from self._thread(places, log)
        for file, was in before.items():
            unchanged(file, was)

    def records(self, file: Path, name: str, log: Log) -> Iterator[Record]:
        for place in places_in(file, name):
            if record := self._try(place, log):
                yield record

    def _try(self, place: Place, log: Log) -> Record | None:
        """One message; None where it cannot be read, and that is counted."""
        try:
            return self._record(place)
        except Unreadable as fault:
            refuse(place.name, fault.bad, log, self.on_bad)
        except OSError as error:
            refuse(place.name, cannot_read(error), log, self.on_bad)
        return None

    def _record(self, place: Place) -> Record:
        message = parse(place)
        try:
            text = body(message)
            facts = self._facts(message)
        except (*FAULTS, RecursionError) as error:
            raise Unreadable("damaged message", f"{type(error).__name__}: {error}") from None
        if self.cut:
            text = without_quotes(text)
        if not text.strip():
            raise Unreadable("no text", "nothing is left of its body" if self.cut else "it has no body of text")
        return Record(place.name, text=text.strip() + "\n", meta=facts)

    def _facts(self, message: EmailMessage) -> dict[str, Any]:
        facts = {"subject": " ".join(_header(message, "Subject").split()), "date": _date(_header(message, "Date"))}
        if self.senders != "drop":
            address = next((address for _, address in getaddresses([_header(message, "From")])), "").strip().lower()
            hashed = hashlib.sha256(address.encode()).hexdigest()[:16] if address else ""
            facts["from"] = address if self.senders == "keep" else hashed
        return facts

    # --- threads --------------------------------------------------------------------------------------

    def _threads(self, path: Path, files: list[Path], log: Log) -> Iterator[list[Place]]:
        """The places of each thread's messages. Ids and places are kept in memory, texts are not."""
        root: dict[str, str] = {}

        def top(name: str) -> str:
            while (above := root.setdefault(name, name)) != name:
                root[name] = name = root[above]
            return name

        of: list[tuple[str, Place]] = []
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            try:
                for place in places_in(file, name):
                    own, others = _ids(place)
                    for other in others:
                        root[top(own)] = top(other)
                    of.append((own, place))
            except Unreadable as fault:
                refuse(name, fault.bad, log, self.on_bad)
            except OSError as error:
                refuse(name, cannot_read(error), log, self.on_bad)
        threads: dict[str, list[Place]] = {}
        for own, place in of:
            threads.setdefault(top(own), []).append(place)
        yield from threads.values()

    def _thread(self, places: list[Place], log: Log) -> Iterator[Record]:
        records = [record for place in places if (record := self._try(place, log))]
        if records:
            meta = {**records[0].meta, "messages": len(records)}
            yield Record(records[0].id, text="\n".join(record.text for record in records), meta=meta)


# --- files to messages ----------------------------------------------------------------------------------


def _is_mail(file: Path) -> bool:
    if file.suffix.lower() in (".eml", ".mbox") or file.parent.name in ("cur", "new"):
        return True
    if file.suffix:
        return False
    try:
        with file.open("rb") as stream:
            return bool(_FROM.match(stream.readline(LINE_BYTES)))
    except OSError:
        return True  # reading it will say so


def places_in(file: Path, name: str) -> Iterator[Place]:
    """The messages of a file. An mbox is told by its first line."""
    size = file.stat().st_size
    if not size:
        raise Unreadable("empty file", "it has no byte")
    with file.open("rb") as stream:
        if not _FROM.match(stream.readline(LINE_BYTES)):
            if file.suffix == ".mbox":
                raise Unreadable("not an mbox", "its first line is not `From `, an address and a time")
            yield Place(name, file, 0, size)
            return
        number, start, after_blank = 1, stream.tell(), False
        while line := stream.readline(LINE_BYTES):
            if after_blank and _FROM.match(line):
                yield Place(f"{name}:{number}", file, start, stream.tell() - len(line) - start)
                number, start = number + 1, stream.tell()
            after_blank = line in (b"\n", b"\r\n")
        yield Place(f"{name}:{number}", file, start, stream.tell() - start)


def parse(place: Place, *, head: bool = False) -> EmailMessage:
    """The message, or its headers alone."""
    if place.size_bytes > MESSAGE_BYTES:
        raise Unreadable("long message", f"{bytes_text(place.size_bytes)}, and {bytes_text(MESSAGE_BYTES)} is the limit")
    with place.file.open("rb") as file:
        file.seek(place.start)
        data = file.read(place.size_bytes)
    if head:
        data = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0] + b"\n\n"
    data = re.sub(rb"^>(>*From )", rb"\1", data, flags=re.MULTILINE) if place.start else data
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def _ids(place: Place) -> tuple[str, list[str]]:
    """(the message's id, those of messages before it). One that cannot be read stands alone; reading it will say why."""
    own = f"<{place.name}>"
    try:
        message = parse(place, head=True)
        own = (_ID.findall(_header(message, "Message-ID")) or [own])[0]
        return own, _ID.findall(f"{_header(message, 'References')} {_header(message, 'In-Reply-To')}")
    except Unreadable:
        return own, []


# --- messages to text -----------------------------------------------------------------------------------


def body(message: EmailMessage) -> str:
    """The plain text, else what the HTML shows with `> ` before quotations."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        raise Unreadable("no text", f"a body of {message.get_content_type()}")
    data = part.get_payload(decode=True)
    if not isinstance(data, bytes):
        raise Unreadable("damaged message", "its parts are not what it announces")
    charset = part.get_content_charset("utf-8")
    for name in (charset, "utf-8"):  # mails without a word about it are often UTF-8
        try:
            text = data.decode(name).replace("\r\n", "\n").replace("\0", "")
            return html_text(text, quote="> ") if part.get_content_type() == "text/html" else text
        except (UnicodeDecodeError, LookupError):
            continue
    raise Unreadable("wrong encoding", f"it says {charset} and is neither that nor UTF-8")


def without_quotes(text: str) -> str:
    """What the sender wrote: no quoted lines, no line that introduces them, nothing below a signature or a forwarded head."""
    text = _SIGNATURE.sub("", _BELOW.sub("", text))
    return re.sub(r"\n{3,}", "\n\n", _QUOTED.sub("", _ANSWERED.sub("", text)))


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message.get(name, "")).encode("utf-8", "replace").decode()
    except FAULTS as error:
        raise Unreadable("damaged message", f"its {name}: {type(error).__name__}: {error}") from None


def _date(text: str) -> str:
    """As ISO 8601; '' for none and for what is no date."""
    try:
        return parsedate_to_datetime(text).isoformat() if text else ""
    except (ValueError, TypeError, IndexError, OverflowError):
        return ""
