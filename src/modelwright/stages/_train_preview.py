"""What a training stage sees of its rows, token by token: encoded, packed and changed by the same code that trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.events import Log
from modelwright.core.preview import STATES, Part, Preview, Shown, State, Token
from modelwright.core.record import Record
from modelwright.core.spec import kind_of
from modelwright.core.stage import Input, Run
from modelwright.methods.engines._text import DecodedPieces
from modelwright.methods.objectives import Objective
from modelwright.methods.sources import OnBad, of_unreadable, open_records
from modelwright.methods.templates import Template
from modelwright.stages._train_open import open_text
from modelwright.stages._train_rows import encode, prepared
from modelwright.stages._train_run import plan_of
from modelwright.stages._train_text import Ledger, Text

if TYPE_CHECKING:
    from modelwright.nn.rows import Packed, Row, Rows
    from modelwright.stages._train_spec import Training

WHOLE = 1 << 30
"""A `length` at which nothing is cut."""
DROPS = 2
"""Records shown that were left out, of each reason."""
JUDGED = ("labels", "groups")
"""Needs of objectives that judge whole texts: no token of theirs is predicted."""


class Seen(NamedTuple):
    """The text side of a stage, and how its loss looks at a packed row."""

    text: Text
    head: str = "causal"
    change: Callable[[Packed], Packed] | None = None
    marks: frozenset[int] = frozenset()
    """Ids of special tokens."""
    stop: int | None = None
    """The token that ends an answer."""

    @classmethod
    def of(cls, text: Text, objective: Objective | None = None, seed: int = 0) -> Seen:
        tokenizer = text.tokenizer
        added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        change = objective.change(tokenizer, seed) if objective is not None else None
        head = objective.head if objective is not None else "causal"
        return cls(text, head, change, frozenset(added | set(tokenizer.all_special_ids)), text.stop())


class Asked(NamedTuple):
    """Which rows to show."""

    rows: int = 5
    """How many."""
    look: int = 200
    """Records of each source that are looked at for the counts; 0: all."""
    row: str | None = None
    """The one record with this id."""


def preview(stage: Training, run: Run, name: str, asked: Asked, step: int | None = None) -> Preview:
    """The first rows of each source; or the rows of one step, as they are packed, for which all rows are tokenised."""
    text = open_text(stage, run)
    seen = Seen.of(text, stage.objective, run.seed)
    facts = _facts(text) | {"objective": kind_of(stage.objective), "data": ", ".join(mix.ref for mix in stage.data)}
    for mix in stage.data:
        own = {"weight": mix.weight, "epochs": mix.epochs}
        facts |= {f"{key} of {mix.ref}": f"{value:g}" for key, value in own.items() if value is not None}
    if step is not None:
        return _step(stage, run, seen, step, name, facts)
    return _looked_at(seen, [run.inputs[mix.ref] for mix in stage.data], run.out, asked, f"stage {name}", facts)


def preview_file(path: Path, tokenizer: Any, template: Template | None, length: int, asked: Asked) -> Preview:
    """A file of rows as `sft`, `dpo` or `next_token` would see it, whichever its first row fits."""
    given = Input(str(path), "path", path)
    try:
        first = next(open_records(given, Log(None), "drop"))
    except UserError:
        first = next(open_records(given, Log(None)))  # says what is wrong with the rows, and where
    needs, objective = ("pairs", "dpo") if first.chosen else ("answers", "sft") if first.messages else ("text", "next_token")
    seen = Seen.of(Text(tokenizer, template, needs, length))
    facts = _facts(seen.text) | {"objective": f"as `{objective}` sees it"}
    with TemporaryDirectory() as folder:
        return _looked_at(seen, [given], Path(folder), asked, str(path), facts, on_bad="drop")


def _facts(text: Text) -> dict[str, str]:
    kind = kind_of(text.template) if text.template is not None else "the tokenizer's own"
    return {"template": kind if text.has_template() else "none", "length": f"{text.length:,} tokens at most"}


def _looked_at(
    seen: Seen, inputs: Sequence[Input], folder: Path, asked: Asked, title: str, facts: dict[str, str], on_bad: OnBad = "error"
) -> Preview:
    notes = ["what is hidden is drawn anew in each step; shown is one draw"] if seen.change else []
    unreadable, first = Counter[str](), dict[str, str]()

    def hear(event: str, fields: dict[str, Any]) -> None:
        if event == "note":
            notes.append(fields["text"])
        elif event == "unreadable":
            reason, where = of_unreadable(fields)
            unreadable[reason] += 1
            first.setdefault(reason, where)
        elif event == "excluded":
            notes.append(f"{fields['files']:,} left out: {fields['reason']}")

    log = Log(None, hear)
    tokens, made, total = dict.fromkeys(STATES, 0), 0, Ledger()
    shown, left_out = list[Shown](), list[Shown]()
    each = -(-asked.rows // len(inputs))
    for given in inputs:
        room = each
        for record in _wanted(open_records(given, log, on_bad), asked):
            found = _of_record(seen, record, total, folder)
            rows = sum(not row.why for row in found)
            made += rows
            for state in STATES:
                tokens[state] += sum(row.count(state) for row in found)
            if rows and (room > 0 or asked.row):
                shown += _of_record(seen, record, Ledger(), folder, spelt=True)[: len(found) if asked.row else room]
                room -= rows
            if not rows and sum(row.why == found[0].why for row in left_out) < DROPS:
                left_out += _of_record(seen, record, Ledger(), folder, spelt=True)
    if asked.row and not total.read:
        raise UserError(
            f"no row is called {asked.row!r}", f"looked through {', '.join(i.ref for i in inputs)}", "ids stand above each row"
        )
    notes += [f"cannot be read: {count:,} {why}, first {first[why]}" for why, count in unreadable.items()]
    return Preview(
        title, list(facts.items()), [*shown, *left_out], total.read, total.used, made, tokens, dict(total.dropped), notes
    )


def _wanted(records: Iterator[Record], asked: Asked) -> Iterator[Record]:
    if asked.row is None:
        return islice(records, asked.look or None)
    return islice((record for record in records if record.id == asked.row), 1)


def _of_record(seen: Seen, record: Record, ledger: Ledger, folder: Path, spelt: bool = False) -> list[Shown]:
    """The rows that a record becomes, or the record with the reason why it becomes none; with the tokens' texts if `spelt`."""
    before = Counter(ledger.dropped)
    rows = list(encode(seen.text, [record], ledger))
    plain = seen.text.arrange is None and seen.change is None  # else rows hold other tokens than the text
    whole = list(encode(seen.text._replace(length=WHOLE), [record], Ledger())) if plain or not rows else []

    def parts(row: Row) -> list[Part]:
        return _parts(seen, row, folder, spelt)

    if not rows:
        if not whole and record.messages and not record.chosen:  # a chat without an answer is still text
            whole = list(encode(seen.text._replace(length=WHOLE, needs="text"), [record], Ledger()))
        why = next(iter(ledger.dropped - before), "it became no row")
        return [Shown(record.id, [_as_cut(part) for row in whole for part in parts(row)], why)]
    shown = [Shown(row.name, parts(row), note=f"label {row.label:g}" if row.label == row.label else "") for row in rows]
    if len(shown) == len(whole) == 1:
        return [shown[0]._replace(parts=[_with_cut(*both) for both in zip(shown[0].parts, parts(whole[0]), strict=False)])]
    return shown


def _as_cut(part: Part) -> Part:
    return part._replace(tokens=[token._replace(state="cut", ends=False) for token in part.tokens])


def _with_cut(kept: Part, whole: Part) -> Part:
    """The part with the tokens that truncation took out, where those are one run of it."""
    ids, all_ids = [t.id for t in kept.tokens], [t.id for t in whole.tokens]
    before = next((i for i, (a, b) in enumerate(zip(ids, all_ids, strict=False)) if a != b), min(len(ids), len(all_ids)))
    behind = len(ids) - before
    if len(ids) == len(all_ids) or all_ids[len(all_ids) - behind :] != ids[before:]:
        return kept
    cut = _as_cut(whole).tokens[before : len(all_ids) - behind]
    return kept._replace(tokens=[*kept.tokens[:before], *cut, *kept.tokens[before:]])


# --- a row as the loss has it ---------------------------------------------------------------------------


def _parts(seen: Seen, row: Row, folder: Path, spelt: bool) -> list[Part]:
    from modelwright.nn.rows import store

    return _packed(seen, store([row], folder / "row", len(seen.text.tokenizer)), 0, 1, spelt)


def _packed(seen: Seen, rows: Rows, row: int, step: int, spelt: bool) -> list[Part]:
    """The parts of a stored row, as the micro-batch of a step has it."""
    from modelwright.nn.rows import pack

    batch = pack(rows, [row], step)
    batch = seen.change(batch) if seen.change is not None else batch
    trained, labels = _places(seen, batch)
    parts, ids = [], batch.ids_T.tolist()
    for number, segment in enumerate(batch.layout.segments):
        part = ids[segment.start : segment.stop]
        texts = _texts(seen.text.tokenizer, part) if spelt else [""] * len(part)
        tokens = []
        for place, (token, piece) in enumerate(zip(part, texts, strict=True), segment.start):
            state: State = "trained" if place in trained else "context"
            ends = state == "trained" and token == seen.stop
            tokens.append(Token(token, piece, state, token in seen.marks, ends, labels.get(place, "")))
        parts.append(Part(_name(seen, number, len(batch.layout.segments)), tokens))
    return parts


def _name(seen: Seen, number: int, parts: int) -> str:
    if parts == 1:
        return ""
    if seen.text.needs == "pairs":
        return ("begins both", "chosen", "rejected")[number + 3 - parts]
    if seen.head == "seq2seq":
        return ("read", "written")[number]
    return ("the text", "near it")[number] if number < 2 else "far from it"


def _places(seen: Seen, batch: Packed) -> tuple[set[int], dict[int, str]]:
    """The tokens that the loss asks for, and what each is to get where that is a label."""
    if seen.text.needs in JUDGED:
        return set(), {}
    if batch.tag_T is not None:
        labels = {place: str(tag) for place, tag in enumerate(batch.tag_T.tolist()) if tag >= 0}
        return set(labels), labels
    positions = batch.position_N.tolist()
    if seen.head != "causal":  # asked for where they stand
        return set(positions), {}
    segments, found = batch.layout.segments, set()
    branches = [segment for segment in segments if segment.parent >= 0]
    for position, owner in zip(positions, batch.segment_N.tolist(), strict=True):
        at = position + 1  # predicted by the token before it, which for a branch's first is the last shared one
        if branches and at == segments[branches[owner].parent].stop:
            at = branches[owner].start
        found.add(at)
    return found, {}


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    pieces = DecodedPieces(
        lambda some: str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    )
    texts = [pieces.push(token) for token in ids]
    return [*texts[:-1], texts[-1] + pieces.rest()] if texts else []


# --- the rows of a step ---------------------------------------------------------------------------------


def _step(stage: Training, run: Run, seen: Seen, step: int, name: str, facts: dict[str, str]) -> Preview:
    data = prepared(seen.text, [mix.ref for mix in stage.data], run, run.out / "rows")
    plan = plan_of(stage, data, run.seed)
    if not 1 <= step <= plan.steps:
        raise UserError(f"there is no step {step}", f"stage {name} makes {plan.steps:,}", f"give 1 to {plan.steps}")
    names = _names(data.rows.folder, wanted := plan.step(step - 1))
    shown = [Shown(names[row], _packed(seen, data.rows, row, step, True)) for row in wanted]
    tokens = {state: sum(row.count(state) for row in shown) for state in STATES}
    facts |= {"step": f"{step:,} of {plan.steps:,}: these rows side by side, and none sees another"}
    ledger = data.ledger
    return Preview(
        f"stage {name}",
        list(facts.items()),
        shown,
        ledger["read"],
        ledger["used"],
        len(data.rows),
        tokens,
        ledger["dropped"],
        [],
        True,
    )


def _names(folder: Path, wanted: Sequence[int]) -> dict[int, str]:
    with (folder / "names.txt").open(encoding="utf-8") as file:
        chosen = set(wanted)
        return {number: line.rstrip("\n") for number, line in enumerate(file) if number in chosen}
