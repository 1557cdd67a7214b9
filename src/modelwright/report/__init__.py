"""The report of a run: one HTML file with everything in it, a model card, and curves for notebooks.

Imports core only. Whoever ran the recipe hands over a `RunView`; nothing here looks for artifacts by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class StageView(NamedTuple):
    """One stage of a run, as the report sees it."""

    name: str
    kind: str
    state: str
    """`made`, `cached`, `failed` or `missing`."""
    manifest: dict[str, Any]
    """The artifact's `manifest.json`; empty where there is none."""
    folder: Path
    """The artifact's folder; `metrics.jsonl` and `items.jsonl` are read from it where they exist."""
    parents: tuple[str, ...]
    """Names of the stages that it reads."""


class RunView(NamedTuple):
    """One run of a recipe."""

    recipe: str
    """Its name."""
    recipe_text: str
    """The file, as it was run."""
    stages: tuple[StageView, ...]
    """In the order of the recipe: a stage comes after its parents."""
    machine: str
    """The machine in words: `2 cores, 8.4 GB, CPU`."""
    started: str
    """When, as text."""
    seconds: float
    """How long this run took, cached stages and all."""
    description: str = ""
    """The recipe's own sentence about the model."""


def render(run: RunView) -> str:
    """The report as one self-contained HTML page: no scripts, nothing fetched, every value escaped."""
    from modelwright.report.page import page

    return page(run)


def model_card(run: RunView) -> str:
    """The model card as Markdown with the YAML front matter that the Hugging Face Hub reads."""
    from modelwright.report.card import markdown

    return markdown(run)


def curves_svg(folder: Path) -> str:
    """The curves of one training artifact as a standalone SVG, for notebooks and files."""
    from modelwright.report.curves import curves_svg as draw

    return draw(folder)
