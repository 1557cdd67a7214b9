"""Train: the one gradient loop. Pretraining, tuning and preferences are values of objective x adapter x start.

The work is in `_train_run`, the soundness checks in `_train_checks`, the cost in `_train_cost`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from modelwright.core.estimate import Estimate, Facts, Given, Shape
from modelwright.core.memory import micro_tokens, state_of_each
from modelwright.core.memory.weights import Weight, weights_of
from modelwright.core.parallel import elsewhere
from modelwright.core.spec import Runtime, Spec, kind_of
from modelwright.core.stage import Accepts, Check, Refs, Run, Stage, Stats
from modelwright.methods.adapters import ADAPTERS, Adapter
from modelwright.methods.architectures import ARCHITECTURES, Architecture
from modelwright.methods.growers import GROWERS, Grower
from modelwright.methods.objectives import OBJECTIVES, Objective
from modelwright.methods.optimizers import OPTIMIZERS, Optimizer
from modelwright.methods.schedules import SCHEDULES, Schedule
from modelwright.methods.templates import TEMPLATES, Template
from modelwright.methods.trackers import TRACKERS, Tracker
from modelwright.stages import _train_cost as costs
from modelwright.stages import _train_layouts as layouts
from modelwright.stages._train_memory import Row
from modelwright.stages._train_spec import CACHE, CHECKPOINT
from modelwright.stages._train_start import check_start

ADAMW: Any = "adamw"
COSINE: Any = "cosine"


class Train(Stage):
    """Makes a model from rows: from scratch (`model` and `vocab`) or from another model (`start`)."""

    produces: ClassVar[str] = "model"
    resumes: ClassVar[bool] = True
    scratch: ClassVar[tuple[str, ...]] = (CACHE, CHECKPOINT)
    spreads: ClassVar[bool] = True

    kind: Literal["train"] = "train"
    data: Refs
    """Rows to train on: one reference, or a list of `{ref, weight, epochs}`. They may be more than memory holds: tokens are read
    from the disk as they are needed, and memory takes 8 bytes a row and 4 for each time that it is used."""
    validation: Refs | None = Field(None, examples=["pairs:test"])
    """Rows to measure the loss on while training; they are never trained on. Costs their forward passes."""
    validate_every: int = Field(100, ge=1, examples=[20])
    """Steps between two measurements on `validation`; fewer see more and cost more."""
    validation_rows: int = Field(1000, ge=1, examples=[2])
    """Most rows of each validation set, spread evenly over it; more are exacter and cost more. 1,000: the mean loss of usual
    chats is then known to about one part in a hundred."""
    patience: int | None = Field(None, ge=1, examples=[1])
    """End after so many validations in a row without a better loss (the mean over the sets). Unset: all steps are made."""
    keep: Literal["last", "best"] = Field("last", examples=["best"])
    """Which weights are left: those after the last step, or those of the best validation. Default: the schedule ends where it
    should, and picking the best of many measurements flatters it."""
    average: float = Field(0.0, ge=0, lt=1, examples=[0.9])
    """Decay of a moving average of the weights, which is then what is measured and left (Polyak and Juditsky 1992); nearer 1
    averages over more steps, and the first ones count less. 0: the last weights, since a decaying rate does much the same."""
    on_bad_step: Literal["stop", "skip", "rollback"] = Field("stop", examples=["skip"])
    """What becomes of a step whose loss or gradient is no number, or a spike: end with an error that names rows and module,
    leave the step out, or go back 20 steps and leave those out too (as PaLM did, arXiv:2204.02311, section 5.1); every one is
    counted. Default: look first."""
    spike: float = Field(0.0, ge=0, examples=[8.0])
    """A loss so many robust standard deviations above the last 64 counts as a bad step; lower finds more. 0: only what is no
    number counts, since rows differ in difficulty."""
    start: Annotated[str | None, Accepts(("model",))] = None
    """Model to go on from: an earlier stage, a folder, or `hf:org/name@revision`; it brings its tokenizer."""
    grow: Annotated[Grower, GROWERS] | None = Field(None, examples=[{"kind": "deepen", "layers": 3}])
    """Make the start larger before it is trained: more layers, wider ones, or experts. Unset: it keeps its size."""
    model: Annotated[Architecture, ARCHITECTURES] | None = None
    """Shape of a new model; needs `vocab`."""
    vocab: Annotated[str | None, Accepts(("tokenizer",))] = None
    """Tokenizer of a new model."""
    objective: Annotated[Objective, OBJECTIVES]
    """What a step improves; it also says which rows fit."""
    adapter: Annotated[Adapter, ADAPTERS] | None = None
    """Train a few weights beside the frozen start; unset: all weights."""
    optimizer: Annotated[Optimizer, OPTIMIZERS] = Field(ADAMW, examples=[{"kind": "muon"}])
    """How a gradient becomes a step."""
    schedule: Annotated[Schedule, SCHEDULES] = Field(COSINE, examples=[{"kind": "constant"}])
    """The learning rate over time."""
    template: Annotated[Template, TEMPLATES] | None = None
    """How chats become text, kept in the model's tokenizer for serving. Unset: the tokenizer's own."""
    length: int = Field(512, ge=8, examples=[32])
    """Most tokens of a row. Longer texts are cut into pieces, longer chats are left out and counted. More lets the model use
    more context and costs memory and attention time. 512: questions about a function fit."""
    batch_tokens: int = Field(4096, ge=8, examples=[64])
    """Most tokens of a step (the global batch); whole rows are taken. More is steadier, fewer give more steps for the work."""
    steps: int | None = Field(None, ge=1, examples=[3])
    """Length of the training in steps; exactly one of `steps` and `epochs`."""
    epochs: float | None = Field(None, gt=0, examples=[2.0])
    """Length of the training in passes over the data."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field("fp32", examples=["bf16"])
    """Matrix products; weights, softmax and loss are float32 whatever they run in. `bf16` takes less memory, and less time where
    it is no emulation (measured once on a machine; elsewhere products run in float32). `fp16`: with scaled losses, for graphics
    cards before Ampere, which have no bf16. `fp8`: linear layers through torchao, on Ada, Hopper and later. `auto`: bf16 where
    that is fast, else fp16 on a CUDA card, else fp32. Default: fp32, the one that gives the same on every machine but for
    rounding; with `auto` one key would stand for models that were trained in different numbers."""
    clip: float = Field(1.0, ge=0, examples=[0.01])
    """Largest norm of a step's gradient, scaled down beyond it; 0: no limit. 1.0 as in GPT-3 (arXiv:2005.14165, appendix B)."""
    threads: Annotated[int | None, Runtime] = Field(None, ge=1)
    """Processor threads of each process. Unset: all cores of the machine, shared by its processes; on a cluster, the cores that
    `launch` asks for."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Runtime] = Field("auto", examples=["cpu"])
    """Where the model is trained; auto: a CUDA card that the installed torch has code for, else Apple's GPU, else the
    processor."""
    micro_tokens: Annotated[int | None, Runtime] = Field(None, ge=8)
    """Most tokens computed at once; a step is several of these. More is faster up to some hundreds and takes memory in
    proportion. Unset: as many as take about 0.9 GB of activations."""
    recompute: Annotated[Literal["selective", "full"], Runtime] = "selective"
    """What the backward pass computes again to save memory: what is cheap (norms and the MLP's product, where our own forward
    pass runs), or whole layers (arXiv:1604.06174). `full` keeps two rows a token and layer and takes a third more time; the
    result is the same to the bit. Default: activations of 0.9 GB fit nearly everywhere, since `micro_tokens` is set so."""
    compile: Annotated[bool, Runtime] = Field(False, examples=[True])
    """Fuse norms, rotary positions and the MLP's gate of our own forward pass into one kernel each by torch.compile, for a start
    that takes a minute; the result differs by rounding. Default: on a processor it was measured to pay nothing (3 % in
    bfloat16, in the layers of the 135M shape); it may on a graphics card, where it was not measured."""
    offload: Annotated[tuple[Literal["activations", "states"], ...], Runtime] = Field((), examples=[["activations"]])
    """What lies in the processor's memory while a CUDA card does not use it: what forward passes keep for backward passes, or the
    states of the optimizer, each of which comes for the step of its weight (`adamw8bit` with `states` is QLoRA's paged one). Each
    takes a copy there and back a step: of activations about 10 times the width in bytes a token and layer, of states their size.
    The result is the same to the bit. Default: what fits is faster where it is."""
    step_in_backward: Annotated[bool, Runtime] = Field(False, examples=[True])
    """Step each weight inside the backward pass, once its gradient is whole, and free the gradient (LOMO, arXiv:2306.09782).
    Saves 4 bytes a weight, of those in layers. Needs steps of one micro-batch, `clip: 0` and `on_bad_step: stop`, since nothing
    can wait for the whole gradient; its norm is told all the same. The result differs by rounding. Off: gradients usually fit,
    and most trainings clip."""
    checkpoint_every_s: Annotated[float, Runtime] = Field(120.0, ge=0)
    """Seconds between checkpoints; less is lost in a crash, more time goes into writing. 120: at most two minutes are lost."""
    log_every: Annotated[int, Runtime] = Field(10, ge=1)
    """Steps between two lines of `metrics.jsonl`."""
    samples_every: Annotated[int, Runtime] = Field(0, ge=0)
    """Steps between two looks at what the model answers to the first prompts of its rows (of `validation`, where there is one);
    each takes seconds. 0: only at the end."""
    profile_steps: Annotated[int, Runtime] = Field(0, ge=0)
    """Steps that torch's profiler traces, from the third on: a Chrome trace in the folder `profile` and, in the report, the 20
    operations that took longest. More see rarer things, and make larger files: some MB a step. 0: traced steps are slower."""
    trackers: Annotated[tuple[Annotated[Tracker, TRACKERS], ...], Runtime] = Field((), examples=[[{"kind": "trackio"}]])
    """Programs that get the numbers of `metrics.jsonl` as they come. Default: none; `modelwright watch` shows them without."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        own = all(mix.epochs is not None for mix in self.data)  # then the data says how long
        if own and self.epochs is not None:
            raise PydanticCustomError("budget", "every source has its own `epochs`: leave the stage's out, or give `steps`")
        if not own and (self.steps is None) == (self.epochs is None):
            raise PydanticCustomError("budget", "give exactly one of `steps` and `epochs`: it says how long to train")
        if self.start is None and (self.model is None or self.vocab is None):
            lacks = "`model`" if self.model is None else "`vocab`"
            raise PydanticCustomError(
                "beginning", "nothing to train: give `start`, or both `model` and `vocab` ({lacks} is missing)", {"lacks": lacks}
            )
        if self.length > self.batch_tokens:
            raise PydanticCustomError(
                "batch",
                "`length` {length} is more than `batch_tokens` {batch}: no step could hold such a row",
                {"length": self.length, "batch": self.batch_tokens},
            )
        if self.objective.reference and self.start is None:
            raise PydanticCustomError("reference", "this objective measures against a frozen start: give `start`")
        if self.start is None and self.model is not None and self.objective.head not in self.model.opens_as:
            raise PydanticCustomError(
                "head",
                "this objective needs a model with a `{head}` head, and this `model` can have: {heads}",
                {"head": self.objective.head, "heads": ", ".join(self.model.opens_as)},
            )
        if self.optimizer.averages and (self.average or self.schedule.decays):
            raise PydanticCustomError(
                "average", "this optimizer averages the weights itself: write `schedule: constant` and leave `average` out"
            )
        if self.precision == "fp16" and self.device == "cpu":
            raise PydanticCustomError(
                "precision", "`precision: fp16` is for graphics cards: write `bf16` or `fp32` with `device: cpu`"
            )
        if self.precision == "fp8" and self.adapter is not None:
            raise PydanticCustomError("precision", "`precision: fp8` multiplies layers that an adapter wraps: write `bf16`")
        if self.step_in_backward and (cannot := self._steps_after()):
            raise PydanticCustomError("step_in_backward", "`step_in_backward` cannot be here: {why}", {"why": cannot})
        if self.grow is not None and self.objective.head == "seq2seq":
            raise PydanticCustomError("grow", "how an encoder-decoder grows is not known here: leave `grow` out")
        if self.adapter is not None and self.start is None:
            raise PydanticCustomError("adapter", "an adapter sits beside a trained model: give `start`, or leave `adapter` out")
        if self.adapter is not None and self.objective.head in ("sequence", "tokens"):
            raise PydanticCustomError(
                "adapter", "an adapter leaves the new layer that judges texts untrained: leave `adapter` out"
            )
        return self

    def _steps_after(self) -> str:
        """Why weights can be stepped only after the backward pass; '' where they need not."""
        found = {
            "the whole gradient is clipped: write `clip: 0`": self.clip > 0,
            "a step that was begun is not taken back: write `on_bad_step: stop`": self.on_bad_step != "stop",
            "a step is one micro-batch: leave `micro_tokens` out, or lower `batch_tokens` to it": self.micro_tokens is not None
            and self.micro_tokens < self.batch_tokens,
            "this objective compares all rows of a step, in several passes": self.objective.whole_step,
            "this optimizer looks at several weights at once": not (self.optimizer.elementwise or self.optimizer.weightwise),
            "float16's gradients are used only after all were in range: write `precision: bf16`": self.precision == "fp16",
        }
        return next((why for why, so in found.items() if so), "")

    def unused(self, context: Spec) -> dict[str, str]:
        found = {}
        if self.start is not None:
            found = {name: "`start` brings its own" for name in ("model", "vocab") if getattr(self, name) is not None}
        else:
            found["grow"] = "there is no `start` to grow"
        if self.objective.head != "causal":
            found["samples_every"] = "only a decoder answers prompts while it is trained"
        if self.device == "cpu":
            found["offload"] = "on a processor everything is in its memory already"
        if self.validation is None:
            names = ("validate_every", "validation_rows", "patience", "keep")
            found |= dict.fromkeys(names, "there is no `validation`")
        for index, mix in enumerate(self.validation or ()):
            own = {"weight": mix.weight, "epochs": mix.epochs}
            found |= {
                f"validation.{index}.{name}": "the loss is measured on each row once" for name, value in own.items() if value
            }
        return found

    def resolve(self, given: Given) -> Train:
        shape, _ = self.shape(given.parents)
        half = self._half(given)
        changes: dict[str, Any] = {}
        if self.threads is None:
            changes["threads"] = max(1, given.machine.cores // given.parallel.processes)
        if self.micro_tokens is None:
            changes["micro_tokens"] = self._at_once(shape, half, given)
        found = self.model_copy(update=changes)
        found.model_fields_set.difference_update(changes)  # nobody wrote them
        return found

    def _at_once(self, shape: Shape, half: bool, given: Given) -> int:
        """Tokens of a micro-batch, where nothing else is asked for."""
        if self.step_in_backward:
            return self.batch_tokens
        room, machine = 0.0, self._on(given).machine
        if machine.device_memory_bytes:  # a card is fast with more at once: half of what its weights and their states leave
            trained = self.trainable(shape)
            of_each = self.optimizer.state_bytes_per_param
            state = state_of_each(shape.params, trained, trained, of_each, given.parallel)
            room = max(1.0, (machine.device_memory_bytes - state) / 2)
        return micro_tokens(shape, self.batch_tokens, half, self.own(shape), self._full, room)

    @property
    def _full(self) -> bool:
        return self.recompute == "full"

    def own(self, shape: Shape) -> bool:
        """Whether our own forward pass trains it, as far as it is known here."""
        known = self.model is None or self.model.own
        return (
            known
            and not (shape.experts or shape.decoder_layers or shape.both_ways)
            and (self.adapter is None or self.adapter.own())
        )

    def trainable(self, shape: Shape) -> float:
        """Weights of a model of this shape that are trained."""
        return self.adapter.trainable_params(shape) if self.adapter is not None else shape.params

    def _trained(self, shape: Shape) -> list[Weight]:
        """All that has a gradient, tensor by tensor."""
        own = self.adapter.weights(shape) if self.adapter is not None else weights_of(shape)
        added = self.objective.added_params(shape)
        heads = [Weight("last", (shape.hidden, shape.hidden), added // shape.hidden**2)] if added else []
        return [*own, *heads]

    def _row(self, facts: Sequence[Facts]) -> Row:
        """One that is as long as rows may be, or as the mean of the data where that is known."""
        length = float(self.objective.row_tokens(self.length))
        if facts and all(fact.tokens and fact.rows for fact in facts):
            length = min(length, max(4.0, sum(f.tokens or 0.0 for f in facts) / sum(f.rows or 0.0 for f in facts)))
        return Row(round(length), self.objective.texts, self.objective.head != "seq2seq")

    def _half(self, given: Given) -> bool:
        """Whether products run in 16 bits, as far as a plan knows."""
        return self._on(given).machine.products(self.precision)[0] != "fp32"

    def _on(self, given: Given) -> Given:
        """With what the stage computes on: a card for each process, and none for `device: cpu`."""
        machine = given.machine.host() if self.device == "cpu" else given.machine.used_by(given.parallel.processes)
        return given._replace(machine=machine)

    def shape(self, parents: Mapping[str, Facts]) -> tuple[Shape, str]:
        """The model's sizes, and what had to be assumed."""
        shape, assumed = self._shape_before(parents)
        return (self.grow.shape(shape) if self.grow is not None else shape), assumed

    def _shape_before(self, parents: Mapping[str, Facts]) -> tuple[Shape, str]:
        if self.start is not None:
            facts = parents.get(self.start, Facts(type="model"))
            if facts.shape is not None:
                return facts.shape, ""
            params = (facts.bytes or 540e6) / 4
            return costs.guess(params), f"a Llama shape of {params / 1e6:.0f}M weights from the size of {self.start}"
        assert self.model is not None and self.vocab is not None
        vocab = parents.get(self.vocab, Facts(type="tokenizer"))
        size = vocab.rows
        return self.model.shape(int(size or 8192)), "" if size else "a vocabulary of 8,192 tokens"

    def estimate(self, given: Given) -> Estimate:
        self.objective.row_tokens(self.length)  # refuses what cannot fit
        check_start(self, given)
        shape, assumed_shape = self.shape(given.parents)
        layouts.check(self, shape, given.parallel)
        if self.compile and not self.own(shape):
            raise layouts.not_own("compile: true", "it fuses parts of the forward pass")
        facts = [given.parents.get(mix.ref, Facts(type="records")) for mix in self.data]
        tokens, assumed_tokens = costs.data_tokens(facts, shape.vocab, self.objective.marks_tokens())
        load = costs.Load(
            shape=shape,
            trained=self._trained(shape),
            trainable=self.trainable(shape),
            frozen=() if self.adapter is None else weights_of(shape),
            beside=self.adapter,
            optimizer=self.optimizer,
            state_bytes_per_param=self.optimizer.state_bytes_per_param,
            step_flops=0.0 if self.adapter else self.optimizer.step_flops(shape),
            batch_tokens=self.batch_tokens,
            micro_tokens=self.micro_tokens or self._at_once(shape, self._half(given), given),
            length=self.length,
            row=self._row(facts),
            steps=self.steps,
            epochs=self.epochs or (None if self.steps else sum(mix.epochs or 0 for mix in self.data) / len(self.data)),
            data_tokens=1e6 if tokens is None else tokens,
            rows=max(sum(f.rows or 0.0 for f in facts), (tokens or 1e6) / self.length),
            target_frac=self.objective.target_frac,
            reference=self.objective.reference,
            half=self._half(given),
            precision=self.precision,
            threads=self.threads,
            validations=(self.validate_every, self._held_tokens(given, shape.vocab)) if self.validation else (0, 0.0),
            keep_best=self.keep == "best",
            averaged=bool(self.average) + (self.optimizer.averages or bool(self.average)),
            own=self.own(shape),
            parts=self.adapter is not None and self.adapter.trains_tables(),
            added=self.objective.added_params(shape),
            added_flops=self.objective.added_flops(shape),
            head=None if self.objective.head == "vectors" else self.objective.head,
            parallel=given.parallel,
            full=self._full,
            step_in_backward=self.step_in_backward,
            asks=self.objective.asks,
            offload=self.offload,
            chars=sum(f.chars if f.chars is not None else f.bytes or 0.0 for f in facts),
            context=self._context(given),
            chats=self.objective.needs in ("answers", "pairs"),
            like=self._like(),
        )
        return costs.cost(load, self._on(given).machine, ", ".join(filter(None, (assumed_shape, assumed_tokens))))

    def _context(self, given: Given) -> float | None:
        """Tokens that the model can see, where that is known and has an end."""
        if self.start is not None:
            return given.parents.get(self.start, Facts(type="model")).context
        return self.length if self.objective.head != "seq2seq" else None

    def _like(self) -> str:
        parts = (self.objective, *((self.adapter,) if self.adapter is not None else ()))
        return " ".join([*(kind_of(part) for part in parts), self.precision])

    def _held_tokens(self, given: Given, vocab: int) -> float:
        """Tokens of one validation, as far as they are known."""
        total = 0.0
        for mix in self.validation or ():
            facts = given.parents.get(mix.ref, Facts(type="records"))
            tokens, _ = costs.data_tokens([facts], vocab, self.objective.marks_tokens())
            share = min(1.0, self.validation_rows / facts.rows) if facts.rows else 1.0
            total += share * (1e5 if tokens is None else tokens)
        return total

    def checks(self, run: Run) -> Iterator[Check]:
        from modelwright.stages._train_checks import checks

        yield from checks(self, run)

    def run(self, run: Run) -> Stats:
        from modelwright.stages._train_run import train
        from modelwright.stages._train_spread import chosen, launched

        if (parallel := chosen(self, run)).processes > 1 or elsewhere(run.launch):
            return launched(self, run, parallel)

        return train(self, run)
