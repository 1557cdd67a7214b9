"""A chat as text, and which pieces of it are trained on.

Environment and variables as in Hugging Face's dialect (https://huggingface.co/docs/transformers/chat_templating).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from modelwright.core.errors import UserError
from modelwright.core.record import Message

if TYPE_CHECKING:
    import jinja2

TRAINED_ON = datetime(2024, 7, 26)
"""The day that a template which writes today's date into a chat gets in training, so that rows are the same bits tomorrow. It is
the date that Llama 3's template falls back to (https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct)."""


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
    their role (the prompt of a preference pair). A message of `weight` 0 is context, too, as in OpenAI's fine-tuning format.
    """

    def prefix(count: int, header: bool = False) -> str:
        return render(jinja, messages[:count], header, bos=bos, eos=eos, tools=tools, now=TRAINED_ON)

    full = prefix(len(messages))
    found: list[Span] = []
    at, seen = 0, 0
    for index, message in enumerate(messages):
        if index < first or message.get("role") not in roles or message.get("weight") == 0:
            continue
        start, end = _turn(full, messages, index, at, prefix, eos)
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


def _turn(full: str, messages: Sequence[Message], index: int, at: int, prefix: Callable[..., str], eos: str) -> tuple[int, int]:
    """Where the text that message `index` trains on starts and ends in `full`; the turns before end at `at`."""
    content = messages[index].get("content")
    body = content.strip() if isinstance(content, str) else ""
    start = _start(full, messages, index, at, prefix)
    whole = full if index + 1 == len(messages) else prefix(index + 1)
    if not full.startswith(whole):  # some close the text, not the turn, with the end of text (Phi-3)
        whole = whole.removesuffix(eos)
    if full.startswith(whole):
        end = len(whole)
    elif not body:
        end = start + _call(full, whole, start, messages, index)
    else:  # the template writes a last turn otherwise than an earlier one (Qwen3 drops earlier thoughts)
        tail = whole[whole.rfind(body) + len(body) :]
        end = full.find(body, start) + len(body) + len(tail)
        if not tail or not full[:end].endswith(body + tail):
            raise _unstable(index, messages)
    text = full[start:end]
    behind = text[text.rfind(body) + len(body) :] if body else text
    if behind.strip():  # a mark ends the turn; what follows the mark is never generated
        end -= len(behind) - len(behind.rstrip())
    return start, end


def _call(full: str, whole: str, start: int, messages: Sequence[Message], index: int) -> int:
    """Length of the call of a tool at `start`, which the template opens with a thought where it is the last turn (Qwen3)."""
    calls = messages[index].get("tool_calls") or []
    name = str((calls[0].get("function") or calls[0]).get("name")) if calls and isinstance(calls[0], dict) else ""
    if name and whole.startswith(full[:start]):
        for begin in range(start, whole.rfind(name) + 1):
            if full.startswith(whole[begin:], start):
                return len(whole) - begin
    raise _unstable(index, messages)


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
    before = max(at, len(prefix(index)))
    if body:  # a thought's mark and an answer may begin with the same sign
        start = min(start, full.find(body, before))
    elif full.rfind("<", before, start) > full.rfind(">", before, start):
        start = full.rfind("<", before, start)
    if start < before:
        raise _unstable(index, messages)
    return start


def _unstable(index: int, messages: Sequence[Message]) -> UserError:
    return UserError(
        f"cannot tell which text message {index + 1} of {len(messages)} trains on",
        "the chat template renders the messages before it differently once it is there",
        "keep only the last answer of each chat, or use a template that adds a turn at the end",
    )
