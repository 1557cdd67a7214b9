"""llama.cpp: a GGUF file on the CPU, through the `xllamacpp` wheel. The fastest way to answer one person on a laptop.

Source: https://github.com/ggml-org/llama.cpp (llama.h) and https://github.com/xorbitsai/xllamacpp, which ships it built.
Its C interface is used, not its HTTP server: the server gives no log-probabilities of a text that is given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from modelwright.core.errors import UserError
from modelwright.core.estimate import Part, Shape
from modelwright.core.memory.serving import CODINGS, serving_parts
from modelwright.core.spec import Advice, Runtime
from modelwright.methods.engines import EngineSpec
from modelwright.methods.engines._grammar import words_of_bytes
from modelwright.methods.engines._llama_adapters import Loras, gguf_of
from modelwright.methods.engines._opened import Opened
from modelwright.methods.engines._text import BytePieces
from modelwright.methods.engines._threads import threads
from modelwright.methods.engines._worker import Worker


class LlamaCpp(EngineSpec):
    """GGUF models by llama.cpp, in this process."""

    extra: ClassVar[str] = "llamacpp"
    of_torch: ClassVar[bool] = False  # OpenMP's own spinning bridges the time between two steps: 5 % more tokens a second
    lacks: ClassVar[Mapping[str, str]] = {
        "branch": "llama.cpp's memory is not forked here: take `engine: native`",
        "speculate": "llama.cpp's drafts are not used here: take `engine: native`",
    }
    advice: ClassVar[Advice] = Advice(
        "one or a few people chat on a CPU, memory is small, or you want the answers that Ollama will give",
        "many questions at once or a GPU: then `native`, which also opens models without an export",
    )

    kind: Literal["llamacpp"] = "llamacpp"
    context: int = Field(4096, ge=16, examples=[512])
    """Longest prompt and answer together, in tokens; the model's own limit where that is lower. More: memory grows with
    it. Default: Ollama's."""
    max_batch: Annotated[int, Runtime] = Field(8, ge=1, le=255, examples=[2])
    """Answers decoded together; each reserves memory for `context` tokens, and leaves what it holds to prompts that begin the
    same. Default: throughput on a CPU grows little beyond 8."""
    prefill_tokens: Annotated[int, Runtime] = Field(512, ge=32, le=2048, examples=[64])
    """Tokens given to the model in one step. More: prompts are read faster, answers under way wait longer. Default:
    llama.cpp's `n_ubatch`."""
    threads: Annotated[int, Runtime] = Field(0, ge=0, examples=[1])
    """Processor threads; 0: all that this process may use."""

    def memory(self, shape: Shape, tokens: float, sequences: float, weights_bytes: float | None = None) -> tuple[Part, ...]:
        # the whole context of every answer is reserved when the model is opened
        at_once = self.prefill_tokens
        return serving_parts(shape, CODINGS["int8"], self.context, self.max_batch, at_once=at_once, weights=weights_bytes)

    def accepts(self, model: Path) -> str | None:
        if _gguf(model) is None:
            return "no single *.gguf file in it"
        if importlib.util.find_spec("xllamacpp") is None:
            return "the package xllamacpp is not installed (pip install 'modelwright[llamacpp]')"
        return None

    def open(self, model: Path) -> _LlamaCpp:
        path = _gguf(model)
        if reason := self.accepts(model):
            raise UserError(
                f"{model.name} cannot be opened by llama.cpp",
                reason,
                "make a GGUF file with `kind: export`, or use `engine: native`",
            )
        assert path is not None
        return _LlamaCpp(self, path)


def _gguf(model: Path) -> Path | None:
    if model.suffix == ".gguf" and model.is_file():
        return model
    files = sorted(model.glob("*.gguf")) if model.is_dir() else []
    return files[0] if len(files) == 1 else None


class _LlamaCpp(Opened):
    def __init__(self, spec: LlamaCpp, path: Path) -> None:
        from modelwright.methods.engines import _llama_c as c
        from modelwright.methods.engines._llama_rows import Rows

        self._c = c
        self.why = f"llama.cpp opens {path.name}"
        self._model = model = c.load_model(path)
        self.context = min(spec.context, c.library().llama_model_n_ctx_train(model))
        self._vocab = c.library().llama_model_get_vocab(model)
        template = (c.library().llama_model_chat_template(model, None) or b"").decode("utf-8")
        bos, eos = (self._text(find(self._vocab)) for find in (c.library().llama_vocab_bos, c.library().llama_vocab_eos))
        self.vocabulary, control = c.library().llama_vocab_n_tokens(self._vocab), c.library().llama_vocab_is_control
        self._control = [token for token in range(self.vocabulary) if control(self._vocab, token)]
        super().__init__(path, template, (bos, eos), [self._text(token) for token in self._control])
        if c.meta(model, f"{c.meta(model, 'general.architecture')}.pooling_type") is None:  # else it has a way of its own
            self.capabilities |= {"embed"}
        self.capabilities |= {"adapters"}
        self._bytes: dict[int, bytes] = {}
        self._loras: Loras

        def make() -> Rows:
            rows = Rows(model, self.context, spec.max_batch, spec.prefill_tokens, threads(spec.threads))
            self._loras = rows.adapters
            return rows

        self._worker = Worker(make, "llamacpp-engine")

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that requests may give."""
        return tuple(self._loras.named)

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """A LoRA in PEFT's layout or a GGUF file. It takes the place of one that has the name; answers under way keep theirs."""
        if (file := gguf_of(Path(folder))) is not None:
            self._worker.call(lambda: self._loras.load(name, file))
            return
        from modelwright.methods.exporters import _gguf_lora

        with TemporaryDirectory() as place:
            made = Path(place) / "adapter.gguf"
            _gguf_lora.write(Path(folder), made, self._base())
            self._worker.call(lambda: self._loras.load(name, made))  # it is in memory then

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; answers under way keep it to their end."""
        self._worker.call(lambda: self._loras.drop(name))

    def _base(self) -> Any:
        """What a LoRA in PEFT's layout has to be turned for."""
        from modelwright.methods.exporters._gguf_lora import Base

        architecture = self._c.meta(self._model, "general.architecture") or ""
        heads, key_heads = (
            self._c.meta(self._model, f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv")
        )
        return Base(architecture, int(heads or 0), int(key_heads or heads or 0))

    def _text(self, token: int) -> str:
        if token < 0:  # the model has none
            return ""
        return (self._c.library().llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", errors="replace")

    def encode(self, text: str) -> list[int]:
        return self._c.tokenize(self._vocab, text, add_special=True)

    def decode(self, tokens: Sequence[int]) -> str:
        return BytePieces(self._piece).whole(tokens)

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._piece(token) for token in tokens]

    def _piece(self, token: int) -> bytes:
        if token not in self._bytes:
            self._bytes[token] = self._c.piece(self._vocab, token)
        return self._bytes[token]

    def _tokens(self, text: str, special: bool) -> list[int]:
        return self._c.tokenize(self._vocab, text, add_special=False, parse_special=special)

    def _words(self) -> Any:
        vocab, ending = self._vocab, self._c.library().llama_vocab_is_eog
        tokens = range(self.vocabulary)
        ends = [token for token in tokens if ending(vocab, token)]
        pieces = [self._c.piece(vocab, token) for token in tokens]
        return words_of_bytes(pieces, self._control, ends, lambda text: self._tokens(text, special=False))

    def _pieces(self) -> BytePieces:
        return BytePieces(self._piece)
