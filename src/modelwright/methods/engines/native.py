"""Native: transformers' models under our own batched decoding. Opens any causal language model folder; the exact reference.

Source: continuous batching, Yu et al. 2022, "Orca", OSDI; the decoding itself is in `modelwright.nn.generate`, shared
beginnings in `modelwright.nn.attend`, speculation in `modelwright.nn.speculate`, adapters in `modelwright.nn.adapters`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Part, Shape
from modelwright.core.memory.serving import CODINGS, cache_bytes, serving_parts
from modelwright.core.spec import Advice, Runtime
from modelwright.methods.engines import EngineSpec, Request, Rule, Speculate
from modelwright.methods.engines._branches import WorkerBranches
from modelwright.methods.engines._grammar import refusal, words_of_fast
from modelwright.methods.engines._opened import Opened
from modelwright.methods.engines._text import DecodedPieces, spelling
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
    precision: Literal["fp32", "bf16", "auto"] = Field("fp32", examples=["bf16"])
    """Type of the weights. fp32: exactly the trained model. bf16: half as many bytes to hold, and to read for each token; answers
    may differ in a few tokens of a thousand. On a processor, models of the Llama, Mistral, Qwen and Gemma families keep only
    their weights in it: sums, keys and values are float32, and long prompts are multiplied in bf16 only where the processor
    has instructions for it (avx512_bf16, AMX). All others, and every model on a GPU, compute in bf16 throughout: faster on a GPU
    and on such processors, 2 to 3 times slower on others. auto: bf16 where products in it are measured to be faster on this
    machine, else fp32. Default: exact before small."""
    max_batch: Annotated[int, Runtime] = Field(32, ge=1, le=1024, examples=[4])
    """Answers decoded together. More: higher throughput, more memory, a slower step. Default: on 2 cores the throughput
    of small models stops growing between 32 and 64."""
    prefill_tokens: Annotated[int, Runtime] = Field(512, ge=1, examples=[8])
    """Tokens of prompts taken in one step; a longer prompt enters in pieces, beside the answers under way. More: prompts are
    cheaper, and the next token of those who already read comes later. Default: about a second of 2 cores with a model of 135
    million weights; the products of larger pieces are hardly faster."""
    keep_mb: Annotated[int, Runtime] = Field(256, ge=0, examples=[0])
    """Megabytes of key/value memory kept of answers that are done, for prompts that begin as they do (a chat's next turn, the
    same instructions). More: more of them are at hand; the least recently used goes. Default: some thousand tokens of a small
    model."""
    threads: Annotated[int, Runtime] = Field(0, ge=0, examples=[1])
    """Processor threads; 0: all that this process may use. On a machine that does other work too, fewer are faster."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Runtime] = Field("auto", examples=["cpu"])
    """Where the model runs; auto: the GPU where PyTorch sees one."""

    def memory(self, shape: Shape, tokens: float, sequences: float, weights_bytes: float | None = None) -> tuple[Part, ...]:
        cached = 16 if self.precision == "bf16" and self.device == "cuda" else 32  # on a processor keys and values are float32
        rows, room = min(sequences + sequences // 2, self.max_batch), 0.0
        while room < tokens:  # as `nn/memory.py` grows, rows and their length by half
            room = -(-max(room + 1, room + room // 2) // 128) * 128
        coding = CODINGS["bf16" if self.precision == "bf16" else "fp32"]
        parts = serving_parts(shape, coding, room, rows, cached, windows=False, at_once=self.prefill_tokens)
        growing = cache_bytes(shape, room, rows, cached, windows=False) / shape.layers
        done = min(self.keep_mb * 2.0**20, cache_bytes(shape, tokens, sequences, cached, windows=False))
        kept = Part("kept", done, "keys and values of answers that are done, at most `keep_mb`")
        return *parts, Part("growth", growing, "a layer's keys and values, copied when there is no more room"), kept

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
        special = special_tokens(self.tokenizer)
        super().__init__(folder, chat_template(self.tokenizer), marks(self.tokenizer), special, refusal(self.tokenizer))
        self.capabilities |= {"branch", "adapters", "embed", "speculate"}
        self._spelling = spelling(self.tokenizer)
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
        from modelwright.nn.precision import fast_bf16

        torch.set_num_threads(threads(spec.threads))
        device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "the engine was told to use a GPU and PyTorch sees none", "no driver, or a CPU build of PyTorch", "device: auto"
            )
        bf16 = spec.precision == "bf16" or (spec.precision == "auto" and fast_bf16(torch.device(device))[0])
        model, _ = load(folder, torch.bfloat16 if bf16 else torch.float32)
        model.to(device)
        self._stop = end_tokens(self.tokenizer, model.generation_config.eos_token_id, model.config.eos_token_id)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        # a model without positions to run out of (a recurrent one) is held to what its tokenizer says, or to 32768
        self.context = int(
            model.config.to_dict().get("max_position_embeddings")
            or model.config.to_dict().get("n_positions")
            or min(self.tokenizer.model_max_length, 32768)
        )
        decoder = Decoder(model, self._stop, spec.max_batch, spec.prefill_tokens, spec.keep_mb * 2**20)
        self.why = decoder.why
        self._rows = _Rows(decoder, self.tokenizer)
        return self._rows

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

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._spelling(token) for token in tokens]

    def _tokens(self, text: str, special: bool) -> list[int]:
        with self._lock:
            tokens: list[int] = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=not special, verbose=False
            )
        return tokens

    def _words(self) -> Any:
        return words_of_fast(self.tokenizer, self._stop)

    def _pieces(self) -> DecodedPieces:
        return DecodedPieces(self.decode)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may give."""
        return tuple(self._rows.adapters)

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """A LoRA in PEFT's layout. It takes the place of one that has the name; answers under way keep theirs."""
        from modelwright.nn.adapters import read

        self._rows.adapters[name] = read(name, Path(folder), self._rows.decoder.model)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; answers under way keep it to their end."""
        if self._rows.adapters.pop(name, None) is None:
            raise UserError(
                f"there is no adapter {name!r}", f"there are: {', '.join(self.adapters) or 'none'}", "name one of these"
            )

    def branches(self, request: Request, hidden: bool = False) -> WorkerBranches:
        """See `modelwright.methods.engines.Branching`."""
        rule, adapter = self._rule(request), self._rows.adapter(request)

        def make() -> Any:
            return self._rows.decoder.search(request.tokens, adapter, hidden)

        return WorkerBranches(self._worker, make, self._stop, rule)


class _Rows:
    """Requests as `modelwright.nn.generate` takes them."""

    def __init__(self, decoder: Any, tokenizer: Any) -> None:
        self.decoder, self._tokenizer = decoder, tokenizer
        self.cancel, self.step, self.close = decoder.cancel, decoder.step, decoder.close
        self.score, self.embed = decoder.score, decoder.embed
        self.adapters: dict[str, Any] = {}
        self._proposers: dict[Any, Any] = {}
        """By what was asked; one serves all rows that ask for the same."""

    @property
    def busy(self) -> bool:
        return bool(self.decoder.busy)

    def add(self, key: int, request: Request, max_tokens: int, rule: Rule | None) -> None:
        from modelwright.nn.sample import Draw
        from modelwright.nn.speculate import Proposal

        asked, adapter = request.sampling, self.adapter(request)
        proposal = None
        if (how := request.speculate) is not None:
            if min(how.tokens, how.ngram) < 1:
                raise UserError(
                    f"speculation with {how.tokens} tokens by {how.ngram}",
                    "both are at least one",
                    "leave them out, or give more",
                )
            shape = how._replace(tokens=0)
            if shape not in self._proposers:
                self._proposers[shape] = self._proposer(how)
            proposal = Proposal(self._proposers[shape], how.tokens)
        draw = Draw(asked.temperature, asked.top_p, asked.top_k, asked.seed, rule, asked.top_logprobs)
        self.decoder.add(key, request.tokens, max_tokens, draw, adapter, proposal)

    def adapter(self, request: Request) -> Any:
        """The adapter that a request names; None for the model alone."""
        if request.adapter and request.adapter not in self.adapters:
            raise UserError(
                f"there is no adapter {request.adapter!r}",
                f"there are: {', '.join(self.adapters) or 'none'}",
                "load it first, or ask without it",
            )
        return self.adapters.get(request.adapter)

    def _proposer(self, how: Speculate) -> Any:
        from modelwright.nn import speculate

        if how.kind == "lookup":
            return speculate.Lookup(how.ngram)
        if how.kind == "layer_skip":
            return speculate.layer_skip(self.decoder.runner, how.layers)
        if how.model is None:
            raise UserError("no draft model is named", "`speculate` says `draft` without `model`", "name a folder")
        return speculate.draft(self.decoder.runner, self._tokenizer, how.model)
