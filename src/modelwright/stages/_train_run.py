"""The work of a training stage: open, tokenise, plan, loop, finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.measure import Laps
from modelwright.core.stage import Run, Stats
from modelwright.methods.objectives import Batch, Objective
from modelwright.stages._train_finish import finish, samples, trained_on
from modelwright.stages._train_open import Opened, open_model
from modelwright.stages._train_profile import profiled, traced
from modelwright.stages._train_rows import Prepared, prepared
from modelwright.stages._train_spec import CACHE, CHECKPOINT
from modelwright.stages._train_spread import gathered, in_turn, spread_out
from modelwright.stages._train_watch import tell_rates, watched

if TYPE_CHECKING:
    import torch

    from modelwright.nn.logps import Policy
    from modelwright.nn.measure import LossFn
    from modelwright.nn.order import Order
    from modelwright.nn.parallel import Spread
    from modelwright.nn.parallel.several import Ranks
    from modelwright.nn.precision import Numbers
    from modelwright.nn.rows import Packed, Rows
    from modelwright.stages._train_spec import Training

REFERENCE = "reference.npy"


def objective_loss(objective: Objective) -> LossFn:
    """The objective as the loop calls it."""
    import torch

    def loss(policy: Policy, packed: Packed) -> tuple[Any, Any, dict[str, Any]]:
        batch = Batch(
            target_N=packed.target_N,
            weight_N=torch.ones(len(packed.target_N), device=packed.target_N.device),
            segment_N=packed.segment_N,
            segments=packed.segments,
            chosen_P=packed.chosen_P,
            rejected_P=packed.rejected_P,
            reference_N=packed.reference_N,
            label_S=packed.label_S,
            group_S=packed.group_S,
        )
        found = objective.loss(policy, batch)
        return found.total, found.weight, found.metrics

    return loss


def check_early(stage: Training, how: Numbers) -> None:
    """UserError where weights would be stepped before a gradient is known to be in range."""
    if stage.step_in_backward and how.scaling:
        raise UserError(
            f"`step_in_backward` cannot be used with `precision: {stage.precision}` on this card",
            "products run in float16, where a gradient is used only after all of it was found to be in range",
            "set `precision: fp32`, or leave `step_in_backward` out",
        )


def _equipped(stage: Training, run: Run, ranks: Ranks | None) -> tuple[torch.device, Numbers]:
    """Where to train and in which numbers; the log says what was chosen and why."""
    from modelwright.nn import varlen
    from modelwright.nn.device import choose
    from modelwright.nn.precision import numbers

    device, why = choose(stage.device, ranks.sizes.processes if ranks is not None else 1)
    with in_turn(ranks):  # the first measures what the others then read: all must choose the same
        how = numbers(stage.precision, device)
    run.log.note(f"training on {device.type}: {why}")
    if stage.offload and device.type != "cuda":
        raise UserError(
            f"`offload: [{', '.join(stage.offload)}]` cannot help here",
            f"it moves what a CUDA card holds to the processor's memory, and training is on {device.type}, which works in that",
            "leave `offload` out; `recompute: full` saves memory anywhere",
        )
    check_early(stage, how)
    for said in (how.why, varlen.told(device, how.dtype)):
        if said:
            run.log.note(said)
    return device, how


def train(stage: Training, run: Run, ranks: Ranks | None = None) -> Stats:
    """What was measured; `ranks`: this process among several that train together, of which only the first knows all of it."""
    import torch

    from modelwright.nn.denormals import flushed
    from modelwright.nn.device import no_memory

    assert stage.micro_tokens is not None, "resolve first"
    if not flushed():
        run.log.note("torch was used before modelwright was loaded: its threads work on denormal numbers, which is slow; restart")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(stage.threads or threads_before)
    try:
        with watched(stage, run) as load:
            stats = _train(stage, run, ranks)
    except (RuntimeError, MemoryError) as error:
        if no_memory(error):
            raise _too_large(stage, error) from error
        raise
    finally:
        torch.set_num_threads(threads_before)
    return {**stats, "load": load.totals.tree()}


def _too_large(stage: Training, error: Exception) -> UserError:
    """What can be done where memory was not enough."""
    import torch

    ways = [f"set `micro_tokens` below {stage.micro_tokens} (the result stays the same)"]
    ways += ["`recompute: full`"] if stage.recompute != "full" else []
    ways += ["`offload: [activations, states]`"] if isinstance(error, torch.OutOfMemoryError) and not stage.offload else []
    return UserError(
        "this training needs more memory than there is",
        str(error).strip().partition("\n")[0] or "the processor's memory is full",
        f"{', '.join(ways)}; what was saved goes on from there",
    )


def _train(stage: Training, run: Run, ranks: Ranks | None) -> Stats:
    from modelwright.nn.device import name_of, peak_bytes
    from modelwright.nn.model import core
    from modelwright.nn.precision import in_float8

    laps = run.laps or Laps()
    laps.start()
    device, how = _equipped(stage, run, ranks)
    opened, dtype = open_model(stage, run, device), how.dtype
    laps.done("open")
    if how.fp8:
        run.log.note(f"{len(in_float8(core(opened.model)))} layers multiply in float8")
    with in_turn(ranks):  # the first makes what the others then find
        data = prepared(opened.text, [mix.ref for mix in stage.data], run, run.out / CACHE / "train")
        laps.done("rows")
        change = stage.objective.change(opened.text.tokenizer, run.seed)
        attach = change or _reference(stage, opened.model, data.rows, range(len(data.rows)), dtype, run, run.out / REFERENCE)
        laps.done("reference")
        sets = _validation_sets(stage, opened, dtype, run)
        laps.done("validation")
    plan = plan_of(stage, data, run.seed)
    peak = max(stage.schedule.factor(step, plan.steps) for step in range(plan.steps))
    if peak < 0.99:
        run.log.note(f"the learning rate reaches {peak:.0%} of its peak: the warm-up is too long for {plan.steps} steps")
    tell_rates(stage, run, opened.model, opened.shape, data.rows, plan, dtype)
    spread = spread_out(opened.model.train(), ranks)
    trainer = trainer_of(stage, run, spread, data.rows, plan, attach, how)
    hooks = _hooks(stage, run, opened, trainer, validator(stage, sets, dtype, run, spread))
    laps.done("open")
    with profiled(stage.profile_steps if spread.first else 0, run) as around:
        outcome = trainer.fit(hooks._replace(progress=around(hooks.progress)))
    laps.done("validation")  # the loop but its steps
    laps.move("validation", "steps", outcome.seconds)
    skipped = trainer.skip.steps
    opened = gathered(stage, run, opened, spread)
    del trainer
    if not spread.first:
        return {}
    stats = _outcome_stats(stage, opened, data, plan, outcome, skipped, dtype)
    stats |= {"device": name_of(device), "device_peak_bytes": peak_bytes(device)}
    stats.update(finish(stage, run, opened, data, outcome.tokens) | traced(run))
    laps.done("end")
    return stats


def trainer_of(
    stage: Training, run: Run, spread: Spread, rows: Rows, plan: Order, attach: Callable[[Packed], Packed], how: Numbers
) -> Any:
    """The loop over this plan; `attach`: what is done to a micro-batch before the model sees it."""
    from modelwright.nn.loop import Trainer

    optimizers = stage.optimizer.build(spread.trained.items())
    return Trainer(
        spread.model,
        rows,
        plan,
        optimizers if stage.optimizer.elementwise else spread.owning(optimizers),
        stage.schedule.factor,
        objective_loss(stage.objective),
        _settings(stage, run, how),
        run.out / CHECKPOINT,
        attach,
        stage.objective.whole_step,
        spread,
    )


def plan_of(stage: Training, data: Prepared, seed: int) -> Order:
    from modelwright.nn.order import Source, order

    sources = [
        Source(begin, data.rows.lengths_R[begin:end], mix.weight, mix.epochs, mix.ref)
        for mix, begin, end in zip(stage.data, data.firsts, data.firsts[1:], strict=False)
    ]
    epochs = stage.epochs or (None if stage.steps else 1.0)  # neither is given where every source has its own
    return order(sources, stage.batch_tokens, seed, stage.steps, epochs)


def _settings(stage: Training, run: Run, how: Numbers) -> Any:
    from modelwright.nn.loop import Settings

    assert stage.micro_tokens is not None
    return Settings(
        stage.micro_tokens,
        how.dtype,
        stage.clip,
        stage.log_every,
        stage.checkpoint_every_s,
        stage.validate_every if stage.validation else 0,
        stage.patience or 0,
        stage.keep == "best",
        stage.on_bad_step,
        stage.spike,
        stage.average,
        run.deadline_s,
        how.scaling,
        stage.step_in_backward,
        stage.offload,
    )


def _hooks(
    stage: Training, run: Run, opened: Opened, trainer: Any, validate: Callable[[int, Callable[[], bool]], float | None]
) -> Any:
    from modelwright.nn import model as models
    from modelwright.nn.loop import Hooks

    steps = trainer.order.steps

    def progress(done: int, loss: float) -> None:
        run.log.progress(done, steps, "steps", "train", loss=loss)
        if stage.samples_every and done % stage.samples_every == 0 and done < steps:  # the last ones are made of the result
            models.unpacked(opened.model)
            opened.model.eval()
            refs = [mix.ref for mix in stage.validation or stage.data]
            with trainer.measured():
                run.log.event("samples", step=done, samples=samples(opened.model, opened.text, run, refs))
            opened.model.train()
            models.packed(opened.model)

    return Hooks(
        step=lambda fields: run.log.event("step", **stage.objective.figures(fields)),
        progress=progress,
        told=lambda event, fields: run.log.event(event, **fields),
        validate=validate,
    )


def _reference(
    stage: Training, model: Any, rows: Rows, chosen: Sequence[int], dtype: torch.dtype, run: Run, path: Path
) -> Callable[[Packed], Packed]:
    """Adds the frozen start's log-probabilities to a micro-batch of these rows (ascending); they are computed once, before the
    first step, and kept."""
    if not stage.objective.reference:
        return lambda batch: batch
    import numpy as np
    import torch

    from modelwright.nn.measure import target_logps

    if not path.exists():
        assert stage.micro_tokens is not None
        found = target_logps(
            model, rows, chosen, stage.micro_tokens, dtype, lambda done: run.log.progress(done, len(chosen), "rows", "reference")
        )
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, found.numpy())
        temporary.replace(path)
    logps = torch.from_numpy(np.load(path))
    stored_R = np.zeros_like(rows.targets_R)
    stored_R[chosen] = rows.targets_R[chosen]
    starts = np.concatenate([[0], np.cumsum(stored_R)])

    def attach(batch: Packed) -> Packed:
        return batch._replace(reference_N=torch.cat([logps[starts[row] : starts[row + 1]] for row in batch.rows]))

    return attach


class Held(NamedTuple):
    """A validation set."""

    ref: str
    rows: Rows
    chosen: list[int]
    attach: Callable[[Packed], Packed]


def _validation_sets(stage: Training, opened: Opened, dtype: torch.dtype, run: Run) -> list[Held]:
    sets = []
    for index, mix in enumerate(stage.validation or ()):
        held = prepared(opened.text, [mix.ref], run, run.out / CACHE / f"validation-{index}")
        chosen = _evenly(len(held.rows), stage.validation_rows)
        stored = run.out / CACHE / f"validation-{index}-reference-{len(chosen)}.npy"
        change = stage.objective.change(opened.text.tokenizer, run.seed)
        attach = change or _reference(stage, opened.model, held.rows, chosen, dtype, run, stored)
        sets.append(Held(mix.ref, held.rows, chosen, attach))
    return sets


def validator(
    stage: Training, sets: list[Held], dtype: torch.dtype, run: Run, spread: Spread
) -> Callable[[int, Callable[[], bool]], float | None]:
    """Measures every set by itself; the mean over sets decides what is best."""

    def validate(step: int, stop: Callable[[], bool]) -> float | None:
        from modelwright.nn.measure import evaluate

        assert stage.micro_tokens is not None
        losses, loss, whole = [], objective_loss(stage.objective), stage.objective.whole_step
        for ref, rows, chosen, attach in sets:
            found = evaluate(spread.model, rows, chosen, loss, stage.micro_tokens, dtype, attach, stop, whole, spread)
            if not found:
                return None
            losses.append(found["loss"])
            values = {name: float(f"{value:.6g}") for name, value in stage.objective.figures(found).items()}
            run.log.event("validation", step=step, set=ref, rows=len(chosen), **values)
        return sum(losses) / len(losses)

    return validate


def _evenly(rows: int, most: int) -> list[int]:
    """At most so many rows, evenly over all."""
    return [index * rows // min(rows, most) for index in range(min(rows, most))]


def _outcome_stats(
    stage: Training, opened: Opened, data: Prepared, plan: Order, outcome: Any, skipped: set[int], dtype: torch.dtype
) -> dict[str, Any]:
    parameters = list(opened.model.named_parameters())
    added = stage.objective.added_params(opened.shape)  # left out of the model, but trained
    return {
        "params": opened.shape.params if stage.adapter is not None else sum(p.numel() for _, p in parameters) - added,
        "trainable": sum(p.numel() for _, p in parameters if p.requires_grad),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "target_tokens": outcome.targets,
        "rows": data.ledger,
        "sources": trained_on(stage, data, plan, outcome.steps, skipped),
        "truncated_tokens": 0,
        "masked_tokens": outcome.tokens - outcome.targets,
        "pieces": data.cut_tokens,
        "loss_first": outcome.loss_first,
        "loss_last": outcome.loss_last,
        "steps_skipped": outcome.skipped,
        "steps_overflowed": outcome.overflows,
        "validation_best": {"step": outcome.best_step, "loss": outcome.best_loss} if outcome.best_step else None,
        "seconds": round(outcome.seconds, 3),
        "tokens_per_s": round(outcome.tokens / max(outcome.seconds, 1e-9), 1),
        "products": str(dtype).removeprefix("torch."),
    }
