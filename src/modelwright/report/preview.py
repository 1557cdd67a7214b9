"""The preview of a training stage's rows as one HTML page: no scripts, nothing fetched, every value escaped."""

from __future__ import annotations

from modelwright.core.preview import STATES, Preview, headline, summary, visible
from modelwright.report.styled import styled


def page(found: Preview) -> str:
    """Self-contained."""
    values = {
        "preview": found,
        "states": STATES,
        "summary": summary(found),
        "headline": headline,
        "visible": visible,
    }
    return styled("preview.html", "preview.css", values)
