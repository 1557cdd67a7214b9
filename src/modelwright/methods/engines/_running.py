"""Engines of programs that run on this machine already and ask for no key."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from modelwright.methods.engines._http import Server
from modelwright.methods.engines._providers import Provider
from modelwright.methods.engines._remote import NamedSpec, Remote


class RunningSpec(NamedSpec):
    """A kind says which program, and where it listens."""

    provider: ClassVar[Provider]
    base_url: str

    def open(self, model: Path) -> Remote:
        server = Server(
            self.provider.name,
            self.base_url.rstrip("/"),
            timeout_s=self.timeout_s,
            retries=self.retries,
            parallel=self.parallel,
            start=self.provider.start,
        )
        return Remote(self, self.provider, server, self.model, images=self.images)
