"""Exporters: how a model leaves. One file a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.estimate import Shape
from modelwright.core.events import Log
from modelwright.core.spec import Kinds, Spec

EXPORTERS = Kinds(__name__, f"{__name__}:Exporter")


WRITE_BYTES_PER_S = 60e6
"""Of float32 weights that are read, turned and written on one core of a 2020s server."""


class Evidence(NamedTuple):
    """What an export is proved on."""

    texts: list[str]
    """Tokenised and scored by both programs; a chat is given as its template renders it."""
    prompts: list[str]
    """Continued greedily by both; may be empty."""


class Exporter(Spec):
    """Writes a model folder in another program's format."""

    def bytes_on_disk(self, shape: Shape) -> float:
        """Size of what it writes for a model of this shape, for estimates."""
        raise NotImplementedError

    def remark(self, shape: Shape) -> str:
        """What a user should know before a model of this shape is written so; '' for nothing."""
        return ""

    def write_seconds(self, weights_bytes: float, cores: int) -> float:
        """To write a model of so many bytes of float32 weights, for estimates."""
        return weights_bytes / WRITE_BYTES_PER_S

    def longest_answer(self) -> int:
        """Most tokens of an answer that the proof asks for, for estimates."""
        return 32

    def write(self, model: Path, out: Path, log: Log) -> dict[str, Any]:
        """`model`: a Hugging Face folder. Writes under `out`; returns what it measured."""
        raise NotImplementedError

    def prove(self, model: Path, out: Path, evidence: Evidence, log: Log) -> dict[str, Any]:
        """Open what was written with the program that it is for and compare it with `model`: token parity, perplexity
        of both, share of equal greedy answers. UserError where they do not agree as far as the format allows."""
        raise NotImplementedError
