"""Decontaminate: takes out of the training text what a model will be measured on.

Sources: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C (runs of 13 words); that a match
may need the item's answer near by follows Ai2's `decon` (https://github.com/allenai/decon).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.core.stage import Accepts, Run
from modelwright.methods.sources import open_records
from modelwright.methods.steps import Cut, Drop, Judge, Step, batches, content, spoken
from modelwright.methods.steps._rows import ONE_OR_MORE


class Item(NamedTuple):
    """A test item."""

    name: str
    ngram: int
    runs: frozenset[int]
    """Of its question."""
    words: int
    answer: Any
    """Hashes of the answer's words; empty where it has none."""


class Decontaminate(Step):
    """Rows that hold a test item go."""

    bytes_per_s: ClassVar[float] = 60e6
    advice: ClassVar[Advice] = Advice(
        "anything is measured on a published test set, and the text comes from elsewhere",
        "test and training rows are made from the same material: then `held_out` cuts what is alike, too",
    )

    kind: Literal["decontaminate"] = "decontaminate"
    against: Annotated[
        tuple[Annotated[str, Accepts(("records",))], ...],
        ONE_OR_MORE,
        Field(min_length=1, examples=[("./other.jsonl",)]),
    ]
    """References to the test items: one, or a list. Of a chat the questions count; the last answer is its answer."""
    ngram: int = Field(13, ge=2, le=50, examples=[6])
    """Words of a run that has to be the same. Shorter finds more and errs more. Default: GPT-3's."""
    min_words: int = Field(8, ge=2, examples=[3])
    """Items with fewer words are not looked for, which is told. Those between this and `ngram` are looked for as a whole. Our own
    default: shorter ones are phrases that stand in many texts."""
    share: float = Field(0.5, gt=0, le=1, examples=[1.0])
    """Part of an item's runs that has to be in a row (0 to 1). Lower finds pieces of items, and phrases that they share with
    other text. Our own default: half of an item, so that a common phrase takes nothing out."""
    answer: Literal["any", "near"] = Field("any", examples=["near"])
    """`near`: an item that has an answer counts only where that stands within `answer_words` of the question. `any`: a known
    question is enough, the safer choice."""
    answer_words: int = Field(50, ge=1, examples=[2])
    """Words before and behind the question in which its answer is looked for."""

    def unused(self, context: Spec) -> dict[str, str]:
        return {"answer_words": "`answer: any` looks for no answer"} if self.answer == "any" else {}

    def apply(self, rows: Iterator[Record], run: Run) -> Iterator[Record | Cut | Drop]:
        return self.ready(run)(rows)

    def ready(self, run: Run) -> Judge:
        import numpy as np

        from modelwright.text import Texts
        from modelwright.text.ngrams import Runs

        items = self._items(run)
        owners: dict[int, list[Item]] = {}
        for item in items:
            for gram in item.runs:
                owners.setdefault(gram, []).append(item)
        lengths = sorted({item.ngram for item in items})
        wanted = [Runs([np.array(list(i.runs), np.uint64) for i in items if i.ngram == n], n) for n in lengths]

        def judge(rows: Iterator[Record]) -> Iterator[Record | Drop]:
            for batch in batches(rows):
                texts = Texts.of(map(content, batch))
                hits: dict[int, list[tuple[int, int]]] = {}
                for runs in wanted:
                    found = runs.find(texts)
                    for document in np.unique(found.document_F).tolist():
                        part = slice(*np.searchsorted(found.document_F, (document, document + 1)))
                        gram_F, word_F = found.hash_F[part], found.word_F[part]
                        if self.answer == "any":  # where else a run stands matters to answers alone
                            gram_F, first = np.unique(gram_F, return_index=True)
                            word_F = word_F[first]
                        hits.setdefault(document, []).extend(zip(gram_F.tolist(), word_F.tolist(), strict=True))
                for index, record in enumerate(batch):
                    hit = self._best(hits[index], owners, texts.text(index)) if index in hits else None
                    yield Drop(record, "decontaminate: holds a test item", hit) if hit else record

        return judge

    def _items(self, run: Run) -> list[Item]:
        from modelwright.text.ngrams import runs_of, words_of

        items, short = [], 0
        for ref in self.against:
            for record in open_records(run.inputs[ref], run.log):
                question, answer = _asked(record)
                words = len(words_of(question))
                if words < self.min_words:
                    short += 1
                    continue
                ngram = min(self.ngram, words)
                items.append(Item(record.id, ngram, frozenset(runs_of(question, ngram).tolist()), words, words_of(answer)))
        if not items:
            raise UserError(
                f"no test item is long enough to be looked for in {', '.join(self.against)}",
                f"all {short} have fewer than {self.min_words} words",
                "lower `min_words`, or leave the step out",
            )
        if short:
            run.log.note(f"decontaminate: {short} test items of fewer than {self.min_words} words are not looked for")
        return items

    def _best(self, hits: list[tuple[int, int]], owners: dict[int, list[Item]], text: str) -> str | None:
        """The item that a row holds most of, where it holds enough of one."""
        grams: dict[int, set[int]] = {}
        places: dict[int, list[int]] = {}
        named: dict[int, Item] = {}
        for gram, word in hits:
            for item in owners[gram]:
                grams.setdefault(id(item), set()).add(gram)
                places.setdefault(id(item), []).append(word)
                named[id(item)] = item
        best: tuple[float, str] = (0.0, "")
        for key, found in grams.items():
            item, share = named[key], len(found) / len(named[key].runs)
            if share >= self.share and share > best[0] and self._answered(item, places[key], text):
                best = (share, item.name)
        return f"{best[1]}, {best[0]:.0%} of its runs of words" if best[1] else None

    def _answered(self, item: Item, words: list[int], text: str) -> bool:
        """Whether the item's answer stands near these places, where that is asked for."""
        from modelwright.text.ngrams import words_of

        if self.answer == "any" or not len(item.answer):
            return True
        near = words_of(text)[max(min(words) - self.answer_words, 0) : max(words) + item.ngram + self.answer_words].tolist()
        answer = item.answer.tolist()
        return any(near[at : at + len(answer)] == answer for at in range(len(near) - len(answer) + 1))


def _asked(record: Record) -> tuple[str, str]:
    """Question and answer of a test item."""
    if record.text:
        return record.text, ""
    turns = [turn for turn in record.messages if turn.get("role") == "user"]
    answers = [turn for turn in (*record.messages, *record.chosen) if turn.get("role") == "assistant"]
    return "\n".join(map(spoken, turns)), spoken(answers[-1]) if answers else ""
