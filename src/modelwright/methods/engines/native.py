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
from modelwright.core.record import Message
from modelwright.core.spec import Advice, Runtime
from modelwright.methods.engines import Completion, EngineSpec, Request
from modelwright.methods.engines._text import DecodedPieces
from modelwright.methods.engines._threads import threads
from modelwright.methods.engines._worker import Answer, Worker, room
from modelwright.methods.templates import render


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


class _Native:
    """The open model; see `modelwright.methods.engines.Engine`."""

    def __init__(self, spec: Native, folder: Path) -> None:
        from modelwright.nn.generate import chat_template
        from modelwright.nn.model import load_tokenizer

        self.tokenizer = load_tokenizer(folder)
        self._lock = threading.Lock()  # transformers changes a tokenizer's settings while it encodes
        self.context = 0
        self.why = ""
        self._stop: frozenset[int] = frozenset()
        self._worker = Worker(lambda: self._make(spec, folder), "native-engine")
        self._template = chat_template(self.tokenizer)
        chat = frozenset({"chat"}) if self._template else frozenset[str]()
        self.capabilities: frozenset[str] = frozenset({"score", "logprobs", "seed"}) | chat

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
        return decoder

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

    def render(self, messages: Sequence[Message]) -> list[int]:
        if not self._template:
            raise UserError(
                "this model has no chat template",
                "it was not trained on chats",
                "ask it to continue a text, or train with `objective: sft`",
            )
        text = render(self._template, messages, True, bos=self.tokenizer.bos_token or "", eos=self.tokenizer.eos_token or "")
        with self._lock:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return tokens

    def submit(self, request: Request) -> Answer:
        return self._submit(request, quiet=False)

    def _submit(self, request: Request, quiet: bool) -> Answer:
        limit = room(request.tokens, request.sampling.max_tokens, self.context)
        return self._worker.submit(request, limit, DecodedPieces(self.decode), quiet)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        answers = [self._submit(request, quiet=True) for request in requests]
        try:
            return [answer.completion() for answer in answers]
        finally:
            for answer in answers:
                answer.cancel()

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        for sequence in tokens:
            room(sequence[:-1] or sequence, 1, self.context)
        return self._worker.score(tokens)

    def close(self) -> None:
        self._worker.close()
