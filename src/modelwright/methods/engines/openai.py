"""OpenAI-compatible: any server or commercial API that answers as OpenAI's does, with retries, limits, prices and a cache.

Source: https://platform.openai.com/docs/api-reference; the providers' own documents are named in `_providers.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from modelwright.core.errors import UserError
from modelwright.core.spec import Advice, Runtime, Spec
from modelwright.methods.engines._cache import Cache
from modelwright.methods.engines._http import Server
from modelwright.methods.engines._pace import Pace
from modelwright.methods.engines._providers import OTHER, PROVIDERS
from modelwright.methods.engines._remote import NamedSpec, Prices, Remote


class OpenAI(NamedSpec):
    """A model behind somebody's API."""

    advice: ClassVar[Advice] = Advice(
        "the model is served elsewhere: a commercial API, a server of your own, a judge that is too large for this machine",
        "probabilities of given texts are needed, or the texts may not leave this machine: then a local engine",
    )

    kind: Literal["openai"] = "openai"
    provider: Literal[
        "openai", "anthropic", "google", "cohere", "openrouter", "huggingface", "together", "mistral", "groq", "deepseek", "other"
    ] = Field("other", examples=["openai"])
    """Whose address, key and ways are used; `other`: a server of your own at `base_url`."""
    base_url: str = Field("", examples=["http://127.0.0.1:8000/v1"])
    """Address up to and with `/v1`; unset: the provider's."""
    key_env: Annotated[str, Runtime] = Field("", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$", examples=["MY_KEY"])
    """Environment variable that holds the key; unset: the one that the provider's documents name, where it is asked at its own
    address, else none. The key itself has no place in a recipe."""
    requests_per_minute: Annotated[float, Runtime] = Field(0, ge=0, examples=[6.0])
    """No more requests are sent in a minute; 0: as many as the server takes. Slower, and fewer are answered 429."""
    tokens_per_minute: Annotated[float, Runtime] = Field(0, ge=0, examples=[1000.0])
    """The same for tokens of prompts and answers; an answer counts as its longest until it is there."""
    prompt_usd: Annotated[float, Runtime] = Field(0, ge=0, examples=[2.5])
    """Price of a million tokens of prompts, in dollars; 0: none is told. Providers change theirs, so none is built in."""
    answer_usd: Annotated[float, Runtime] = Field(0, ge=0, examples=[10.0])
    """Price of a million tokens of answers, in dollars."""
    cache: Annotated[str, Runtime] = Field("", examples=["answers"])
    """Folder that keeps answers, so that the same question is paid once; unset: none is kept. Only answers that the same request
    would get again: temperature 0, or a seed."""
    cache_bytes: Annotated[int, Runtime] = Field(1_000_000_000, ge=1, examples=[500])
    """Size of that folder, in bytes; what was used longest ago goes first. Default: about a million short answers."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("it begins with http:// or https://")
        if "@" in value.partition("//")[2].partition("/")[0]:
            raise ValueError("a password has no place in a recipe; name an environment variable in `key_env`")
        return value.rstrip("/")

    def unused(self, context: Spec) -> dict[str, str]:
        return {} if self.cache else {"cache_bytes": "no `cache` is kept"}

    def open(self, model: Path) -> Remote:
        provider = PROVIDERS.get(self.provider, OTHER)
        url = self.base_url or provider.url
        if not url:
            raise UserError("no address to ask", "`provider: other` has none of its own", "set `base_url`, or name a `provider`")
        variable = self.key_env or (provider.key if url == provider.url else "")
        _only_to_its_owner(variable, url)
        key = os.environ.get(variable, "").strip() if variable else ""
        if variable and not key:
            raise UserError(f"there is no key for {provider.name}", f"the environment variable {variable} is not set",
                            f"export {variable}=…, or name another one in `key_env`")  # fmt: skip
        server = Server(provider.name, url, key, variable, self.timeout_s, self.retries, self.parallel, provider.start)
        cache = Cache(Path(self.cache).expanduser(), self.cache_bytes) if self.cache else None
        prices = Prices(self.prompt_usd, self.answer_usd)
        pace = Pace(self.requests_per_minute, self.tokens_per_minute)
        return Remote(self, provider, server, self.model, pace, prices, cache, images=self.images)


def _only_to_its_owner(variable: str, url: str) -> None:
    """A recipe of a stranger could name a known provider's key and an address of the stranger's own."""
    owner = next((provider for provider in PROVIDERS.values() if provider.key == variable), None)
    if owner is not None and urlsplit(owner.url).hostname != urlsplit(url).hostname:
        raise UserError(
            f"the key in {variable} is {owner.name}'s and is not sent to {urlsplit(url).hostname}",
            "whoever answers there could use it",
            "keep the key for that server in a variable of its own, and name it in `key_env`",
        )
