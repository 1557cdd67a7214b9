"""Rows of one layout written in another: what the target cannot give back is left out and counted, and no file is half-written.

Sources: the layouts in `methods/formats`; JSON Lines, https://jsonlines.org; RFC 4180 (CSV); https://parquet.apache.org.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from modelwright.core.errors import UserError, missing_extra
from modelwright.core.events import Log
from modelwright.core.record import Record, from_json
from modelwright.core.spec import kind_of
from modelwright.methods.formats import Format, looking
from modelwright.methods.sources import OnBad, of_unreadable
from modelwright.methods.sources._files import LOOK_ROWS, Bad, How, objects, read
from modelwright.methods.sources._rows import JSON_BYTES
from modelwright.methods.sources._rows import Row as Found
from modelwright.methods.templates import tools_of

WRITTEN = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
"""How a file's name may end."""
PARTS = ("text", "messages", "chosen", "rejected", "meta")
SPARE = ("weight", "name", "reasoning_content", "thinking")
"""Keys of a turn that a layout may lack a place for; the turn is whole without."""
BATCH = 1024
"""Rows of a Parquet row group."""

Row = dict[str, Any]


class Converted(NamedTuple):
    """What became of the rows."""

    read: int
    """Records that the rows of the input gave."""
    written: int
    notes: list[str]
    """How each file was read and why, and how the new one will be."""
    unreadable: dict[str, int]
    """Rows that could not be read, by the reason."""
    left_out: dict[str, int]
    """Records that the target cannot hold, by the reason."""
    samples: dict[str, str]
    """Of each of these reasons, the first record, or the place and what is wrong there."""
    fields: dict[str, int]
    """What became of fields in rows that were written, where the target has no place or no type for them."""


class _Told:
    """What is counted on the way."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.unreadable, self.left_out, self.fields = Counter[str](), Counter[str](), Counter[str]()
        self.samples: dict[str, str] = {}

    def hear(self, event: str, fields: dict[str, Any]) -> None:
        if event == "note":
            self.notes.append(fields["text"])
        elif event == "excluded":
            self.notes.append(f"{fields['files']:,} left out: {fields['reason']}")
        elif event == "unreadable":
            reason, where = of_unreadable(fields)
            self.unreadable[reason] += 1
            self.samples.setdefault(reason, where)

    def refuse(self, record: Record, why: str) -> None:
        self.left_out[why] += 1
        self.samples.setdefault(why, record.id)


def convert(
    source: Path,
    target: Path,
    to: Format,
    layout: Format | None = None,
    *,
    on_bad: OnBad = "error",
    spare: bool = False,
    force: bool = False,
) -> Converted:
    """Write `target`, in the form that its name ends in. `layout`: how the rows are read; unset, that is told from them.
    `spare`: where the layout has no place for a turn's `SPARE` field, leave out the field and not the record."""
    if not target.name.endswith(WRITTEN):
        raise UserError(f"{target}: no such form of file", fix=f"let its name end in {', '.join(WRITTEN)}")
    if target.exists() and not force:
        raise UserError(f"{target} is there already", fix="give another name, or --force to replace it")
    if not source.exists():
        raise UserError(f"there is no file {source}")
    told = _Told()
    total = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        kept, made = Path(folder, "kept.jsonl"), Path(folder, target.name)
        with kept.open("wb") as file:
            for record in read(source, Log(None, told.hear), layout=layout, on_bad=on_bad):
                total += 1
                if (row := _row(to, record, spare, told)) is not None:
                    file.write(record.to_json() + b"\n" + json.dumps(row).encode() + b"\n")
        written = _written(made, kept, to, told)
        if not written:
            why_not = [f"{count} of {total}: {why}" for why, count in told.left_out.most_common(3)]
            why_not += [f"{count} unreadable: {why}, {told.samples[why]}" for why, count in told.unreadable.most_common(3)]
            raise UserError(
                f"no row of {source} can be written as `{kind_of(to)}` to {target.name}",
                "; ".join(why_not) or "it holds no row that can be read",
                "`messages` holds every chat, `preference` every pair and `text` every document; `.jsonl` keeps every type",
            )
        told.notes.append(_detected(made, target.name, to))
        made.replace(target)
    notes = list(filter(None, told.notes))
    return Converted(total, written, notes, dict(told.unreadable), dict(told.left_out), told.samples, dict(told.fields))


def _row(to: Format, record: Record, spare: bool, told: _Told) -> Row | None:
    """The record in the layout; None where that cannot hold it, which is counted."""
    try:
        return to.write(record)
    except UserError as error:
        why = error.why
    present = [key for key in SPARE if any(key in turn for turn in _turns(record))] if spare else []
    for count in range(1, len(present) + 1):
        for keys in itertools.combinations(present, count):
            _strip(less := from_json(record.to_json()), keys)
            try:
                row = to.write(less)
            except UserError:
                continue
            _strip(record, keys)
            told.fields.update(f"`{key}` of turns: the layout has no place for it" for key in keys)
            return row
    told.refuse(record, why)
    return None


def _turns(record: Record) -> list[dict[str, Any]]:
    return [*record.messages, *record.chosen, *record.rejected]


def _strip(record: Record, keys: Iterable[str]) -> None:
    for turn in _turns(record):
        for key in keys:
            turn.pop(key, None)


# --- writing, and reading what was written ----------------------------------------------------------------


def _written(made: Path, kept: Path, to: Format, told: _Told) -> int:
    """Write the rows, and again without those that are not read back as they were; how many they are in the end."""
    form = made.name.removesuffix(".gz").rpartition(".")[2]
    bad: set[int] = set()
    while next(_rows(kept, bad), None) is not None:
        _write(made, form, partial(_rows, kept, set(bad)))
        fields, total, fresh = Counter[str](), 0, set[int]()
        wanted = ((number, record) for number, (record, _) in enumerate(_pairs(kept)) if number not in bad)
        for (number, record), found in zip(wanted, _read_back(made), strict=True):
            total += 1
            if lost := _lost(to, record, found.value, form, fields):
                fresh.add(number)
                told.refuse(record, f"as .{form} it would be read back otherwise: {lost}")
        if not fresh:
            told.fields += fields
            return total
        bad |= fresh
    return 0


def _read_back(made: Path) -> Iterator[Found]:
    if made.name.endswith(".json") and made.stat().st_size > JSON_BYTES:
        raise UserError(f"{made.name} would be too long to be read again", "a .json file is one value", "write .jsonl")
    return objects(made, How(delimiter="\t" if made.name.endswith(".tsv") else ","))


def _rows(kept: Path, bad: Set[int]) -> Iterator[Row]:
    return (row for number, (_, row) in enumerate(_pairs(kept)) if number not in bad)


def _pairs(kept: Path) -> Iterator[tuple[Record, Row]]:
    """Each record and its row."""
    with kept.open("rb") as file:
        for line in file:
            yield from_json(line), json.loads(next(file))


def _lost(to: Format, record: Record, row: Row | Bad, form: str, fields: Counter[str]) -> str:
    """The parts that the row, as it stands in the file, does not give back; `fields` counts what changed its type alone."""
    if isinstance(row, Bad):
        return f"{row.reason}: {row.detail}"
    try:
        back = to.record(row, record.id)
        same_tools = tools_of(record.meta) == tools_of(back.meta)
    except ValueError as error:
        return str(error)
    meta, meta_back, changed = dict(record.meta), dict(back.meta), list[str]()
    if same_tools and "tools" in meta and meta["tools"] != meta_back.get("tools"):
        meta_back["tools"] = meta["tools"]
        changed.append("tools")
    if form in ("csv", "tsv"):
        for key in {key for key, value in meta_back.items() if value == "" and key not in meta}:
            del meta_back[key]  # a cell that other rows fill
        for key, value in meta.items():
            if value is not None and not isinstance(value, str) and meta_back.get(key) == json.dumps(value):
                meta_back[key] = value
                changed.append(key)
    meta_back |= {key: None for key, value in meta.items() if value is None and key not in meta_back}
    lost = [part for part in PARTS[:-1] if getattr(record, part) != getattr(back, part)] + ["meta"] * (meta != meta_back)
    if not lost:
        fields.update(f"`{key}`: kept as text" for key in changed)
    return ", ".join(lost)


def _detected(made: Path, name: str, to: Format) -> str:
    """A note, where the file's rows do not tell their layout."""
    head = [row.value for row in itertools.islice(_read_back(made), LOOK_ROWS) if not isinstance(row.value, Bad)]
    try:
        found, _ = looking().settle(head, name)
    except UserError as error:
        return f"{name} has to be read with `format: {kind_of(to)}`: {error.what}"
    return "" if kind_of(found) == kind_of(to) else f"{name} would be read as `{kind_of(found)}`: say `format: {kind_of(to)}`"


def _write(made: Path, form: str, rows: Callable[[], Iterator[Row]]) -> None:
    """The rows in the form of a file; `rows` begins anew each time."""
    if form == "parquet":
        _parquet(made, rows)
    elif form in ("csv", "tsv"):
        keys = list(dict.fromkeys(key for row in rows() for key in _flat(row)))
        with made.open("w", encoding="utf-8", newline="") as text:
            table = csv.writer(text, delimiter="\t" if form == "tsv" else ",", lineterminator="\n")
            table.writerow(keys)
            table.writerows([_cell(row.get(key)) for key in keys] for row in map(_flat, rows()))
    else:
        lines = (json.dumps(row, ensure_ascii=False).encode() for row in rows())
        with made.open("wb") as file:
            if form == "json":
                file.writelines((b",\n" if number else b"[\n") + line for number, line in enumerate(lines))
                file.write(b"\n]\n")
            elif made.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # the same rows, the same bytes
                    packed.writelines(line + b"\n" for line in lines)
            else:
                file.writelines(line + b"\n" for line in lines)


def _flat(row: Row) -> Row:
    """For tables: metadata in columns of its own, and tools, whose keys differ, as JSON text."""
    meta = row.get("meta")
    flat = row | {key: value for key, value in meta.items() if key not in row} if isinstance(meta, dict) else dict(row)
    other = {key: value for key, value in meta.items() if key in row} if isinstance(meta, dict) else meta
    flat.pop("meta", None)
    if other:
        flat["meta"] = other
    if isinstance(flat.get("tools"), list):
        flat["tools"] = json.dumps(flat["tools"], ensure_ascii=False)
    return flat


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parquet(made: Path, rows: Callable[[], Iterator[Row]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "hub", f"{made.name} (Parquet)") from None

    def batches() -> Iterator[list[Row]]:
        waiting = map(_flat, rows())
        while batch := list(itertools.islice(waiting, BATCH)):
            yield batch

    try:
        found = [pa.Table.from_pylist([dict.fromkeys(_keys(batch)) | row for row in batch]).schema for batch in batches()]
        schema = pa.unify_schemas(found, promote_options="permissive")
        with pq.ParquetWriter(made, schema) as writer:
            for batch in batches():
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    except pa.ArrowException as error:
        raise UserError(
            f"{made.name} cannot be written as Parquet",
            f"its columns need one type: {error}",
            "write .jsonl, which keeps every type",
        ) from None


def _keys(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
