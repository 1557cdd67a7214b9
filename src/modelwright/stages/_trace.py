"""What a training stage holds in memory, to the byte: two steps of its own loop, on tensors without values.

The model is built of its configuration, rows are made up, and everything from there on is the code that trains: `_train_run`'s
loop with `nn/loop.py`, forward and backward passes, clipping, the optimizer, the average, a validation. `nn/fake.py` stands in
for values, `nn/tally.py` counts.

Not part of it: what is done before the first step (opening a model, tokenising), checkpoints and the best weights (files),
Python's own memory and libraries, what `offload`, `compile` and an optimizer's kernels change on a card, and other processes of
`parallel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from modelwright.core.estimate import Facts, Given
from modelwright.core.events import Log
from modelwright.core.stage import Run
from modelwright.methods.architectures import shape_of
from modelwright.stages._trace_open import Known, configured, opened
from modelwright.stages._trace_rows import Made, Words, made
from modelwright.stages._train_run import Held, check_early, trainer_of, validator
from modelwright.stages._train_spread import spread_out

if TYPE_CHECKING:
    from modelwright.nn.device import Card
    from modelwright.nn.fake import Routing
    from modelwright.nn.precision import Numbers
    from modelwright.nn.tally import Event, Peak, Tally
    from modelwright.stages._train_spec import Training


def _nothing(operations: int) -> None:
    """Nobody listens."""


class Job(NamedTuple):
    """Two steps of a training stage, resolved."""

    stage: Training
    config: Any
    """transformers' configuration of the model."""
    data: Sequence[Facts] = ()
    """What is known of its rows."""
    products: str = "fp32"
    """In what type they run, as `Machine.products` says it; float8 is counted as bfloat16, which weights are cast to for it."""
    seed: int = 0
    card: Card | None = None
    """For which the processor's memory stands: with the kernels of cards, and the room that these take for themselves."""

    @staticmethod
    def of(stage: Training, config: Any, given: Given, data: Sequence[Facts] = ()) -> Job:
        """As the machine that is given would run it."""
        from modelwright.nn.device import Card

        products, _ = given.machine.products(stage.precision)
        card = Card(given.machine.flash) if given.machine.device != "cpu" else None
        return Job(stage, config, data, products, given.seed, card)

    @property
    def how(self) -> Numbers:
        import torch

        from modelwright.nn.precision import Numbers

        dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(self.products, torch.bfloat16)
        return Numbers(dtype, "", scaling=dtype == torch.float16)


class Traced(NamedTuple):
    peak: Peak
    low_bytes: int
    high_bytes: int
    """With experts that are used evenly, and with as few of them as there can be; elsewhere both are the peak."""
    events: list[Event]
    """Every allocation and every end of one, in order: what an allocator is asked for."""
    why: str
    """What was assumed."""


def trace(name: str, known: Mapping[str, Known], told: Callable[[int], None] = _nothing) -> Traced:
    """Of a training stage of a recipe, of which every stage is `known`; `told` hears how many operations were counted."""
    step, given = known[name]
    stage = cast("Training", step.stage.resolve(given))
    found = configured(name, known)
    data = [given.parents.get(mix.ref, Facts(type="records")) for mix in stage.data]
    job = Job.of(stage, found.config, given, data)
    check_early(stage, job.how)
    done = traced(job, told)
    return done._replace(why=f"model {found.why}; {done.why}")


def traced(job: Job, told: Callable[[int], None] = _nothing) -> Traced:
    """Two steps on tensors without values; of a mixture of experts once more, with the most uneven routing."""
    even, rows = counted(job, "even", told)
    peaks = [even.peak()]
    if shape_of(job.config).experts:
        peaks.append(counted(job, "one", told)[0].peak())
    sizes = [peak.bytes for peak in peaks]
    return Traced(peaks[0], min(sizes), max(sizes), even.events, rows.why)


def counted(job: Job, routing: Routing, told: Callable[[int], None] = _nothing) -> tuple[Tally, Made]:
    """With experts that are chosen so."""
    from modelwright.nn.device import standing_for
    from modelwright.nn.fake import Fake
    from modelwright.nn.tally import Tally
    from modelwright.nn.workspaces import WORKSPACES, card_workspaces

    with TemporaryDirectory() as folder:
        words, rows = prepared(job, Path(folder))
        with Fake(routing), standing_for(job.card):
            model = opened(job.stage, job.config, words, job.seed)
            with Tally(told, card_workspaces() if job.card else WORKSPACES) as tally:
                steps(job, model, rows, Path(folder), tally)
    return tally, rows


def prepared(job: Job, folder: Path) -> tuple[Words, Made]:
    words = Words(job.config.get_text_config().vocab_size, job.stage.objective.marks())
    return words, made(job.stage, job.data, words, folder / "rows", job.seed)


def steps(job: Job, model: Any, rows: Made, folder: Path, tally: Tally | None = None) -> None:
    """The loop over these rows, and its end. Without a tally, on a real model, it is what a trace is compared with."""
    import torch

    from modelwright.nn.loop import Hooks

    # what goes to files or to other memory is left out
    alone = {"on_bad_step": "stop", "keep": "last", "patience": None, "checkpoint_every_s": math.inf, "offload": ()}
    stage = cast("Training", cast("Any", job.stage).model_copy(update=alone))
    run = Run(folder, {}, job.seed, Log(None))
    spread = spread_out(model, None)
    if tally is not None:
        tally.own("weights", [*model.parameters(), *model.buffers()])
    trainer = trainer_of(stage, run, spread, rows.rows, rows.plan, rows.attach, job.how)
    sets = [Held("rows", rows.rows, list(range(len(rows.rows))), rows.attach)] if stage.validation else []
    validate = validator(stage, sets, job.how.dtype, run, spread)
    trainer.writer = no_files(folder)
    if trainer.update.scaling is not None:
        trainer.update.scaling.factor = 1.0  # what tensors without values say that gradients are
    threads = torch.get_num_threads()
    torch.set_num_threads(stage.threads or threads)  # each has memory of its own in some kernels
    try:
        with nullcontext() if tally is None else tally.of_optimizers(trainer.update.optimizers):
            trainer.fit(Hooks(lambda fields: None, lambda done, loss: None, lambda event, fields: None, validate))
    finally:
        torch.set_num_threads(threads)


def no_files(folder: Path) -> Any:
    """What takes checkpoints and writes none: tensors without values cannot be saved, and a Ctrl-C asks for that."""
    from modelwright.nn.checkpoint import Writer

    class Silent(Writer):
        def start(self, step: int, state: dict[str, Any]) -> None:
            """Leave it."""

    return Silent(folder)
