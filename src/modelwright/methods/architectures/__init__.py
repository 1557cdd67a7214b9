"""Architectures: models from scratch, by one depth dial or explicit sizes. One file a kind, each a transformers configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from modelwright.core.estimate import Shape
from modelwright.core.spec import Kinds, Spec

ARCHITECTURES = Kinds(__name__, f"{__name__}:Architecture")


class Architecture(Spec):
    own: ClassVar[bool] = True
    """Whether the training engine's own forward pass knows it (`nn/forward.py`); else transformers' modules run."""
    opens_as: ClassVar[tuple[str, ...]] = ("causal", "sequence", "tokens", "vectors")
    """Heads that it can have, as objectives name them (`Objective.head`)."""

    def shape(self, vocab: int) -> Shape:
        """The sizes that the dial gives; pure arithmetic, for the planner."""
        raise NotImplementedError

    def config(self, vocab: int, context: int) -> Any:
        """A transformers configuration with these sizes."""
        raise NotImplementedError

    def initialise(self, model: Any) -> None:
        """Set random starting weights in place, by the cited rule. Called after the seed is set."""
        raise NotImplementedError


_NORMS = {"gemma3_text": 4}
"""Norms of a layer by `model_type`; else there are two."""
_QK_NORM = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
_BOTH_WAYS = frozenset({"modernbert", "bert"})
_EXPERTS = {"qwen3_moe": "moe_intermediate_size", "mixtral": "intermediate_size", "olmoe": "intermediate_size"}
"""Mixtures of experts by `model_type` -> the field that holds an expert's width."""


def shape_of(config: Any) -> Shape:
    """The sizes in a transformers configuration, of a decoder that an `Architecture` made or that was there before."""
    config = config.get_text_config()
    kind = config.model_type
    if kind == "t5":
        return _encoder_decoder(config)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, _EXPERTS.get(kind, "intermediate_size")),
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        head_dim=getattr(config, "head_dim", None) or 0,
        norms=_NORMS.get(kind, 2),
        qk_norm=kind in _QK_NORM,
        experts=config.num_experts if kind in _EXPERTS else 0,
        experts_per_token=config.num_experts_per_tok if kind in _EXPERTS else 0,
        both_ways=kind in _BOTH_WAYS,
        **_windows(config),
    )


def _windows(config: Any) -> dict[str, int]:
    """The window of layers that have one, and how many have."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    layers = kinds.count("sliding_attention")
    if not window or not layers:
        return {}
    # transformers counts an encoder's window to either side, without the token itself
    return {"window": window + (config.model_type in _BOTH_WAYS), "windowed_layers": layers}


def _encoder_decoder(config: Any) -> Shape:
    """The sizes of a T5. Those before v1.1 have MLPs without a gate, one matrix in three less; v1.1 has a head of its own."""
    shape = Shape(
        layers=config.num_layers,
        hidden=config.d_model,
        intermediate=config.d_ff,
        heads=config.num_heads,
        kv_heads=config.num_heads,
        vocab=config.vocab_size,
        tied=bool(config.scale_decoder_outputs),
        head_dim=config.d_kv,
        decoder_layers=config.num_decoder_layers,
        extra=2 * config.relative_attention_num_buckets * config.num_heads,
    )
    gates = 0 if config.is_gated_act else (shape.layers + shape.decoder_layers) * shape.hidden * shape.intermediate
    return shape.model_copy(update={"extra": shape.extra - gates})
