"""Tokenizer methods: how a vocabulary is learned from text. One file a kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from modelwright.core.spec import Kinds, Spec

TOKENIZERS = Kinds(__name__, f"{__name__}:Tokenizer")


class Tokenizer(Spec):
    """Learns a vocabulary; the result is a `tokenizers.Tokenizer`, saved as `tokenizer.json`."""

    bytes_per_s: ClassVar[float]
    """Text that it learns from in a second, for estimates; measured on 2 cores."""

    def vocab_size(self) -> int:
        """Tokens that are asked for, for estimates."""
        raise NotImplementedError

    def pre_tokenizer(self) -> str:
        """Name under which llama.cpp knows how text is cut before merging; recorded as `modelwright_pre` for exporters."""
        raise NotImplementedError

    def train(self, texts: Iterator[str], special: tuple[str, ...]) -> Any:
        """Returns a trained `tokenizers.Tokenizer` whose first ids are `special`."""
        raise NotImplementedError
