"""What the sources of web pages share: in which encoding one is, and how much of one is read.

Source: WHATWG, Encoding Standard, https://encoding.spec.whatwg.org (labels of encodings, the byte order mark first). What
differs: browsers trust the server; here a page that is valid UTF-8 is UTF-8, since servers say ISO-8859-1 of everything.
"""

from __future__ import annotations

import re

from modelwright.core.errors import missing_extra
from modelwright.methods.sources._files import Bad

PAGE_BYTES = 8 << 20
"""Largest page by default: where a text file is divided, and more than the 5 MiB at which Common Crawl cuts a page."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_ASCII = bytes(range(128))
_SURE_BYTES = 8
"""As many bytes beyond ASCII that are valid UTF-8 are UTF-8, whatever a server says: RFC 3629, section 1. The number is ours."""
_LOOK_BYTES = 1024
"""Where a page must name its encoding: https://html.spec.whatwg.org/#charset."""
_CHARSET = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)


def decode_page(data: bytes, said: str | None = None) -> str | Bad:
    """A page's text by its mark, as UTF-8 where it can be nothing else, by what the server `said`, by its own `meta charset`,
    else as UTF-8; where none fits, that."""
    try:
        from resiliparse.parse.encoding import map_encoding_to_html5
    except ImportError:
        raise missing_extra("resiliparse", "web", "reading HTML") from None

    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding)
    inside = _CHARSET.search(data[:_LOOK_BYTES])
    labels = [said, inside and inside.group(1).decode("ascii", "replace")]
    known = [map_encoding_to_html5(label, fallback_utf8=False) for label in filter(None, labels)]  # a fixed list of the standard
    beyond_bytes = len(data.translate(None, _ASCII))
    order = [encoding for encoding in known if encoding and not encoding.startswith("utf-16")]  # it reads as ASCII
    if beyond_bytes >= _SURE_BYTES or (beyond_bytes and "utf-8" in order):
        order.insert(0, "utf-8")
    for encoding in order:
        text = _decoded(data, encoding)
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
