"""From records to stored rows of ids and loss flags; every row that is left out is counted with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.core.stage import Input, Run
from modelwright.methods.sources import open_records
from modelwright.methods.templates import Template, encode_chats, encoder, tools_of

if TYPE_CHECKING:
    from modelwright.nn.rows import Row, Rows

AT_ONCE = 512
"""Records that are encoded together: enough to keep the tokenizer's threads busy."""


class Text(NamedTuple):
    """A tokenizer and how it is used here."""

    tokenizer: Any
    template: Template | None
    needs: str
    """`text`, `answers` or `pairs`, as the objective says."""
    length: int
    """Most tokens of a row."""

    def jinja(self) -> str:
        """The template's source; UserError where a chat comes and there is none."""
        if self.template is not None:
            return self.template.of(self.tokenizer)
        from modelwright.methods.templates import TEMPLATES

        own: Any = TEMPLATES.load("own")()
        source: str = own.of(self.tokenizer)
        return source

    def has_template(self) -> bool:
        return self.template is not None or bool(self.tokenizer.chat_template)

    def stop(self) -> int | None:
        """The token that ends an answer: the last trained one of a chat, where that is a mark and no ordinary text."""
        if not self.has_template():
            return None
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        result = encode_chats(self.tokenizer, self.jinja(), [chat])[0]
        if isinstance(result, UserError) or not any(result.mask):
            return None
        last = max(i for i, kept in enumerate(result.mask) if kept)
        token = result.ids[last]
        return token if token in self.tokenizer.added_tokens_decoder or token in self.tokenizer.all_special_ids else None


class Ledger:
    """What became of the records of one source or all of them."""

    def __init__(self) -> None:
        self.read = self.used = self.cut_tokens = 0
        self.dropped: Counter[str] = Counter()

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def tree(self) -> dict[str, Any]:
        return {"read": self.read, "used": self.used, "dropped": dict(sorted(self.dropped.items()))}


def encode(text: Text, records: Iterable[Record], ledger: Ledger) -> Iterator[Row]:
    """The rows that the records become, in their order."""
    left = iter(records)
    while group := list(islice(left, AT_ONCE)):
        ledger.read += len(group)
        wanted = []
        for record in group:
            reason = unfit(record, text.needs)
            if reason:
                ledger.drop(reason)
            else:
                wanted.append(record)
        if not wanted:
            continue
        if text.needs == "pairs":
            found = _pairs(text, wanted, ledger)
        else:
            found = _documents(text, wanted, ledger)
        yield from found


def unfit(record: Record, needs: str) -> str | None:
    """Why an objective with these needs cannot use the record; None where it can."""
    pair = bool(record.chosen or record.rejected)
    try:
        tools_of(record.meta if record.messages else {})
    except ValueError as error:
        return f"its tools cannot be read: {error}"
    if needs == "pairs":
        return None if record.chosen and record.rejected else "no preference pair"
    if pair:
        return "a preference pair, which this objective does not use"
    if needs == "answers" and not record.messages:
        return "a text without questions and answers"
    return None if record.messages or record.text else "empty"


def _documents(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """Texts and chats, in order."""
    from modelwright.nn.rows import FIRST, Row

    chats = [record for record in records if record.messages]
    plain = [record for record in records if not record.messages]
    tools = [tools_of(record.meta) for record in chats]
    encoded_chats = iter(encode_chats(text.tokenizer, text.jinja(), [r.messages for r in chats], tools=tools) if chats else [])
    encoded_texts = iter(encoder(text.tokenizer)([record.text for record in plain]))
    begin, end = (_begin(text.tokenizer), _end(text.tokenizer)) if plain else ([], [])
    for record in records:
        if not record.messages:
            ids = [*begin, *next(encoded_texts), *end]
            pieces = cut(ids, text.length)
            ledger.used += 1
            ledger.cut_tokens += len(pieces) - 1
            for number, piece in enumerate(pieces):
                yield Row(piece, [FIRST] * len(piece), name=record.id if len(pieces) == 1 else f"{record.id} piece {number + 1}")
            continue
        chat = next(encoded_chats)
        if isinstance(chat, UserError):
            ledger.drop(f"refused by the template: {chat.what}"[:160])
            continue
        flags = [1] * len(chat.ids) if text.needs == "text" else chat.mask
        if len(chat.ids) > text.length:
            ledger.drop(f"a chat of more than {text.length} tokens")
        elif not any(flags[1:]):
            ledger.drop("nothing to train on")
        else:
            ledger.used += 1
            yield Row(chat.ids, flags, name=record.id)


def _pairs(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """Both answers of each record, stored with their common beginning once."""
    from modelwright.nn.rows import pair

    first, tools = [len(record.messages) for record in records], [tools_of(record.meta) for record in records]
    sides = [
        encode_chats(text.tokenizer, text.jinja(), [[*r.messages, *getattr(r, side)] for r in records], tools=tools, first=first)
        for side in ("chosen", "rejected")
    ]
    for record, chosen, rejected in zip(records, *sides, strict=True):
        bad = next((side for side in (chosen, rejected) if isinstance(side, UserError)), None)
        if bad is not None or isinstance(chosen, UserError) or isinstance(rejected, UserError):
            ledger.drop(f"refused by the template: {bad.what if bad else ''}"[:160])
        elif max(len(chosen.ids), len(rejected.ids)) > text.length:
            ledger.drop(f"an answer with its prompt of more than {text.length} tokens")
        elif not any(chosen.mask[1:]) or not any(rejected.mask[1:]):
            ledger.drop("nothing to train on")
        elif chosen == rejected:
            ledger.drop("both answers are the same")
        else:
            ledger.used += 1
            yield pair(chosen, rejected, record.id)


def cut(ids: list[int], length: int) -> list[list[int]]:
    """Pieces of at most `length` tokens, nearly equal, each beginning with the last token of the one before.

    The shared token is context: so every token but the document's first is predicted exactly once.
    """
    if len(ids) <= length:
        return [ids]
    count = -(-(len(ids) - 1) // (length - 1))
    step = -(-(len(ids) - 1) // count)
    return [ids[begin : begin + step + 1] for begin in range(0, len(ids) - 1, step)]


def _begin(tokenizer: Any) -> list[int]:
    """The beginning-of-text token where the tokenizer puts one before a text of its own accord (Llama's does)."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []


def _end(tokenizer: Any) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token",
            "without one a model trained on texts never learns to stop",
            "set `eos_token` in its tokenizer_config.json",
        )
    return [tokenizer.eos_token_id]


# --- stored rows --------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """Stored rows of several sources, one after the other."""

    rows: Rows
    firsts: list[int]
    """Row number at which each source begins, and the total."""
    ledger: dict[str, Any]
    cut_tokens: int


def prepared(text: Text, refs: Sequence[str], run: Run, folder: Path) -> Prepared:
    """The rows of these references, tokenised once into `folder` and found there again after a kill."""
    from modelwright.nn.rows import Rows, store

    note = folder / "ledger.json"
    if not (note.exists() and (folder / "rows.json").exists()):
        ledger = Ledger()
        firsts = [0]
        rows = store(_all(text, [run.inputs[ref] for ref in refs], run, ledger, firsts), folder, len(text.tokenizer))
        _refuse_empty(text, refs, firsts, ledger)
        note.write_text(json.dumps({"ledger": ledger.tree(), "cut_tokens": ledger.cut_tokens, "firsts": firsts}))
    tree = json.loads(note.read_text())
    rows = Rows(folder)
    return Prepared(rows, tree["firsts"], tree["ledger"], tree["cut_tokens"])


def _all(text: Text, inputs: Sequence[Input], run: Run, ledger: Ledger, firsts: list[int]) -> Iterator[Row]:
    for given in inputs:
        rows = 0
        for row in run.log.track(encode(text, open_records(given, run.log), ledger), "rows", label=f"tokenise {given.ref}"):
            rows += 1
            yield row
        firsts.append(firsts[-1] + rows)


def _refuse_empty(text: Text, refs: Sequence[str], firsts: Sequence[int], ledger: Ledger) -> None:
    for ref, begin, end in zip(refs, firsts, firsts[1:], strict=False):
        if begin == end:
            reasons = "; ".join(f"{count} rows: {reason}" for reason, count in ledger.dropped.most_common(3))
            raise UserError(f"no row of {ref} can be trained on", reasons, WANTED[text.needs])


WANTED = {
    "text": "next_token takes texts and chats",
    "answers": "sft takes chats: rows with `messages` that hold an assistant's answer",
    "pairs": "dpo takes rows with `messages`, `chosen` and `rejected`",
}
