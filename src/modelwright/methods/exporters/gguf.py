"""GGUF: one file for llama.cpp, Ollama and LM Studio, with the tokenizer and the chat template inside.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks as the
`gguf` package or llama.cpp itself computes them, mixed as `llama-quantize` does (`_types.py`). What is written is opened again
with llama.cpp and compared with the model.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.estimate import Shape
from modelwright.core.events import Log
from modelwright.core.spec import Advice
from modelwright.methods.exporters import Evidence, Exporter, _types

FILE = "model.gguf"


class Gguf(Exporter):
    """llama.cpp's file format."""

    version: ClassVar[int] = 3
    advice: ClassVar[Advice] = Advice(
        "the model is to run on laptops: llama.cpp, Ollama, LM Studio, or our own `llamacpp` engine",
        "it is served by vLLM or transformers: they read the model's folder as it is",
        needs="a trained model; some texts for the proof",
        quality="texts of the kind that will be asked",
        deployment="one file of 0.6 (q4_k_m) to 1.06 (q8_0) bytes a weight, for llama.cpp, Ollama, LM Studio",
        source=(
            "llama.cpp, quantize, https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md; "
            "four bits are best for their bytes: Dettmers and Zettlemoyer 2022, arXiv:2212.09720"
        ),
    )

    kind: Literal["gguf"] = "gguf"
    type: Literal[
        "f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q5_k_m", "q5_k_s", "q4_1", "q4_0", "q4_k_m", "q4_k_s",
        "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_s", "q2_k",
    ] = Field("q8_0", examples=["f32"])  # fmt: skip
    """How weights are stored; the names are llama.cpp's. q8_0 (1.06 bytes a weight): as good as unquantised in llama.cpp's
    tables (+0.1 % perplexity at most), hence the default. q6_k (0.82), q5_k_m (0.71), q4_k_m (0.60), iq4_xs (0.53), q3_k_m
    (0.48), iq3_s (0.43), q2_k (0.37): smaller and worse in this order, small models suffer most; _s and _l keep fewer and
    more bits in the tensors that matter most. They take rows in blocks of 256 weights (`hidden`, `intermediate` and heads
    times head width should be multiples of it); a tensor of other rows is stored in blocks of 32 of more bits, and the
    manifest counts them. q5_1, q5_0, q4_1, q4_0 (0.75 to 0.56) and iq4_nl (0.56) are blocks of 32. f16, bf16 (2), f32 (4):
    for other tools to quantise. The head, and the embedding where it is the head too, keep 6 or 8 bits, since their errors
    reach the answer unmixed; vectors and routers are always f32."""
    max_perplexity_rise: float | None = Field(None, gt=0, examples=[0.5])
    """Largest rise of perplexity over the model's that the proof accepts, as a fraction. Raising it accepts a worse file.
    Unset, by type: f32 0.002 and f16 0.005 (rounding of llama.cpp's half-precision key/value memory), bf16 and q8_0 0.02
    (ten times what is usual), six bits 0.03, five 0.1, four 0.3, three 0.6, q2_k 2 (what models of a few million weights
    lose)."""
    max_logprob_difference: float | None = Field(None, gt=0, examples=[3.0])
    """Largest mean difference of a token's log-probability from the model's, in nats, that the proof accepts; finds what
    perplexity does not in a model that knows little. Unset, by type: f32 0.005, f16 0.01, bf16 0.05, q8_0 0.1, six bits 0.2,
    five 0.4, four 0.7, three 1.2, q2_k 2: two to ten times what random models of two layers show; with the rows of a head in
    a wrong order they show 0.86."""
    answer_tokens: int = Field(32, ge=1, le=512, examples=[4])
    """Length of the greedy answers that the proof compares. More: rarer to be equal to the end, and slower."""

    def bytes_on_disk(self, shape: Shape) -> float:
        return _types.data_bytes(self.type, shape) + 40.0 * shape.vocab  # a token and its merge as text

    def remark(self, shape: Shape) -> str:
        found = ", ".join(f"{change} in {count}" for change, count in _types.foretold(self.type, shape).items())
        return found and f"rows that are not whole blocks make tensors larger: {found} (take sizes that are multiples of 256)"

    def write_seconds(self, weights_bytes: float, cores: int) -> float:
        rate = _types.SLOW_BYTES_PER_S.get(_types.TYPES[self.type].base)
        return super().write_seconds(weights_bytes, cores) + (weights_bytes / rate / cores if rate else 0.0)

    def longest_answer(self) -> int:
        return self.answer_tokens

    def write(self, model: Path, out: Path, log: Log) -> dict[str, Any]:
        try:
            import gguf
        except ImportError:
            raise missing_extra("gguf", "gguf", "the GGUF export") from None
        from modelwright.methods.exporters import _ggml, _gguf_tensors, _modelfile
        from modelwright.methods.exporters import _gguf_model as reading
        from modelwright.nn.generate import chat_template, end_tokens
        from modelwright.nn.model import load_tokenizer

        source = reading.open_source(model)
        tokenizer = load_tokenizer(model)
        vocabulary = reading.vocabulary(source, tokenizer)
        tensors = _gguf_tensors.tensors(source)
        model_of = _types.Model(
            source.config["num_hidden_layers"],
            source.config["num_attention_heads"] // reading.key_heads(source.config),
            reading.experts(source.config),
            not any(tensor.name == "output.weight" for tensor in tensors),
        )
        chosen = {tensor.name: _types.of_tensor(self.type, tensor.name, tensor.shape, model_of) for tensor in tensors}
        kinds = {name: taken for name, (taken, _) in chosen.items()}
        _ggml.check(set(kinds.values()))
        smaller = _types.smaller(chosen.values())
        for change, count in smaller.items():
            log.note(f"{change} in {count} of {len(tensors)} tensors, whose rows are not whole blocks")
        settings = _generation(model)
        ends = end_tokens(tokenizer, source.config.get("eos_token_id"), settings.get("eos_token_id"))
        writer = gguf.GGUFWriter(out / FILE, source.architecture)
        for key, value in reading.header(source).items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            else:
                writer.add_uint32(key, value)
        writer.add_name("modelwright")  # not the folder's name: the same model gives the same bytes
        writer.add_file_type(_types.TYPES[self.type].number)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_vocabulary(writer, vocabulary, tokenizer, ends)
        if template := chat_template(tokenizer):
            writer.add_chat_template(_without_words(template, tokenizer))
        _write_tensors(writer, source, tensors, kinds, log)
        bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
        stops, context = _modelfile.stops(tokenizer, ends), source.config["max_position_embeddings"]
        text = _modelfile.modelfile(FILE, template, bos, eos, stops, context, settings, _adds_bos(tokenizer))
        (out / "Modelfile").write_text(text, encoding="utf-8")
        return {
            "type": self.type,
            "architecture": source.architecture,
            "pre_tokenizer": vocabulary.pre,
            "vocab": len(vocabulary.tokens),
            "tensors": dict(sorted(Counter(kinds.values()).items())),
            "rows_not_whole_blocks": smaller,
            "bytes": (out / FILE).stat().st_size,
        }

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
        usual = _types.TYPES[self.type]
        limits = _proof.Limits(self.max_perplexity_rise or usual.rise, self.max_logprob_difference or usual.difference)
        return _proof.judged(proof, limits, self.type)


def _write_tensors(writer: Any, source: Any, tensors: list[Any], kinds: dict[str, str], log: Log) -> None:
    """Everything behind the header's keys; one tensor is in memory at a time."""
    import gguf
    import numpy as np

    from modelwright.methods.exporters import _ggml, _gguf_tensors

    factors = _gguf_tensors.frequency_factors(source)
    if factors is not None:
        writer.add_tensor_info(
            "rope_freqs.weight", (len(factors),), np.dtype(np.float32), 4 * len(factors), gguf.GGMLQuantizationType.F32
        )
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[kinds[tensor.name].upper()]
        whole = kind.name in ("F32", "F16")
        shape = tensor.shape if whole else gguf.quant_shape_to_byte_shape(tensor.shape, kind)
        dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
        writer.add_tensor_info(tensor.name, shape, dtype, _types.size_bytes(kinds[tensor.name], tensor.shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(np.array(factors, dtype=np.float32))
    for tensor, array in log.track(_gguf_tensors.values(source, tensors), "tensors", len(tensors), "gguf"):
        if kinds[tensor.name] == "f16" and float(np.abs(array).max(initial=0)) > 65504:
            raise UserError(
                f"{tensor.parts[0][1]} has a weight of {np.abs(array).max():.3g}, half precision ends at 65504",
                "f16 cannot hold it",
                "type: bf16",
            )
        writer.write_tensor_data(_ggml.quantised(array, kinds[tensor.name]))
    writer.close()


def _generation(model: Path) -> dict[str, Any]:
    path = model / "generation_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _special_texts(tokenizer: Any) -> list[str]:
    """Special tokens inside text, side by side and with white space around them."""
    special = [added.content for _, added in sorted(tokenizer.added_tokens_decoder.items())][:64]
    return [f"a{token}b {token} c\n{token}{token}\n" for token in special] + ["".join(special)]


def _without_words(template: str, tokenizer: Any) -> str:
    """llama.cpp takes token 11 for the start and the end of text where a vocabulary has none, and would write that word."""
    missing = [name for name in ("bos_token", "eos_token") if name in template and not getattr(tokenizer, name)]
    return "".join(f"{{% set {name} = '' %}}" for name in missing) + template


def _adds_bos(tokenizer: Any) -> bool:
    """Whether every text begins with the token for its start."""
    return tokenizer.bos_token_id is not None and bool(tokenizer.encode("a")[:1] == [tokenizer.bos_token_id])


def _write_vocabulary(writer: Any, vocabulary: Any, tokenizer: Any, ends: frozenset[int]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(_adds_bos(tokenizer))
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
