"""From tokens to text as they come: whole characters only, and nothing that may turn out to be part of a stop string.

Source: UTF-8, RFC 3629 section 3 (a character is one to four bytes; byte-level tokens may end inside one); stop strings
as in the OpenAI API (`stop`: the answer ends before the first of them).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from modelwright.methods.tokenizers._bytes import read


class Pieces(Protocol):
    """Turns tokens into text, one by one."""

    def push(self, token: int) -> str:
        """The text that is certain now; '' while a character is not whole."""
        ...

    def rest(self) -> str:
        """What was held back, with U+FFFD for bytes that are no character."""
        ...

    def whole(self, tokens: Sequence[int]) -> str:
        """The text of a whole answer at once; equal to all pieces joined."""
        ...


class DecodedPieces:
    """For tokenizers that only decode whole lists: the text so far, less what was given out.

    decode: token ids to text without special tokens. It is always called on the last two pieces, so that a
    tokenizer which treats the first token of a list in its own way (SentencePiece's space) sees the same start twice.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._tokens, self._start, self._read = decode, list[int](), 0, 0

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text, before = self._decode(self._tokens[self._start :]), self._before()
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def rest(self) -> str:
        text, before = self._decode(self._tokens[self._start :]), self._before()
        self._start = self._read = len(self._tokens)
        return text[len(before) :]

    def whole(self, tokens: Sequence[int]) -> str:
        return self._decode(tokens)

    def _before(self) -> str:
        return self._decode(self._tokens[self._start : self._read]) if self._read > self._start else ""


class BytePieces:
    """For tokenizers that give each token's bytes."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece, self._utf8 = piece, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._piece(token))

    def rest(self) -> str:
        return self._utf8.decode(b"", final=True)

    def whole(self, tokens: Sequence[int]) -> str:
        return b"".join(self._piece(token) for token in tokens).decode("utf-8", errors="replace")


def spelling(tokenizer: Any) -> Callable[[int], bytes]:
    """What one token of a transformers tokenizer adds to a text, as bytes, each looked up once; nothing for a special one."""
    decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))  # slow tokenizers have none
    special, added = set(tokenizer.all_special_ids), dict(tokenizer.added_tokens_decoder)
    special |= {token for token, text in added.items() if text.special}

    @cache
    def spelt(token: int) -> bytes:
        text: str | None = tokenizer.convert_ids_to_tokens(token)
        if token in special or text is None:
            return b""
        if token in added:
            return str(added[token].content).encode()
        if "ByteLevel" in decoder and (found := read(text)) is not None:
            return found
        if "ByteFallback" in decoder and (byte := re.fullmatch("<0x([0-9A-F]{2})>", text)):
            return bytes.fromhex(byte[1])
        if "ByteFallback" in decoder or "Metaspace" in decoder:
            return text.replace("▁", " ").encode()
        shown: str = tokenizer.decode([token], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return shown.encode()

    return spelt


class Stops:
    """Watches for stop strings, also where one spans several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was met). After a stop nothing more is shown."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def rest(self) -> str:
        """What was held back and did not become a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
