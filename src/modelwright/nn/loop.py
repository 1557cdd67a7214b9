"""The one gradient loop: packed steps, accumulation, clipping, checkpoints; same bits after a kill as without one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from modelwright.core.errors import UserError
from modelwright.nn import checkpoint, trouble
from modelwright.nn.average import Averaged, MovingAverage, swapped
from modelwright.nn.device import random_state, restore_random
from modelwright.nn.measure import LossFn
from modelwright.nn.order import Order
from modelwright.nn.parallel import Spread
from modelwright.nn.rows import Packed, Rows
from modelwright.nn.step import BadStep, Step, backward
from modelwright.nn.stopping import Pace, Signals
from modelwright.nn.update import Update


class Settings(NamedTuple):
    """Plain numbers that the loop needs."""

    micro_tokens: int
    dtype: torch.dtype
    """Type of matrix products; weights, residuals, softmax and loss are float32."""
    clip: float
    """Largest norm of the gradient; 0: no limit."""
    log_every: int
    checkpoint_every_s: float
    validate_every: int = 0
    """Steps between validations; 0: none."""
    patience: int = 0
    """Validations in a row without a better loss after which training ends; 0: it never does."""
    keep_best: bool = False
    """Leave the weights of the best validation, not the last ones."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    spike: float = 0.0
    """Robust standard deviations above the last losses from which a step is bad; 0: only what is no number is."""
    average: float = 0.0
    """Decay of the moving average of the weights that is measured and left; 0: none."""
    deadline_s: float = math.inf
    """Unix time before which to save and end."""
    scaling: bool = False
    """Gradients are taken of the loss times a factor that keeps them in the range of float16."""
    step_in_backward: bool = False
    """A weight's step is made when its gradient is whole, and the gradient freed: for steps of one micro-batch, without a limit
    of the norm, a factor or a policy that would take steps back."""
    offload: Sequence[str] = ()
    """What lies in the processor's memory while it is not used: `activations`, `states` of optimizers."""


class Hooks(NamedTuple):
    """What the loop tells."""

    step: Callable[[dict[str, Any]], None]
    """Every `log_every` steps and at the last."""
    progress: Callable[[int, float], None]
    """After every step: steps done and the step's loss."""
    told: Callable[[str, dict[str, Any]], None]
    """Something happened: `resumed`, `bad_step`, `rollback`, `early_stop`, `overflow`."""
    validate: Callable[[int, Callable[[], bool]], float | None]
    """Mean loss on rows that are never trained on; None where the second argument told to stop."""


class Outcome(NamedTuple):
    """What the whole of training was, killed and resumed or not."""

    steps: int
    tokens: int
    targets: int
    seconds: float
    """Training time alone, all sittings together."""
    loss_first: float
    loss_last: float
    skipped: int = 0
    """Steps whose gradient was not used."""
    best_step: int = 0
    """Step of the best validation; 0: none was made."""
    best_loss: float | None = None
    overflows: int = 0
    """Steps whose gradient left float16's range, and was not used."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop, or out of time; a checkpoint was written."""


BACK = 20
"""Steps that `rollback` goes back and then leaves out."""
MOST_BAD = 10
"""Bad steps after which training stops whatever the policy: then it is not the data."""


class Trainer:
    """Model, data plan and optimizers of one run; `fit` goes through the plan."""

    def __init__(
        self,
        model: Any,
        rows: Rows,
        order: Order,
        optimizers: Sequence[torch.optim.Optimizer],
        factor: Callable[[int, int], float],
        loss: LossFn,
        settings: Settings,
        folder: Path,
        prepare: Callable[[Packed], Packed] = lambda batch: batch,
        whole_step: bool = False,
        spread: Spread | None = None,
    ) -> None:
        """`spread`: how the model lies on several processes, where it does; the optimizers then work on what this one holds."""
        self.model, self.rows, self.order = model, rows, order
        self.loss, self.settings, self.folder, self.prepare = loss, settings, folder, prepare
        self.whole_step = whole_step
        """The loss is one of all micro-batches together."""
        self.spread = spread or Spread(model)
        self.trained = self.spread.trained
        assert self.trained, "nothing to train"
        self.moving = MovingAverage(self.trained, settings.average) if settings.average else None
        self.averages: list[Averaged] = [one for one in (*optimizers, self.moving) if isinstance(one, Averaged)]
        self.writer = checkpoint.Writer(folder, BACK if settings.on_bad_step == "rollback" else 0)
        assert not settings.step_in_backward or settings.on_bad_step == "stop", "a step that was begun is not taken back"
        self.update = (self.spread.updates or Update)(
            self.spread,
            optimizers,
            lambda step: factor(step, order.steps),
            self.writer.wait,  # a checkpoint on its way to the disk still reads the weights
            settings.clip,
            settings.scaling,
            settings.step_in_backward,
            settings.offload,
        )
        self.done = 0
        self.skip = trouble.Skipped(folder)
        self.losses: list[float] = []
        """The last ones, which a spike is measured against."""
        self.best = {"loss": math.nan, "step": 0.0, "since": 0.0, "validated": 0.0}
        """Best validation, validations since, and the step of the last one."""
        self.window: dict[str, float] = {}
        """Sums since the last report."""
        self.total = {"tokens": 0.0, "targets": 0.0, "seconds": 0.0, "loss_first": math.nan, "loss_last": math.nan}
        self._clock = 0.0

    def fit(self, hooks: Hooks) -> Outcome:
        if (state := checkpoint.latest(self.folder)) is not None:
            self._load(state)
            hooks.told("resumed", {"step": self.done})
        elif self.settings.on_bad_step == "rollback":
            self._save(at_once=True)
        try:
            with Signals() as signals:
                self._sit(hooks, signals)
        finally:
            self.writer.join()  # whatever happened, nobody may find it still at work
            self.update.close()
        self.writer.wait()
        if not self._take_best():
            for one in self.averages:
                one.put()
        total, best = self.total, self.best
        return Outcome(
            self.done,
            int(total["tokens"]),
            int(total["targets"]),
            total["seconds"],
            total["loss_first"],
            total["loss_last"],
            len([step for step in self.skip.steps if step < self.done]),
            int(best["step"]),
            best["loss"] if best["step"] else None,
            self.update.scaling.overflows if self.update.scaling is not None else 0,
        )

    def _sit(self, hooks: Hooks, signals: Signals) -> None:
        """Go on to the end, or until told to stop; then save and raise Interrupted."""
        since_save = self._clock = time.monotonic()
        pace = Pace(self.settings.deadline_s)

        def stop() -> bool:
            return signals.wanted or pace.late(self.writer.seconds)

        while True:
            if self._validation_due() and not self.spread.wanted(stop())[0]:
                self._validate(hooks, stop if self.spread.alone else lambda: False)
            due = self.done > 0 and time.monotonic() - since_save >= self.settings.checkpoint_every_s
            end, signal, due = self.spread.wanted(stop(), signals.wanted, due and self.spread.first)
            if end or due:
                self._tick()
                self._save()
                since_save = time.monotonic()
            if end:
                self.writer.wait()
                self.spread.wait()
                raise Interrupted("" if signal else f"time is up after step {self.done} of {self.order.steps}: saved")
            if self.done == self.order.steps or self._patience_over(hooks):
                return
            self._advance(hooks)
            pace.step()

    # --- one step ---------------------------------------------------------------------------------

    def _advance(self, hooks: Hooks) -> None:
        """The next step, whatever becomes of it."""
        if self.done in self.skip.steps:
            self.done += 1
            return
        random = random_state(self.spread.device)
        try:
            result = self._step(self.done)
        except BadStep as bad:
            restore_random(self.spread.device, random)  # as if the step had not been: a resumed run will not compute it
            self._bad(bad, hooks)
            return
        self.done += 1
        used = math.isfinite(result.grad_norm)
        if used:
            self._count(result)
        else:
            hooks.told("overflow", {"step": self.done, "factor": self.update.loss_factor})
        self._tick()
        hooks.progress(self.done, result.loss)
        self._clock = time.monotonic()  # whoever listens may let the model answer: that is not training time
        if used and (self.done % self.settings.log_every == 0 or self.done == self.order.steps):
            hooks.step(self._report(self.done, result))

    def _step(self, index: int) -> Step:
        found = backward(
            self.spread,
            self.rows,
            self.order.step(index),
            index + 1,
            self.loss,
            self.prepare,
            self.settings.micro_tokens,
            self.settings.dtype,
            self.whole_step,
            self.update.loss_factor,
            self.update.keeping,
            partial(self.update.ready, index),
        )
        if found.bad is not None:
            raise found.bad
        if found.loss > (most := trouble.limit(self.losses, self.settings.spike)):
            raise BadStep(f"the loss jumped to {found.loss:.4g}, over {most:.4g}", found.rows, "")
        norm = self.update.make(index, found.weight)
        if math.isfinite(norm):
            self.spread.trunk.choices.made(found.counted)
            if self.moving is not None:
                self.moving.update()
        elif not self.update.overflowed():
            raise BadStep(f"the gradient's norm became {norm}", found.rows, self.update.first_bad())
        return found._replace(grad_norm=norm)

    # --- steps that go wrong ------------------------------------------------------------------------

    def _bad(self, bad: BadStep, hooks: Hooks) -> None:
        """Stop, or leave the step out; `rollback` goes back first and leaves out those before it too."""
        self.update.forget()
        names, policy, index = [self.rows.name(row) for row in bad.rows], self.settings.on_bad_step, self.done
        what, rows = trouble.told(bad.what, index, self.order.steps, names, bad.module)
        self.skip.bad += 1
        if policy == "stop" or self.skip.bad > MOST_BAD:
            fix = (
                "a lower learning rate, a longer warm-up or `clip: 1.0` mends most cases; if it comes at once, look at those rows"
            )
            raise UserError(what, rows, fix if policy == "stop" else f"{MOST_BAD} steps were left out before: {fix}")
        hooks.told("bad_step", {"step": index + 1, "what": bad.what, "rows": names, "module": bad.module, "policy": policy})
        first = index if policy == "skip" else max(0, index - BACK + 1)
        self.skip.add(range(first, index + 1), write=self.spread.first)
        if policy == "rollback":
            self.writer.wait()
            self.spread.wait()
            state = checkpoint.latest(self.folder, first)
            assert state is not None, "one is kept from before"
            self._load(state)
            hooks.told("rollback", {"step": self.done, "skipped": [first + 1, index + 1]})

    # --- validation -----------------------------------------------------------------------------------

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The weights that are measured and left, in the model for as long as this is open."""
        self.writer.wait()  # the exchange writes to weights that a checkpoint on its way to the disk reads
        with swapped(self.averages):
            yield

    def _validation_due(self) -> bool:
        every = self.settings.validate_every
        return bool(every and self.done > self.best["validated"] and (self.done % every == 0 or self.done == self.order.steps))

    def _validate(self, hooks: Hooks, stop: Callable[[], bool]) -> None:
        self._tick()
        with self.measured():
            loss = hooks.validate(self.done, stop)
            self._clock = time.monotonic()  # validation is not training time
            if loss is None:
                return  # told to stop: it is made when training goes on
            self.best["validated"] = self.done
            if loss < self.best["loss"] or math.isnan(self.best["loss"]):
                self.best.update(loss=loss, step=self.done, since=0.0)
                if self.settings.keep_best:
                    best = self._weights()
                    if self.spread.first:
                        checkpoint.save_best(self.folder, self.done, best)
                    self.spread.wait()
            else:
                self.best["since"] += 1

    def _patience_over(self, hooks: Hooks) -> bool:
        if not 0 < self.settings.patience <= self.best["since"]:
            return False
        hooks.told(
            "early_stop", {"step": self.done, "best_step": int(self.best["step"]), "best_loss": _rounded(self.best["loss"])}
        )
        return True

    def _take_best(self) -> bool:
        """False where the last weights are to be left."""
        if not (self.settings.keep_best and 0 < self.best["step"] < self.done):
            return False
        weights = checkpoint.read(self.folder / checkpoint.BEST)
        assert weights is not None, "written and synced when it was measured"
        for name in self.trained:
            self.spread.put(name, weights[name])
        return True

    # --- counting, and what survives a kill ---------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        self.total["seconds"] += now - self._clock
        self._clock = now

    def _count(self, step: Step) -> None:
        total = self.total
        if math.isnan(total["loss_first"]):
            total["loss_first"] = step.loss
        total["loss_last"] = step.loss
        total["tokens"] += step.tokens
        total["targets"] += step.targets
        for name, value in {"loss": step.loss, **step.metrics}.items():
            self.window[name] = self.window.get(name, 0.0) + value * step.weight
        self.window["weight"] = self.window.get("weight", 0.0) + step.weight
        self.losses = [*self.losses, step.loss][-trouble.WINDOW :]

    def _report(self, done: int, step: Step) -> dict[str, Any]:
        window, self.window = self.window, {}
        weight = max(window.pop("weight"), 1e-30)
        means = {name: _rounded(value / weight) for name, value in window.items()}
        return {
            "step": done,
            "steps": self.order.steps,
            **means,
            "lr": _rounded(self.update.rate),
            "grad_norm": _rounded(step.grad_norm),
            "tokens": int(self.total["tokens"]),
            "seconds": round(self.total["seconds"], 3),
        }

    def _weights(self) -> dict[str, Any]:
        return {name: self.spread.whole(name, p.detach()) for name, p in self.trained.items()}

    def _save(self, at_once: bool = False) -> None:
        """Write a checkpoint, beside the next step or before anything else; one that does not tell how the model is spread."""
        moving = self.moving.state_dict() if self.moving is not None else {}
        state = {
            "step": self.done,
            "weights": self._weights(),
            **self.update.state(),
            "rng": self.spread.random(),
            "total": dict(self.total),
            "window": dict(self.window),
            "losses": list(self.losses),
            "best": dict(self.best),
            "choices": self.spread.trunk.choices.before_LE,
            "average": {**moving, "average": {n: self.spread.whole(n, t) for n, t in moving["average"].items()}}
            if moving
            else {},
        }
        if self.spread.first:
            self.writer.start(self.done, state)
        if at_once:
            self.writer.wait()

    def _load(self, state: dict[str, Any]) -> None:
        """Be where the run was when it saved this."""
        for name in self.trained:
            self.spread.put(name, state["weights"][name])
        self.update.load(state)
        self.spread.restore_random(state["rng"])
        self.done, self.total, self.window = int(state["step"]), state["total"], state["window"]
        self.losses, self.best = state["losses"], state["best"]
        self.spread.trunk.choices.before_LE = state["choices"]
        if self.moving is not None:
            average = {name: self.spread.part(name, value) for name, value in state["average"]["average"].items()}
            self.moving.load_state_dict({**state["average"], "average": average})


def _rounded(value: float) -> float:
    """Six digits: enough to plot, short to store."""
    return float(f"{value:.6g}")
