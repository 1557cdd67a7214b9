"""What a curation takes: seconds, processes and memory, as its plan tells them and as its run divides them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelwright.core.estimate import Facts, Span
from modelwright.core.units import bytes_text
from modelwright.methods.sources import Source
from modelwright.methods.steps import Choosing, Step
from modelwright.stages._curate_flow import CHUNK_BYTES, HELD_BYTES
from modelwright.stages._curate_journal import AFTER_S

BASE_BYTES = 110e6
"""Peak of an empty run: the interpreter, pydantic, numpy and compiled kernels; measured."""
WORKER_BYTES = 180e6
"""Peak of a process that works through rows, with the chunks that wait for it; measured with Gopher's filters and MinHash."""
CHUNKS_BYTES = 24 * CHUNK_BYTES
"""What goes through the command itself: chunks under way, as rows and as lines."""
ROW_BYTES = 1000.0
"""Text of a row where nobody knows how many there are."""
NAME_BYTES = 120.0
"""Of a row's id, where those of several sources have to be told apart."""
HELD_PER_ROW = 24
"""Where the line of a row that waits is, and how long."""
WORTH_WORKERS_S = 10.0
"""Seconds of work from which worker processes pay."""
START_S = 1.0
"""Until a worker works; measured, with the kernels' cache there."""
BEGIN_S = 0.8
"""Of every run: compiled kernels read from their cache, files opened and synced; measured."""
SPLIT_BYTES_PER_S = 2e6
"""Of a split on one core; measured."""
EFFICIENCY = 0.9
"""What a worker's core gives of a core that works alone: two on two cores of a shared machine were measured at 0.87 to 0.96
(`curate_two_cores`, without their start)."""
PARENT_S_PER_BYTE = 1e-9
"""What the command itself does with what its workers read: it takes chunks in, writes lines and keeps the ledger; measured."""


class Cost(NamedTuple):
    seconds: float
    workers: int
    memory_bytes: float
    why_seconds: str
    why_memory: str
    bytes_out: float
    rows_out: float | None
    waiting_bytes: float
    """On the disk until the run has ended: rows that wait, and the journal."""
    spans: tuple[Span, ...]


def workers_for(seconds: float, asked: int | None, cores: int, memory_bytes: float) -> int:
    """One for each core where the work is much longer than their start, and as many as the memory holds."""
    if asked is not None:
        return asked
    room = int((min(memory_bytes, 1e15) - BASE_BYTES - CHUNKS_BYTES) // WORKER_BYTES)
    return max(1, min(cores, room)) if seconds > WORTH_WORKERS_S else 1


def work_s(sources: Sequence[Source], steps: Sequence[Step], bytes_in: Sequence[float]) -> float:
    """Of one core, for so many bytes of each source."""
    reading = sum(size / source.bytes_per_s for source, size in zip(sources, bytes_in, strict=True))
    return reading + sum(bytes_in) * sum(1 / step.bytes_per_s for step in steps)


def counted(source: Source, bytes_in: float, of: Facts | None) -> Facts:
    """What a source gives: the rows that its files, or an earlier stage, are known to hold, and their text."""
    facts = source.facts(bytes_in)
    if not source.of_rows or of is None or not of.rows or not of.bytes:
        return facts
    share = bytes_in / of.bytes  # `match` may leave files out
    return facts.model_copy(update={"rows": of.rows * share, "chars": (of.chars if of.chars is not None else of.bytes) * share})


def cost(
    steps: Sequence[tuple[str, Step]],
    split: Callable[[float], float] | None,
    sources: int,
    read: str,
    reading_s: float,
    bytes_in: float,
    rows: float | None,
    cores: int,
    memory_bytes: float,
) -> Cost:
    """`read`: kinds of the sources; `split`: memory that it takes for so many rows, where there is one."""
    seconds, flow, count = reading_s, bytes_in, rows
    slowest, waits, numbers, largest = ("reading", reading_s), 0, 0.0, ("", 0.0)
    spans = [Span("read", reading_s, f"{bytes_text(bytes_in)} from {sources} source{'s' if sources > 1 else ''}", read)]
    for name, step in steps:
        took = flow / step.bytes_per_s
        seconds += took
        spans.append(Span(name, took, f"{bytes_text(flow)} at {bytes_text(step.bytes_per_s)}/s"))
        slowest = max(slowest, (name, took), key=_second)
        if isinstance(step, Choosing):
            asks = step.memory_bytes(count if count is not None else flow / ROW_BYTES, flow)
            numbers, largest = numbers + asks, max(largest, (name, asks), key=_second)
            waits += step.waits()
        share = step.keeps(count)
        flow *= share
        count = count * share if count is not None else None
    if split is not None:
        asks = split(count if count is not None else flow / ROW_BYTES)
        spans.append(Span("split", flow / SPLIT_BYTES_PER_S, f"{bytes_text(flow)} compared and divided"))
        seconds += spans[-1].seconds
        numbers, waits = numbers + asks, waits + 1
        largest = max(largest, ("split", asks), key=_second)
    known = rows if rows is not None else bytes_in / ROW_BYTES
    if sources > 1:
        numbers, largest = numbers + NAME_BYTES * known, max(largest, ("names of rows", NAME_BYTES * known), key=_second)
    held = waits * min(bytes_in, held_bytes(memory_bytes, waits)) + waits * HELD_PER_ROW * known
    workers = workers_for(seconds, None, cores, memory_bytes)
    took_s = seconds if workers == 1 else START_S + max(seconds / (workers * EFFICIENCY), bytes_in * PARENT_S_PER_BYTE)
    why = f"{bytes_text(bytes_in)} of text through {len(steps)} steps, {slowest[0]} takes longest"
    if workers > 1:
        why += f"; {workers} processes, each {EFFICIENCY:.0%} of a core, {START_S:g} s to start"
    parts = [f"{bytes_text(BASE_BYTES + CHUNKS_BYTES)} for the program and rows under way"]
    if workers > 1:
        parts.append(f"{bytes_text(WORKER_BYTES)} for each of {workers} workers")
    if held:
        parts.append(f"{bytes_text(held)} of rows wait in memory, more on the disk")
    if numbers:
        parts.append(f"{bytes_text(numbers)} of numbers to choose by, most for `{largest[0]}`")
        parts += [f"rows taken as {bytes_text(ROW_BYTES)} each, because nobody has counted them"] if rows is None else []
    total = BASE_BYTES + CHUNKS_BYTES + held + numbers + (workers * WORKER_BYTES if workers > 1 else 0.0)
    if total > memory_bytes:
        parts.append(f"MORE THAN THE {bytes_text(memory_bytes)} THERE ARE")
    stretches = 1 + sum(isinstance(step, Choosing) for _, step in steps)
    waiting = bytes_in * stretches if took_s > AFTER_S else waits * max(bytes_in - HELD_BYTES, 0)
    each = [span._replace(seconds=span.seconds * took_s / max(seconds, 1e-9)) for span in spans]
    each.append(Span("start", BEGIN_S, "kernels loaded, rows written"))
    return Cost(took_s + BEGIN_S, workers, total, why, ", ".join(parts), flow, count, waiting, tuple(each))


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def held_bytes(memory_bytes: float, choices: int = 1) -> int:
    """Of rows that wait in memory for each choice: an eighth of it altogether, and no more than pays."""
    return int(min(HELD_BYTES, memory_bytes / 8 / max(choices, 1)))
