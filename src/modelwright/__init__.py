"""Modelwright: a language model of your own, from one recipe.

>>> import modelwright as mw
>>> project = mw.load("recipes/quickstart.yaml")
>>> print(project.plan())
>>> result = project.run()
"""

TYPE_CHECKING = False  # the name is what type checkers know; importing `typing` would cost half of the command's start
if TYPE_CHECKING:
    from typing import Any

    from modelwright.api import ArtifactView, Project, Result, convert, load, preview_file
    from modelwright.core.errors import UserError
    from modelwright.plan.whole import Plan

__version__ = "0.1.0"
__all__ = ["ArtifactView", "Plan", "Project", "Result", "UserError", "convert", "load", "preview_file"]


def __getattr__(name: str) -> "Any":
    """Import on first use, so that the command's start and `import modelwright` cost nothing (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'modelwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("modelwright.core.errors" if name == "UserError" else "modelwright.api"), name)
