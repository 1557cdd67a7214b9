"""A Modelfile, so that `ollama create name -f Modelfile` takes the export.

Source: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx. Ollama wants the chat template in Go's language. It is
found by rendering the model's own template with marks in place of texts, and kept only where it then gives the same text
as the model's own on longer chats.
"""

from __future__ import annotations

from typing import Any

from modelwright.core.errors import UserError
from modelwright.core.record import Message
from modelwright.methods.templates import render

_MARK = "MARK"
_ROLES = ("system", "user", "assistant")


_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Names in `generation_config.json` -> Ollama's."""


def modelfile(
    gguf: str,
    template: str,
    bos: str,
    eos: str,
    stops: list[str],
    context: int,
    settings: dict[str, Any],
    adds_bos: bool = False,
) -> str:
    """`settings`: the model's `generation_config.json`; how to sample is taken from it where it says so, else Ollama decides.
    `adds_bos`: the tokenizer begins every text with `bos`, as Ollama's does then: the template must not do so, too."""
    lines = [f"FROM ./{gguf}", f"PARAMETER num_ctx {min(context, 4096)}", *(f'PARAMETER stop "{stop}"' for stop in stops)]
    lines += [f"PARAMETER {ollama} {settings[name]}" for name, ollama in _PARAMETERS.items() if settings.get(name) is not None]
    if not template:
        return "\n".join([*lines, 'TEMPLATE """{{ .Prompt }}"""', ""])
    parts = _parts(template, bos, eos)
    if parts is None:
        lines.insert(
            0, "# The model's chat template has no equal in Ollama's language; Ollama will use what it finds in the GGUF file."
        )
        return "\n".join([*lines, ""])
    start = parts["start"][0].removeprefix(bos) if adds_bos else parts["start"][0]
    turns = "".join(
        f'{{{{ {"else " if number else ""}if eq .Role "{role}" }}}}{"{{ .Content }}".join(parts[role])}'
        for number, role in enumerate(role for role in _ROLES if role in parts)
    )
    return "\n".join(
        [
            *lines,
            f'TEMPLATE """{start}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{parts["header"][0]}"""',
            "",
        ]
    )


def _parts(template: str, bos: str, eos: str) -> dict[str, tuple[str, ...]] | None:
    """Text before and after each role's content, what starts a chat, and the header of an answer; None where a template
    is more than that."""

    def text(messages: list[Message], header: bool = False) -> str:
        return render(template, messages, header, bos=bos, eos=eos)

    def turn(role: str) -> Message:
        return {"role": role, "content": _MARK}

    try:
        one, two = (
            text([turn("user"), turn("assistant")]),
            text([turn("user"), turn("assistant"), turn("user"), turn("assistant")]),
        )
        repeated = two[len(one) :]
        start = one[: len(one) - len(repeated)]
        if two != start + repeated * 2 or repeated.count(_MARK) != 2:
            return None
        user_before, between, assistant_after = repeated.split(_MARK)
        header = text([turn("user")], True)[len(text([turn("user")])) :]
        if not between.endswith(header):
            return None
        parts = {
            "start": (start,),
            "header": (header,),
            "user": (user_before, between.removesuffix(header)),
            "assistant": (header, assistant_after),
        }
        try:
            with_system = text([turn("system"), turn("user")])
            system = with_system.removeprefix(start).removesuffix(user_before + _MARK + parts["user"][1])
            if system.count(_MARK) == 1:
                before, after = system.split(_MARK)
                parts["system"] = (before, after)
        except UserError:
            pass  # a template without a system role
        roles = [role for role in ("system", "user", "assistant", "user") if role in parts]
        wanted = text([turn(role) for role in roles], True)
    except UserError:
        return None
    ours = start + "".join(_MARK.join(parts[role]) for role in roles) + header
    usable = ours == wanted and not any("{{" in part or '"""' in part for pair in parts.values() for part in pair)
    return parts if usable else None


def stops(tokenizer: Any, ends: frozenset[int]) -> list[str]:
    return sorted(tokenizer.convert_ids_to_tokens(list(ends)))
