"""A user's own engine that loads no torch, for tests of what runs engines in a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.methods.engines import Engine, EngineSpec
from tests.fake_engine import FakeEngine


class Light(EngineSpec):
    """Repeats what it is told."""

    kind: Literal["light"] = "light"
    fails: str = Field("", examples=["no"])
    """Why it does not open."""

    def accepts(self, model: Path) -> str | None:
        return None

    def open(self, model: Path) -> Engine:
        if self.fails:
            raise UserError("it cannot be opened", self.fails, "open another one")
        return _Light()


class _Light(FakeEngine):
    capabilities = FakeEngine.capabilities - {"embed"}
