"""What is known of artifacts and machines before any work, and a stage's answer: time, memory, disk, each with a why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from modelwright.core.errors import UserError
from modelwright.core.parallel import Parallel


class Shape(BaseModel):
    """The sizes of a transformer that memory and time depend on."""

    model_config = ConfigDict(frozen=True)
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True
    head_dim: int = 0
    norms: int = 2
    """Norms of a layer that are as wide as the model."""
    qk_norm: bool = False
    """Queries and keys are normed, with one weight for each place in a head."""
    experts: int = 0
    """MLPs of a layer, among which a router chooses; 0: one MLP and no router."""
    experts_per_token: int = 0
    decoder_layers: int = 0
    """Layers that write while they look at what `layers` have read; 0: no encoder-decoder."""
    extra: int = 0
    """Weights beside all these: an encoder's network before its head and the head's bias, tables of distances."""
    window: int = 0
    """Tokens back that layers with a window see, the token itself included."""
    windowed_layers: int = 0
    """How many layers have that window; the others see everything."""
    both_ways: bool = False
    """It reads a text from both sides (an encoder alone)."""

    @property
    def params(self) -> int:
        """Number of weights of a gated-MLP decoder: embeddings, attention, MLP or experts and their router, norms."""
        head_dim = self.head_dim or self.hidden // self.heads
        attention = self.hidden * head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden * self.intermediate
        if self.experts:
            mlp = self.experts * (mlp + self.hidden)
        block = attention + mlp + self.norms * self.hidden + (2 * head_dim if self.qk_norm else 0)
        found = self.layers * block + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden + self.extra
        if self.decoder_layers:  # each looks twice, with a norm before; and a last norm of their own
            found += self.decoder_layers * (block + attention + self.hidden) + self.hidden
        return found

    def flops_per_token(self, context: float = 0) -> float:
        """Forward FLOPs of one token: 2 per weight that multiplies, and attention over `context` tokens."""
        matrices = self.params - (0 if self.tied else self.vocab * self.hidden)
        idle = self.layers * (self.experts - self.experts_per_token) * 3 * self.hidden * self.intermediate
        width = (self.head_dim or self.hidden // self.heads) * self.heads
        return 2.0 * (matrices - idle) + 4.0 * self.layers * width * context


class Facts(BaseModel):
    """What is known of one artifact or part, measured or predicted. Unknown is None, never 0."""

    model_config = ConfigDict(frozen=True)
    type: str
    rows: float | None = None
    chars: float | None = None
    tokens: float | None = None
    bytes: float | None = None
    shape: Shape | None = None
    head: str | None = None
    """What a model gives, as objectives name it: `causal`, `masked`, `sequence`, `tokens`, `seq2seq`."""
    context: float | None = None
    """Tokens that a model can see."""
    measured: bool = False


_DOES = {
    "masked": "guesses hidden tokens",
    "sequence": "judges whole texts",
    "tokens": "judges words",
    "seq2seq": "reads a text and writes another",
}


def check_goes_on(ref: str, facts: Facts) -> None:
    """UserError for a model that is known not to go on with a text: engines run those alone that do."""
    if facts.head in _DOES:
        raise UserError(
            f"{ref} {_DOES[facts.head]}, and only a model that goes on with a text can be asked here",
            "engines and export formats run decoders",
            "open its folder with transformers, or name a model trained with `next_token`, `sft` or `dpo`",
        )


GAIN = 1.1
"""Products in bfloat16 are taken where they are so many times as fast as in float32; less is noise."""
HOST_FLOPS_PER_S = 30e9
"""Of one core with AVX2, float32; see `plan/machine.py`."""


class Machine(NamedTuple):
    """The machine a stage would run on; never enters a key."""

    name: str
    cores: int
    memory_bytes: float
    device: str = "cpu"
    flops_per_s: float = 60e9
    """Rate of float32 matrix products that training reaches, in FLOP/s, all cores together."""
    bf16_flops_per_s: float = 0.0
    """The same in bfloat16; 0 where the processor has no such products and they run in float32."""
    fp16_flops_per_s: float = 0.0
    """The same in float16 with sums in float32; 0 on a processor. Cards before Ampere have these products and no bfloat16."""
    fp8_flops_per_s: float = 0.0
    """The same in float8; 0 where there are none."""
    usd_per_hour: float = 0.0
    """Price of all of it; 0 where it is one's own."""
    devices: int = 1
    """Cards of it, or 1 for a processor."""
    device_memory_bytes: float = 0.0
    """Memory of one card; 0 for a processor, which has `memory_bytes` alone."""
    bandwidth_bytes_per_s: float = 0.0
    """Rate at which the device that computes reads its memory; 0: not known."""
    disk_bytes_per_s: float = 0.0
    """Rate of reading files that are in no cache; 0: not known."""
    tokenise_chars_per_s: float = 0.0
    """Rate of a tokenizer on all its cores; 0: not known."""
    link_bytes_per_s: float = 0.0
    """Rate at which one of its cards, or of its processes, sends to another; 0: not known."""
    power_w: float = 0.0
    """What all of it draws under load, at the wall of its board; 0: not known."""
    apart: bool = False
    """Processes of a training start on other machines, each taken to be one like this."""
    source: str = ""
    """Where these rates come from: `guessed`, `measured <date>` or a data sheet's address and the achieved fraction."""

    def products(self, precision: str) -> tuple[str, float]:
        """In what type products of `precision: auto` (or `fp32`, `bf16`, `fp16`, `fp8`) run here, by the rules of
        `nn/precision.py`, and their rate."""
        if precision == "fp16":
            return "fp16", self.fp16_flops_per_s or self.flops_per_s
        if precision == "fp8":
            return "fp8", self.fp8_flops_per_s or self.bf16_flops_per_s or self.flops_per_s
        if precision != "fp32" and self.bf16_flops_per_s >= GAIN * self.flops_per_s:
            return "bf16", self.bf16_flops_per_s
        if precision == "auto" and self.device == "cuda":
            return "fp16", self.fp16_flops_per_s or self.flops_per_s
        return "fp32", self.flops_per_s

    @property
    def flash(self) -> bool:
        """Whether torch's flash attention runs here in 16 bits: on cards from Ampere on, the first with products in bfloat16."""
        return self.device == "cuda" and self.products("bf16")[0] == "bf16"

    @property
    def one_memory(self) -> bool:
        """Its processors and its GPU work in the same memory."""
        return self.device == "mps"

    def used_by(self, processes: int) -> Machine:
        """What so many processes compute with, each on a card of its own; a processor's cores are all theirs."""
        if self.device == "cpu" or processes >= self.devices:
            return self
        share = processes / self.devices
        return self._replace(
            flops_per_s=self.flops_per_s * share,
            bf16_flops_per_s=self.bf16_flops_per_s * share,
            fp16_flops_per_s=self.fp16_flops_per_s * share,
            fp8_flops_per_s=self.fp8_flops_per_s * share,
            devices=processes,
        )

    def host(self) -> Machine:
        """The processors beside its cards alone, their rate guessed at a usual one with AVX2; a processor is its own."""
        if self.device == "cpu":
            return self
        return self._replace(
            device="cpu",
            flops_per_s=HOST_FLOPS_PER_S * self.cores,
            bf16_flops_per_s=0.0,
            fp16_flops_per_s=0.0,
            fp8_flops_per_s=0.0,
            devices=1,
            device_memory_bytes=0.0,
            bandwidth_bytes_per_s=0.0,
            link_bytes_per_s=0.0,
            source="guessed, the processors beside a card",
        )


class Given(NamedTuple):
    """Everything `resolve` and `estimate` may look at."""

    machine: Machine
    parents: Mapping[str, Facts]
    """By reference as written in the recipe (`pairs:test`)."""
    seed: int = 0
    parallel: Parallel = Parallel()
    paths: Mapping[str, Path] = {}
    """Where references to files of the user's own lead."""


class Quantity(NamedTuple):
    """A number with its unit and where it comes from."""

    value: float
    unit: str
    why: str
    low: float | None = None
    """With `high`, the interval that holds 95 % of runs; None where nothing is known of it."""
    high: float | None = None


class Part(NamedTuple):
    """A share of the memory at the moment when most of it is in use."""

    name: str
    """`weights`, `gradients`, `optimizer`, `activations`, `logits`, `reference`, `adapter`, `cache`, `imports`, `rows`, …"""
    bytes: float
    why: str


class Span(NamedTuple):
    """A share of a stage's seconds, which runs correct by itself."""

    name: str
    """`imports`, `checks`, `rows`, `steps`, `end`, …; what a stage measures of it goes under that name into `Run.laps`."""
    seconds: float
    why: str
    like: str = ""
    """What else its rate depends on (`dpo lora fp32`): runs alike in that correct one another further."""


IMPORTS = "imports"
"""Name of the span that a process spends once: torch, transformers and what comes with them."""
IMPORTS_S = 4.5
"""From a disk's cache, as processor time of a Xeon at 2.5 GHz; what comes beside torch and transformers is little of it."""


def imports(what: str) -> Span:
    """The span of `what`, which a later stage of the same process is spared."""
    return Span(IMPORTS, IMPORTS_S, f"{what}, once in a process")


BEGIN_BYTES = 45e6
"""Of the command before any stage; measured, as what follows (Linux, x86-64)."""
KERNELS = {"numba": 0.12e9}
"""What a module and all that comes with it take in a process from then on."""
TORCH = {**KERNELS, "torch": 0.34e9}


class Estimate(NamedTuple):
    """The predicted cost of a stage and what it will leave."""

    seconds: Quantity
    memory: Quantity
    """Peak resident bytes of the process, or of each of `processes`."""
    disk: Quantity
    facts: dict[str, Facts]
    """By part; the artifact as a whole under ''."""
    scale: tuple[float, float] = (1.0, 1.0)
    """By how much seconds and memory were corrected from earlier runs; already in the numbers above."""
    parts: tuple[Part, ...] = ()
    """What `memory` is made of, before that correction; empty: one number is all that is known."""
    device_memory: Quantity | None = None
    """Peak bytes on each card; None where the work is on the processor."""
    device_parts: tuple[Part, ...] = ()
    """What `device_memory` is made of."""
    asked_tokens: tuple[float, float] = (0.0, 0.0)
    """Tokens of prompts and of answers that engines are asked for: what a paid one would count."""
    spans: tuple[Span, ...] = ()
    """What `seconds` is made of, before that correction; empty: one number is all that is known."""
    processes: int = 1
    """How many take `memory` each of one machine."""
    leaves: Mapping[str, float] = {}
    """Modules that are in the process from then on, and the bytes of each; `memory` has them."""
    left_bytes: float = 0.0
    """Of `memory`: what earlier stages leave in the process. Corrections do not touch it."""


def estimate(
    seconds: float,
    seconds_why: str,
    memory_bytes: float,
    memory_why: str,
    disk_bytes: float,
    disk_why: str,
    facts: dict[str, Facts],
) -> Estimate:
    return Estimate(
        Quantity(seconds, "s", seconds_why),
        Quantity(memory_bytes, "bytes", memory_why),
        Quantity(disk_bytes, "bytes", disk_why),
        facts,
    )
