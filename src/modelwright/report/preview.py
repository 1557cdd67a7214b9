"""The preview of a training stage's rows as one HTML page: no scripts, nothing fetched, every value escaped."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modelwright.core.preview import STATES, Preview, headline, summary, visible


def page(found: Preview) -> str:
    """The style is named by its hash in the page's policy, so that nothing a row brings can add another."""
    environment = Environment(
        loader=PackageLoader("modelwright.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    assert environment.loader is not None
    style, _, _ = environment.loader.get_source(environment, "preview.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("preview.html").render(
        preview=found,
        states=STATES,
        summary=summary(found),
        headline=headline,
        visible=visible,
        style=Markup(style),
        digest=digest,
    )
