"""What records become by what the objective needs: rows of ids and loss flags; every row left out is counted with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from modelwright.core.errors import UserError
from modelwright.core.record import Record
from modelwright.methods.objectives import Tagged
from modelwright.methods.templates import array_encoder, encode_chats, tools_of
from modelwright.stages._train_arranged import arranged_texts
from modelwright.stages._train_text import Ledger, Text

if TYPE_CHECKING:
    from modelwright.nn.rows import Row
    from modelwright.text import Array


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
    if needs in ("documents", "labels", "groups", "tags") and record.messages:
        return "a chat, and this objective takes texts alone"
    return None if record.messages or record.text else "empty"


def documents(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """Texts and chats, in order."""
    import numpy as np

    from modelwright.nn.rows import FIRST, Row

    chats = [record for record in records if record.messages]
    plain = [record for record in records if not record.messages]
    tools = [tools_of(record.meta) for record in chats]
    encoded_chats = iter(encode_chats(text.tokenizer, text.jinja(), [r.messages for r in chats], tools=tools) if chats else [])
    found_texts = _texts(text, plain, ledger) if plain else iter(())
    for record in records:
        if not record.messages:
            pieces = next(found_texts)
            ledger.used += 1
            ledger.cut_tokens += len(pieces) - 1
            for number, piece in enumerate(pieces):
                name = record.id if len(pieces) == 1 else f"{record.id} piece {number + 1}"
                yield Row(piece, np.full(len(piece), FIRST, np.uint8), name=name)
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


def _texts(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[list[Any]]:
    """Of each text, the rows of ids that it becomes."""
    import numpy as np

    begin, end = _begin(text.tokenizer), _end(text.tokenizer)
    if text.arrange is not None:
        yield from arranged_texts(text, records, ledger, begin, end)
        return
    first, last = np.array(begin, np.int32), np.array(end, np.int32)
    for ids in array_encoder(text.tokenizer)([record.text for record in records]):
        yield cut(np.concatenate([first, ids, last]), text.length)


def pairs(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
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


def labelled(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """Texts as the tokenizer itself makes them, since so the finished classifier will be asked; a longer one is left out."""
    from modelwright.nn.rows import FIRST, Row

    assert text.label is not None
    encoded = text.tokenizer([record.text for record in records], padding=False, truncation=False, verbose=False)["input_ids"]
    for record, whole in zip(records, encoded, strict=True):
        ids = _without_end(whole, text.tokenizer.pad_token_id)
        try:
            label = text.label(record)
        except ValueError as error:
            ledger.drop(str(error))
            continue
        if len(ids) > text.length:
            ledger.drop(f"a text of more than {text.length} tokens")
        elif not ids:
            ledger.drop("empty")
        else:
            ledger.used += 1
            yield Row(ids, [FIRST] * len(ids), name=record.id, label=label)


def groups(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """A row of several texts that do not see each other, each as the tokenizer itself makes it."""
    from modelwright.nn.rows import FIRST, Row

    assert text.parts is not None
    for record in records:
        try:
            parts = text.parts(record)
        except ValueError as error:
            ledger.drop(str(error))
            continue
        encoded = text.tokenizer(parts, padding=False, truncation=False, verbose=False)["input_ids"]
        if max(map(len, encoded)) > text.length:
            ledger.drop(f"a text of more than {text.length} tokens")
        elif not all(encoded):
            ledger.drop("empty")
        else:
            ledger.used += 1
            ids = [token for part in encoded for token in part]
            yield Row(ids, [FIRST] * len(ids), name=record.id, parts=[len(part) for part in encoded])


def tagged(text: Text, records: Sequence[Record], ledger: Ledger) -> Iterator[Row]:
    """Texts as the tokenizer itself makes them; a word's first token gets its label, its others and all marks get none."""
    from modelwright.nn.rows import FIRST, NO_TAG, Row

    assert text.tagged is not None
    encoded = text.tokenizer(
        [record.text for record in records], padding=False, truncation=False, return_offsets_mapping=True, verbose=False
    )
    for record, ids, places in zip(records, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        try:
            words = text.tagged(record)
        except ValueError as error:
            ledger.drop(str(error))
            continue
        tags = _first_tokens(words, places)
        if len(ids) > text.length:
            ledger.drop(f"a text of more than {text.length} tokens")
        elif not tags:
            ledger.drop("no word has a token of its own")
        else:
            ledger.used += 1
            ledger.tagged["words with a label"] += len(tags)
            ledger.tagged["words without a token of their own"] += len(words) - len(tags)
            ledger.tagged["other tokens, masked"] += len(ids) - len(tags)
            flags = [FIRST if place in tags else 0 for place in range(len(ids))]
            yield Row(ids, flags, name=record.id, tags=[tags.get(place, NO_TAG) for place in range(len(ids))])


def _first_tokens(words: Sequence[Tagged], places: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Place of the first token that begins in each word, or in the blanks before it -> the label."""
    found: dict[int, int] = {}
    token = before = 0
    for word in words:
        while token < len(places) and (places[token][1] <= max(places[token][0], word.begin) or places[token][0] < before):
            token += 1
        if token < len(places) and places[token][0] < word.end:
            found[token] = word.label
        before = word.end
    return found


def _without_end(ids: list[int], pad: int | None) -> list[int]:
    """Without padding tokens at the end: a tokenizer may close a text with the token that it also pads with, and transformers'
    classifiers on decoders judge by the last token that is not padding."""
    end = next((place for place in range(len(ids), 0, -1) if ids[place - 1] != pad), 0)
    return ids[:end]


def cut(ids: Array, length: int) -> list[Array]:
    """Pieces of at most `length` tokens, nearly equal, each beginning with the last token of the one before.

    The shared token is context: so every token but the document's first is predicted exactly once.
    """
    if len(ids) <= length:
        return [ids]
    count = -(-(len(ids) - 1) // (length - 1))
    step = -(-(len(ids) - 1) // count)
    return [ids[begin : begin + step + 1] for begin in range(0, len(ids) - 1, step)]


def _begin(tokenizer: Any) -> list[int]:
    """The beginning-of-text token where the tokenizer puts one before a text of its own accord (Llama's and BERT's do)."""
    ids: list[int] = tokenizer("a")["input_ids"]
    known = (tokenizer.bos_token_id, tokenizer.cls_token_id)
    return ids[:1] if ids and ids[0] in known else []


def _end(tokenizer: Any) -> list[int]:
    """The end-of-text token; where the tokenizer closes a text with another one of its own accord (BERT's does), that."""
    ids: list[int] = tokenizer("a")["input_ids"]
    if tokenizer.sep_token_id is not None and ids[-1:] == [tokenizer.sep_token_id]:
        return ids[-1:]
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token",
            "without one a model trained on texts never learns to stop",
            "set `eos_token` in its tokenizer_config.json",
        )
    return [tokenizer.eos_token_id]


OF_NEED = {
    "pairs": pairs,
    "labels": labelled,
    "groups": groups,
    "tags": tagged,
    "text": documents,
    "documents": documents,
    "answers": documents,
}
"""What encodes the records, by what the objective needs."""
WANTED = {
    "text": "next_token, multi_token, masked_token and span_corruption take texts and chats",
    "documents": "fill_in_middle takes texts: rows with `text`",
    "answers": "sft takes chats: rows with `messages` that hold an assistant's answer",
    "pairs": "dpo takes rows with `messages`, `chosen` and `rejected`",
    "labels": "classify and regress take rows with `text` and a label: `field` of the objective says under which key, and "
    "`labels` of classify which there are",
    "tags": "classify_tokens takes words with a tag for each, or `text` with `spans`: its fields say under which keys",
    "groups": "contrastive takes rows with `text` and `positive`, and `negatives` where there are some",
}
"""What to do where a source has no such row."""
