"""Encoder: ModernBERT, which reads a text from both sides; for guessing hidden tokens, classifying and embedding.

Source: Warner et al. 2024, "Smarter, Better, Faster, Longer" (ModernBERT), arXiv:2412.13663, section 2.1: pre-norm, no biases,
rotary positions, gated MLP, and layers of which every third sees the whole text, the others a window; built by transformers.
Width as 64 times the depth as in `llama`. Starting weights: normal, std 0.02, cut at two of these, and 0.02 / sqrt(2 * layers)
for the two projections that add to the residual stream (Megatron-LM's rule, arXiv:1909.08053, which the paper follows).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import check_even_split, common, noise, rope, up_to, width_and_heads


class Encoder(Architecture):
    """A small ModernBERT."""

    own: ClassVar[bool] = False
    opens_as: ClassVar[tuple[str, ...]] = ("masked", "sequence", "tokens", "vectors")
    advice: ClassVar[Advice] = Advice(
        "the model will judge or embed texts: both sides of a word are seen at once", "the model has to write: then a decoder"
    )

    kind: Literal["encoder"] = "encoder"
    depth: int = Field(4, ge=1, examples=[2])
    """The dial: number of layers; width is 64 times it. Weights grow with its cube. 4: about 3M weights, minutes on a laptop."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; must divide the width. Unset: one per 64 of width, as in the paper's base and large sizes."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of the gated MLP. Unset: 3/2 of the width, up to a multiple of 64: the paper's base size has 1,152 for 768."""
    window: int = Field(128, ge=2, multiple_of=2, examples=[8])
    """Tokens around a token that the windowed layers see, half on each side; more costs time on long texts. The paper's 128."""
    global_every: int = Field(3, ge=1, examples=[1])
    """One layer in so many sees the whole text, the first among them; 1: all do. 3 as in the paper."""
    rope_theta: float = Field(10_000.0, gt=0, examples=[160_000.0])
    """Base of the rotary frequencies of the layers that see everything; higher reaches further. 10,000 as in the paper's first
    phase (1,024 tokens); 160,000 in its second (8,192)."""

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        check_even_split(hidden, heads)
        windowed = sum(layer % self.global_every > 0 for layer in range(self.depth))
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or up_to(3 * hidden / 2, 64),
            heads=heads,
            kv_heads=heads,
            vocab=vocab,
            tied=True,
            # a matrix before the head and the head's bias; norms after the embeddings and before the head, none before layer 1
            extra=hidden * hidden + hidden + vocab,
            window=self.window // 2 + 1 if windowed else 0,
            windowed_layers=windowed,
            both_ways=True,
        )

    def config(self, vocab: int, context: int) -> Any:
        from transformers import ModernBertConfig

        return ModernBertConfig(
            **common(self.shape(vocab), context),
            local_attention=self.window,
            layer_types=["sliding_attention" if i % self.global_every else "full_attention" for i in range(self.depth)],
            rope_parameters={"full_attention": rope(self.rope_theta), "sliding_attention": rope(10_000.0)},
            classifier_pooling="mean",  # no token of its own begins a text here
            # the tokenizer's marks are not known here; a padding token would get no gradient
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )

    def initialise(self, model: Any) -> None:
        noise(model, smaller=("Wo",), cut=True)
