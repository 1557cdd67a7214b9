"""Reword: copies of chats whose question stands in another frame, drawn from a mix of templates.

Sources: Wei et al. 2021, "Finetuned Language Models Are Zero-Shot Learners" (FLAN), arXiv:2109.01652, section 2.1 (ten templates
a data set); Sanh et al. 2021, "Multitask Prompted Training Enables Zero-Shot Task Generalization", arXiv:2110.08207 (more prompts
make a model less sensitive to wording).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from modelwright.core.spec import Advice
from modelwright.methods.steps._augment import Augment

HOLE = "{prompt}"
FRAMES = (
    f"Question: {HOLE}",
    f"{HOLE} Please answer.",
    f"Please help me with this: {HOLE}",
    f"I have a question. {HOLE}",
    f"Task: {HOLE}",
    f"Here is what I need: {HOLE}",
    f"Hello! {HOLE}",
    f"{HOLE} Thanks.",
)


class Reword(Augment):
    """The first thing that the user says is put into a frame; later turns answer what was said before, and stay. Documents
    pass."""

    first_alone: ClassVar[bool] = True
    advice: ClassVar[Advice] = Advice(
        "all questions begin alike, and users will begin as they like", "the wording is part of what is asked"
    )

    kind: Literal["reword"] = "reword"
    templates: list[str] = Field(list(FRAMES), min_length=1, examples=[[f"Q: {HOLE}"]])
    """Frames of which one is drawn for each copy, with `{prompt}` where the user's words go. Default: eight in English that ask
    for nothing else."""

    @field_validator("templates")
    @classmethod
    def _has_a_hole(cls, value: list[str]) -> list[str]:
        for template in value:
            if template.count(HOLE) != 1:
                raise ValueError(f"{template!r} must hold {HOLE} once, for the user's words")
        return value

    def change(self, text: str, drawn: Callable[[], float]) -> str:
        return self.templates[int(drawn() * len(self.templates))].replace(HOLE, text)
