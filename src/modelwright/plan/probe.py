"""Probe: what files of rows or documents hold, told from the files themselves, each fact with how many of how many.

Nothing is written, fetched or run. Small files are read to their end; of large ones blocks spread over them (see `_probe_read`),
and of all rows that were read a sample is looked at closely (see `_probe_tally`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.methods.steps import content
from modelwright.plan import _probe_labels as marks
from modelwright.plan import _probe_read as reading
from modelwright.plan import _probe_text as language
from modelwright.plan import _probe_verify as verify
from modelwright.plan._probe_facts import Amount, Quantiles, Share, clip, open_tokenizer, quantiles, shares, total, tree
from modelwright.plan._probe_read import PARTS_SHARE, WHOLE_BYTES, Fault, File, Looked, Reader, places
from modelwright.plan._probe_tally import COMPARED_ROWS, KEPT_CHARS, Tally, as_record

SAMPLE_ROWS = 4000
"""Looked at closely: a share is then known to about 1.5 points, in a second or two."""
CHARS_PER_TOKEN = 4.0
"""English text in a vocabulary of 50,000 to 100,000 tokens: OpenAI, "What are tokens and how to count them?",
https://help.openai.com/en/articles/4936856; code has about 3, most other languages fewer."""
QUIET_S = 2.0
"""Before what is being done is told."""
_ORDERED = ("ranked", "ultrafeedback", "shp", "summarize_from_feedback", "oasst")


class Overlap(NamedTuple):
    """Rows of one file that another one has, too."""

    left: str
    right: str
    rows: Share
    """Of the rows of `right`: those that `left` has, case and punctuation aside."""
    prompts: Share
    """Of the questions of `right`: those that `left` asks, whatever the answer."""
    near: int
    """Near copies between the two, within the sample."""


class Duplicates(NamedTuple):
    exact: Share
    near: Share


class Probed(NamedTuple):
    """What was found."""

    files: tuple[File, ...]
    rows: Amount
    bytes: int
    chars: Amount
    tokens: Amount
    looked: int
    """Rows that were looked at closely."""
    layouts: tuple[Share, ...]
    """Rows by layout; why a file was read so stands with the file."""
    holds: tuple[Share, ...]
    """`documents`, `chats`, `pairs`, `binary feedback`, `rankings`, `step labels`, `word labels`, `near pairs` (`text` and
    `positive`), `tool calls`, `objects`."""
    lengths: tuple[Quantiles, ...]
    """Of rows, questions and answers, in tokens; of turns."""
    system: Share
    """Chats with a system prompt."""
    empty: Share
    broken: tuple[Share, ...]
    """Rows that cannot be read, by reason; samples name the places."""
    labels: tuple[marks.Labels, ...]
    pairs: marks.Pairs | None
    verifiable: Share
    verifiers: tuple[Share, ...]
    reasoning: Share
    traces: tuple[Share, ...]
    languages: tuple[Share, ...]
    duplicates: Duplicates
    overlaps: tuple[Overlap, ...]
    personal: tuple[Share, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A tree of plain values."""
        found: dict[str, Any] = tree(self)
        return found

    def table(self) -> list[dict[str, str]]:
        """Every fact that is not nothing, with its evidence, for people."""
        from modelwright.plan._probe_table import rows

        return list(rows(self))


def probe(
    paths: Sequence[str | Path],
    *,
    sample: int = SAMPLE_ROWS,
    tokenizer: str | Path | None = None,
    whole_bytes: float = WHOLE_BYTES,
    seed: int = 0,
    log: Log | None = None,
) -> Probed:
    """Look at files and folders. `tokenizer`: a folder with a tokenizer.json, or that file; unset: tokens are estimated from
    characters. `whole_bytes`: files that are larger together are looked at in parts. UserError where nothing can be read."""
    start, log = time.monotonic(), log or Log(None)
    counter = _counter(tokenizer)
    found, faults = places([Path(path) for path in paths])
    everything = sum(place.bytes for place in found)
    tally, readers, done = Tally(sample, seed, len(found) > 1), [], 0
    for fault in faults:
        tally.fault(fault)
    for number, place in enumerate(found):
        share = max(PARTS_SHARE * whole_bytes * place.bytes / max(everything, 1), reading.LEAST_BUDGET_BYTES)
        reader = Reader(place, number, 2 * whole_bytes if everything <= whole_bytes else share)
        readers.append(reader)
        for row in reader.rows():
            if isinstance(row, Fault):
                tally.fault(row)
                continue
            reader.heard(tally.row(row))
            if tally.seen % 256 == 0 and time.monotonic() - start > QUIET_S:
                log.progress(done, everything, "bytes", f"reading {place.name}")
        done += place.bytes
    return _found(tuple(reader.file() for reader in readers), tally, counter, _Progress(log, start))


Count = Callable[[Sequence[str]], list[float]]
"""Tokens of each text."""


class _Counter(NamedTuple):
    tokens: Count
    why: str
    exact: bool


def _counter(tokenizer: str | Path | None) -> _Counter:
    if tokenizer is None:
        why = f"{CHARS_PER_TOKEN:g} characters a token, as English has; name a tokenizer to count"
        return _Counter(lambda texts: [len(text) / CHARS_PER_TOKEN for text in texts], why, False)
    path = Path(tokenizer)
    made = open_tokenizer(path)

    def count(texts: Sequence[str]) -> list[float]:
        return [float(len(found.ids)) for found in made.encode_batch(list(texts), add_special_tokens=False)]

    return _Counter(count, f"counted by {path.parent.name if path.is_file() else path.name}", True)


def _found(files: tuple[File, ...], tally: Tally, counter: _Counter, said: _Progress) -> Probed:
    """All that the sample says."""
    rows, looked = tally.seen, [kept.row for kept in tally.kept]
    records = [as_record(row) for row in looked]
    texts = [content(record) for record in records]
    each = counter.tokens(texts)
    whole = counter.exact and len(looked) == rows and max(map(len, texts), default=0) < KEPT_CHARS
    per_char = sum(each) / max(sum(map(len, texts)), 1)
    tokens = [some * kept.chars / max(len(text), 1) for some, kept, text in zip(each, tally.kept, texts, strict=True)]
    chars = total([file.chars for file in files])
    said("trying verifiers")
    cases = [case for row in looked if (case := verify.case(row.place, row.raw, row.record))]
    checked, (reasoning, traces) = verify.verified(cases), verify.reasoned(cases)
    said("telling languages")
    spoken = language.languages(texts)
    said("looking for near copies")
    near = language.copies(records, [row.file for row in looked])
    said("looking for personal data")
    exact = Share("exact copies", tally.copies, rows, tuple(tally.copied), "the same text as an earlier row")
    return Probed(
        files,
        total([file.rows for file in files]),
        sum(file.bytes for file in files),
        chars,
        chars.times(per_char, counter.why, exact=whole),
        len(looked),
        _layouts(files, rows),
        _holds(looked, [file.layout for file in files]),
        tuple(_lengths(records, tokens, cases, counter.tokens)),
        _system(records),
        Share("empty rows", tally.empty, rows, (), "no character but white space"),
        tally.broken(),
        marks.labels(looked),
        marks.pairs(records, tally.same_sides),
        checked.any,
        checked.each,
        reasoning,
        traces,
        spoken.each,
        Duplicates(exact, near.near),
        _overlaps(files, tally, near.across),
        language.personal(texts),
        tuple(_notes(files, tally, (spoken.note, near.note))),
        said.seconds(),
    )


def _layouts(files: Sequence[File], rows: int) -> tuple[Share, ...]:
    counts: Counter[str] = Counter()
    for file in files:
        counts[file.layout or "none"] += file.read_rows
    named = {name: tuple(file.name for file in files if (file.layout or "none") == name) for name in counts}
    return tuple(Share(name, count, rows, named[name][:3]) for name, count in counts.most_common())


def _system(records: Sequence[Record]) -> Share:
    chats = [record for record in records if record.messages]
    found = [str(record.messages[0].get("content")) for record in chats if record.messages[0].get("role") == "system"]
    samples = tuple(map(clip, list(dict.fromkeys(found))[:3]))
    return Share("system prompts", len(found), len(chats), samples, f"{len(set(found))} different")


class _Progress:
    """Says what is being done once two seconds have gone by."""

    def __init__(self, log: Log, start: float) -> None:
        self._log, self._start, self._done = log, start, 0

    def __call__(self, what: str) -> None:
        if time.monotonic() - self._start > QUIET_S:
            self._log.progress(self._done, 4, "looks", what)
        self._done += 1

    def seconds(self) -> float:
        return time.monotonic() - self._start


def _holds(kept: Sequence[Looked], layout: Sequence[str]) -> tuple[Share, ...]:
    def sorts() -> Iterator[tuple[str, str]]:
        for row in kept:
            shown = content(as_record(row))
            yield _sort(row, layout[row.file]), shown
            if row.record is not None and any("tool_calls" in turn for turn in row.record.messages):
                yield "tool calls", shown

    return shares(sorts(), len(kept))


def _sort(row: Looked, layout: str) -> str:
    record = row.record
    if record is None:
        return "objects"
    if record.chosen:
        return "rankings" if layout in _ORDERED else "pairs"
    if record.messages:
        if isinstance(record.meta.get("steps"), list):
            return "step labels"
        return "binary feedback" if isinstance(record.meta.get("label"), bool) else "chats"
    if isinstance(record.meta.get("positive"), str):
        return "near pairs"
    return "word labels" if layout == "words" else "documents"


def _lengths(
    records: Sequence[Record], tokens: Sequence[float], cases: Sequence[verify.Case], count: Count
) -> Iterator[Quantiles]:
    turns = [float(len(record.messages) + len(record.chosen)) for record in records if record.messages]
    for name, unit, values in (
        ("rows", "tokens", tokens),
        ("questions", "tokens", count([case.question for case in cases])),
        ("answers", "tokens", count([case.answer for case in cases])),
        ("turns", "turns", turns),
    ):
        if (found := quantiles(name, unit, values)) is not None:
            yield found


def _overlaps(files: Sequence[File], tally: Tally, near: Counter[tuple[int, int]]) -> tuple[Overlap, ...]:
    found = []
    for left, right in sorted({*tally.rows_again, *tally.prompts_again, *near}):
        of = tally.rows[right]
        rows, prompts = (
            Share(name, counts[left, right], of)
            for name, counts in (("rows", tally.rows_again), ("questions", tally.prompts_again))
        )
        found.append(Overlap(files[left].name, files[right].name, rows, prompts, near[left, right]))
    return tuple(sorted(found, key=lambda one: -max(one.rows.share, one.prompts.share)))


def _notes(files: Sequence[File], tally: Tally, said: Sequence[str]) -> Iterator[str]:
    rows = tally.seen
    if cut := [file.name for file in files if not file.whole]:
        yield f"{len(cut)} of {len(files)} files were looked at in parts: {', '.join(cut[:3])}{' …' if len(cut) > 3 else ''}"
        yield "copies of rows are only found among those that were read: the whole has more"
    if len(tally.kept) < rows:
        yield f"what is told of texts is from {len(tally.kept):,} of {rows:,} rows, each as likely as any other"
    if rows > COMPARED_ROWS:
        yield f"rows after the first {COMPARED_ROWS:,} were compared with these alone"
    for name in tally.listed:
        yield f"{name} is one document of short lines; `source: {{kind: text, per: line}}` makes a row of each"
    yield from filter(None, said)
