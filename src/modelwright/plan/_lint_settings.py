"""Pitfall rules about the settings of a training: passes, rates, ranks, batches, the pull to its start; without data.

Each says its own source. Thresholds are the published ones where there are any; where a rule leaves room beyond them, it says how
much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from modelwright.core.spec import kind_of
from modelwright.methods.optimizers import Rates
from modelwright.plan._lint import TUNED, Fault, Look, Rule

MOST_EPOCHS, EPOCHS_ROOM = 2.0, 1.3
"""Epochs of a tuning; and how many times as many where they are estimated from characters, whose tokens differ by as much."""
LOOKS, PATIENCE = 12, 3
"""Validations of a training that is to end early, and after how many bad ones in a row."""
RATE_ROOM = 5.0
"""How many times beyond published rates is let pass: models and data differ by about as much."""
LEAST_SCALE, MOST_SCALE = 0.25, 4.0
"""Of alpha / rank: QLoRA has 16 / 64, most have 1 or 2."""
LEAST_KL = 0.01
LEAST_ROWS = {"answers": 4, "labels": 8, "pairs": 4, "groups": 16, "tags": 4}
"""Rows of a step below which its gradient is mostly noise, by what an objective needs; `groups` compare the rows of a step with
one another (Karpukhin et al. 2020, DPR, arXiv:2004.04906, table 3: more in a batch are better up to 128)."""


def _epochs(look: Look) -> Iterator[Fault]:
    stage = look.stage
    if not look.is_training or stage.objective.needs not in TUNED or stage.start is None:
        return
    steps = look.steps()
    if stage.patience and (steps is None or steps >= (stage.patience + 1) * stage.validate_every):
        return
    used = look.epochs()
    index = max(range(len(used)), key=lambda i: used[i] or 0.0)
    epochs, mix = used[index] or 0.0, stage.data[index]
    said = mix.epochs is not None or (stage.epochs is not None and not look.is_weighted)
    if epochs <= MOST_EPOCHS * (1 if said else EPOCHS_ROOM):
        return
    shared = mix.weight is not None and min(one or 0.0 for one in used) <= MOST_EPOCHS
    field, limit = _fewer(look, index, epochs, shared)
    rows = f"rows of {mix.ref} are" if shared else "each row is"
    ends = "nothing ends the training early"
    if stage.patience:
        ends = f"`patience: {stage.patience}` cannot end {steps:.0f} steps that are measured every {stage.validate_every}"
    about = "" if said else "about "
    yield Fault((field,), f"{rows} used {about}{epochs:.3g} times, and {ends}", "; or ".join([limit, *_early_stop(look, steps)]))


def _fewer(look: Look, index: int, epochs: float, shared: bool) -> tuple[str, str]:
    """The field that asks for so many passes over a source, and what to write for two."""
    stage, mix = look.stage, look.stage.data[index]
    if mix.epochs is not None:
        return "data", look.data_with(index, epochs=MOST_EPOCHS)
    if shared:
        weights = sum(one.weight for one in stage.data if one.weight is not None)
        share = mix.weight / weights * MOST_EPOCHS / epochs
        return "data", look.data_with(index, weight=round(share / (1 - share) * (weights - mix.weight), 4))
    if stage.epochs is not None:
        return "epochs", f"{look.path('epochs')}={stage.epochs * MOST_EPOCHS / epochs:.3g}"
    return "steps", f"{look.path('steps')}={max(1, round(stage.steps * MOST_EPOCHS / epochs))}"


def _early_stop(look: Look, steps: float | None) -> list[str]:
    """Overrides with which validation can end the training: of ones that come too seldom, none is bad often enough."""
    often = look.stage.validate_every
    if steps is not None and steps < PATIENCE + 1:
        return []
    if steps is not None and steps < often * LOOKS:
        often = max(1, int(steps / LOOKS))
    changed = f" {look.path('validate_every')}={often}" if often != look.stage.validate_every else ""
    if look.stage.validation is None:
        return [f"{look.path('validation')}=STAGE:validation {look.path('patience')}={PATIENCE}{changed}"]
    return [f"{look.path('patience')}={PATIENCE}{changed}"]


def _rate(look: Look) -> Iterator[Fault]:
    stage = look.stage
    if not look.is_training or "lr" not in type(stage.optimizer).model_fields:
        return
    tuned = stage.start is not None
    parts = [stage.objective, *([stage.adapter] if stage.adapter is not None else [])] if tuned else []
    rates = _of_size(stage.optimizer.rates_tuned if tuned else stage.optimizer.rates_new, _params(look))
    if not rates:
        return
    factor = math.prod(part.rate_factor for part in parts)
    lr, low, high = stage.optimizer.lr, min(rate.low for rate in rates) * factor, max(rate.high for rate in rates) * factor
    if low / RATE_ROOM <= lr <= high * RATE_ROOM:
        return
    source = "; ".join(dict.fromkeys(rate.source for rate in rates))
    times = "".join(f"; times {part.rate_factor:g} for {kind_of(part)}" for part in parts if part.rate_factor != 1)
    yield Fault(
        ("optimizer", "lr"),
        f"rate {lr:g} is more than {RATE_ROOM:g} times {'below' if lr < low else 'beyond'} what was published for "
        f"{kind_of(stage.optimizer)} here, {low:.2g} to {high:.2g} ({source}{times})",
        f"{look.path('optimizer.lr')}={(low * high) ** 0.5:.1g}",
    )


def _params(look: Look) -> float | None:
    """Weights of the model, where they are known."""
    stage = look.stage
    facts = look.facts.get(stage.start) if stage.start is not None else None
    if facts is not None:
        return float(facts.shape.params) if facts.shape is not None else facts.bytes / 2 if facts.bytes else None
    shape = next((fact.shape for fact in look.estimate.facts.values() if fact.shape is not None), None)
    return float(shape.params) if shape is not None else None


def _of_size(known: tuple[Rates, ...], params: float | None) -> list[Rates]:
    """Those of models of this size; all where it is not known."""
    if params is None:
        return list(known)
    return [rates for rates in known if params <= rates.most_params][:1]


def _alpha(look: Look) -> Iterator[Fault]:
    adapter = look.stage.adapter if look.is_training else None
    if adapter is None or not {"rank", "alpha"} <= set(type(adapter).model_fields):
        return
    if adapter.alpha is not None and not LEAST_SCALE <= (scale := adapter.alpha / adapter.rank) <= MOST_SCALE:
        yield Fault(
            ("adapter", "alpha"),
            f"alpha / rank is {scale:.3g}, so each update counts {scale:.3g} times",
            f"{look.path('adapter.alpha')}={2 * adapter.rank} (twice the rank), and change the rate if the updates are too small",
        )
    shape = next((fact.shape for fact in look.estimate.facts.values() if fact.shape is not None), None)
    if shape is not None and adapter.rank > shape.hidden / 2:
        yield Fault(
            ("adapter", "rank"),
            f"rank {adapter.rank} in matrices {shape.hidden} wide: two thin ones hold more weights than the one beside them",
            f"{look.path('adapter.rank')}={max(1, min(64, shape.hidden // 8))}; or leave `adapter` out",
        )


def _batch(look: Look) -> Iterator[Fault]:
    if not look.is_training or (least := LEAST_ROWS.get(look.stage.objective.needs)) is None:
        return
    each = look.row_tokens()
    rows = look.stage.batch_tokens / (each if each is not None else look.stage.length)
    if (each is not None and rows >= least) or (each is None and rows >= 2):
        return
    wanted = 64 * math.ceil(least * (each or look.stage.length) / 64)
    about = (
        f"about {rows:.1f} rows of {each:.0f} tokens" if each is not None else f"{rows:.1f} rows, if they are as long as `length`"
    )
    yield Fault(
        ("batch_tokens",),
        f"a step sees {about}; `{look.stage.objective.needs}` want {least} and more",
        f"{look.path('batch_tokens')}={wanted} (memory stays the same: a step is computed in pieces)",
    )


def _kl(look: Look) -> Iterator[Fault]:
    field = look.stage.objective.kl if look.is_training else ""
    if field and (value := getattr(look.stage.objective, field)) < LEAST_KL:
        yield Fault(
            ("objective", field),
            f"`{field}` {value:g} holds the model to its start less than any published run ({LEAST_KL:g} and more)",
            f"{look.path(f'objective.{field}')}=0.1",
        )


TULU = (
    "Lambert et al. 2024, Tulu 3, arXiv:2411.15124: longer than 2 epochs gave nothing; InstructGPT, arXiv:2203.02155, section 3.5"
)
RULES = (
    Rule(
        "too-many-epochs",
        "warning",
        "tuned models fit their rows after one or two passes; more is learned by heart, and answers get worse on others",
        TULU,
        _epochs,
    ),
    Rule(
        "learning-rate",
        "warning",
        "too low learns nothing in the time, too high forgets the start or diverges; adapters want about ten times the rate of "
        "full tuning, preferences a fraction of SFT's",
        "Schulman et al. 2025, LoRA Without Regret, https://thinkingmachines.ai/blog/lora/; the ranges stand with each optimizer",
        _rate,
    ),
    Rule(
        "lora-alpha",
        "hint",
        "the update is scaled by alpha / rank, which acts like a factor of the rate; a rank near the width saves nothing",
        "Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.1; Dettmers et al. 2023, QLoRA, arXiv:2305.14314 (16 / 64)",
        _alpha,
    ),
    Rule(
        "small-batch",
        "hint",
        "a step on two or three rows follows what is odd about them",
        "McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162, section 2",
        _batch,
    ),
    Rule(
        "no-kl",
        "warning",
        "without a pull to its start a model finds answers that score well and are no good",
        "Ziegler et al. 2019, arXiv:1909.08593, section 2; betas of 0.01 to 0.9, https://huggingface.co/blog/pref-tuning",
        _kl,
    ),
)
