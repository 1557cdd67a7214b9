"""LM Studio: a running one on this machine, with the models that it has loaded.

Source: https://lmstudio.ai/docs/developer/openai-compat.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.engines._http import Server
from modelwright.methods.engines._providers import LMSTUDIO
from modelwright.methods.engines._remote import NamedSpec, Remote


class LMStudio(NamedSpec):
    """Models that LM Studio has."""

    advice: ClassVar[Advice] = Advice(
        "LM Studio runs here already and has the model",
        "the model is a GGUF file or a folder: `llamacpp` and `native` open those without another program",
    )

    kind: Literal["lmstudio"] = "lmstudio"
    base_url: str = Field(LMSTUDIO.url, pattern=r"^https?://[^@]+$", examples=["http://127.0.0.1:9999/v1"])
    """Address up to and with `/v1`. Default: where LM Studio listens unless it is told otherwise."""

    def open(self, model: Path) -> Remote:
        url = self.base_url.rstrip("/")
        server = Server(
            LMSTUDIO.name, url, timeout_s=self.timeout_s, retries=self.retries, parallel=self.parallel, start=LMSTUDIO.start
        )
        return Remote(self, LMSTUDIO, server, self.model)
