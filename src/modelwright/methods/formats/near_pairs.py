"""Near pairs: a text, what belongs to it, and perhaps texts that only look so: `{"anchor", "positive", "negative"}`.

Sources: the pairs, triplets and n-tuples of sentence-transformers
(https://sbert.net/docs/sentence_transformer/dataset_overview.html); lists in `pos` and `neg` as in FlagEmbedding
(https://github.com/FlagOpen/FlagEmbedding/tree/master/examples/finetune/embedder). Rows of `{text, positive, negatives}`, as
`contrastive` reads them, are `text`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from modelwright.core.record import Record
from modelwright.methods.formats import Format, rest, with_meta, word

ANCHORS = ("anchor", "query", "question")
POSITIVES, NEGATIVES = ("positive", "pos"), ("negatives", "negative", "neg")


class NearPairs(Format):
    """Pairs that belong together, for `contrastive`: the partner is `meta.positive`, hard negatives are `meta.negatives`. A row
    with several partners gives a record for each."""

    kind: Literal["near_pairs"] = "near_pairs"
    anchor: str = Field("", examples=["title"])
    """Key of the text. Unset: whichever of anchor, query and question is there."""
    positive: str = Field("", examples=["body"])
    """Key of its partner, or of a list of them. Unset: positive or pos."""

    def fits(self, row: dict[str, Any]) -> str | None:
        anchor, positive = _key(row, self.anchor, ANCHORS), _key(row, self.positive, POSITIVES)
        partners = _texts(row.get(positive))
        if isinstance(row.get(anchor), str) and partners and all(isinstance(text, str) for text in partners):
            return f"it has `{anchor}` and `{positive}`"
        return None

    def record(self, row: dict[str, Any], name: str) -> Record:
        return self.records(row, name)[0]

    def records(self, row: dict[str, Any], name: str) -> list[Record]:
        anchor, positive = _key(row, self.anchor, ANCHORS), _key(row, self.positive, POSITIVES)
        text, partners = word(row, anchor), _texts(row.get(positive))
        against = [key for key in row if key in NEGATIVES or (key.startswith("negative_") and key[9:].isdigit())]
        negatives = [word({key: other}, key) for key in against for other in _texts(row[key])]
        meta = rest(row, (anchor, positive, *against)) | ({"negatives": negatives} if negatives else {})
        found = [meta | {"positive": word({positive: partner}, positive)} for partner in partners or [None]]
        return [Record(name if n == 1 else f"{name}#{n}", text=text, meta=one) for n, one in enumerate(found, 1)]

    def row(self, record: Record) -> dict[str, Any]:
        meta = dict(record.meta)
        if not record.text or not isinstance(meta.get("positive"), str):
            raise ValueError("there is no text in `meta.positive`")
        row = {self.anchor or "anchor": record.text, self.positive or "positive": meta.pop("positive")}
        return with_meta(row | ({"negatives": meta.pop("negatives")} if meta.get("negatives") else {}), meta)


def _key(row: dict[str, Any], named: str, usual: tuple[str, ...]) -> str:
    return named or next((key for key in usual if key in row), usual[0])


def _texts(value: Any) -> list[Any]:
    """What stands under a key: one text, or a list of them; null is none."""
    return [] if value is None else value if isinstance(value, list) else [value]
