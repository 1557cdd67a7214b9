"""Paraphrase: copies in which phrases are replaced by others that say the same, by rules.

Sources: Ribeiro et al. 2018, "Semantically Equivalent Adversarial Rules for Debugging NLP Models", https://aclanthology.org/P18-1079
(rules such as `What is` -> `What's`, which make models change their mind); replacing instead of inserting or deleting words: Wei
and Zou 2019, "EDA", arXiv:1901.11196. The list is ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from modelwright.core.spec import Advice
from modelwright.methods.steps._augment import Augment

ALIKE = (
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("did not", "didn't"),
    ("is not", "isn't"),
    ("are not", "aren't"),
    ("was not", "wasn't"),
    ("cannot", "can't"),
    ("will not", "won't"),
    ("should not", "shouldn't"),
    ("could not", "couldn't"),
    ("would not", "wouldn't"),
    ("i am", "i'm"),
    ("i have", "i've"),
    ("i will", "i'll"),
    ("can you", "could you"),
    ("how do i", "how can i"),
    ("how does one", "how do you"),
    ("tell me", "let me know"),
    ("show me", "give me"),
    ("i want to", "i would like to"),
    ("for example", "for instance"),
    ("a lot of", "lots of"),
    ("have to", "need to"),
)
"""English, in either direction."""
SHORTER = {
    "what is": "what's",
    "where is": "where's",
    "who is": "who's",
    "how is": "how's",
    "that is": "that's",
    "it is": "it's",
    "in order to": "to",
}
"""In this direction alone: what takes their place says other things, too (`it's` may be `it has`)."""


class Paraphrase(Augment):
    """Whole words, in any case; the first letter's case is kept."""

    advice: ClassVar[Advice] = Advice(
        "few questions, of which users will ask in other words", "exact words matter: quotations, code, names"
    )

    kind: Literal["paraphrase"] = "paraphrase"
    rate: float = Field(0.5, gt=0, le=1, examples=[1.0])
    """Part of the places (0 to 1) at which a rule applies that are changed. Default: half, so that copies differ."""
    rules: dict[str, str] = Field({}, examples=[{"the": "this"}])
    """Phrases of your own and what takes their place, before ours where both begin at a word. Default: none."""
    english: bool = Field(True, examples=[False])
    """Whether our rules for English apply: contractions and ways to ask. False for other languages."""

    @field_validator("rules")
    @classmethod
    def _phrases(cls, value: dict[str, str]) -> dict[str, str]:
        if empty := [phrase for phrase in value if not phrase.strip()]:
            raise ValueError(f"the phrase {empty[0]!r} has no word")
        return value

    def change(self, text: str, drawn: Callable[[], float]) -> str:
        rules = {**(_english() if self.english else {}), **{phrase.lower(): to for phrase, to in self.rules.items()}}
        if not rules:
            return text
        found = _pattern(tuple(sorted(rules, key=lambda phrase: (phrase not in self.rules, -len(phrase), phrase))))
        return found.sub(lambda match: _cased(rules[match[0].lower()], match[0]) if drawn() < self.rate else match[0], text)


@cache
def _english() -> dict[str, str]:
    return {**SHORTER, **dict(ALIKE), **{other: one for one, other in ALIKE}}


@cache
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, phrases))})(?![\w'])", re.IGNORECASE)


def _cased(phrase: str, like: str) -> str:
    """With a capital where the text has one; `i` alone is always one."""
    phrase = re.sub(r"\bi\b", "I", phrase)
    return phrase[:1].upper() + phrase[1:] if like[:1].isupper() else phrase
