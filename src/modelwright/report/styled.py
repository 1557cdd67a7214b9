"""Pages from templates: every value escaped, no scripts, nothing fetched; the style is named by its hash in the page's policy, so
that nothing that a value brings can add another."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("modelwright.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def styled(template: str, style: str, values: dict[str, Any]) -> str:
    """The template with `values`, with the text of the file `style` as `style` and its hash as `digest`."""
    environment = _environment()
    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, style)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template(template).render({**values, "style": Markup(text), "digest": digest})
