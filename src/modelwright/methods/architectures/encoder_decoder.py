"""Encoder-decoder: T5, which reads one text from both sides and writes another; for rewriting, translating and filling gaps.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv:1910.10683,
section 2.1, as T5 v1.1 changed it (https://github.com/google-research/text-to-text-transfer-transformer, the repository's
released_checkpoints.md): gated MLP with GELU, no dropout in pretraining. One difference: v1.1 has a head of its own; here it is
the embeddings, scaled, as in T5 itself, because transformers 5 builds no other. Width as 64 times the depth as in `llama`.
Starting weights: those of Mesh TensorFlow, which T5 was trained with: embeddings have std 1, a matrix with n inputs 1 / sqrt(n),
and queries are smaller by the root of a head's width, since scores are not divided by it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import up_to, width_and_heads


class EncoderDecoder(Architecture):
    """A small T5."""

    own: ClassVar[bool] = False
    opens_as: ClassVar[tuple[str, ...]] = ("seq2seq",)
    advice: ClassVar[Advice] = Advice(
        "a text becomes another one: translation, correction, filling gaps",
        "the model chats or goes on with texts, or is to run under llama.cpp: then a decoder",
    )

    kind: Literal["encoder_decoder"] = "encoder_decoder"
    depth: int = Field(4, ge=1, examples=[2])
    """The dial: layers of the encoder, and as many of the decoder; width is 64 times it. Weights grow with its cube. 4: about 6M
    weights, minutes on a laptop."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; more of them look at more places. Unset: one per 64 of width, as in T5's base and large sizes."""
    head_dim: int = Field(64, ge=1, examples=[16])
    """Width of a head, which need not divide the model's; wider heads tell more apart and cost in proportion. 64: all released
    sizes."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of the gated MLP. Unset: 8/3 of the width, up to a multiple of 64, as v1.1's base size (2,048 for 768)."""
    decoder_depth: int | None = Field(None, ge=1, examples=[1])
    """Layers of the decoder; fewer make writing faster. Unset: as many as the encoder's."""
    buckets: int = Field(32, ge=4, multiple_of=4, examples=[8])
    """Distances that attention tells apart, in each direction half as many of them; more are finer. 32 as in T5."""
    far: int = Field(128, ge=2, examples=[64])
    """Tokens from which on all distances are the same to attention; more reaches further and is coarser there. 128 as in T5."""

    @model_validator(mode="after")
    def _reach(self) -> Self:
        if self.far <= self.buckets // 2:
            raise PydanticCustomError(
                "far",
                "the nearest {half} tokens have a distance each: `far` {far} must be more than that, or `buckets` fewer",
                {"half": self.buckets // 2, "far": self.far},
            )
        return self

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or up_to(8 * hidden / 3, 64),
            heads=heads,
            kv_heads=heads,
            vocab=vocab,
            tied=True,
            head_dim=self.head_dim,
            decoder_layers=self.decoder_depth or self.depth,
            extra=2 * self.buckets * heads,  # a bias for each distance, in both halves
        )

    def config(self, vocab: int, context: int) -> Any:
        from transformers import T5Config

        shape = self.shape(vocab)
        return T5Config(
            vocab_size=vocab,
            d_model=shape.hidden,
            d_kv=shape.head_dim,
            d_ff=shape.intermediate,
            num_layers=shape.layers,
            num_decoder_layers=shape.decoder_layers,
            num_heads=shape.heads,
            relative_attention_num_buckets=self.buckets,
            relative_attention_max_distance=self.far,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            # the tokenizer's marks are not known here (`nn/seq2seq.begin`)
            pad_token_id=None,
            eos_token_id=None,
        )

    def initialise(self, model: Any) -> None:
        import torch

        config = model.config
        width, inner = config.d_model, config.num_heads * config.d_kv
        std = dict.fromkeys(("k", "v", "wi_0", "wi_1", "relative_attention_bias"), width**-0.5)
        std |= {"shared": 1.0, "q": (width * config.d_kv) ** -0.5, "o": inner**-0.5, "wo": config.d_ff**-0.5}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:  # norms stay at 1
                    parameter.normal_(0.0, std[name.split(".")[-2]])
