"""What the sources of web pages share: in which encoding one is, and how much of one is read.

Source: WHATWG, Encoding Standard, https://encoding.spec.whatwg.org (labels of encodings, the byte order mark first).
"""

from __future__ import annotations

import re

from modelwright.core.errors import missing_extra
from modelwright.methods.sources._files import Bad

PAGE_BYTES = 8 << 20
"""Largest page by default: where a text file is divided, and more than the 5 MiB at which Common Crawl cuts a page."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_LOOK_BYTES = 1024
"""Where a page must name its encoding: https://html.spec.whatwg.org/#charset."""
_CHARSET = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)


def decode_page(data: bytes, said: str | None = None) -> str | Bad:
    """A page's text by its mark, by what the server `said`, by its own `meta charset`, else as UTF-8; where none fits, that."""
    try:
        from resiliparse.parse.encoding import map_encoding_to_html5
    except ImportError:
        raise missing_extra("resiliparse", "web", "reading HTML") from None

    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    inside = _CHARSET.search(data[:_LOOK_BYTES])
    labels = [said, inside and inside.group(1).decode("ascii", "replace")]
    for label in filter(None, labels):
        known = map_encoding_to_html5(label, fallback_utf8=False)  # a fixed list: a page cannot name any codec of Python
        if known and not known.startswith("utf"):  # a label that reads as ASCII is not UTF-16
            text = _decoded(data, known)
            if not isinstance(text, Bad):
                return text
    return _decoded(data, "utf-8")


def _decoded(data: bytes, encoding: str) -> str | Bad:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        return Bad("wrong encoding", f"byte {error.start} (0x{data[error.start]:02x}) is not {encoding}")
    return Bad("NUL byte", f"character {text.index(chr(0))} is zero: binary data") if "\0" in text else text


def too_large(limit_bytes: int) -> Bad:
    return Bad("too large", f"more than `max_page_bytes` {limit_bytes}")
