"""Engines: what turns a model and a prompt into tokens. One file a kind; evaluation, chat and the server all call this."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from modelwright.core.errors import UserError
from modelwright.core.estimate import Part, Shape
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
    logprobs: bool = True
    """False: nobody will read the drawn tokens' log-probabilities, so none need be computed; pieces then have none."""


class Constraint(NamedTuple):
    """What an answer may look like; the last token comes when it is complete."""

    kind: Literal["json_schema", "regex", "grammar", "choices"]
    """`grammar`: EBNF in Lark's form, as llguidance reads it. `choices`: a JSON list of strings."""
    text: str


class Speculate(NamedTuple):
    """Tokens that something quick proposes and the model verifies in one pass; answers keep their distribution. Needs the
    capability `speculate`."""

    kind: Literal["lookup", "draft", "layer_skip"]
    """`lookup`: what followed the newest tokens where they stood before. `draft`: a smaller model. `layer_skip`: the model
    without some of its layers."""
    tokens: int = 4
    """Proposals a step."""
    ngram: int = 3
    """For `lookup`: newest tokens that are looked for; where they never stood before, fewer."""
    model: Path | None = None
    """For `draft`: folder of a model with the same tokenizer."""
    layers: tuple[int, ...] = ()
    """For `layer_skip`: layers that the draft leaves out, counted from 0; none: every second one, first and last kept."""


class Request(NamedTuple):
    """One thing to continue: token ids, made by `Engine.encode` or `Engine.render`; see `request_of`."""

    tokens: Sequence[int]
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    """Needs the capability `constrain`."""
    adapter: str = ""
    """Name of an adapter that `Engine.load_adapter` has opened; '': the model alone. Needs the capability `adapters`."""
    messages: tuple[Message, ...] = ()
    """A chat instead of `tokens`, for engines with the capability `messages`: their server has the template. No others see it.
    A content may be a list of parts, as in OpenAI's API, where the capability `images` is there too."""
    text: str = ""
    """A text to continue instead of `tokens`, for the same engines."""
    speculate: Speculate | None = None
    """Needs the capability `speculate`."""


class Usage(NamedTuple):
    """What a server counted for one answer."""

    prompt_tokens: int
    answer_tokens: int


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
    usage: Usage | None = None
    """In the last piece of engines with the capability `messages`, which need not give `tokens`."""
    proposed: int = 0
    """Tokens that `Request.speculate` proposed for what this piece holds."""
    accepted: int = 0
    """Those of them that the model took."""


class Completion(NamedTuple):
    text: str
    tokens: tuple[int, ...]
    """Every token that was generated, with the one that ended the turn; `text` is without it and without a stop string."""
    logprobs: tuple[float, ...]
    finish: str
    """`stop`, `length` or `cancelled`."""
    prompt_tokens: int
    top: tuple[Top, ...] = ()
    usage: Usage | None = None
    """As in `Delta`."""
    proposed: int = 0
    """Of the whole answer, as in `Delta`."""
    accepted: int = 0


class Stream(Protocol):
    """An answer under way; iterate it for the pieces."""

    def __iter__(self) -> Iterator[Delta]:
        """Text comes as whole characters, and never a part of what may become a stop string. Leaving the loop cancels."""
        ...

    def cancel(self) -> None:
        """Stop as soon as may be; the last piece says `cancelled`. Harmless when it has ended."""
        ...


class Pushed:
    """Base of streams that can call their reader instead of being iterated, so that no thread need wait for them."""

    def listen(self, take: Callable[[Delta | BaseException], None]) -> None:
        """From now on `take` gets every piece, in the engine's thread, which it must not hold up; last the one that says how the
        answer finished, or the fault that ended it."""
        raise NotImplementedError


class Posting:
    """Base of engines that are asked through a pipe: what takes no wait needs no thread either."""

    def post(self, name: Literal["encode", "render"], arguments: Sequence[Any], take: Callable[[Any], None]) -> bool:
        """Ask for a method's result: `take` gets it, or its fault, in the engine's thread, which it must not hold up. False: that
        might wait, and nothing was asked."""
        raise NotImplementedError

    def begin(self, request: Request) -> Stream | None:
        """`submit`; None where that might wait, and nothing was begun."""
        raise NotImplementedError


class Engine(Protocol):
    """An open model. Thread-safe: several threads may submit at once."""

    capabilities: frozenset[str]
    """Of: `score`, `logprobs`, `chat`, `seed`, `constrain`, `adapters`, `embed`, `branch`, `rules` (all of `Sampling`),
    `speculate`, `images`, `messages` (takes `Request.messages` and `Request.text`, never tokens)."""
    context: int
    """Tokens that prompt and answer may have together."""
    vocabulary: int
    """Token ids are below this; 0: not known."""

    def encode(self, text: str) -> list[int]:
        """Special tokens in `text` become one token each; a begin-of-text token comes first where the model wants one."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text without special tokens."""
        ...

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token, which need not be whole characters; of a special one, none."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None) -> list[int]:
        """The chat as token ids, up to and with the header of the assistant's next turn. `tools` as in OpenAI's API."""
        ...

    def submit(self, request: Request) -> Stream: ...
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All answers, in order; batched where the engine can."""
        ...

    def answers(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """The same, each as soon as it and those before it are there; nothing is asked before the first is fetched."""
        ...

    def score(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per sequence, the log-probability (nats) of each token after the first given those before it."""
        ...

    def close(self) -> None: ...


class Branches(Protocol):
    """Continuations of one prompt, side by side, numbered from 0; at first one, the prompt itself. Leaving the context gives
    their memory back. What the request says of logits (bias, penalties, a constraint) holds for every branch."""

    stop: frozenset[int]
    """Tokens that end an answer."""
    prompt_hidden: Any
    """[T, E] float32 numpy array: what the head sees at each token of the prompt, where it was asked for, else None."""

    def __enter__(self) -> Branches: ...
    def __exit__(self, *fault: object) -> None: ...
    def logps(self) -> Any:
        """[B, V] float32 numpy array: log-probability of each token as the next one of each branch, in nats."""
        ...

    def ruled(self) -> Any:
        """The same after what the request says of logits; minus infinity for tokens that may not come."""
        ...

    def hidden(self) -> Any:
        """[B, E] float32 numpy array: what the head sees at the newest token of each branch."""
        ...

    def keep(self, which: Sequence[int]) -> None:
        """Branch i is a copy of branch `which[i]` from now on; those not named are gone."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """A token for every branch."""
        ...


class Branching(Protocol):
    """An engine with the capability `branch`."""

    def branches(self, request: Request, hidden: bool = False) -> Branches:
        """`hidden`: `prompt_hidden` is wanted. How tokens are chosen is the caller's; of `sampling` only what changes logits
        counts."""
        ...


class Embedding(Protocol):
    """An engine with the capability `embed`."""

    def embed(self, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """A vector of each sequence."""
        ...


class Adapting(Protocol):
    """An engine with the capability `adapters`."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Open the adapter in `folder` as `name`, in the place of one that had the name; answers under way keep theirs."""
        ...

    def unload_adapter(self, name: str) -> None: ...


class EngineSpec(Spec):
    """A kind of engine and its settings."""

    extra: ClassVar[str] = ""
    """The extra of ours that installs it."""
    of_torch: ClassVar[bool] = True
    """It computes with torch, for which a process of its own is prepared (`core/environment`)."""
    local: ClassVar[bool] = True
    """The model runs in the process that opens it; False: in a program that is spoken to."""
    lacks: ClassVar[Mapping[str, str]] = {}
    """Capabilities that no model has under this kind, each with what to do: refused before anything runs."""

    def accepts(self, model: Path) -> str | None:
        """None where this engine can open `model` (an artifact's folder), else the reason it cannot."""
        raise NotImplementedError

    def suits(self, model: Path) -> str | None:
        """The same by the model's files alone, for a plan: the work may be done on another machine."""
        return self.accepts(model)

    def open(self, model: Path) -> Engine:
        raise NotImplementedError

    def memory(self, shape: Shape, tokens: float, sequences: float, weights_bytes: float | None = None) -> tuple[Part, ...]:
        """What a model of this shape takes of this machine's memory while so many answers are under way, of so many tokens with
        their prompts; empty where it runs elsewhere. `weights_bytes`: of its file, where that is known."""
        return ()


def without_lead(pieces: Iterable[Delta]) -> Iterator[Delta]:
    """A chat's answer without the one space that some templates and tokenizers set before it."""
    begun = False
    for piece in pieces:
        if not begun and piece.text:
            begun = True
            piece = piece._replace(text=piece.text.removeprefix(" "))
        yield piece


class Unavailable(UserError):
    """The engine, or the server that it asks, gives no answer, whatever it is asked."""


class EngineDied(Unavailable):
    """The process of the engine ended while it worked. Those that come next find it started again."""


def request_of(engine: Engine, asked: str | Sequence[Message], sampling: Sampling) -> Request:
    """A text to continue or a chat to answer, as this engine takes it."""
    if "messages" in engine.capabilities:
        chat = () if isinstance(asked, str) else tuple(asked)
        return Request((), sampling, messages=chat, text=asked if isinstance(asked, str) else "")
    return Request(engine.encode(asked) if isinstance(asked, str) else engine.render(asked), sampling)


class Rule(Protocol):
    """What one request does to its logits before a token is drawn: penalties, biases, other cuts, a grammar."""

    @property
    def trouble(self) -> UserError | None:
        """Why the answer cannot go on: its request fails with it, the others go on."""
        ...

    def __call__(self, logits_V: Any) -> Any:
        """[V] float32 numpy array, its own to change, to logits that temperature, top-k and top-p are then applied to."""
        ...

    def accept(self, token: int) -> None:
        """The token that was drawn."""
        ...

    def copy(self) -> Rule:
        """One in the same state that goes its own way."""
        ...


class Picked(NamedTuple):
    spec: EngineSpec
    why: str
    """For people: why this engine."""


def pick(model: Path, serve: bool = False) -> Picked:
    """What `engine: auto` means. llama.cpp only accepts a GGUF file, and nothing else opens one; vLLM serves many people from a
    GPU and scores no texts; our own opens every other folder. A .json file names its engine itself, and so does an address or
    `provider:model` in place of a path."""
    from modelwright.methods.engines._choose import memory, named, no_vllm
    from modelwright.methods.engines._remote import is_card, read_card

    if is_card(model):
        return Picked(read_card(model), f"{model.name} says so")
    if (elsewhere := named(model)) is not None:
        return Picked(elsewhere, "it is served elsewhere")
    reasons: list[str] = []
    for kind in ("llamacpp", *(["vllm"] if serve else []), "native"):
        spec = ENGINES.load(kind)()
        assert isinstance(spec, EngineSpec)
        reason = spec.accepts(model)
        if reason is None and kind == "vllm":
            reason = no_vllm(model)
        if reason is None:
            not_ = f"; not {'; not '.join(reasons)}" if reasons else ""
            return Picked(spec, f"{kind} opens this model{not_}{memory(model)}")
        reasons.append(f"{kind}: {reason}")
    fix = "give a model's folder (config.json and *.safetensors) or a *.gguf file"
    raise UserError(f"no engine opens {model.name}", "; ".join(reasons), fix)


def open_with(spec: EngineSpec, model: Path, supervised: bool = False) -> Engine:
    """The model opened with `spec`, to be closed by the caller. `supervised`: in a process of its own, so that its crash is an
    error in words and the next request finds it started again."""
    from modelwright.methods.engines._choose import check_whole
    from modelwright.methods.engines._supervised import Supervised

    if reason := spec.accepts(model):
        raise UserError(
            f"the engine {type(spec).__name__} cannot open {model.name}", reason, "leave the engine out: one is chosen"
        )
    check_whole(model)
    return Supervised(spec, model) if supervised and spec.local else spec.open(model)


@contextmanager
def open_engine(model: Path, spec: EngineSpec | None = None, supervised: bool = False) -> Iterator[Engine]:
    """The same with what `pick` chooses where `spec` is left out; closed at the end."""
    engine = open_with(spec or pick(model).spec, model, supervised)
    try:
        yield engine
    finally:
        engine.close()
