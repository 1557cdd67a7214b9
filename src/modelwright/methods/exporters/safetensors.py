"""safetensors: the model's folder in Hugging Face's layout, for vLLM, transformers and the Hub, in the precision asked for.

Source: https://github.com/huggingface/safetensors (the format) and transformers' `save_pretrained` (the layout); what
vLLM needs beside the weights: `_servable.py`. An adapter is merged before it comes here; unmerged, it lies in PEFT's format in
the folder `adapter` of the training that made it, for `vllm serve --enable-lora --lora-modules NAME=FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Shape
from modelwright.core.events import Log
from modelwright.core.spec import Advice
from modelwright.methods.exporters import Evidence, Exporter

_LIMITS = {"fp32": (0.0001, 0.0001), "bf16": (0.02, 0.05)}
"""Rise of perplexity (fraction) and mean difference of log-probabilities (nats) that the proof accepts."""


class Safetensors(Exporter):
    """A folder that `from_pretrained` and `vllm serve` open."""

    version: ClassVar[int] = 2
    advice: ClassVar[Advice] = Advice(
        "the model goes to vLLM, transformers, the Hub, or back into a recipe",
        "it is to run under llama.cpp or Ollama: then `gguf`",
        needs="a trained model",
        deployment="a folder for vLLM, transformers and the Hub, two bytes a weight in 16 bits",
        source="safetensors, https://github.com/huggingface/safetensors",
    )

    kind: Literal["safetensors"] = "safetensors"
    precision: Literal["bf16", "fp32"] = Field("bf16", examples=["fp32"])
    """Type of the weights on disk. bf16: half of fp32's size and what servers compute in, hence the default."""
    max_perplexity_rise: float | None = Field(None, gt=0, examples=[0.5])
    """Largest rise of perplexity over the model's that the proof accepts, as a fraction. Raising it accepts a worse export.
    Unset: fp32 0.0001 (rounding), bf16 0.02 (ten times what is usual)."""
    max_logprob_difference: float | None = Field(None, gt=0, examples=[3.0])
    """Largest mean difference of a token's log-probability from the model's, in nats, that the proof accepts. Unset: fp32
    0.0001, bf16 0.05 (a few times what small random models show)."""
    answer_tokens: int = Field(32, ge=1, le=512, examples=[4])
    """Length of the greedy answers that the proof compares. More: rarer to be equal to the end, and slower."""

    def bytes_on_disk(self, shape: Shape) -> float:
        return shape.params * (2.0 if self.precision == "bf16" else 4.0) + 60.0 * shape.vocab  # tokenizer.json

    def longest_answer(self) -> int:
        return self.answer_tokens

    def write(self, model: Path, out: Path, log: Log) -> dict[str, Any]:
        import torch

        from modelwright.methods.exporters import _servable
        from modelwright.nn.generate import chat_template, end_tokens
        from modelwright.nn.model import load, save

        loaded, tokenizer = load(model, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        weights = {name: value for name, value in loaded.named_parameters()}
        if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
            raise UserError(
                f"the weights of {bad[0]} hold numbers that are not finite", "training diverged", "train again with a lower rate"
            )
        save(loaded, tokenizer, out)
        _servable.both_names(out)
        ends = end_tokens(tokenizer, loaded.config.eos_token_id, loaded.generation_config.eos_token_id)
        return {
            "precision": self.precision,
            "tensors": len(weights),
            "serves": _servable.served(out, bool(chat_template(tokenizer)), ends),
            "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        }

    def prove(self, model: Path, out: Path, evidence: Evidence, log: Log) -> dict[str, Any]:
        from modelwright.methods.engines import ENGINES, EngineSpec, open_engine
        from modelwright.methods.exporters import _proof

        ours, theirs = (ENGINES.load("native")(precision=kind, device="cpu") for kind in ("fp32", self.precision))  # type: ignore[call-arg]
        assert isinstance(ours, EngineSpec) and isinstance(theirs, EngineSpec)
        with open_engine(model, ours) as before, open_engine(out, theirs) as after:
            proof: dict[str, Any] = _proof.same_tokens(before, after, [*evidence.texts, *_proof.PROBES], str)
            proof |= _proof.predictions(before, after, evidence, self.answer_tokens)
        rise, difference = _LIMITS[self.precision]
        return _proof.judged(
            proof, _proof.Limits(self.max_perplexity_rise or rise, self.max_logprob_difference or difference), self.precision
        )
