"""Qwen3: Llama's decoder with queries and keys normed head by head, which keeps attention's logits small at high rates.

Source: Yang et al. 2025, "Qwen3 Technical Report", arXiv:2505.09388, section 2 (grouped-query attention, no biases, QK-norm as in
Dehghani et al. 2023, arXiv:2302.05442); proportions are those of the released Qwen3-0.6B and 1.7B,
https://huggingface.co/Qwen/Qwen3-0.6B. The report does not say how weights start: as in `llama`, with the std 0.02 of the
released configurations.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import check_heads, decoder, half_of, noise, rope, width_and_heads


class Qwen3(Architecture):
    """A decoder that stays calm at high learning rates; transformers, llama.cpp and vLLM all know it."""

    advice: ClassVar[Advice] = Advice(
        "a model from scratch at a high rate, or one to be made a mixture of experts later",
        "the smallest models: heads of 128 make attention a larger share of the work than in `llama`",
    )

    kind: Literal["qwen3"] = "qwen3"
    depth: int = Field(4, ge=1, examples=[2])
    """The dial: number of layers; width is 64 times it. Weights grow with its cube. 4: about 5M weights, minutes on a laptop."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; more of them look at more places. Unset: one per 64 of width, as in Qwen3-0.6B."""
    kv_heads: int | None = Field(None, ge=1, examples=[1])
    """Key/value heads; fewer make generation cheaper (grouped-query attention, arXiv:2305.13245). Unset: half as many as heads,
    as in Qwen3-0.6B, or as many where those are odd."""
    head_dim: int = Field(128, ge=2, examples=[32])
    """Width of a head, which need not divide the model's; wider heads tell more apart and cost in proportion. 128: all released
    sizes."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of the gated MLP. Unset: 3 times the width, as in Qwen3-0.6B."""
    tied: bool = Field(True, examples=[False])
    """Head and embeddings are the same weights (arXiv:1608.05859); false doubles them. True: the released sizes up to 4B."""
    rope_theta: float = Field(10_000.0, gt=0, examples=[500_000.0])
    """Base of the rotary frequencies; higher reaches further back. 10,000 as before the report's long-context stage, which
    raises it to 1,000,000 (section 3.2)."""

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        kv_heads = self.kv_heads or half_of(heads)
        check_heads(heads, kv_heads, self.head_dim)
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or 3 * hidden,
            heads=heads,
            kv_heads=kv_heads,
            vocab=vocab,
            tied=self.tied,
            head_dim=self.head_dim,
            qk_norm=True,
        )

    def config(self, vocab: int, context: int) -> Any:
        from transformers import Qwen3Config

        fields = decoder(self.shape(vocab), context)
        return Qwen3Config(**fields, head_dim=self.head_dim, rope_parameters=rope(self.rope_theta))

    def initialise(self, model: Any) -> None:
        noise(model)
