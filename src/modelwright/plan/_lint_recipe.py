"""Pitfall rules about how stages stand to each other: what measures a model, what it starts from, what it costs; without data.

Each says its own source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from modelwright.core.spec import kind_of
from modelwright.core.units import bytes_text, seconds_text
from modelwright.plan._lint import TEXTS, Fault, Look, Rule, json_in, refs_of
from modelwright.plan.needs import needs

LONGEST_S, BUDGET_SHARE = 3 * 86400.0, 0.5


# --- measuring ----------------------------------------------------------------------------------------


def _no_validation(look: Look) -> Iterator[Fault]:
    if not look.is_training or look.stage.validation is not None:
        return
    for name, stage in look.stages.items():
        if look.kinds[name] == "evaluate" and look.name in (*look.trainings(stage.model)[:1], *look.trainings(stage.against)[:1]):
            return
    yield Fault(
        ("data",),
        "nothing measures this model on rows that it was not trained on",
        f"{look.path('validation')}=STAGE:validation, from `split: {{validation: 0.05}}` in the stage that makes the rows; or a "
        "stage `evaluate` with held-out rows",
    )


def _leak(look: Look) -> Iterator[Fault]:
    if look.is_training:
        yield from _leak_of_training(look)
    elif look.kind == "evaluate":
        for index, ref in enumerate(refs_of(look.stage.data)):
            if name := _trained_on(look, ref, look.trainings(look.stage.model)):
                yield Fault(
                    ("data", index),
                    f"{ref} is what {name!r} was trained on",
                    f"{look.data_with(index, ref='STAGE:test')}, from `split: {{test: 0.05}}` in the stage that makes the rows",
                )


def _leak_of_training(look: Look) -> Iterator[Fault]:
    held = refs_of(look.stage.validation)
    for index, ref in enumerate(refs_of(look.stage.data)):
        if any(look.same(ref, other) for other in held):
            split = f"{look.data_with(index, ref='NAME:train')} {look.path('validation')}=NAME:validation"
            yield Fault(
                ("validation",),
                f"`validation` is what `data` trains on: {ref}",
                f"`split: {{validation: 0.05}}` in the stage NAME that makes the rows, then {split}",
            )
    for ref in held:
        if name := _trained_on(look, ref, look.trainings(look.stage.start)):
            yield Fault(
                ("validation",),
                f"{ref} is what {name!r} was trained on, from which this goes on",
                f"{look.path('validation')}=NAME:validation, from `split: {{validation: 0.05}}` in the stage that makes the rows",
            )


def _trained_on(look: Look, ref: str, trainings: Sequence[str]) -> str:
    """The last of these that was trained on these rows; '' where none was."""
    return next((name for name in trainings if any(look.same(ref, own) for own in refs_of(look.stages[name].data))), "")


# --- the start ----------------------------------------------------------------------------------------


def _template(look: Look) -> Iterator[Fault]:
    if not look.is_training or look.stage.start is None or look.stage.template is None:
        return
    template = look.stage.template
    if kind_of(template) == "own":
        return
    before = _template_before(look, look.stage.start)
    if before is None or before == template or (isinstance(before, str) and before.strip() == template.jinja().strip()):
        return
    folder = "the one in its folder" if look.stage.start in look.paths else "the one in the folder that it goes on from"
    named = folder if isinstance(before, str) else _named(before)
    yield Fault(
        ("template",),
        f"chats are written with {_named(template)}, and {look.stage.start} was trained with {named}",
        f"{look.path('template')}=own",
    )


def _named(template: Any) -> str:
    """A template with what is set in it."""
    fields = {name: value for name, value in template.model_dump(exclude_defaults=True).items() if name != "kind"}
    return f"`{kind_of(template)}`" + (f" {fields}" if fields else "")


def _template_before(look: Look, ref: str | None) -> Any:
    """The template that a start was trained with: a spec, or Jinja from its folder; None where there is none or nobody knows."""
    while (parent := look.parent(ref)) is not None:
        name, stage = parent
        found = getattr(stage, "template", None)
        if found is not None and kind_of(found) != "own":
            return found
        ref = getattr(stage, "start", None) or getattr(stage, "vocab", None)
        if look.kinds[name] == "tokenizer":
            return None
    return _jinja_in(look.paths[ref]) if ref is not None and ref in look.paths else None


def _jinja_in(folder: Path) -> str | None:
    """The chat template that lies with a model; of several the one called default."""
    apart, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if apart.is_file():
            return apart.read_text(encoding="utf-8", errors="replace")
    except OSError:  # the stage itself says that it may not read it
        return None
    found = json_in(config).get("chat_template")
    if isinstance(found, list):
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None)
    return found if isinstance(found, str) and found else None


def _vocabulary(look: Look) -> Iterator[Fault]:
    if not look.is_training or look.stage.start is None:
        return
    adapter, ref = look.stage.adapter, look.stage.start
    if adapter is not None and not adapter.trains_tables() and (parent := look.parent(ref)) and look.kinds[parent[0]] == "extend":
        fields = type(adapter).model_fields
        mend = f"{look.path('adapter.ends')}=both; " if "ends" in fields else ""
        yield Fault(
            ("adapter",),
            f"{parent[0]!r} added tokens, and this adapter leaves their embeddings as they were first guessed",
            f"{mend}or train all weights with `next_token` once before",
        )
    if ref in look.paths:
        width = json_in(look.paths[ref] / "config.json").get("vocab_size")
        tokens = _tokens_in(look.paths[ref])
        if isinstance(width, int) and tokens > width:
            yield Fault(
                ("start",),
                f"the tokenizer in {ref} has {tokens} tokens, and the model embeddings for {width}: it is another model's",
                "copy the tokenizer's files from the model's own page, or add the tokens with a stage `extend`",
            )


def _tokens_in(folder: Path) -> int:
    """Highest token id of a tokenizer.json, and one."""
    file = folder / "tokenizer.json"
    try:
        made = file.stat()
    except OSError:
        return 0
    return _tokens_of(file, made.st_mtime_ns, made.st_size)


@lru_cache(maxsize=16)
def _tokens_of(file: Path, made_ns: int, size: int) -> int:
    """Only the vocabulary of the file is parsed: most of its bytes are merges, which take longer than all of a plan."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return 0
    vocab, added = _value_of(text, "vocab"), _value_of(text, "added_tokens")
    ids: list[Any] = (
        list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab))) if isinstance(vocab, list) else []
    )
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return max((value for value in ids if type(value) is int), default=-1) + 1


def _value_of(text: str, key: str) -> Any:
    """What stands under the first key of this name in a JSON text; within strings, quotes are written otherwise."""
    found = re.search(rf'"{key}"\s*:\s*', text)
    try:
        return json.JSONDecoder().raw_decode(text, found.end())[0] if found is not None else None
    except (ValueError, RecursionError):
        return None


def _replay(look: Look) -> Iterator[Fault]:
    if not look.is_training or look.stage.start is None or look.stage.objective.needs not in TEXTS:
        return
    stage, known = look.stage, set(refs_of(look.stage.data))
    parent = look.parent(stage.start)
    while parent is not None and look.kinds[parent[0]] != "train":  # an `extend` between the two teaches nothing
        parent = look.parent(getattr(parent[1], "start", None))
    before = set(refs_of(parent[1].data)) if parent is not None else set()
    if len(known) > 1 or known & before or (parent is not None and parent[1].objective.needs not in TEXTS):
        return
    yield Fault(
        ("data",),
        f"{stage.start} goes on with {', '.join(known)} alone, and forgets what it was trained on before",
        "mix a share of earlier text in: `data: [{ref: NEW, weight: 0.95}, {ref: OLD, weight: 0.05}]`",
    )


# --- size ---------------------------------------------------------------------------------------------


def _too_large(look: Look) -> Iterator[Fault]:
    if look.is_made or not look.is_training or any(look.kinds[name] == "train" for name in _earlier(look)):
        return
    field = "model" if look.stage.start is None else "start"
    scarcest = needs(look.estimate, look.machine)[0]  # as `fit` and the advisor judge it
    if not scarcest.fits:
        adapter = "" if look.stage.start is None else "`adapter: lora`, "  # there is nothing yet that one could stand beside
        yield Fault(
            (field,),
            f"it would take up to {bytes_text(scarcest.high_bytes)} of {bytes_text(scarcest.has_bytes)} of {scarcest.what}",
            f"a smaller model, {adapter}`recompute: full`; `modelwright fit` tells what fits",
        )
    seconds, budget = look.estimate.seconds.value, look.budget
    share, of = seconds / LONGEST_S, "days"
    if budget is not None:
        usd = seconds / 3600 * look.machine.usd_per_hour
        limits = ((seconds / 3600, budget.hours, "hours"), (usd, budget.usd, "dollars"))
        share, of = max(
            (
                (spent / limit / BUDGET_SHARE, f"{spent / limit:.0%} of the budget of {limit:g} {unit}")
                for spent, limit, unit in limits
                if limit
            ),
            default=(0.0, ""),
        )
    if share > 1:
        yield Fault(
            (field,),
            f"the first model takes {seconds_text(seconds)} here, {of}: little is left to learn from it and do it again",
            "a smaller model or fewer steps first; the recipe stays the same",
        )


def _earlier(look: Look) -> list[str]:
    names = list(look.stages)
    return names[: names.index(look.name)]


RULES = (
    Rule(
        "no-validation",
        "warning",
        "a falling training loss does not tell learning from memorising",
        "Goodfellow, Bengio, Courville 2016, Deep Learning, section 5.3, https://www.deeplearningbook.org",
        _no_validation,
    ),
    Rule(
        "leak",
        "warning",
        "a score on rows that were trained on says nothing of others",
        "Brown et al. 2020, GPT-3, arXiv:2005.14165, section 4",
        _leak,
    ),
    Rule(
        "template",
        "warning",
        "a model that learned one way of writing chats has to unlearn it for another, and serving with the first one breaks it",
        "https://huggingface.co/docs/transformers/chat_templating",
        _template,
    ),
    Rule(
        "vocabulary",
        "warning",
        "a token without a trained embedding means nothing to the layers above it",
        "https://huggingface.co/docs/peft/developer_guides/lora (new tokens with LoRA)",
        _vocabulary,
    ),
    Rule(
        "no-replay",
        "hint",
        "text of one new kind alone takes away some of what the model knew; 1 to 5 % of earlier text keeps most of it",
        "Ibrahim et al. 2024, Simple and Scalable Strategies to Continually Pre-train Large Language Models, arXiv:2403.08763",
        _replay,
    ),
    Rule(
        "too-large",
        "warning",
        "first models are wrong in their data and settings; one that is made in minutes shows it as well as one that takes days",
        "Karpathy 2019, A Recipe for Training Neural Networks, https://karpathy.github.io/2019/04/25/recipe/",
        _too_large,
    ),
)
