"""A chat as token ids, with what the loss counts, and whether serving will see the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.core.stage import Check
from modelwright.methods.templates._render import TRAINED_ON, Span, render, spans
from modelwright.methods.templates._typed import BREAK, broken, mended, special_tokens
from modelwright.methods.tokenizers import Encoding, bare_copy, fast_encoding

if TYPE_CHECKING:
    from modelwright.text import Array

BATCH_CHARS, WORTH_CHARS = 20_000, 500_000
"""A batch of texts so long is for speed; after so much text a fast encoder repays the making and checking of it."""


def tools_of(meta: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a row offers the model (`meta.tools`: a list of JSON schemas, or that as JSON text); None for none.

    ValueError where they are neither.
    """
    tools = meta.get("tools") or None
    if isinstance(tools, str):
        tools = json.loads(tools) or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"`tools` is a {type(tools).__name__}, not a list of objects")
    return tools


class Encoded(NamedTuple):
    """A chat as token ids and, for each, 1 where the loss counts it."""

    ids: list[int]
    mask: list[int]


def encoder(tokenizer: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """Texts to ids with no token added, for a `tokenizers.Tokenizer` or a transformers tokenizer."""
    encode = _mended(tokenizer)
    return lambda texts: [ids if isinstance(ids, list) else ids.tolist() for ids in encode(texts)]


def array_encoder(tokenizer: Any) -> Callable[[Sequence[str]], list[Array]]:
    """The same as arrays, with no Python number for a token where there is much text."""
    import numpy as np

    encode = _mended(tokenizer)
    return lambda texts: [np.asarray(ids, np.int32) for ids in encode(texts)]


def _mended(tokenizer: Any) -> Callable[[Sequence[str]], list[Any]]:
    """Special tokens that were broken in two are spelt."""
    marked, plain = _encoder(tokenizer, special=True), lru_cache(maxsize=1)(lambda: _encoder(tokenizer, special=False))

    def encode(texts: Sequence[str]) -> list[Any]:
        ids = marked(texts)
        for number, text in enumerate(texts):
            if BREAK in text:
                pieces = mended(text, special_tokens(tokenizer))
                ids[number] = [int(token) for piece, marks in pieces for token in (marked if marks else plain())([piece])[0]]
        return ids

    return encode


def _encoder(tokenizer: Any, special: bool) -> Callable[[Sequence[str]], list[Any]]:
    """`special`: whether special tokens in a text become one token each, or are spelt. Ids of a text are a list or an array."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        # stored settings of whoever saved it would cut rows in silence
        settled = tokenizer.truncation or tokenizer.padding or not special
        bare = bare_copy(tokenizer, special) if settled else tokenizer
        return lambda texts: [e.ids for e in bare.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(texts: Sequence[str]) -> list[Any]:
        if not texts:
            return []
        if (fast := _fast(tokenizer, special, texts)) is not None:
            return fast(texts)
        ids: list[list[int]] = tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=not special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return ids

    return encode


class _Made:
    """What was made for one tokenizer, and how much text it has had."""

    def __init__(self) -> None:
        self.chars = 0
        self.encodings: dict[tuple[Any, ...], Encoding] = {}


_made: WeakKeyDictionary[Any, _Made] = WeakKeyDictionary()


def _fast(tokenizer: Any, special: bool, texts: Sequence[str]) -> Callable[[Sequence[str]], list[Array]] | None:
    """An encoder with the same ids, where this is much text and there is one."""
    chars = sum(map(len, texts))
    if chars < BATCH_CHARS or not tokenizer.is_fast:
        return None
    made = _made.setdefault(tokenizer, _Made())
    made.chars += chars
    if made.chars < WORTH_CHARS:
        return None
    state = (special, len(tokenizer), tuple(tokenizer.all_special_ids))  # tokens may be added later
    if state not in made.encodings:
        made.encodings[state] = fast_encoding(tokenizer.backend_tokenizer, special)
    return made.encodings[state].encode


def encoded_by(tokenizer: Any) -> str:
    """Who encodes texts with this transformers tokenizer, for the log; '' as long as there was little text."""
    made = _made.get(tokenizer)
    return next((encoding.about for encoding in made.encodings.values()), "") if made else ""


def encode_prompt(tokenizer: Any, jinja: str, messages: Sequence[Message]) -> list[int]:
    """The chat as ids, up to and with the header of the assistant's next turn."""
    bos, eos = marks(tokenizer)
    return encoder(tokenizer)([render(jinja, broken(messages, special_tokens(tokenizer)), True, bos=bos, eos=eos)])[0]


def marks(tokenizer: Any) -> tuple[str, str]:
    """(bos, eos) that a template is given; a bare `tokenizers.Tokenizer` knows none."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return "", ""
    return tokenizer.bos_token or "", tokenizer.eos_token or ""


def encode_chats(
    tokenizer: Any,
    jinja: str,
    chats: Iterable[Sequence[Message]],
    roles: Sequence[str] = ("assistant",),
    *,
    bos: str | None = None,
    eos: str | None = None,
    tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
    first: Sequence[int] | None = None,
) -> list[Encoded | UserError]:
    """Many chats at once, on every core; a chat that the template refuses gives its error in its place.

    Context between two answers is encoded in one piece and each answer in another, because that is what the model sees
    when it is served: an encoded prompt, then tokens of its own. `parity` tells whether that equals the joint encoding.
    """
    own_bos, own_eos = marks(tokenizer)
    begin, end = own_bos if bos is None else bos, own_eos if eos is None else eos
    special = special_tokens(tokenizer)
    cut: list[list[Span] | UserError] = []
    for number, chat in enumerate(chats):
        try:
            cut.append(
                spans(
                    jinja,
                    broken(chat, special),
                    roles,
                    bos=begin,
                    eos=end,
                    tools=tools[number] if tools else None,
                    first=first[number] if first else 0,
                )
            )
        except UserError as error:
            cut.append(error)
    pieces = list(dict.fromkeys(span.text for chat in cut if not isinstance(chat, UserError) for span in chat))
    known = dict(zip(pieces, encoder(tokenizer)(pieces), strict=True))
    return [chat if isinstance(chat, UserError) else _joined(chat, known) for chat in cut]


def _joined(chat: list[Span], known: dict[str, list[int]]) -> Encoded:
    ids: list[int] = []
    mask: list[int] = []
    for span in chat:
        piece = known[span.text]
        ids += piece
        mask += [int(span.trained)] * len(piece)
    return Encoded(ids, mask)


def encode_chat(
    tokenizer: Any,
    jinja: str,
    messages: Sequence[Message],
    roles: Sequence[str] = ("assistant",),
    *,
    bos: str | None = None,
    eos: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    first: int = 0,
) -> Encoded:
    """One chat as `(ids, mask)`; see `encode_chats`. `bos` and `eos` unset: the tokenizer's own."""
    result = encode_chats(tokenizer, jinja, [messages], roles, bos=bos, eos=eos, tools=[tools], first=[first])[0]
    if isinstance(result, UserError):
        raise result
    return result


def parity(
    tokenizer: Any,
    jinja: str,
    messages: Sequence[Message],
    roles: Sequence[str] = ("assistant",),
    *,
    bos: str | None = None,
    eos: str | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
) -> str | None:
    """How training's ids of a chat differ from encoding its text in one go; None where they are equal.

    A difference means a token lies across the edge of an answer: a server that encodes a whole history sees ids that
    training never did.
    """
    own_bos, own_eos = marks(tokenizer)
    begin, end = own_bos if bos is None else bos, own_eos if eos is None else eos
    text = render(jinja, broken(messages, special_tokens(tokenizer)), bos=begin, eos=end, tools=tools, now=TRAINED_ON)
    ours = encode_chat(tokenizer, jinja, messages, roles, bos=begin, eos=end, tools=tools).ids
    joint = encoder(tokenizer)([text])[0]
    if ours == joint:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ours, joint, strict=False)) if a != b), min(len(ours), len(joint)))
    return f"token {at}: {tokenizer.decode(ours[at : at + 3])!r} in training, {tokenizer.decode(joint[at : at + 3])!r} in one go"


def parity_check(
    tokenizer: Any,
    jinja: str,
    chats: Iterable[Sequence[Message]],
    tools: Iterable[Sequence[dict[str, Any]] | None] = repeat(None),
) -> Check:
    """Template parity between training and serving over `chats`, as a check of `modelwright check`."""
    total, refused = 0, 0
    faults: list[str] = []
    for chat, known in zip(chats, tools, strict=False):
        total += 1
        try:
            fault = parity(tokenizer, jinja, chat, tools=known)
        except UserError:
            refused += 1
            continue
        if fault:
            faults.append(fault)
    detail = f"{total - len(faults) - refused} of {total} chats encode the same in pieces and in one go"
    if refused:
        detail += f"; the template refuses {refused}"
    if faults:
        detail += f"; first difference at {faults[0]}"
    fix = "strip white space at the start of answers, or use a template whose header ends in a special token"
    return Check("template parity", not faults and not refused, detail, "" if not faults and not refused else fix)
