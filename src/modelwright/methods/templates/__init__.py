"""Templates: how a chat becomes text. One file a kind. Training and serving render with the same Jinja source.

Environment and variables as in Hugging Face's dialect (https://huggingface.co/docs/transformers/chat_templating):
an immutable sandbox, `trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson`
without HTML escapes, and `{% generation %}` blocks. What a row trains on is found by rendering its prefixes, so
any template works without marks in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.core.spec import Kinds, Spec
from modelwright.core.stage import Check

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Kinds(__name__, f"{__name__}:Template")


class Template(Spec):
    """A chat template in Hugging Face's dialect of Jinja, kept inside the tokenizer (`chat_template`)."""

    special: ClassVar[tuple[str, ...]] = ()
    """Tokens that the vocabulary must hold whole."""
    stop: ClassVar[str] = ""
    """The token that ends a turn; it is inside the loss and stops generation. '': the tokenizer's own."""

    def jinja(self) -> str:
        """The template's source, '' where the tokenizer brings it; given `messages`, `add_generation_prompt`, `bos_token`,
        `eos_token`, `tools`."""
        raise NotImplementedError

    def of(self, tokenizer: Any) -> str:
        """The source to use with this tokenizer (transformers' or a bare one), whose vocabulary is checked for it."""
        self.check(tokenizer)
        return self.jinja()

    def check(self, tokenizer: Any) -> None:
        """UserError where the vocabulary lacks one of `special`."""
        vocabulary = tokenizer.get_vocab()
        if missing := [token for token in self.special if token not in vocabulary]:
            raise UserError(
                f"the tokenizer lacks {', '.join(map(repr, missing))}, which this chat template needs",
                "a turn's marks must be whole tokens, else the model cannot end its answer",
                "use `template: own` for the template that came with the tokenizer, or train a tokenizer with this template",
            )


# --- rendering ----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks answers for other tools; the text inside is plain text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    extensions: list[Any] = [Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno} of the chat template is not Jinja: {error.message}") from None


def render(
    jinja: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    *,
    bos: str = "",
    eos: str = "",
    tools: Sequence[dict[str, Any]] | None = None,
    now: datetime | None = None,
) -> str:
    """The chat as text; with `add_generation_prompt`, up to and with the header of the assistant's next turn. `now`: for
    templates that write the date; unset: the day it is."""
    import jinja2

    try:
        return _compiled(jinja).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            bos_token=bos,
            eos_token=eos,
            tools=list(tools) if tools else None,
            documents=None,
            strftime_now=(now or datetime.now()).strftime,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:  # the template's own code fails
        raise UserError(
            f"the chat template refuses this chat: {error}",
            f"roles in order: {', '.join(str(m.get('role')) for m in messages) or 'none'}",
            "change the rows, or take another template",
        ) from None


# --- marks that a person typed --------------------------------------------------------------------------

TRAINED_ON = datetime(2024, 7, 26)
"""The day that a template which writes today's date into a chat gets in training, so that rows are the same bits tomorrow. It is
the date that Llama 3's template falls back to (https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct)."""
BREAK = "\ufdd0"
"""Put inside a special token that stands in a message, so that it is found as text after rendering. Unicode keeps this code
point for a program's own use (The Unicode Standard, section 23.7)."""


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The marks of this tokenizer (transformers' or a bare one): tokens that no ordinary text may become."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        return tuple(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


def broken(messages: Sequence[Message], special: Sequence[str]) -> Sequence[Message]:
    """The chat with every special token that a message other than the assistant's spells out broken in two: a person who
    types `<|im_end|>` has written ten characters and has not ended a turn. The assistant's own marks are its to write."""

    def text(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: found[0][0] + BREAK + found[0][1:], value)
        if isinstance(value, list):  # parts of a message
            return [text(part) for part in value]
        return {key: text(part) for key, part in value.items()} if isinstance(value, dict) else value

    if not special:
        return messages
    pattern = _any_of(tuple(special))
    return [m if m.get("role") == "assistant" else {**m, "content": text(m.get("content"))} for m in messages]


def mended(text: str, special: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The pieces of a rendered text, and for each whether special tokens in it are marks (True) or what a person wrote."""
    if BREAK not in text:
        yield text, True
        return
    at = 0
    for found in _any_of(tuple(token[0] + BREAK + token[1:] for token in special)).finditer(text):
        if found.start() > at:
            yield text[at : found.start()], True
        yield found[0].replace(BREAK, ""), False
        at = found.end()
    if at < len(text):
        yield text[at:], True


@lru_cache(maxsize=64)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """The longest first, as tokenizers match them; one that matches nothing where there are none."""
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token) or r"(?!)")


# --- what a chat trains on ----------------------------------------------------------------------------


class Span(NamedTuple):
    """A piece of a rendered chat. The pieces of a chat, joined, are the chat."""

    text: str
    role: str
    """Roles of the messages in it, joined by `+`."""
    trained: bool


def spans(
    jinja: str,
    messages: Sequence[Message],
    roles: Sequence[str] = ("assistant",),
    *,
    bos: str = "",
    eos: str = "",
    tools: Sequence[dict[str, Any]] | None = None,
    first: int = 0,
) -> list[Span]:
    """The rendered chat, cut where training starts and stops.

    A trained span is what the model must write itself: the answer and the mark that ends its turn, not the header that a
    generation prompt gives it, nor white space behind the mark. `first`: messages before this one are context whatever
    their role (the prompt of a preference pair).
    """

    def prefix(count: int, header: bool = False) -> str:
        return render(jinja, messages[:count], header, bos=bos, eos=eos, tools=tools, now=TRAINED_ON)

    full = prefix(len(messages))
    found: list[Span] = []
    at, seen = 0, 0
    for index, message in enumerate(messages):
        if index < first or message.get("role") not in roles:
            continue
        start, end = _turn(full, messages, index, at, prefix)
        role = str(message["role"])
        if start > at:
            context = [str(m.get("role")) for m in messages[seen:index]]
            found.append(Span(full[at:start], "+".join(context) or role, False))
        if end > start:
            found.append(Span(full[start:end], role, True))
        at, seen = end, index + 1
    if at < len(full):
        context = [str(m.get("role")) for m in messages[seen:]]
        found.append(Span(full[at:], "+".join(context) or (found[-1].role if found else ""), False))
    return found


def _turn(full: str, messages: Sequence[Message], index: int, at: int, prefix: Callable[..., str]) -> tuple[int, int]:
    """Where the text that message `index` trains on starts and ends in `full`; the turns before end at `at`."""
    content = messages[index].get("content")
    body = content.strip() if isinstance(content, str) else ""
    start = _start(full, messages, index, at, prefix)
    whole = full if index + 1 == len(messages) else prefix(index + 1)
    if full.startswith(whole):
        end = len(whole)
    else:  # the template writes a last turn otherwise than an earlier one (Qwen3 drops earlier thoughts)
        tail = whole[whole.rfind(body) + len(body) :]
        end = full.find(body, start) + len(body) + len(tail)
        if not body or not tail or not full[:end].endswith(body + tail):
            raise _unstable(index, messages)
    text = full[start:end]
    behind = text[text.rfind(body) + len(body) :] if body else text
    if behind.strip():  # a mark ends the turn; what follows the mark is never generated
        end -= len(behind) - len(behind.rstrip())
    return start, end


def _start(full: str, messages: Sequence[Message], index: int, at: int, prefix: Callable[..., str]) -> int:
    """Where message `index` begins behind its header."""
    content = messages[index].get("content")
    body = content.strip() if isinstance(content, str) else ""
    try:
        prompt = prefix(index, messages[index].get("role") == "assistant")
    except UserError:
        if index:
            raise
        return max(full.find(body), 0)  # nothing comes before the first message, and templates may refuse an empty chat
    if full.startswith(prompt) and len(prompt) >= at:
        return len(prompt)
    # A generation prompt may open a thought that the stored answer lacks: the header is what both share.
    start = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    if start < at or start < len(prefix(index)) or full.find(body, start) < 0:
        raise _unstable(index, messages)
    return start


def _unstable(index: int, messages: Sequence[Message]) -> UserError:
    return UserError(
        f"cannot tell which text message {index + 1} of {len(messages)} trains on",
        "the chat template renders the messages before it differently once it is there",
        "keep only the last answer of each chat, or use a template that adds a turn at the end",
    )


# --- token ids ----------------------------------------------------------------------------------------


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
    marked, plain = _encoder(tokenizer, special=True), lru_cache(maxsize=1)(lambda: _encoder(tokenizer, special=False))

    def encode(texts: Sequence[str]) -> list[list[int]]:
        ids = marked(texts)
        for number, text in enumerate(texts):
            if BREAK in text:
                pieces = mended(text, special_tokens(tokenizer))
                ids[number] = [token for piece, marks in pieces for token in (marked if marks else plain())([piece])[0]]
        return ids

    return encode


def _encoder(tokenizer: Any, special: bool) -> Callable[[Sequence[str]], list[list[int]]]:
    """`special`: whether special tokens in a text become one token each, or are spelt."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, Tokenizer):
        bare = tokenizer
        # stored settings of whoever saved it would cut rows in silence
        if tokenizer.truncation or tokenizer.padding or not special:
            bare = Tokenizer.from_str(tokenizer.to_str())
            bare.no_truncation()
            bare.no_padding()
            bare.encode_special_tokens = not special
        return lambda texts: [e.ids for e in bare.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode(texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
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
