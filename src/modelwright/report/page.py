"""The page: sections from the run's manifests, laid out by the Jinja templates beside this file.

Jinja escapes every value; the only markup that it is handed whole is our own style sheet, the lineage (built with
escaping in lineage.py) and matplotlib's drawings, whose text is numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from markupsafe import Markup

from modelwright.report import RunView, StageView
from modelwright.report.card import card, objective
from modelwright.report.cost import costs, disk
from modelwright.report.curves import panel_svg, read
from modelwright.report.evaluations import forests, metrics
from modelwright.report.hardware import Operation, load_facts, operations
from modelwright.report.ledger import ledgers
from modelwright.report.lineage import picture
from modelwright.report.read import (
    count,
    exact,
    flat,
    items,
    number,
    of_kind,
    percent,
    rows,
    scalar,
    seconds,
    significant,
    size,
    stats,
    table,
    text,
)
from modelwright.report.samples import side_by_side
from modelwright.report.spending import spending
from modelwright.report.styled import styled
from modelwright.report.summary import tiles, unfinished, verdict


class Chart(NamedTuple):
    title: str
    unit: str
    said: str
    svg: Markup


class Training(NamedTuple):
    """One train stage: its curves, what it counted and a few answers of the model it left."""

    stage: str
    objective: str
    charts: list[Chart]
    facts: list[tuple[str, str]]
    samples: list[tuple[str, str]]
    operations: list[Operation]
    """What took longest, where some steps were traced."""
    traced: str


class Vocabulary(NamedTuple):
    stage: str
    facts: list[tuple[str, str]]
    preview: list[str]


class Export(NamedTuple):
    stage: str
    facts: list[tuple[str, str]]
    proof: list[tuple[str, str]]
    parity: str
    """What the token comparison shows, in words."""


class Place(NamedTuple):
    """One environment and the stages that were made in it."""

    stages: list[str]
    facts: list[tuple[str, str]]


def page(run: RunView) -> str:
    """The whole report."""
    values = {
        "run": run,
        "verdict": verdict(run),
        "tiles": tiles(run),
        "unfinished": unfinished(run),
        "took": seconds(run.seconds),
        "lineage": picture(run),
        "lineage_narrow": picture(run, narrow=True),
        "hues": _hues(run),
        "costs": costs(run),
        "disk": disk(run),
        "trainings": _trainings(run),
        "metrics": metrics(run),
        "forests": forests(run),
        "spendings": spending(run),
        "samples": side_by_side(run),
        "ledgers": ledgers(run),
        "vocabularies": _vocabularies(run),
        "card": card(run),
        "exports": _exports(run),
        "places": _places(run),
    }
    return styled("page.html", "style.css", values)


def _hues(run: RunView) -> list[tuple[str, str]]:
    from modelwright.report.lineage import colour

    return list(dict.fromkeys((colour(s.kind), s.kind) for s in run.stages))


def _facts(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(label, value) for label, value in pairs if value and value != "–"]


# --- training -----------------------------------------------------------------------------------------


def _trainings(run: RunView) -> list[Training]:
    found = []
    for index, stage in enumerate(run.stages):
        if stage.kind == "train":
            training = _training(stage, index)
            if training.charts or training.facts:
                found.append(training)
    return found


def _training(stage: StageView, index: int) -> Training:
    tree = stats(stage)
    curves = read(stage.folder)
    charts = [
        Chart(p.title, p.unit, p.said, Markup(panel_svg(p, curves.steps, f"t{index}p{k}"))) for k, p in enumerate(curves.panels)
    ]
    params, trainable = number(tree, "params"), number(tree, "trainable")
    part = f" of {count(params)}" if params and trainable != params else ""
    dropped = table(tree, "rows", "dropped")
    facts = _facts(
        [
            ("weights trained", count(trainable) + part if trainable is not None else ""),
            ("steps", exact(number(tree, "steps"))),
            ("steps left out as bad", _some(tree, "steps_skipped")),
            ("steps left out, gradients beyond float16", _some(tree, "steps_overflowed")),
            ("tokens seen", count(number(tree, "tokens"))),
            ("tokens in the loss", count(number(tree, "target_tokens"))),
            ("tokens from", _shares(tree)),
            ("rows used", _of(number(tree, "rows", "used"), number(tree, "rows", "read"))),
            ("rows dropped", ", ".join(f"{exact(number(dropped, reason))} ({reason})" for reason in dropped)),
            ("tokens cut off", exact(number(tree, "truncated_tokens"))),
            ("tokens masked", count(number(tree, "masked_tokens"))),
            ("loss", _change(number(tree, "loss_first"), number(tree, "loss_last"))),
            ("speed", f"{exact(number(tree, 'tokens_per_s'))} tokens/s" if number(tree, "tokens_per_s") and not charts else ""),
            *load_facts(tree),
        ]
    )
    samples = [(text(s, "prompt"), text(s, "answer")) for s in rows(tree, "samples")[:4]]
    traced = exact(number(tree, "profile", "steps"))
    return Training(stage.name, objective(stage), charts, facts, samples, operations(tree), traced)


def _shares(tree: dict[str, Any]) -> str:
    """`corpus 62 %, questions:train 38 %`; with the share that was planned where it is another one."""
    sources = rows(tree, "sources")
    whole = sum(number(source, "tokens") or 0.0 for source in sources)
    if not whole or len(sources) < 2:
        return ""
    found = []
    for source in sources:
        real = percent((number(source, "tokens") or 0.0) / whole, 0)
        planned = number(source, "planned_frac")
        asked = "" if planned is None or percent(planned, 0) == real else f" (planned {percent(planned, 0)})"
        found.append(f"{text(source, 'ref')} {real}{asked}")
    return ", ".join(found)


def _some(tree: dict[str, Any], key: str) -> str:
    """The number, where there is any."""
    found = number(tree, key)
    return exact(found) if found else ""


def _of(part: float | None, whole: float | None) -> str:
    return exact(part) + (f" of {exact(whole)}" if whole is not None else "") if part is not None else ""


def _change(first: float | None, last: float | None) -> str:
    return f"{significant(first)} → {significant(last)}" if first is not None and last is not None else ""


# --- tokenizer ----------------------------------------------------------------------------------------

SPACE, NEWLINE = "\u0120", "\u010a"
"""How byte-level vocabularies write a space and a line feed (GPT-2's byte table)."""
PREVIEW_TOKENS = 400


def _vocabularies(run: RunView) -> list[Vocabulary]:
    learned = [_vocabulary(s) for s in of_kind(run, "tokenizer") if stats(s)]
    return [*learned, *(_extension(s) for s in of_kind(run, "extend") if stats(s))]


def _vocabulary(stage: StageView) -> Vocabulary:
    tree, other = stats(stage), table(stats(stage), "reference")
    name = text(other, "name") or "reference"

    def against(key: str, unit: str) -> str:
        value, reference = number(tree, key), number(other, key)
        if value is None:
            return ""
        return f"{value:.2f} {unit}" + (f" ({name}: {reference:.2f})" if reference is not None else "")

    facts = _facts(
        [
            ("vocabulary", f"{exact(number(tree, 'vocab_size'))} tokens" if number(tree, "vocab_size") else ""),
            ("bytes per token", against("bytes_per_token", "bytes")),
            ("tokens per word", against("tokens_per_word", "tokens")),
        ]
    )
    preview = [scalar(token).replace(SPACE, " ").replace(NEWLINE, "\n") for token in items(tree, "preview")[:PREVIEW_TOKENS]]
    return Vocabulary(stage.name, facts, preview)


def _extension(stage: StageView) -> Vocabulary:
    tree = stats(stage)

    def counted(key: str) -> str:
        counts = table(tree, key)
        return ", ".join(f"{exact(number(counts, name))} {scalar(name)}" for name in counts)

    def changed(key: str) -> str:
        before, after = (number(tree, "fertility", when, key) for when in ("before", "after"))
        return f"{before:.2f} → {after:.2f}" if before is not None and after is not None else ""

    same, parts = number(tree, "proof", "parts_same"), number(tree, "proof", "parts_without_new_tokens")
    drift, mass = number(tree, "proof", "logprob_change_max"), number(tree, "proof", "mass_on_new")
    new = number(tree, "fertility", "new_tokens_frac")
    facts = _facts(
        [
            ("vocabulary", f"{exact(number(tree, 'vocab_before'))} → {exact(number(tree, 'vocab_size'))} tokens"),
            ("added", counted("added")),
            ("there already", counted("already")),
            ("left out", counted("left_out")),
            ("first weights", counted("initialised")),
            ("tokens per word", changed("tokens_per_word")),
            ("bytes per token", changed("bytes_per_token")),
            ("new among the text's tokens", percent(new) if new is not None else ""),
            ("lines and words without new tokens, cut as before", _of(same, parts)),
            ("largest change of an old log-probability", f"{drift:.1g} nats" if drift is not None else ""),
            ("probability that new tokens take", percent(mass) if mass is not None else ""),
        ]
    )
    return Vocabulary(stage.name, facts, [])


# --- export and environment ---------------------------------------------------------------------------


def _exports(run: RunView) -> list[Export]:
    return [_export(s) for s in of_kind(run, "export") if stats(s)]


def _export(stage: StageView) -> Export:
    tree, proof = stats(stage), table(stats(stage), "proof")
    equal, tokens = number(proof, "tokens_equal"), number(proof, "tokens")
    if proof.get("tokens_equal") is True or (equal is not None and tokens and equal == tokens):
        parity = "Both tokenise the test texts alike."
    elif equal is not None and tokens:
        parity = f"{exact(tokens - equal)} of {exact(tokens)} tokens differ between the two."
    elif proof.get("tokens_equal") is False:
        parity = "The two do not tokenise alike."
    else:
        parity = ""
    before, after = number(proof, "perplexity_before"), number(proof, "perplexity_after")
    named = {
        "texts": exact(number(proof, "texts")),
        "tokens": exact(tokens),
        "tokens alike": exact(equal)
        if equal is not None
        else scalar(proof.get("tokens_equal"))
        if "tokens_equal" in proof
        else "",
        "perplexity of the trained model": f"{before:.3f}" if before is not None else "",
        "perplexity of the export": f"{after:.3f}" if after is not None else "",
        "change": _rise(before, after, number(proof, "perplexity_rise_low_frac"), number(proof, "perplexity_rise_high_frac")),
    }
    known = {"texts", "tokens", "tokens_equal", *(name for name in proof if name.startswith("perplexity_"))}
    rest = [(key.replace("_", " "), value) for key, value in flat({k: v for k, v in proof.items() if k not in known}).items()]
    facts = _facts([("format", text(tree, "format")), ("size", size(number(tree, "bytes")))])
    return Export(stage.name, facts, _facts([*named.items(), *rest]), parity)


def _rise(before: float | None, after: float | None, low: float | None, high: float | None) -> str:
    """Of the perplexity, with its 95 % interval where the proof tells it."""
    if not before or after is None:
        return ""
    between = f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f} %" if low is not None and high is not None else ""
    return f"{100 * (after / before - 1):+.2f} %{between}"


def _places(run: RunView) -> list[Place]:
    """Stages grouped by where they were made; a cached stage may come from elsewhere."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in run.stages:
        made = {k: v for k, v in table(stage.manifest, "made_by").items() if k not in ("time", "libraries")}
        libraries = table(stage.manifest, "made_by", "libraries")
        facts = [(k, scalar(v)) for k, v in made.items()]
        if libraries:
            facts.append(
                ("libraries", ", ".join(f"{k} {scalar(v)}" for k, v in sorted(libraries.items(), key=lambda p: str(p[0]))))
            )
        if facts:
            found.setdefault(tuple(facts), []).append(stage.name)
    return [Place(names, list(facts)) for facts, names in found.items()]
