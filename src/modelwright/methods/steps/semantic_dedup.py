"""Semantic duplicates: drops rows that say what an earlier row says, in other order or other words.

Source: Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication", arXiv:2303.09540
(vectors, groups by k-means, cosines within each). Differs: the first row of those alike stays, not the one farthest from its
centre, as in the other steps; a row is compared only with rows that stay, so that no chain of them is followed; and without a
model, vectors come from words (`text/vectors.py`).
"""

# Shape suffixes: R rows, V coordinates of a vector, P pieces, N positions.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.core.stage import Accepts, Run
from modelwright.methods.steps import Choice, Choosing, Numbers, Why, content
from modelwright.methods.steps._model import Reader, opened, packed, windows


class SemanticDedup(Choosing):
    """Documents, and chats by the text of all their turns. A row without words stays."""

    bytes_per_s: ClassVar[float] = 50e6
    advice: ClassVar[Advice] = Advice(
        "rows are reworded or reordered copies: generated questions, mirrored pages, templates that were filled in",
        "rows ask for different things in the same words by design",
    )

    kind: Literal["semantic_dedup"] = "semantic_dedup"
    threshold: float = Field(0.85, gt=0, le=1, examples=[0.5])
    """Cosine (0 to 1) from which two rows say the same; lowering it drops more. Default, for vectors of words: reached while less
    than a fifth of the words differ, in any order; two documents by chance have 0.1, one pair in a thousand 0.46 (measured on
    4,100 documents of a machine). A model has a scale of its own: look at the samples of what went."""
    model: Annotated[str, Accepts(("model",))] | None = Field(None, examples=["./judge/"])
    """Reference to a model whose hidden states make the vectors, pooled as its own files say (those of a `contrastive` training
    do), else their mean. It sees the same meaning in other words, and is some thousand times slower. Default: words alone."""
    window: int | None = Field(None, ge=2, examples=[16])
    """Tokens that the model sees at once; a longer row's vector is the mean of those of its windows. Default: as many as the
    model can see, at most 512."""

    _opened: dict[str, tuple[Reader, str]] = PrivateAttr(default_factory=dict)

    def unused(self, context: Spec) -> dict[str, str]:
        return {"window": "without `model`, words are looked at"} if self.model is None else {}

    def numbers(self, rows: Sequence[Record], run: Run) -> Numbers:
        import numpy as np

        texts = list(map(content, rows))
        if self.model is None:
            from modelwright.text import Texts
            from modelwright.text.vectors import of_words

            return {"vector": of_words(Texts.of(texts)).astype(np.float16)}
        return {"vector": self._of_model(str(run.inputs[self.model].path), texts)}

    def _of_model(self, path: str, texts: Sequence[str]) -> Any:
        """[R, V] float16 of length 1."""
        import numpy as np

        if path not in self._opened:
            self._opened[path] = opened(path, self.window, head="vectors"), _pooling(Path(path))
        reader, pooling = self._opened[path]
        total_RV: Any = None
        for group in windows(reader, texts):
            vector_PV = _pooled(reader, group, pooling)
            if total_RV is None:
                total_RV = np.zeros((len(texts), vector_PV.shape[1]))
            for (row, piece), vector_V in zip(group, vector_PV, strict=True):
                total_RV[row] += vector_V * len(piece)
        if total_RV is None:
            total_RV = np.zeros((len(texts), reader.trunk.model.config.hidden_size))
        length_R = np.sqrt((total_RV * total_RV).sum(1, keepdims=True))
        return (total_RV / np.where(length_R > 0, length_R, 1)).astype(np.float16)

    def memory_bytes(self, rows: float, bytes_in: float) -> float:
        return (3 * 4 + 2) * 256 * rows  # as they come, and three copies in float32 while what is shared is taken away

    def chooser(self, run: Run) -> Choice:
        from modelwright.text.vectors import SHARED, alike, apart

        def choose(numbers: Numbers, rows: Sequence[Record]) -> dict[int, Why]:
            vector_RV = apart(numbers["vector"], SHARED if self.model is None else 0)
            return {
                twin.document: Why("semantic duplicate", f"like {rows[twin.like].id}, cosine {twin.cosine:.2f}")
                for twin in alike(vector_RV, self.threshold)
            }

        return choose


def _pooling(path: Path) -> str:
    """What the model's own files say (those of sentence-transformers), else the mean."""
    import json

    file = path / "1_Pooling" / "config.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    return "first" if told.get("pooling_mode_cls_token") else "last" if told.get("pooling_mode_lasttoken") else "mean"


def _pooled(reader: Reader, group: Sequence[tuple[int, list[int]]], pooling: str) -> Any:
    """[P, V] a vector of each piece."""
    import torch

    ids_T, layout = packed(reader, group)
    with torch.no_grad():
        hidden_TV = reader.trunk.hidden(ids_T, layout, torch.float32).float()
    take = {"first": slice(0, 1), "last": slice(-1, None)}.get(pooling, slice(None))
    return torch.stack([hidden_TV[one.start : one.stop][take].mean(0) for one in layout.segments]).cpu().numpy()
