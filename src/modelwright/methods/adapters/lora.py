"""LoRA: two thin matrices beside each frozen one, through PEFT.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, equation 3; on all linear layers as in Dettmers et al. 2023, "QLoRA",
arXiv:2305.14314, section 4. Beside embeddings as PEFT has it.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.memory.weights import Place, Weight
from modelwright.core.spec import Advice
from modelwright.methods.adapters import Adapter

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Names of the projections in Llama-like models."""


class LoRA(Adapter):
    """Low-rank updates; merged into the weights at the end, and kept beside them in PEFT's format."""

    advice: ClassVar[Advice] = Advice(
        "memory is short, or the start must stay recognisable (preferences, small data)",
        "much new knowledge has to go in: train all weights",
        needs="whatever its objective needs",
        cost=0.7,
        memory=0.25,
        quality="as its objective",
        deployment="merged: nothing; beside the model: some MB, several on one base",
        source=(
            "Hu et al. 2021, arXiv:2106.09685; cost: 2.1 of 3 passes, since frozen weights get no gradient; "
            "memory: frozen weights lie in float32 here, 4 of 16 bytes (half of that where they lie in 16 bits)"
        ),
    )

    rate_factor: ClassVar[float] = 10.0  # Schulman et al. 2025, https://thinkingmachines.ai/blog/lora/: about 10 times, any rank

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, examples=[4])
    """Width of the added matrices; more can learn more and costs memory in proportion. 16: middle of the paper's table 6."""
    alpha: float | None = Field(None, gt=0, examples=[64.0])
    """Scale of the update is alpha / rank; higher acts like a higher rate. Unset: 2 * rank, common practice."""
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.1])
    """Share of inputs to the added matrices set to 0 while training; more regularises. 0: few epochs are run."""
    targets: Literal["all-linear", "attention"] = Field("all-linear", examples=["attention"])
    """Which matrices get an update: every linear layer but the head, or only attention's four."""
    ends: Literal["none", "head", "embeddings", "both"] = Field("none", examples=["head"])
    """Which of the two tables over the vocabulary get an update too: for new tokens, or a language that the start hardly knows.
    Each costs rank * (vocabulary + width) weights, and with `embeddings` or `both` transformers' modules run, with more memory.
    In a model that has one table for both, each gets an update of its own, and the merged model has two: it is larger by one.
    `none`: as in QLoRA."""

    def wrap(self, model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        if self.targets == "attention" and not any(name.endswith(ATTENTION) for name, _ in model.named_modules()):
            raise UserError(
                f"{type(model).__name__} has none of the attention matrices {', '.join(ATTENTION)}",
                "its layers are named otherwise",
                "set `targets: all-linear`",
            )
        alpha: Any = self.alpha or 2 * self.rank  # PEFT declares an int and computes with any number
        config = LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            lora_dropout=self.dropout,
            target_modules=self._matrices(model),
            bias="none",
            task_type="CAUSAL_LM" if model.can_generate() else None,  # PEFT looks for generation in what is named so
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT calls a name that transformers renamed
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # `models.merged` parts the two
            return get_peft_model(model, config)

    def _matrices(self, model: Any) -> str | list[str]:
        """Names of what gets an update, as PEFT takes them."""
        from torch import nn

        layers = self.targets if self.targets == "all-linear" else list(ATTENTION)
        if self.ends == "none":
            return layers
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        names = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
        if self.targets == "all-linear":  # PEFT's word for them cannot stand in a list
            layers = [name for name, module in names.items() if isinstance(module, nn.Linear) and module is not head]
        wanted = {"head": [head], "embeddings": [table], "both": [head, table]}[self.ends]
        found = [name for name, module in names.items() if any(module is end for end in wanted)]
        every = [module for _, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Embedding)]
        shared = sum(module.weight is table.weight for module in every)
        if len(found) < len(wanted) or (self.ends != "head" and shared > 1):
            raise UserError(
                f"{type(model).__name__} cannot have `ends: {self.ends}`",
                "its head is no linear layer, or several modules look tokens up in one table",
                "set `ends: none`",
            )
        return [*layers, *found]

    def own(self) -> bool:
        return not self.dropout and self.ends in ("none", "head")

    def trains_tables(self) -> bool:
        return self.ends != "none"

    def kept_bytes(self, inputs: float, readers: int, half: bool) -> float:
        size, low = (2.0, 2.0 * self.rank) if half else (4.0, 4.0 * self.rank)
        copies = readers if half or self.dropout else 1
        return readers * (low + self.noise_bytes(inputs)) + copies * size * inputs

    def noise_bytes(self, inputs: float) -> float:
        return 4.0 * inputs if self.dropout else 0.0

    def weights(self, shape: Shape) -> list[Weight]:
        width = shape.head_dim or shape.hidden // shape.heads
        queries, keys = width * shape.heads, width * shape.kv_heads
        looks = [(queries, shape.hidden), (keys, shape.hidden), (keys, shape.hidden), (shape.hidden, queries)]
        # layers that write look at what was read, too
        pairs: list[tuple[Place, tuple[int, int], int]] = [
            ("attention", sides, shape.layers + 2 * shape.decoder_layers) for sides in looks
        ]
        if self.targets == "all-linear":
            mlp = [(shape.intermediate, shape.hidden)] * 2 + [(shape.hidden, shape.intermediate)]
            pairs += [("mlp", sides, shape.layers + shape.decoder_layers) for sides in mlp]
        pairs += [("head", (shape.vocab, shape.hidden), 1)] * (self.ends in ("head", "both"))
        pairs += [("table", (shape.vocab, shape.hidden), 1)] * (self.ends in ("embeddings", "both"))
        found = []
        for place, (outputs, inputs), count in pairs:
            found += [Weight(place, (self.rank, inputs), count), Weight(place, (outputs, self.rank), count)]
        return found
