"""Gemma 3: norms before and after each part, and most layers look back through a short window only.

Source: Gemma Team 2025, "Gemma 3 Technical Report", arXiv:2503.19786, section 2 (pre- and post-norm with RMSNorm, QK-norm, 5
local layers for each global one, rotary base 10,000 in local and 1,000,000 in global layers) and, for what it takes over
(embeddings times the root of the width, GeGLU), Gemma Team 2024, arXiv:2403.08295, section 2. Proportions are those of the
released 1B model, https://huggingface.co/google/gemma-3-1b-pt. Differs from the paper: a model with fewer layers than one round
of the pattern has its last layer global, else no layer would see further than the window.

Starting weights: normal with std 0.02, that of the released configurations; norms multiply with 1 + weight and their weights
start at 0, as in the released code (https://github.com/google/gemma_pytorch). A norm follows each part, so its size at the
start does not depend on a smaller deviation of the last matrix, and there is none.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import check_heads, check_split, decoder, noise, rope, width_and_heads


class Gemma(Architecture):
    """A decoder for long contexts: keys and values of most layers stay as short as the window."""

    opens_as: ClassVar[tuple[str, ...]] = ("causal", "sequence", "vectors")  # transformers has no classifier of tokens for it
    advice: ClassVar[Advice] = Advice(
        "long contexts on little memory: most layers keep a window of keys and values only",
        "short rows: it is slower than `llama` there",
    )

    kind: Literal["gemma"] = "gemma"
    depth: int = Field(4, ge=2, examples=[2])
    """The dial: number of layers; width is 64 times it. Weights grow with its cube. 4: about 6M weights, minutes on a laptop."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; must divide the width. Unset: one per 64 of width."""
    kv_heads: int | None = Field(None, ge=1, examples=[1])
    """Key/value heads; more tell more apart and make generation dearer. Unset: one for every four heads, as in the 1B model."""
    head_dim: int = Field(64, ge=2, examples=[32])
    """Width of a head; wider heads tell more apart and cost in proportion. 64: the heads together are as wide as the model, about
    as in the 1B model, whose four are 256 wide."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of the gated MLP. Unset: 6 times the width, as in the 1B model."""
    tied: bool = Field(True, examples=[False])
    """Head and embeddings are the same weights (arXiv:1608.05859); false doubles them. True: every released size."""
    window: int = Field(512, ge=1, examples=[64])
    """Tokens that a local layer sees, itself included; more sees further and costs memory. 512: the 1B model's."""
    local_layers: int = Field(5, ge=1, examples=[1])
    """Local layers before each global one; more of them make long contexts cheaper. 5: section 2 of the report."""
    rope_theta: float = Field(1_000_000.0, gt=0, examples=[50_000.0])
    """Base of the rotary frequencies of global layers; higher reaches further back. 1,000,000: section 2 of the report."""
    rope_theta_local: float = Field(10_000.0, gt=0, examples=[1000.0])
    """Base of the rotary frequencies of local layers; higher reaches further back. 10,000: section 2 of the report."""

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        kv_heads = self.kv_heads or (heads // 4 if heads % 4 == 0 else 1)
        check_split(hidden, heads)
        check_heads(heads, kv_heads, self.head_dim)
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or 6 * hidden,
            heads=heads,
            kv_heads=kv_heads,
            vocab=vocab,
            tied=self.tied,
            head_dim=self.head_dim,
            norms=4,
            qk_norm=True,
            window=self.window,
            windowed_layers=self.layer_types().count("sliding_attention"),
        )

    def layer_types(self) -> list[str]:
        """Layer by layer, in transformers' words."""
        sees_all = [(layer + 1) % (self.local_layers + 1) == 0 for layer in range(self.depth)]
        if not any(sees_all):
            sees_all[-1] = True
        return ["full_attention" if far else "sliding_attention" for far in sees_all]

    def config(self, vocab: int, context: int) -> Any:
        from transformers import Gemma3TextConfig

        return Gemma3TextConfig(
            **decoder(self.shape(vocab), context),
            head_dim=self.head_dim,
            query_pre_attn_scalar=self.head_dim,
            sliding_window=self.window,
            layer_types=self.layer_types(),
            rope_parameters={"full_attention": rope(self.rope_theta), "sliding_attention": rope(self.rope_theta_local)},
            pad_token_id=None,  # its own default, 0, would keep the embedding of our first token from learning
            bos_token_id=None,
            eos_token_id=None,
        )

    def initialise(self, model: Any) -> None:
        noise(model, smaller=())
