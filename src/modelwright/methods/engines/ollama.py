"""Ollama: a running one on this machine, with the models that it has pulled.

Source: https://docs.ollama.com/api/openai-compatibility.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.engines._http import Server
from modelwright.methods.engines._providers import OLLAMA
from modelwright.methods.engines._remote import NamedSpec, Remote


class Ollama(NamedSpec):
    """Models that Ollama has."""

    advice: ClassVar[Advice] = Advice(
        "Ollama runs here already and has the model",
        "the model is a GGUF file or a folder: `llamacpp` and `native` open those without another program",
    )

    kind: Literal["ollama"] = "ollama"
    base_url: str = Field(OLLAMA.url, pattern=r"^https?://[^@]+$", examples=["http://127.0.0.1:9999/v1"])
    """Address up to and with `/v1`. Default: where Ollama listens unless it is told otherwise."""

    def open(self, model: Path) -> Remote:
        url = self.base_url.rstrip("/")
        server = Server(
            OLLAMA.name, url, timeout_s=self.timeout_s, retries=self.retries, parallel=self.parallel, start=OLLAMA.start
        )
        return Remote(self, OLLAMA, server, self.model)
