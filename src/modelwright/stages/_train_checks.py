"""Soundness checks of a training stage, on its real rows and a small slice: the faults that no error message ever tells."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.record import Record
from modelwright.core.stage import Check, Run
from modelwright.methods.launchers import Launcher
from modelwright.methods.sources import open_records
from modelwright.methods.templates import marks, parity_check, spans, tools_of
from modelwright.stages import _train_open, _train_run
from modelwright.stages._train_apart import apart
from modelwright.stages._train_row_kinds import WANTED, unfit
from modelwright.stages._train_rows import encode
from modelwright.stages._train_text import Ledger, Text

if TYPE_CHECKING:
    from modelwright.nn.rows import Row
    from modelwright.stages._train_spec import Training

SLICE_ROWS = 64
"""Records of each source that are looked at: seconds, not minutes."""
LOSS_ROWS, LOSS_TOKENS = 6, 768
"""Rows whose loss is computed in several ways, and their tokens together."""
LOSS_TOLERANCE = 1e-4
"""Largest relative difference of the loss between ways to batch the same rows, in float32."""


def checks(stage: Training, run: Run) -> Iterator[Check]:
    if isinstance(run.launch, Launcher) and run.parallel is not None:
        yield from run.launch.check(run.parallel.processes)
    text = _train_open.open_text(stage, run)
    records = [r for mix in stage.data for r in islice(open_records(run.inputs[mix.ref], Log(None)), SLICE_ROWS)]
    ledger = Ledger()
    rows = list(encode(text, records, ledger))
    yield _rows_left(text, ledger)
    if not rows:
        return
    records = [record for record in records if unfit(record, text.needs) is None]
    yield _mask_audit(text, records, rows)
    chats = [
        ([*r.messages, *side], tools_of(r.meta))
        for r in records
        if r.messages
        for side in ([r.chosen, r.rejected] if r.chosen else [[]])
    ]
    if chats:
        yield _end_of_turn(text, rows)
        yield parity_check(text.tokenizer, text.jinja(), *zip(*chats, strict=True))
    yield _invariance(stage, run, rows)
    yield from apart(stage, run)


def _rows_left(text: Text, ledger: Ledger) -> Check:
    """Too many rows that cannot be used mean the wrong data, not bad luck."""
    lost = sum(ledger.dropped.values())
    detail = f"{ledger.read - lost} of {ledger.read} rows can be trained on"
    if lost:
        detail += "; left out: " + ", ".join(f"{count} {reason}" for reason, count in ledger.dropped.most_common(3))
    ok = lost * 2 <= ledger.read
    long = bool(lost) and ledger.dropped.most_common(1)[0][0].endswith(f"more than {text.length} tokens")
    return Check("rows kept", ok, detail, "" if ok else "raise `length`" if long else WANTED[text.needs])


def _mask_audit(text: Text, records: list[Record], rows: list[Row]) -> Check:
    """Every row trains on something; the first chat is shown by role, what is trained in brackets."""
    empty = sum(not any(row.flags if row.tags else row.flags[1:]) for row in rows)  # a tag is for the token itself
    tokens, targets = sum(len(row.ids) for row in rows), sum(bool(flag) for row in rows for flag in row.flags)
    detail = f"{len(rows) - empty} of {len(rows)} rows train on something, {targets} of {tokens} tokens"
    shown = next((r for r in records if r.messages), None)
    if shown is not None and text.needs != "text":
        bos, eos = marks(text.tokenizer)
        first = len(shown.messages) if shown.chosen else 0
        parts = spans(text.jinja(), [*shown.messages, *shown.chosen], bos=bos, eos=eos, tools=tools_of(shown.meta), first=first)
        detail += "; " + " ".join(f"{part.role}: {_short(part.text, part.trained)}" for part in parts)
    return Check(
        "mask audit",
        not empty,
        detail,
        "" if not empty else "rows without an answer train on nothing: give each an assistant's turn",
    )


def _short(text: str, trained: bool) -> str:
    text = repr(text if len(text) <= 60 else f"{text[:28]} … {text[-28:]}")[1:-1]
    return f"[{text}]" if trained else text


def _end_of_turn(text: Text, rows: list[Row]) -> Check:
    """The model must learn to stop: each answer's last trained token is the mark that serving stops at."""
    stop = text.stop()
    if stop is None:
        return Check(
            "end of turn",
            False,
            "the template ends an answer with ordinary text, so serving cannot tell where it stops",
            "use a template whose answers end in a special token, such as `chatml`",
        )
    bad = 0
    for row in rows:
        last = max((i for i, flag in enumerate(row.flags) if flag), default=None)
        bad += last is None or (text.needs != "text" and row.ids[last] != stop)
    name = text.tokenizer.convert_ids_to_tokens(stop)
    return Check(
        "end of turn",
        not bad,
        f"{len(rows) - bad} of {len(rows)} rows end their loss with {name!r}",
        "" if not bad else "the template must close each answer with its mark",
    )


def _invariance(stage: Training, run: Run, rows: list[Row]) -> Check:
    """The loss of some rows: all packed in one, and each alone and accumulated. Float32, no dropout."""
    import shutil

    import torch

    from modelwright.nn.measure import evaluate
    from modelwright.nn.rows import store

    chosen: list[Any] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        if len(chosen) < LOSS_ROWS and sum(len(r.ids) for r in chosen) + len(row.ids) <= LOSS_TOKENS:
            chosen.append(row)
    if len(chosen) < 2:
        return Check("packing and accumulation", True, f"rows are longer than {LOSS_TOKENS} tokens together; not compared", "")
    folder = run.out / "check"
    threads = torch.get_num_threads()
    torch.set_num_threads(stage.threads or threads)
    try:
        opened = _train_open.open_model(stage, run)
        stored = store(chosen, folder, len(opened.text.tokenizer))

        loss = _train_run.objective_loss(stage.objective)
        change = stage.objective.change(opened.text.tokenizer, run.seed)

        def measure(tokens: int) -> float:
            def attach(batch: Any) -> Any:
                return change(batch) if change else batch._replace(reference_N=torch.zeros(len(batch.target_N)))

            whole = stage.objective.whole_step
            every = range(len(stored))
            return evaluate(opened.model, stored, every, loss, tokens, torch.float32, attach, whole_step=whole)["loss"]

        together, alone = measure(10**9), measure(1)
    except UserError as error:
        return Check("packing and accumulation", False, error.what, error.fix)
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(folder, ignore_errors=True)
    difference = abs(together - alone) / max(abs(alone), 1e-9)
    ok = difference <= LOSS_TOLERANCE
    return Check(
        "packing and accumulation",
        ok,
        f"loss {together:.6f} packed, {alone:.6f} row by row: relative difference {difference:.1g}",
        "" if ok else "this model's layers see other documents; start from a Llama-like model",
    )
