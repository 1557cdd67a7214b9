"""Decoders side by side on one prompt as one HTML page: no scripts, nothing fetched, every value escaped."""

from __future__ import annotations

from typing import NamedTuple

from modelwright.core.preview import visible
from modelwright.report.styled import styled
from modelwright.report.token_tree import COLOURS, Token, drawing, percent, tree

LEVELS = (0.9, 0.5, 0.2, 0.05, 0.0)
"""Least probability of each shade of a token."""


class Strategy(NamedTuple):
    """What one decoder made of the prompt."""

    name: str
    settings: str
    """Its fields that are not the default."""
    tokens: tuple[Token, ...]
    given: str
    """What is given as the answer where that is not all of its tokens."""
    finish: str
    tokens_spent: int
    logprob: float | None
    """Mean log-probability of the answer's tokens under the model, in nats."""
    answers: int
    """How many it had to choose from."""


class Comparison(NamedTuple):
    model: str
    prompt: str
    strategies: tuple[Strategy, ...]


def level(token: Token) -> int | None:
    """The shade of a token's probability, 0 for the likeliest; None where it is not known."""
    if token.prob is None:
        return None
    return next(number for number, least in enumerate(LEVELS) if token.prob >= least)


def page(found: Comparison, deep: int, others: int) -> str:
    """`deep`: tokens of each answer in the tree; `others`: likely tokens beside them."""
    root = tree([strategy.tokens for strategy in found.strategies], deep, others)
    values = {
        "found": found,
        "picture": drawing(root, found.prompt, [strategy.name for strategy in found.strategies]),
        "deep": deep,
        "colours": COLOURS,
        "levels": LEVELS,
        "level": level,
        "percent": percent,
        "visible": visible,
    }
    return styled("decoding.html", "decoding.css", values)
