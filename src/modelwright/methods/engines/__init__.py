"""Engines: what turns a model and a prompt into tokens. One file a kind; evaluation, chat and the server all call this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.core.spec import Kinds, Spec

ENGINES = Kinds(__name__, f"{__name__}:EngineSpec")


class Sampling(NamedTuple):
    """How to choose the next token. Temperature 0 is greedy."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; not part of it. The template's end of turn always does."""
    seed: int = 0
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are not drawn."""
    typical_p: float = 1.0
    """Mass of the tokens whose surprise is nearest to the expected one; 1: all."""
    eta: float = 0.0
    """Entropy-dependent least probability; 0: none."""
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that prompt or answer hold, multiplies the negative ones."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time the answer holds it."""
    presence_penalty: float = 0.0
    """Taken once from the logit of a token that the answer holds."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to these tokens' logits."""
    top_logprobs: int = 0
    """Likeliest tokens to tell at each place."""


class Constraint(NamedTuple):
    """What an answer may look like; the last token comes when it is complete."""

    kind: Literal["json_schema", "regex", "grammar", "choices"]
    """`grammar`: EBNF in Lark's form, as llguidance reads it. `choices`: a JSON list of strings."""
    text: str


class Request(NamedTuple):
    """One thing to continue: token ids, made by `Engine.encode` or `Engine.render`."""

    tokens: Sequence[int]
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    """Needs the capability `constrain`."""
    adapter: str = ""
    """Name of an adapter that `Engine.load_adapter` has opened; '': the model alone. Needs the capability `adapters`."""


Top = tuple[tuple[int, float], ...]
"""Tokens and their log-probabilities, the likeliest first."""


class Delta(NamedTuple):
    """A piece of an answer as it comes."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of each token's probability before temperature; empty where the engine cannot."""
    finish: str | None = None
    """`stop`, `length` or `cancelled` in the last piece."""
    top: tuple[Top, ...] = ()
    """For each token the likeliest ones in its place, where `Sampling.top_logprobs` asks."""


class Completion(NamedTuple):
    text: str
    tokens: tuple[int, ...]
    """Every token that was generated, with the one that ended the turn; `text` is without it and without a stop string."""
    logprobs: tuple[float, ...]
    finish: str
    """`stop`, `length` or `cancelled`."""
    prompt_tokens: int
    top: tuple[Top, ...] = ()


class Stream(Protocol):
    """An answer under way; iterate it for the pieces."""

    def __iter__(self) -> Iterator[Delta]:
        """Text comes as whole characters, and never a part of what may become a stop string. Leaving the loop cancels."""
        ...

    def cancel(self) -> None:
        """Stop as soon as may be; the last piece says `cancelled`. Harmless when it has ended."""
        ...


class Engine(Protocol):
    """An open model. Thread-safe: several threads may submit at once."""

    capabilities: frozenset[str]
    """Of: `score`, `logprobs`, `chat`, `seed`, `constrain`, `adapters`, `embed`, `branch`, `rules` (all of `Sampling`)."""
    context: int
    """Tokens that prompt and answer may have together."""

    def encode(self, text: str) -> list[int]:
        """Special tokens in `text` become one token each; a begin-of-text token comes first where the model wants one."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text without special tokens."""
        ...

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The chat as token ids, up to and with the header of the assistant's next turn."""
        ...

    def submit(self, request: Request) -> Stream: ...
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All answers, in order; batched where the engine can."""
        ...

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability (nats) of each token after the first given those before it."""
        ...

    def close(self) -> None: ...


class EngineSpec(Spec):
    """A kind of engine and its settings."""

    extra: ClassVar[str] = ""
    """The extra of ours that installs it."""

    def accepts(self, model: Path) -> str | None:
        """None where this engine can open `model` (an artifact's folder), else the reason it cannot."""
        raise NotImplementedError

    def open(self, model: Path) -> Engine:
        raise NotImplementedError


def without_lead(pieces: Iterable[Delta]) -> Iterator[Delta]:
    """A chat's answer without the one space that some templates and tokenizers set before it."""
    begun = False
    for piece in pieces:
        if not begun and piece.text:
            begun = True
            piece = piece._replace(text=piece.text.removeprefix(" "))
        yield piece


class Rule(Protocol):
    """What one request does to its logits before a token is drawn: penalties, biases, other cuts, a grammar."""

    def __call__(self, logits_V: Any) -> Any:
        """[V] float32 numpy array, its own to change, to logits that temperature, top-k and top-p are then applied to."""
        ...

    def accept(self, token: int) -> None:
        """The token that was drawn."""
        ...


class Picked(NamedTuple):
    spec: EngineSpec
    why: str
    """For people: why this engine."""


def pick(model: Path, prefer: Sequence[str] = ("llamacpp", "native")) -> Picked:
    """What `engine: auto` means: the first engine of `prefer` that opens the folder. llama.cpp comes first because it
    only accepts a GGUF file, and there is nothing else to open such a file with."""
    reasons: list[str] = []
    for kind in prefer:
        spec = ENGINES.load(kind)()
        assert isinstance(spec, EngineSpec)
        if (reason := spec.accepts(model)) is None:
            return Picked(spec, f"{kind} opens this model" + (f"; not {'; not '.join(reasons)}" if reasons else ""))
        reasons.append(f"{kind}: {reason}")
    raise UserError(
        f"no engine opens {model.name}",
        "; ".join(reasons),
        "give a model's folder (config.json and *.safetensors) or a *.gguf file",
    )


@contextmanager
def open_engine(model: Path, spec: EngineSpec | None = None) -> Iterator[Engine]:
    """The model opened with `spec`, or with what `pick` chooses; closed at the end."""
    if spec is None:
        spec = pick(model).spec
    elif reason := spec.accepts(model):
        raise UserError(
            f"the engine {type(spec).__name__} cannot open {model.name}", reason, "leave the engine out: one is chosen"
        )
    engine = spec.open(model)
    try:
        yield engine
    finally:
        engine.close()
