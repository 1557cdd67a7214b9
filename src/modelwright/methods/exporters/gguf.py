"""GGUF: one file for llama.cpp, Ollama and LM Studio, with the tokenizer and the chat template inside.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; block formats Q8_0 and Q4_0 as the
`gguf` package computes them. What is written is opened again with llama.cpp and compared with the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.events import Log
from modelwright.core.spec import Advice
from modelwright.core.stage import Shape
from modelwright.methods.exporters import Evidence, Exporter

FILE = "model.gguf"
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Of one weight: Q8_0 is 32 bytes and a half-precision scale for 32 weights, Q4_0 16 and a scale."""
_LIMITS = {"f32": (0.002, 0.005), "f16": (0.005, 0.01), "bf16": (0.02, 0.05), "q8_0": (0.02, 0.1), "q4_0": (0.3, 0.7)}
"""Rise of perplexity (fraction) and mean difference of log-probabilities (nats) that the proof accepts."""
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
"""`llama_ftype`."""
_BLOCK = 32


class Gguf(Exporter):
    """llama.cpp's file format."""

    version: ClassVar[int] = 1
    advice: ClassVar[Advice] = Advice(
        "the model is to run on laptops: llama.cpp, Ollama, LM Studio, or our own `llamacpp` engine",
        "it is served by vLLM or transformers: they read the model's folder as it is",
    )

    kind: Literal["gguf"] = "gguf"
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = Field("q8_0", examples=["f32"])
    """How weights are stored. q8_0 (1.06 bytes a weight): as good as unquantised in llama.cpp's tables (+0.1 % perplexity
    at most), hence the default. q4_0 (0.56): half of that and faster, clearly worse for small models; the embedding and
    the head stay q8_0. f16, bf16 (2), f32 (4): for other tools to quantise. Vectors are always f32."""
    max_perplexity_rise: float | None = Field(None, gt=0, examples=[0.5])
    """Largest rise of perplexity over the model's that the proof accepts, as a fraction. Raising it accepts a worse file.
    Unset, by type: f32 0.002 and f16 0.005 (rounding of llama.cpp's half-precision key/value memory), bf16 and q8_0 0.02
    (ten times what is usual), q4_0 0.3 (what models of a few million weights lose)."""
    max_logprob_difference: float | None = Field(None, gt=0, examples=[3.0])
    """Largest mean difference of a token's log-probability from the model's, in nats, that the proof accepts; finds what
    perplexity does not in a model that knows little. Unset, by type: f32 0.005, f16 0.01, bf16 0.05, q8_0 0.1, q4_0 0.7,
    two to ten times what random models of two layers show; with the rows of a head in a wrong order they show 0.86."""
    answer_tokens: int = Field(32, ge=1, le=512, examples=[4])
    """Length of the greedy answers that the proof compares. More: rarer to be equal to the end, and slower."""

    def bytes_on_disk(self, shape: Shape) -> float:
        ends = shape.vocab * shape.hidden * (1 if shape.tied else 2)
        table = _BYTES["q8_0" if self.type == "q4_0" else self.type]
        return (shape.params - ends) * _BYTES[self.type] + ends * table + 40.0 * shape.vocab  # a token and its merge as text

    def write(self, model: Path, out: Path, log: Log) -> dict[str, Any]:
        try:
            import gguf
        except ImportError:
            raise missing_extra("gguf", "gguf", "the GGUF export") from None
        from modelwright.methods.exporters import _gguf_model as reading
        from modelwright.methods.exporters import _modelfile
        from modelwright.nn.generate import chat_template, end_tokens
        from modelwright.nn.model import load_tokenizer

        source = reading.open_source(model)
        tokenizer = load_tokenizer(model)
        vocabulary = reading.vocabulary(source, tokenizer)
        tensors = reading.tensors(source)
        ends = end_tokens(tokenizer, source.config.get("eos_token_id"), _generation_end(model))
        writer = gguf.GGUFWriter(out / FILE, source.architecture)
        for key, value in reading.header(source).items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_uint32(key, value)
        writer.add_name("modelwright")  # not the folder's name: the same model gives the same bytes
        writer.add_file_type(_FILE_TYPES[self.type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_vocabulary(writer, vocabulary, tokenizer, ends)
        if template := chat_template(tokenizer):
            writer.add_chat_template(template)
        counts = self._write_tensors(writer, source, tensors, log)
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        text = _modelfile.modelfile(
            FILE, template, bos, eos, _modelfile.stops(tokenizer, ends), source.config["max_position_embeddings"]
        )
        (out / "Modelfile").write_text(text, encoding="utf-8")
        return {
            "type": self.type,
            "architecture": source.architecture,
            "pre_tokenizer": vocabulary.pre,
            "vocab": len(vocabulary.tokens),
            "tensors": counts,
            "bytes": (out / FILE).stat().st_size,
        }

    def _write_tensors(self, writer: Any, source: Any, tensors: list[Any], log: Log) -> dict[str, int]:
        """Tensors of each type; one tensor is in memory at a time."""
        import gguf
        import numpy as np

        from modelwright.methods.exporters import _gguf_model as reading

        kinds = {tensor.name: self._type(tensor.name, tensor.shape) for tensor in tensors}
        factors = reading.frequency_factors(source)
        if factors is not None:
            writer.add_tensor_info(
                "rope_freqs.weight", (len(factors),), np.dtype(np.float32), 4 * len(factors), gguf.GGMLQuantizationType.F32
            )
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[kinds[tensor.name].upper()]
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind) if kind.name in ("Q8_0", "Q4_0", "BF16") else tensor.shape
            size = int(np.prod(tensor.shape)) * gguf.GGML_QUANT_SIZES[kind][1] // gguf.GGML_QUANT_SIZES[kind][0]
            dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
            writer.add_tensor_info(tensor.name, shape, dtype, size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(np.array(factors, dtype=np.float32))
        for tensor, array in log.track(reading.values(source, tensors), "tensors", len(tensors), "gguf"):
            if kinds[tensor.name] == "f16" and float(np.abs(array).max(initial=0)) > 65504:
                raise UserError(
                    f"{tensor.key} has a weight of {np.abs(array).max():.3g}, half precision ends at 65504",
                    "f16 cannot hold it",
                    "type: bf16",
                )
            writer.write_tensor_data(gguf.quantize(array, gguf.GGMLQuantizationType[kinds[tensor.name].upper()]))
        writer.close()
        return {kind: list(kinds.values()).count(kind) for kind in sorted(set(kinds.values()))}

    def _type(self, name: str, shape: tuple[int, ...]) -> str:
        if len(shape) == 1:
            return "f32"
        if self.type in ("f32", "f16", "bf16"):
            return self.type
        if shape[-1] % _BLOCK:
            return "f16"  # a row is not whole blocks
        # the head's errors reach the answer unmixed; llama-quantize keeps it at more bits, too
        return "q8_0" if name in ("token_embd.weight", "output.weight") else self.type

    def prove(self, model: Path, out: Path, evidence: Evidence, log: Log) -> dict[str, Any]:
        from modelwright.methods.engines import ENGINES, EngineSpec, open_engine
        from modelwright.methods.exporters import _proof
        from modelwright.nn.model import load_tokenizer

        ours, theirs = ENGINES.load("native")(precision="fp32", device="cpu"), ENGINES.load("llamacpp")(context=1 << 15)  # type: ignore[call-arg]
        assert isinstance(ours, EngineSpec) and isinstance(theirs, EngineSpec)
        tokenizer = load_tokenizer(model)
        normalizer = tokenizer.backend_tokenizer.normalizer
        with open_engine(model, ours) as before, open_engine(out / FILE, theirs) as after:
            texts = [*evidence.texts, *_proof.PROBES, *_special_texts(tokenizer)]
            log.note(f"proving the GGUF file with llama.cpp on {len(texts)} texts")
            proof: dict[str, Any] = _proof.same_tokens(before, after, texts, normalizer.normalize_str if normalizer else str)
            proof |= _proof.predictions(before, after, evidence, self.answer_tokens)
        rise, difference = _LIMITS[self.type]
        return _proof.judged(
            proof, _proof.Limits(self.max_perplexity_rise or rise, self.max_logprob_difference or difference), self.type
        )


def _generation_end(model: Path) -> Any:
    path = model / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None


def _special_texts(tokenizer: Any) -> list[str]:
    """Special tokens inside text, side by side and with white space around them."""
    special = [added.content for _, added in sorted(tokenizer.added_tokens_decoder.items())][:64]
    return [f"a{token}b {token} c\n{token}{token}\n" for token in special] + ["".join(special)]


def _write_vocabulary(writer: Any, vocabulary: Any, tokenizer: Any, ends: frozenset[int]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    first = tokenizer.encode("a")[:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    for token, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if token is not None:
            add(token)
    turns = sorted(ends - {tokenizer.eos_token_id})
    if turns:
        writer.add_eot_token_id(turns[0])  # llama.cpp stops at it as at the end of text
