"""Native: transformers' models under our own batched decoding. Opens any causal language model folder; the exact reference.

Source: continuous batching, Yu et al. 2022, "Orca", OSDI; the decoding itself is in `modelwright.nn.generate`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.spec import Advice, Runtime
from modelwright.methods.engines import EngineSpec, Request, Rule
from modelwright.methods.engines._opened import Opened
from modelwright.methods.engines._text import DecodedPieces
from modelwright.methods.engines._threads import threads
from modelwright.methods.engines._worker import Worker
from modelwright.methods.templates import marks, special_tokens


class Native(EngineSpec):
    """PyTorch, in this process, on the CPU or on a GPU."""

    extra: ClassVar[str] = "train"
    advice: ClassVar[Advice] = Advice(
        "many questions at once, exact log-probabilities, a model straight from training, or a GPU",
        "one person chats on a CPU: a GGUF export under `llamacpp` answers several times as fast",
    )

    kind: Literal["native"] = "native"
    precision: Literal["fp32", "bf16"] = Field("fp32", examples=["bf16"])
    """Type of weights and products. fp32: exactly the trained model. bf16: half the memory; faster on a GPU and on processors
    with bf16 instructions (avx512_bf16, AMX), 2 to 3 times slower on others; answers may differ in a few tokens of a
    thousand. Default: exact before small (transformers' own bf16 cache differs from its full forward pass)."""
    max_batch: Annotated[int, Runtime] = Field(32, ge=1, le=1024, examples=[4])
    """Answers decoded together. More: higher throughput, more memory, a slower step. Default: on 2 cores the throughput
    of small models stops growing between 32 and 64."""
    threads: Annotated[int, Runtime] = Field(0, ge=0, examples=[1])
    """Processor threads; 0: all that this process may use. On a machine that does other work too, fewer are faster."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Runtime] = Field("auto", examples=["cpu"])
    """Where the model runs; auto: the GPU where PyTorch sees one."""

    def accepts(self, model: Path) -> str | None:
        if not (model / "config.json").is_file():
            return "no config.json in it"
        return None if any(model.glob("*.safetensors")) else "no *.safetensors in it"

    def open(self, model: Path) -> _Native:
        if reason := self.accepts(model):
            raise UserError(
                f"{model.name} cannot be opened by the native engine", reason, "name a folder in Hugging Face's layout"
            )
        return _Native(self, model)


class _Native(Opened):
    def __init__(self, spec: Native, folder: Path) -> None:
        from modelwright.nn.generate import chat_template
        from modelwright.nn.model import load_tokenizer

        self.tokenizer = load_tokenizer(folder)
        super().__init__(folder, chat_template(self.tokenizer), marks(self.tokenizer), special_tokens(self.tokenizer))
        self._lock = threading.Lock()  # transformers changes a tokenizer's settings while it encodes
        self.context = 0
        self.why = ""
        self._stop: frozenset[int] = frozenset()
        self._worker = Worker(lambda: self._make(spec, folder), "native-engine")

    def _make(self, spec: Native, folder: Path) -> Any:
        """In the worker's thread: PyTorch keeps the number of threads by thread."""
        import torch

        from modelwright.nn.generate import Decoder, end_tokens
        from modelwright.nn.model import load

        torch.set_num_threads(threads(spec.threads))
        device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "the engine was told to use a GPU and PyTorch sees none", "no driver, or a CPU build of PyTorch", "device: auto"
            )
        model, _ = load(folder, torch.bfloat16 if spec.precision == "bf16" else torch.float32)
        model.to(device)
        self._stop = end_tokens(self.tokenizer, model.generation_config.eos_token_id, model.config.eos_token_id)
        # a model without positions to run out of (a recurrent one) is held to what its tokenizer says, or to 32768
        self.context = int(
            model.config.to_dict().get("max_position_embeddings")
            or model.config.to_dict().get("n_positions")
            or min(self.tokenizer.model_max_length, 32768)
        )
        decoder = Decoder(model, self._stop, spec.max_batch)
        self.why = decoder.why
        return _Rows(decoder)

    def encode(self, text: str) -> list[int]:
        with self._lock:
            tokens: list[int] = self.tokenizer.encode(text, verbose=False)
        end = self.tokenizer.eos_token_id
        if tokens and tokens[-1] == end and not text.endswith(self.tokenizer.eos_token or "\0"):
            tokens.pop()  # some tokenizers end every text; a prompt goes on
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tokens(self, text: str, special: bool) -> list[int]:
        with self._lock:
            tokens: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=not special, verbose=False
            )
        return tokens

    def _pieces(self) -> DecodedPieces:
        return DecodedPieces(self.decode)


class _Rows:
    """Requests as `modelwright.nn.generate` takes them."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.cancel, self.step, self.score, self.close = decoder.cancel, decoder.step, decoder.score, decoder.close

    @property
    def busy(self) -> bool:
        return bool(self._decoder.busy)

    def add(self, key: int, request: Request, max_tokens: int, rule: Rule | None) -> None:
        from modelwright.nn.sample import Draw

        asked = request.sampling
        draw = Draw(asked.temperature, asked.top_p, asked.top_k, asked.seed, rule, asked.top_logprobs)
        self._decoder.add(key, request.tokens, max_tokens, draw)
