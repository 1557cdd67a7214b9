"""Mixture of experts: Qwen3's decoder with many small MLPs in each layer, of which a router takes a few for each token.

Source: Yang et al. 2025, "Qwen3 Technical Report", arXiv:2505.09388, section 2 (fine-grained experts, none that all tokens share)
and the released Qwen3-30B-A3B, https://huggingface.co/Qwen/Qwen3-30B-A3B. The router is kept even by the loss of Fedus et al.
2021, "Switch Transformers", arXiv:2101.03961, equation 4, and its logits small by that of Zoph et al. 2022, "ST-MoE",
arXiv:2202.08906, equation 5 (`nn/experts.py`). Starting weights: as in `qwen3`; the router's are normal with std 0.02, that of
the released configurations.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.estimate import Shape
from modelwright.core.spec import Advice
from modelwright.methods.architectures import Architecture
from modelwright.methods.architectures._common import check_heads, decoder, half_of, noise, rope, up_to, width_and_heads


class Moe(Architecture):
    """More weights for the same work on each token; all of them have to be in memory."""

    version: ClassVar[int] = 2
    own: ClassVar[bool] = False
    advice: ClassVar[Advice] = Advice(
        "memory is plentiful and time is short, and there are tokens enough to teach every expert",
        "minutes on a processor or small data: a dense model learns more there",
        needs="texts, billions of tokens",
        cost=1.0,
        memory=4.0,
        quality="as for any pretraining",
        deployment="memory for all experts, work for those that a token takes",
        source=(
            "Fedus et al. 2021, arXiv:2101.03961; Jiang et al. 2024, arXiv:2401.04088 (47B weights, 13B a token: "
            "memory 3.6 times that of a dense model with the same work)"
        ),
    )

    kind: Literal["moe"] = "moe"
    depth: int = Field(4, ge=1, examples=[2])
    """The dial: number of layers; width is 64 times it. Weights grow with its cube. 4: about 12M weights, 5M at work on a
    token."""
    hidden: int | None = Field(None, ge=8, examples=[64])
    """Width; more of it costs quadratically. Unset: 64 * depth."""
    heads: int | None = Field(None, ge=1, examples=[2])
    """Attention heads; more of them look at more places. Unset: one per 64 of width."""
    kv_heads: int | None = Field(None, ge=1, examples=[1])
    """Key/value heads; fewer make generation cheaper (grouped-query attention, arXiv:2305.13245). Unset: half as many as heads,
    or as many where those are odd."""
    head_dim: int = Field(128, ge=2, examples=[32])
    """Width of a head, which need not divide the model's; wider heads tell more apart and cost in proportion. 128: all released
    sizes."""
    experts: int = Field(8, ge=2, examples=[4])
    """MLPs of a layer; more know more, take memory in proportion, and each sees fewer tokens. 8 as in Mixtral (arXiv:2401.04088);
    the released Qwen3 models have 128."""
    experts_per_token: int = Field(2, ge=1, examples=[1])
    """MLPs at work on a token; more cost time in proportion. 2 as in Mixtral. With 1 the output is scaled with the router's
    probability (Switch), else with probabilities that sum to 1."""
    intermediate: int | None = Field(None, ge=8, examples=[96])
    """Width of each expert's gated MLP. Unset: so that those at work on a token are together 3 times the width, as in
    Qwen3-30B-A3B, up to a multiple of 32."""
    balance: float = Field(0.01, ge=0, examples=[0.1])
    """Weight of the loss that spreads the tokens of a step evenly over experts, whatever each text does (arXiv:2501.11873); more
    of it is more even and disturbs learning more. 0.01: Switch, section 2.2."""
    router_z: float = Field(0.001, ge=0, examples=[0.1])
    """Weight of the loss that keeps the router's logits small; more is steadier and less sure. 0.001 as in ST-MoE."""
    tied: bool = Field(True, examples=[False])
    """Head and embeddings are the same weights (arXiv:1608.05859); false doubles them. True: small models gain by it."""
    rope_theta: float = Field(10_000.0, gt=0, examples=[500_000.0])
    """Base of the rotary frequencies; higher reaches further back. 10,000 as before the report's long-context stage."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.experts_per_token > self.experts:
            raise PydanticCustomError(
                "experts",
                "`experts_per_token` {taken} is more than the {experts} `experts` there are",
                {"taken": self.experts_per_token, "experts": self.experts},
            )
        return self

    def shape(self, vocab: int) -> Shape:
        hidden, heads = width_and_heads(self.depth, self.hidden, self.heads)
        kv_heads = self.kv_heads or half_of(heads)
        check_heads(heads, kv_heads, self.head_dim)
        return Shape(
            layers=self.depth,
            hidden=hidden,
            intermediate=self.intermediate or up_to(3 * hidden / self.experts_per_token, 32),
            heads=heads,
            kv_heads=kv_heads,
            vocab=vocab,
            tied=self.tied,
            head_dim=self.head_dim,
            qk_norm=True,
            experts=self.experts,
            experts_per_token=self.experts_per_token,
        )

    def config(self, vocab: int, context: int) -> Any:
        from transformers import Qwen3MoeConfig

        shape = self.shape(vocab)
        fields = {
            **decoder(shape, context),
            "intermediate_size": shape.intermediate * shape.experts_per_token,
            "moe_intermediate_size": shape.intermediate,
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.experts_per_token,
            # of one alone it is 1, and the router would learn nothing from the text
            "norm_topk_prob": shape.experts_per_token > 1,
            "router_aux_loss_coef": self.balance,
            # not declared there, but kept in config.json: the released models' width of heads, ST-MoE's weight
            "head_dim": shape.head_dim,
            "router_z_loss_coef": self.router_z,
        }
        return Qwen3MoeConfig(**fields, rope_parameters=rope(self.rope_theta))

    def initialise(self, model: Any) -> None:
        noise(model)
