"""Llama: pre-norm decoder with rotary positions, gated MLP and no biases; one dial, its depth.

Source: Touvron et al. 2023, "LLaMA", arXiv:2302.13971, section 2.2; width as 64 times the depth (with layers and heads in step)
follows Karpathy 2025, nanochat, https://github.com/karpathy/nanochat. Starting weights: normal with std 0.02, and
0.02 / sqrt(2 * layers) for the two projections that add to the residual stream (Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners", section 2.3), or an induction circuit (`nn/induction.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import check_even_split, check_heads, decoder, noise, rope, up_to, width_and_heads


class Llama(Architecture):
    """A small decoder that transformers, llama.cpp and vLLM all know."""

    advice: ClassVar[Advice] = Advice(
        "a model from scratch",
        "there is a pretrained model to start from",
        needs="texts: 20 tokens a weight",
        cost=1.0,
        memory=1.0,
        quality="as for any pretraining",
        deployment="every engine runs it",
        source="Touvron et al. 2023, arXiv:2302.13971; tokens: Hoffmann et al. 2022, arXiv:2203.15556, table 3",
    )

    kind: Literal["llama"] = "llama"
    depth: int = Field(4, ge=1, examples=[2])
    """The dial: number of layers; width is 64 times it. Weights grow with its cube. 4: about 4M weights, minutes on a laptop."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; must divide the width. Unset: one per 64 of width."""
    kv_heads: int | None = Field(None, ge=1, examples=[1])
    """Key/value heads; fewer make generation cheaper (grouped-query attention, arXiv:2305.13245). Unset: as many as heads."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of the gated MLP. Unset: 8/3 of the width, up to a multiple of 64, as in the paper."""
    tied: bool | None = Field(None, examples=[False])
    """Head and embeddings are the same weights (Press and Wolf 2017, arXiv:1608.05859); false doubles them. Unset: true, which
    small models gain by, but for `init: induction`, which needs a head of its own."""
    rope_theta: float = Field(10_000.0, gt=0, examples=[500_000.0])
    """Base of the rotary frequencies; higher reaches further back. 10,000 as in RoFormer (arXiv:2104.09864)."""
    init: Literal["normal", "induction"] = Field("normal", examples=["induction"])
    """First weights. `induction`: the first two layers begin as the circuit that copies from the prompt, which noise only becomes
    after millions of tokens; for small budgets where answers stand in the prompt. `normal`: noise, for everything else."""

    @model_validator(mode="after")
    def _circuit(self) -> Self:
        if self.init == "induction" and (self.tied or self.depth < 2):
            raise PydanticCustomError(
                "init", "`init: induction` needs a head of its own and two layers: leave `tied` out, `depth` 2 or more"
            )
        return self

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        kv_heads = self.kv_heads or heads
        check_even_split(hidden, heads)
        check_heads(heads, kv_heads, hidden // heads)
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or up_to(8 * hidden / 3, 64),
            heads=heads,
            kv_heads=kv_heads,
            vocab=vocab,
            tied=self.init == "normal" if self.tied is None else self.tied,
        )

    def config(self, vocab: int, context: int) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(**decoder(self.shape(vocab), context), rope_parameters=rope(self.rope_theta))

    def initialise(self, model: Any) -> None:
        noise(model)
        if self.init == "induction":
            from modelwright.nn.induction import install

            install(model)
