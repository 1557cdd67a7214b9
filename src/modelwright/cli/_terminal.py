"""What a chat writes: answers on standard output, everything else on standard error."""

from __future__ import annotations

import re
import sys

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def answer(text: str) -> None:
    """A piece of an answer. A terminal obeys control characters, and a model may print any: it gets none of them."""
    sys.stdout.write(CONTROL.sub("", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def footer(tokens: int, seconds: float, stopped: bool, cut: bool) -> None:
    """How it went: always when the answer is not whole, else only for a person at a terminal."""
    notes = ["stopped"] * stopped + ["cut at the length limit (/tokens N)"] * cut
    if sys.stdout.isatty():
        counted = [f"{tokens} tokens", f"{tokens / max(seconds, 1e-3):.0f} tokens/s"] if tokens else []
        notes = [*counted, *notes]
    if notes:
        note(" · ".join(notes))


def note(text: str, style: str = "dim") -> None:
    """A line of ours, beside the answers: on standard error, in colour where that is a terminal."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console

    Console(stderr=True).print(CONTROL.sub("", text), style=style, markup=False, highlight=False)
