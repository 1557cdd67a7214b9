"""What an evaluation costs, before it starts: pure arithmetic over shapes and row counts, every number with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from modelwright.core.estimate import TORCH, Estimate, Facts, Given, Machine, Part, Quantity, Shape, Span, estimate, imports
from modelwright.core.passes import passed, written_s
from modelwright.core.spec import kind_of
from modelwright.core.units import bytes_text, count_text
from modelwright.methods.decoders import Decoder
from modelwright.methods.engines import ENGINES, EngineSpec
from modelwright.methods.tasks import Task
from modelwright.stages._train_cost import guess

IMPORTS_BYTES, LIGHT_BYTES = 0.55e9, 0.06e9
"""torch and transformers in memory; numpy and a library."""
OPEN_S = 0.1
"""A model opened, beside reading its weights."""
READ_BYTES_PER_S = 500e6
"""Weights read from a disk's cache."""
ITEM_S = 5e-4
"""An item asked for, scored and written, and its share of the intervals."""
ON_CARDS = ("native", "vllm", "sglang")
"""Engines that compute on a CUDA card; llama.cpp's package has code for processors."""
LLAMA = 2.2
"""What llama.cpp takes over our own engine, for models of some million weights in 8 bits: measured 1.8 for answers, 2.7 for
texts."""
AT_ONCE = 512
"""Tokens of prompts that an engine takes in one step: `prefill_tokens` of `methods/engines/native.py`."""
CHARS_PER_TOKEN = 3.5
"""Where nothing better is known."""
ROW_TOKENS = 250.0
"""Tokens of a row where the data is not known."""
CACHE_TOKENS = 64.0
"""Tokens written so far by the sequences of a batch, on average; beside the prompts their number matters little."""
UNKNOWN_BYTES = 540e6
"""A model of 135M weights in float32, where its size is not known."""
ITEM_BYTES = 500.0
"""A line of `items.jsonl`, answer included."""


def cost(
    models: Sequence[str],
    data: Sequence[str],
    tasks: Sequence[Task],
    decoder: Decoder,
    batch: int,
    given: Given,
    engine: EngineSpec | None,
) -> Estimate:
    """`models` and `data`: references. One model is open at a time, under `engine`; None: what its folder asks for."""
    facts = [given.parents[ref] for ref in data]
    rows = sum(f.rows for f in facts if f.rows is not None) if all(f.rows is not None for f in facts) else None
    row_tokens, tokens_why = _row_tokens(facts, rows)
    items, new, lines = _asked(tasks, decoder, rows)
    read, machine = items * row_tokens, given.machine.used_by(1)
    texts = sum(_lines(task, rows) for task in tasks if not task.new_tokens())
    spans, of_torch = list[Span](), False
    parts, carded, assumed = tuple[Part, ...](), tuple[Part, ...](), ""
    for ref in models:
        size = given.parents[ref].bytes or UNKNOWN_BYTES
        if not (shape := given.parents[ref].shape):
            shape, assumed = guess(0.25 * size), f"; assumed {bytes_text(size)} of float32 weights in {ref}"
        runs_on, on = _placed(engine or _chosen(ref, given), machine)
        of_torch |= runs_on.local and runs_on.of_torch
        context = given.parents[ref].context or row_tokens
        spans += _spans(shape, on, kind_of(runs_on), context, items - min(texts, items), min(texts, items), new, row_tokens)
        held = runs_on.memory(shape, min(context, row_tokens + CACHE_TOKENS), min(batch, items), given.parents[ref].bytes)
        if on.device == "cuda":
            carded = max(carded, held, key=_total)
            held = tuple(part._replace(name="opening", why=f"{part.why}, before they are on the card") for part in held[:1])
        parts = max(parts, held, key=_total)
    if of_torch:
        spans.insert(0, imports("torch, transformers and an engine"))
    spans.append(Span("end", items * ITEM_S, f"{count_text(items)} items scored"))
    loaded = (IMPORTS_BYTES, "torch, transformers and an engine") if of_torch else (LIGHT_BYTES, "an engine without torch")
    scorers = {name: size for task in tasks for name, size in task.leaves.items()}
    scoring = [Part("scorers", sum(scorers.values()), ", ".join(scorers))] if scorers else []
    parts = (Part("imports", *loaded), *scoring, *parts)
    times = f"{len(models)} models x " if len(models) > 1 else ""
    found = estimate(
        sum(span.seconds for span in spans),
        f"{times}{count_text(read)} tokens read, {count_text(new)} written; {tokens_why}{assumed}: "
        + ", ".join(f"{span.name} {span.seconds:.3g} s" for span in spans),
        _total(parts),
        ", ".join(f"{part.name} {bytes_text(part.bytes)}" for part in parts) + assumed,
        lines * ITEM_BYTES,
        f"{count_text(lines)} items of {ITEM_BYTES:.0f} bytes",
        {"": Facts(type="evaluation", rows=lines)},
    )
    why = ", ".join(f"{part.name} {bytes_text(part.bytes)}" for part in carded) + assumed
    return found._replace(
        spans=tuple(spans),
        leaves={**(TORCH if of_torch else {}), **scorers},
        parts=parts,
        device_memory=Quantity(_total(carded), "bytes", why) if carded else None,
        device_parts=carded,
        asked_tokens=(len(models) * read, len(models) * new),
    )


def _chosen(ref: str, given: Given) -> EngineSpec:
    """The engine that opens this model where the recipe names none, as far as that is known now."""
    from modelwright.methods.engines._remote import is_card, read_card

    path = given.paths.get(ref)
    if path is not None and is_card(path):
        return read_card(path)
    gguf = given.parents[ref].type == "export" or (path is not None and path.suffix == ".gguf")
    return cast(EngineSpec, ENGINES.build("llamacpp" if gguf else "native"))


def _placed(engine: EngineSpec, machine: Machine) -> tuple[EngineSpec, Machine]:
    """The engine, and what it computes on: the card where there is one for it, else the processors beside it."""
    device = engine.model_dump(include={"device"}).get("device")
    if machine.device != "cuda" or kind_of(engine) not in ON_CARDS or device == "cpu":
        return engine, machine.host()
    return (engine.model_copy(update={"device": "cuda"}) if device else engine), machine


def _spans(
    shape: Shape, machine: Machine, engine: str, context: float, answers: float, texts: float, new: float, row_tokens: float
) -> list[Span]:
    """Of one model: opened, asked for so many answers of `new` tokens together, and for the probabilities of texts."""

    once = min(row_tokens, context)
    tokens = once + 2 * (row_tokens - once)  # windows of a longer text lie half over one another

    def read_s(rows: float, scored_frac: float) -> float:
        return sum(passed(shape, machine, rows * tokens, once, AT_ONCE, target_frac=scored_frac)) if rows else 0.0

    by = LLAMA if engine == "llamacpp" else 1.0
    return [
        Span("open", OPEN_S + 4.0 * shape.params / READ_BYTES_PER_S, f"{count_text(shape.params)} weights"),
        Span("answers read", by * read_s(answers, 0.0), f"{count_text(answers)} prompts", engine),
        Span("answers written", by * written_s(shape, machine, new), f"{count_text(new)} tokens", engine),
        Span("texts", by * read_s(texts, 1.0), f"probabilities of {count_text(texts)} texts", engine),
    ]


def _lines(task: Task, rows: float | None) -> float:
    return float(task.rows if rows is None else min(task.rows, rows))


def _row_tokens(facts: Sequence[Facts], rows: float | None) -> tuple[float, str]:
    tokens = 0.0
    for fact in facts:
        if fact.tokens is not None:
            tokens += fact.tokens
        elif (size := fact.chars if fact.chars is not None else fact.bytes) is not None and rows:
            tokens += size / CHARS_PER_TOKEN
        else:
            return ROW_TOKENS, f"assumed {ROW_TOKENS:.0f} tokens a row"
    if not rows:
        return ROW_TOKENS, f"assumed {ROW_TOKENS:.0f} tokens a row"
    return max(1.0, tokens / rows), f"{tokens / rows:.0f} tokens a row"


def _asked(tasks: Sequence[Task], decoder: Decoder, rows: float | None) -> tuple[float, float, float]:
    """Rows read, tokens written, lines kept. Tasks that ask alike share their answers."""
    shared: dict[tuple[str, int], float] = {}
    lines = 0.0
    for task in tasks:
        items = _lines(task, rows)
        lines += items
        key = (repr(sorted(task.where.items())), task.new_tokens())
        shared[key] = max(shared.get(key, 0.0), items)
    # answers end by themselves: half of the room is what questions with short answers take
    written = sum(items * decoder.budget(new / 2) for (_, new), items in shared.items() if new)
    return sum(shared.values()), written, lines


def _total(parts: Sequence[Part]) -> float:
    return sum(part.bytes for part in parts)
