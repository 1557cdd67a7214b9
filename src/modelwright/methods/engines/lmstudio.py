"""LM Studio: a running one on this machine, with the models that it has loaded.

Source: https://lmstudio.ai/docs/developer/openai-compat.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelwright.core.spec import Advice
from modelwright.methods.engines._providers import LMSTUDIO, Provider
from modelwright.methods.engines._running import RunningSpec


class LMStudio(RunningSpec):
    """Models that LM Studio has."""

    provider: ClassVar[Provider] = LMSTUDIO
    advice: ClassVar[Advice] = Advice(
        "LM Studio runs here already and has the model",
        "the model is a GGUF file or a folder: `llamacpp` and `native` open those without another program",
    )

    kind: Literal["lmstudio"] = "lmstudio"
    base_url: str = Field(LMSTUDIO.url, pattern=r"^https?://[^@]+$", examples=["http://127.0.0.1:9999/v1"])
    """Address up to and with `/v1`. Default: where LM Studio listens unless it is told otherwise."""
