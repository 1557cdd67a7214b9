"""Classify tokens: a label for each word of a text (names, parts of speech), by a small layer on a pretrained model.

Source: Devlin et al. 2018, "BERT", arXiv:1810.04805, section 5.3: cross-entropy at the first piece of each word, no loss at its
other pieces. The layer and its names are those of transformers' `AutoModelForTokenClassification`, which opens the result. Spans
are counted as CoNLL-2003's script does (Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050, section 4): right where both ends
and the type are. Differs from BERT: no context of the document around a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.record import Record
from modelwright.core.spec import Advice
from modelwright.methods.objectives import Asks, Batch, Head, Loss, Needs, Objective, Policy, Tagged

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelwright.nn.rows import Packed

CONLL = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_WORD = re.compile(r"\w+|[^\w\s]")
_MARKS = ("B-", "I-")


class Span(NamedTuple):
    """Words `begin` to `end` are one name."""

    begin: int
    end: int
    type: str


class ClassifyTokens(Objective):
    """Mean over words of -log p(label | text); `accuracy` is the share of words with the right label, `f1` the harmonic mean of
    `precision` and `recall` over spans of words with the same label, or, with the labels B-x and I-x, over names."""

    needs: ClassVar[Needs] = "tags"
    asks: ClassVar[Asks] = "scores"
    head: ClassVar[Head] = "tokens"
    target_frac: ClassVar[float] = 0.0
    advice: ClassVar[Advice] = Advice(
        "names, dates or other stretches of a text are to be found and sorted",
        "the whole text gets one label: `classify`",
        needs="texts with a label for each word",
        least_rows=100,
        cost=1.0,
        memory=1.0,
        quality="spans marked by one rule throughout",
        deployment="one forward pass a text and no writing",
        source="Devlin et al. 2018, arXiv:1810.04805, section 5.3; rows as for `classify`",
    )

    kind: Literal["classify_tokens"] = "classify_tokens"
    words: str = Field("tokens", min_length=1, examples=["words"])
    """Key of a row that holds its words (rows of `{tokens, ner_tags}`; in our own records a key of `meta`). The row's text holds
    them in this order. Default: CoNLL-2003's."""
    tags: str = Field("ner_tags", min_length=1, examples=["tags"])
    """Key of a row that holds a label, or its number among `labels`, for each word."""
    spans: str = Field("spans", min_length=1, examples=["entities"])
    """Key of a row that holds labelled stretches of its text instead: `{start, end, label}` or `[start, end, label]`, counted in
    characters, the end excluded. Words are then runs of letters and digits, other signs alone; labels are B-x at a stretch's
    first word and I-x at its others, or x where `labels` has no such ones."""
    labels: tuple[str, ...] = Field(CONLL, min_length=2, examples=[("B-PER", "I-PER", "O")])
    """Every label, in the order of the model's outputs; they become the model's `id2label`. Rows with another one are left out
    and counted. Default: CoNLL-2003's."""
    outside: str = Field("O", examples=["B-PER"])
    """Label of words in no stretch; they are no spans. Default: CoNLL-2003's."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise PydanticCustomError("labels", "`labels`: each label once")
        if self.outside not in self.labels:
            raise PydanticCustomError("outside", "`outside` is one of `labels`: words in no stretch get it")
        return self

    def settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    # --- labels of a row ------------------------------------------------------------------------------

    def tagged(self, record: Record) -> list[Tagged]:
        if self.words in record.meta and self.tags in record.meta:
            return list(self._of_words(record.text, record.meta[self.words], record.meta[self.tags]))
        if self.spans in record.meta:
            return list(self._of_spans(record.text, record.meta[self.spans]))
        raise ValueError(f"no `{self.words}` with `{self.tags}`, and no `{self.spans}`")

    def _of_words(self, text: str, words: Any, tags: Any) -> Iterator[Tagged]:
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            raise ValueError(f"`{self.words}` and `{self.tags}` are no lists of one length")
        at = 0
        for word, tag in zip(words, tags, strict=True):
            begin = text.find(word, at) if isinstance(word, str) and word else -1
            if begin < 0:
                raise ValueError(f"a word of `{self.words}` that the text does not hold there")
            at = begin + len(word)
            yield Tagged(begin, at, self._number(tag))

    def _number(self, tag: Any) -> int:
        if isinstance(tag, str) and tag in self.labels:
            return self.labels.index(tag)
        if isinstance(tag, int) and not isinstance(tag, bool) and 0 <= tag < len(self.labels):
            return tag
        raise ValueError("a label that is not among `labels`")

    def _of_spans(self, text: str, given: Any) -> Iterator[Tagged]:
        spans = sorted(_span(item) for item in given) if isinstance(given, list) else None
        if spans is None or any(a.end > b.begin for a, b in pairwise(spans)):
            raise ValueError(f"`{self.spans}` is no list of stretches that do not overlap")
        words = [Span(*found.span(), "") for found in _WORD.finditer(text)]
        if not words:
            raise ValueError("a text without words")
        begins, ends = {word.begin for word in words}, {word.end for word in words}
        if any(span.begin not in begins or span.end not in ends for span in spans):
            raise ValueError("a stretch that begins or ends inside a word")
        for word in words:
            span = next((span for span in spans if span.begin <= word.begin < span.end), None)
            if span is None:
                yield Tagged(word.begin, word.end, self.labels.index(self.outside))
            else:
                marked = f"{_MARKS[word.begin > span.begin]}{span.type}"
                yield Tagged(word.begin, word.end, self._number(marked if marked in self.labels else span.type))

    def change(self, tokenizer: Any, seed: int) -> Callable[[Packed], Packed] | None:
        from modelwright.nn.sequence import at_tags

        return at_tags

    # --- loss -----------------------------------------------------------------------------------------

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        from torch.nn.functional import cross_entropy

        score_NC, label_N = policy.scores().float(), batch.target_N
        said_N = score_NC.detach().argmax(1)
        owners = batch.segment_N.tolist()
        wanted, said = (set(_runs([self.labels[i] for i in found.tolist()], owners, self.outside)) for found in (label_N, said_N))
        counts = {"right": len(wanted & said), "wanted": len(wanted), "said": len(said)}
        metrics = {"accuracy": (said_N == label_N).float().sum(), **{n: score_NC.new_tensor(float(c)) for n, c in counts.items()}}
        weight = score_NC.new_tensor(float(len(label_N)))
        return Loss(cross_entropy(score_NC, label_N, reduction="sum"), weight, metrics)

    def figures(self, values: dict[str, float]) -> dict[str, float]:
        """Precision, recall and F1 in place of the counts; 0 where there is nothing to find or nothing was said."""
        if not {"right", "wanted", "said"} <= values.keys():
            return values
        right, wanted, said = (values[name] for name in ("right", "wanted", "said"))
        kept = {name: value for name, value in values.items() if name not in ("right", "wanted", "said")}
        measures = {
            "precision": right / said if said else 0.0,
            "recall": right / wanted if wanted else 0.0,
            "f1": 2 * right / (wanted + said) if wanted + said else 0.0,
        }
        return {**kept, **{name: float(f"{value:.6g}") for name, value in measures.items()}}


def _span(item: Any) -> Span:
    values = [item.get(key) for key in ("start", "end", "label")] if isinstance(item, dict) else item
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not isinstance(values[2], str):
        raise ValueError("a stretch that is no start, end and label")
    begin, end, label = values
    if not isinstance(begin, int) or not isinstance(end, int) or not 0 <= begin < end:
        raise ValueError("a stretch that is no start, end and label")
    return Span(begin, end, label)


def _runs(labels: Sequence[str], owners: Sequence[int], outside: str) -> Iterator[Span]:
    """Runs of words of one type in one text; B-x begins a new one, and so does any label after another type."""
    begin, open_type, owner = 0, "", -1
    for place, label in enumerate([*labels, outside]):
        marked = label[:2] in _MARKS
        kind = "" if label == outside else label[2:] if marked else label
        here = owners[place] if place < len(owners) else -1
        if open_type and (kind != open_type or here != owner or label[:2] == "B-"):
            yield Span(begin, place, open_type)
            open_type = ""
        if kind and not open_type:
            begin, open_type = place, kind
        owner = here
