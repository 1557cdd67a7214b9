"""What an evaluation costs, before it starts: pure arithmetic over shapes and row counts, every number with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from modelwright.core.stage import Estimate, Facts, Given, estimate
from modelwright.core.units import bytes_text, count_text
from modelwright.methods.decoders import Decoder
from modelwright.methods.tasks import Task

IMPORTS_BYTES = 0.45e9
"""torch and transformers in memory."""
IMPORTS_S = 4.0
"""Seconds to import them and to open a model, 2 cores."""
CHARS_PER_TOKEN = 3.5
"""Where nothing better is known."""
DECODE = 8.0
"""A token of an answer costs so many of a prompt: its products are thin (one row a sequence) and read all weights again.
Measured: 8.0 with 32 sequences of 200 tokens, 4.5M weights, 1 core."""
ROW_TOKENS = 250.0
"""Tokens of a row where the data is not known."""
CACHE_TOKENS = 64.0
"""Tokens written so far by the sequences of a batch, on average; beside the prompts their number matters little."""
UNKNOWN_BYTES = 540e6
"""A model of 135M weights in float32, where its size is not known."""
ITEM_BYTES = 500.0
"""A line of `items.jsonl`, answer included."""


def cost(
    models: Sequence[str], data: Sequence[str], tasks: Sequence[Task], decoder: Decoder, batch: int, given: Given
) -> Estimate:
    """`models` and `data`: references. One model is open at a time."""
    facts = [given.parents[ref] for ref in data]
    rows = sum(f.rows for f in facts if f.rows is not None) if all(f.rows is not None for f in facts) else None
    row_tokens, tokens_why = _row_tokens(facts, rows)
    items, new, lines = _asked(tasks, decoder, rows)
    read = items * row_tokens
    seconds, weights = IMPORTS_S, 0.0
    assumed = ""
    for ref in models:
        shape = given.parents[ref].shape
        size = given.parents[ref].bytes or UNKNOWN_BYTES
        per_token = shape.flops_per_token(row_tokens / 2) if shape else 0.5 * size
        if not shape:
            assumed = f"; assumed {bytes_text(size)} of float32 weights in {ref}"
        seconds += (read + DECODE * new) * per_token / given.machine.flops_per_s
        weights = max(weights, 4.0 * shape.params if shape else size)
    cache = _cache_bytes(models, given, min(batch, items) * (row_tokens + CACHE_TOKENS))
    times = f"{len(models)} models x " if len(models) > 1 else ""
    return estimate(
        seconds,
        f"{times}({count_text(read)} tokens read + {count_text(new)} written, a written one as {DECODE:g}) at "
        f"{count_text(given.machine.flops_per_s)}FLOP/s; {tokens_why}{assumed}",
        IMPORTS_BYTES + weights + cache,
        f"weights {bytes_text(weights)}, a batch's keys and values {bytes_text(cache)}, imports {bytes_text(IMPORTS_BYTES)}"
        + assumed,
        lines * ITEM_BYTES,
        f"{count_text(lines)} items of {ITEM_BYTES:.0f} bytes",
        {"": Facts(type="evaluation", rows=lines)},
    )


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
        items = float(task.rows if rows is None else min(task.rows, rows))
        lines += items
        key = (repr(sorted(task.where.items())), task.new_tokens())
        shared[key] = max(shared.get(key, 0.0), items)
    # answers end by themselves: half of the room is what questions with short answers take
    written = sum(items * decoder.budget(new / 2) for (_, new), items in shared.items() if new)
    return sum(shared.values()), written, lines


def _cache_bytes(models: Sequence[str], given: Given, tokens: float) -> float:
    """Keys and values of so many tokens in the largest model, float32."""
    shapes = [shape for ref in models if (shape := given.parents[ref].shape)]
    widths = [shape.layers * (shape.head_dim or shape.hidden // shape.heads) * shape.kv_heads for shape in shapes]
    return 2 * 4.0 * tokens * max(widths, default=0)
