"""Contrastive: a text's vector near that of its partner, far from those of all other texts of the step.

Source: Gao et al. 2021, "SimCSE", arXiv:2104.08821: equation 5 (supervised: partners and hard negatives of the batch), equation 4
(`partner: itself`, the same text under two dropout masks). The same loss with `query` and `passage` is E5's, Wang et al. 2022,
arXiv:2212.03533, equation 1. The step is computed in micro-batches that fit and counts as one: Gao et al. 2021, GradCache,
arXiv:2101.06983. Differs from SimCSE: no layer is put behind the pooling while training. Beside the model are the files that
sentence-transformers reads (https://sbert.net/docs/package_reference/sentence_transformer/SentenceTransformer.html): its pooling
and, as `prompts`, what stands before texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.record import Record
from modelwright.core.spec import Advice, Spec
from modelwright.methods.objectives import Asks, Batch, Head, Loss, Needs, Objective, Policy

if TYPE_CHECKING:
    from modelwright.nn.rows import Packed

SIMCSE_DROPOUT = 0.1
"""The best of table 3 of SimCSE, and BERT's own."""
_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
_POOLINGS = {"first": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}


class Contrastive(Objective):
    """Mean over texts of -log softmax(cosine to its partner / temperature) among all partners and negatives of the step;
    `accuracy` is the share of texts whose partner is the nearest."""

    needs: ClassVar[Needs] = "groups"
    asks: ClassVar[Asks] = "vectors"
    head: ClassVar[Head] = "vectors"
    whole_step: ClassVar[bool] = True
    target_frac: ClassVar[float] = 0.0
    advice: ClassVar[Advice] = Advice(
        "texts will be searched or compared by meaning, and there are pairs that belong together, or texts alone (`itself`)",
        "there are labels, not pairs: `classify`",
        needs="pairs of texts that belong together, or texts alone",
        cost=1.0,
        memory=1.0,
        quality="pairs as they will be asked: a question and the passage that answers it",
        deployment="vectors once for every document, one for each question, and an index",
        source="Reimers and Gurevych 2019, arXiv:1908.10084; Gao et al. 2021, arXiv:2104.08821 (texts alone)",
    )

    kind: Literal["contrastive"] = "contrastive"
    partner: Literal["given", "itself"] = Field("given", examples=["itself"])
    """Whose vector a text's is near to: `given` by the row, or that of the text `itself` under another dropout mask, where rows
    are texts alone. Default: pairs teach more than dropout (SimCSE, table 5)."""
    positive: str = Field("positive", min_length=1, examples=["answer"])
    """Key of a row that holds its partner (rows of `{text, positive, negatives}`; in our own records keys of `meta`)."""
    negatives: str = Field("negatives", min_length=1, examples=["wrong"])
    """Key of a row that holds hard negatives: texts that look like a partner and are none. Rows without the key have none."""
    query: str = Field("", examples=["query: "])
    """Put before each text, in training and, by the saved `prompts`, in use, so that questions and answers can lie apart. E5 has
    "query: ", for texts of one kind before all. Default: nothing to forget in use."""
    passage: str = Field("", examples=["passage: "])
    """Put before each partner and negative; E5 has "passage: "."""
    dropout: float | None = Field(None, ge=0, lt=1, examples=[0.2])
    """Share of each sub-layer's results that is dropped in place of the model's own dropout; masks depend on the seed, the step
    and the row. More makes two passes differ more. Unset: 0.1 for `partner: itself`, which needs some, as in SimCSE; else the
    model's own."""
    temperature: float = Field(0.05, gt=0, examples=[0.01])
    """What cosines are divided by; lower looks at the nearest wrong texts alone. 0.05 as in SimCSE; E5 takes 0.01."""
    pooling: Literal["mean", "first", "last"] = Field("mean", examples=["last"])
    """Which hidden states make a text's vector: the mean of all, the first token's or the last one's (for decoders, where only it
    has seen the whole text). `mean` as in E5."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.partner == "itself" and self.dropout == 0:
            raise PydanticCustomError("dropout", "without dropout both passes of a text are equal, and nothing is learned")
        return self

    def unused(self, context: Spec) -> dict[str, str]:
        return {"positive": "a text is its own partner"} if self.partner == "itself" else {}

    def parts(self, record: Record) -> list[str]:
        partner = record.text if self.partner == "itself" else record.meta.get(self.positive)
        others = record.meta.get(self.negatives) or []
        if not isinstance(partner, str) or not partner:
            raise ValueError(f"no text in `{self.positive}`")
        if isinstance(others, str):
            others = [others]
        if not isinstance(others, list) or not all(isinstance(other, str) and other for other in others):
            raise ValueError(f"`{self.negatives}` is no list of texts")
        return [self.query + record.text, *(self.passage + text for text in (partner, *others))]

    def change(self, tokenizer: Any, seed: int) -> Callable[[Packed], Packed] | None:
        from modelwright.nn.dropout import Dropout
        from modelwright.nn.gradcache import pooled

        rate = SIMCSE_DROPOUT if self.dropout is None and self.partner == "itself" else self.dropout
        dropout = None if rate is None else Dropout(rate, seed)
        return lambda batch: pooled(batch, self.pooling)._replace(dropout=dropout)

    def beside(self, width: int) -> dict[str, Any]:
        kinds = "sentence_transformers.models"
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"{kinds}.{kind}"}
            for number, (path, kind) in enumerate(_MODULES)
        ]
        pooling = {name: where == self.pooling for where, name in _POOLINGS.items()}
        prompts = {"query": self.query, "passage": self.passage}
        return {
            "modules.json": modules,
            "1_Pooling/config.json": {"word_embedding_dimension": width, **pooling, "include_prompt": True},
            "config_sentence_transformers.json": {
                "prompts": prompts,
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        }

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        import torch
        from torch.nn.functional import cross_entropy, normalize

        assert batch.group_S is not None
        vector_SD = normalize(policy.vectors(), dim=1)
        first_S = torch.ones_like(batch.group_S, dtype=torch.bool)
        first_S[1:] = batch.group_S[1:] != batch.group_S[:-1]
        anchor_G, candidate_C = first_S.nonzero()[:, 0], (~first_S).nonzero()[:, 0]
        partner_G = torch.searchsorted(candidate_C, anchor_G + 1)
        score_GC = vector_SD[anchor_G] @ vector_SD[candidate_C].t() / self.temperature
        right_G = score_GC.detach().argmax(1) == partner_G
        weight = vector_SD.new_tensor(float(len(anchor_G)))
        return Loss(cross_entropy(score_GC, partner_G, reduction="sum"), weight, {"accuracy": right_G.float().sum()})
