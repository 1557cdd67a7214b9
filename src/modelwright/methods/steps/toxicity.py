"""Toxicity: drops rows by a list of words, or by a classifier that learns from examples, or by both; neither is shipped.

Sources: word lists as in C4, Raffel et al. 2020, arXiv:1910.10683, section 2.2 (a page with any listed word goes); a linear
classifier of words and pairs of words as in Dolma, Soldaini et al. 2024, arXiv:2402.00159, section 5.3 (fastText trained on
Jigsaw's comments). Lists take whole dialects with them (Dodge et al. 2021, arXiv:2104.08758, section 5.3): look at the drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.core.stage import Accepts, Run
from modelwright.methods.sources import open_records
from modelwright.methods.steps import Bound, Drop, Measure, Measuring, Numbers, content
from modelwright.methods.steps._linear import Examples, known, learnt, told

if TYPE_CHECKING:
    from modelwright.text.listed import Phrases


class Toxicity(Measuring):
    """Documents, and chats by the text of all their turns."""

    bytes_per_s: ClassVar[float] = 100e6
    advice: ClassVar[Advice] = Advice("pages or comments that anyone may have written", "medical, legal or literary text")

    kind: Literal["toxicity"] = "toxicity"
    words: tuple[str, ...] = Field(examples=[("river",)])
    """Words and phrases, whatever their case; `[]` where a file or examples decide alone. No default: what offends depends on who
    reads it."""
    word_list: Annotated[str, Accepts(("records",))] | None = Field(None, examples=["./listed.txt"])
    """Reference to a list of words and phrases, one a line. Default: none."""
    max_count: int = Field(0, ge=0, examples=[3])
    """Hits up to which a row stays, however short it is; raising it keeps more. Default: as C4."""
    max_share: float = Field(0.0, ge=0, lt=1, examples=[0.02])
    """Share of a row's words (0 to 1) up to which hits are let pass, however many; raising it keeps long rows. Default: as C4."""
    toxic: Examples = Field((), examples=[("./toxic.jsonl",)])
    """References to rows such as have to go; with `clean`, 20 of each at least. Default: no classifier."""
    clean: Examples = Field((), examples=[("./clean.jsonl",)])
    """References to rows such as may stay. Default: no classifier."""
    threshold: float = Field(0.5, gt=0, lt=1, examples=[0.9])
    """Probability (0 to 1) of being toxic, were both sorts equally frequent, from which a row goes; raising it keeps more.
    Default: rather toxic than clean."""

    @model_validator(mode="after")
    def _has_something_to_go_by(self) -> Toxicity:
        if bool(self.toxic) != bool(self.clean):
            raise ValueError("a classifier needs both `toxic` and `clean` examples")
        if not (self.words or self.word_list or self.toxic):
            raise ValueError("needs `words`, a `word_list`, or `toxic` and `clean` examples; none is shipped")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        found = {}
        if not (self.words or self.word_list):
            found.update(dict.fromkeys(("max_count", "max_share"), "there are no words to count"))
        if not self.toxic:
            found["threshold"] = "there are no examples to learn from"
        return found

    def measured_by(self, run: Run) -> dict[str, Any] | None:
        read = known({"word_list": (self.word_list,) if self.word_list else (), "toxic": self.toxic, "clean": self.clean}, run)
        return read and {"name": "toxicity", "words": self.words, **read}

    def measurer(self, run: Run) -> Measure:
        import numpy as np

        from modelwright.text import Texts
        from modelwright.text.listed import hits

        phrases, classifier = self._phrases(run), None
        if self.toxic:
            found = learnt({"toxic": self.toxic, "clean": self.clean}, run)
            run.log.note(told("toxicity", found))
            classifier = found.classifier

        def measure(rows: Sequence[Record]) -> Numbers:
            texts = Texts.of(map(content, rows))
            words_D, hits_D, hit_words_D = hits(texts, phrases) if phrases else np.zeros((3, len(rows)), np.int64)
            toxic_D = classifier.good(texts) if classifier else np.full(len(rows), np.nan)
            return {"words": words_D, "hits": hits_D, "hit_words": hit_words_D, "toxic": toxic_D}

        return measure

    def bounds(self, numbers: Numbers) -> dict[str, Bound]:
        import numpy as np

        found = {"toxicity: like the toxic examples": self.at_most("probability of toxic", numbers["toxic"], "threshold")}
        if self.words or self.word_list:
            share_D = numbers["hit_words"] / np.maximum(numbers["words"], 1)
            found["toxicity: listed words"] = self.at_most("listed words", numbers["hits"], "max_count")
            found["toxicity: share of listed words"] = self.at_most("share of listed words", share_D, "max_share")
        return found

    def verdicts(self, rows: Sequence[Record], numbers: Numbers, bounds: Mapping[str, Bound]) -> Iterator[Record | Drop]:
        counts = (numbers[name].tolist() for name in ("hits", "hit_words", "words", "toxic"))
        for record, hits, hit_words, words, toxic in zip(rows, *counts, strict=True):
            if hits > self.max_count and hit_words > self.max_share * words:
                yield Drop(record, "toxicity: listed words", f"{hits} hits in {words} words")
            elif toxic >= self.threshold:
                yield Drop(record, "toxicity: like the toxic examples", f"{toxic:.3f}")
            else:
                yield record

    def _phrases(self, run: Run) -> Phrases | None:
        from modelwright.text.listed import Phrases

        if not (self.words or self.word_list):
            return None
        listed = list(self.words)
        if self.word_list:
            listed += [
                line for record in open_records(run.inputs[self.word_list], run.log) for line in content(record).splitlines()
            ]
        phrases = Phrases.of(listed)
        if not len(phrases.phrase_P):
            raise UserError(
                "the list has no words", f"{len(listed)} lines of {self.word_list or '`words`'}", "write one word a line"
            )
        return phrases
