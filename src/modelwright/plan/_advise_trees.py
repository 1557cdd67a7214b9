"""The decision trees, read from `tree.yaml`, with the thresholds filled in and the functions that answer."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from modelwright.core.units import bytes_text, count_text
from modelwright.plan import _advise_answers as answers
from modelwright.plan._advise_tree import Branch, Leaf, Question, Tree

ORDER = ("method", "weights", "shape", "deploy")
"""The trees, in the order in which they are walked."""


@cache
def trees() -> dict[str, Tree]:
    tree: dict[str, Any] = yaml.safe_load(resources.files(__package__).joinpath("tree.yaml").read_text(encoding="utf-8"))
    return {name: _tree(name, tree[name]) for name in ORDER}


def _tree(name: str, tree: dict[str, Any]) -> Tree:
    questions = {
        key: Question(
            row["asks"],
            _filled(row["why"]),
            row["source"],
            answers.ANSWERS[key],
            {branch: Branch(_filled(to["when"]), to["to"]) for branch, to in row["branches"].items()},
        )
        for key, row in tree["questions"].items()
    }
    leaves = {key: Leaf(row["title"], tuple(row["methods"]), row["why"]) for key, row in tree["leaves"].items()}
    return Tree(name, tree["root"], questions, leaves)


def _filled(text: str) -> str:
    """With thresholds as people write them: `100M`, `40 GB`."""
    numbers = {
        name: bytes_text(value) if name.endswith("_BYTES") else f"{value:,}" if value < 1e6 else count_text(value)
        for name, value in vars(answers).items()
        if name.isupper() and isinstance(value, (int, float))
    }
    return text.format(**numbers)
