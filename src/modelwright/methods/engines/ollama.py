"""Ollama: a running one on this machine, with the models that it has pulled.

Source: https://docs.ollama.com/api/openai-compatibility.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.engines._providers import OLLAMA, Provider
from modelwright.methods.engines._running import RunningSpec


class Ollama(RunningSpec):
    """Models that Ollama has."""

    provider: ClassVar[Provider] = OLLAMA
    advice: ClassVar[Advice] = Advice(
        "Ollama runs here already and has the model",
        "the model is a GGUF file or a folder: `llamacpp` and `native` open those without another program",
    )

    kind: Literal["ollama"] = "ollama"
    base_url: str = Field(OLLAMA.url, pattern=r"^https?://[^@]+$", examples=["http://127.0.0.1:9999/v1"])
    """Address up to and with `/v1`. Default: where Ollama listens unless it is told otherwise."""
